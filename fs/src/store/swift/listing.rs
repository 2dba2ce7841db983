//! Listings, page by page.

use std::{ops::Deref, sync::Arc};

use chrono::{DateTime, NaiveDateTime, Utc};
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http::Method;
use object_store::{Error, ListResult, ObjectMeta, Result, path::Path};
use serde::Deserialize;

use super::{CONNECTIONS, Container, client::Request, unexpected};

/// One line of a listing.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    /// What has more names below it.
    Directory {
        subdir: String,
    },
    Object {
        name: String,
        bytes: u64,
        hash: String,
        content_type: String,
        last_modified: String,
    },
}

impl Line {
    fn name(&self) -> &str {
        match self {
            Self::Directory { subdir } => subdir,
            Self::Object { name, .. } => name,
        }
    }
}

impl Container {
    /// What the names of all objects below `prefix` begin with.
    fn names_of(&self, prefix: Option<&Path>) -> String {
        match prefix {
            Some(prefix) if !prefix.as_ref().is_empty() => format!("{}/", self.name(prefix)),
            _ => self.files.clone(),
        }
    }

    /// The lines behind `marker`. None means that it was the last; fewer than asked for does not.
    async fn page(&self, prefix: &str, marker: &str, delimited: bool) -> Result<Vec<Line>> {
        let mut request = Request::new(Method::GET, "").query("format", "json");
        request = request.query("prefix", prefix).query("marker", marker);
        if delimited {
            request = request.query("delimiter", "/");
        }
        let answer = self.client.fetch(request).await;
        let body = answer.map_err(|e| e.of(prefix))?.into_body();
        if body.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&body).map_err(|_| unexpected("a listing that is none"))
    }

    /// The object of a line; nothing when its name is none that the store could ask for.
    ///
    /// A dynamic large object is listed with no size, so that what seems empty is looked at.
    async fn object_of(&self, line: Line) -> Option<Result<ObjectMeta>> {
        let Line::Object { name, bytes, hash, content_type, last_modified } = line else {
            return None;
        };
        let location = Path::parse(name.strip_prefix(&self.files)?).ok()?;
        if content_type == "application/directory" {
            return None;
        }
        if bytes > 0 {
            let last_modified = date(&last_modified);
            let e_tag = Some(hash);
            let meta = ObjectMeta { location, last_modified, size: bytes, e_tag, version: None };
            return Some(Ok(meta));
        }
        match self.head(&location).await {
            Ok((meta, _)) => Some(Ok(meta)),
            // Deleted since it was listed.
            Err(Error::NotFound { .. }) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

/// Every line whose name begins with `prefix`, in the order of the names.
fn lines<C: Deref<Target = Container> + Clone + Send + Sync>(
    container: C,
    prefix: String,
) -> impl Stream<Item = Result<Line>> + Send {
    let pages = stream::try_unfold(String::new(), move |marker| {
        let (container, prefix) = (container.clone(), prefix.clone());
        async move {
            let page = container.page(&prefix, &marker, false).await?;
            let marker = page.last().map(|line| line.name().to_owned());
            let lines = stream::iter(page.into_iter().map(Ok::<_, Error>));
            Ok::<_, Error>(marker.map(|marker| (lines, marker)))
        }
    });
    pages.try_flatten()
}

/// The name of every object that begins with `prefix`, in order, and when it was written.
pub fn objects(
    container: &Container,
    prefix: String,
) -> impl Stream<Item = Result<(String, DateTime<Utc>)>> + Send {
    lines(container, prefix).try_filter_map(async |line| {
        let Line::Object { name, last_modified, .. } = line else { return Ok(None) };
        Ok(Some((name, date(&last_modified))))
    })
}

/// Every object below `prefix`.
pub fn list(
    container: Arc<Container>,
    prefix: Option<Path>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let names = container.names_of(prefix.as_ref());
    let objects = lines(Arc::clone(&container), names).map(move |line| {
        let container = Arc::clone(&container);
        async move {
            match line {
                Ok(line) => container.object_of(line).await,
                Err(e) => Some(Err(e)),
            }
        }
    });
    objects.buffered(CONNECTIONS).filter_map(std::future::ready).boxed()
}

/// What is directly below `prefix`.
pub async fn list_with_delimiter(
    container: &Container,
    prefix: Option<&Path>,
) -> Result<ListResult> {
    let names = container.names_of(prefix);
    let (mut common_prefixes, mut objects) = (Vec::new(), Vec::new());
    let mut marker = String::new();
    loop {
        let page = container.page(&names, &marker, true).await?;
        let Some(last) = page.last() else { break };
        marker = last.name().to_owned();
        let (directories, page): (Vec<_>, Vec<_>) =
            page.into_iter().partition(|line| matches!(line, Line::Directory { .. }));
        let paths = directories
            .iter()
            .filter_map(|line| Path::parse(line.name().strip_prefix(&container.files)?).ok());
        common_prefixes.extend(paths);
        let found = stream::iter(page).map(|line| container.object_of(line));
        let found: Vec<_> = found.buffered(CONNECTIONS).collect().await;
        for object in found.into_iter().flatten() {
            objects.push(object?);
        }
    }
    Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
}

/// `2026-11-23T09:00:00.123456`, in UTC without saying so.
fn date(text: &str) -> DateTime<Utc> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")
        .map_or(DateTime::<Utc>::UNIX_EPOCH, |date| date.and_utc())
}
