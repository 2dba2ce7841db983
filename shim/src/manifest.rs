//! `/v2/<name>/manifests/<reference>`

use std::{io, sync::Arc, time::Duration};

use axum::{body::Body, http::HeaderValue, response::Response};
use bytes::Bytes;
use larder_layout::{Algorithm, Digest, Link, Membership, Reference, Repository, Tag, Verifier};
use serde::{Deserialize, de::IgnoredAny};
use tokio::time::sleep;

use crate::{
    answer::{Conditions, Representation, Source},
    content::Content,
    error::Error,
    shim::{PullThrough, Shim},
    upstream::{MANIFEST_MAX_BYTES, ManifestHead},
};

const UNKNOWN_TYPE: &str = "application/octet-stream";

/// When a tag is looked after whose manifest was not cached: clients ask for it at once, if at all.
const FOLLOW_PAUSES_S: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// A manifest, byte for byte as it came.
#[derive(Clone, Debug)]
pub struct Manifest {
    digest: Digest,
    content: Bytes,
    source: Source,
}

/// What there is to answer with.
enum Found {
    Manifest(Manifest),
    /// Only what the upstream says of it: a client that wants no more must not cost a request
    /// that counts against a rate limit.
    Head(Digest, ManifestHead),
}

/// Answers with a manifest of a repository: a tag is revalidated with the upstream first, and the
/// cached one is served when the upstream is down.
///
/// # Errors
/// The repository has no such manifest, or nobody who may have it can be reached.
pub async fn answer(
    shim: &Shim,
    repository: Repository,
    reference: Reference,
    conditions: &Conditions,
) -> Result<Response, Error> {
    let found = match (reference, &shim.through) {
        (reference, None) => {
            let stored = stored(&shim.content, &repository, &reference).await;
            let stored = stored.map_err(|error| Error::Storage(error.to_string()))?;
            Found::Manifest(stored.ok_or_else(|| Error::Manifest(reference.to_string()))?)
        }
        (Reference::Digest(digest), Some(through)) => {
            by_digest(&shim.content, through, repository, digest, conditions.is_head).await?
        }
        (Reference::Tag(tag), Some(through)) => {
            by_tag(&shim.content, through, repository, tag, conditions.is_head).await?
        }
    };
    match found {
        Found::Manifest(Manifest { digest, content, source }) => {
            let media_type = HeaderValue::from_str(&media_type(&content));
            let representation = Representation {
                digest: &digest,
                media_type: media_type.unwrap_or(HeaderValue::from_static(UNKNOWN_TYPE)),
                size_bytes: Some(content.len() as u64),
                is_blob: false,
                source,
            };
            conditions.answer(&representation, |_| Body::from(content))
        }
        Found::Head(digest, head) => {
            let unknown = HeaderValue::from_static(UNKNOWN_TYPE);
            let representation = Representation {
                digest: &digest,
                media_type: head.media_type.unwrap_or(unknown),
                size_bytes: head.size_bytes,
                is_blob: false,
                source: Source::Upstream,
            };
            conditions.answer(&representation, |_| Body::empty())
        }
    }
}

async fn by_digest(
    content: &Content,
    through: &Arc<PullThrough>,
    repository: Repository,
    digest: Digest,
    is_head: bool,
) -> Result<Found, Error> {
    if let Ok(Some(manifest)) = member(content, &repository, &digest).await {
        return Ok(Found::Manifest(manifest));
    }
    let reference = Reference::Digest(digest.clone());
    if !is_head {
        return fetch(content, through, repository, reference).await.map(Found::Manifest);
    }
    let head = through.upstream.head_manifest(&repository, &reference).await;
    let unknown = Error::Manifest(digest.to_string());
    let head = head.map_err(|error| Error::from_upstream(error, unknown))?;
    Ok(Found::Head(digest, head))
}

async fn by_tag(
    content: &Content,
    through: &Arc<PullThrough>,
    repository: Repository,
    tag: Tag,
    is_head: bool,
) -> Result<Found, Error> {
    let fresh = revalidated(content, through, &repository, &tag, is_head).await;
    let error = match fresh {
        Err(error @ (Error::Upstream(_) | Error::TooManyRequests { .. })) => error,
        fresh => return fresh,
    };
    let reference = Reference::Tag(tag);
    match stored(content, &repository, &reference).await {
        Ok(Some(manifest)) => {
            tracing::warn!(%repository, tag = %reference, %error, "a tag is served unrevalidated");
            Ok(Found::Manifest(manifest))
        }
        _ => Err(error),
    }
}

async fn revalidated(
    content: &Content,
    through: &Arc<PullThrough>,
    repository: &Repository,
    tag: &Tag,
    is_head: bool,
) -> Result<Found, Error> {
    let head = revalidate(content, through, repository, tag).await?;
    let Some(digest) = head.digest.clone() else {
        // An upstream that names no digest can only be asked for the whole.
        let reference = Reference::Tag(tag.clone());
        let fetched = fetch(content, through, repository.clone(), reference).await;
        return fetched.map(Found::Manifest);
    };
    if let Ok(Some(manifest)) = member(content, repository, &digest).await {
        return Ok(Found::Manifest(manifest));
    }
    if is_head {
        return Ok(Found::Head(digest, head));
    }
    let reference = Reference::Digest(digest);
    fetch(content, through, repository.clone(), reference).await.map(Found::Manifest)
}

