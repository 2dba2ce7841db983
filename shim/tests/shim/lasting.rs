//! A blob of the shared storage that vanishes, or turns out to be damaged, while it is served.

use std::{fs::OpenOptions, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::{Method, StatusCode},
};
use futures_util::{Stream, StreamExt, future::join_all};
use larder_config::{Config, Http};
use larder_layout::Digest;
use rustix::fs::{XattrFlags, setxattr};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{http2::Client, ranges::parts, serving::directory, support::*};

const MIB: usize = 1 << 20;
/// More than all buffers between the file and a client that does not read take.
const SIZE_BYTES: usize = 20 * MIB + 5;
const MIDDLE: usize = SIZE_BYTES / 2;

/// What was wrong with it before it was asked for.
type Damage = fn(&Shared);

/// A mount as the registry sees it: a directory with a blob that it would have to fetch.
struct Shared {
    root: Arc<TempDir>,
    digest: Digest,
    file: PathBuf,
}

impl Shared {
    fn new(content: &Bytes) -> Self {
        let (root, digest) = directory(content);
        let file = root.path().join("blobs/sha256").join(digest.hex());
        setxattr(&file, "user.larder.where", b"shared", XattrFlags::empty()).unwrap();
        Self { root, digest, file }
    }

    async fn serve(&self, upstream: &Upstream) -> Shim {
        let config = config(Some(upstreams(&[upstream.url()])));
        let http = Http { h2c: true, ..config.http };
        Shim::with(Config { http, ..config }, Arc::clone(&self.root)).await
    }

    /// What is behind the first MiB is gone.
    fn lose(&self) {
        OpenOptions::new().write(true).open(&self.file).unwrap().set_len(MIB as u64).unwrap();
    }

    fn spoil(&self, offset: usize) {
        let file = OpenOptions::new().read(true).write(true).open(&self.file).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset as u64).unwrap();
        file.write_all_at(&[!byte[0]], offset as u64).unwrap();
    }

    fn path(&self) -> String {
        format!("a/blobs/{}", self.digest)
    }
}

/// What came of a body, and whether that was all.
async fn read<E>(body: impl Stream<Item = Result<Bytes, E>>) -> (Vec<u8>, bool) {
    let (mut body, mut received) = (std::pin::pin!(body), Vec::new());
    while let Some(piece) = timeout(PATIENCE, body.next()).await.unwrap() {
        match piece {
            Ok(piece) => received.extend(piece),
            Err(_) => return (received, false),
        }
    }
    (received, true)
}

/// "A blob that vanishes from the storage while it is served": the client notices nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_storage_loses_is_continued_from_the_upstream() {
    let content = noise(SIZE_BYTES, 1);
    let upstream = Upstream::start().await;
    upstream.add_blob("a", &content);
    for (round, range) in
        [0..SIZE_BYTES, 100..SIZE_BYTES - 7, MIDDLE..SIZE_BYTES].iter().enumerate()
    {
        let shared = Shared::new(&content);
        let shim = shared.serve(&upstream).await;
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let expected = content.slice(range.clone());

        let (path, headers) = (shared.path(), [("range", &*header)]);
        let answers = join_all((0..2).map(|_| shim.ask(Method::GET, &path, &headers)));
        let (answers, http2) = (answers.await, Client::plain(&shim).await);
        let over_http2 = http2.send(Method::GET, &path, &header).await;
        shared.lose();
        let whole = join_all(answers.into_iter().map(|answer| read(answer.bytes_stream())));
        let over_http2 = read(Body::new(over_http2.into_body()).into_data_stream());
        let (whole, over_http2) = tokio::join!(whole, over_http2);
        for (received, is_whole) in whole.into_iter().chain([over_http2]) {
            assert!(is_whole && received == expected, "{range:?}: {} bytes", received.len());
        }
        assert_eq!(upstream.seen(&Method::GET, "/blobs/").len(), round + 1, "once for all");

        // And it is back for those who come next.
        eventually("the blob is back", || shared.file.metadata().unwrap().len() > MIB as u64).await;
        assert_eq!(check(shim.get(&path).await, &shared.digest).await, Ok(()));
        assert_eq!(upstream.seen(&Method::GET, "/blobs/").len(), round + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_several_ranges_is_continued() {
    let content = noise(SIZE_BYTES, 2);
    let upstream = Upstream::start().await;
    upstream.add_blob("a", &content);
    let shared = Shared::new(&content);
    let shim = shared.serve(&upstream).await;
    let ranges = [5..MIDDLE, MIDDLE + 9..SIZE_BYTES];
    let header = format!("bytes={}-{},{}-", ranges[0].start, ranges[0].end - 1, ranges[1].start);
    let answer = shim.ask(Method::GET, &shared.path(), &[("range", &header)]).await;
    shared.lose();
    let received: Vec<_> = parts(answer).await.into_iter().map(|(_, part)| part).collect();
    assert!(received == ranges.map(|range| content.slice(range)));
}

/// Guarantee 1: bytes served under a digest hash to it, or the transfer ends in an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_continued_is_cut() {
    let content = noise(SIZE_BYTES, 3);
    let good = Upstream::start().await;
    good.add_blob("a", &content);
    let (bad, silent) = (Upstream::start().await, Upstream::start().await);
    let digest = digest(&content);
    let mut other = content.to_vec();
    other[SIZE_BYTES - 1] ^= 1;
    bad.script(|script| drop(script.content.insert(format!("a/blobs/{digest}"), other.into())));

    let damages: [(&str, &Upstream, Damage); 4] = [
        ("what was sent is damaged", &good, |shared| shared.spoil(100)),
        ("the blob was too short", &good, |shared| {
            let file = OpenOptions::new().write(true).open(&shared.file).unwrap();
            file.set_len(SIZE_BYTES as u64 - MIB as u64).unwrap();
        }),
        ("the upstream's blob is damaged", &bad, |_| {}),
        ("the upstream has it not", &silent, |_| {}),
    ];
    for (what, upstream, damage) in damages {
        let shared = Shared::new(&content);
        damage(&shared);
        let shim = shared.serve(upstream).await;
        let answer = shim.get(&shared.path()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let length = answer.content_length().unwrap();
        let http2 = Client::plain(&shim).await.send(Method::GET, &shared.path(), "").await;
        shared.lose();
        let plain = read(answer.bytes_stream());
        let http2 = read(Body::new(http2.into_body()).into_data_stream());
        for (received, is_whole) in <[_; 2]>::from(tokio::join!(plain, http2)) {
            assert!(!is_whole && (received.len() as u64) < length, "{what}");
        }
    }
}
