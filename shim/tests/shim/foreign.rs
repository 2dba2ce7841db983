//! Foreign layers, which their registry does not hand out: the manifest says where they are.

use axum::{
    body::Bytes,
    http::{Method, StatusCode},
};

use crate::support::*;

const DOCKER: [&str; 2] = [
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];
const OCI: [&str; 2] = [
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
];

/// The manifest of an image with a layer of its own on a foreign one, as Windows' images were.
fn manifest(media_types: [&str; 2], own: &Bytes, foreign: &Bytes) -> Bytes {
    let [own_type, foreign_type] = media_types;
    let (kind, config) = match media_types == OCI {
        true => ("oci.image.manifest.v1", "application/vnd.oci.image.config.v1+json"),
        false => {
            ("docker.distribution.manifest.v2", "application/vnd.docker.container.image.v1+json")
        }
    };
    format!(
        "{{\n  \"schemaVersion\": 2,\n  \"mediaType\": \"application/vnd.{kind}+json\",\n  \
         \"config\": {{\"mediaType\": \"{config}\", \"size\": 1, \"digest\": \"{}\"}},\n  \
         \"layers\": [\n    {{\"mediaType\": \"{foreign_type}\", \"size\": {}, \"digest\": \"{}\",\n     \
         \"urls\": [\"https://go.microsoft.com/fwlink/?linkid=837858\"]}},\n    \
         {{\"mediaType\": \"{own_type}\", \"size\": {}, \"digest\": \"{}\"}}\n  ]\n}}\n",
        digest(b"x"),
        foreign.len(),
        digest(foreign),
        own.len(),
        digest(own)
    )
    .into()
}

#[tokio::test]
async fn an_image_with_a_foreign_layer_is_served_as_its_registry_serves_it() {
    for (media_types, seed) in [(DOCKER, 1), (OCI, 2)] {
        let upstream = Upstream::start().await;
        let (own, foreign) = (noise(2 << 20, seed), noise(3 << 20, seed + 10));
        let manifest = manifest(media_types, &own, &foreign);
        let by_digest = upstream.add_manifest("a", "1", &manifest);
        let own = upstream.add_blob("a", &own);
        let shim = Shim::start(&upstream).await;
        for reference in ["1", &by_digest.to_string()] {
            let answer = shim.get(&format!("a/manifests/{reference}")).await;
            assert_eq!(answer.bytes().await.unwrap(), manifest, "every byte, urls too");
        }
        assert_eq!(check(shim.get(&format!("a/blobs/{own}")).await, &own).await, Ok(()));

        let path = format!("a/blobs/{}", digest(&foreign));
        assert_eq!(shim.head(&path).await.status(), StatusCode::NOT_FOUND);
        for _ in 0..2 {
            let answer = shim.get(&path).await;
            assert_eq!(answer.status(), StatusCode::NOT_FOUND);
            assert_eq!(code(answer).await, "BLOB_UNKNOWN");
        }
        // The upstream said so each time, at once: nobody tries again, and nothing remembers it.
        assert_eq!(upstream.seen(&Method::GET, &path).len(), 2);
        shim.has(&format!("repositories/a/_layers/sha256/{}", own.hex())).await;
        assert_eq!(shim.list("ingest"), Vec::<String>::new());
        assert_eq!(shim.list("repositories/a/_layers/sha256"), [own.hex()]);
        let foreign = upstream.add_blob("a", &foreign);
        assert_eq!(check(shim.get(&path).await, &foreign).await, Ok(()));
    }
}
