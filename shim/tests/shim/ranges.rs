//! Parts of blobs, and answers that depend on what the client has.

use std::{ops::Range, sync::Arc};

use axum::{
    body::Bytes,
    http::{Method, StatusCode},
};

use crate::{serving::directory, support::*, tls::with_tls};

#[tokio::test]
async fn blobs_are_served_in_ranges_and_by_condition() {
    let upstream = Upstream::start().await;
    let content = noise(3 << 20, 1);
    let digest = upstream.add_blob("a", &content);
    let shim = Shim::start(&upstream).await;
    let path = format!("a/blobs/{digest}");
    let etag = format!("\"{digest}\"");

    // The first round is pulled, the second is read from the directory.
    for _ in 0..2 {
        for (range, status, expected) in [
            ("bytes=0-99", 206, 0..100),
            ("bytes=1048570-2097160", 206, 1_048_570..2_097_161),
            ("bytes=3000000-", 206, 3_000_000..3 << 20),
            ("bytes=-7", 206, (3 << 20) - 7..3 << 20),
            ("bytes=x", 200, 0..3 << 20),
        ] {
            let answer = shim.ask(Method::GET, &path, &[("range", range)]).await;
            assert_eq!(answer.status(), status, "{range}");
            if status == 206 {
                let header =
                    format!("bytes {}-{}/{}", expected.start, expected.end - 1, content.len());
                assert_eq!(answer.headers()["content-range"], header.as_str());
            }
            assert_eq!(answer.headers()["content-length"], expected.len().to_string().as_str());
            assert_eq!(answer.headers()["docker-content-digest"], digest.to_string().as_str());
            assert_eq!(answer.bytes().await.unwrap(), content.slice(expected), "{range}");
        }
        let answer = shim.ask(Method::GET, &path, &[("range", "bytes=3145728-")]).await;
        assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(answer.headers()["content-range"], "bytes */3145728");

        let stale = [("range", "bytes=0-9"), ("if-range", "\"other\"")];
        assert_eq!(shim.ask(Method::GET, &path, &stale).await.status(), StatusCode::OK);
        let fresh = [("range", "bytes=0-9"), ("if-range", &etag)];
        assert_eq!(shim.ask(Method::GET, &path, &fresh).await.status(), 206);
        for (tags, status) in [(&*etag, 200), ("\"x\", *", 200), ("W/\"x\"", 412)] {
            let answer = shim.ask(Method::GET, &path, &[("if-match", tags)]).await;
            assert_eq!(answer.status(), status, "{tags}");
        }
        let weak = [("if-match", &*format!("W/{etag}"))];
        assert_eq!(code(shim.ask(Method::GET, &path, &weak).await).await, "PRECONDITION_FAILED");
        for tags in [etag.clone(), format!("\"x\", W/{etag}"), "*".to_owned()] {
            let answer = shim.ask(Method::GET, &path, &[("if-none-match", &tags)]).await;
            assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{tags}");
            assert_eq!(answer.headers()["etag"], etag.as_str());
        }
        let head = shim.head(&path).await;
        assert_eq!(head.headers()["content-length"], "3145728");
        assert_eq!(head.headers()["accept-ranges"], "bytes");
        shim.has(&format!("repositories/a/_layers/sha256/{}", digest.hex())).await;
    }
    assert_eq!(upstream.seen(&Method::GET, "/blobs/").len(), 1);
}

/// The parts of a `multipart/byteranges`, each with its `Content-Range`.
pub async fn parts(answer: reqwest::Response) -> Vec<(String, Bytes)> {
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    assert!(!answer.headers().contains_key("content-range"));
    let media_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let length: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let mut rest = answer.bytes().await.unwrap();
    assert_eq!(rest.len(), length);
    let mut parts = Vec::new();
    let mut opening = format!("--{boundary}\r\n");
    loop {
        assert!(rest.starts_with(opening.as_bytes()));
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&rest[opening.len()..end]).unwrap();
        let range = head.strip_prefix("Content-Type: application/octet-stream\r\n");
        let range = range.unwrap().strip_prefix("Content-Range: ").unwrap().to_owned();
        let (first, last) = range[6..].split_once('/').unwrap().0.split_once('-').unwrap();
        let size = last.parse::<usize>().unwrap() + 1 - first.parse::<usize>().unwrap();
        parts.push((range, rest.slice(end + 4..end + 4 + size)));
        rest = rest.slice(end + 4 + size..);
        if rest == format!("\r\n--{boundary}--\r\n") {
            return parts;
        }
        opening = format!("\r\n--{boundary}\r\n");
    }
}

/// RFC 9110, section 14: from memory, from a file with and without TLS, and from a pull.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_ranges_are_parts_of_one_answer() {
    for size_bytes in [1_000, 3 << 20] {
        let content = noise(size_bytes, 1);
        let (root, digest) = directory(&content);
        let plain = Shim::over(Arc::clone(&root), None).await;
        let (encrypted, client) = with_tls(&root).await;
        let upstream = Upstream::start().await;
        upstream.add_blob("a", &content);
        let pulling = Shim::start(&upstream).await;
        for (shim, client) in [
            (&plain, reqwest::Client::new()),
            (&encrypted, client),
            (&pulling, reqwest::Client::new()),
        ] {
            let url = format!("{}/a/blobs/{digest}", shim.url);
            let ask =
                async |range: &str| client.get(&url).header("range", range).send().await.unwrap();
            let half = size_bytes / 2;
            let header = format!("bytes=0-0, {half}-, 7-9,8-{0},99999999-, {half}-", half - 9);
            let ranges = [0..1, half..size_bytes, 7..half - 8];
            let expected = ranges.map(|range: Range<usize>| {
                let header = format!("bytes {}-{}/{size_bytes}", range.start, range.end - 1);
                (header, content.slice(range))
            });
            assert!(parts(ask(&header).await).await == expected);
            // The connection is in order behind it.
            let one = ask("bytes=5-5, 6-6").await;
            assert_eq!(one.headers()["content-range"], *format!("bytes 5-6/{size_bytes}"));
            assert_eq!(one.bytes().await.unwrap(), content.slice(5..7));

            for absurd in [format!("bytes={}", "0-0,2-2,".repeat(100)), "bytes=-0,99999999-".into()]
            {
                let answer = ask(&absurd).await;
                assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE);
                assert_eq!(answer.headers()["content-range"], *format!("bytes */{size_bytes}"));
                assert_eq!(code(answer).await, "RANGE_INVALID");
            }
        }
    }
}
