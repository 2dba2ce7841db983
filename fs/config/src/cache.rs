//! `cache:`, which Distribution has not: the local read cache of `larder-fs`.

use std::path::PathBuf;

use crate::{
    section::Section,
    value::{absolute_path, expected, size_bytes},
};

/// `cache:`
#[derive(Debug)]
pub struct Cache {
    /// `cache.directory`, `/var/cache/larder` when absent: on a local disk, for one `larder-fs` alone.
    pub directory: PathBuf,
    /// `cache.size`, 20% when absent.
    pub size: CacheSize,
    /// `cache.fill`, `sequential` when absent.
    pub fill: Fill,
}

/// When a blob that is read is fetched whole into the cache, whether or not all of it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// `cache.fill: always`: when it is opened.
    Always,
    /// `cache.fill: sequential`: when a reader has read 4 MiB of it on end. Reads here and there
    /// fetch little more than what they ask for.
    Sequential,
    /// `cache.fill: never`: when its last bytes are asked for, which are shown only after all of it
    /// was verified.
    Never,
}

/// How much the local read cache may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// `cache.size: 50GiB`, or a bare number of bytes.
    Bytes(u64),
    /// `cache.size: 20%` of the filesystem that `cache.directory` is on; 1 to 100.
    Percent(u8),
}

impl Cache {
    /// Reads `cache:`.
    pub(crate) fn read(root: &mut Section<'_>) -> Self {
        root.section("cache", |cache| Self {
            directory: cache
                .value("directory", absolute_path)
                .unwrap_or_else(|| PathBuf::from("/var/cache/larder")),
            size: cache.value("size", size).unwrap_or(CacheSize::Percent(20)),
            fill: cache.value("fill", fill).unwrap_or(Fill::Sequential),
        })
    }
}

fn fill(text: &str) -> Result<Fill, String> {
    match text {
        "always" => Ok(Fill::Always),
        "sequential" => Ok(Fill::Sequential),
        "never" => Ok(Fill::Never),
        _ => Err(expected("always, sequential or never", text)),
    }
}

fn size(text: &str) -> Result<CacheSize, String> {
    let size = match text.strip_suffix('%') {
        Some(number) => number.trim_end().parse().map(CacheSize::Percent).ok(),
        None => size_bytes(text).map(CacheSize::Bytes).ok(),
    };
    match size {
        Some(size @ (CacheSize::Percent(1..=100) | CacheSize::Bytes(1..))) => Ok(size),
        _ => Err(expected("a size such as 50GiB, or 1% to 100%", text)),
    }
}
