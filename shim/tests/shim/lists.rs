//! `tags/list` and `_catalog`.

use std::{fs, sync::Arc};

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// The names in an answer, and the path of the page behind it.
async fn page(shim: &Shim, path: &str, key: &str) -> (Vec<String>, Option<String>) {
    let answer = shim.get(path).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    let next = answer.headers().get("link").map(|link| {
        let link = link.to_str().unwrap().strip_prefix("</v2/").unwrap();
        link.strip_suffix(">; rel=\"next\"").unwrap().to_owned()
    });
    let mut body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    (serde_json::from_value(body[key].take()).unwrap(), next)
}

#[tokio::test]
async fn cached_tags_are_listed_in_pages() {
    let root = Arc::new(TempDir::new().unwrap());
    for tag in ["b", "a", "D", "c"] {
        put_manifest(root.path(), "x/y", tag, tag.as_bytes());
    }
    let shim = Shim::over(root, None).await;
    for (query, tags, link) in [
        ("", "D a b c", None),
        ("?n=2", "D a", Some("x/y/tags/list?last=a&n=2")),
        ("?n=2&ns=docker.io", "D a", Some("x/y/tags/list?last=a&n=2&ns=docker.io")),
        ("?last=a&n=2", "b c", None),
        ("?last=a", "b c", None),
        ("?last=aa", "b c", None),
        ("?last=c", "", None),
        ("?last=%ff%00/..", "", None),
        ("?n=0", "", None),
        ("?n=9", "D a b c", None),
        ("?n=99999999999999999999", "D a b c", None),
    ] {
        let (names, next) = page(&shim, &format!("x/y/tags/list{query}"), "tags").await;
        assert_eq!(names.join(" "), tags, "{query}");
        assert_eq!(next.as_deref(), link, "{query}");
    }
    let answer = shim.get("x/y/tags/list?n=1").await;
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(body, json!({ "name": "x/y", "tags": ["D"] }));
    for n in ["-1", "+1", "x", ""] {
        for list in ["x/y/tags/list", "_catalog"] {
            let answer = shim.get(&format!("{list}?n={n}")).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
            assert_eq!(code(answer).await, "PAGINATION_NUMBER_INVALID", "{list}?n={n}");
        }
    }
    // `x` is only the first component of a name.
    for unknown in ["x", "z"] {
        let answer = shim.get(&format!("{unknown}/tags/list")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        assert_eq!(code(answer).await, "NAME_UNKNOWN");
    }
}

/// Guarantee 4, for lists of tags: what is cached is served while the upstream is down.
#[tokio::test]
async fn the_upstreams_tags_are_listed_while_it_is_up_and_the_cached_ones_while_it_is_down() {
    let upstream = Upstream::start().await;
    let shim = Shim::start(&upstream).await;
    upstream.add_manifest("a", "c", &r#"{"schemaVersion":2,"manifests":[]}"#.into());
    shim.get("a/manifests/c").await;
    // In its own order and pages.
    upstream.script(|script| {
        let list = |tags: &str| format!(r#"{{"name":"a","tags":{tags}}}"#).into();
        script.content.insert("a/tags/list".into(), list(r#"["d","b"]"#));
        script.links.insert("a/tags/list".into(), "<?page=2>; rel=\"next\"".into());
        script.content.insert("a/tags/list?page=2".into(), list(r#"["c","a","no tag","b"]"#));
        script.links.insert("a/tags/list?page=2".into(), "<?page=3>; rel=\"next\"".into());
        script.content.insert("a/tags/list?page=3".into(), list("null"));
    });
    let first = page(&shim, "a/tags/list?n=3", "tags").await;
    let next = "a/tags/list?last=c&n=3".to_owned();
    assert_eq!(first, (["a", "b", "c"].map(str::to_owned).to_vec(), Some(next.clone())));
    assert_eq!(page(&shim, &next, "tags").await, (vec!["d".to_owned()], None));
    let asked = upstream.seen(&Method::GET, "tags/list");
    assert_eq!(asked.len(), 3, "the second page is of the same list: {asked:?}");
    assert_eq!(page(&shim, "a/tags/list", "tags").await.0.len(), 4);
    assert_eq!(upstream.seen(&Method::GET, "tags/list").len(), 6);

    for status in [StatusCode::BAD_GATEWAY, StatusCode::TOO_MANY_REQUESTS] {
        upstream.script(|script| script.failure = Some(status));
        assert_eq!(page(&shim, "a/tags/list", "tags").await, (vec!["c".to_owned()], None));
        assert!(!shim.get("never/tags/list").await.status().is_success());
    }
    for (status, expected) in
        [(StatusCode::NOT_FOUND, "NAME_UNKNOWN"), (StatusCode::FORBIDDEN, "DENIED")]
    {
        upstream.script(|script| script.failure = Some(status));
        assert_eq!(code(shim.get("a/tags/list").await).await, expected);
    }
}

#[tokio::test]
async fn an_endless_or_senseless_list_of_the_upstream_is_refused() {
    let upstream = Upstream::start().await;
    let shim = Shim::start(&upstream).await;
    let mut list = br#"{"tags":["a"]}"#.to_vec();
    list.resize(1 << 20, b' ');
    upstream.script(|script| {
        for (path, link) in
            [("a/tags/list", "<?b>"), ("a/tags/list?b", "<?c>"), ("a/tags/list?c", "<?b>")]
        {
            script.content.insert(path.into(), list.clone().into());
            script.links.insert(path.into(), format!("{link}; rel=\"next\""));
        }
        script.content.insert("b/tags/list".into(), "[".repeat(1 << 20).into());
        script.content.insert("c/tags/list".into(), "<html>".into());
    });
    for repository in ["a", "b", "c"] {
        let answer = shim.get(&format!("{repository}/tags/list")).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{repository}");
    }
    assert!(upstream.seen(&Method::GET, "a/tags").len() < 10);
}

/// In byte order, as `sort` has them in the C locale.
const REPOSITORIES: [&str; 8] = ["a", "a-b", "a-b/c", "a.b", "a/b", "a/b/c", "a0", "z/y/x/w"];

#[tokio::test]
async fn the_catalog_lists_cached_repositories_in_pages() {
    let root = Arc::new(TempDir::new().unwrap());
    for repository in REPOSITORIES {
        put_manifest(root.path(), repository, "latest", b"x");
    }
    let repositories = root.path().join("repositories");
    for nothing in ["empty/below", "Upper/_manifests", "a/_uploads"] {
        fs::create_dir_all(repositories.join(nothing)).unwrap();
    }
    fs::write(repositories.join("file"), "").unwrap();
    let shim = Shim::over(Arc::clone(&root), None).await;
    for n in 1..=REPOSITORIES.len() + 1 {
        let mut next = Some(format!("_catalog?n={n}"));
        let mut all = Vec::new();
        while let Some(path) = next {
            let names;
            (names, next) = page(&shim, &path, "repositories").await;
            assert!(names.len() == n || next.is_none(), "{path}");
            all.extend(names);
        }
        assert_eq!(all, REPOSITORIES, "{n} at a time");
    }
    for last in ["", "a/", "a/a", "a/b/", "a/b/bb", "b", "z", "z/y/x", "zz", "%2f", "%00", "a%00"] {
        let text = last.replace("%2f", "/").replace("%00", "\0");
        let (names, next) = page(&shim, &format!("_catalog?last={last}"), "repositories").await;
        let behind = REPOSITORIES.iter().filter(|name| **name > text.trim_end_matches('/'));
        assert_eq!(names, behind.copied().collect::<Vec<_>>(), "{last}");
        assert_eq!(next, None);
    }
    assert_eq!(page(&shim, "_catalog?n=0", "repositories").await, (Vec::new(), None));

    let mut config = config(None);
    config.catalog_max_entries = 3;
    let shim = Shim::with(config, root).await;
    for n in ["", "?n=1000"] {
        let (names, next) = page(&shim, &format!("_catalog{n}"), "repositories").await;
        assert_eq!((&*names[2], next.unwrap()), ("a-b/c", "_catalog?last=a-b%2Fc&n=3".to_owned()));
    }
    let head = shim.head("_catalog").await;
    assert_eq!(head.headers()["content-type"], "application/json");
    assert!(head.headers().contains_key("content-length"));
}

/// Docker Trusted Registry's manual tells operators to try a fresh cache this way.
#[tokio::test]
async fn the_catalog_of_a_fresh_cache_is_empty_and_of_a_storage_in_trouble_an_error() {
    let shim = Shim::over(Arc::new(TempDir::new().unwrap()), None).await;
    assert_eq!(shim.get("_catalog").await.text().await.unwrap(), r#"{"repositories":[]}"#);
    let repositories = shim.root.path().join("repositories");
    fs::remove_dir(&repositories).unwrap();
    fs::write(&repositories, "").unwrap();
    let answer = shim.get("_catalog").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(code(answer).await, "UNAVAILABLE");
}
