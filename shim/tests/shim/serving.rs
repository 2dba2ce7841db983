//! How blobs of the directory get to their clients.

use std::{fs::OpenOptions, sync::Arc};

use axum::http::{Method, StatusCode};
use futures_util::{StreamExt, future::join_all};
use larder_layout::Digest;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{support::*, tls::with_tls};

const MIB: usize = 1 << 20;
/// More than one marker, and than what is looked at in a turn.
const SIZE_BYTES: usize = 70 * MIB + 5;

/// A directory that has a blob, in the repository `a`.
pub fn directory(content: &[u8]) -> (Arc<TempDir>, Digest) {
    let root = Arc::new(TempDir::new().unwrap());
    let digest = digest(content);
    let layers = root.path().join("repositories/a/_layers/sha256");
    for directory in [&layers, &root.path().join("blobs/sha256")] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::write(root.path().join("blobs/sha256").join(digest.hex()), content).unwrap();
    let target = format!("../../../../blobs/sha256/{}", digest.hex());
    std::os::unix::fs::symlink(target, layers.join(digest.hex())).unwrap();
    (root, digest)
}

/// Guarantee 1: bytes served under a digest hash to it. Every client gets its own bytes, however
/// many are served at once and whatever part each asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_get_whole_blobs_and_ranges_with_and_without_tls() {
    let content = noise(SIZE_BYTES, 1);
    let (root, digest) = directory(&content);
    let plain = Shim::over(Arc::clone(&root), None).await;
    let (encrypted, client) = with_tls(&root).await;
    for (shim, client) in [(&plain, reqwest::Client::new()), (&encrypted, client)] {
        let url = format!("{}/a/blobs/{digest}", shim.url);
        let whole = join_all((0..4).map(async |_| {
            let answer = client.get(&url).send().await.unwrap();
            assert_eq!(answer.content_length(), Some(SIZE_BYTES as u64));
            check(answer, &digest).await
        }));
        // One after the other, so that connections are used again.
        for range in [0..1, 5..SIZE_BYTES, 16 * MIB - 1..16 * MIB + 1, SIZE_BYTES - 1..SIZE_BYTES] {
            let header = format!("bytes={}-{}", range.start, range.end - 1);
            let answer = client.get(&url).header("range", header).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
            assert!(answer.bytes().await.unwrap() == content.slice(range.clone()), "{range:?}");
        }
        assert_eq!(whole.await, vec![Ok(()); 4]);
    }
}

/// HTTP/1.1 allows a client to ask for more before it has read what it asked for.
#[tokio::test]
async fn answers_to_pipelined_requests_come_in_order_to_a_slow_client() {
    let content = noise(9 * MIB, 2);
    let (root, digest) = directory(&content);
    let shim = Shim::over(root, None).await;
    let get = |range: &str, connection: &str| {
        format!(
            "GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\nrange: bytes={range}\r\n\
             connection: {connection}\r\n\r\n"
        )
    };
    let requests =
        [get("0-99999", "keep-alive"), get("0-", "keep-alive"), get("7-7", "close")].concat();
    let mut stream = TcpStream::connect(&shim.address).await.unwrap();
    stream.write_all(requests.as_bytes()).await.unwrap();

    let mut answers = Vec::new();
    let mut piece = vec![0; 16 << 10];
    loop {
        // Between any two reads the server finds no room for more.
        tokio::task::yield_now().await;
        match timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap() {
            0 => break,
            size => answers.extend_from_slice(&piece[..size]),
        }
    }
    for expected in [&content[..100_000], &content[..], &content[7..8]] {
        let end = answers.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert!(answers.starts_with(b"HTTP/1.1 206"));
        answers.drain(..end);
        assert!(answers.starts_with(expected), "another answer of {} bytes", expected.len());
        answers.drain(..expected.len());
    }
    assert!(answers.is_empty());
}

/// Guarantee 1: … or the transfer ends in an error. The process lives, too: a file that is mapped
/// into memory would kill it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_shrinks_while_it_is_served_cuts_the_transfer() {
    let content = noise(SIZE_BYTES, 3);
    for is_encrypted in [false, true] {
        let (root, digest) = directory(&content);
        let (shim, client) = match is_encrypted {
            true => with_tls(&root).await,
            false => (Shim::over(Arc::clone(&root), None).await, reqwest::Client::new()),
        };
        let url = format!("{}/a/blobs/{digest}", shim.url);
        let answer = client.get(&url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut body = answer.bytes_stream();
        let mut received_bytes = body.next().await.unwrap().unwrap().len();
        let blob = root.path().join("blobs/sha256").join(digest.hex());
        OpenOptions::new().write(true).open(&blob).unwrap().set_len(50 * MIB as u64).unwrap();
        let cut = loop {
            match timeout(PATIENCE, body.next()).await.unwrap() {
                Some(Ok(piece)) => received_bytes += piece.len(),
                Some(Err(_)) => break true,
                None => break false,
            }
        };
        assert!(cut && received_bytes <= 50 * MIB, "{received_bytes} bytes, cut: {cut}");
        let head = client.request(Method::HEAD, &url).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
    }
}
