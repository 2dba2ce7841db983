use std::sync::Arc;

use axum::{
    body::Bytes,
    http::{Method, StatusCode},
};
use futures_util::future::join_all;

use crate::support::*;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

fn manifest(name: &str) -> Bytes {
    format!("{{\"schemaVersion\": 2,\n \"config\": {{}}, \"layers\": [], \"name\": \"{name}\"}}")
        .into()
}

fn digest_header(answer: &reqwest::Response) -> &str {
    answer.headers()["docker-content-digest"].to_str().unwrap()
}

/// Guarantee 4, for tags: what is cached is served while the upstream is down.
#[tokio::test]
async fn a_tag_is_revalidated_moves_and_outlives_the_upstream() {
    let upstream = Upstream::start().await;
    let (old, new) = (manifest("old"), manifest("new"));
    let old_digest = upstream.add_manifest("a/b", "latest", &old);
    let shim = Shim::start(&upstream).await;
    let path = "a/b/manifests/latest";

    for _ in 0..2 {
        let answer = shim.get(path).await;
        assert_eq!(digest_header(&answer), old_digest.to_string());
        assert_eq!(answer.headers()["content-type"], OCI);
        assert_eq!(answer.bytes().await.unwrap(), old);
    }
    assert_eq!(upstream.seen(&Method::HEAD, "latest").len(), 2);
    assert_eq!(upstream.seen(&Method::GET, "/manifests/").len(), 1);

    let new_digest = upstream.add_manifest("a/b", "latest", &new);
    assert_eq!(shim.get(path).await.bytes().await.unwrap(), new);
    assert_eq!(shim.target("repositories/a/b/_tags/latest"), new_digest.hex());

    for status in [StatusCode::BAD_GATEWAY, StatusCode::TOO_MANY_REQUESTS] {
        upstream.script(|script| script.failure = Some(status));
        assert_eq!(shim.get(path).await.bytes().await.unwrap(), new);
        assert!(!shim.get("a/b/manifests/other").await.status().is_success());
    }
    for (status, expected) in [
        (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND),
        (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN),
    ] {
        upstream.script(|script| script.failure = Some(status));
        assert_eq!(shim.get(path).await.status(), expected);
        // What never changes needs no word of the upstream.
        let by_digest = shim.get(&format!("a/b/manifests/{old_digest}")).await;
        assert_eq!(by_digest.bytes().await.unwrap(), old);
    }

    for upstreams in [Some(upstreams(&["http://127.0.0.1:1".to_owned()])), None] {
        let shim = Shim::over(Arc::clone(&shim.root), upstreams).await;
        assert_eq!(shim.get(path).await.bytes().await.unwrap(), new);
        assert_eq!(digest_header(&shim.head(path).await), new_digest.to_string());
    }
}

