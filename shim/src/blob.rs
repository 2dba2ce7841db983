//! `/v2/<name>/blobs/<digest>`

use std::{io, sync::Arc};

use axum::{body::Body, http::HeaderValue, response::Response};
use larder_layout::{Digest, Membership, Repository};

use crate::{
    answer::{Conditions, Representation, Source},
    body,
    content::{Blob, Content},
    error::Error,
    pull::Pull,
    shim::{PullThrough, Shim},
};

/// A layer or config comes before a manifest: nearly every blob asked for here is one.
const MEMBERSHIPS: [Membership; 2] = [Membership::Layer, Membership::Manifest];

/// Answers with a blob of a repository: from the directory, else by pulling it.
///
/// # Errors
/// The repository has no such blob, or nobody who may have it can be reached.
pub async fn answer(
    shim: &Shim,
    repository: &Repository,
    digest: &Digest,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let cached = cached(&shim.content, repository, digest).await;
    let through = match (cached, &shim.through) {
        (Ok(Some(blob)), _) => return from_content(&shim.content, digest, blob, conditions),
        (_, Some(through)) => through,
        (Ok(None), None) => return Err(Error::Blob(digest.clone())),
        (Err(error), None) => return Err(Error::Storage(error.to_string())),
    };
    if conditions.is_head {
        return head(through, repository, digest, conditions).await;
    }
    let pull = through.pulls.join(repository, digest).await?;
    from_pull(&pull, digest, conditions)
}

/// A blob that the directory has, and has in this repository.
async fn cached(
    content: &Content,
    repository: &Repository,
    digest: &Digest,
) -> io::Result<Option<Blob>> {
    if !content.is_member(repository, &MEMBERSHIPS, digest).await? {
        return Ok(None);
    }
    content.open(digest).await
}

fn from_content(
    content: &Content,
    digest: &Digest,
    blob: Blob,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let size_bytes = blob.size_bytes;
    let representation = representation(digest, Some(size_bytes), Source::Content);
    conditions.answer(&representation, |range| {
        let range = range.unwrap_or(0..size_bytes);
        Body::from_stream(body::read(content.calls().clone(), blob.file, range))
    })
}

fn from_pull(
    pull: &Arc<Pull>,
    digest: &Digest,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let representation = representation(digest, pull.size_bytes(), Source::Pull);
    conditions.answer(&representation, |range| Body::from_stream(pull.read(range)))
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
    Representation { digest, media_type, size_bytes, is_blob: true, source }
}
