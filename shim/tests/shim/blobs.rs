use std::{fs, sync::Arc};

use axum::http::{Method, StatusCode};
use futures_util::{StreamExt, future::join_all};
use tokio::time::timeout;

use crate::support::*;

const MIB: usize = 1 << 20;

/// "10. A cold blob is fetched from the upstream once, however many clients of however many nodes ask for
/// it, while the storage is up and the nodes reach each other."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_of_a_cold_blob_cost_the_upstream_one_get() {
    let upstream = Upstream::start().await;
    // A slow one that has 16 MiB to come may be fetched in parts.
    let digest = upstream.add_blob("library/big", &noise(15 * MIB, 1));
    let shim = Shim::start(&upstream).await;
    let path = format!("library/big/blobs/{digest}");

    // All are there before the upstream has sent half of it.
    upstream.allow(7 * MIB as u64);
    let answers = join_all((0..64).map(|_| shim.get(&path))).await;
    upstream.allow(u64::MAX);
    let checks = join_all(answers.into_iter().map(|answer| {
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.content_length(), Some(15 * MIB as u64));
        check(answer, &digest)
    }));
    assert_eq!(checks.await, vec![Ok(()); 64]);

    shim.has(&format!("repositories/library/big/_layers/sha256/{}", digest.hex())).await;
    assert_eq!(check(shim.get(&path).await, &digest).await, Ok(()));
    assert_eq!(upstream.seen(&Method::GET, "/blobs/").len(), 1);
    assert_eq!(shim.list("ingest"), Vec::<String>::new());
}

#[tokio::test]
async fn clients_stream_while_it_downloads_and_those_who_leave_disturb_nobody() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(8 * MIB, 2));
    let shim = Shim::start(&upstream).await;
    let path = format!("a/blobs/{digest}");

    upstream.allow(4 * MIB as u64);
    let first = shim.get(&path).await;
    let second = shim.get(&path).await;
    let mut first = first.bytes_stream();
    let early = first.next().await.unwrap().unwrap();
    assert!(!early.is_empty(), "nothing came before the download had ended");
    drop(first);

    upstream.allow(u64::MAX);
    assert_eq!(check(second, &digest).await, Ok(()));
    assert_eq!(upstream.seen(&Method::GET, "/blobs/").len(), 1);
}

#[tokio::test]
async fn a_pull_that_every_client_left_still_fills_the_directory() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(4 * MIB, 3));
    let shim = Shim::start(&upstream).await;
    upstream.allow(MIB as u64);
    drop(shim.get(&format!("a/blobs/{digest}")).await);
    upstream.allow(u64::MAX);
    shim.has(&format!("repositories/a/_layers/sha256/{}", digest.hex())).await;
    assert_eq!(upstream.seen(&Method::GET, "/blobs/").len(), 1);
}

