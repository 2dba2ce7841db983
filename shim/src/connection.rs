//! One connection, from its handshake to its end.

use std::{
    convert::Infallible,
    fmt::Display,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::TlsAcceptor;

use crate::{
    outbox::Outbox,
    pulse::Pulse,
    server::Registry,
    stream::{Socket, Stream},
    tls::HTTP2,
};

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the headers of a request may take, and the next request of a connection.
const HEADERS_DEADLINE: Duration = Duration::from_secs(60);
/// How long a client may take no byte of what was sent. The kernel then ends the connection.
const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// How long a connection that gets nowhere has to end by itself, once that was asked of it.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(5);
/// The largest head of a request.
const HEAD_MAX_BYTES: u32 = 64 << 10;
/// How HTTP/2 without TLS begins (RFC 9113, section 3.4). No method is called that.
const PREFACE: [u8; 4] = *b"PRI ";

/// HTTP/2: how many requests may run at once. Each may hold some MiB of a blob on its way, and
/// Go's client, which all of these are, opens another connection for more.
const STREAMS_MAX: u32 = 64;
/// HTTP/2: how many requests a client may cancel before they were looked at, and how many
/// malformed ones it may send. A flood of either costs it next to nothing.
const RESETS_MAX: usize = 64;
/// HTTP/2: how much of the bodies of requests is taken, the least there is. None has a use for one.
const WINDOW_BYTES: u32 = 65_535;

/// A connection to be served.
pub struct Connection {
    /// What answers.
    pub registry: Arc<Registry>,
    /// Who asks.
    pub client: SocketAddr,
    /// Becomes true when no more requests are to be taken.
    pub draining: watch::Receiver<bool>,
}

/// How a connection is protected.
pub enum Security {
    /// Not at all.
    Plain {
        /// It may be HTTP/2, if it begins so.
        h2c: bool,
    },
    /// By TLS, whose handshake says whether it is HTTP/2.
    Tls(TlsAcceptor),
}

/// A connection behind its handshake.
struct Open {
    socket: Socket,
    stream: Stream,
    outbox: Arc<Outbox>,
    is_http2: bool,
}

impl Connection {
    /// Serves it to its end. A client that stalls stalls only this.
    pub async fn run(self, socket: std::net::TcpStream, security: Security) {
        let client = self.client;
        match timeout(HANDSHAKE_DEADLINE, self.open(socket, security)).await {
            Ok(Ok(open)) => self.serve(open).await,
            Ok(Err(error)) => tracing::debug!(%client, %error, "a connection had no beginning"),
            Err(_) => tracing::debug!(%client, "a handshake took too long"),
        }
    }

    async fn open(&self, socket: std::net::TcpStream, security: Security) -> io::Result<Open> {
        let socket = Socket(Arc::new(prepare(socket)?));
        let (outbox, calls) = (Arc::default(), self.registry.shim.content.calls().clone());
        let (stream, is_http2) = match security {
            Security::Plain { h2c } => {
                let is_http2 = h2c && begins_as_http2(&socket.0).await?;
                (Stream::plain(socket.clone(), Arc::clone(&outbox), calls), is_http2)
            }
            Security::Tls(tls) => {
                let tls = tls.accept(socket.clone()).await?;
                let is_http2 = tls.get_ref().1.alpn_protocol() == Some(HTTP2);
                (Stream::tls(tls, Arc::clone(&outbox), calls), is_http2)
            }
        };
        Ok(Open { socket, stream, outbox, is_http2 })
    }

    async fn serve(self, open: Open) {
        let Open { socket, stream, outbox, is_http2 } = open;
        let pulse = Arc::<Pulse>::default();
        let (registry, client) = (Arc::clone(&self.registry), self.client);
        // Answers of HTTP/2 come interleaved, in frames that hyper makes of memory.
        let outbox = (!is_http2).then_some(outbox);
        let of_requests = Arc::clone(&pulse);
        let service = service_fn(move |request| {
            let (registry, outbox) = (Arc::clone(&registry), outbox.clone());
            let pulse = Arc::clone(&of_requests);
            async move {
                Ok::<_, Infallible>(registry.answer(request, client, outbox.as_ref(), &pulse).await)
            }
        });
        let stopped = async { pulse.stopped(|| socket.taken_bytes()).await };
        let stream = TokioIo::new(stream);
        if is_http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .max_pending_accept_reset_streams(RESETS_MAX)
                .max_local_error_reset_streams(RESETS_MAX)
                .max_header_list_size(HEAD_MAX_BYTES)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .serve_connection(stream, service);
            self.drive(connection, http2::Connection::graceful_shutdown, stopped).await;
        } else {
            // hyper answers what is no HTTP with 400 and closes: docker and podman try TLS first.
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_DEADLINE)
                .max_buf_size(HEAD_MAX_BYTES as usize)
                // Markers must reach the stream as they are.
                .writev(true)
                .serve_connection(stream, service);
            self.drive(connection, http1::Connection::graceful_shutdown, stopped).await;
        }
    }

    /// Drives a connection to its end, which begins when the server drains or it gets nowhere.
    async fn drive<C, E>(
        mut self,
        connection: C,
        begin_end: impl Fn(Pin<&mut C>),
        stopped: impl Future<Output = ()>,
    ) where
        C: Future<Output = Result<(), E>>,
        E: Display,
    {
        let client = self.client;
        let mut connection = pin!(connection);
        let drained = async {
            // An error says that the server is gone, which is no other.
            let _ = self.draining.wait_for(|draining| *draining).await;
        };
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = drained => {
                begin_end(connection.as_mut());
                Some(connection.await)
            }
            () = stopped => {
                begin_end(connection.as_mut());
                timeout(GOODBYE_DEADLINE, connection).await.ok()
            }
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%client, %error, "a connection broke off"),
            None => tracing::debug!(%client, "a connection that got nowhere is cut"),
        }
    }
}

