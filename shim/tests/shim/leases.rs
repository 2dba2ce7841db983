//! Several nodes: one of them fetches a blob, and the others follow it.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    sync::{Arc, LazyLock},
};

use axum::{
    body::Bytes,
    http::{Method, StatusCode},
};
use futures_util::future::join_all;
use larder_config::Http;
use larder_layout::{Algorithm, Digest, Directory, Entry, Lease};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};

use crate::{support::*, tls::certify};

const SIZE_BYTES: usize = 3 << 20;
static CONTENT: LazyLock<Bytes> = LazyLock::new(|| noise(SIZE_BYTES, 1));

/// An upstream with a blob, which it sends only half of for now.
async fn half_sent() -> (Upstream, Digest) {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &CONTENT);
    upstream.allow(SIZE_BYTES as u64 / 2);
    (upstream, digest)
}

/// Nodes that share a plain directory.
async fn nodes(upstream: &Upstream, count: usize) -> Vec<Shim> {
    let root = Arc::new(TempDir::new().unwrap());
    let registry = || Some(upstreams(&[upstream.url()]));
    join_all((0..count).map(|_| Shim::over(Arc::clone(&root), registry()))).await
}

/// A node that says that it has the blob, and breaks off when it is told to.
async fn promises(mut breaks: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE_BYTES}\r\n\r\n");
            let _ = connection.read(&mut [0; 4096]).await;
            let _ = connection.write_all(head.as_bytes()).await;
            breaks.wait_for(|breaks| *breaks).await.unwrap();
        }
    });
    address
}

impl Shim {
    fn leases(&self) -> Vec<String> {
        let directory = Entry::Directory(Directory::LeasesOf(Algorithm::Sha256));
        self.list(directory.path().to_str().unwrap())
    }

    /// What the lease of a blob says, once there is one.
    async fn lease(&self, digest: &Digest) -> (String, String) {
        let lease = Entry::Lease(Lease { digest: digest.clone(), turn: 0 }).path();
        eventually("a lease", || self.root.path().join(&lease).is_symlink()).await;
        let target = fs::read_link(self.root.path().join(lease)).unwrap();
        let (url, token) = target.to_str().unwrap().split_once('#').unwrap();
        (url.to_owned(), token.to_owned())
    }

    /// Asks as another node does.
    async fn follow(&self, digest: &Digest, authorization: Option<&str>) -> reqwest::Response {
        let url = format!("http://{}/leases/{digest}", self.address);
        let request = reqwest::Client::new().get(url);
        let request = authorization
            .into_iter()
            .fold(request, |request, shown| request.header(reqwest::header::AUTHORIZATION, shown));
        request.send().await.unwrap()
    }

    async fn has_ended_its_leases(&self) {
        eventually("no lease", || self.leases().is_empty()).await;
    }
}

