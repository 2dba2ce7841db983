//! The referrers API, from the upstream's own, from the tag schema, and from what is cached.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use larder_layout::{Algorithm, Digest};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn descriptor(name: &str, artifact_type: &str) -> Value {
    let content = name.as_bytes();
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(content).to_string(),
        "size": content.len(),
        "artifactType": artifact_type,
        "annotations": { "b": name, "a": "ä" },
    })
}

fn index(manifests: &[Value]) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string().into()
}

/// What a request is answered with, sorted by digest, and whether it was filtered.
async fn referrers(shim: &Shim, subject: &Digest, query: &str) -> (Vec<Value>, bool) {
    let answer = shim.get(&format!("a/b/referrers/{subject}{query}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], INDEX);
    let filters = answer.headers().get("oci-filters-applied").cloned();
    let mut body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!((&body["schemaVersion"], &body["mediaType"]), (&json!(2), &json!(INDEX)));
    let mut manifests: Vec<Value> = serde_json::from_value(body["manifests"].take()).unwrap();
    manifests.sort_by_key(|descriptor| descriptor["digest"].to_string());
    (manifests, filters.is_some_and(|filters| filters == "artifactType"))
}

fn sorted(mut descriptors: Vec<Value>) -> Vec<Value> {
    descriptors.sort_by_key(|descriptor| descriptor["digest"].to_string());
    descriptors
}

/// Guarantee 4, for referrers: what is cached is served while the upstream is down.
#[tokio::test]
async fn the_upstreams_list_is_served_filtered_and_outlives_it() {
    let upstream = Upstream::start().await;
    let shim = Shim::start(&upstream).await;
    let subject = digest(b"an image");
    let path = format!("a/b/referrers/{subject}");
    let [sbom, one, two] = [("x", "sbom"), ("y", "signature"), ("z", "signature")]
        .map(|(name, kind)| descriptor(name, kind));
    upstream.script(|script| {
        let pages = [(path.clone(), vec![two.clone(), sbom.clone(), json!({"digest": "none"})])];
        for (path, page) in pages.into_iter().chain([(format!("{path}?p=2"), vec![one.clone()])]) {
            script.content.insert(path.clone(), index(&page).into());
            script.media_types.insert(path, INDEX);
        }
        script.links.insert(path.clone(), "<?p=2>; rel=\"next\"".into());
    });
    let all = sorted(vec![sbom.clone(), one.clone(), two.clone()]);
    let signatures = sorted(vec![one, two]);
    let unknown = digest(b"another image");

    for _ in 0..2 {
        assert_eq!(referrers(&shim, &subject, "").await, (all.clone(), false));
    }
    // Under the tag where a client or a registry that knows no such lists would look.
    let tag = format!("repositories/a/b/_tags/sha256-{}", subject.hex());
    let kept = shim.target(&tag);
    assert_eq!(shim.list("blobs/sha256"), std::slice::from_ref(&kept));
    upstream.script(|script| script.failure = Some(StatusCode::BAD_GATEWAY));
    for upstreams in [Some(upstreams(&[upstream.url()])), None] {
        let has_upstream = upstreams.is_some();
        let shim = Shim::over(Arc::clone(&shim.root), upstreams).await;
        assert_eq!(referrers(&shim, &subject, "").await, (all.clone(), false));
        let filtered = referrers(&shim, &subject, "?artifactType=signature").await;
        assert_eq!(filtered, (signatures.clone(), true));
        let escaped = referrers(&shim, &subject, "?artifactType=sb%6fm").await;
        assert_eq!(escaped, (vec![sbom.clone()], true));
        assert_eq!(referrers(&shim, &subject, "?artifactType=x").await, (vec![], true));
        // Where nobody knows, "none" would be a lie.
        let answer = shim.get(&format!("a/b/referrers/{unknown}")).await;
        assert_eq!(answer.status(), if has_upstream { 503 } else { 200 });
    }

    // The last one is withdrawn at the upstream: the cache does not bring it back.
    upstream.script(|script| {
        script.failure = None;
        script.links.clear();
        script.content.insert(path.clone(), index(&[]).into());
    });
    assert_eq!(referrers(&shim, &subject, "").await, (vec![], false));
    assert_ne!(shim.target(&tag), kept);
    upstream.script(|script| script.failure = Some(StatusCode::BAD_GATEWAY));
    assert_eq!(referrers(&shim, &subject, "").await, (vec![], false));
}

#[tokio::test]
async fn an_upstream_without_the_api_is_asked_by_tag() {
    let upstream = Upstream::start().await;
    let shim = Shim::start(&upstream).await;
    let sha256 = digest(b"an image");
    let sha512 = Digest::of(Algorithm::Sha512, b"an image");
    for subject in [&sha256, &sha512] {
        let tag = format!("{}-{}", subject.algorithm().as_str(), &subject.hex()[..64]);
        let listed = vec![descriptor(&tag, "sbom")];
        upstream.add_manifest("a/b", &tag, &index(&listed).into());
        // A page for browsers is no list.
        let path = format!("a/b/referrers/{subject}");
        upstream.script(|script| drop(script.content.insert(path, "<html>".into())));
        assert_eq!(referrers(&shim, subject, "?artifactType=sbom").await, (listed.clone(), true));

        upstream.script(|script| script.failure = Some(StatusCode::BAD_GATEWAY));
        assert_eq!(referrers(&shim, subject, "").await, (listed, false));
        upstream.script(|script| script.failure = None);
    }
    assert_eq!(referrers(&shim, &digest(b"nobody's"), "").await, (vec![], false));

    // What is under the tag may be anything.
    for other in ["{}", "[]", "no index", r#"{"schemaVersion":2,"config":{},"layers":[]}"#] {
        let tag = format!("sha256-{}", sha256.hex());
        upstream.add_manifest("a/b", &tag, &other.into());
        assert_eq!(referrers(&shim, &sha256, "").await, (vec![], false), "{other}");
    }
}

#[tokio::test]
async fn a_list_that_is_too_large_or_forbidden_is_an_error_and_nothing_is_kept() {
    let upstream = Upstream::start().await;
    let shim = Shim::start(&upstream).await;
    let subject = digest(b"an image");
    let path = format!("a/b/referrers/{subject}");
    let many: Vec<_> = (0..30_000).map(|n| descriptor(&n.to_string(), "x")).collect();
    upstream.script(|script| {
        script.media_types.insert(path.clone(), INDEX);
        script.content.insert(path.clone(), index(&many).into());
    });
    assert_eq!(shim.get(&path).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    upstream.script(|script| drop(script.content.insert(path.clone(), "[".repeat(9999).into())));
    assert_eq!(shim.get(&path).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    upstream.script(|script| script.failure = Some(StatusCode::FORBIDDEN));
    assert_eq!(code(shim.get(&path).await).await, "DENIED");
    assert_eq!(shim.list("blobs/sha256"), Vec::<String>::new());
    assert_eq!(shim.list("repositories"), Vec::<String>::new());
}

/// A storage that clients filled through a registry without the API.
#[tokio::test]
async fn without_an_upstream_the_tag_schema_is_read() {
    let root = Arc::new(TempDir::new().unwrap());
    let subject = digest(b"an image");
    let listed = vec![descriptor("x", "sbom")];
    let tag = format!("sha256-{}", subject.hex());
    put_manifest(root.path(), "a/b", &tag, &index(&listed));
    let shim = Shim::over(root, None).await;
    assert_eq!(referrers(&shim, &subject, "").await, (listed, false));
    assert_eq!(referrers(&shim, &digest(b"nobody's"), "").await, (vec![], false));
    let head = shim.ask(Method::HEAD, &format!("a/b/referrers/{subject}"), &[]).await;
    assert_eq!(head.headers()["content-type"], INDEX);
}
