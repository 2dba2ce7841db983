//! `storage.s3`

use crate::{
    Secret,
    section::Section,
    value::{boolean, expected, secret, size_bytes, string, url_or_host},
};

/// `chunksize`: what S3 takes as a part of a multipart upload, and what Distribution sends.
const MIN_CHUNK_BYTES: u64 = 5 << 20;
const MAX_CHUNK_BYTES: u64 = 5 << 30;
const DEFAULT_CHUNK_BYTES: u64 = 10 << 20;

/// `storage.s3`
#[derive(Debug)]
pub struct S3 {
    /// `bucket`
    pub bucket: String,
    /// `region`
    pub region: String,
    /// `regionendpoint`: another endpoint than Amazon's, with its scheme.
    pub endpoint: Option<String>,
    /// `forcepathstyle`; `regionendpoint` implies it unless it says `false`.
    pub force_path_style: bool,
    /// `accesskey` and `secretkey`; without them the usual environment and instance sources.
    pub access_key: Option<(String, Secret)>,
    /// `sessiontoken`
    pub session_token: Option<Secret>,
    /// `rootdirectory` without slashes at either end; empty when absent.
    pub root_directory: String,
    /// `encrypt`: server-side encryption, with `keyid`'s KMS key when there is one.
    pub encrypt: bool,
    /// `keyid`
    pub kms_key_id: Option<String>,
    /// `skipverify`: trust any certificate of the endpoint.
    pub skip_verify: bool,
    /// `storageclass`, sent with every object; Amazon's own default when absent.
    pub storage_class: Option<String>,
    /// `chunksize`: bytes in a part of a multipart upload; 10 MiB when absent.
    pub chunk_size_bytes: u64,
}

impl S3 {
    pub(super) fn read(s3: &mut Section<'_>) -> Option<Self> {
        Self::read_what_changes_nothing(s3);
        s3.require("bucket");
        s3.require("region");
        let bucket = s3.value("bucket", string);
        let region = s3.value("region", string);
        let endpoint = Self::read_endpoint(s3);
        let path_style = s3.value("forcepathstyle", boolean);
        let session_token = s3.value("sessiontoken", secret);
        if session_token.is_some() {
            s3.require("accesskey");
        }
        s3.require_both("accesskey", "secretkey");
        let access_key = s3.value("accesskey", string);
        let secret_key = s3.value("secretkey", secret);
        let encrypt = s3.value("encrypt", boolean).unwrap_or(false);
        let kms_key_id = s3.value("keyid", string);
        if kms_key_id.is_some() && !encrypt {
            s3.mistake("keyid", "nothing is encrypted with it without `encrypt: true`");
        }
        let root_directory = s3.value("rootdirectory", string).unwrap_or_default();
        let skip_verify = s3.value("skipverify", boolean).unwrap_or(false);
        let storage_class = s3.value("storageclass", storage_class).flatten();
        let chunk_size_bytes = s3.value("chunksize", chunk_size).unwrap_or(DEFAULT_CHUNK_BYTES);
        // Only now that every key was taken may a missing one end this.
        Some(Self {
            bucket: bucket?,
            region: region?,
            force_path_style: path_style.unwrap_or(endpoint.is_some()),
            endpoint,
            access_key: access_key.zip(secret_key),
            session_token,
            root_directory: root_directory.trim_matches('/').to_owned(),
            encrypt,
            kms_key_id,
            skip_verify,
            storage_class,
            chunk_size_bytes,
        })
    }

    fn read_endpoint(s3: &mut Section<'_>) -> Option<String> {
        let secure = s3.value("secure", boolean);
        let scheme = if secure == Some(false) { "http" } else { "https" };
        let endpoint = s3.value("regionendpoint", |text| url_or_host(text, scheme));
        let is_secure = endpoint.as_ref().is_none_or(|endpoint| endpoint.starts_with("https:"));
        if secure.is_some_and(|secure| secure != is_secure) {
            let why = "regionendpoint's scheme decides, and Amazon's own endpoints are https";
            s3.add_note("secure", why);
        }
        endpoint
    }

    fn read_what_changes_nothing(s3: &mut Section<'_>) {
        for key in
            ["multipartcopychunksize", "multipartcopymaxconcurrency", "multipartcopythresholdsize"]
        {
            s3.note(key, "Larder copies nothing within the storage");
        }
        s3.note("useragent", "Larder says its own name");
        s3.note("loglevel", "log.level holds for everything");
        s3.refuse_when("v4auth", false, "only signature version 4 is supported; remove it");
        for key in ["accelerate", "usedualstack", "usefipsendpoint"] {
            let why = "not supported; remove it, and name the endpoint to use in regionendpoint";
            s3.refuse_when(key, true, why);
        }
        s3.value("objectacl", |acl| match acl {
            "private" => Ok(()),
            _ => Err("no ACL but private is supported; use a bucket policy instead".to_owned()),
        });
    }
}

/// Distribution's classes; its `NONE` stands for saying nothing.
fn storage_class(text: &str) -> Result<Option<String>, String> {
    match &*text.to_ascii_uppercase() {
        "NONE" => Ok(None),
        class @ ("STANDARD"
        | "REDUCED_REDUNDANCY"
        | "STANDARD_IA"
        | "ONEZONE_IA"
        | "INTELLIGENT_TIERING"
        | "OUTPOSTS"
        | "GLACIER_IR") => Ok(Some(class.to_owned())),
        _ => Err(expected("a storage class that can be read at once, such as STANDARD", text)),
    }
}

fn chunk_size(text: &str) -> Result<u64, String> {
    match size_bytes(text)? {
        size @ MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES => Ok(size),
        _ => Err(expected("a size from 5MiB to 5GiB", text)),
    }
}
