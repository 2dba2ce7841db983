//! What one node publishes, and what others see of it.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use larder_fs::error::Error;
use larder_layout::{Entry, Link};
use object_store::{ObjectStoreExt, path::Path as Key};

use crate::support::{Node, Recorder, blob};

fn tag(name: &str) -> Link {
    Link::Tag("library/app".parse().unwrap(), name.parse().unwrap())
}

/// "What `rename` acknowledged […] is readable on every node."
#[tokio::test]
async fn what_one_node_publishes_every_node_reads() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    for size_bytes in [0, 1, 100_000, 20 << 20] {
        let (content, digest) = blob(size_bytes);
        assert!(matches!(b.read(&digest).await, Err(Error::NotFound)));
        a.publish(&content, &digest).await.unwrap();
        assert_eq!(b.read(&digest).await.unwrap(), content);
        b.publish(&content, &digest).await.expect("an equal digest is a success");
    }
}

/// "A wrong digest is EBADMSG and nothing becomes visible."
#[tokio::test]
async fn a_wrong_digest_becomes_visible_nowhere() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    for size_bytes in [100, 20 << 20] {
        let (content, digest) = blob(size_bytes);
        let mut wrong = content.clone();
        *wrong.last_mut().unwrap() ^= 1;
        let outcome = a.publish(&wrong, &digest).await;
        assert_eq!(outcome.unwrap_err().errno(), libc::EBADMSG);
        for node in [&a, &b] {
            assert!(matches!(node.read(&digest).await, Err(Error::NotFound)));
        }
        let key = Key::from(format!(
            "docker/registry/v2/blobs/sha256/{}/{}/data",
            &digest.hex()[..2],
            digest.hex()
        ));
        assert!(store.objects.head(&key).await.is_err());
        a.publish(&content, &digest).await.unwrap();
    }
}

/// "Any number of readers on a node cost one fetch."
#[tokio::test]
async fn many_readers_cost_one_fetch() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let (content, digest) = blob(20 << 20);
    a.publish(&content, &digest).await.unwrap();
    let reads = futures_util::future::join_all((0..16).map(|_| b.read(&digest))).await;
    assert!(reads.into_iter().all(|read| read.unwrap() == content));
    assert_eq!(b.fetched_bytes().await, content.len() as u64, "each byte once");
}

/// "Bytes served under a digest hash to it": damage in the storage is a miss, and is mended by
/// whoever publishes the blob anew.
#[tokio::test]
async fn a_blob_that_was_damaged_in_the_storage_is_missing_until_it_is_published_anew() {
    let store = Arc::new(Recorder::default());
    let (content, digest) = blob(1000);
    let hex = digest.hex();
    let key = Key::from(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    store.objects.put(&key, Bytes::from(vec![7; 1000]).into()).await.unwrap();

    let node = Node::on(&store);
    assert_eq!(node.read(&digest).await.unwrap_err().errno(), libc::ENOENT);
    assert!(matches!(node.read(&digest).await, Err(Error::NotFound)));
    node.publish(&content, &digest).await.unwrap();
    assert_eq!(Node::on(&store).read(&digest).await.unwrap(), content);
}

/// "Blobs are immutable […]; tags are not kept."
#[tokio::test]
async fn a_tag_that_one_node_moves_has_moved_for_every_node() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let ((one, first), (two, second)) = (blob(10), blob(20));
    a.publish(&one, &first).await.unwrap();
    b.publish(&two, &second).await.unwrap();
    let latest = tag("latest");

    assert!(matches!(b.follow(&latest).await, Err(Error::NotFound)));
    a.link(&latest, &first).await.unwrap();
    assert_eq!(b.follow(&latest).await.unwrap(), Some(first.clone()));
    b.link(&latest, &second).await.unwrap();
    assert_eq!(a.follow(&latest).await.unwrap(), Some(second));
}

#[tokio::test]
async fn a_link_never_dangles() {
    let node = Node::on(&Arc::new(Recorder::default()));
    let (_, digest) = blob(10);
    assert!(matches!(node.link(&tag("latest"), &digest).await, Err(Error::NotFound)));
    assert!(matches!(node.follow(&tag("latest")).await, Err(Error::NotFound)));
}

/// "No partial blob is ever visible": a writer that goes on after the rename changes nothing.
#[tokio::test]
async fn a_writer_that_stays_cannot_change_what_was_published() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    let (content, digest) = blob(1000);
    let (parent, name) = node.parent(Path::new("ingest/x")).await.unwrap();
    let (_, opened) = node.filesystem.create(parent, &name).unwrap();
    opened.write(0, content.clone()).await.unwrap();
    node.rename(Path::new("ingest/x"), &Entry::Blob(digest.clone()).path()).await.unwrap();
    assert!(matches!(opened.write(0, b"changed".into()).await, Err(Error::ReadOnly)));
    assert_eq!(node.read(&digest).await.unwrap(), content);
}
