//! What Distribution 2.8 and 3 keep of an image, in the storage system of whichever driver.

use futures_util::TryStreamExt;
use larder_fs::{
    error::Error,
    store::{self, Storage},
};
use larder_layout::{Algorithm, Digest, Link, Membership, Repository};

use crate::{Blob, Image, Opened};

/// Key and content of all that belongs to an image. What the keys begin with is each driver's own:
/// a slash, or nothing, or the root directory.
pub fn stored(image: &Image, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut objects = Vec::new();
    let mut store = |blob: &Blob, links: &[&str]| {
        let hex = blob.digest.hex();
        let v2 = format!("{prefix}docker/registry/v2");
        objects.push((format!("{v2}/blobs/sha256/{}/{hex}/data", &hex[..2]), blob.bytes.clone()));
        for link in links {
            let link = link.replace("TAG", &image.tag).replace("HEX", hex);
            let path = format!("{v2}/repositories/{}/{link}/link", image.repository);
            objects.push((path, blob.digest.to_string().into_bytes()));
        }
    };
    for blob in image.blobs() {
        store(blob, &["_layers/sha256/HEX"]);
    }
    for manifest in image.manifests() {
        store(manifest, &["_manifests/revisions/sha256/HEX"]);
    }
    let tag = "_manifests/tags/TAG";
    store(&image.index, &[&format!("{tag}/current"), &format!("{tag}/index/sha256/HEX")]);
    objects.sort();
    objects.dedup();
    objects
}

/// Finds all of an image in a storage, as `larder-fs` looks for it.
///
/// # Panics
/// When something of it is missing, or is not what it was.
pub fn assert_served(opened: &Opened, image: &Image) {
    let backend = store::open(&opened.config.storage).expect("a storage");
    opened.run(find_all(&Storage::new(backend), image)).expect("all of the image");
}

async fn find_all(storage: &Storage, image: &Image) -> Result<(), Error> {
    let (library, name) = image.repository.split_once('/').expect("a name with a slash");
    let repository: Repository = image.repository.parse().expect("a name");
    let library: Repository = library.parse().expect("a name");
    assert!(storage.list_repositories(Some(&library)).await?.contains(&name.to_owned()));
    assert_eq!(storage.list_tags(&repository).await?, [&*image.tag]);
    let tag = Link::Tag(repository.clone(), image.tag.parse().expect("a tag"));
    assert_eq!(storage.read_link(&tag).await?, image.index.digest);

    let listed = storage.list_blobs(Algorithm::Sha256).try_collect::<Vec<_>>().await?;
    let find = async |membership, blob: &Blob| {
        let (digest, size_bytes) = (&blob.digest, blob.bytes.len() as u64);
        let member = Link::Member(repository.clone(), membership, digest.clone());
        assert_eq!(storage.read_link(&member).await?, *digest);
        let meta = storage.stat_blob(digest).await?;
        assert_eq!(meta.size_bytes, size_bytes);
        let of_it = |(listed, _): &&(Digest, _)| listed == digest;
        assert_eq!(listed.iter().find(of_it).map(|(_, meta)| meta.size_bytes), Some(size_bytes));
        let content = crate::store::blob(storage, digest, size_bytes).await?;
        assert!(content == blob.bytes, "other content");
        Ok::<_, Error>(())
    };
    for blob in image.blobs() {
        find(Membership::Layer, blob).await?;
    }
    for manifest in image.manifests() {
        find(Membership::Manifest, manifest).await?;
    }
    // And what is damaged is removed.
    let digest = &image.data().digest;
    storage.mark_damaged(digest);
    storage.remove_if_damaged(digest).await?;
    assert!(storage.stat_blob(digest).await.is_err(), "a removed blob is gone");
    Ok(())
}
