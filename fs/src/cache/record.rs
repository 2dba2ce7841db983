//! The format of the index file.
//!
//! ```text
//! header   "LARDERIX", version u32, salt u64, crc u32
//! records  kind u8, digest (32 or 64 bytes), fields, crc u32
//! ```
//!
//! All numbers are little-endian. The digest of a record has 64 bytes when 0x80 is in its kind:
//!
//! | kind | | digest | fields |
//! |---|---|---|---|
//! | 1 | boot | no | the machine's boot id, 16 bytes |
//! | 2 | put | yes | used u64, size u64, inode u64, modified i64, changed i64 (nanoseconds), cached u32, verified u32 (seconds) |
//! | 3 | touch | yes | used u64 |
//! | 4 | remove | yes | |
//! | 5 | synced | no | offset u64 |
//!
//! The CRC-32 of a record goes on from that of the record before, and the first one's from the
//! header's. So a record counts only behind those it was written behind, and neither a torn write
//! nor what an earlier one left behind the end is taken for a record. What follows the first
//! record that is damaged is not read.
//!
//! A *put* says all that is known of a blob, a later one in place of an earlier. `verified` is 0
//! when the file has to be hashed before it is served. *Synced* says that the files of all puts
//! before `offset` in this file are on disk; the others are after a crash of the machine, which a
//! *boot* with another id shows, as good as not verified.

use std::{
    hash::{BuildHasher, Hasher as _, RandomState},
    io::{self, BufRead, ErrorKind, Read},
};

use larder_layout::Algorithm;

use super::{disk::Fingerprint, index::Slot, key::Key};

const MAGIC: &[u8; 8] = b"LARDERIX";
const VERSION: u32 = 1;
pub const HEADER_BYTES: u64 = 24;
/// What a blob takes in the file, if nothing happens to it.
pub const PUT_BYTES: u64 = 1 + 32 + 48 + 4;

const BOOT: u8 = 1;
const PUT: u8 = 2;
const TOUCH: u8 = 3;
const REMOVE: u8 = 4;
const SYNCED: u8 = 5;
const IS_SHA512: u8 = 0x80;

const FIELDS_MAX: usize = 48;
const CRC_BYTES: usize = 4;

pub type BootId = [u8; 16];

/// What happened to the index.
#[derive(Debug, PartialEq)]
pub enum Record {
    Boot(BootId),
    Put(Key, Slot),
    Touch(Key, u64),
    Remove(Key),
    Synced(u64),
}

/// Records that are still to be written, and the chain of checksums that they belong to.
#[derive(Debug)]
pub struct Stream {
    buffer: Vec<u8>,
    chain: u32,
}

impl Stream {
    /// A stream that begins a file.
    pub fn new() -> Self {
        let mut buffer = MAGIC.to_vec();
        buffer.extend(VERSION.to_le_bytes());
        buffer.extend(RandomState::new().build_hasher().finish().to_le_bytes());
        let chain = checksum(0, &buffer);
        buffer.extend(chain.to_le_bytes());
        Self { buffer, chain }
    }

    /// A stream that goes on behind the last record read.
    pub fn behind<R: Read>(reader: &Reader<R>) -> Self {
        Self { buffer: Vec::new(), chain: reader.chain }
    }

    /// The bytes that are to be written next.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    pub fn boot(&mut self, id: BootId) {
        self.push(BOOT, None, &[&id]);
    }

    pub fn put(&mut self, key: &Key, slot: &Slot) {
        let file = &slot.file;
        let fields: [&[u8]; 7] = [
            &slot.used.to_le_bytes(),
            &file.size_bytes.to_le_bytes(),
            &file.inode.to_le_bytes(),
            &file.modified_ns.to_le_bytes(),
            &file.changed_ns.to_le_bytes(),
            &slot.cached_s.to_le_bytes(),
            &slot.verified_s.to_le_bytes(),
        ];
        self.push(PUT, Some(key), &fields);
    }

    pub fn touch(&mut self, key: &Key, used: u64) {
        self.push(TOUCH, Some(key), &[&used.to_le_bytes()]);
    }

    pub fn remove(&mut self, key: &Key) {
        self.push(REMOVE, Some(key), &[]);
    }

    pub fn synced(&mut self, offset: u64) {
        self.push(SYNCED, None, &[&offset.to_le_bytes()]);
    }

    fn push(&mut self, kind: u8, key: Option<&Key>, fields: &[&[u8]]) {
        let start = self.buffer.len();
        let is_sha512 = key.is_some_and(|key| key.algorithm() == Algorithm::Sha512);
        self.buffer.push(if is_sha512 { kind | IS_SHA512 } else { kind });
        self.buffer.extend_from_slice(key.map_or(&[], Key::bytes));
        for field in fields {
            self.buffer.extend_from_slice(field);
        }
        self.chain = checksum(self.chain, &self.buffer[start..]);
        self.buffer.extend(self.chain.to_le_bytes());
    }
}

