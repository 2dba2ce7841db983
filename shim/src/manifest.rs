//! `/v2/<name>/manifests/<reference>`

mod kept;
mod media_type;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use larder_config::{Check, Deleted};
use larder_layout::{Algorithm, Digest, Link, Membership, Reference, Repository, Tag, Verifier};
use tokio::time::sleep;

use crate::{
    answer::{Conditions, Names, Representation, Response, Source},
    body::Body,
    content::Content,
    error::Error,
    shim::PullThrough,
    upstream::ManifestHead,
};

pub use self::kept::Kept;

/// When a tag is looked after whose manifest was not cached: clients ask for it at once, if at all.
const FOLLOW_PAUSES_S: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// RFC 7234, section 5.5.2. RFC 9111 has it no more, and nothing in its place.
const REVALIDATION_FAILED: HeaderValue =
    HeaderValue::from_static("111 larder \"Revalidation Failed\"");

/// How deep a manifest may be nested. The specification's are 4 deep; parsers that recurse, which
/// some clients have, end at a few hundreds.
const DEPTH_MAX: usize = 64;

/// A manifest, byte for byte as it came.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    names: Names,
    media_type: HeaderValue,
    /// All of it.
    pub content: Bytes,
    /// Where it comes from.
    pub source: Source,
}

impl Manifest {
    /// A manifest that has been checked.
    pub fn new(digest: Digest, content: Bytes, source: Source) -> Self {
        let (names, media_type) = (Names::of(&digest), media_type::of(&content));
        Self { digest, names, media_type, content, source }
    }
}

/// What there is to answer with.
enum Found {
    Manifest(Manifest),
    /// Only what the upstream says of it: a client that wants no more must not cost a request
    /// that counts against a rate limit.
    Head(Digest, ManifestHead),
    /// What a tag named when the upstream was last asked with success, so long ago.
    Stale(Manifest, Duration),
}

/// Answers with a manifest of a repository: a tag is revalidated with the upstream first, and the
/// cached one is served when the upstream is down.
///
/// # Errors
/// The repository has no such manifest, or nobody who may have it can be reached.
pub async fn answer(
    kept: &Kept,
    through: Option<&Arc<PullThrough>>,
    repository: Repository,
    reference: Reference,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let found = match (reference, through) {
        (reference, None) => {
            let stored = kept.stored(&repository, &reference).await;
            let stored = stored.map_err(|error| Error::Storage(error.to_string()))?;
            Found::Manifest(stored.ok_or_else(|| Error::Manifest(reference.to_string()))?)
        }
        (Reference::Digest(digest), Some(through)) => {
            by_digest(kept, through, repository, digest, conditions.is_head).await?
        }
        (Reference::Tag(tag), Some(through)) => {
            Box::pin(by_tag(kept, through, repository, tag, conditions.is_head)).await?
        }
    };
    match found {
        Found::Manifest(manifest) => with_manifest(manifest, conditions),
        Found::Stale(manifest, age) => {
            let mut response = with_manifest(manifest, conditions)?;
            let headers = &mut response.headers;
            headers.insert(header::AGE, age.as_secs().into());
            headers.insert(header::WARNING, REVALIDATION_FAILED);
            Ok(response)
        }
        Found::Head(digest, head) => {
            let representation = Representation {
                digest: &digest,
                names: Names::of(&digest),
                media_type: head.media_type.unwrap_or(media_type::UNKNOWN),
                size_bytes: head.size_bytes,
                is_blob: false,
                source: Source::Upstream,
            };
            conditions.answer(&representation, |_| Body::empty())
        }
    }
}

fn with_manifest(manifest: Manifest, conditions: &Conditions) -> Result<Response, Error> {
    let Manifest { digest, names, media_type, content, source } = manifest;
    let representation = Representation {
        digest: &digest,
        names,
        media_type,
        size_bytes: Some(content.len() as u64),
        is_blob: false,
        source,
    };
    conditions.answer(&representation, |_| Body::Memory(content.clone()))
}

