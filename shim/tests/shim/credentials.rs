use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use axum::http::{Method, StatusCode};
use larder_config::{Credentials, Secret, SecretSource};
use tempfile::TempDir;

use crate::support::*;

const BASIC: &str = "Basic bGFyZGVyOnA0c3N3b3Jk";

async fn shim_with_credentials(upstream: &Upstream) -> Shim {
    shim_with(upstream, credentials()).await
}

async fn shim_with(upstream: &Upstream, credentials: Option<Credentials>) -> Shim {
    let mut upstreams = upstreams(&[upstream.url()]);
    upstreams.credentials = credentials;
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
    // Another name, another number, and names that only look like the upstream's address.
    for host in ["localhost", "127.0.0.2", "[::1]", "127.0.0.1.example.com", "127.0.0.1@localhost"]
    {
        let challenge = format!(r#"Bearer realm="http://{host}:{port}/token""#);
        guard(&upstream, "Bearer t0ken", &challenge);
        let shim = shim_with_credentials(&upstream).await;
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{host}");
        let reason = answer.text().await.unwrap();
        assert!(reason.contains("another domain"), "{reason}");
        assert!(!reason.contains("p4ssword"), "{reason}");
    }
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

/// Guarantee 9, for the hosts that a token server redirects to.
#[tokio::test]
async fn a_token_server_that_redirects_elsewhere_takes_no_credentials_along() {
    let upstream = Upstream::start().await;
    let foreign = Upstream::start().await;
    foreign.script(|script| script.token = Some(r#"{"token":"t0ken"}"#.to_owned()));
    let challenge = format!(r#"Bearer realm="{}/token""#, upstream.url());
    guard(&upstream, "Bearer t0ken", &challenge);
    let port = foreign.address.rsplit_once(':').unwrap().1;
    let location = format!("http://localhost:{port}/token");
    upstream.script(|script| script.token_redirect = Some(location));
    let digest = upstream.add_blob("a", &noise(100, 1));
    let shim = shim_with_credentials(&upstream).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));
    assert_eq!(upstream.seen(&Method::GET, "/token")[0].authorization.as_deref(), Some(BASIC));
    let followed = foreign.seen(&Method::GET, "");
    assert!(followed.iter().all(|seen| seen.authorization.is_none()), "{followed:?}");
}

#[tokio::test]
async fn a_token_server_elsewhere_that_is_named_sees_the_credentials() {
    let upstream = Upstream::start().await;
    let foreign = Upstream::start().await;
    foreign.script(|script| script.token = Some(r#"{"token":"t0ken"}"#.to_owned()));
    let digest = upstream.add_blob("a", &noise(100, 1));
    let port = foreign.address.rsplit_once(':').unwrap().1;
    let realm = format!("http://localhost:{port}");
    guard(&upstream, "Bearer t0ken", &format!(r#"Bearer realm="{realm}/token""#));
    let mut upstreams = upstreams(&[upstream.url()]);
    (upstreams.credentials, upstreams.realms) = (credentials(), vec![realm]);
    let shim = Shim::of(vec![upstreams]).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));
    assert_eq!(foreign.seen(&Method::GET, "/token")[0].authorization.as_deref(), Some(BASIC));
}

#[tokio::test]
async fn a_password_in_a_file_is_read_again_when_it_is_refused() {
    let upstream = Upstream::start().await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("password");
    let password = SecretSource::File(file.clone());
    let credentials = Credentials::Password { username: "larder".to_owned(), password };
    let shim = shim_with(&upstream, Some(credentials)).await;
    let digest = upstream.add_blob("a", &noise(100, 1));
    let path = format!("a/blobs/{digest}");
    guard(&upstream, BASIC, r#"Basic realm="x""#);
    // Without the file, the operator is told which it is.
    let answer = shim.head(&path).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    for (password, authorization) in [("old", "Basic bGFyZGVyOm9sZA=="), ("p4ssword", BASIC)] {
        fs::write(&file, format!("{password}\n")).unwrap();
        guard(&upstream, authorization, r#"Basic realm="x""#);
        assert_eq!(shim.head(&path).await.status(), StatusCode::OK, "{password}");
    }
}

#[tokio::test]
async fn a_token_is_shown_to_the_registry_and_to_no_token_server() {
    let upstream = Upstream::start().await;
    let foreign = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(100, 1));
    let realm = format!(r#"Bearer realm="{}/token""#, foreign.url());
    guard(&upstream, "Bearer t0ken", &realm);
    let token = SecretSource::Value(Secret::new("t0ken".to_owned()));
    let shim = shim_with(&upstream, Some(Credentials::Token(token))).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));
    assert!(foreign.seen(&Method::GET, "").is_empty());
}

/// A credential helper that counts how often it runs, and what it says.
fn helper(directory: &TempDir, script: &str) -> String {
    let path = directory.path().join("docker-credential-test");
    fs::write(&path, format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_credential_helper_is_asked_as_docker_asks_it() {
    let upstream = Upstream::start().await;
    let directory = TempDir::new().unwrap();
    let script = r#"[ "$1" = get ] && read -r host && echo "$host" >>asked
        [ "$(wc -l <asked)" = 1 ] && password=old || password=p4ssword
        echo "{\"ServerURL\":\"$host\",\"Username\":\"larder\",\"Secret\":\"$password\"}""#;
    let command = helper(&directory, script);
    let asked = || fs::read_to_string(directory.path().join("asked")).unwrap();
    let digest = upstream.add_blob("a", &noise(100, 1));
    let other = upstream.add_blob("other", &noise(100, 1));
    let exec = |lifetime| Some(Credentials::Exec { command: command.clone(), lifetime });

    guard(&upstream, "Basic bGFyZGVyOm9sZA==", r#"Basic realm="x""#);
    let shim = shim_with(&upstream, exec(None)).await;
    for path in [format!("a/blobs/{digest}"), format!("other/blobs/{other}")] {
        assert_eq!(shim.head(&path).await.status(), StatusCode::OK);
    }
    assert_eq!(asked(), format!("{}\n", upstream.address), "without a lifetime it runs once");
    // Unless what it said is refused.
    guard(&upstream, BASIC, r#"Basic realm="x""#);
    assert_eq!(shim.head(&format!("a/blobs/{digest}")).await.status(), StatusCode::OK);
    assert_eq!(asked().lines().count(), 2);

    let shim = shim_with(&upstream, exec(Some(Duration::ZERO))).await;
    for _ in 0..2 {
        assert_eq!(shim.head(&format!("a/blobs/{digest}")).await.status(), StatusCode::OK);
    }
    assert_eq!(asked().lines().count(), 4, "with a lifetime of nothing it runs every time");
}

/// Guarantee 9: what a helper says reaches nobody, however it fails.
#[tokio::test]
async fn a_credential_helper_that_fails_tells_no_secret() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(100, 1));
    guard(&upstream, BASIC, r#"Basic realm="x""#);
    let directory = TempDir::new().unwrap();
    for script in ["echo p4ssword; exit 1", "echo p4ssword", "echo '{\"Secret\":\"p4ssword\"}'"] {
        let command = helper(&directory, script);
        let exec = Credentials::Exec { command, lifetime: None };
        let shim = shim_with(&upstream, Some(exec)).await;
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let text = answer.text().await.unwrap();
        assert!(text.contains("docker-credential-test") && !text.contains("p4ssword"), "{text}");
    }
}
