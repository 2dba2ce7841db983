//! `auth.htpasswd`: who may see what is in the operator's file.

use std::{fs, path::PathBuf, sync::Arc};

use axum::http::{Method, StatusCode};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::future::join_all;
use larder_config::{Auth, Config, Htpasswd};
use tempfile::TempDir;

use crate::support::*;

/// The least that bcrypt takes; what `htpasswd -B` takes.
const CHEAP: u32 = 4;
const CHALLENGE: &str = r#"Basic realm="Our \"Registry\"""#;

fn user(name: &str, password: &str, cost: u32) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, cost).unwrap())
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// A shim over an upstream that has the manifest `a:1`, for the users in a file.
async fn shim(upstream: &Upstream, users: &str) -> (Shim, PathBuf, TempDir) {
    upstream.add_manifest("a", "1", &"a manifest".into());
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("htpasswd");
    fs::write(&path, users).unwrap();
    let realm = r#"Our "Registry""#.to_owned();
    let auth = Some(Auth::Htpasswd(Htpasswd { realm, path: path.clone() }));
    let config = Config { auth, ..config(Some(upstreams(&[upstream.url()]))) };
    (Shim::with(config, Arc::new(TempDir::new().unwrap())).await, path, directory)
}

async fn status(shim: &Shim, path: &str, authorization: &str) -> StatusCode {
    shim.ask(Method::GET, path, &[("authorization", authorization)]).await.status()
}

/// "7. A client sees only what `auth:` says that it may, and cannot tell the rest from what does not
/// exist."
#[tokio::test]
async fn whoever_is_not_in_the_file_sees_nothing() {
    let upstream = Upstream::start().await;
    let users = user("alice", "pass:word", CHEAP)
        + "# a comment\n\nbob:{SHA}VBPuJHI7uixaa6LQGWx4s+5GKNE=\n";
    let (shim, ..) = shim(&upstream, &users).await;
    let blob = upstream.add_blob("a", &noise(100, 1));
    let list = Bytes::from_static(br#"{"tags":["1"]}"#);
    upstream.script(|script| drop(script.content.insert("a/tags/list".into(), list)));
    let paths = [
        String::new(),
        "_catalog".to_owned(),
        format!("a/referrers/{blob}"),
        "a/manifests/1".to_owned(),
        "a/manifests/missing".to_owned(),
        "nothing/manifests/1".to_owned(),
        format!("a/manifests/{blob}"),
        format!("a/blobs/{blob}"),
        "a/tags/list".to_owned(),
        format!("a/referrers/{blob}"),
        "_catalog".to_owned(),
    ];
    let mut bodies = Vec::new();
    for path in &paths {
        for authorization in [
            "",
            "Basic",
            "Basic !",
            "Basic Og==",
            "Bearer YWxpY2U6cGFzczp3b3Jk",
            &basic("alice", "password"),
            &basic("alice", ""),
            &basic("Alice", "pass:word"),
            &basic("", "pass:word"),
            &basic("bob", "hello"),
        ] {
            let headers = [("authorization", authorization)];
            let answer = shim.ask(Method::GET, path, &headers).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path} {authorization}");
            assert_eq!(answer.headers()["www-authenticate"], CHALLENGE);
            bodies.push(answer.text().await.unwrap());
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "what there is and what there is not look different: {bodies:?}");
    assert!(bodies[0].contains(r#""code":"UNAUTHORIZED""#), "{}", bodies[0]);
    assert!(
        upstream.seen(&Method::GET, "").is_empty() && upstream.seen(&Method::HEAD, "").is_empty()
    );

    let alice = basic("alice", "pass:word");
    assert_eq!(status(&shim, "", &alice).await, StatusCode::OK);
    assert_eq!(status(&shim, "a/manifests/1", &alice).await, StatusCode::OK);
    assert_eq!(status(&shim, &format!("a/blobs/{blob}"), &alice).await, StatusCode::OK);
    for path in ["a/tags/list", &format!("a/referrers/{blob}"), "_catalog"] {
        assert_eq!(status(&shim, path, &alice).await, StatusCode::OK, "{path}");
    }
    let health = shim.url.replace("/v2", "/healthz");
    assert_eq!(reqwest::get(health).await.unwrap().status(), StatusCode::OK);
    // What the client shows here is not for the upstream.
    assert!(upstream.seen(&Method::GET, "").iter().all(|seen| seen.authorization.is_none()));
}

#[tokio::test]
async fn a_file_that_changes_counts_within_seconds() {
    let upstream = Upstream::start().await;
    let (shim, path, _directory) = shim(&upstream, &user("alice", "old", CHEAP)).await;
    let (old, new) = (basic("alice", "old"), basic("alice", "new"));
    assert_eq!(status(&shim, "", &old).await, StatusCode::OK);
    fs::write(&path, user("alice", "new", CHEAP) + "more\n").unwrap();
    // What cannot be read changes nothing.
    assert_eq!(status(&shim, "", &old).await, StatusCode::OK);
    fs::write(&path, user("alice", "new", CHEAP)).unwrap();
    while status(&shim, "", &new).await != StatusCode::OK {}
    assert_eq!(status(&shim, "", &old).await, StatusCode::UNAUTHORIZED);
}

/// bcrypt is slow by intent. That must be felt by nobody who is known, and nobody else.
#[tokio::test]
async fn a_password_is_verified_once_and_holds_nobody_up() {
    let upstream = Upstream::start().await;
    let (shim, ..) = shim(&upstream, &user("alice", "right", 12)).await;
    let (right, wrong) = (basic("alice", "right"), basic("alice", "wrong"));
    let health = || async { reqwest::get(shim.url.replace("/v2", "/healthz")).await.unwrap() };
    tokio::select! {
        status = status(&shim, "", &right) => panic!("{status} before anybody else was answered"),
        () = async { for _ in 0..8 { health().await; } } => {}
    }
    assert_eq!(status(&shim, "", &right).await, StatusCode::OK);
    tokio::select! {
        status = status(&shim, "", &wrong) => panic!("{status} before all who are known were"),
        all = join_all((0..32).map(|_| status(&shim, "a/manifests/1", &right))) => {
            assert!(all.iter().all(|status| *status == StatusCode::OK), "{all:?}");
        }
    }
    assert_eq!(status(&shim, "", &basic("nobody", "right")).await, StatusCode::UNAUTHORIZED);
}
