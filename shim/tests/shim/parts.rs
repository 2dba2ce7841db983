//! Upstreams that are slow on one connection.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use futures_util::{StreamExt, future::join_all};
use tokio::time::timeout;

use crate::support::*;

const MIB: usize = 1 << 20;
const SIZE_BYTES: usize = 32 * MIB;
/// Before each 64 KiB: less than 8 MiB/s. That is known to be slow before 8 MiB have come, so three parts of 8
/// MiB are asked for.
const PAUSE: Duration = Duration::from_millis(8);
/// How many connections there may be before slow pulls get no more than one each.
const CONNECTIONS_MAX: usize = 32;

async fn slow_upstream() -> Upstream {
    let upstream = Upstream::start().await;
    upstream.script(|script| script.pause = PAUSE);
    upstream
}

/// The parts that were asked for, in the order of the blob.
fn parts(upstream: &Upstream, digest: &str) -> Vec<(usize, usize)> {
    let seen = upstream.seen(&Method::GET, digest);
    let ranges = seen.iter().filter_map(Seen::range);
    let mut parts: Vec<_> = ranges.filter_map(|(start, end)| Some((start, end?))).collect();
    parts.sort_unstable();
    parts
}

/// "10. A cold blob is fetched from the upstream once, however many clients of however many nodes ask for
/// it, while the storage is up and the nodes reach each other."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_blob_comes_over_several_connections_and_no_part_twice() {
    let upstream = slow_upstream().await;
    let digest = upstream.add_blob("a", &noise(SIZE_BYTES, 1));
    let shim = Shim::start(&upstream).await;
    let path = format!("a/blobs/{digest}");

    let answers = join_all((0..4).map(|_| shim.get(&path))).await;
    let checks = join_all(answers.into_iter().map(|answer| check(answer, &digest)));
    assert_eq!(checks.await, vec![Ok(()); 4]);
    shim.has(&format!("repositories/a/_layers/sha256/{}", digest.hex())).await;

    let parts = parts(&upstream, digest.hex());
    assert_eq!(parts.len(), 3, "{parts:?}");
    assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0), "{parts:?}");
    assert_eq!(parts[parts.len() - 1].1, SIZE_BYTES, "{parts:?}");
    assert_eq!(upstream.seen(&Method::GET, digest.hex()).len(), 1 + parts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_part_that_breaks_only_the_rest_is_asked_for_again() {
    // All parts break, and in the second round what is asked for next as well.
    for and_then in [None, Some(0)] {
        let upstream = slow_upstream().await;
        let digest = upstream.add_blob("a", &noise(SIZE_BYTES, 2));
        let cuts = [SIZE_BYTES, MIB + 3, MIB + 3, MIB + 3].into_iter().chain(and_then);
        upstream.script(|script| script.cuts = cuts.collect());
        let shim = Shim::start(&upstream).await;
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        assert_eq!(check(answer, &digest).await, Ok(()));

        let seen = upstream.seen(&Method::GET, digest.hex());
        let ranges: Vec<_> = seen.iter().filter_map(Seen::range).collect();
        let (wholes, rests) = ranges.split_at(3);
        if and_then.is_some() {
            let [(broken, Some(_)), (again, None)] = rests else { panic!("{ranges:?}") };
            assert_eq!(broken, again, "the one connection goes on where the parts end");
            continue;
        }
        assert_eq!(rests.len(), 3, "{ranges:?}");
        for (start, end) in rests {
            // Behind the last there is nothing that another part would bring.
            let end = end.unwrap_or(SIZE_BYTES);
            let (whole, _) = wholes.iter().find(|whole| whole.1 == Some(end)).unwrap();
            assert!((whole + 1..=whole + MIB + 3).contains(start), "{ranges:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_does_not_come_is_overtaken_and_those_behind_it_are_used() {
    let (upstream, elsewhere) = (slow_upstream().await, Upstream::start().await);
    let content = noise(SIZE_BYTES, 6);
    let digest = upstream.add_blob("a", &content);
    elsewhere.add_blob("a", &content);
    elsewhere.allow(0);
    upstream.allow(20 * MIB as u64);
    let shim = Shim::start(&upstream).await;

    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    upstream.script(|script| script.redirect = Some(elsewhere.address.clone()));
    let (mut body, mut received) = (answer.bytes_stream(), Vec::new());
    // The first part begins before 17 MiB.
    while received.len() < 18 * MIB {
        received.extend(timeout(PATIENCE, body.next()).await.unwrap().unwrap().unwrap());
    }
    elsewhere.allow(u64::MAX);
    let parts = parts(&elsewhere, digest.hex());
    assert_eq!(parts.len(), 3, "{parts:?}");
    // The one connection may go no further than to the second part.
    upstream.allow(parts[1].0 as u64 + MIB as u64);
    while let Some(chunk) = timeout(PATIENCE, body.next()).await.unwrap() {
        received.extend(chunk.unwrap());
    }
    assert!(received == content);
    assert_eq!(upstream.seen(&Method::GET, digest.hex()).len(), 4);
}

/// Guarantee 6: nothing hangs, and every wait has a deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_stall_are_asked_for_again() {
    let (upstream, elsewhere) = (slow_upstream().await, Upstream::start().await);
    let content = noise(SIZE_BYTES, 8);
    let digest = upstream.add_blob("a", &content);
    elsewhere.add_blob("a", &content);
    // The first part comes as far as here, and nothing of the others.
    elsewhere.allow(18 * MIB as u64);
    let shim = Shim::start(&upstream).await;
    let answer = shim.get(&format!("a/blobs/{digest}")).await;
    upstream.script(|script| script.redirect = Some(elsewhere.address.clone()));
    eventually("three parts", || parts(&elsewhere, digest.hex()).len() == 3).await;
    upstream.script(|script| script.redirect = None);
    assert_eq!(check(answer, &digest).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_gives_no_parts_is_read_to_the_end_over_the_one_connection() {
    type Refusal = fn(&mut Script);
    let refusals: [Refusal; 3] = [
        |script| script.failure = Some(StatusCode::TOO_MANY_REQUESTS),
        |script| script.failure = Some(StatusCode::INTERNAL_SERVER_ERROR),
        |script| script.ignores_ranges = true,
    ];
    for refuse in refusals {
        let upstream = slow_upstream().await;
        let digest = upstream.add_blob("a", &noise(SIZE_BYTES, 3));
        let shim = Shim::start(&upstream).await;
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        upstream.script(refuse);
        assert_eq!(check(answer, &digest).await, Ok(()));

        let (seen, parts) =
            (upstream.seen(&Method::GET, digest.hex()), parts(&upstream, digest.hex()));
        assert_eq!(seen.len(), 1 + parts.len(), "the blob was begun again: {seen:?}");
        assert_eq!(parts.len(), 3, "none is asked for again: {parts:?}");
    }
}

/// The nearer cache asks the farther one for parts that it has not come to yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_blob_comes_through_a_chain_of_two_caches() {
    let upstream = slow_upstream().await;
    let digest = upstream.add_blob("a", &noise(SIZE_BYTES, 7));
    let far = Shim::start(&upstream).await;
    let near = Shim::of(vec![upstreams(&[format!("http://{}", far.address)])]).await;
    let answer = near.get(&format!("a/blobs/{digest}")).await;
    assert_eq!(check(answer, &digest).await, Ok(()));
    assert_eq!(upstream.seen(&Method::GET, digest.hex()).len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_many_pulls_none_gets_more_than_one_connection() {
    let (upstream, elsewhere) = (slow_upstream().await, Upstream::start().await);
    let digests = [4, 5].map(|seed| upstream.add_blob("a", &noise(SIZE_BYTES, seed)));
    let others = (1..CONNECTIONS_MAX as u64).map(|seed| {
        let content = noise(1024, seed);
        upstream.add_blob("a", &content);
        format!("a/blobs/{}", elsewhere.add_blob("a", &content))
    });
    let others: Vec<_> = others.collect();
    let shim = Shim::start(&upstream).await;

    elsewhere.allow(0);
    upstream.script(|script| script.redirect = Some(elsewhere.address.clone()));
    let running = join_all(others.iter().map(|path| shim.get(path))).await;
    upstream.script(|script| script.redirect = None);
    let pull = async |digest| {
        let answer = shim.get(&format!("a/blobs/{digest}")).await;
        assert_eq!(check(answer, digest).await, Ok(()));
        upstream.seen(&Method::GET, digest.hex()).len()
    };
    assert_eq!(pull(&digests[0]).await, 1);

    elsewhere.allow(u64::MAX);
    for answer in running {
        answer.bytes().await.unwrap();
    }
    assert_eq!(pull(&digests[1]).await, 4, "the places are free again");
}
