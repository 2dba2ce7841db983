//! `/v2/<name>/referrers/<digest>`: the signatures, bills of materials and such of a manifest.
//!
//! What the upstream lists is kept where clients and registries that know no such list keep it:
//! as an image index under the tag `sha256-<hex>` (OCI distribution-spec, "Referrers Tag Schema").
//! So one place serves while the upstream is down, for an upstream without the list, for a storage
//! that another registry filled, and for another registry that takes this storage over.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use larder_layout::{Algorithm, Digest, Link, Reference, Repository, Tag};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    answer::{Response, Source},
    body::Body,
    error::Error,
    flights::Flights,
    manifest::{self, Kept, Manifest},
    shim::{PullThrough, parameter},
    upstream::{MANIFEST_MAX_BYTES, UpstreamError},
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Of the digest's hex digits, so many are in the tag.
const HEX_MAX: usize = 64;

/// Lists of the upstream on their way, each as an index; none when the upstream has no such lists.
pub type ReferrersFlights = Flights<(Repository, Digest), Result<Option<Manifest>, Error>>;

/// An index as it is stored; whatever else is no index has no referrers.
#[derive(Default, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Map<String, Value>>,
}

/// Answers with the descriptors of the manifests that refer to `subject`, only those of one type
/// if the client asks for one. There may be none, which is no error.
///
/// # Errors
/// Nobody who knows can be reached: to say that there are none would pass an unsigned image off as
/// one that nobody has ever signed.
pub async fn answer(
    kept: &Kept,
    through: Option<&Arc<PullThrough>>,
    repository: &Repository,
    subject: &Digest,
    query: &str,
) -> Result<Response, Error> {
    let tag = tag(subject)?;
    let found = match through {
        Some(through) => through_upstream(kept, through, repository, subject, tag).await?,
        None => kept
            .stored(repository, &Reference::Tag(tag))
            .await
            .map_err(|error| Error::Storage(error.to_string()))?,
    };
    let source = found.as_ref().map_or(Source::Local, |manifest| manifest.source);
    let index = found.and_then(|manifest| serde_json::from_slice::<Index>(&manifest.content).ok());
    let mut manifests = index.unwrap_or_default().manifests;
    let wanted = parameter(query, "artifactType");
    if let Some(wanted) = &wanted {
        manifests.retain(|descriptor| descriptor.get("artifactType") == Some(&json!(wanted)));
    }
    let mut response = Response::new(Body::Memory(index_of(manifests)));
    response.source = Some(source);
    let headers = &mut response.headers;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    if wanted.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// The upstream's list, else what is under the tag, which is the upstream's too while it is up.
async fn through_upstream(
    kept: &Kept,
    through: &Arc<PullThrough>,
    repository: &Repository,
    subject: &Digest,
    tag: Tag,
) -> Result<Option<Manifest>, Error> {
    let key = (repository.clone(), subject.clone());
    let work = {
        let (kept, through, tag, key) =
            (kept.clone(), Arc::clone(through), tag.clone(), key.clone());
        async move {
            let (repository, subject) = &key;
            let manifest = match through.upstream.referrers(repository, subject).await {
                Ok(descriptors) => from_list(descriptors)?,
                Err(UpstreamError::NotFound) => return Ok(None),
                Err(error) => {
                    return Err(Error::from_upstream(error, Error::Manifest(tag.to_string())));
                }
            };
            if let Err(error) = keep(&kept, repository, tag, &manifest).await {
                tracing::warn!(%repository, %subject, %error, "a list of referrers was not kept");
            }
            Ok(Some(manifest))
        }
    };
    let listed = through.referrers.join(key, work).await;
    let listed = listed.unwrap_or(Err(Error::Busy("the fetch of this list ended without a word")));
    match listed {
        Ok(Some(manifest)) => Ok(Some(manifest)),
        Ok(None) => manifest::of_tag(kept, through, repository, tag).await,
        Err(error @ (Error::Upstream(_) | Error::TooManyRequests { .. })) => {
            match kept.stored(repository, &Reference::Tag(tag)).await {
                Ok(Some(manifest)) => {
                    tracing::warn!(%repository, %subject, %error, "cached referrers are listed");
                    Ok(Some(manifest))
                }
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// The upstream's list as one index, the same for the same list: else every request would leave
/// another blob behind.
fn from_list(mut descriptors: Vec<Map<String, Value>>) -> Result<Manifest, Error> {
    let digest = |descriptor: &Map<String, Value>| {
        descriptor.get("digest").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    descriptors.sort_by_cached_key(digest);
    descriptors.dedup_by_key(|descriptor| digest(descriptor));
    let content = index_of(descriptors);
    if content.len() as u64 > MANIFEST_MAX_BYTES {
        let reason = format!("its list of referrers is larger than {MANIFEST_MAX_BYTES} bytes");
        return Err(Error::Upstream(reason));
    }
    let digest = Digest::of(Algorithm::Sha256, &content);
    Ok(Manifest::new(digest, content, Source::Upstream))
}

/// Keeps a list for as long as the upstream is down. An empty one is kept only to replace another.
async fn keep(
    kept: &Kept,
    repository: &Repository,
    tag: Tag,
    manifest: &Manifest,
) -> std::io::Result<()> {
    let link = Link::Tag(repository.clone(), tag);
    let named = kept.content.link(link.clone()).await?;
    let is_empty = manifest.content == index_of(Vec::new());
    if named.as_ref() == Some(&manifest.digest) || (named.is_none() && is_empty) {
        return Ok(());
    }
    kept.keep(repository, manifest).await?;
    kept.content.publish_link(link, &manifest.digest).await
}

fn index_of(manifests: Vec<Map<String, Value>>) -> Bytes {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    index.to_string().into()
}

/// The tag under which the referrers of a manifest are.
fn tag(subject: &Digest) -> Result<Tag, Error> {
    let hex = &subject.hex()[..subject.hex().len().min(HEX_MAX)];
    Ok(format!("{}-{hex}", subject.algorithm().as_str()).parse()?)
}
