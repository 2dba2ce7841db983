//! What no client of a registry sends, and what it gets for it.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{requests::raw, serving::directory, support::*};

/// Whatever comes, the answer is an error or the right one, it comes at once, and the next client
/// is served.
#[tokio::test]
async fn hostile_requests_are_refused_at_once() {
    let (root, digest) = directory(b"content");
    let shim = Shim::over(root, None).await;
    let blob = format!("/v2/a/blobs/{digest}");
    let get = |path: &str, headers: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n").into_bytes()
    };
    let long = "x".repeat(1 << 20);
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let mut others = Vec::new();
    for (what, request, status) in [
        ("a long header", get("/v2/", &format!("x: {long}\r\n")), "431"),
        ("many headers", get("/v2/", &many), "431"),
        ("a very long URL", get(&format!("/v2/{long}"), ""), "431"),
        ("a URL that is longer than names are", get(&format!("/v2/{}", &long[..5000]), ""), "414"),
        ("a long query", get(&format!("/v2/?{}", &long[..5000]), ""), "414"),
        ("a name that is too long", get(&format!("/v2/{}/tags/list", &long[..256]), ""), "400"),
        ("a NUL", get("/v2/a\0/tags/list", ""), "400"),
        ("an escaped NUL", get("/v2/a%00/tags/list", ""), "400"),
        ("a digest with a path in it", get("/v2/a/blobs/sha256:../../../etc/passwd", ""), "404"),
        ("an escaped slash", get("/v2/a%2Fblobs/tags/list", ""), "400"),
        ("a backslash", get("/v2/a\\..\\b/tags/list", ""), "400"),
        (
            "bytes that are no text",
            b"GET /v2/\xff\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            "400",
        ),
        (
            "a tunnel",
            b"CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            "405",
        ),
        ("a star", b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), "405"),
        ("a header that is no text", get(&blob, "if-match: \x01\r\n"), "400"),
        ("a future version", b"GET /v2/ HTTP/9.9\r\nhost: x\r\n\r\n".to_vec(), "400"),
        ("two lengths", get("/v2/", "content-length: 1\r\ncontent-length: 2\r\n"), "400"),
        ("a length that is none", get("/v2/", "content-length: -1\r\n"), "400"),
        ("a blob that is said to come", get("/v2/", "content-length: 99999999999\r\n"), "200"),
        (
            "a push",
            b"PUT /v2/a/manifests/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
                .to_vec(),
            "405",
        ),
        (
            "a wrong expectation",
            get("/v2/", "expect: 100-continue\r\ncontent-length: 9\r\n"),
            "200",
        ),
    ] {
        let answer = raw(&shim, &request).await;
        let line = String::from_utf8_lossy(&answer[..answer.len().min(20)]).into_owned();
        if !line.starts_with(&format!("HTTP/1.1 {status} ")) {
            others.push((what, line));
        }
    }
    assert_eq!(others, []);
    assert_eq!(shim.get(&format!("a/blobs/{digest}")).await.text().await.unwrap(), "content");
}

/// What lies behind a request is its body, if it says so, and never a request of its own (RFC 9112,
/// section 11.2).
#[tokio::test]
async fn no_request_is_smuggled_in_the_body_of_another() {
    let shim = Shim::over(Arc::new(TempDir::new().unwrap()), None).await;
    let inner = "GET /v2/inner/tags/list HTTP/1.1\r\nhost: x\r\n\r\n";
    let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    let length = inner.len();
    for (headers, body) in [
        (format!("content-length: {length}"), inner),
        ("transfer-encoding: chunked".to_owned(), &*chunk),
        (format!("transfer-encoding: chunked\r\ncontent-length: {length}"), &*chunk),
        ("content-length: 4\r\ntransfer-encoding: chunked".to_owned(), &*chunk),
        ("transfer-encoding: identity, chunked\r\ncontent-length: 4".to_owned(), &*chunk),
    ] {
        let mut stream = TcpStream::connect(&shim.address).await.unwrap();
        let request = format!("GET /v2/ HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{body}");
        let behind = "GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all((request + behind).as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answers)).await.unwrap();
        let answers = String::from_utf8_lossy(&answers);
        assert!(!answers.contains("inner"), "{headers}: {answers}");
    }
}

/// A client that sends without end is not read without end.
#[tokio::test]
async fn an_endless_body_is_not_read() {
    let shim = Shim::over(Arc::new(TempDir::new().unwrap()), None).await;
    let mut stream = TcpStream::connect(&shim.address).await.unwrap();
    let head =
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
    let mut sent_bytes = 0;
    let sending = async {
        while stream.write_all(&chunk).await.is_ok() {
            sent_bytes += chunk.len();
            assert!(sent_bytes < 64 << 20, "it takes everything");
        }
    };
    timeout(PATIENCE, sending).await.unwrap();
}

/// Idle connections take no descriptor that a blob needs, and once they are gone all is as before.
#[tokio::test]
async fn connections_are_limited_by_the_descriptors_there_are() {
    let (root, digest) = directory(&noise(200_000, 1));
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = root.path().join("config.yml");
    let yaml = format!("version: 0.1\nstorage: filesystem\nhttp: {{addr: '{free}'}}\n");
    std::fs::write(&config, yaml).unwrap();
    let shim = Command::new("sh")
        .args(["-c", "ulimit -n 164; exec \"$0\" serve --config \"$1\" --root \"$2\""])
        .args([
            env!("CARGO_BIN_EXE_larder-shim").as_ref(),
            config.as_os_str(),
            root.path().as_os_str(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _running = Running(shim);
    let request = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut clients = Vec::new();
    let connect = async || loop {
        match TcpStream::connect(free).await {
            Ok(client) => return client,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    for _ in 0..100 {
        clients.push(timeout(PATIENCE, connect()).await.unwrap());
    }
    // Those that were accepted get their blobs, all at once.
    let mut answer = vec![0; 200_000];
    for client in &mut clients[..50] {
        client.write_all(request.as_bytes()).await.unwrap();
    }
    for client in &mut clients[..50] {
        timeout(PATIENCE, client.read_exact(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }
    clients.clear();
    let mut client = timeout(PATIENCE, connect()).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    timeout(PATIENCE, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
