//! The parts of the registry, and which request goes to which.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    header::{self, HeaderValue},
    http::uri::Authority,
};
use larder_config::Config;
use larder_layout::{Reference, Repository, Tag};

use crate::{
    answer::{Conditions, Response},
    auth::{Auth, Grant, Need},
    blob,
    body::Body,
    catalog,
    content::Content,
    error::Error,
    flights::Flights,
    manifest::{self, Kept, Manifest},
    pull::Pulls,
    referrers::{self, ReferrersFlights},
    registries::{Chooser, Registries},
    routes::Route,
    sightings::Sightings,
    tags::{self, TagLists},
    upstream::{ManifestHead, Upstream, UpstreamMistake},
};

/// The longest request line that is read: the longest name and digest fit several times.
const URL_MAX_BYTES: usize = 4096;

/// The registry.
pub struct Shim {
    /// The directory.
    pub content: Content,
    /// Its manifests.
    pub manifests: Kept,
    /// Who may see what.
    auth: Auth,
    /// Where misses are pulled from; without any, only the directory is served.
    registries: Registries,
    /// How many repositories one answer lists at most.
    catalog_max_entries: usize,
}

/// One upstream, and what is asked of it now. Clones share it, but for whom the upstream is asked as.
#[derive(Clone)]
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
    pub sightings: Arc<Sightings>,
    /// Lists of referrers on their way.
    pub referrers: Arc<ReferrersFlights>,
    /// Lists of tags that clients read in pages.
    pub tag_lists: Arc<TagLists>,
}

impl Shim {
    /// The registry over a directory.
    ///
    /// # Errors
    /// What the configuration says of the upstream cannot work.
    pub fn new(content: Content, auth: Auth, config: &Config) -> Result<Self, UpstreamMistake> {
        let mut registries = Registries::default();
        for config in &config.upstreams {
            let through = PullThrough {
                upstream: Arc::new(Upstream::new(config)?),
                pulls: Pulls::new(content.clone()),
                manifests: Flights::new(),
                tags: Flights::new(),
                sightings: Arc::default(),
                referrers: Flights::new(),
                tag_lists: Arc::default(),
            };
            let names: Vec<_> = config.key.iter().chain(&config.hosts).cloned().collect();
            registries.add(through, &names, config.is_default);
        }
        Ok(Self {
            manifests: Kept::new(content.clone()),
            content,
            auth,
            registries,
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
        let query = uri.query().unwrap_or_default();
        let route = self.resolve(Route::parse(uri.path())?, request)?;
        let through = self.let_in(request.headers(), &route).await?;
        let conditions = Conditions::of(method, request.headers());
        match route {
            Route::Health => Ok(text("text/plain", "ok".into())),
            Route::Ready => Ok(self.ready().await),
            Route::Token => self.auth.token(request.headers(), &self.registries).await,
            Route::Base => Ok(text("application/json", "{}".into())),
            Route::Catalog => catalog::answer(&self.content, query, self.catalog_max_entries).await,
            Route::Manifest(repository, reference) => {
                let through = through.as_ref();
                manifest::answer(&self.manifests, through, repository, reference, &conditions).await
            }
            Route::Blob(repository, digest) => {
                let through = through.as_deref();
                blob::answer(&self.content, through, &repository, &digest, &conditions).await
            }
            Route::Referrers(repository, subject) => {
                let through = through.as_ref();
                referrers::answer(&self.manifests, through, &repository, &subject, query).await
            }
            Route::Tags(repository) => {
                tags::answer(&self.content, through.as_ref(), &repository, query).await
            }
        }
    }

    /// Whether a balancer should send requests here. A directory in trouble alone is no reason not
    /// to, as long as there is an upstream: it may be the same on every node, and then this would
    /// turn slow answers into none.
    async fn ready(&self) -> Response {
        match (self.content.probe().await, self.registries.all().is_empty()) {
            (Ok(()), _) => text("text/plain", "ready".into()),
            (Err(error), false) => {
                let reason = format!("ready, from the upstream alone: the directory: {error}");
                text("text/plain", reason.into())
            }
            (Err(error), true) => {
                let reason = format!("not ready: the directory: {error}");
                let mut response = text("text/plain", reason.into());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        }
    }

    /// Reads files again that have changed.
    pub fn refresh(&self) {
        self.auth.refresh();
    }

    /// Waits until no pull runs.
    pub async fn finished(&self) {
        for through in self.registries.all() {
            through.pulls.finished().await;
        }
    }

    /// Lets a client in who may have what it asks for. Gives where the misses of the repository are
    /// pulled from, with what proved that it may.
    async fn let_in(
        &self,
        headers: &HeaderMap,
        route: &Route,
    ) -> Result<Option<Arc<PullThrough>>, Error> {
        let need = need(route);
        let through = match &need {
            Need::Pull { repository, .. } => self.registries.of(repository),
            Need::Nothing | Need::Login | Need::Catalog => None,
        };
        let grant = self.auth.check(headers, &need, through).await?;
        Ok(match (grant, through) {
            (Grant::Client(upstream), Some(through)) => {
                Some(Arc::new(PullThrough { upstream, ..PullThrough::clone(through) }))
            }
            (_, through) => through.cloned(),
        })
    }

    /// The same request, with the repository's name as the directory has it.
    fn resolve<B>(&self, route: Route, request: &Request<B>) -> Result<Route, Error> {
        let uri = request.uri();
        let namespace = parameter(uri.query().unwrap_or_default(), "ns");
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        // HTTP/2 has it in the URI.
        let host = host.or_else(|| uri.authority().map(Authority::as_str));
        let chooser = Chooser { namespace: namespace.as_deref(), host };
        let resolve = |name| self.registries.resolve(&name, chooser);
        Ok(match route {
            Route::Health | Route::Ready | Route::Base | Route::Token | Route::Catalog => route,
            Route::Manifest(name, reference) => Route::Manifest(resolve(name)?, reference),
            Route::Blob(name, digest) => Route::Blob(resolve(name)?, digest),
            Route::Referrers(name, subject) => Route::Referrers(resolve(name)?, subject),
            Route::Tags(name) => Route::Tags(resolve(name)?),
        })
    }
}

/// What a client must be allowed for a route: every one is here, so that none is forgotten.
fn need(route: &Route) -> Need {
    let pull =
        |repository: &Repository, probe| Need::Pull { repository: repository.clone(), probe };
    match route {
        Route::Health | Route::Ready | Route::Token => Need::Nothing,
        Route::Base => Need::Login,
        Route::Catalog => Need::Catalog,
        Route::Manifest(repository, reference) => {
            pull(repository, format!("manifests/{reference}"))
        }
        Route::Blob(repository, digest) => pull(repository, format!("blobs/{digest}")),
        // A registry without lists of referrers still has what they refer to.
        Route::Referrers(repository, subject) => pull(repository, format!("manifests/{subject}")),
        Route::Tags(repository) => pull(repository, "tags/list?n=1".to_owned()),
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