/// docker and containerd ask `HEAD` by tag and then `GET` by digest.
#[tokio::test]
async fn a_head_costs_no_get_and_its_tag_is_kept_once_the_manifest_is() {
    let upstream = Upstream::start().await;
    let content = manifest("x");
    let digest = upstream.add_manifest("a", "1.0", &content);
    let shim = Shim::start(&upstream).await;

    for reference in ["1.0", &digest.to_string()] {
        let head = shim.head(&format!("a/manifests/{reference}")).await;
        assert_eq!(digest_header(&head), digest.to_string());
        assert_eq!(head.headers()["content-length"], content.len().to_string().as_str());
    }
    assert_eq!(upstream.seen(&Method::GET, "").len(), 0);

    let got = shim.get(&format!("a/manifests/{digest}")).await;
    assert_eq!(got.bytes().await.unwrap(), content);
    assert_eq!(shim.target("repositories/a/_tags/1.0"), digest.hex());
    upstream.script(|script| script.failure = Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(shim.get("a/manifests/1.0").await.bytes().await.unwrap(), content);
}

/// Guarantee 4, for tags: the same, when the two requests go to two nodes.
#[tokio::test]
async fn a_tag_is_kept_when_another_node_gets_the_manifest() {
    let upstream = Upstream::start().await;
    let content = manifest("x");
    let digest = upstream.add_manifest("a", "1.0", &content);
    let one = Shim::start(&upstream).await;
    let other = Shim::over(Arc::clone(&one.root), Some(upstreams(&[upstream.url()]))).await;

    one.head("a/manifests/1.0").await;
    other.get(&format!("a/manifests/{digest}")).await;
    one.has("repositories/a/_tags/1.0").await;
    assert_eq!(one.target("repositories/a/_tags/1.0"), digest.hex());
    assert_eq!(upstream.seen(&Method::GET, "").len(), 1);
}

#[tokio::test]
async fn many_cold_requests_for_a_manifest_are_one_upstream_get() {
    let upstream = Upstream::start().await;
    let content = manifest("x");
    let digest = upstream.add_manifest("a", "latest", &content);
    let shim = Shim::start(&upstream).await;
    upstream.allow(0);
    let paths = ["a/manifests/latest".to_owned(), format!("a/manifests/{digest}")];
    let asked = tokio::spawn({
        let urls = paths.map(|path| format!("{}/{path}", shim.url));
        async move {
            let urls = urls.iter().cycle().take(32);
            join_all(urls.map(async |url| reqwest::get(url).await.unwrap().bytes().await)).await
        }
    });
    eventually("the GET is there", || !upstream.seen(&Method::GET, "").is_empty()).await;
    upstream.allow(u64::MAX);
    for answer in asked.await.unwrap() {
        assert_eq!(answer.unwrap(), content);
    }
    assert_eq!(upstream.seen(&Method::GET, "").len(), 1);
}

#[tokio::test]
async fn an_upstream_that_names_no_digest_is_asked_by_tag() {
    let upstream = Upstream::start().await;
    let content = manifest("x");
    let digest = upstream.add_manifest("a", "latest", &content);
    upstream.script(|script| script.hides_digest = true);
    let shim = Shim::start(&upstream).await;
    let head = shim.head("a/manifests/latest").await;
    assert_eq!(digest_header(&head), digest.to_string());
    assert_eq!(shim.target("repositories/a/_tags/latest"), digest.hex());
}

/// Guarantee 1: bytes served under a digest hash to it, or the transfer ends in an error.
#[tokio::test]
async fn a_wrong_endless_or_absurd_manifest_is_neither_served_nor_kept() {
    let upstream = Upstream::start().await;
    let digest = digest(&manifest("right"));
    let path = format!("a/manifests/{digest}");
    let shim = Shim::start(&upstream).await;
    for content in [manifest("wrong"), noise(5 << 20, 1), Bytes::new()] {
        upstream.script(|script| drop(script.content.insert(path.clone(), content)));
        assert_eq!(shim.get(&path).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let deep = format!(r#"{{"schemaVersion":2,"x":{}{}}}"#, "[".repeat(64), "]".repeat(64));
    upstream.add_manifest("a", "deep", &deep.into());
    let answer = shim.get("a/manifests/deep").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().await.unwrap().contains("nested 65 deep; 64 are allowed"));
    assert_eq!(shim.list("blobs/sha256"), Vec::<String>::new());
    upstream.add_manifest("a", "x", &manifest("right"));
    assert_eq!(shim.get(&path).await.bytes().await.unwrap(), manifest("right"));
}

/// Guarantee 1 again: the directory is not believed either.
#[tokio::test]
async fn a_manifest_that_was_damaged_in_the_directory_is_fetched_again() {
    let upstream = Upstream::start().await;
    let content = manifest("x");
    let digest = upstream.add_manifest("a", "latest", &content);
    let shim = Shim::start(&upstream).await;
    let path = format!("a/manifests/{digest}");
    assert_eq!(shim.get(&path).await.bytes().await.unwrap(), content);
    let blob = shim.root.path().join("blobs/sha256").join(digest.hex());
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, "damaged").unwrap();
    assert_eq!(shim.get(&path).await.bytes().await.unwrap(), content);
    assert_eq!(std::fs::read(&blob).unwrap(), content);
}