async fn by_digest(
    kept: &Kept,
    through: &Arc<PullThrough>,
    repository: Repository,
    digest: Digest,
    is_head: bool,
) -> Result<Found, Error> {
    if let Ok(Some(manifest)) = kept.member(&repository, &digest).await {
        return Ok(Found::Manifest(manifest));
    }
    let reference = Reference::Digest(digest.clone());
    if !is_head {
        let fetched = Box::pin(fetch(kept, through, repository, reference)).await;
        return fetched.map(Found::Manifest);
    }
    let head = Box::pin(through.upstream.head_manifest(&repository, &reference)).await;
    let unknown = Error::Manifest(digest.to_string());
    let head = head.map_err(|error| Error::from_upstream(error, unknown))?;
    Ok(Found::Head(digest, head))
}

async fn by_tag(
    kept: &Kept,
    through: &Arc<PullThrough>,
    repository: Repository,
    tag: Tag,
    is_head: bool,
) -> Result<Found, Error> {
    let freshness = &through.freshness;
    let check = freshness.check(&repository, &tag);
    let reference = Reference::Tag(tag.clone());
    if check != Check::Always
        && let Ok(Some(manifest)) = kept.stored(&repository, &reference).await
    {
        let is_fresh = match check {
            Check::Every(time) => freshness.said_within(time, &repository, &tag, &manifest.digest),
            _ => true,
        };
        if is_fresh {
            return Ok(Found::Manifest(manifest));
        }
    }
    if check == Check::Pinned {
        return Err(Error::Manifest(tag.to_string()));
    }
    let fresh = revalidated(kept, through, &repository, &tag, is_head).await;
    let error = match fresh {
        Err(error @ (Error::Upstream(_) | Error::TooManyRequests { .. })) => error,
        Err(error @ Error::Manifest(_)) if freshness.deleted == Deleted::Keep => error,
        fresh => return fresh,
    };
    match kept.stored(&repository, &reference).await {
        Ok(Some(manifest)) => {
            tracing::warn!(%repository, %tag, %error, "a tag is served unrevalidated");
            Ok(Found::Stale(manifest, freshness.age(&repository, &tag)))
        }
        _ => Err(error),
    }
}

