//! `auth.upstream`: who may see what, by the word of the upstream.

use std::{sync::Arc, time::Duration};

use axum::http::{Method, StatusCode};
use base64::{Engine, engine::general_purpose::STANDARD};
use larder_config::{Auth, Config, Outage, Secret, Upstream as Registry, UpstreamAuth};
use larder_layout::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::{accounts::Accounts, support::*};

const LONG: Duration = Duration::from_secs(600);

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

fn alice() -> String {
    basic("alice", "a")
}

fn bob() -> String {
    basic("bob", "b")
}

/// An upstream with a public repository, and one for each of two users; the same tag in each.
struct Scene {
    upstream: Upstream,
    root: Arc<TempDir>,
    /// Of alice's repository: a layer.
    secret: Digest,
}

impl Scene {
    async fn start() -> Self {
        let upstream = Upstream::start().await;
        for repository in ["public", "alice/app", "bob/app"] {
            upstream.add_manifest(repository, "1", &format!("that of {repository}").into());
            upstream.script(|script| {
                script.content.insert(format!("{repository}/tags/list"), "{}".into());
            });
        }
        let secret = upstream.add_blob("alice/app", &noise(1000, 7));
        let users = [("alice", "a"), ("bob", "b")].map(|(name, password)| {
            ((name.to_owned(), password.to_owned()), vec![format!("{name}/app")])
        });
        let accounts = Accounts {
            address: upstream.address.clone(),
            hides: false,
            public: vec!["public".to_owned()],
            users: users.into(),
        };
        upstream.script(|script| script.accounts = Some(accounts));
        Self { upstream, root: Arc::new(TempDir::new().unwrap()), secret }
    }

    async fn shim(&self, ttl: Duration, outage: Outage) -> Shim {
        self.shim_with(upstreams(&[self.upstream.url()]), ttl, outage).await
    }

    async fn shim_with(&self, registry: Registry, ttl: Duration, outage: Outage) -> Shim {
        let secret = Some(Secret::new("shared".to_owned()));
        let auth = UpstreamAuth { ttl, outage, secret, realm: None };
        let config = Config { auth: Some(Auth::Upstream(auth)), ..config(Some(registry)) };
        Shim::with(config, Arc::clone(&self.root)).await
    }

    fn change(&self, change: impl FnOnce(&mut Accounts)) {
        self.upstream.script(|script| change(script.accounts.as_mut().unwrap()));
    }

    fn fail(&self, status: Option<StatusCode>) {
        self.upstream.script(|script| script.failure = status);
    }
}

async fn get(shim: &Shim, path: &str, authorization: &str) -> (StatusCode, String) {
    let headers = [("authorization", authorization)];
    let headers = &headers[usize::from(authorization.is_empty())..];
    let answer = shim.ask(Method::GET, path, headers).await;
    let status = answer.status();
    (status, String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned())
}

async fn status(shim: &Shim, path: &str, authorization: &str) -> StatusCode {
    get(shim, path, authorization).await.0
}

/// The same while another node pulls it, which is asked by this one and not by its client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_node_pulls_is_shown_only_to_whom_the_upstream_shows_it() {
    let scene = Scene::start().await;
    scene.upstream.allow(0);
    let nodes = [scene.shim(LONG, Outage::Deny).await, scene.shim(LONG, Outage::Deny).await];
    let path = format!("alice/app/blobs/{}", scene.secret);
    let mut answers = Vec::new();
    for node in &nodes {
        let headers = [("authorization", &*alice())];
        answers.push(node.ask(Method::GET, &path, &headers).await);
        assert_eq!(status(node, &path, &bob()).await, StatusCode::UNAUTHORIZED);
    }
    scene.upstream.allow(u64::MAX);
    for answer in answers {
        assert_eq!(check(answer, &scene.secret).await, Ok(()));
    }
    assert_eq!(scene.upstream.seen(&Method::GET, scene.secret.hex()).len(), 1);
}

