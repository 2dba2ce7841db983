use std::sync::Arc;

use axum::{
    body::Bytes,
    http::{Method, StatusCode},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::*;

/// Sends bytes as they are and gives what comes back until the end.
pub async fn raw(shim: &Shim, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(&shim.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    // A reset behind the answer is an end too.
    let _ = read;
    answer
}

#[tokio::test]
async fn every_answer_tells_the_version_and_the_configured_headers() {
    let shim = Shim::over(Arc::new(TempDir::new().unwrap()), None).await;
    let base = shim.get("").await;
    assert_eq!(base.status(), StatusCode::OK);
    let health = reqwest::get(format!("http://{}/healthz", shim.address)).await.unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    let unknown = shim.get("a/manifests/latest").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    for answer in [base, health, unknown] {
        assert_eq!(answer.headers()["docker-distribution-api-version"], "registry/2.0");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    }
}

/// Degraded: the mount is gone, so the shim serves from the upstream, and says so.
#[tokio::test]
async fn readiness_tells_where_content_comes_from() {
    let upstream = Upstream::start().await;
    for (upstreams, status) in [(Some(upstreams(&[upstream.url()])), 200), (None, 503)] {
        let shim = Shim::over(Arc::new(TempDir::new().unwrap()), upstreams).await;
        let url = format!("http://{}/readyz", shim.address);
        let ready = reqwest::get(&url).await.unwrap();
        assert_eq!((ready.status().as_u16(), &*ready.text().await.unwrap()), (200, "ready"));

        let blobs = shim.root.path().join("blobs");
        std::fs::rename(&blobs, shim.root.path().join("gone")).unwrap();
        let degraded = reqwest::get(&url).await.unwrap();
        assert_eq!(degraded.status(), status);
        assert!(degraded.text().await.unwrap().contains("the directory: No such file"));

        std::fs::rename(shim.root.path().join("gone"), &blobs).unwrap();
        assert_eq!(reqwest::get(&url).await.unwrap().text().await.unwrap(), "ready");
    }
}

#[tokio::test]
async fn tricks_and_changes_are_refused_with_distributions_errors() {
    let upstream = Upstream::start().await;
    let shim = Shim::start(&upstream).await;
    let hex = "0".repeat(64);
    for (method, path, status, expected) in [
        (Method::GET, "A/manifests/latest".to_owned(), 400, "NAME_INVALID"),
        (Method::GET, "a%2f..%2fb/manifests/latest".to_owned(), 400, "NAME_INVALID"),
        (Method::GET, format!("a/blobs/sha256:{}", &hex[1..]), 400, "DIGEST_INVALID"),
        (Method::GET, format!("a/blobs/sha256%3A{hex}"), 400, "DIGEST_INVALID"),
        (Method::GET, format!("a/blobs/sha256:{hex}"), 404, "BLOB_UNKNOWN"),
        (Method::GET, "a/manifests/.hidden".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "a/manifests/latest?ns=quay.io".to_owned(), 404, "NAME_UNKNOWN"),
        (Method::GET, "a/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        (Method::GET, format!("a/referrers/sha256:{}", &hex[1..]), 400, "DIGEST_INVALID"),
        (Method::GET, "a/referrers/latest".to_owned(), 400, "DIGEST_INVALID"),
        (Method::GET, format!("A/referrers/sha256:{hex}"), 400, "NAME_INVALID"),
        (Method::GET, format!("a/manifests/{}", "x".repeat(5000)), 414, "UNSUPPORTED"),
        (Method::PUT, "a/manifests/latest".to_owned(), 405, "UNSUPPORTED"),
        (Method::POST, "a/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        (Method::DELETE, format!("a/blobs/sha256:{hex}"), 405, "UNSUPPORTED"),
    ] {
        let answer = shim.ask(method, &path, &[]).await;
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(code(answer).await, expected, "{path}");
    }
    let climb =
        raw(&shim, b"GET /v2/../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await;
    assert!(climb.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&climb));
}

/// docker and podman try TLS first on a plain port, and wait 10 s when nothing comes back.
#[tokio::test]
async fn a_tls_handshake_on_the_plain_port_is_refused_at_once() {
    let shim = Shim::over(Arc::new(TempDir::new().unwrap()), None).await;
    let mut hello = vec![0x16, 3, 1, 0, 0xf4, 1, 0, 0, 0xf0, 3, 3];
    hello.extend(noise(0xee, 1));
    let answer = raw(&shim, &hello).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
}

#[tokio::test]
async fn the_namespaces_of_the_upstream_and_of_docker_hub_are_taken() {
    let upstream = Upstream::start().await;
    let content = Bytes::from(r#"{"schemaVersion":2,"manifests":[]}"#);
    upstream.add_manifest("a", "latest", &content);
    let shim = Shim::start(&upstream).await;
    let escaped = upstream.address.replace(':', "%3A");
    for namespace in ["docker.io", "127.0.0.1", &upstream.address, &escaped] {
        let answer = shim.get(&format!("a/manifests/latest?ns={namespace}")).await;
        assert_eq!(answer.bytes().await.unwrap(), content, "{namespace}");
    }
}