/// "10. A cold blob is fetched from the upstream once, however many clients of however many nodes ask for
/// it, while the storage is up and the nodes reach each other."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_blob_is_fetched_once_for_all_nodes() {
    let (upstream, digest) = half_sent().await;
    let nodes = nodes(&upstream, 3).await;
    let path = format!("a/blobs/{digest}");
    let asked = nodes.iter().flat_map(|node| [node.get(&path), node.get(&path)]);
    let answers = join_all(asked).await;
    assert_eq!(nodes[0].leases(), [digest.hex()]);
    upstream.allow(u64::MAX);
    let checks = join_all(answers.into_iter().map(|answer| check(answer, &digest)));
    assert_eq!(checks.await, vec![Ok(()); 6]);
    assert_eq!(upstream.seen(&Method::GET, digest.hex()).len(), 1);
    nodes[0].has(&format!("repositories/a/_layers/sha256/{}", digest.hex())).await;
    nodes[0].has_ended_its_leases().await;
    eventually("nothing staged", || nodes[0].list("ingest").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_tls_follow_each_other() {
    let (upstream, digest) = half_sent().await;
    let root = Arc::new(TempDir::new().unwrap());
    let mut nodes = Vec::new();
    for _ in 0..2 {
        // Each has a certificate of its own, for a name that is not its address.
        let files = TempDir::new().unwrap();
        let (tls, client) = certify(&files);
        let mut config = config(Some(upstreams(&[upstream.url()])));
        config.http = Http { tls: Some(tls), ..config.http };
        let node = Shim::with(config, Arc::clone(&root)).await;
        let port = node.address.rsplit_once(':').unwrap().1;
        let url = format!("https://localhost:{port}/v2/a/blobs/{digest}");
        nodes.push((node, client, url));
    }
    let answers = nodes.iter().map(|(_, client, url)| client.get(url).send());
    let answers = join_all(answers).await;
    upstream.allow(u64::MAX);
    for answer in answers {
        assert_eq!(check(answer.unwrap(), &digest).await, Ok(()));
    }
    assert_eq!(upstream.seen(&Method::GET, digest.hex()).len(), 1);
}

/// What nodes have left that died, were restarted, or are of another kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_nobody_has_are_passed_over_and_removed() {
    let (upstream, digest) = half_sent().await;
    let nodes = nodes(&upstream, 3).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let token = "0".repeat(32);
    let pinned = format!("https://{}#{token}.{}", nodes[0].address, "0".repeat(64));
    let left = [
        format!("http://{closed}#{token}"),
        format!("http://{}#{token}", promises(watch::channel(true).1).await),
        format!("http://{}#{token}", nodes[2].address),
        pinned,
        "something else".to_owned(),
    ];
    for (turn, target) in (0..).zip(left) {
        let lease = Entry::Lease(Lease { digest: digest.clone(), turn });
        symlink(target, nodes[0].root.path().join(lease.path())).unwrap();
    }
    let path = format!("a/blobs/{digest}");
    let answers = join_all(nodes.iter().map(|node| node.get(&path))).await;
    upstream.allow(u64::MAX);
    let checks = join_all(answers.into_iter().map(|answer| check(answer, &digest)));
    assert_eq!(checks.await, vec![Ok(()); 3]);
    assert_eq!(upstream.seen(&Method::GET, digest.hex()).len(), 1);
    nodes[0].has_ended_its_leases().await;
}

/// A node that has published the blob, and dies before it has sent it to those that follow it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_been_published_meanwhile_is_not_fetched_again() {
    let (upstream, digest) = half_sent().await;
    let nodes = nodes(&upstream, 1).await;
    let root = nodes[0].root.path();
    let (breaks, receiver) = watch::channel(false);
    let target = format!("http://{}#{}", promises(receiver).await, "0".repeat(32));
    let lease = Entry::Lease(Lease { digest: digest.clone(), turn: 0 });
    symlink(target, root.join(lease.path())).unwrap();
    let answer = nodes[0].get(&format!("a/blobs/{digest}")).await;
    fs::write(root.join(Entry::Blob(digest.clone()).path()), &*CONTENT).unwrap();
    breaks.send_replace(true);
    assert_eq!(check(answer, &digest).await, Ok(()));
    assert!(upstream.seen(&Method::GET, digest.hex()).is_empty());
    nodes[0].has_ended_its_leases().await;
}

/// Leases save traffic, and nothing depends on them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_lease_can_be_had_each_node_pulls_by_itself() {
    let (upstream, digest) = half_sent().await;
    upstream.allow(u64::MAX);
    let nodes = nodes(&upstream, 2).await;
    fs::remove_dir_all(nodes[0].root.path().join("leases")).unwrap();
    let answer = nodes[0].get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));

    let other = upstream.add_blob("a", &noise(1000, 2));
    fs::create_dir_all(nodes[0].root.path().join("leases/sha256")).unwrap();
    for turn in 0..=Lease::TURN_MAX {
        let lease = Entry::Lease(Lease { digest: other.clone(), turn });
        symlink("nobody", nodes[0].root.path().join(lease.path())).unwrap();
    }
    let answer = nodes[1].get(&format!("a/blobs/{other}")).await;
    assert_eq!(check(answer, &other).await, Ok(()));
}