/// "7. A client sees only what `auth:` says that it may, and cannot tell the rest from what does not
/// exist."
#[tokio::test]
async fn what_is_cached_is_shown_only_to_whom_the_upstream_shows_it() {
    let scene = Scene::start().await;
    let shim = scene.shim(LONG, Outage::Deny).await;
    let secret = &scene.secret;
    let paths = [
        "alice/app/manifests/1".to_owned(),
        format!("alice/app/manifests/{}", digest(b"that of alice/app")),
        format!("alice/app/blobs/{secret}"),
        "alice/app/tags/list".to_owned(),
        format!("alice/app/referrers/{}", digest(b"that of alice/app")),
    ];
    // Cold and warm: the answer is the same before alice has pulled it and after; and however the
    // upstream refuses.
    for (is_warm, hides) in [(false, false), (false, true), (true, false), (true, true)] {
        scene.change(|accounts| accounts.hides = hides);
        for path in &paths {
            for other in
                ["", &bob(), &basic("alice", "wrong"), &basic("mallory", "a"), "Bearer of-alice"]
            {
                assert_eq!(
                    status(&shim, path, other).await,
                    StatusCode::UNAUTHORIZED,
                    "{path} {other}"
                );
            }
        }
        if !is_warm {
            for path in &paths {
                assert_eq!(status(&shim, path, &alice()).await, StatusCode::OK, "{path}");
            }
            shim.has(&format!("repositories/alice/app/_layers/sha256/{}", secret.hex())).await;
        }
    }
    // The catalog would name it, so it is nobody's.
    for authorization in ["", &alice(), &bob()] {
        assert_eq!(status(&shim, "_catalog", authorization).await, StatusCode::UNAUTHORIZED);
    }
    // Nor by its digest through a repository that the client may read.
    for repository in ["public", "bob/app"] {
        for kind in ["blobs", "manifests"] {
            let path = format!("{repository}/{kind}/{secret}");
            assert_eq!(status(&shim, &path, &bob()).await, StatusCode::NOT_FOUND, "{path}");
        }
    }
    let (found, content) = get(&shim, "public/manifests/1", "").await;
    assert_eq!((found, &*content), (StatusCode::OK, "that of public"));
}

