//! The parts of the registry, and which request goes to which.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    Method, Request, StatusCode,
    header::{self, HeaderValue},
};
use larder_config::Config;
use larder_layout::{Reference, Repository, Tag};

use crate::{
    answer::{Conditions, Response},
    blob,
    body::Body,
    catalog,
    content::Content,
    error::Error,
    flights::Flights,
    manifest::{self, Kept, Manifest},
    pull::Pulls,
    referrers::{self, ReferrersFlights},
    routes::Route,
    sightings::Sightings,
    tags::{self, TagLists},
    upstream::{ManifestHead, Upstream, UpstreamMistake},
};

/// The longest request line that is read: the longest name and digest fit several times.
const URL_MAX_BYTES: usize = 4096;
/// The registry that containerd's mirrors mean when the client names none.
const DOCKER_HUB: &str = "docker.io";

/// The registry.
pub struct Shim {
    /// The directory.
    pub content: Content,
    /// Its manifests.
    pub manifests: Kept,
    /// Where a miss is pulled from; without it, only the directory is served.
    pub through: Option<Arc<PullThrough>>,
    /// How many repositories one answer lists at most.
    catalog_max_entries: usize,
}

/// The upstream, and what is asked of it now.
pub struct PullThrough {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// Blobs on their way.
    pub pulls: Arc<Pulls>,
    /// Manifests on their way.
    pub manifests: Arc<Flights<(Repository, Reference), Result<Manifest, Error>>>,
    /// Tags being revalidated.
    pub tags: Arc<Flights<(Repository, Tag), Result<ManifestHead, Error>>>,
    /// Tags whose manifest is not cached yet.
    pub sightings: Sightings,
    /// Lists of referrers on their way.
    pub referrers: Arc<ReferrersFlights>,
    /// Lists of tags that clients read in pages.
    pub tag_lists: TagLists,
}

impl Shim {
    /// The registry over a directory.
    ///
    /// # Errors
    /// What the configuration says of the upstream cannot work.
    pub fn new(content: Content, config: &Config) -> Result<Self, UpstreamMistake> {
        let through = config.upstreams.as_ref().map(|upstreams| {
            let upstream = Arc::new(Upstream::new(upstreams)?);
            Ok(Arc::new(PullThrough {
                pulls: Pulls::new(content.clone(), Arc::clone(&upstream)),
                upstream,
                manifests: Flights::new(),
                tags: Flights::new(),
                sightings: Sightings::default(),
                referrers: Flights::new(),
                tag_lists: TagLists::default(),
            }))
        });
        Ok(Self {
            manifests: Kept::new(content.clone()),
            content,
            through: through.transpose()?,
            catalog_max_entries: config.catalog_max_entries,
        })
    }

    /// Answers a request.
    ///
    /// # Errors
    /// Why there is no content in the answer.
    pub async fn answer<B>(&self, request: &Request<B>) -> Result<Response, Error> {
        let (method, uri) = (request.method(), request.uri());
        if uri.path().len() + uri.query().map_or(0, str::len) > URL_MAX_BYTES {
            return Err(Error::UrlLength(URL_MAX_BYTES));
        }
        if method != Method::GET && method != Method::HEAD {
            return Err(Error::Method);
        }
        let route = Route::parse(uri.path())?;
        let query = uri.query().unwrap_or_default();
        self.check_namespace(query)?;
        let conditions = Conditions::of(method, request.headers());
        match route {
            Route::Health => Ok(text("text/plain", "ok".into())),
            Route::Ready => Ok(self.ready().await),
            Route::Base => Ok(text("application/json", "{}".into())),
            Route::Catalog => catalog::answer(&self.content, query, self.catalog_max_entries).await,
            Route::Manifest(repository, reference) => {
                manifest::answer(self, repository, reference, &conditions).await
            }
            Route::Blob(repository, digest) => {
                blob::answer(self, &repository, &digest, &conditions).await
            }
            Route::Referrers(repository, subject) => {
                referrers::answer(self, &repository, &subject, query).await
            }
            Route::Tags(repository) => tags::answer(self, &repository, query).await,
        }
    }

    /// Whether a balancer should send requests here. A directory in trouble alone is no reason not
    /// to, as long as there is an upstream: it may be the same on every node, and then this would
    /// turn slow answers into none.
    async fn ready(&self) -> Response {
        match (self.content.probe().await, &self.through) {
            (Ok(()), _) => text("text/plain", "ready".into()),
            (Err(error), Some(_)) => {
                let reason = format!("ready, from the upstream alone: the directory: {error}");
                text("text/plain", reason.into())
            }
            (Err(error), None) => {
                let reason = format!("not ready: the directory: {error}");
                let mut response = text("text/plain", reason.into());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        }
    }

    /// Waits until no pull runs.
    pub async fn finished(&self) {
        if let Some(through) = &self.through {
            through.pulls.finished().await;
        }
    }

    /// containerd tells a mirror which registry it stands for, as `?ns=docker.io`. There is one
    /// upstream, so only its own name is taken, and Docker Hub's, for which most mirrors stand;
    /// content of different registries must never mix under one repository name.
    fn check_namespace(&self, query: &str) -> Result<(), Error> {
        let Some(namespace) = parameter(query, "ns") else { return Ok(()) };
        let is_upstream =
            |through: &Arc<PullThrough>| through.upstream.is_named(namespace.as_str());
        if namespace == DOCKER_HUB || self.through.as_ref().is_some_and(is_upstream) {
            return Ok(());
        }
        Err(Error::Namespace(namespace))
    }
}

/// The value of a parameter of the query.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    let mut parameters = url::form_urlencoded::parse(query.as_bytes());
    parameters.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn text(media_type: &'static str, content: Bytes) -> Response {
    let mut response = Response::new(Body::Memory(content));
    let media_type = HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}
