//! `/v2/<name>/tags/list`

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use larder_layout::{Repository, Tag};
use lru::LruCache;
use serde_json::Map;

use crate::{
    answer::{Response, Source},
    content::Content,
    error::Error,
    flights::Flights,
    page::Page,
    shim::PullThrough,
};

/// How many tags one answer has at most, when the client does not ask for fewer.
const PAGE_MAX: usize = 10_000;
/// How long the pages of a list may be read from memory.
const LIST_LIFETIME: Duration = Duration::from_secs(60);
/// How many lists are in memory.
const LISTS_MAX: NonZeroUsize = NonZeroUsize::new(8).expect("it is not 0");

/// All the tags of a repository, in byte order.
type List = Arc<Vec<Tag>>;

/// Lists of the upstream that are longer than a page. Upstreams have their own orders and page
/// sizes, so a list is fetched whole for its first page, and that of the others is the same list.
pub struct TagLists {
    running: Arc<Flights<Repository, Result<List, Error>>>,
    recent: Mutex<LruCache<Repository, (Instant, List)>>,
}

/// Answers with the tags of a repository in byte order, from behind `last` and at most `n`: those
/// of the upstream, as Distribution's pull-through cache does, or those that are cached while
/// there is none or it is down. `path` is as the client has it, which may call the repository
/// otherwise than the directory does: so does the answer, and so is the next page asked for.
///
/// # Errors
/// There is no such repository, `n` is no number, or nobody who knows can be reached.
pub async fn answer(
    content: &Content,
    through: Option<&Arc<PullThrough>>,
    repository: &Repository,
    path: &str,
    query: &str,
) -> Result<Response, Error> {
    let page = Page::of(query, PAGE_MAX)?;
    let (mut tags, source) = match through {
        None => (cached(content, repository, &page).await?, Source::Local),
        Some(through) => match through.tag_lists.read(through, repository, &page).await {
            Ok(tags) => (tags, Source::Upstream),
            Err(error @ (Error::Upstream(_) | Error::TooManyRequests { .. })) => {
                let tags = cached(content, repository, &page).await.map_err(|_| error.clone())?;
                tracing::warn!(%repository, %error, "the cached tags are listed");
                (tags, Source::Local)
            }
            Err(error) => return Err(error),
        },
    };
    let is_cut = tags.len() > page.limit;
    tags.truncate(page.limit);
    let name = path.strip_prefix("/v2/").and_then(|path| path.strip_suffix("/tags/list"));
    let name = name.unwrap_or(repository.as_str());
    let body = Map::from_iter([("name".to_owned(), name.into())]);
    Ok(page.answer(path, body, "tags", (&tags, is_cut), source))
}

/// The page, and one tag more if there are more.
async fn cached(
    content: &Content,
    repository: &Repository,
    page: &Page,
) -> Result<Vec<Tag>, Error> {
    let tags = content.tags(repository, &page.last, page.limit + 1).await;
    let tags = tags.map_err(|error| Error::Storage(error.to_string()))?;
    tags.ok_or_else(|| Error::Repository(repository.clone()))
}

impl Default for TagLists {
    fn default() -> Self {
        Self { running: Flights::new(), recent: Mutex::new(LruCache::new(LISTS_MAX)) }
    }
}

impl TagLists {
    /// The page, and one tag more if there are more. The first page is always fetched.
    async fn read(
        &self,
        through: &Arc<PullThrough>,
        repository: &Repository,
        page: &Page,
    ) -> Result<Vec<Tag>, Error> {
        let recent = if page.last.is_empty() { None } else { self.recent(repository) };
        let list = match recent {
            Some(list) => list,
            None => self.fetch(through, repository).await?,
        };
        let behind = &list[list.partition_point(|tag| tag.as_str() <= page.last.as_str())..];
        if behind.len() > page.limit {
            self.lock().put(repository.clone(), (Instant::now(), Arc::clone(&list)));
        }
        Ok(behind.iter().take(page.limit + 1).cloned().collect())
    }

    async fn fetch(
        &self,
        through: &Arc<PullThrough>,
        repository: &Repository,
    ) -> Result<List, Error> {
        let work = {
            let (through, repository) = (Arc::clone(through), repository.clone());
            async move {
                let tags = through.upstream.tags(&repository).await;
                let unknown = Error::Repository(repository);
                let mut tags = tags.map_err(|error| Error::from_upstream(error, unknown))?;
                tags.sort_unstable();
                tags.dedup();
                Ok(Arc::new(tags))
            }
        };
        let fetched = self.running.join(repository.clone(), work).await;
        fetched.ok_or(Error::Busy("the fetch of this list ended without a word"))?
    }

    fn recent(&self, repository: &Repository) -> Option<List> {
        let mut recent = self.lock();
        let (fetched, list) = recent.get(repository)?;
        (fetched.elapsed() < LIST_LIFETIME).then(|| Arc::clone(list))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<Repository, (Instant, List)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
