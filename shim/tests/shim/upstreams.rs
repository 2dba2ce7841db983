//! Several upstream registries in one cache, and several URLs of one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{Method, StatusCode};
use larder_config::Upstream as Registry;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::*;

async fn manifest(shim: &Shim, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let answer = shim.ask(Method::GET, path, headers).await;
    (answer.status(), answer.text().await.unwrap())
}

/// A default upstream, `quay.io`, and the same repository with other content in each.
async fn two_upstreams() -> (Upstream, Upstream, Shim) {
    let (default, quay) = (Upstream::start().await, Upstream::start().await);
    default.add_manifest("org/app", "1", &"the default's".into());
    quay.add_manifest("org/app", "1", &"quay's".into());
    let keyed = Registry {
        hosts: vec!["quay.example.com".to_owned(), "quay.example.com:5000".to_owned()],
        ..keyed("quay.io", quay.url())
    };
    let shim = Shim::of(vec![upstreams(&[default.url()]), keyed]).await;
    (default, quay, shim)
}

/// "11. Content of different upstream registries never mixes."
#[tokio::test]
async fn a_registry_is_chosen_by_namespace_prefix_or_host() {
    let (default, quay, shim) = two_upstreams().await;
    let quays = (StatusCode::OK, "quay's".to_owned());
    let defaults = (StatusCode::OK, "the default's".to_owned());
    let host = |host| [("host", host)];
    assert_eq!(manifest(&shim, "org/app/manifests/1", &[]).await, defaults);
    assert_eq!(manifest(&shim, "org/app/manifests/1?ns=docker.io", &[]).await, defaults);
    assert_eq!(manifest(&shim, "org/app/manifests/1?ns=quay.io", &[]).await, quays);
    assert_eq!(manifest(&shim, "quay.io/org/app/manifests/1", &[]).await, quays);
    for name in ["quay.example.com", "QUAY.example.com:5000", "quay.io:443"] {
        assert_eq!(manifest(&shim, "org/app/manifests/1", &host(name)).await, quays, "{name}");
    }
    // A mirror that listens under that name is told by the client whom it stands for.
    let both = "org/app/manifests/1?ns=docker.io";
    assert_eq!(manifest(&shim, both, &host("quay.example.com")).await, defaults);

    assert_eq!(shim.target("repositories/org/app/_tags/1"), digest(b"the default's").hex());
    assert_eq!(shim.target("repositories/quay.io/org/app/_tags/1"), digest(b"quay's").hex());
    let asked = [&default, &quay].map(|upstream| upstream.seen(&Method::GET, "/v2/org/app/").len());
    assert_eq!(asked, [1, 1], "both spellings are one repository, with the upstream's own name");

    let (status, error) = manifest(&shim, "org/app/manifests/1?ns=ghcr.io", &[]).await;
    assert_eq!((status, error.contains("NAME_UNKNOWN")), (StatusCode::NOT_FOUND, true), "{error}");
}

