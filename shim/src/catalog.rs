//! `/v2/_catalog`

use serde_json::Map;

use crate::{
    answer::{Response, Source},
    content::Content,
    error::Error,
    page::Page,
};

/// Answers with the repositories of the directory, in byte order, from behind `last` and at most
/// `n`: Distribution's API has this list, and the OCI's none.
///
/// # Errors
/// `n` is no number, or the storage is in trouble or too slow.
pub async fn answer(content: &Content, query: &str, max_entries: usize) -> Result<Response, Error> {
    let page = Page::of(query, max_entries)?;
    let (repositories, is_cut) = match page.limit {
        0 => (Vec::new(), false),
        limit => content
            .repositories(&page.last, limit)
            .await
            .map_err(|error| Error::Storage(error.to_string()))?,
    };
    let list = (&repositories[..], is_cut);
    Ok(page.answer("/v2/_catalog", Map::new(), "repositories", list, Source::Local))
}