#[tokio::test]
async fn private_and_missing_look_the_same() {
    let scene = Scene::start().await;
    let shim = scene.shim(LONG, Outage::Deny).await;
    assert_eq!(status(&shim, "alice/app/manifests/1", &alice()).await, StatusCode::OK);
    for authorization in ["", &bob()] {
        let mut answers = Vec::new();
        for repository in ["alice/app", "alice/nil"] {
            for what in
                ["manifests/1", "manifests/2", "tags/list", &format!("blobs/{}", scene.secret)]
            {
                let path = format!("{repository}/{what}");
                let headers = [("authorization", authorization)];
                let headers = &headers[usize::from(authorization.is_empty())..];
                let answer = shim.ask(Method::GET, &path, headers).await;
                let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
                let text = answer.text().await.unwrap();
                answers.push((challenge.replace(repository, "<name>"), text));
            }
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
    }
    // Of a repository that the client may read, it is told what is missing.
    assert_eq!(status(&shim, "public/manifests/2", "").await, StatusCode::NOT_FOUND);
    assert_eq!(status(&shim, "alice/app/manifests/2", &alice()).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_upstreams_word_holds_for_a_while_and_no_longer() {
    let scene = Scene::start().await;
    let forget = |accounts: &mut Accounts| {
        accounts.users.remove(&("alice".to_owned(), "a".to_owned()));
        accounts.users.insert(("alice".to_owned(), "new".to_owned()), Vec::new());
        accounts.public.clear();
    };
    let (lasting, fleeting) =
        (scene.shim(LONG, Outage::Deny).await, scene.shim(Duration::ZERO, Outage::Deny).await);
    let path = format!("alice/app/blobs/{}", scene.secret);
    for shim in [&lasting, &fleeting] {
        assert_eq!(status(shim, &path, &alice()).await, StatusCode::OK);
        assert_eq!(status(shim, "public/manifests/1", "").await, StatusCode::OK);
    }
    let asked = || scene.upstream.seen(&Method::HEAD, &scene.secret.to_string()).len();
    let before = asked();
    for _ in 0..8 {
        assert_eq!(status(&lasting, &path, &alice()).await, StatusCode::OK);
    }
    assert_eq!(asked(), before, "the upstream was asked again");
    scene.change(forget);
    assert_eq!(status(&lasting, &path, &alice()).await, StatusCode::OK);
    for (path, authorization) in [(&*path, alice()), ("public/manifests/1", String::new())] {
        let status = status(&fleeting, path, &authorization).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// Without credentials of its own, the cache fetches what is private with the client's; and what is
/// public with nobody's.
#[tokio::test]
async fn credentials_go_to_the_upstream_when_they_are_needed_and_only_there() {
    let scene = Scene::start().await;
    let shim = scene.shim(LONG, Outage::Deny).await;
    let shown = |path: &str| -> Vec<_> {
        let seen = scene.upstream.seen(&Method::GET, path).into_iter();
        seen.filter_map(|seen| seen.authorization).collect()
    };
    assert_eq!(status(&shim, "public/manifests/1", &alice()).await, StatusCode::OK);
    assert_eq!(shown("/token"), Vec::<String>::new());
    let (path, authorization) = (format!("alice/app/blobs/{}", scene.secret), alice());
    let answer = shim.ask(Method::GET, &path, &[("authorization", &authorization)]).await;
    assert_eq!(check(answer, &scene.secret).await, Ok(()));
    assert_eq!(shown("/token"), [alice()], "asked for once, and used for the check and the pull");
    assert_eq!(shown("/blobs/").last().map(|shown| &**shown), Some("Bearer of-alice"));

    // The token server of another domain is not shown the client's credentials either.
    let foreign = Upstream::start().await;
    let port = foreign.address.rsplit_once(':').unwrap().1;
    scene.change(|accounts| accounts.address = format!("localhost:{port}"));
    assert_eq!(status(&shim, "bob/app/manifests/1", &bob()).await, StatusCode::UNAUTHORIZED);
    assert!(foreign.seen(&Method::GET, "").iter().all(|seen| seen.authorization.is_none()));
}

/// What Larder itself may see shows nobody anything.
#[tokio::test]
async fn the_caches_own_account_is_used_for_what_is_public_alone() {
    let scene = Scene::start().await;
    let all = ["public", "alice/app", "bob/app"].map(str::to_owned).to_vec();
    let own = ("larder".to_owned(), "p4ssword".to_owned());
    scene.change(|accounts| drop(accounts.users.insert(own, all)));
    let registry = Registry { credentials: credentials(), ..upstreams(&[scene.upstream.url()]) };
    let shim = scene.shim_with(registry, LONG, Outage::PublicOnly).await;
    let path = format!("alice/app/blobs/{}", scene.secret);
    for _ in 0..2 {
        for other in ["", &bob()] {
            assert_eq!(status(&shim, &path, other).await, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(status(&shim, &path, &alice()).await, StatusCode::OK);
        assert_eq!(status(&shim, "public/manifests/1", "").await, StatusCode::OK);
    }
    let shown = |path: &str| {
        scene.upstream.seen(&Method::GET, path).pop().and_then(|seen| seen.authorization)
    };
    assert_eq!(shown("/alice/app/blobs/").as_deref(), Some("Bearer of-alice"));
    assert_eq!(shown("/public/manifests/").as_deref(), Some("Bearer of-larder"));
}

#[tokio::test]
async fn an_outage_is_met_as_declared() {
    let trouble = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
    // The least that is no grace any more when the upstream is asked.
    let short = Duration::from_millis(1);
    for (outage, of_alice, of_all) in [
        (Outage::Deny, false, false),
        (Outage::Grace(short), false, false),
        (Outage::Grace(LONG), true, true),
        (Outage::PublicOnly, false, true),
    ] {
        let scene = Scene::start().await;
        let shim = scene.shim(Duration::ZERO, outage).await;
        let blob = format!("alice/app/blobs/{}", scene.secret);
        for (path, authorization) in [(&*blob, alice()), ("public/manifests/1", String::new())] {
            assert_eq!(status(&shim, path, &authorization).await, StatusCode::OK);
        }
        let links = format!("repositories/alice/app/_layers/sha256/{}", scene.secret.hex());
        shim.has(&links).await;
        shim.has("repositories/public/_tags/1").await;
        tokio::time::sleep(short).await;
        for trouble in trouble {
            scene.fail(Some(trouble));
            let expected = |is_shown| {
                if is_shown { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
            };
            assert_eq!(status(&shim, &blob, &alice()).await, expected(of_alice), "{outage:?}");
            let public = status(&shim, "public/manifests/1", "").await;
            assert_eq!(public, expected(of_all), "{outage:?}");
            let public = status(&shim, "public/manifests/1", &bob()).await;
            assert_eq!(public, expected(of_all), "{outage:?}");
            // To whom it was never shown, it is not.
            for other in ["", &bob(), &basic("alice", "wrong")] {
                let status = status(&shim, &blob, other).await;
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{outage:?} {other}");
            }
        }
        // A refusal ends it: what is not allowed any more is not in an outage either.
        scene.fail(None);
        scene.change(|accounts| {
            accounts.users.clear();
            accounts.public.clear();
        });
        for (path, authorization) in [(&*blob, alice()), ("public/manifests/1", String::new())] {
            let refused = status(&shim, path, &authorization).await;
            assert_eq!(refused, StatusCode::UNAUTHORIZED, "{outage:?} {path}");
            scene.fail(Some(trouble[0]));
            let status = status(&shim, path, &authorization).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{outage:?} {path}");
            scene.fail(None);
        }
    }
}

async fn token(shim: &Shim, authorization: &str) -> Result<String, StatusCode> {
    let url = shim.url.replace("/v2", "/token?service=larder&scope=repository:alice/app:pull");
    let mut request = reqwest::Client::new().get(url);
    if !authorization.is_empty() {
        request = request.header("authorization", authorization);
    }
    let answer = request.send().await.unwrap();
    match answer.status() {
        StatusCode::OK => {
            let grant: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            Ok(format!("Bearer {}", grant["token"].as_str().unwrap()))
        }
        status => Err(status),
    }
}

/// docker takes what is public from a registry that wants tokens, and gives it a password once.
#[tokio::test]
async fn a_client_logs_in_for_a_token_that_every_node_knows() {
    let scene = Scene::start().await;
    let (one, other) = (scene.shim(LONG, Outage::Deny).await, scene.shim(LONG, Outage::Deny).await);
    let answer = one.get("").await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let expected = format!(r#"Bearer realm="http://{}/token",service="larder""#, one.address);
    assert_eq!(answer.headers()["www-authenticate"], &*expected);

    assert_eq!(token(&one, &basic("alice", "wrong")).await, Err(StatusCode::UNAUTHORIZED));
    let (alice, nobody) = (token(&one, &alice()).await.unwrap(), token(&one, "").await.unwrap());
    for shim in [&one, &other] {
        for token in [&alice, &nobody] {
            assert_eq!(status(shim, "", token).await, StatusCode::OK);
            assert_eq!(status(shim, "public/manifests/1", token).await, StatusCode::OK);
        }
        assert_eq!(status(shim, "alice/app/manifests/1", &alice).await, StatusCode::OK);
        assert_eq!(status(shim, "alice/app/manifests/1", &nobody).await, StatusCode::UNAUTHORIZED);
    }
    // Only as long as the upstream is there: then nobody can say that the password is wrong.
    scene.fail(Some(StatusCode::BAD_GATEWAY));
    assert!(token(&one, &basic("alice", "wrong")).await.is_ok());
}

/// A cache behind another one: each asks the next, with the client's credentials.
#[tokio::test]
async fn in_a_chain_the_first_upstream_decides() {
    let scene = Scene::start().await;
    let outer = scene.shim(LONG, Outage::Deny).await;
    let inner = Scene { root: Arc::new(TempDir::new().unwrap()), ..Scene::start().await };
    let through = upstreams(&[format!("http://{}", outer.address)]);
    let inner = inner.shim_with(through, LONG, Outage::Deny).await;
    let path = format!("alice/app/blobs/{}", scene.secret);
    assert_eq!(status(&inner, &path, &alice()).await, StatusCode::OK);
    for other in ["", &bob()] {
        assert_eq!(status(&inner, &path, other).await, StatusCode::UNAUTHORIZED);
    }
}

/// Elsewhere there are no tokens to be had.
#[tokio::test]
async fn tokens_are_for_this_kind_of_access_alone() {
    let scene = Scene::start().await;
    let shim = Shim::start(&scene.upstream).await;
    assert_eq!(token(&shim, "").await, Err(StatusCode::NOT_FOUND));
}