/// Asks the upstream what a tag names, once for all who ask at the same time, and makes the
/// cached tag name the same as soon as that manifest is cached.
async fn revalidate(
    content: &Content,
    through: &Arc<PullThrough>,
    repository: &Repository,
    tag: &Tag,
) -> Result<ManifestHead, Error> {
    let key = (repository.clone(), tag.clone());
    let work = {
        let (content, through, key) = (content.clone(), Arc::clone(through), key.clone());
        async move {
            let (repository, tag) = &key;
            let reference = Reference::Tag(tag.clone());
            let head = through.upstream.head_manifest(repository, &reference).await;
            let unknown = Error::Manifest(tag.to_string());
            let head = head.map_err(|error| Error::from_upstream(error, unknown))?;
            if let Some(digest) = &head.digest {
                // Noted before the look, so that a fetch that ends in between sees it.
                through.sightings.note(repository, tag, digest);
                if !link_if_cached(&content, &through, repository, digest).await {
                    let (repository, digest) = (repository.clone(), digest.clone());
                    tokio::spawn(follow(content, through, repository, digest));
                }
            }
            Ok(head)
        }
    };
    through.tags.join(key, work).await.ok_or(Error::Busy("a revalidation ended without a word"))?
}

/// Fetches a manifest into the directory, once for all who ask at the same time.
async fn fetch(
    content: &Content,
    through: &Arc<PullThrough>,
    repository: Repository,
    reference: Reference,
) -> Result<Manifest, Error> {
    let key = (repository, reference);
    let work = {
        let (content, through, key) = (content.clone(), Arc::clone(through), key.clone());
        async move {
            let (repository, reference) = &key;
            if let Reference::Digest(digest) = reference
                && let Ok(Some(manifest)) = member(&content, repository, digest).await
            {
                return Ok(manifest);
            }
            let manifest = ask(&through, repository, reference).await?;
            if let Reference::Tag(tag) = reference {
                through.sightings.note(repository, tag, &manifest.digest);
            }
            match keep(&content, repository, &manifest).await {
                Ok(()) => link_tags(&content, &through, repository, &manifest.digest).await,
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
    Ok(Manifest { digest, content, source: Source::Upstream })
}

/// The blob first, then its link: who follows a link finds what it names.
async fn keep(content: &Content, repository: &Repository, manifest: &Manifest) -> io::Result<()> {
    let Manifest { digest, content: bytes, .. } = manifest;
    content.publish_all(bytes.clone(), digest).await?;
    let link = Link::Member(repository.clone(), Membership::Manifest, digest.clone());
    content.publish_link(link, digest).await
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

/// What the directory has, whatever the upstream would say.
async fn stored(
    content: &Content,
    repository: &Repository,
    reference: &Reference,
) -> io::Result<Option<Manifest>> {
    match reference {
        Reference::Digest(digest) => member(content, repository, digest).await,
        Reference::Tag(tag) => {
            match content.link(Link::Tag(repository.clone(), tag.clone())).await? {
                Some(digest) => read(content, digest).await,
                None => Ok(None),
            }
        }
    }
}

/// A manifest that the directory has, and has in this repository.
async fn member(
    content: &Content,
    repository: &Repository,
    digest: &Digest,
) -> io::Result<Option<Manifest>> {
    if !content.is_member(repository, &[Membership::Manifest], digest).await? {
        return Ok(None);
    }
    read(content, digest.clone()).await
}

/// Reads and checks a manifest: it is small, so this costs next to nothing.
async fn read(content: &Content, digest: Digest) -> io::Result<Option<Manifest>> {
    let Some(bytes) = content.read_all(&digest, MANIFEST_MAX_BYTES).await? else {
        return Ok(None);
    };
    if let Err(mismatch) = check(&digest, &bytes) {
        tracing::error!(%mismatch, "a manifest in the directory is damaged");
        return Err(io::Error::new(io::ErrorKind::InvalidData, mismatch));
    }
    Ok(Some(Manifest { digest, content: bytes, source: Source::Content }))
}

fn check(digest: &Digest, content: &[u8]) -> Result<(), larder_layout::Mismatch> {
    let mut verifier = Verifier::new(digest.clone());
    verifier.update(content);
    verifier.finish()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// The media type of a manifest, which no storage keeps: its own word, else its shape.
fn media_type(content: &[u8]) -> String {
    let Ok(shape) = serde_json::from_slice::<Shape>(content) else {
        return UNKNOWN_TYPE.to_owned();
    };
    // A manifest is foreign input: it does not get to be a type that a browser would run.
    let own = shape.media_type.filter(|own| own.starts_with("application/"));
    let by_shape = match (shape.schema_version, shape.manifests, shape.config, shape.layers) {
        (Some(1), ..) => "application/vnd.docker.distribution.manifest.v1+prettyjws",
        (_, Some(_), ..) => "application/vnd.oci.image.index.v1+json",
        (_, _, Some(_), Some(_)) => "application/vnd.oci.image.manifest.v1+json",
        _ => UNKNOWN_TYPE,
    };
    own.unwrap_or_else(|| by_shape.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_is_the_manifests_own_or_its_shapes() {
        for (content, expected) in [
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{},"layers":[]}"#,
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
            (r#"{"schemaVersion":2,"manifests":[]}"#, "application/vnd.oci.image.index.v1+json"),
            (
                r#"{"schemaVersion":2,"config":{},"layers":[]}"#,
                "application/vnd.oci.image.manifest.v1+json",
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#,
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
            ),
            (r#"{"schemaVersion":2,"mediaType":"text/html"}"#, UNKNOWN_TYPE),
            (r#"{"mediaType":7}"#, UNKNOWN_TYPE),
            ("no json", UNKNOWN_TYPE),
        ] {
            assert_eq!(media_type(content.as_bytes()), expected, "{content}");
        }
    }
}
