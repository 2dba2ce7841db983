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
    /// `cache.size`, 20% when absent: how much the cache may hold.
    pub size: CacheSize,
    /// `cache.min_free`, 1GiB when absent: how much of the filesystem stays free, whoever fills it.
    /// 0 is for a disk that nothing else lives on.
    pub min_free: CacheSize,
    /// `cache.scrub`, 10MiB when absent: how many bytes a second are read in the background, to
    /// find what the disk has damaged. 0 turns it off.
    pub scrub_bytes_per_second: u64,
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

/// An amount of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// `50GiB`, or a bare number of bytes.
    Bytes(u64),
    /// `20%` of the filesystem that `cache.directory` is on.
    Percent(u8),
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/cache/larder"),
            size: CacheSize::Percent(20),
            min_free: CacheSize::Bytes(1 << 30),
            scrub_bytes_per_second: 10 << 20,
            fill: Fill::Sequential,
        }
    }
}

impl Cache {
    /// Reads `cache:`.
    pub(crate) fn read(root: &mut Section<'_>) -> Self {
        let absent = Self::default();
        root.section("cache", |cache| Self {
            directory: cache.value("directory", absolute_path).unwrap_or(absent.directory),
            size: cache.value("size", size).unwrap_or(absent.size),
            min_free: cache.value("min_free", min_free).unwrap_or(absent.min_free),
            scrub_bytes_per_second: cache
                .value("scrub", size_bytes)
                .unwrap_or(absent.scrub_bytes_per_second),
            fill: cache.value("fill", fill).unwrap_or(absent.fill),
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
    match amount(text) {
        Some(size @ (CacheSize::Percent(1..=100) | CacheSize::Bytes(1..))) => Ok(size),
        _ => Err(expected("a size such as 50GiB, or 1% to 100%", text)),
    }
}

fn min_free(text: &str) -> Result<CacheSize, String> {
    match amount(text) {
        Some(size @ (CacheSize::Percent(0..=99) | CacheSize::Bytes(_))) => Ok(size),
        _ => Err(expected("a size such as 10GiB, or 0% to 99%", text)),
    }
}

fn amount(text: &str) -> Option<CacheSize> {
    match text.strip_suffix('%') {
        Some(number) => number.trim_end().parse().map(CacheSize::Percent).ok(),
        None => size_bytes(text).map(CacheSize::Bytes).ok(),
    }
}