/// The manifest that a tag names, as a client that asks by tag gets it; `None` when there is none.
///
/// # Errors
/// Nobody who may have it can be reached.
pub async fn of_tag(
    kept: &Kept,
    through: &Arc<PullThrough>,
    repository: &Repository,
    tag: Tag,
) -> Result<Option<Manifest>, Error> {
    match by_tag(kept, through, repository.clone(), tag, false).await {
        Ok(Found::Manifest(manifest) | Found::Stale(manifest, _)) => Ok(Some(manifest)),
        Ok(Found::Head(..)) | Err(Error::Manifest(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn revalidated(
    kept: &Kept,
    through: &Arc<PullThrough>,
    repository: &Repository,
    tag: &Tag,
    is_head: bool,
) -> Result<Found, Error> {
    let head = revalidate(kept, through, repository, tag).await?;
    let Some(digest) = head.digest.clone() else {
        // An upstream that names no digest can only be asked for the whole.
        let reference = Reference::Tag(tag.clone());
        let fetched = fetch(kept, through, repository.clone(), reference).await;
        return fetched.map(Found::Manifest);
    };
    if let Ok(Some(manifest)) = kept.member(repository, &digest).await {
        return Ok(Found::Manifest(manifest));
    }
    if is_head {
        return Ok(Found::Head(digest, head));
    }
    let reference = Reference::Digest(digest);
    fetch(kept, through, repository.clone(), reference).await.map(Found::Manifest)
}

/// Asks the upstream what a tag names, once for all who ask at the same time, and makes the
/// cached tag name the same as soon as that manifest is cached.
async fn revalidate(
    kept: &Kept,
    through: &Arc<PullThrough>,
    repository: &Repository,
    tag: &Tag,
) -> Result<ManifestHead, Error> {
    let key = (repository.clone(), tag.clone());
    let work = {
        let (kept, through, key) = (kept.clone(), Arc::clone(through), key.clone());
        async move {
            let (repository, tag) = &key;
            let reference = Reference::Tag(tag.clone());
            let head = through.upstream.head_manifest(repository, &reference).await;
            let unknown = Error::Manifest(tag.to_string());
            let head = head.map_err(|error| Error::from_upstream(error, unknown))?;
            if let Some(digest) = &head.digest {
                through.freshness.note(repository, tag, digest);
                // Noted before the look, so that a fetch that ends in between sees it.
                through.sightings.note(repository, tag, digest);
                if !link_if_cached(&kept.content, &through, repository, digest).await {
                    let (repository, digest) = (repository.clone(), digest.clone());
                    tokio::spawn(follow(kept.content, through, repository, digest));
                }
            }
            Ok(head)
        }
    };
    through.tags.join(key, work).await.ok_or(Error::Busy("a revalidation ended without a word"))?
}

/// Fetches a manifest into the directory, once for all who ask at the same time.
async fn fetch(
    kept: &Kept,
    through: &Arc<PullThrough>,
    repository: Repository,
    reference: Reference,
) -> Result<Manifest, Error> {
    let key = (repository, reference);
    let work = {
        let (kept, through, key) = (kept.clone(), Arc::clone(through), key.clone());
        async move {
            let (repository, reference) = &key;
            if let Reference::Digest(digest) = reference
                && let Ok(Some(manifest)) = kept.member(repository, digest).await
            {
                return Ok(manifest);
            }
            let manifest = ask(&through, repository, reference).await?;
            if let Reference::Tag(tag) = reference {
                through.freshness.note(repository, tag, &manifest.digest);
                through.sightings.note(repository, tag, &manifest.digest);
            }
            match kept.keep(repository, &manifest).await {
                Ok(()) => link_tags(&kept.content, &through, repository, &manifest.digest).await,
                Err(error) => {
                    tracing::warn!(%repository, %reference, %error, "a manifest was not kept");
                }
            }
            Ok(manifest)
        }
    };
    let fetched = through.manifests.join(key, work).await;
    fetched.ok_or(Error::Busy("the fetch of this manifest ended without a word"))?
}

/// A manifest from the upstream, checked.
async fn ask(
    through: &PullThrough,
    repository: &Repository,
    reference: &Reference,
) -> Result<Manifest, Error> {
    let fetched = through.upstream.manifest(repository, reference).await;
    let unknown = Error::Manifest(reference.to_string());
    let (said, content) = fetched.map_err(|error| Error::from_upstream(error, unknown))?;
    let digest = match reference {
        Reference::Digest(digest) => digest.clone(),
        Reference::Tag(_) => said.unwrap_or_else(|| Digest::of(Algorithm::Sha256, &content)),
    };
    if let Err(mismatch) = check(&digest, &content) {
        return Err(Error::Upstream(format!("it sent {mismatch}")));
    }
    let depth = media_type::depth(&content);
    if depth > DEPTH_MAX {
        let reason =
            format!("it sent a manifest that is nested {depth} deep; {DEPTH_MAX} are allowed");
        return Err(Error::Upstream(reason));
    }
    Ok(Manifest::new(digest, content, Source::Upstream))
}

/// Links the tags that name a manifest as soon as it is cached: behind a balancer the client's next
/// request, which asks for the manifest by its digest, may go to another node.
async fn follow(
    content: Content,
    through: Arc<PullThrough>,
    repository: Repository,
    digest: Digest,
) {
    for pause_s in FOLLOW_PAUSES_S {
        sleep(Duration::from_secs(pause_s)).await;
        let is_linked = !through.sightings.contains(&repository, &digest);
        if is_linked || link_if_cached(&content, &through, &repository, &digest).await {
            return;
        }
    }
}

/// Links the tags that name a manifest, if it is cached. Tells whether it is.
async fn link_if_cached(
    content: &Content,
    through: &PullThrough,
    repository: &Repository,
    digest: &Digest,
) -> bool {
    let memberships = [Membership::Manifest];
    let is_cached = content.is_member(repository, &memberships, digest).await.unwrap_or(false);
    if is_cached {
        link_tags(content, through, repository, digest).await;
    }
    is_cached
}

/// Makes the tags that were seen to name a manifest name it in the directory too.
async fn link_tags(
    content: &Content,
    through: &PullThrough,
    repository: &Repository,
    digest: &Digest,
) {
    for tag in through.sightings.take(repository, digest) {
        let link = Link::Tag(repository.clone(), tag);
        if matches!(content.link(link.clone()).await, Ok(Some(named)) if named == *digest) {
            continue;
        }
        if let Err(error) = content.publish_link(link, digest).await {
            tracing::warn!(%repository, %digest, %error, "a tag was not kept");
        }
    }
}

fn check(digest: &Digest, content: &[u8]) -> Result<(), larder_layout::Mismatch> {
    let mut verifier = Verifier::new(digest.clone());
    verifier.update(content);
    verifier.finish()
}