#[tokio::test]
async fn a_name_that_begins_like_another_registry_is_never_the_defaults() {
    let (default, _quay, shim) = two_upstreams().await;
    // An attacker may call a repository of the default upstream like this.
    default.add_manifest("quay.io/org/app", "1", &"poison".into());
    let blob = default.add_blob("quay.io/org/app", &"poison".into());
    for path in [
        "quay.io/org/app/manifests/1?ns=docker.io".to_owned(),
        format!("quay.io/org/app/blobs/{blob}?ns=docker.io"),
        format!("quay.io/org/app/blobs/{blob}"),
    ] {
        assert_eq!(shim.get(&path).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    assert!(default.seen(&Method::GET, "quay.io").is_empty());
    assert_eq!(shim.get("quay.io/org/app/manifests/1").await.text().await.unwrap(), "quay's");
}

#[tokio::test]
async fn without_a_default_a_name_begins_with_its_registry() {
    let upstream = Upstream::start().await;
    upstream.add_manifest("library/alpine", "1", &"alpine".into());
    let shim = Shim::of(vec![keyed("docker.io", upstream.url())]).await;
    // As typed: `docker pull cache/docker.io/alpine`.
    for path in ["docker.io/library/alpine", "docker.io/alpine"] {
        let answer = manifest(&shim, &format!("{path}/manifests/1"), &[]).await;
        assert_eq!(answer, (StatusCode::OK, "alpine".to_owned()), "{path}");
    }
    assert!(shim.root.path().join("repositories/docker.io/library/alpine/_tags/1").exists());
    let (status, error) = manifest(&shim, "library/alpine/manifests/1", &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(error.contains("put the registry in front"), "{error}");
}

/// However a client calls a repository, the next page of its tags is of the same one.
#[tokio::test]
async fn pages_of_tags_stay_in_their_registry() {
    let (default, quay, shim) = two_upstreams().await;
    for (upstream, tags) in [(&default, r#"["d1","d2"]"#), (&quay, r#"["q1","q2"]"#)] {
        let list = format!(r#"{{"name":"org/app","tags":{tags}}}"#);
        upstream.script(|s| drop(s.content.insert("org/app/tags/list".to_owned(), list.into())));
    }
    let host = [("host", "quay.example.com")];
    for (path, headers, first, second) in [
        ("org/app/tags/list?n=1", &[][..], "d1", "d2"),
        ("org/app/tags/list?n=1&ns=docker.io", &[], "d1", "d2"),
        ("org/app/tags/list?n=1&ns=quay.io", &[], "q1", "q2"),
        ("quay.io/org/app/tags/list?n=1", &[], "q1", "q2"),
        ("org/app/tags/list?n=1", &host, "q1", "q2"),
    ] {
        let name = path.split_once("/tags").unwrap().0;
        let expected = |tag| serde_json::json!({ "name": name, "tags": [tag] });
        let answer = shim.ask(Method::GET, path, headers).await;
        let link = answer.headers()["link"].to_str().unwrap().to_owned();
        let list: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(list, expected(first), "{path}");
        let next = link.strip_prefix("</v2/").unwrap().split_once('>').unwrap().0;
        let answer = manifest(&shim, next, headers).await;
        let list: serde_json::Value = serde_json::from_str(&answer.1).unwrap();
        assert_eq!(list, expected(second), "{path} {next}");
    }
}

/// A blob that both have is in the directory once, and each of them is asked whether it has it.
#[tokio::test]
async fn a_blob_is_no_way_from_one_registry_into_another() {
    let (default, quay, shim) = two_upstreams().await;
    let blob = quay.add_blob("org/app", &noise(100, 1));
    let answer = shim.get(&format!("quay.io/org/app/blobs/{blob}")).await;
    assert_eq!(check(answer, &blob).await, Ok(()));
    shim.has(&format!("repositories/quay.io/org/app/_layers/sha256/{}", blob.hex())).await;

    let path = format!("org/app/blobs/{blob}");
    assert_eq!(shim.get(&path).await.status(), StatusCode::NOT_FOUND);
    default.add_blob("org/app", &noise(100, 1));
    assert_eq!(check(shim.get(&path).await, &blob).await, Ok(()));
    assert!(default.seen(&Method::GET, "/blobs/").is_empty(), "its bytes were there already");
}

#[tokio::test]
async fn a_url_in_trouble_is_passed_over_and_left_alone() {
    for trouble in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS] {
        let (broken, sound) = (Upstream::start().await, Upstream::start().await);
        broken.script(|script| script.failure = Some(trouble));
        let shim = Shim::of(vec![upstreams(&[
            broken.url(),
            "http://127.0.0.1:1".to_owned(),
            sound.url(),
        ])])
        .await;
        for seed in 0..8 {
            let digest = sound.add_blob("a", &noise(100, seed));
            let answer = shim.get(&format!("a/blobs/{digest}")).await;
            assert_eq!(check(answer, &digest).await, Ok(()));
        }
        assert_eq!(broken.seen(&Method::GET, "").len(), 1, "it was asked again at once");
        assert_eq!(sound.seen(&Method::GET, "").len(), 8);
    }
}

#[tokio::test]
async fn when_every_url_is_in_trouble_a_rate_limit_is_what_is_told() {
    let (limited, broken) = (Upstream::start().await, Upstream::start().await);
    limited.script(|script| script.failure = Some(StatusCode::TOO_MANY_REQUESTS));
    broken.script(|script| script.failure = Some(StatusCode::BAD_GATEWAY));
    let shim = Shim::of(vec![upstreams(&[limited.url(), broken.url()])]).await;
    for _ in 0..3 {
        let status = shim.get("a/manifests/1").await.status();
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    }
    limited.script(|script| script.failure = None);
    limited.add_manifest("a", "1", &"back".into());
    assert_eq!(shim.get("a/manifests/1").await.status(), StatusCode::OK);
}

/// The pull keeps what it has: the other URL is asked for the rest alone.
#[tokio::test]
async fn a_broken_transfer_goes_on_at_the_next_url() {
    let (one, other) = (Upstream::start().await, Upstream::start().await);
    let content = noise(4 << 20, 1);
    let digest = one.add_blob("a", &content);
    other.add_blob("a", &content);
    for upstream in [&one, &other] {
        upstream.script(|script| script.cuts = [1 << 20].into());
    }
    let shim = Shim::of(vec![upstreams(&[one.url(), other.url()])]).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));
    let offsets = |upstream: &Upstream| -> Vec<usize> {
        let seen = upstream.seen(&Method::GET, "/blobs/").into_iter();
        let range = seen.map(|seen| seen.range.unwrap_or("bytes=0-".to_owned()));
        range.map(|range| range[6..range.len() - 1].parse().unwrap()).collect()
    };
    let (first, second) = match (offsets(&one), offsets(&other)) {
        (first, second) if first[0] == 0 => (first, second),
        (second, first) => (first, second),
    };
    assert_eq!((first.len(), second.len()), (2, 1), "{first:?} {second:?}");
    // What was on its way when the connection broke is lost, and no more than that.
    assert!(second[0] > 512 << 10 && first[1] > second[0] + (512 << 10), "{first:?} {second:?}");
}

/// Two caches that are each other's upstream, or one that is its own: an error at once, and no wait.
#[tokio::test]
async fn caches_in_a_circle_say_so() {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let urls: Vec<_> = listeners.iter().map(url).collect();
    let mut shims = Vec::new();
    for (listener, upstream) in listeners.into_iter().zip([1, 0, 2]) {
        let config = config(Some(upstreams(&urls[upstream..=upstream])));
        shims.push(Shim::on(listener, config, Arc::new(TempDir::new().unwrap())).await);
    }
    let blob = format!("a/blobs/{}", digest(b"x"));
    for shim in &shims {
        for path in ["a/manifests/1", &blob, "a/tags/list"] {
            let started = Instant::now();
            let answer = shim.get(path).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            let text = answer.text().await.unwrap();
            assert!(text.contains("508") || text.contains("503"), "{text}");
            assert!(started.elapsed() < Duration::from_secs(5), "{path}");
        }
    }
}

/// A cache may be another cache's upstream.
#[tokio::test]
async fn a_chain_of_caches_is_told_by_namespace_which_registry_is_meant() {
    let (_default, quay, outer) = two_upstreams().await;
    let outer_url = format!("http://{}", outer.address);
    let inner =
        Shim::of(vec![Registry { is_mirror: true, ..keyed("quay.io", outer_url.clone()) }]).await;
    let blob = quay.add_blob("org/app", &noise(3 << 20, 1));
    for _ in 0..2 {
        let answer = manifest(&inner, "quay.io/org/app/manifests/1", &[]).await;
        assert_eq!(answer, (StatusCode::OK, "quay's".to_owned()));
        let answer = inner.get(&format!("org/app/blobs/{blob}?ns=quay.io")).await;
        assert_eq!(check(answer, &blob).await, Ok(()));
    }
    assert_eq!(quay.seen(&Method::GET, "/blobs/").len(), 1);
    for shim in [&inner, &outer] {
        shim.has(&format!("repositories/quay.io/org/app/_layers/sha256/{}", blob.hex())).await;
    }
}
