//! `storage:`

mod azure;
mod gcs;
mod oss;
mod s3;
mod swift;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use self::{
    azure::{Azure, AzureCredentials},
    gcs::{Gcs, ServiceAccount},
    oss::Oss,
    s3::S3,
    swift::{KeystoneDomain, KeystoneIdentity, KeystoneScope, Swift, SwiftLogin},
};
use crate::{section::Section, value::absolute_path};

/// Distribution's drivers, those first that work here.
const DRIVERS: [&str; 7] = ["filesystem", "s3", "swift", "oss", "azure", "gcs", "inmemory"];

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
    /// `storage.azure`
    Azure(Azure),
    /// `storage.gcs`
    Gcs(Gcs),
    /// `storage.swift`
    Swift(Swift),
    /// `storage.oss`
    Oss(Oss),
}

impl Storage {
    /// Reads `storage:`, which may also be just the name of a driver.
    pub(crate) fn read(root: &mut Section<'_>) -> Option<Self> {
        root.named_section("storage", |storage| {
            read_common(storage);
            Self::read_driver(storage)
        })
    }

    fn read_driver(storage: &mut Section<'_>) -> Option<Self> {
        let mut named = DRIVERS.to_vec();
        named.retain(|driver| storage.names(driver));
        if named.is_empty() {
            let text = "is missing, and so is storage.s3; name one of them to keep the content in";
            storage.mistake("filesystem", text);
        }
        if let [first, second, ..] = named[..] {
            let text = format!(
                "a second storage, beside {first}; keep one (the variable \
                 REGISTRY_STORAGE={second} replaces what the file says)"
            );
            storage.mistake(second, &text);
        }
        let mut chosen = None;
        for driver in named {
            match driver {
                "filesystem" => chosen = Some(storage.section(driver, Self::read_filesystem)),
                "s3" => chosen = storage.section(driver, S3::read).map(Self::S3),
                "azure" => chosen = storage.section(driver, Azure::read).map(Self::Azure),
                "gcs" => chosen = storage.section(driver, Gcs::read).map(Self::Gcs),
                "swift" => chosen = storage.section(driver, Swift::read).map(Self::Swift),
                "oss" => chosen = storage.section(driver, Oss::read).map(Self::Oss),
                _ => storage.mistake(driver, "not supported: it shares nothing; use another one"),
            }
        }
        chosen
    }

    fn read_filesystem(filesystem: &mut Section<'_>) -> Self {
        filesystem.note("maxthreads", "Larder limits its threads itself");
        let root_directory = filesystem.value("rootdirectory", absolute_path);
        Self::Filesystem {
            root_directory: root_directory.unwrap_or_else(|| PathBuf::from("/var/lib/registry")),
        }
    }
}

/// Reads what stands beside the driver.
fn read_common(storage: &mut Section<'_>) {
    storage.section("delete", |delete| {
        delete.note("enabled", "a cache takes no deletes from clients");
    });
    storage.section("redirect", |redirect| {
        redirect.note("disable", "Larder serves every blob itself and redirects nobody");
    });
    storage.section("cache", |cache| {
        for key in ["blobdescriptor", "blobdescriptorsize", "layerinfo"] {
            cache.note(key, "Larder's own cache, with blobs and all, is configured under `cache:`");
        }
    });
    storage.section("maintenance", |maintenance| {
        maintenance.note("uploadpurging", "a cache takes no uploads");
        maintenance.section("readonly", |readonly| {
            let why = "a cache has to write what it fetches; remove it";
            readonly.refuse_when("enabled", true, why);
        });
    });
    storage.section("tag", |tag| {
        tag.note("concurrencylimit", "Larder limits its requests to the storage itself");
    });
}
