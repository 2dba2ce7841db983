//! Lists of the upstream, which come in pages.

use std::time::Duration;

use bytes::Bytes;
use hyper::{
    HeaderMap, Method,
    header::{self, HeaderValue},
};
use larder_layout::{Digest, Repository, Tag};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::time::timeout;
use url::Url;

use super::{Ask, Upstream, UpstreamError, collect, late};

/// How long each page of a list may take.
const PAGE_DEADLINE: Duration = Duration::from_secs(30);
/// How long all of them may take.
const LIST_DEADLINE: Duration = Duration::from_secs(120);
/// How many bytes all pages may have: hundreds of thousands of tags.
const LIST_MAX_BYTES: u64 = 8 << 20;
const JSON: &str = "application/json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Deserialize)]
struct TagPage {
    /// Some registries say `null` for none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct IndexPage {
    manifests: Option<Vec<Map<String, Value>>>,
}

/// A page as it came.
struct Page {
    media_type: Option<HeaderValue>,
    content: Bytes,
}

impl Upstream {
    /// The tags of a repository, in the upstream's order. What is no tag is left out.
    ///
    /// # Errors
    /// The upstream has no such repository, refuses, is in trouble, or the list has no end.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<Tag>, UpstreamError> {
        let mut tags = Vec::new();
        for page in self.pages(repository, "tags/list", JSON).await? {
            let page: TagPage = page.parse()?;
            let page = page.tags.unwrap_or_default();
            tags.extend(page.iter().filter_map(|tag| tag.parse::<Tag>().ok()));
        }
        Ok(tags)
    }

    /// The descriptors of the manifests that refer to `subject`. What has no digest is left out.
    ///
    /// # Errors
    /// The upstream has no such lists, refuses, is in trouble, or the list has no end.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Map<String, Value>>, UpstreamError> {
        let mut descriptors = Vec::new();
        for page in self.pages(repository, &format!("referrers/{subject}"), INDEX).await? {
            // Some registries answer any path with a page for browsers.
            if page.media_type.as_ref().is_none_or(|media_type| media_type != INDEX) {
                return Err(UpstreamError::NotFound);
            }
            let page: IndexPage = page.parse()?;
            descriptors.extend(page.manifests.into_iter().flatten().filter(has_digest));
        }
        Ok(descriptors)
    }

    /// The pages of a list, each as it came.
    async fn pages(
        &self,
        repository: &Repository,
        path: &str,
        accept: &'static str,
    ) -> Result<Vec<Page>, UpstreamError> {
        let mut ask = Ask {
            method: Method::GET,
            repository: Some(repository),
            path: path.to_owned(),
            query: None,
            accept: HeaderValue::from_static(accept),
            range: None,
            deadline: PAGE_DEADLINE,
        };
        let pages = async {
            let mut pages = Vec::new();
            let mut left_bytes = LIST_MAX_BYTES;
            loop {
                let (response, _) = self.send(&ask).await?;
                let next = next_query(response.url(), response.headers());
                let media_type = response.headers().get(header::CONTENT_TYPE).cloned();
                let content = collect(response, left_bytes).await?;
                // A page is something, be it empty: there is no end of nothing either.
                left_bytes = left_bytes.saturating_sub(content.len().max(1) as u64);
                pages.push(Page { media_type, content });
                match next {
                    Some(query) => ask.query = Some(query),
                    None => return Ok(pages),
                }
            }
        };
        timeout(LIST_DEADLINE, pages).await.map_err(|_| late("the whole list", LIST_DEADLINE))?
    }
}

/// The query of the next page. Only that is taken from a `Link`, so that it leads nowhere else.
fn next_query(url: &Url, headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(header::LINK).iter().filter_map(|link| link.to_str().ok());
    let next = links.flat_map(|links| links.split(',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let mut parameters = parameters.split(';').map(str::trim);
        parameters.any(|p| matches!(p, "rel=\"next\"" | "rel=next")).then_some(target)
    })?;
    let next = url.join(next).ok()?;
    next.query()
        .filter(|query| next.path() == url.path() && Some(*query) != url.query())
        .map(str::to_owned)
}

impl Page {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, UpstreamError> {
        serde_json::from_slice(&self.content).map_err(|error| {
            UpstreamError::Unavailable(format!("its list cannot be read: {error}"))
        })
    }
}

fn has_digest(descriptor: &Map<String, Value>) -> bool {
    let digest = descriptor.get("digest").and_then(Value::as_str);
    digest.is_some_and(|digest| digest.parse::<Digest>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_the_next_page_of_the_same_list_only() {
        let url = Url::parse("https://a/v2/x/tags/list?n=2").unwrap();
        for (link, query) in [
            ("</v2/x/tags/list?last=b&n=2>; rel=\"next\"", Some("last=b&n=2")),
            ("<https://a/v2/x/tags/list?page=%2B>;rel=next", Some("page=%2B")),
            ("<?a>; rel=\"prev\", <?b>; title=x; rel=\"next\"", Some("b")),
            ("</v2/x/tags/list?n=2>; rel=\"next\"", None),
            ("</v2/x/tags/list>; rel=\"next\"", None),
            ("</v2/y/tags/list?n=2>; rel=\"next\"", None),
            ("</elsewhere?n=2>; rel=\"next\"", None),
            ("<?b>; rel=\"last\"", None),
            ("no link", None),
        ] {
            let headers = HeaderMap::from_iter([(header::LINK, HeaderValue::from_static(link))]);
            assert_eq!(next_query(&url, &headers).as_deref(), query, "{link}");
        }
        let elsewhere = HeaderValue::from_static("<https://b/v2/x/tags/list?c>; rel=\"next\"");
        let headers = HeaderMap::from_iter([(header::LINK, elsewhere)]);
        // The host is not followed, only the query is used.
        assert_eq!(next_query(&url, &headers).as_deref(), Some("c"));
    }
}