fn prepare(socket: std::net::TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_user_timeout(Some(STALL_DEADLINE))?;
    TcpStream::from_std(socket)
}

/// Looks at the first bytes of a client, which has them all in its first packet, without taking them.
async fn begins_as_http2(socket: &TcpStream) -> io::Result<bool> {
    let mut first = PREFACE.map(|_| 0);
    let size = socket.peek(&mut first).await?;
    Ok(first[..size] == PREFACE)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use larder_config::Config;
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::Instant,
    };

    use super::*;
    use crate::server::Server;

    const SIZE_BYTES: u64 = 64 << 20;
    const BLOB: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    /// A registry over a directory with a large blob, which nobody will read to its end.
    async fn registry() -> (TempDir, Arc<Registry>) {
        let root = TempDir::new().unwrap();
        let layers = root.path().join("repositories/a/_layers/sha256");
        for directory in [&layers, &root.path().join("blobs/sha256")] {
            fs::create_dir_all(directory).unwrap();
        }
        let blob = format!("blobs/sha256/{}", &BLOB[7..]);
        fs::File::create(root.path().join(&blob)).unwrap().set_len(SIZE_BYTES).unwrap();
        std::os::unix::fs::symlink(format!("../../../../{blob}"), layers.join(&BLOB[7..])).unwrap();
        let config = root.path().join("config.yml");
        fs::write(&config, "version: 0.1\nstorage: filesystem\n").unwrap();
        let config = Config::load(&config, []).unwrap();
        let registry = Server::new(&config, root.path()).await.unwrap().registry;
        (root, registry)
    }

    /// Guarantee 6: nothing hangs, and every wait has a deadline.
    #[tokio::test(start_paused = true)]
    async fn clients_that_neither_ask_nor_take_lose_their_connection() {
        let (_root, registry) = registry().await;
        let get = format!("GET /v2/a/blobs/{BLOB} HTTP/1.1\r\nhost: x\r\n\r\n");
        let http2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        // Indexed `GET` and `http`, then the path as it is.
        let path = format!("/v2/a/blobs/{BLOB}");
        let head = format!("\x04{}{path}", char::from(u8::try_from(path.len()).unwrap()));
        let size = char::from(u8::try_from(head.len() + 2).unwrap());
        let mut get2 = http2.as_bytes().to_vec();
        get2.extend([0, 0, size as u8, 1, 5, 0, 0, 0, 1, 0x82, 0x86]);
        get2.extend(head.as_bytes());
        for (what, h2c, request, at_most_s) in [
            ("nothing", false, &b""[..], 60),
            ("nothing, with h2c", true, b"", 10),
            ("half a head", false, b"GET /v2/ HTTP/1.1\r\nhost:", 60),
            ("no second request", false, b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n", 60),
            ("a blob that is not read", false, get.as_bytes(), 200),
            ("HTTP/2 and no request", true, http2.as_bytes(), 200),
            ("a blob over HTTP/2 that is not read", true, &get2, 200),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (socket, address) = listener.accept().await.unwrap();
            let (_keep, draining) = watch::channel(false);
            let registry = Arc::clone(&registry);
            let connection = Connection { registry, client: address, draining };
            client.write_all(request).await.unwrap();
            let started = Instant::now();
            let run = connection.run(socket.into_std().unwrap(), Security::Plain { h2c });
            timeout(Duration::from_secs(3600), run).await.expect(what);
            let passed = started.elapsed();
            assert!(passed <= Duration::from_secs(at_most_s + 1), "{what}: {passed:?}");
            assert!(passed >= Duration::from_secs(9), "{what}: only {passed:?}");
            let mut received = Vec::new();
            let _ = client.read_to_end(&mut received).await;
            assert!((received.len() as u64) < SIZE_BYTES, "{what}");
            assert_eq!(received.len() > 10_000, what.starts_with("a blob"), "{what}");
        }
    }
}