/// Guarantee 1: bytes served under a digest hash to it, or the transfer ends in an error.
/// Guarantee 3: no partial blob is ever visible under `blobs/`.
#[tokio::test]
async fn a_wrong_byte_reaches_no_client_as_a_whole_and_heals() {
    for hides_length in [false, true] {
        for (size_bytes, position) in [(4 * MIB, 0), (4 * MIB, 4 * MIB - 1), (1, 0), (0, 0)] {
            let upstream = Upstream::start().await;
            let content = noise(size_bytes, 4);
            let digest = if size_bytes == 0 { digest(b"not empty") } else { digest(&content) };
            let path = format!("a/blobs/{digest}");
            let mut wrong = content.to_vec();
            if let Some(byte) = wrong.get_mut(position) {
                *byte ^= 1;
            }
            upstream.script(|script| {
                script.hides_length = hides_length;
                script.content.insert(path.clone(), wrong.into());
            });
            let shim = Shim::start(&upstream).await;
            let ranges = ["bytes=0-", "bytes=0-0", "bytes=100-199", "bytes=-5"];
            let answers = join_all(ranges.map(async |range| {
                let url = format!("{}/{path}", shim.url);
                let request = reqwest::Client::new().get(url).header("range", range);
                // The cut may come before the client has read the head of the answer.
                let Ok(answer) = timeout(PATIENCE, request.send()).await.unwrap() else {
                    return true;
                };
                if !answer.status().is_success() {
                    return true;
                }
                let mut body = answer.bytes_stream();
                let mut received_bytes = 0;
                while let Some(chunk) = body.next().await {
                    let Ok(chunk) = chunk else {
                        // Not even all the bytes have come: a client of HTTP/1.0 sees no other end.
                        return received_bytes < size_bytes.max(1);
                    };
                    received_bytes += chunk.len();
                }
                false
            }));
            assert_eq!(
                answers.await,
                [true; 4],
                "{position} of {size_bytes} is wrong, {hides_length}"
            );
            assert_eq!(shim.list("blobs/sha256"), Vec::<String>::new());
            eventually("ingest is empty", || shim.list("ingest").is_empty()).await;

            if size_bytes > 0 {
                upstream.add_blob("a", &content);
                assert_eq!(check(shim.get(&path).await, &digest).await, Ok(()));
                shim.has(&format!("blobs/sha256/{}", digest.hex())).await;
            }
        }
    }
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    for (ignores_ranges, hides_length) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let upstream = Upstream::start().await;
        let digest = upstream.add_blob("a", &noise(5 * MIB, 5));
        upstream.script(|script| {
            script.cuts = [2 * MIB, 3 * MIB - 1].into();
            script.ignores_ranges = ignores_ranges;
            script.hides_length = hides_length;
        });
        let shim = Shim::start(&upstream).await;
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        assert_eq!(check(answer, &digest).await, Ok(()));

        let gets = upstream.seen(&Method::GET, "/blobs/");
        assert!(gets.len() > 1, "the script cut nothing");
        let starts = gets.iter().map(|seen| match &seen.range {
            Some(range) => range[6..range.len() - 1].parse().unwrap(),
            None => 0,
        });
        let starts: Vec<usize> = starts.collect();
        assert!(starts.is_sorted() && starts[1] > 0, "asked from {starts:?}");
    }
}

/// Guarantee 6: nothing hangs, and every wait has a deadline.
#[tokio::test]
async fn an_upstream_that_stalls_is_asked_for_the_rest() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(2 * MIB, 6));
    upstream.allow(MIB as u64);
    let shim = Shim::start(&upstream).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    eventually("a second GET", || upstream.seen(&Method::GET, "/blobs/").len() == 2).await;
    upstream.allow(u64::MAX);
    assert_eq!(check(answer, &digest).await, Ok(()));
}

#[tokio::test]
async fn another_upstream_takes_over_when_one_is_gone() {
    let gone = Upstream::start().await;
    gone.script(|script| script.failure = Some(StatusCode::BAD_GATEWAY));
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(MIB, 6));
    let urls = [gone.url(), "http://127.0.0.1:1".to_owned(), upstream.url()];
    let shim =
        Shim::over(Arc::new(tempfile::TempDir::new().unwrap()), Some(upstreams(&urls))).await;
    for _ in 0..3 {
        let answer = shim.head(&format!("a/blobs/{digest}")).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!(check(shim.get(&format!("a/blobs/{digest}")).await, &digest).await, Ok(()));
}

