//! From a blob to its files: decompressed once, and what the regular files hold kept on the local disk.

use std::{
    cell::Cell,
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, SystemTime},
};

use flate2::read::MultiGzDecoder;
use larder_layout::{Digest, Verifier};
use tar::{Archive, Entry, EntryType};

use super::{
    tree::{Content, LayerFile, Metadata, Tree},
    unpacked::Unpacked,
};
use crate::error::{Error, Result};

/// How many files a layer may have: a few hundred bytes of memory each.
const FILES_MAX: usize = 500_000;
/// How much larger than what is kept of it a layer may be: headers, and padding.
const OVERHEAD_MAX_BYTES: u64 = 1 << 30;
/// How long the header of a file may be, with its extensions: long names, and extended attributes.
const HEADER_MAX_BYTES: u64 = 4 << 20;
/// What layers begin with: RFC 1952, section 2.3.1; RFC 8878, section 3.1.1; and, behind the first name, POSIX
/// pax, "ustar Interchange Format".
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const USTAR: &[u8] = b"ustar";
const USTAR_AT: usize = 257;
const TAR_BLOCK_BYTES: usize = 512;

/// Unpacks the blob that `blob` reads.
///
/// # Errors
/// [`Error::NotDirectory`] when it is no layer, [`Error::Layer`] when it is one that cannot be read,
/// [`Error::Mismatch`] when it is not the content of `digest`; [`Error::Disk`], with ENOSPC when it is too
/// large.
pub fn unpack(blob: impl Read, digest: &Digest, unpacked: &mut Unpacked) -> Result<Tree> {
    let mut blob = Hashed { blob, verifier: Verifier::new(digest.clone()) };
    let failed = |e: io::Error| failure(digest, e);
    let mut start = Vec::new();
    blob.by_ref().take(TAR_BLOCK_BYTES as u64).read_to_end(&mut start).map_err(failed)?;
    let is_tar = start.get(USTAR_AT..).is_some_and(|rest| rest.starts_with(USTAR));
    let (is_gzip, is_zstd) = (start.starts_with(GZIP), start.starts_with(ZSTD));
    let whole = io::Cursor::new(start).chain(&mut blob);
    let archive: Box<dyn Read> = if is_gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else if is_zstd {
        Box::new(zstd::Decoder::new(whole).map_err(failed)?)
    } else if is_tar {
        Box::new(whole)
    } else {
        return Err(Error::NotDirectory);
    };
    let archive = archive.take(unpacked.limit_bytes().saturating_add(OVERHEAD_MAX_BYTES));
    let tree = read(archive, digest, unpacked)?;
    // Whatever is behind the end of the archive belongs to the blob as well.
    io::copy(&mut blob, &mut io::sink()).map_err(failed)?;
    blob.verifier.finish()?;
    Ok(tree)
}

fn read(archive: impl Read, digest: &Digest, unpacked: &mut Unpacked) -> Result<Tree> {
    let failed = |e: io::Error| failure(digest, e);
    let (mut tree, mut left_out) = (Tree::default(), 0_usize);
    let left_bytes = Cell::new(HEADER_MAX_BYTES);
    let mut archive = Archive::new(Guarded { archive, left_bytes: &left_bytes });
    for (count, entry) in archive.entries().map_err(failed)?.enumerate() {
        let mut entry = entry.map_err(failed)?;
        left_bytes.set(u64::MAX);
        if count.max(tree.count()) >= FILES_MAX {
            return Err(broken(digest, &format!("it has more than {FILES_MAX} files")));
        }
        let path = entry.path_bytes().into_owned();
        let path = Path::new(OsStr::from_bytes(&path));
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let target = Path::new(OsStr::from_bytes(&target));
        let is_added = match entry.header().entry_type() {
            _ if is_sparse_by_extension(&mut entry) => false,
            EntryType::Link => tree.link(path, target),
            kind => match content(kind, &mut entry, target, unpacked).map_err(failed)? {
                Some(content) => {
                    let metadata = metadata(entry.header());
                    tree.add(path, LayerFile { content, metadata })
                }
                None => true,
            },
        };
        left_out += usize::from(!is_added);
        io::copy(&mut entry, &mut io::sink()).map_err(failed)?;
        left_bytes.set(HEADER_MAX_BYTES);
    }
    if left_out > 0 {
        tracing::warn!(
            %digest,
            left_out,
            "a layer has files that cannot be shown: of such names, sparse in the way of POSIX archives, \
             or links to those of other layers"
        );
    }
    Ok(tree)
}

