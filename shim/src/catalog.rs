//! `/v2/_catalog`

use std::time::Duration;

use serde_json::Map;
use tokio::time::{Instant, timeout_at};

use crate::{
    answer::{Response, Source},
    content::Content,
    error::Error,
    page::Page,
};

/// How long one answer may look for repositories. What it has by then is a page.
const DEADLINE: Duration = Duration::from_secs(20);

/// Answers with the repositories of the directory, in byte order, from behind `last` and at most
/// `n`: Distribution's API has this list, and the OCI's none.
///
/// # Errors
/// `n` is no number, or the storage is in trouble or too slow.
pub async fn answer(content: &Content, query: &str, max_entries: usize) -> Result<Response, Error> {
    let page = Page::of(query, max_entries)?;
    let deadline = Instant::now() + DEADLINE;
    let mut walk = content.repositories(&page.last);
    let mut repositories = Vec::new();
    let mut is_cut = false;
    while page.limit > 0 && !is_cut {
        match timeout_at(deadline, walk.next()).await {
            Ok(Ok(Some(_))) if repositories.len() == page.limit => is_cut = true,
            Ok(Ok(Some(repository))) => repositories.push(repository),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(Error::Storage(error.to_string())),
            Err(_) if repositories.is_empty() => {
                return Err(Error::Storage(format!("no repository was found in {DEADLINE:?}")));
            }
            Err(_) => is_cut = true,
        }
    }
    let list = (&repositories[..], is_cut);
    Ok(page.answer("/v2/_catalog", Map::new(), "repositories", list, Source::Content))
}
