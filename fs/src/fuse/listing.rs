//! Directory listings as replies.

use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::{
    GENERATION,
    attributes::{file_attr, file_type},
};
use crate::{
    error::Result,
    filesystem::{Filesystem, Kind},
    opened::Opened,
};

/// What readdir(3) is told of an inode that has no number yet; libfuse says the same.
const UNKNOWN_NUMBER: u64 = 0xffff_ffff;
/// What comes before the names of a listing.
const DOTS: [&str; 2] = [".", ".."];

/// Fills a reply with the names from `offset` on, and their types.
pub async fn list(
    filesystem: &Filesystem,
    opened: &Opened,
    offset: u64,
    reply: &mut ReplyDirectory,
) -> Result<()> {
    for position in offset.. {
        let (name, kind) = match DOTS.get(position as usize) {
            Some(dot) => ((*dot).into(), Kind::Directory),
            None => match filesystem.listed(opened, position - DOTS.len() as u64).await? {
                Some(listed) => listed,
                None => break,
            },
        };
        if reply.add(INodeNo(UNKNOWN_NUMBER), position + 1, file_type(kind), &name) {
            break;
        }
    }
    Ok(())
}

/// The same with attributes, which count as a lookup of each name.
pub async fn list_plus(
    filesystem: &Filesystem,
    opened: &Opened,
    (number, offset): (u64, u64),
    reply: &mut ReplyDirectoryPlus,
) -> Result<()> {
    for position in offset.. {
        let (name, attributes) = match DOTS.get(position as usize) {
            // The kernel does not count these two.
            Some(dot) => ((*dot).into(), filesystem.getattr(number).await?),
            None => match filesystem.listed_plus(opened, position - DOTS.len() as u64).await? {
                Some((name, Some(attributes))) => (name, attributes),
                Some((_, None)) => continue,
                None => break,
            },
        };
        let attr = file_attr(&attributes);
        if reply.add(attr.ino, position + 1, &name, &attributes.validity, &attr, GENERATION) {
            if position >= DOTS.len() as u64 {
                filesystem.forget(attributes.number, 1);
            }
            break;
        }
    }
    Ok(())
}
