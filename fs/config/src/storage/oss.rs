//! `storage.oss`

use crate::{
    Secret,
    section::Section,
    value::{boolean, expected, secret, size_bytes, string, url_or_host},
};

/// `chunksize`: what Distribution takes, and what OSS takes as a part of a multipart upload.
const MIN_CHUNK_BYTES: u64 = 5 << 20;
const MAX_CHUNK_BYTES: u64 = 5 << 30;
const DEFAULT_CHUNK_BYTES: u64 = 10 << 20;

/// `storage.oss`: Alibaba Cloud's Object Storage Service.
#[derive(Debug)]
pub struct Oss {
    /// `accesskeyid`
    pub access_key_id: String,
    /// `accesskeysecret`
    pub access_key_secret: Secret,
    /// `region` without the `oss-` that Distribution wants before it: `cn-hangzhou`.
    pub region: String,
    /// `bucket`
    pub bucket: String,
    /// The bucket's own endpoint, with its scheme: `endpoint`, or what follows from `region`,
    /// `internal` and `secure`.
    pub endpoint: String,
    /// `encrypt`: server-side encryption, with `encryptionkeyid`'s KMS key when there is one.
    pub encrypt: bool,
    /// `encryptionkeyid`
    pub kms_key_id: Option<String>,
    /// `rootdirectory` without slashes at either end; empty when absent.
    pub root_directory: String,
    /// `chunksize`: bytes in a part of a multipart upload; 10 MiB when absent.
    pub chunk_size_bytes: u64,
}

impl Oss {
    pub(super) fn read(oss: &mut Section<'_>) -> Option<Self> {
        for key in ["accesskeyid", "accesskeysecret", "region", "bucket"] {
            oss.require(key);
        }
        let access_key_id = oss.value("accesskeyid", string);
        let access_key_secret = oss.value("accesskeysecret", secret);
        let region = oss.value("region", region);
        let bucket = oss.value("bucket", string);
        let encrypt = oss.value("encrypt", boolean).unwrap_or(false);
        let kms_key_id = oss.value("encryptionkeyid", string);
        if kms_key_id.is_some() && !encrypt {
            oss.mistake("encryptionkeyid", "nothing is encrypted with it without `encrypt: true`");
        }
        let root_directory = oss.value("rootdirectory", string).unwrap_or_default();
        let chunk_size_bytes = oss.value("chunksize", chunk_size).unwrap_or(DEFAULT_CHUNK_BYTES);
        let given_endpoint = Self::read_endpoint(oss);
        let internal = oss.value("internal", boolean).unwrap_or(false);
        if internal && matches!(given_endpoint, Endpoint::Named(_)) {
            oss.add_note("internal", "endpoint decides");
        }
        // Only now that every key was taken may a missing one end this.
        let (region, bucket) = (region?, bucket?);
        let endpoint = match given_endpoint {
            Endpoint::Named(endpoint) => endpoint,
            Endpoint::OfRegion(scheme) => {
                let network = if internal { "-internal" } else { "" };
                format!("{scheme}://{bucket}.oss-{region}{network}.aliyuncs.com")
            }
        };
        Some(Self {
            access_key_id: access_key_id?,
            access_key_secret: access_key_secret?,
            region,
            bucket,
            endpoint,
            encrypt,
            kms_key_id,
            root_directory: root_directory.trim_matches('/').to_owned(),
            chunk_size_bytes,
        })
    }

    /// `endpoint` is that of the bucket, whose name mostly is its first label, as in Distribution.
    fn read_endpoint(oss: &mut Section<'_>) -> Endpoint {
        let secure = oss.value("secure", boolean);
        let scheme = if secure == Some(false) { "http" } else { "https" };
        let endpoint = oss.value("endpoint", |text| url_or_host(text, scheme));
        let Some(endpoint) = endpoint else { return Endpoint::OfRegion(scheme) };
        if secure.is_some_and(|secure| secure != endpoint.starts_with("https:")) {
            oss.add_note("secure", "endpoint's scheme decides");
        }
        Endpoint::Named(endpoint)
    }
}

enum Endpoint {
    Named(String),
    /// With this scheme.
    OfRegion(&'static str),
}

fn region(text: &str) -> Result<String, String> {
    let region = text.strip_prefix("oss-").unwrap_or(text);
    match region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        true => Ok(region.to_owned()),
        false => Err(expected("a region such as oss-cn-hangzhou", text)),
    }
}

fn chunk_size(text: &str) -> Result<u64, String> {
    match size_bytes(text)? {
        size @ MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES => Ok(size),
        _ => Err(expected("a size from 5MiB to 5GiB", text)),
    }
}