#[tokio::test]
async fn a_blob_is_not_reached_through_a_repository_that_has_it_not() {
    let upstream = Upstream::start().await;
    let content = noise(2 * MIB, 7);
    let digest = upstream.add_blob("owner", &content);
    upstream.add_blob("sibling", &content);
    let shim = Shim::start(&upstream).await;

    // While it is pulled, and when it is cached.
    upstream.allow(MIB as u64);
    let owner = shim.get(&format!("owner/blobs/{digest}")).await;
    let stranger = format!("stranger/blobs/{digest}");
    assert_eq!(shim.get(&stranger).await.status(), StatusCode::NOT_FOUND);
    let sibling = shim.get(&format!("sibling/blobs/{digest}")).await;
    upstream.allow(u64::MAX);
    assert_eq!(check(owner, &digest).await, Ok(()));
    assert_eq!(check(sibling, &digest).await, Ok(()));
    for repository in ["owner", "sibling"] {
        shim.has(&format!("repositories/{repository}/_layers/sha256/{}", digest.hex())).await;
    }
    assert_eq!(shim.get(&stranger).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(shim.head(&stranger).await.status(), StatusCode::NOT_FOUND);
    assert!(!shim.root.path().join("repositories/stranger").exists());

    // Whoever has it at the upstream gets it without another transfer.
    upstream.add_blob("late", &content);
    let late = shim.get(&format!("late/blobs/{digest}")).await;
    assert_eq!(check(late, &digest).await, Ok(()));
    shim.has(&format!("repositories/late/_layers/sha256/{}", digest.hex())).await;
    assert_eq!(upstream.seen(&Method::GET, "/blobs/").len(), 1);
}

/// Guarantee 4: a blob that is cached is served while the upstream is down.
#[tokio::test]
async fn a_cached_blob_outlives_the_upstream_and_the_shim() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(MIB, 8));
    let path = format!("a/blobs/{digest}");
    let shim = Shim::start(&upstream).await;
    assert_eq!(check(shim.get(&path).await, &digest).await, Ok(()));
    shim.has(&format!("repositories/a/_layers/sha256/{}", digest.hex())).await;

    let gone = upstreams(&["http://127.0.0.1:1".to_owned()]);
    for upstreams in [Some(gone), None] {
        let shim = Shim::over(Arc::clone(&shim.root), upstreams).await;
        assert_eq!(check(shim.get(&path).await, &digest).await, Ok(()));
        let unknown = format!("a/blobs/{}", self::digest(b"unknown"));
        assert!(!shim.get(&unknown).await.status().is_success());
    }
}

/// Degraded: storage down, so blobs are streamed from the upstream uncached.
#[tokio::test]
async fn without_a_working_directory_blobs_still_stream() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(3 * MIB, 9));
    let shim = Shim::start(&upstream).await;
    fs::remove_dir(shim.root.path().join("ingest")).unwrap();
    for _ in 0..2 {
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        assert_eq!(check(answer, &digest).await, Ok(()));
    }
    fs::remove_dir_all(shim.root.path()).unwrap();
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));
}

#[tokio::test]
async fn a_drain_waits_for_the_clients_and_the_directory() {
    let upstream = Upstream::start().await;
    let digest = upstream.add_blob("a", &noise(2 * MIB, 10));
    let mut shim = Shim::start(&upstream).await;
    upstream.allow(MIB as u64);
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    let stopped = shim.terminate();
    upstream.allow(u64::MAX);
    assert_eq!(check(answer, &digest).await, Ok(()));
    timeout(PATIENCE, stopped).await.unwrap().unwrap();
    assert!(shim.root.path().join("blobs/sha256").join(digest.hex()).exists());
}

/// "An upstream […] with gzip it should not have sent": it is told not to, and what it says of layers,
/// which are compressed files, is not taken for more.
#[tokio::test]
async fn an_upstream_is_asked_for_what_it_has_as_it_is() {
    let upstream = Upstream::start().await;
    upstream.script(|script| script.compresses = true);
    let blob = upstream.add_blob("a", &noise(100_000, 1));
    upstream.add_manifest("a", "1", &"a manifest".into());
    let shim = Shim::start(&upstream).await;
    let answer = shim.get(&format!("a/blobs/{blob}")).await;
    assert!(!answer.headers().contains_key("content-encoding"));
    assert_eq!(check(answer, &blob).await, Ok(()));
    assert_eq!(shim.get("a/manifests/1").await.text().await.unwrap(), "a manifest");
}
