//! The parts of the registry, and which request goes to which.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request,
    header::{self, HeaderValue},
    http::uri::Authority,
};
use larder_config::Config;
use larder_layout::{Reference, Repository, Tag};

use crate::{
    answer::{Conditions, Response},
    auth::{Auth, Client, Grant, Need, Probe, shown},
    blob,
    body::Body,
    catalog,
    content::Content,
    error::Error,
    flights::Flights,
    freshness::Freshness,
    manifest::{self, Kept, Manifest},
    node::Node,
    pull::Pulls,
    ready::Readiness,
    referrers::{self, ReferrersFlights},
    registries::{Chooser, Registries},
    routes::Route,
    sightings::Sightings,
    tags::{self, TagLists},
    upstream::{ManifestHead, Upstream, UpstreamMistake},
    via::Via,
};

/// The longest request line that is read: the longest name and digest fit several times.
const URL_MAX_BYTES: usize = 4096;

/// The registry.
pub struct Shim {
    /// The directory.
    pub content: Content,
    /// Its manifests.
    pub manifests: Kept,
    /// What this cache calls itself to upstreams that may be caches too.
    via: Via,
    /// Who may see what.
    auth: Auth,
    /// Where misses are pulled from; without any, only the directory is served.
    registries: Registries,
    /// How many repositories one answer lists at most.
    catalog_max_entries: usize,
    readiness: Readiness,
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
    /// When it need not be asked about a tag.
    pub freshness: Arc<Freshness>,
}

impl PullThrough {
    /// The same, with the upstream asked as somebody else.
    fn asked_as(&self, upstream: Arc<Upstream>) -> Arc<Self> {
        Arc::new(Self { upstream, ..self.clone() })
    }
}

impl Shim {
    /// The registry over a directory.
    ///
    /// # Errors
    /// What the configuration says of the upstream cannot work.
    pub fn new(
        content: Content,
        auth: Auth,
        config: &Config,
        node: Option<Arc<Node>>,
    ) -> Result<Self, UpstreamMistake> {
        let (via, mut registries) = (Via::default(), Registries::default());
        let first = via.of(&HeaderMap::new()).unwrap_or(HeaderValue::from_static("1.1 larder"));
        let freshness = Arc::new(Freshness::new(&config.tags));
        for config in &config.upstreams {
            let through = PullThrough {
                upstream: Arc::new(Upstream::new(config, first.clone())?),
                pulls: Pulls::new(content.clone(), node.clone()),
                manifests: Flights::new(),
                tags: Flights::new(),
                sightings: Arc::default(),
                referrers: Flights::new(),
                tag_lists: Arc::default(),
                freshness: Arc::clone(&freshness),
            };
            let names: Vec<_> = config.key.iter().chain(&config.hosts).cloned().collect();
            registries.add(through, &names, config.is_default);
        }
        Ok(Self {
            manifests: Kept::new(content.clone()),
            content,
            via,
            auth,
            registries,
            catalog_max_entries: config.catalog_max_entries,
            readiness: Readiness::default(),
        })
    }

