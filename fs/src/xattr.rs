//! Extended attributes of blobs: what `getfattr -d -m -` tells an operator. xattr(7)

use std::{io::Read, os::unix::fs::FileExt, time::SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use larder_layout::Digest;
use serde::Deserialize;

use crate::{
    cache::Cache,
    error::{Error, Result},
    store::BlobMeta,
};

/// What every attribute's name begins with.
const PREFIX: &str = "user.larder.";
/// A manifest is smaller, and what is larger has no media type in it.
const MANIFEST_MAX_BYTES: u64 = 4 << 20;

/// An extended attribute.
#[derive(Clone, Copy)]
enum Attribute {
    Digest,
    Size,
    MediaType,
    Where,
    Cached,
    Verified,
}

impl Attribute {
    const ALL: [Self; 6] =
        [Self::Digest, Self::Size, Self::MediaType, Self::Where, Self::Cached, Self::Verified];

    fn as_str(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::Size => "size",
            Self::MediaType => "media_type",
            Self::Where => "where",
            Self::Cached => "cached",
            Self::Verified => "verified",
        }
    }

    /// Its value, if it has one now.
    ///
    /// - `where`: `local` in this node's cache, `shared` only in the storage of all nodes
    /// - `cached`, `verified`: since when it is in the cache, and when it was last hashed (RFC 3339)
    /// - `media_type`: where it stands in the blob itself, and that is in the cache
    fn value(self, cache: &Cache, digest: &Digest, meta: BlobMeta) -> Option<String> {
        let facts = cache.facts(digest);
        match self {
            Self::Digest => Some(digest.to_string()),
            Self::Size => Some(meta.size_bytes.to_string()),
            Self::Where => Some(if facts.is_some() { "local" } else { "shared" }.to_owned()),
            Self::Cached => Some(time(facts?.cached)),
            Self::Verified => Some(time(facts?.verified?)),
            Self::MediaType => media_type(cache, digest, meta),
        }
    }
}

/// The value of a blob's attribute. This may read the blob.
///
/// # Errors
/// [`Error::NoAttribute`]
pub fn value(cache: &Cache, digest: &Digest, meta: BlobMeta, name: &str) -> Result<String> {
    let name = name.strip_prefix(PREFIX).ok_or(Error::NoAttribute)?;
    let attribute = Attribute::ALL.into_iter().find(|attribute| attribute.as_str() == name);
    attribute.and_then(|attribute| attribute.value(cache, digest, meta)).ok_or(Error::NoAttribute)
}

/// The names of the attributes that a blob has now, each with a NUL behind it: listxattr(2).
pub fn names(cache: &Cache, digest: &Digest, meta: BlobMeta) -> String {
    let has_value = |attribute: &Attribute| attribute.value(cache, digest, meta).is_some();
    let names = Attribute::ALL.into_iter().filter(has_value);
    names.map(|attribute| format!("{PREFIX}{}\0", attribute.as_str())).collect()
}

fn time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `mediaType` of a manifest. OCI image spec, manifest.md: it may be missing.
fn media_type(cache: &Cache, digest: &Digest, meta: BlobMeta) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        media_type: String,
    }
    if meta.size_bytes > MANIFEST_MAX_BYTES {
        return None;
    }
    let blob = cache.open_blob(digest).ok()??;
    let mut first = [0];
    blob.file().read_exact_at(&mut first, 0).ok().filter(|()| first == *b"{")?;
    let mut content = Vec::new();
    blob.file().take(MANIFEST_MAX_BYTES).read_to_end(&mut content).ok()?;
    Some(serde_json::from_slice::<Manifest>(&content).ok()?.media_type)
}
