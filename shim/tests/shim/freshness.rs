//! When the upstream is asked what a tag names, and what is served when it gives no answer.

use std::{sync::Arc, time::Duration};

use axum::http::{Method, StatusCode};
use larder_config::{Check, Config, Deleted, TagRule, Tags};
use tempfile::TempDir;

use crate::support::*;

const LONG: Duration = Duration::from_secs(3600);

async fn shim(upstream: &Upstream, rules: &[(&str, Check)], deleted: Deleted) -> Shim {
    let rule = |(pattern, check): &(&str, Check)| TagRule {
        pattern: (*pattern).to_owned(),
        check: *check,
    };
    let tags = Tags { rules: rules.iter().map(rule).collect(), deleted };
    let config = Config { tags, ..config(Some(upstreams(&[upstream.url()]))) };
    Shim::with(config, Arc::new(TempDir::new().unwrap())).await
}

/// Gets a tag, and tells how often the upstream was asked about it by now.
async fn get(shim: &Shim, upstream: &Upstream, tag: &str) -> (String, usize) {
    let path = format!("a/manifests/{tag}");
    let answer = shim.get(&path).await;
    assert_eq!(answer.status(), StatusCode::OK, "{tag}");
    assert!(!answer.headers().contains_key("warning"), "{tag} is not stale");
    (answer.text().await.unwrap(), upstream.seen(&Method::HEAD, &path).len())
}

#[tokio::test]
async fn a_tag_is_checked_as_often_as_the_first_rule_says_that_matches_it() {
    let upstream = Upstream::start().await;
    let rules = [
        ("a:v*", Check::Immutable),
        ("a:hourly", Check::Every(LONG)),
        ("a:often", Check::Every(Duration::ZERO)),
        ("b:*", Check::Pinned),
        ("*:latest", Check::Always),
    ];
    let shim = shim(&upstream, &rules, Deleted::Follow).await;
    let tags = [("v1", true), ("hourly", true), ("often", false), ("latest", false), ("x", false)];
    for (tag, _) in tags {
        upstream.add_manifest("a", tag, &"old".into());
        assert_eq!(get(&shim, &upstream, tag).await, ("old".to_owned(), 1), "{tag}");
        upstream.add_manifest("a", tag, &"new".into());
    }
    for (tag, is_believed) in tags {
        let expected = if is_believed { ("old".to_owned(), 1) } else { ("new".to_owned(), 2) };
        assert_eq!(get(&shim, &upstream, tag).await, expected, "{tag}");
    }

    // What is pinned is never asked for.
    upstream.add_manifest("b", "1", &"there".into());
    assert_eq!(shim.get("b/manifests/1").await.status(), StatusCode::NOT_FOUND);
    assert!(upstream.seen(&Method::HEAD, "b/").is_empty());
    put_manifest(shim.root.path(), "b", "1", b"pinned");
    assert_eq!(shim.get("b/manifests/1").await.text().await.unwrap(), "pinned");
}

/// Between the `HEAD` that tells of a new manifest and its `GET`, the old one is not fresh.
#[tokio::test]
async fn a_tag_that_is_known_to_have_moved_is_not_fresh() {
    let upstream = Upstream::start().await;
    let shim = shim(&upstream, &[("*", Check::Every(Duration::ZERO))], Deleted::Follow).await;
    upstream.add_manifest("a", "1", &"old".into());
    get(&shim, &upstream, "1").await;
    let digest = upstream.add_manifest("a", "1", &"new".into());
    let head = shim.head("a/manifests/1").await;
    assert_eq!(head.headers()["docker-content-digest"], digest.to_string().as_str());
    assert_eq!(get(&shim, &upstream, "1").await.0, "new");
}

/// "A 429 or an outage serves what is cached, marked (`Age`, `Warning`), with Retry-After passed on only
/// when nothing is cached."
#[tokio::test]
async fn what_is_served_without_the_upstream_is_marked() {
    let upstream = Upstream::start().await;
    let shim = shim(&upstream, &[], Deleted::Follow).await;
    upstream.add_manifest("a", "1", &"cached".into());
    get(&shim, &upstream, "1").await;
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY] {
        upstream.script(|script| script.failure = Some(status));
        for answer in [shim.get("a/manifests/1").await, shim.head("a/manifests/1").await] {
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.headers()["warning"], "111 larder \"Revalidation Failed\"");
            let age: u64 = answer.headers()["age"].to_str().unwrap().parse().unwrap();
            assert!(age < PATIENCE.as_secs(), "{age}");
            assert!(!answer.headers().contains_key("retry-after"));
        }
        let missing = shim.get("a/manifests/2").await;
        let expected = if status == StatusCode::BAD_GATEWAY {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::TOO_MANY_REQUESTS
        };
        assert_eq!(missing.status(), expected);
    }
}

/// "An upstream deletion follows a declared rule."
#[tokio::test]
async fn a_tag_that_the_upstream_has_no_more_is_gone_or_kept() {
    for (deleted, expected) in
        [(Deleted::Follow, StatusCode::NOT_FOUND), (Deleted::Keep, StatusCode::OK)]
    {
        let upstream = Upstream::start().await;
        let shim = shim(&upstream, &[], deleted).await;
        upstream.add_manifest("a", "1", &"cached".into());
        get(&shim, &upstream, "1").await;
        upstream.script(|script| drop(script.content.remove("a/manifests/1")));
        let answer = shim.get("a/manifests/1").await;
        assert_eq!(answer.status(), expected);
        let is_kept = deleted == Deleted::Keep;
        assert_eq!(answer.headers().contains_key("warning"), is_kept, "it is marked");
        assert_eq!(shim.get("a/manifests/2").await.status(), StatusCode::NOT_FOUND);
    }
}
