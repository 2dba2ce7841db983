//! What an upstream lets somebody do, whatever of it is cached.

use hyper::Method;
use larder_layout::Repository;

use super::{Ask, HEAD_DEADLINE, MANIFEST_TYPES, Upstream, UpstreamError};

/// What every repository has that can be read.
const TAGS: &str = "tags/list?n=1";

impl Upstream {
    /// Asks whether a repository can be read: whether there is `path` below it, or tags at least.
    /// None of it counts as a pull.
    ///
    /// # Errors
    /// There is no such repository, or the upstream refuses, or is in trouble.
    pub async fn may_read(&self, repository: &Repository, path: &str) -> Result<(), UpstreamError> {
        if path != TAGS {
            match self.send(&question(Method::HEAD, Some(repository), path)).await {
                Err(UpstreamError::NotFound) => {}
                answer => return answer.map(drop),
            }
        }
        // HEAD of a list is not what every registry answers.
        self.send(&question(Method::GET, Some(repository), TAGS)).await.map(drop)
    }

    /// Asks whether the credentials are those of anybody.
    ///
    /// # Errors
    /// They are not, or the upstream is in trouble.
    pub async fn knows(&self) -> Result<(), UpstreamError> {
        self.send(&question(Method::GET, None, "")).await.map(drop)
    }
}

/// `path` with a query or without.
fn question<'a>(method: Method, repository: Option<&'a Repository>, path: &str) -> Ask<'a> {
    let (path, query) =
        path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    Ask {
        method,
        repository,
        path: path.to_owned(),
        query: query.map(str::to_owned),
        accept: MANIFEST_TYPES,
        range: None,
        deadline: HEAD_DEADLINE,
    }
}
