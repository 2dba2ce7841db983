//! What those who run a cache ask it.

use std::sync::Arc;

use axum::http::StatusCode;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::*;

/// The value of a metric, which is 0 before it is counted for the first time.
async fn metric(address: &str, name: &str) -> u64 {
    let answer = reqwest::get(format!("http://{address}/metrics")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let text = answer.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn metrics_tell_what_was_asked_and_what_was_saved() {
    let upstream = Upstream::start().await;
    let content = noise(100_000, 1);
    let blob = upstream.add_blob("a", &content);
    upstream.add_manifest("a", "1", &"a manifest".into());
    let shim = Shim::start(&upstream).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let debug = listener.local_addr().unwrap().to_string();
    tokio::spawn(larder_shim::serve_debug(listener, "/metrics".to_owned()));
    let host = &upstream.address;
    let names = [
        r#"larder_requests_total{method="GET",status="200",source="pull"}"#,
        r#"larder_requests_total{method="GET",status="200",source="local"}"#,
        r#"larder_requests_total{method="HEAD",status="200",source="upstream"}"#,
        r#"larder_requests_total{method="other",status="405",source="none"}"#,
        r#"larder_sent_bytes_total{source="local"}"#,
        r#"larder_wait_seconds_count{source="local"}"#,
        r#"larder_errors_total{code="BLOB_UNKNOWN"}"#,
        r#"larder_errors_total{code="UNSUPPORTED"}"#,
        &format!(r#"larder_upstream_requests_total{{upstream="{host}",outcome="ok"}}"#),
        &format!(r#"larder_upstream_requests_total{{upstream="{host}",outcome="not_found"}}"#),
        &format!(r#"larder_upstream_received_bytes_total{{upstream="{host}"}}"#),
        "larder_upstream_requests_saved_total",
        "larder_pulls",
    ];
    let mut before = Vec::new();
    for name in names {
        before.push(metric(&debug, name).await);
    }

    let path = format!("a/blobs/{blob}");
    assert_eq!(shim.head("a/manifests/1").await.status(), StatusCode::OK);
    for _ in 0..3 {
        assert_eq!(check(shim.get(&path).await, &blob).await, Ok(()));
        shim.has(&format!("repositories/a/_layers/sha256/{}", blob.hex())).await;
    }
    let missing = format!("a/blobs/{}", digest(b"missing"));
    assert_eq!(shim.get(&missing).await.status(), StatusCode::NOT_FOUND);
    let method = "BREW".parse().unwrap();
    assert_eq!(shim.ask(method, &path, &[]).await.status(), StatusCode::METHOD_NOT_ALLOWED);

    // One pull, two from the directory; the tag's HEAD and the blob, and a blob that there is not.
    let size_bytes = content.len() as u64;
    let more = [1, 2, 1, 1, 2 * size_bytes, 2, 1, 1, 2, 1, size_bytes, 2, 0];
    for ((name, before), more) in names.into_iter().zip(before).zip(more) {
        // A request is counted when its answer has ended, which may be after the client has it.
        let mut now = metric(&debug, name).await;
        for _ in 0..1_000 {
            if now == before + more {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            now = metric(&debug, name).await;
        }
        assert_eq!(now - before, more, "{name}");
    }
    let elsewhere = reqwest::get(format!("http://{debug}/v2/")).await.unwrap();
    assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND);
}

/// "Readiness goes first": whoever asks for it hears of the end while everything is still answered.
#[tokio::test]
async fn a_node_that_ends_is_first_not_ready() {
    let root = Arc::new(TempDir::new().unwrap());
    put_manifest(root.path(), "a", "1", b"a manifest");
    let mut shim = Shim::over(root, None).await;
    let url = format!("http://{}/readyz", shim.address);
    assert_eq!(reqwest::get(&url).await.unwrap().status(), StatusCode::OK);
    let ended = shim.terminate();
    let readiness = async {
        loop {
            let answer = reqwest::get(&url).await.unwrap();
            if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                return answer.text().await.unwrap();
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, readiness).await.unwrap();
    assert_eq!(told, "not ready: this node is going to end");
    assert_eq!(shim.get("a/manifests/1").await.status(), StatusCode::OK);
    tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert!(reqwest::get(&url).await.is_err(), "it still listens");
}
