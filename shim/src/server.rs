//! The listener, its connections, and their end.
//!
//! hyper is used as it is and not through `axum::serve`, which knows no time-out for the headers
//! of a request: a client that never ends them would keep its connection for ever.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response,
    body::{Body, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use larder_config::{Config, Http};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tracing::Instrument;

use crate::{
    access::{Followed, Line},
    answer,
    auth::{Auth, AuthMistake},
    body::Outgoing,
    connection::{Connection, Security},
    content::Content,
    node::Node,
    outbox::Outbox,
    pulse::Pulse,
    shim::Shim,
    tls::{Reloaded, TlsMistake},
    upstream::UpstreamMistake,
    watched::LOOK_INTERVAL,
    workers::Workers,
};

/// How many clients may be connected; others wait in the listener's queue.
const CONNECTIONS_MAX: u64 = 8192;
/// What else needs descriptors: pulls, their files, and the event loops.
const DESCRIPTORS_RESERVED: u64 = 64;
/// The pause after `accept` failed, which it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The registry, ready to be served.
pub struct Server {
    pub(crate) registry: Arc<Registry>,
    tls: Option<Arc<Reloaded>>,
    h2c: bool,
    drain_timeout: Duration,
}

/// What every connection shares.
pub struct Registry {
    /// What answers.
    pub shim: Shim,
    /// On every answer.
    headers: HeaderMap,
}

/// Something that the operator has to change before the registry can start.
#[derive(Debug, thiserror::Error)]
pub enum Mistake {
    /// Of the upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamMistake),
    /// Of who may see what.
    #[error(transparent)]
    Auth(#[from] AuthMistake),
    /// Of TLS.
    #[error(transparent)]
    Tls(#[from] TlsMistake),
    /// Of a header.
    #[error("http.headers: {0:?} with this value is no header")]
    Header(String),
    /// Of the directory.
    #[error("--root {0}: there is no such directory")]
    Root(PathBuf),
}

impl Server {
    /// The registry that `config` describes, over the directory `root`. Nothing is bound yet.
    ///
    /// # Errors
    /// What cannot work. A directory in trouble is none of that: it may heal.
    pub async fn new(config: &Config, root: &Path) -> Result<Self, Mistake> {
        let headers = headers(&config.http)?;
        let tls = config.http.tls.clone().map(|tls| Reloaded::new(tls, config.http.http2));
        let tls = tls.transpose()?.map(Arc::new);
        let content = Content::new(root);
        match content.prepare().await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Mistake::Root(root.to_owned()));
            }
            Err(error) => tracing::warn!(%error, "starting with the directory in trouble"),
        }
        let auth = Auth::new(config.auth.as_ref(), config.http.tls.is_some())?;
        let node = Node::new(config, tls.as_ref()).map(Arc::new);
        let shim = Shim::new(content, auth, config, node)?;
        let registry = Arc::new(Registry { shim, headers });
        let Http { h2c, drain_timeout, .. } = config.http;
        Ok(Self { registry, tls, h2c, drain_timeout })
    }

    /// Serves until `shutdown`, then lets what runs go on for at most `http.draintimeout`. Whoever
    /// asks for readiness is told first, and has some seconds to send requests elsewhere.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let (drain, draining) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut workers = match Workers::start() {
            Ok(workers) => workers,
            Err(error) => return tracing::error!(%error, "no thread can be started"),
        };
        let connections_max = connections_max();
        let mut look = interval(LOOK_INTERVAL);
        let shim = &self.registry.shim;
        let ended = async {
            shutdown.await;
            let notice = shim.drain();
            tracing::info!(?notice, "draining");
            sleep(notice).await;
        };
        tokio::pin!(ended);
        loop {
            let has_room = connections.len() < connections_max;
            tokio::select! {
                () = &mut ended => break,
                Some(_) = connections.join_next() => {}
                _ = look.tick() => {
                    self.tls.iter().for_each(|tls| tls.refresh());
                    shim.refresh();
                }
                accepted = accept(&listener), if has_room => match accepted {
                    Ok((stream, client)) => {
                        let security = match &self.tls {
                            Some(tls) => Security::Tls(tls.acceptor()),
                            None => Security::Plain { h2c: self.h2c },
                        };
                        let registry = Arc::clone(&self.registry);
                        let connection = Connection { registry, client, draining: draining.clone() };
                        connections.spawn_on(connection.run(stream, security), workers.next());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        tracing::info!(connections = connections.len(), "no longer listening");
        drain.send_replace(true);
        let drained = timeout(self.drain_timeout, async {
            while connections.join_next().await.is_some() {}
            shim.finished().await;
        });
        if drained.await.is_err() {
            tracing::warn!("http.draintimeout is over: what still runs is cut");
        }
    }
}

impl Registry {
    /// Answers one request. Files go through the `outbox` if the connection has one.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
        outbox: Option<&Arc<Outbox>>,
        pulse: &Arc<Pulse>,
    ) -> Response<Followed> {
        let _awaited = pulse.request();
        let line = Line::of(&request, client);
        // Awaited where it is made: a future that has a name first is in memory twice.
        let answer = self.shim.answer(&request).instrument(line.span()).await;
        let answer = answer.unwrap_or_else(answer::Response::from);
        let mut response = Response::new(answer.body.send(outbox, self.shim.content.calls()));
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        for (name, value) in &self.headers {
            response.headers_mut().append(name, value.clone());
        }
        if request.method() == Method::HEAD {
            leave_body_out(&mut response);
        }
        line.follow(response, answer.source, Arc::clone(pulse))
    }
}

/// As many as there are descriptors for, once the process has all that it may have: each connection
/// is one, and may need another for its blob. A blob that cannot be opened for the want of one
/// would seem to be trouble with the storage.
fn connections_max() -> usize {
    let of_process = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        Ok(most)
    });
    let descriptors = of_process.unwrap_or(CONNECTIONS_MAX);
    let connections =
        (descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 2).clamp(1, CONNECTIONS_MAX);
    if connections < CONNECTIONS_MAX {
        tracing::warn!(
            descriptors,
            connections,
            "so many clients are served at once; for more, raise the limit of open files (ulimit -n)"
        );
    }
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// A connection, to be served by whichever worker.
async fn accept(listener: &TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let (socket, client) = listener.accept().await?;
    Ok((socket.into_std()?, client))
}

/// `HEAD` is `GET` without a body, in HTTP/2 too, where hyper would send it.
fn leave_body_out(response: &mut Response<Outgoing>) {
    // What handlers have left out already has another length than this.
    let length = response.body().size_hint().exact().filter(|length| *length > 0);
    if let Some(length) = length {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
    *response.body_mut() = Outgoing::Memory(Bytes::new());
}

/// `http.headers`, and the one by which docker tells a registry.
fn headers(config: &Http) -> Result<HeaderMap, Mistake> {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let mistake = || Mistake::Header(name.clone());
        let header: HeaderName = name.parse().map_err(|_| mistake())?;
        headers.append(header, HeaderValue::from_str(value).map_err(|_| mistake())?);
    }
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    Ok(headers)
}
