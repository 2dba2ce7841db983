//! `storage:`

use std::path::PathBuf;

use crate::Secret;

/// `storage:`: the one driver that holds the content, shared by every node.
#[derive(Debug)]
pub enum Storage {
    /// `storage.filesystem`: a directory, local or on NFS.
    Filesystem {
        /// `rootdirectory`, `/var/lib/registry` when absent.
        root_directory: PathBuf,
    },
    /// `storage.s3`
    S3(S3),
}

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
