//! The OCI distribution-spec 1.1, pull category and what a registry without pushes has to say to
//! them, by the names of its sections.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc};

use axum::http::Method;
use larder_layout::{Algorithm, Digest};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// Manifests of every kind, byte for byte as nobody would write them.
const MANIFESTS: [(&str, &str, &str); 7] = [
    (
        "oci",
        r#"{ "schemaVersion":2, "config":{},"layers":[] }"#,
        "application/vnd.oci.image.manifest.v1+json",
    ),
    (
        "index",
        "{\"manifests\":[],\n\"schemaVersion\":2}",
        "application/vnd.oci.image.index.v1+json",
    ),
    (
        "artifact",
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"a/b","config":{},"layers":[],"subject":{}}"#,
        "application/vnd.oci.image.manifest.v1+json",
    ),
    (
        "docker",
        r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{},"layers":[]}"#,
        "application/vnd.docker.distribution.manifest.v2+json",
    ),
    (
        "list",
        r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}"#,
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ),
    (
        "unknown",
        r#"{"mediaType":"application/vnd.example+json","x":"\u00e4 ä"}"#,
        "application/vnd.example+json",
    ),
    ("nothing", "{}", "application/octet-stream"),
];

/// Links a blob into the repository `a/b` under `name`, `_layers/sha512` say.
fn put(
    root: &Path,
    algorithm: Algorithm,
    content: &[u8],
    directory: &str,
    name: Option<&str>,
) -> Digest {
    let digest = Digest::of(algorithm, content);
    let blob = format!("blobs/{}/{}", algorithm.as_str(), digest.hex());
    let directory = format!("repositories/a/b/{directory}");
    let up = "../".repeat(directory.matches('/').count() + 1);
    for directory in [Path::new(&blob).parent().unwrap(), Path::new(&directory)] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join(&blob), content).unwrap();
    let link = root.join(directory).join(name.unwrap_or(digest.hex()));
    let _ = fs::remove_file(&link);
    symlink(format!("{up}{blob}"), link).unwrap();
    digest
}

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// "Pulling manifests", "Pulling blobs" and "Checking if content exists in the registry".
#[tokio::test]
async fn content_is_what_it_was_by_tag_and_digest_of_both_algorithms() {
    let root = Arc::new(TempDir::new().unwrap());
    let mut expected = Vec::new();
    for algorithm in Algorithm::ALL {
        let directory = |membership: &str| format!("{membership}/{}", algorithm.as_str());
        for (tag, content, media_type) in MANIFESTS {
            let put = |directory: &str, name| {
                put(root.path(), algorithm, content.as_bytes(), directory, name)
            };
            let digest = put(&directory("_manifests"), None);
            let tag = format!("{tag}-{}", algorithm.as_str());
            put("_tags", Some(&tag));
            for reference in [tag, digest.to_string()] {
                let path = format!("a/b/manifests/{reference}");
                expected.push((path, digest.clone(), content.as_bytes().to_vec(), media_type));
            }
        }
        for content in [noise(100_000, 1).to_vec(), Vec::new()] {
            let digest = put(root.path(), algorithm, &content, &directory("_layers"), None);
            let path = format!("a/b/blobs/{digest}");
            expected.push((path, digest, content, "application/octet-stream"));
        }
    }
    let shim = Shim::over(root, None).await;
    // "Determining Support"
    assert_eq!(shim.get("").await.status(), 200);
    for (path, digest, content, media_type) in expected {
        for method in [Method::GET, Method::HEAD] {
            // What the client says that it accepts changes nothing: an image is what it is.
            for accept in ["*/*", "application/vnd.oci.image.index.v1+json", "text/html"] {
                let answer = shim.ask(method.clone(), &path, &[("accept", accept)]).await;
                assert_eq!(answer.status(), 200, "{path}");
                assert_eq!(header(&answer, "docker-content-digest"), digest.to_string());
                assert_eq!(header(&answer, "content-length"), content.len().to_string(), "{path}");
                assert_eq!(header(&answer, "content-type"), media_type, "{path}");
                let body = answer.bytes().await.unwrap();
                assert!(if method == Method::GET { body == content } else { body.is_empty() });
            }
        }
    }
}

/// "Error Codes", "Pushing" and "Content Management".
#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_said_in_the_specifications_words() {
    let root = Arc::new(TempDir::new().unwrap());
    put(root.path(), Algorithm::Sha256, b"{}", "_tags", Some("latest"));
    let shim = Shim::over(root, None).await;
    let [sha256, sha512] = Algorithm::ALL.map(|algorithm| Digest::of(algorithm, b"unknown"));
    let mut requests = vec![
        (Method::GET, "a/b/tags/list?n=x".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
        (Method::GET, "unknown/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        (Method::GET, "a/b/manifests/unknown".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "A/manifests/latest".to_owned(), 400, "NAME_INVALID"),
        (Method::GET, "a/b/referrers/sha256:0".to_owned(), 400, "DIGEST_INVALID"),
        (Method::POST, "a/b/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        (Method::POST, format!("a/b/blobs/uploads/?mount={sha256}&from=x"), 405, "UNSUPPORTED"),
        (Method::PATCH, "a/b/blobs/uploads/1".to_owned(), 405, "UNSUPPORTED"),
        (Method::PUT, "a/b/manifests/latest".to_owned(), 405, "UNSUPPORTED"),
        (Method::DELETE, "a/b/manifests/latest".to_owned(), 405, "UNSUPPORTED"),
        (Method::DELETE, format!("a/b/blobs/{sha256}"), 405, "UNSUPPORTED"),
    ];
    for digest in [sha256, sha512] {
        requests.push((Method::GET, format!("a/b/manifests/{digest}"), 404, "MANIFEST_UNKNOWN"));
        requests.push((Method::GET, format!("a/b/blobs/{digest}"), 404, "BLOB_UNKNOWN"));
    }
    for (method, path, status, expected) in requests {
        let answer = shim.ask(method.clone(), &path, &[]).await;
        assert_eq!(answer.status(), status, "{method} {path}");
        assert_eq!(header(&answer, "allow").is_empty(), status != 405);
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let error = &body["errors"][0];
        assert_eq!(error["code"], expected, "{method} {path}");
        assert!(error["message"].is_string() && !error["detail"].is_null(), "{body}");
        if method == Method::GET {
            assert_eq!(shim.head(&path).await.status(), status, "HEAD {path}");
        }
    }
}

/// "Listing Referrers": never 404, an empty list where there are none.
#[tokio::test]
async fn referrers_are_an_index_even_where_there_are_none() {
    let shim = Shim::over(Arc::new(TempDir::new().unwrap()), None).await;
    for algorithm in Algorithm::ALL {
        let path = format!("a/b/referrers/{}?artifactType=x", Digest::of(algorithm, b"unknown"));
        let answer = shim.get(&path).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "content-type"), "application/vnd.oci.image.index.v1+json");
        assert_eq!(header(&answer, "oci-filters-applied"), "artifactType");
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let media_type = "application/vnd.oci.image.index.v1+json";
        assert_eq!(body, json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [] }));
    }
}
