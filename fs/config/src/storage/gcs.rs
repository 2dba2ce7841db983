//! `storage.gcs`

use std::path::PathBuf;

use crate::{
    Secret,
    section::Section,
    value::{expected, path, secret, size_bytes, string},
};

/// `chunksize`: Distribution takes multiples of this.
const CHUNK_UNIT_BYTES: u64 = 256 << 10;
/// What Google takes as a part of a multipart upload.
const MIN_PART_BYTES: u64 = 5 << 20;
const MAX_PART_BYTES: u64 = 5 << 30;
/// Distribution's default.
const DEFAULT_CHUNK_BYTES: u64 = 16 << 20;

/// `storage.gcs`
#[derive(Debug)]
pub struct Gcs {
    /// `bucket`
    pub bucket: String,
    /// `keyfile` or `credentials`; without them the application default credentials.
    pub service_account: Option<ServiceAccount>,
    /// `rootdirectory` without slashes at either end; empty when absent.
    pub root_directory: String,
    /// `chunksize`, but at least what Google takes: bytes in a part of a multipart upload.
    pub chunk_size_bytes: u64,
}

/// The key of a service account of Google Cloud.
#[derive(Debug)]
pub enum ServiceAccount {
    /// `keyfile`: the JSON file.
    File(PathBuf),
    /// `credentials`: what matters of that file's content.
    Inline {
        /// `credentials.client_email`
        client_email: String,
        /// `credentials.private_key_id`
        private_key_id: String,
        /// `credentials.private_key`, in PEM.
        private_key: Secret,
    },
}

impl Gcs {
    pub(super) fn read(gcs: &mut Section<'_>) -> Option<Self> {
        gcs.note("maxconcurrency", "Larder limits its requests to the storage itself");
        gcs.note("useragent", "Larder says its own name");
        gcs.require("bucket");
        let bucket = gcs.value("bucket", string);
        let root_directory = gcs.value("rootdirectory", string).unwrap_or_default();
        let chunk_size_bytes = gcs.value("chunksize", chunk_size).unwrap_or(DEFAULT_CHUNK_BYTES);
        if chunk_size_bytes < MIN_PART_BYTES {
            gcs.add_note("chunksize", "Google takes no parts below 5 MiB, so that is what is sent");
        }
        let service_account = Self::read_service_account(gcs)?;
        Some(Self {
            bucket: bucket?,
            service_account,
            root_directory: root_directory.trim_matches('/').to_owned(),
            chunk_size_bytes: chunk_size_bytes.max(MIN_PART_BYTES),
        })
    }

    /// Nothing when it is wrong; nothing within when it is not given.
    fn read_service_account(gcs: &mut Section<'_>) -> Option<Option<ServiceAccount>> {
        let is_inline = gcs.has("credentials");
        if is_inline && gcs.has("keyfile") {
            gcs.mistake("credentials", "the account is given in keyfile already; keep one");
        }
        let file = gcs.value("keyfile", path).map(ServiceAccount::File);
        let inline = gcs.section("credentials", |credentials| {
            Self::read_what_changes_nothing(credentials);
            if is_inline {
                for key in ["type", "client_email", "private_key_id", "private_key"] {
                    credentials.require(key);
                }
            }
            credentials.value("type", |text| match text {
                "service_account" => Ok(()),
                _ => Err(expected("service_account", text)),
            });
            let client_email = credentials.value("client_email", string);
            let private_key_id = credentials.value("private_key_id", string);
            let private_key = credentials.value("private_key", secret);
            Some(ServiceAccount::Inline {
                client_email: client_email?,
                private_key_id: private_key_id?,
                private_key: private_key?,
            })
        });
        match (is_inline, inline) {
            (true, None) => None,
            (_, inline) => Some(inline.or(file)),
        }
    }

    /// The rest of what Google writes into such a file: the same in all of them, or about other
    /// services. The requests' tokens are signed here, and nothing is asked for them.
    fn read_what_changes_nothing(credentials: &mut Section<'_>) {
        for key in [
            "project_id",
            "client_id",
            "client_x509_cert_url",
            "auth_uri",
            "token_uri",
            "auth_provider_x509_cert_url",
        ] {
            credentials.value(key, string);
        }
        credentials.value("universe_domain", |text| match text {
            "googleapis.com" => Ok(()),
            _ => Err("no other universe than googleapis.com is supported".to_owned()),
        });
    }
}

fn chunk_size(text: &str) -> Result<u64, String> {
    match size_bytes(text)? {
        size @ CHUNK_UNIT_BYTES..=MAX_PART_BYTES if size % CHUNK_UNIT_BYTES == 0 => Ok(size),
        _ => Err(expected("a multiple of 256KiB up to 5GiB", text)),
    }
}
