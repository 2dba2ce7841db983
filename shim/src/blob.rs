//! `/v2/<name>/blobs/<digest>`

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use hyper::header::HeaderValue;
use larder_layout::{Digest, Membership, Repository};

use crate::{
    answer::{Conditions, Names, Representation, Response, Source},
    body::Body,
    content::{Blob, Content, Opened, OpenedMember},
    error::Error,
    lasting::Lasting,
    outbox::FileRange,
    pull::{Pull, Pulls},
    shim::PullThrough,
};

/// A layer or config comes before a manifest: nearly every blob asked for here is one.
const MEMBERSHIPS: [Membership; 2] = [Membership::Layer, Membership::Manifest];

/// Answers with a blob of a repository: from the directory, else by pulling it.
///
/// # Errors
/// The repository has no such blob, or nobody who may have it can be reached.
pub async fn answer(
    content: &Content,
    through: Option<&PullThrough>,
    repository: &Repository,
    digest: &Digest,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let cached = content.open_member(repository, &MEMBERSHIPS, digest).await;
    let through = match (cached, through) {
        (Ok(Some(member)), through) => {
            let through = through.map(|through| (through, repository));
            return from_content(content, through, digest, member, conditions);
        }
        (_, Some(through)) => through,
        (Ok(None), None) => return Err(Error::Blob(digest.clone())),
        (Err(error), None) => return Err(Error::Storage(error.to_string())),
    };
    if conditions.is_head {
        return head(through, repository, digest, conditions).await;
    }
    let pull = through.pulls.join(&through.upstream, repository, digest).await?;
    from_pull(&pull, digest, conditions)
}

/// Answers another node that has read in the lease of a blob what to show.
///
/// # Errors
/// No pull that runs here has this lease, or its upstream gives no such blob.
pub async fn answer_node(
    mut pulls: impl Iterator<Item = &Pulls>,
    shown: &str,
    digest: &Digest,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let pull = pulls.find_map(|pulls| pulls.leased(digest, shown));
    let pull = pull.ok_or_else(|| Error::Blob(digest.clone()))?;
    pull.begun().await?;
    from_pull(&pull, digest, conditions)
}

fn from_content(
    content: &Content,
    through: Option<(&PullThrough, &Repository)>,
    digest: &Digest,
    OpenedMember { opened, was_shared }: OpenedMember,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let size_bytes = opened.size_bytes();
    let source = if was_shared { Source::Shared } else { Source::Local };
    let representation = representation(digest, Some(size_bytes), source);
    let lasting = match (&opened, through) {
        (Opened::Large(blob), Some((through, repository))) if was_shared => {
            Some(Arc::new(Lasting {
                blob: blob.clone(),
                calls: content.calls().clone(),
                digest: digest.clone(),
                repository: repository.clone(),
                upstream: Arc::clone(&through.upstream),
                pulls: Arc::clone(&through.pulls),
            }))
        }
        _ => None,
    };
    conditions.answer(&representation, |range| {
        let range = range.unwrap_or(0..size_bytes);
        match (&opened, &lasting) {
            (Opened::Small(content), _) => Body::Memory(part(content, range)),
            (Opened::Large(_), Some(lasting)) => Body::stream(lasting.read(range)),
            (Opened::Large(Blob { file, inode, .. }), None) => {
                Body::File(FileRange { file: Arc::clone(file), inode: *inode, range })
            }
        }
    })
}

/// A range that was made to fit.
fn part(content: &Bytes, range: Range<u64>) -> Bytes {
    let index = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
    content.slice(index(range.start)..index(range.end))
}

fn from_pull(
    pull: &Arc<Pull>,
    digest: &Digest,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let representation = representation(digest, pull.size_bytes(), Source::Pull);
    conditions.answer(&representation, |range| Body::stream(pull.read(range)))
}

/// The headers of a blob that is not in the directory, without pulling it.
async fn head(
    through: &PullThrough,
    repository: &Repository,
    digest: &Digest,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let pull = through.pulls.running(repository, digest);
    let (size_bytes, source) = match pull.and_then(|pull| pull.size_bytes()) {
        Some(size_bytes) => (Some(size_bytes), Source::Pull),
        None => {
            let head = through.upstream.head_blob(repository, digest).await;
            let unknown = Error::Blob(digest.clone());
            (head.map_err(|error| Error::from_upstream(error, unknown))?, Source::Upstream)
        }
    };
    conditions.answer(&representation(digest, size_bytes, source), |_| Body::empty())
}

fn representation(digest: &Digest, size_bytes: Option<u64>, source: Source) -> Representation<'_> {
    let media_type = HeaderValue::from_static("application/octet-stream");
    let names = Names::of(digest);
    Representation { digest, names, media_type, size_bytes, is_blob: true, source }
}
