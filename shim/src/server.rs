//! The listener, its connections, and their end.
//!
//! hyper is used as it is and not through `axum::serve`, which knows no time-out for the headers
//! of a request: a client that never ends them would keep its connection for ever.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use larder_config::{Config, Http};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    access::{Followed, Line},
    auth::{Auth, AuthMistake},
    content::Content,
    outbox::Outbox,
    shim::Shim,
    stream::{Socket, Stream},
    tls::{LOOK_INTERVAL, Reloaded, TlsMistake},
    upstream::UpstreamMistake,
    workers::Workers,
};

/// How many clients may be connected; others wait in the listener's queue.
const CONNECTIONS_MAX: usize = 8192;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the headers of a request may take, and the next request of a connection.
const HEADERS_DEADLINE: Duration = Duration::from_secs(60);
/// How long a client may take no byte of what was sent. The kernel then ends the connection.
const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// The largest head of a request.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// The pause after `accept` failed, which it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The registry, ready to be served.
pub struct Server {
    registry: Arc<Registry>,
    tls: Option<Reloaded>,
    drain_timeout: Duration,
}

/// What every connection shares.
struct Registry {
    shim: Shim,
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
        let tls = config.http.tls.clone().map(Reloaded::new).transpose()?;
        let content = Content::new(root);
        match content.prepare().await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Mistake::Root(root.to_owned()));
            }
            Err(error) => tracing::warn!(%error, "starting with the directory in trouble"),
        }
        let auth = Auth::new(config.auth.as_ref(), config.http.tls.is_some())?;
        let shim = Shim::new(content, auth, &config.upstreams)?;
        let registry = Arc::new(Registry { shim, headers });
        Ok(Self { registry, tls, drain_timeout: config.http.drain_timeout })
    }

    /// Serves until `shutdown`, then lets what runs go on for at most `http.draintimeout`.
    pub async fn run(mut self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let mut workers = match Workers::start() {
            Ok(workers) => workers,
            Err(error) => return tracing::error!(%error, "no thread can be started"),
        };
        let mut look = interval(LOOK_INTERVAL);
        tokio::pin!(shutdown);
        loop {
            let has_room = connections.len() < CONNECTIONS_MAX;
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                _ = look.tick() => {
                    self.tls.iter_mut().for_each(Reloaded::refresh);
                    self.registry.shim.refresh();
                }
                accepted = accept(&listener), if has_room => match accepted {
                    Ok((stream, client)) => {
                        let registry = Arc::clone(&self.registry);
                        let tls = self.tls.as_ref().map(Reloaded::acceptor);
                        let watcher = graceful.watcher();
                        let connection = registry.connect(stream, client, tls, watcher);
                        connections.spawn_on(connection, workers.next());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        tracing::info!(connections = connections.len(), "draining");
        let drained = timeout(self.drain_timeout, async {
            graceful.shutdown().await;
            self.registry.shim.finished().await;
        });
        if drained.await.is_err() {
            tracing::warn!("http.draintimeout is over: what still runs is cut");
        }
    }
}

impl Registry {
    /// One connection, from its handshake to its end. A client that stalls stalls only this.
    async fn connect(
        self: Arc<Self>,
        socket: std::net::TcpStream,
        client: SocketAddr,
        tls: Option<TlsAcceptor>,
        watcher: Watcher,
    ) {
        let socket = match prepare(socket) {
            Ok(socket) => socket,
            Err(error) => {
                return tracing::debug!(%client, %error, "a connection ended before it began");
            }
        };
        let socket = Socket(Arc::new(socket));
        let (outbox, calls) = (Arc::default(), self.shim.content.calls().clone());
        let stream = match tls {
            None => Stream::plain(socket, Arc::clone(&outbox), calls),
            Some(tls) => match timeout(HANDSHAKE_DEADLINE, tls.accept(socket)).await {
                Ok(Ok(stream)) => Stream::tls(stream, Arc::clone(&outbox), calls),
                Ok(Err(error)) => {
                    return tracing::debug!(%client, %error, "a TLS handshake failed");
                }
                Err(_) => return tracing::debug!(%client, "a TLS handshake took too long"),
            },
        };
        self.serve(stream, outbox, client, watcher).await;
    }

    async fn serve(
        self: Arc<Self>,
        stream: Stream,
        outbox: Arc<Outbox>,
        client: SocketAddr,
        watcher: Watcher,
    ) {
        let service = service_fn(move |request| {
            let (registry, outbox) = (Arc::clone(&self), Arc::clone(&outbox));
            async move { Ok::<_, Infallible>(registry.answer(request, client, &outbox).await) }
        });
        // hyper answers what is no HTTP with 400 and closes: docker and podman try TLS first.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_DEADLINE)
            .max_buf_size(HEAD_MAX_BYTES)
            // Markers must reach the stream as they are.
            .writev(true)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%client, %error, "a connection broke off");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
        outbox: &Arc<Outbox>,
    ) -> Response<Followed> {
        let line = Line::of(&request, client);
        let mut response = self.shim.answer(&request).await.unwrap_or_else(Into::into);
        for (name, value) in &self.headers {
            response.headers_mut().append(name, value.clone());
        }
        let calls = self.shim.content.calls();
        line.follow(response.map(|body| body.send(Some(outbox), calls)))
    }
}

/// A connection, to be served by whichever worker.
async fn accept(listener: &TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let (socket, client) = listener.accept().await?;
    Ok((socket.into_std()?, client))
}

fn prepare(socket: std::net::TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_user_timeout(Some(STALL_DEADLINE))?;
    TcpStream::from_std(socket)
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
