//! HTTP/2, by ALPN over TLS and by prior knowledge without.

use std::{fs::OpenOptions, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use futures_util::future::join_all;
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder_config::{Auth, Http, Outage, UpstreamAuth};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{serving::directory, support::*, tls};

const MIB: usize = 1 << 20;

/// A client on one connection.
#[derive(Clone)]
pub struct Client(SendRequest<Body>);

impl Client {
    async fn over(stream: impl Read + Write + Unpin + Send + 'static) -> Self {
        let handshake = Builder::new(TokioExecutor::new()).handshake(stream).await;
        let (sender, connection) = handshake.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn plain(shim: &Shim) -> Self {
        Self::over(TokioIo::new(TcpStream::connect(&shim.address).await.unwrap())).await
    }

    async fn encrypted(shim: &Shim) -> Self {
        let mut config = tls::client_config(shim.root.path(), true);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = tls::connect(shim, config).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Self::over(TokioIo::new(stream)).await
    }

    pub async fn send(&self, method: Method, path: &str, range: &str) -> hyper::Response<Incoming> {
        let request = Request::builder().method(method).uri(format!("http://localhost/v2/{path}"));
        let request = request.header("range", range).body(Body::empty()).unwrap();
        timeout(PATIENCE, self.0.clone().send_request(request)).await.unwrap().unwrap()
    }

    async fn ask(&self, method: Method, path: &str, range: &str) -> (StatusCode, HeaderMap, Bytes) {
        let (parts, body) = self.send(method, path, range).await.into_parts();
        let body = timeout(PATIENCE, to_bytes(Body::new(body), usize::MAX)).await.unwrap();
        (parts.status, parts.headers, body.unwrap())
    }
}

/// The same directory with HTTP/2 in both ways.
async fn both(root: &Arc<TempDir>) -> [(Shim, Client); 2] {
    let (encrypted, _) = tls::with_tls(root).await;
    let mut config = config(None);
    config.http = Http { h2c: true, ..config.http };
    let plain = Shim::with(config, Arc::clone(root)).await;
    let clients = (Client::encrypted(&encrypted).await, Client::plain(&plain).await);
    [(encrypted, clients.0), (plain, clients.1)]
}

/// Guarantee 1: bytes served under a digest hash to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_ranges_and_errors_come_over_http2_as_over_http1() {
    let content = noise(9 * MIB + 5, 1);
    let (root, digest) = directory(&content);
    let path = format!("a/blobs/{digest}");
    for (shim, client) in both(&root).await {
        let whole = join_all((0..8).map(async |_| {
            let (status, headers, body) = client.ask(Method::GET, &path, "").await;
            (status, headers["content-length"] == *content.len().to_string(), body == content)
        }));
        let one = client.ask(Method::GET, &path, "bytes=1048570-2097160").await;
        assert_eq!(
            (one.0, one.2),
            (StatusCode::PARTIAL_CONTENT, content.slice(1_048_570..2_097_161))
        );
        let (status, headers, body) = client.ask(Method::GET, &path, "bytes=5-5, -1").await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(headers["content-length"], *body.len().to_string());
        assert!(body.ends_with(b"--\r\n"));
        assert_eq!(whole.await, vec![(StatusCode::OK, true, true); 8]);

        let (_, headers, body) = client.ask(Method::HEAD, &path, "").await;
        assert_eq!(headers["content-length"], *content.len().to_string());
        assert!(body.is_empty());
        for method in [Method::GET, Method::HEAD] {
            let (status, headers, body) = client.ask(method.clone(), "A/tags/list", "").await;
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(headers.contains_key("content-length"));
            assert_eq!(body.is_empty(), method == Method::HEAD);
        }
        let (status, _, body) = client.ask(Method::PUT, "a/manifests/latest", "").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(body.starts_with(b"{\"errors\":"));
        // HTTP/1.1 is still spoken on the same port.
        drop(shim.root);
    }
}

/// Guarantee 1: … or the transfer ends in an error. Other answers on the connection go on.
#[tokio::test]
async fn a_file_that_shrinks_cuts_its_own_answer_only() {
    let content = noise(20 * MIB, 2);
    let (root, digest) = directory(&content);
    let path = format!("a/blobs/{digest}");
    let blob = root.path().join("blobs/sha256").join(digest.hex());
    for (_shim, client) in both(&root).await {
        std::fs::write(&blob, &content).unwrap();
        let answer = client.send(Method::GET, &path, "").await;
        OpenOptions::new().write(true).open(&blob).unwrap().set_len(10 * MIB as u64).unwrap();
        let body = timeout(PATIENCE, to_bytes(Body::new(answer.into_body()), usize::MAX)).await;
        assert!(body.unwrap().is_err());
        let (status, _, body) = client.ask(Method::GET, &path, "bytes=0-9").await;
        assert_eq!((status, body), (StatusCode::PARTIAL_CONTENT, content.slice(..10)));
    }
}

#[tokio::test]
async fn http2_is_spoken_only_where_it_may_be() {
    let (root, _) = directory(b"x");
    let (tls, client) = tls::certify(&root);
    let shim = tls::start(&root, tls, false).await;
    let mut config = tls::client_config(root.path(), true);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = tls::connect(&shim, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(client.get(&shim.url).send().await.unwrap().status(), StatusCode::OK);

    let shim = Shim::over(root, None).await;
    let mut stream = TcpStream::connect(&shim.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(!answer.starts_with(b"\0"), "{answer:?}");
}

#[tokio::test]
async fn with_h2c_clients_of_http1_are_served_as_before() {
    let (root, _) = directory(b"x");
    let [_, (shim, _)] = both(&root).await;
    assert_eq!(shim.get("").await.text().await.unwrap(), "{}");
    // A method that begins like HTTP/2, and a TLS handshake.
    for (request, expected) in [
        (&b"P"[..], &b"HTTP/1.1 400"[..]),
        (b"PRIVATE / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"HTTP/1.1 405"),
        (b"\x16\x03\x01", b"HTTP/1.1 400"),
    ] {
        let mut stream = TcpStream::connect(&shim.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        if request == b"P" {
            stream.write_all(b"\x16").await.unwrap();
        }
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.starts_with(expected), "{answer:?}");
    }
}

/// HTTP/2 has `:authority` where HTTP/1.1 has `Host` (RFC 9113, section 8.3.1).
#[tokio::test]
async fn a_client_is_sent_for_a_token_to_the_host_that_it_asked() {
    let upstream = Upstream::start().await;
    let auth = UpstreamAuth { ttl: PATIENCE, outage: Outage::Deny, secret: None, realm: None };
    let mut config = config(Some(upstreams(&[upstream.url()])));
    config.auth = Some(Auth::Upstream(auth));
    config.http = Http { h2c: true, ..config.http };
    let shim = Shim::with(config, Arc::new(TempDir::new().unwrap())).await;
    let (status, headers, _) = Client::plain(&shim).await.ask(Method::GET, "", "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let challenge = headers["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("realm=\"http://localhost/token\""), "{challenge}");
}

/// CVE-2023-44487: requests that are cancelled at once cost a client nothing and a server much.
#[tokio::test]
async fn a_flood_of_cancelled_requests_ends_its_connection() {
    let (root, digest) = directory(&noise(MIB, 3));
    let [_, (shim, other)] = both(&root).await;
    let mut stream = TcpStream::connect(&shim.address).await.unwrap();
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1..200_001_u32).step_by(2) {
        // GET http / with indexed headers, and RST_STREAM with CANCEL.
        flood
            .extend(b"\0\0\x03\x01\x05".iter().chain(&stream.to_be_bytes()).chain(b"\x82\x86\x84"));
        flood.extend(b"\0\0\x04\x03\0".iter().chain(&stream.to_be_bytes()).chain(b"\0\0\0\x08"));
    }
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let (_, end) = tokio::join!(write.write_all(&flood), async {
        timeout(PATIENCE, read.read_to_end(&mut answer)).await.unwrap()
    });
    // A GOAWAY that says ENHANCE_YOUR_CALM, unless a reset comes before it.
    let goaway = answer.windows(17).any(|frame| frame[3] == 7 && frame[13..] == [0, 0, 0, 11]);
    assert!(goaway || end.is_err(), "{} bytes", answer.len());
    let (status, ..) = other.ask(Method::GET, &format!("a/blobs/{digest}"), "").await;
    assert_eq!(status, StatusCode::OK);
}

/// HTTP/2 has the host elsewhere than HTTP/1.1, and a challenge must send clients to it all the same.
#[tokio::test]
async fn a_client_is_sent_to_the_host_that_it_asked() {
    let (ttl, outage) = (Duration::ZERO, Outage::Deny);
    let auth = Auth::Upstream(UpstreamAuth { ttl, outage, secret: None, realm: None });
    let mut config = config(Some(upstreams(&["http://127.0.0.1:1".to_owned()])));
    config.http = Http { h2c: true, ..config.http };
    config.auth = Some(auth);
    let shim = Shim::with(config, Arc::new(TempDir::new().unwrap())).await;
    let (status, headers, _) = Client::plain(&shim).await.ask(Method::GET, "", "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let challenge = r#"Bearer realm="http://localhost/token",service="larder""#;
    assert_eq!(headers["www-authenticate"], challenge);
}