/// "7. A client sees only what `auth:` says that it may": nor by a repository that has not the blob.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_of_another_node_is_no_way_to_a_blob_of_another_repository() {
    let (upstream, digest) = half_sent().await;
    let nodes = nodes(&upstream, 2).await;
    let holders = nodes[0].get(&format!("a/blobs/{digest}")).await;
    let (url, token) = nodes[0].lease(&digest).await;
    assert_eq!(url, format!("http://{}", nodes[0].address));

    let foreign = nodes[1].get(&format!("b/blobs/{digest}")).await;
    assert_eq!(foreign.status(), StatusCode::NOT_FOUND);
    let wrong = format!("Bearer {}", "0".repeat(32));
    for shown in [None, Some(""), Some("Bearer "), Some(&*wrong), Some(&*token)] {
        let refused = nodes[0].follow(&digest, shown).await;
        assert_eq!(refused.status(), StatusCode::NOT_FOUND, "{shown:?}");
    }
    let shown = format!("Bearer {token}");
    let other = nodes[0].follow(&Digest::of(Algorithm::Sha256, b"other"), Some(&shown)).await;
    assert_eq!(other.status(), StatusCode::NOT_FOUND, "a token is one blob's");
    let follower = nodes[0].follow(&digest, Some(&shown)).await;
    upstream.allow(u64::MAX);
    assert_eq!(check(follower, &digest).await, Ok(()));
    assert_eq!(check(holders, &digest).await, Ok(()));
    nodes[0].has_ended_its_leases().await;
    let late = nodes[0].follow(&digest, Some(&shown)).await;
    assert_eq!(late.status(), StatusCode::NOT_FOUND, "it ends with the pull");
}

/// The right to a blob is asked for with `HEAD`, which a few registries do not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_does_not_say_who_may_is_asked_by_each_node() {
    let (upstream, digest) = half_sent().await;
    upstream.script(|script| script.refuses_heads = true);
    let nodes = nodes(&upstream, 2).await;
    let path = format!("a/blobs/{digest}");
    let answers = join_all(nodes.iter().map(|node| node.get(&path))).await;
    upstream.allow(u64::MAX);
    for answer in answers {
        assert_eq!(check(answer, &digest).await, Ok(()));
    }
    assert_eq!(upstream.seen(&Method::GET, digest.hex()).len(), 2);
}

#[tokio::test]
async fn a_pull_that_fails_ends_its_lease() {
    let upstream = Upstream::start().await;
    let nodes = nodes(&upstream, 1).await;
    let digest = Digest::of(Algorithm::Sha256, b"nowhere");
    let answer = nodes[0].get(&format!("a/blobs/{digest}")).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(nodes[0].leases().is_empty());
}

/// "1. Bytes served under a digest hash to it, or the transfer ends in an error."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_holder_cannot_prove_no_follower_serves() {
    let upstream = Upstream::start().await;
    let digest = Digest::of(Algorithm::Sha256, &CONTENT);
    let mut wrong = CONTENT.to_vec();
    wrong[SIZE_BYTES - 1] ^= 1;
    let path = format!("a/blobs/{digest}");
    upstream.script(|script| drop(script.content.insert(path.clone(), wrong.into())));
    upstream.allow(SIZE_BYTES as u64 / 2);
    let nodes = nodes(&upstream, 3).await;
    let answers = join_all(nodes.iter().map(|node| node.get(&path))).await;
    upstream.allow(u64::MAX);
    for answer in answers {
        assert!(check(answer, &digest).await.is_err());
    }
    assert!(nodes[0].list("blobs/sha256").is_empty());
    nodes[0].has_ended_its_leases().await;
}
