//! Blobs that are read while they are fetched, and sent while they are written.

use std::{sync::Arc, time::Duration};

use larder_fs::error::Error;
use larder_layout::{Entry, StagingId};
use object_store::{ObjectStoreExt, path::Path as Key};

use crate::support::{Node, READ_BYTES, Recorder, blob};

const MIB: usize = 1 << 20;
/// For what happens soon in another task.
const SOON: Duration = Duration::from_secs(10);

/// "Reading 1 MiB out of the middle of a 10 GiB blob fetches megabytes, not gigabytes."
#[tokio::test]
async fn a_read_in_the_middle_fetches_little() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let (content, digest) = blob(100 * MIB);
    a.publish(&content, &digest).await.unwrap();
    let opened = b.open(&digest).await.unwrap();
    let middle = 50 * MIB + 7;
    let read = opened.read(middle as u64, READ_BYTES).await.unwrap();
    assert_eq!(read, content[middle..middle + READ_BYTES as usize]);
    assert!(b.fetched_bytes().await <= 4 * MIB as u64, "{}", b.fetched_bytes().await);
}

/// "`sequential`: when a reader has read 4 MiB of it on end": the same bytes again are none of them.
#[tokio::test]
async fn what_is_read_again_and_again_is_not_read_on_end() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let (content, digest) = blob(100 * MIB);
    a.publish(&content, &digest).await.unwrap();
    let opened = b.open(&digest).await.unwrap();
    for _ in 0..16 {
        let read = Arc::clone(&opened).read(0, READ_BYTES).await.unwrap();
        assert_eq!(read, content[..READ_BYTES as usize]);
    }
    assert!(b.fetched_bytes().await <= 8 * MIB as u64, "{}", b.fetched_bytes().await);
}

/// "The last chunk is withheld until the digest is right."
#[tokio::test]
async fn a_damaged_blob_is_never_read_to_its_end() {
    let store = Arc::new(Recorder::default());
    for (limit_bytes, damaged) in
        [(1 << 30, 0), (1 << 30, 19 * MIB), (2 << 20, 0), (2 << 20, 19 * MIB)]
    {
        let (mut content, digest) = blob(20 * MIB);
        content[damaged] ^= 1;
        store.objects.put(&key(digest.hex()), content.into()).await.unwrap();
        let node = Node::with_cache(&store, limit_bytes);
        let error = node.read(&digest).await.unwrap_err();
        assert_eq!(error.errno(), libc::EIO, "{error}");
        assert!(matches!(node.open(&digest).await, Err(Error::NotFound)), "it counts as missing");
    }
}

/// "A blob larger than the cache is streamed uncached."
#[tokio::test]
async fn a_blob_larger_than_the_cache_is_read_without_it() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::with_cache(&store, 2 << 20));
    let (content, digest) = blob(20 * MIB + 1);
    a.publish(&content, &digest).await.unwrap();
    assert_eq!(b.read(&digest).await.unwrap(), content);
    // From the end to the beginning, and across the pieces.
    let opened = b.open(&digest).await.unwrap();
    for offset in [20 * MIB, 4 * MIB - 10, 8 * MIB, 3 * MIB, 0] {
        let read = Arc::clone(&opened).read(offset as u64, READ_BYTES).await.unwrap();
        let end = content.len().min(offset + READ_BYTES as usize);
        assert!(read == content[offset..end], "{offset}");
    }
}

/// "Large blobs go up in parts during the ingest, completed only when the digest is right."
#[tokio::test]
async fn a_large_blob_whose_digest_is_told_is_sent_while_it_comes() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    for is_wrong in [true, false] {
        let (mut content, digest) = blob(20 * MIB);
        content[19 * MIB] ^= u8::from(is_wrong);
        let id = StagingId::of_blob("x", &digest).unwrap();
        let opened = a.stage(&id, &content).await.unwrap();
        let begun = async {
            while !store.calls.lock().unwrap().iter().any(|call| call.starts_with("upload")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, begun).await.expect("an upload before the rename");
        assert!(matches!(b.open(&digest).await, Err(Error::NotFound)), "visible before the rename");

        let to = Entry::Blob(digest.clone()).path();
        let published = a.rename(&Entry::Staged(id.clone()).path(), &to).await;
        if is_wrong {
            assert_eq!(published.unwrap_err().errno(), libc::EBADMSG);
            assert!(matches!(b.open(&digest).await, Err(Error::NotFound)));
            a.remove(&id).await.unwrap();
        } else {
            published.unwrap();
            assert_eq!(b.read(&digest).await.unwrap(), content);
        }
        drop(opened);
        store.calls.lock().unwrap().clear();
    }
}

/// What was sent before a part of it was written anew is not what is published.
#[tokio::test]
async fn what_is_written_twice_is_sent_as_it_is_in_the_end() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let (content, digest) = blob(20 * MIB);
    let id = StagingId::of_blob("x", &digest).unwrap();
    let mut wrong = content.clone();
    wrong[..MIB].fill(0);
    let opened = a.stage(&id, &wrong).await.unwrap();
    opened.write(0, content[..MIB].to_owned()).await.unwrap();
    a.rename(&Entry::Staged(id).path(), &Entry::Blob(digest.clone()).path()).await.unwrap();
    assert_eq!(b.read(&digest).await.unwrap(), content);
    assert_eq!(a.read(&digest).await.unwrap(), content);
}

/// "`cache.size` [holds] at every moment, in-flight bytes and staging included."
#[tokio::test]
async fn staging_more_than_the_cache_takes_is_refused() {
    let node = Node::with_cache(&Arc::new(Recorder::default()), 2 << 20);
    let (content, digest) = blob(3 * MIB);
    let error = node.publish(&content, &digest).await.unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    let (small, digest) = blob(MIB);
    node.remove(&"x".parse().unwrap()).await.unwrap();
    node.publish(&small, &digest).await.expect("room again");
}

fn key(hex: &str) -> Key {
    Key::from(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}