/// Reads a file up to its end, or to the first record that is damaged.
pub struct Reader<R> {
    source: R,
    chain: u32,
    offset: u64,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header; `None` when it is damaged, or of a version that this program does not know.
    pub fn new(mut source: R) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_BYTES as usize];
        if !fill(&mut source, &mut header)? {
            return Ok(None);
        }
        let (body, crc) = header.split_at(header.len() - CRC_BYTES);
        let chain = checksum(0, body);
        let is_known = body.starts_with(MAGIC) && body[8..12] == VERSION.to_le_bytes();
        let is_whole = crc == chain.to_le_bytes();
        Ok((is_known && is_whole).then_some(Self { source, chain, offset: HEADER_BYTES }))
    }

    /// Where the next record begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn next(&mut self) -> io::Result<Option<Record>> {
        let mut record = [0; 1 + 64 + FIELDS_MAX + CRC_BYTES];
        if !fill(&mut self.source, &mut record[..1])? {
            return Ok(None);
        }
        let Some((digest_bytes, field_bytes)) = lengths(record[0]) else { return Ok(None) };
        let body_bytes = 1 + digest_bytes + field_bytes;
        let record = &mut record[..body_bytes + CRC_BYTES];
        if !fill(&mut self.source, &mut record[1..])? {
            return Ok(None);
        }
        let (body, crc) = record.split_at(body_bytes);
        let chain = checksum(self.chain, body);
        if crc != chain.to_le_bytes() {
            return Ok(None);
        }
        self.chain = chain;
        self.offset += record.len() as u64;
        let (digest, fields) = body[1..].split_at(digest_bytes);
        Ok(decode(body[0], digest, Fields(fields)))
    }
}

/// How long the digest and the fields of a record are.
fn lengths(kind: u8) -> Option<(usize, usize)> {
    let digest_bytes = if kind & IS_SHA512 == 0 { 32 } else { 64 };
    match kind & !IS_SHA512 {
        PUT => Some((digest_bytes, 48)),
        TOUCH => Some((digest_bytes, 8)),
        REMOVE => Some((digest_bytes, 0)),
        BOOT => Some((0, 16)),
        SYNCED => Some((0, 8)),
        _ => None,
    }
}

fn decode(kind: u8, digest: &[u8], mut fields: Fields<'_>) -> Option<Record> {
    let algorithm = if kind & IS_SHA512 == 0 { Algorithm::Sha256 } else { Algorithm::Sha512 };
    let key = || Key::from_bytes(algorithm, digest);
    Some(match kind & !IS_SHA512 {
        BOOT => Record::Boot(fields.take()?),
        PUT => Record::Put(key()?, fields.slot()?),
        TOUCH => Record::Touch(key()?, fields.number()?),
        REMOVE => Record::Remove(key()?),
        SYNCED => Record::Synced(fields.number()?),
        _ => return None,
    })
}

/// The fields of a record that are not taken yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn slot(&mut self) -> Option<Slot> {
        let used = self.number()?;
        let file = Fingerprint {
            size_bytes: self.number()?,
            inode: self.number()?,
            modified_ns: self.take().map(i64::from_le_bytes)?,
            changed_ns: self.take().map(i64::from_le_bytes)?,
        };
        let cached_s = self.take().map(u32::from_le_bytes)?;
        let verified_s = self.take().map(u32::from_le_bytes)?;
        let mut slot = Slot::of(file);
        (slot.used, slot.cached_s, slot.verified_s) = (used, cached_s, verified_s);
        Some(slot)
    }
}

fn checksum(chain: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(chain);
    hasher.update(bytes);
    hasher.finalize()
}

/// Fills `buffer`; false when the source ends before.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match source.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}