/// The content of a file of the archive; nothing for what is none.
fn content(
    kind: EntryType,
    entry: &mut Entry<'_, impl Read>,
    target: &Path,
    unpacked: &mut Unpacked,
) -> io::Result<Option<Content>> {
    let device = |header: &tar::Header| {
        let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or_default();
        nix::sys::stat::makedev(
            number(header.device_major()).into(),
            number(header.device_minor()).into(),
        ) as u32
    };
    Ok(Some(match kind {
        EntryType::Directory => Content::Directory(Default::default()),
        EntryType::Symlink => Content::Symlink(target.to_owned()),
        EntryType::Char => Content::CharDevice(device(entry.header())),
        EntryType::Block => Content::BlockDevice(device(entry.header())),
        EntryType::Fifo => Content::Fifo,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let offset = unpacked.size_bytes();
            unpacked.append(entry)?;
            Content::Regular { offset, size_bytes: unpacked.size_bytes() - offset }
        }
        _ => return Ok(None),
    }))
}

/// Whether holes are told by an extended header of GNU's, which the library does not know. The image-spec advises
/// against sparse files in layers.
fn is_sparse_by_extension(entry: &mut Entry<'_, impl Read>) -> bool {
    let extensions = entry.pax_extensions().ok().flatten();
    let mut keys = extensions.into_iter().flatten().flatten();
    keys.any(|extension| extension.key_bytes().starts_with(b"GNU.sparse."))
}

/// A number that is missing, or none, is 0: as for GNU tar.
fn metadata(header: &tar::Header) -> Metadata {
    let number =
        |value: io::Result<u64>| u32::try_from(value.unwrap_or_default()).unwrap_or(u32::MAX);
    let modified = Duration::from_secs(header.mtime().unwrap_or_default());
    Metadata {
        mode: (header.mode().unwrap_or_default() & 0o7777) as u16,
        uid: number(header.uid()),
        gid: number(header.gid()),
        modified: SystemTime::UNIX_EPOCH.checked_add(modified).unwrap_or(SystemTime::UNIX_EPOCH),
        links: 1,
    }
}

/// An archive whose headers are no longer than they may be: the library has all of one in memory.
struct Guarded<'a, R> {
    archive: R,
    /// How much may come before the next file's content.
    left_bytes: &'a Cell<u64>,
}

impl<R: Read> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left_bytes = self.left_bytes.get();
        if left_bytes == 0 {
            return Err(io::Error::other(format!(
                "a header of more than {HEADER_MAX_BYTES} bytes"
            )));
        }
        let wanted = buffer.len().min(usize::try_from(left_bytes).unwrap_or(usize::MAX));
        let read = self.archive.read(&mut buffer[..wanted])?;
        self.left_bytes.set(left_bytes - read as u64);
        Ok(read)
    }
}

/// A blob that is hashed while it is read.
struct Hashed<R> {
    blob: R,
    verifier: Verifier,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.blob.read(buffer)?;
        self.verifier.update(&buffer[..read]);
        Ok(read)
    }
}

/// Why a layer cannot be read: an error of ours goes through the libraries as it is.
fn failure(digest: &Digest, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => broken(digest, &error.to_string()),
    }
}

fn broken(digest: &Digest, reason: &str) -> Error {
    Error::Layer { digest: digest.clone(), reason: reason.to_owned() }
}
