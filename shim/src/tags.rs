//! `/v2/<name>/tags/list`

use hyper::header::{self, HeaderValue};
use larder_layout::{Repository, Tag};

use crate::{
    answer::{Response, Source},
    body::Body,
    content::Content,
    error::Error,
    shim::parameter,
};

/// How many tags one answer has at most, when the client does not ask for fewer.
const PAGE_MAX: usize = 10_000;

/// Answers with the names of the tags that are cached, sorted, from behind `last` and at most `n`.
///
/// # Errors
/// There is no such repository, `n` is no number, or the storage is in trouble.
pub async fn answer(
    content: &Content,
    repository: &Repository,
    query: &str,
) -> Result<Response, Error> {
    let limit = match parameter(query, "n") {
        Some(n) => n.parse::<usize>().map_err(|_| Error::Page(n))?.min(PAGE_MAX),
        None => PAGE_MAX,
    };
    let tags = content.tags(repository).await.map_err(|error| Error::Storage(error.to_string()))?;
    let mut tags = tags.ok_or_else(|| Error::Repository(repository.clone()))?;
    tags.sort_unstable();
    let last = parameter(query, "last").unwrap_or_default();
    let behind = tags.partition_point(|tag| tag.as_str() <= last.as_str());
    let rest = &tags[behind..];
    let page = &rest[..limit.min(rest.len())];

    let names: Vec<&str> = page.iter().map(Tag::as_str).collect();
    let body = serde_json::json!({ "name": repository.as_str(), "tags": names });
    let mut response = Response::new(Body::Memory(body.to_string().into()));
    response.extensions_mut().insert(Source::Content);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(tag) = page.last().filter(|_| page.len() < rest.len()) {
        // Tags and repository names need no escapes in a URL.
        let link = format!("</v2/{repository}/tags/list?last={tag}&n={limit}>; rel=\"next\"");
        headers.extend(HeaderValue::from_str(&link).ok().map(|link| (header::LINK, link)));
    }
    Ok(response)
}
