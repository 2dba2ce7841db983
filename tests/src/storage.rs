//! The shared storage behind the nodes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use larder_config::Config;
use larder_layout::{Algorithm, Digest};

use crate::{S3, Sandbox};

/// What `storage:` names in the configuration.
#[derive(Clone)]
pub enum Storage {
    /// `storage.filesystem`
    Directory(PathBuf),
    /// `storage.s3`
    S3 {
        /// `regionendpoint`
        endpoint: String,
    },
    /// Any other driver, with its section: `azure: {…}`.
    Other(String),
}

impl Storage {
    /// The section of the configuration.
    pub fn section(&self) -> String {
        match self {
            Self::Directory(path) => {
                format!("storage: {{filesystem: {{rootdirectory: {}}}}}", path.display())
            }
            Self::S3 { endpoint } => format!(
                "storage: {{s3: {{bucket: {}, region: us-east-1, regionendpoint: \"{endpoint}\", \
                 accesskey: {}, secretkey: {}, forcepathstyle: true, rootdirectory: /cache}}}}",
                S3::BUCKET,
                S3::ACCESS_KEY,
                S3::SECRET_KEY,
            ),
            Self::Other(driver) => format!("storage: {{{driver}}}"),
        }
    }
}

impl Storage {
    /// The whole configuration of a program on this storage.
    ///
    /// # Panics
    /// When it is wrong.
    pub fn config(&self, sandbox: &Sandbox) -> Config {
        let text = format!("version: 0.1\n{}\n", self.section());
        let path = sandbox.file("storage.yml", &text);
        Config::load(&path, []).expect("the configuration of a storage")
    }
}

/// The digests under which a storage directory has blobs. Checks each blob on the way.
///
/// # Panics
/// When a blob is not what its name says.
pub fn blobs_in(storage: &Path) -> Vec<Digest> {
    let blobs = storage.join("docker/registry/v2/blobs/sha256");
    let mut digests = Vec::new();
    for data in entries(&blobs).iter().flat_map(|shard| entries(shard)).map(|b| b.join("data")) {
        let Ok(content) = fs::read(&data) else { continue };
        let digest = Digest::of(Algorithm::Sha256, &content);
        assert!(
            data.parent().is_some_and(|parent| parent.ends_with(digest.hex())),
            "{} holds {} bytes with the digest {digest}",
            data.display(),
            content.len(),
        );
        digests.push(digest);
    }
    digests
}

/// Every file below a directory.
pub fn files_in(directory: &Path) -> Vec<String> {
    let of = |path: PathBuf| match path.is_dir() {
        true => files_in(&path),
        false => vec![path.display().to_string()],
    };
    entries(directory).into_iter().flat_map(of).collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
