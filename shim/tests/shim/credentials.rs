use std::sync::Arc;

use axum::http::{Method, StatusCode};
use tempfile::TempDir;

use crate::support::*;

const BASIC: &str = "Basic bGFyZGVyOnA0c3N3b3Jk";

async fn shim_with_credentials(upstream: &Upstream) -> Shim {
    let mut upstreams = upstreams(&[upstream.url()]);
    upstreams.credentials = credentials();
    Shim::over(Arc::new(TempDir::new().unwrap()), Some(upstreams)).await
}

fn guard(upstream: &Upstream, authorization: &str, challenge: &str) {
    let guard = Some((authorization.to_owned(), challenge.to_owned()));
    upstream.script(|script| script.guard = guard);
}

#[tokio::test]
async fn a_bearer_challenge_is_met_with_a_token_for_the_credentials() {
    let upstream = Upstream::start().await;
    let content = noise(1000, 1);
    let digest = upstream.add_blob("a/b", &content);
    let challenge = format!(
        r#"Bearer realm="{}/token?x=1",service="the registry",scope="registry:catalog:*""#,
        upstream.url()
    );
    guard(&upstream, "Bearer t0ken", &challenge);
    upstream.script(|script| {
        script.token = Some(r#"{"access_token":"t0ken","expires_in":300}"#.to_owned());
    });
    let shim = shim_with_credentials(&upstream).await;
    let path = format!("a/b/blobs/{digest}");
    assert_eq!(shim.head(&path).await.status(), StatusCode::OK);
    assert_eq!(check(shim.get(&path).await, &digest).await, Ok(()));

    let tokens = upstream.seen(&Method::GET, "/token");
    assert_eq!(tokens.len(), 1, "a token that still holds was not used again");
    assert_eq!(tokens[0].query, "x=1&service=the+registry&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(tokens[0].authorization.as_deref(), Some(BASIC));
    let blobs = upstream.seen(&Method::GET, "/blobs/");
    assert_eq!(blobs.last().unwrap().authorization.as_deref(), Some("Bearer t0ken"));
}

#[tokio::test]
async fn a_token_that_holds_no_longer_is_replaced() {
    let upstream = Upstream::start().await;
    let challenge = format!(r#"Bearer realm="{}/token""#, upstream.url());
    let shim = Shim::start(&upstream).await;
    for token in ["one", "two"] {
        guard(&upstream, &format!("Bearer {token}"), &challenge);
        let answer = format!(r#"{{"token":"{token}"}}"#);
        upstream.script(|script| script.token = Some(answer));
        let digest =
            upstream.add_blob("a", &noise(100, token.len() as u64 + token.as_bytes()[0] as u64));
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        assert_eq!(check(answer, &digest).await, Ok(()));
    }
    let tokens = upstream.seen(&Method::GET, "/token");
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens[0].authorization, None);
}

#[tokio::test]
async fn a_basic_challenge_is_met() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(100, 1));
    guard(&upstream, BASIC, r#"Basic realm="x""#);
    let path = format!("a/blobs/{digest}");
    let shim = shim_with_credentials(&upstream).await;
    assert_eq!(check(shim.get(&path).await, &digest).await, Ok(()));

    let shim = Shim::start(&upstream).await;
    assert_eq!(shim.get(&path).await.status(), StatusCode::FORBIDDEN);
}

/// Guarantee 9: no credential is sent to a host it was not meant for.
#[tokio::test]
async fn a_foreign_token_server_is_not_shown_the_credentials() {
    let upstream = Upstream::start().await;
    let foreign = Upstream::start().await;
    foreign.script(|script| script.token = Some(r#"{"token":"t0ken"}"#.to_owned()));
    let digest = upstream.add_blob("a", &noise(100, 1));
    let port = foreign.address.rsplit_once(':').unwrap().1;
    let challenge = format!(r#"Bearer realm="http://localhost:{port}/token""#);
    guard(&upstream, "Bearer t0ken", &challenge);

    let shim = shim_with_credentials(&upstream).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let reason = answer.text().await.unwrap();
    assert!(reason.contains("another domain"), "{reason}");
    assert!(!reason.contains("p4ssword"), "{reason}");
    assert!(foreign.seen(&Method::GET, "").is_empty());
}

/// Guarantee 9, for the hosts that blobs are redirected to.
#[tokio::test]
async fn a_redirect_to_another_host_loses_the_token() {
    let upstream = Upstream::start().await;
    let elsewhere = Upstream::start().await;
    let content = noise(3 << 20, 1);
    let digest = upstream.add_blob("a", &content);
    elsewhere.add_blob("a", &content);
    elsewhere.script(|script| script.cuts = [1 << 20].into());
    let challenge = format!(r#"Bearer realm="{}/token""#, upstream.url());
    guard(&upstream, "Bearer t0ken", &challenge);
    upstream.script(|script| {
        script.token = Some(r#"{"token":"t0ken"}"#.to_owned());
        script.redirect = Some(elsewhere.address.clone());
    });
    let shim = Shim::start(&upstream).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));
    let followed = elsewhere.seen(&Method::GET, "/blobs/");
    assert_eq!(followed.len(), 2);
    assert!(followed.iter().all(|seen| seen.authorization.is_none()), "{followed:?}");
}