    /// Answers a request. What takes its time is boxed: each request would else move, some times over,
    /// the kilobytes that only the longest way of them needs.
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
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        // HTTP/2 has it in the URI.
        let host = host.or_else(|| uri.authority().map(Authority::as_str));
        let client = Client { headers: request.headers(), host };
        let (route, through) = self.let_in(client, Route::parse(uri.path())?, query).await?;
        let conditions = Conditions::of(method, request.headers());
        match route {
            Route::Health => Ok(text("text/plain", "ok".into())),
            Route::Ready => {
                Ok(Box::pin(self.readiness.answer(&self.content, &self.registries)).await)
            }
            Route::Token => Box::pin(self.auth.token(client, &self.registries)).await,
            Route::Base => Ok(text("application/json", "{}".into())),
            Route::Lease(digest) => {
                let shown = shown(request.headers(), "bearer").unwrap_or_default();
                let pulls = self.registries.all().iter().map(|through| &*through.pulls);
                Box::pin(blob::answer_node(pulls, shown, &digest, &conditions)).await
            }
            Route::Catalog => {
                let max_entries = self.catalog_max_entries;
                Box::pin(catalog::answer(&self.content, query, max_entries)).await
            }
            Route::Manifest(repository, reference) => {
                let through = through.as_ref();
                manifest::answer(&self.manifests, through, repository, reference, &conditions).await
            }
            Route::Blob(repository, digest) => {
                let through = through.as_deref();
                let answer =
                    blob::answer(&self.content, through, &repository, &digest, &conditions);
                Box::pin(answer).await
            }
            Route::Referrers(repository, subject) => {
                let through = through.as_ref();
                let answer =
                    referrers::answer(&self.manifests, through, &repository, &subject, query);
                Box::pin(answer).await
            }
            Route::Tags(repository) => {
                let through = through.as_ref();
                let answer = tags::answer(&self.content, through, &repository, uri.path(), query);
                Box::pin(answer).await
            }
        }
    }

    /// Begins to send no more requests here, and tells how long it takes until they are sent elsewhere.
    pub fn drain(&self) -> Duration {
        self.readiness.drain()
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

    /// Lets a client in who may have what it asks for. Gives the same route with the repository's name
    /// as the directory has it, and where the misses of the repository are pulled from, with what
    /// proved that the client may.
    async fn let_in(
        &self,
        client: Client<'_>,
        route: Route,
        query: &str,
    ) -> Result<(Route, Option<Arc<PullThrough>>), Error> {
        let namespace = parameter(query, "ns");
        let chooser = Chooser { namespace: namespace.as_deref(), host: client.host };
        let route = match self.resolve(route, chooser) {
            Ok(route) => route,
            Err(unknown) => {
                // What there is not is told to those who could be told what there is.
                self.auth.check(client, Need::Login, None).await?;
                return Err(unknown);
            }
        };
        let need = need(&route);
        let through = match need {
            Need::Pull { repository, .. } => self.registries.of(repository),
            Need::Nothing | Need::Login | Need::Catalog => None,
        };
        // Another cache's request tells the upstream so.
        let via = match client.headers.contains_key(header::VIA) {
            true => Some(self.via.of(client.headers)?),
            false => None,
        };
        let through = through.map(|through| match &via {
            Some(via) => through.asked_as(through.upstream.via(via)),
            None => Arc::clone(through),
        });
        let through = match (self.auth.check(client, need, through.as_ref()).await?, through) {
            (Grant::Client(upstream), Some(through)) => Some(through.asked_as(upstream)),
            (_, through) => through,
        };
        Ok((route, through))
    }

    /// The same request, with the repository's name as the directory has it.
    fn resolve(&self, route: Route, chooser: Chooser<'_>) -> Result<Route, Error> {
        let resolve = |name| self.registries.resolve(&name, chooser);
        Ok(match route {
            Route::Health | Route::Ready | Route::Base => route,
            Route::Token | Route::Lease(_) | Route::Catalog => route,
            Route::Manifest(name, reference) => Route::Manifest(resolve(name)?, reference),
            Route::Blob(name, digest) => Route::Blob(resolve(name)?, digest),
            Route::Referrers(name, subject) => Route::Referrers(resolve(name)?, subject),
            Route::Tags(name) => Route::Tags(resolve(name)?),
        })
    }
}

/// What a client must be allowed for a route: every one is here, so that none is forgotten.
fn need(route: &Route) -> Need<'_> {
    let (repository, probe) = match route {
        // What a node has to show is in the lease, and is looked at with it.
        Route::Health | Route::Ready | Route::Token | Route::Lease(_) => return Need::Nothing,
        Route::Base => return Need::Login,
        Route::Catalog => return Need::Catalog,
        Route::Manifest(repository, reference) => (repository, Probe::Manifest(reference)),
        Route::Blob(repository, digest) => (repository, Probe::Blob(digest)),
        // A registry without lists of referrers still has what they refer to.
        Route::Referrers(repository, subject) => (repository, Probe::Subject(subject)),
        Route::Tags(repository) => (repository, Probe::Tags),
    };
    Need::Pull { repository, probe }
}

/// The value of a parameter of the query.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    let mut parameters = url::form_urlencoded::parse(query.as_bytes());
    parameters.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// A small answer.
pub fn text(media_type: &'static str, content: Bytes) -> Response {
    let mut response = Response::new(Body::Memory(content));
    let media_type = HeaderValue::from_static(media_type);
    response.headers.insert(header::CONTENT_TYPE, media_type);
    response
}
