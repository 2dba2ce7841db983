//! A storage that does not answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt;
use larder_fs::{
    error::{Error, Result},
    store::Storage,
};
use larder_layout::{Algorithm, Digest, Link, Membership, Repository};
use larder_tests::{Opened, S3, Sandbox};

/// How many operations fail before the storage counts as down.
const FIRST_FAILURES: usize = 5;
const MILLISECONDS: Duration = Duration::from_millis(20);

// "Any storage operation ends within its deadline with the right errno; a storage that is down costs
// milliseconds, not minutes, after the first failures."

#[test]
fn every_operation_on_a_storage_that_is_down_costs_milliseconds() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let section = format!(
        "s3: {{bucket: {}, region: r, accesskey: a, secretkey: b, regionendpoint: 'http://{}'}}",
        S3::BUCKET,
        sandbox.address()
    );
    let opened = Opened::open(&sandbox, &section).expect("a section");
    let backend = larder_fs::store::open(&opened.config.storage).expect("a storage");
    let storage = Arc::new(Storage::new(backend));
    opened.run(async {
        for _ in 0..FIRST_FAILURES {
            let failure = list_blobs(&storage).await.expect_err("nobody listens");
            assert_eq!(failure.errno(), libc::EIO, "{failure}");
        }
        // The storage is asked again now and then: by none of those who come at once.
        let started = Instant::now();
        for outcome in operations(&storage).await {
            assert!(matches!(outcome, Err(Error::Down)), "{outcome:?}");
        }
        assert!(started.elapsed() < MILLISECONDS, "{:?}", started.elapsed());
        assert_eq!(Error::Down.errno(), libc::EIO);
    });
}

async fn list_blobs(storage: &Storage) -> Result<()> {
    let mut blobs = storage.list_blobs(Algorithm::Sha256);
    let first = blobs.next().await.transpose().map(drop);
    assert!(first.is_ok() || blobs.next().await.is_none(), "a listing goes on after an error");
    first
}

/// One of each.
async fn operations(storage: &Arc<Storage>) -> Vec<Result<()>> {
    let digest = Digest::of(Algorithm::Sha256, b"blob");
    let repository: Repository = "library/alpine".parse().expect("a name");
    let link = Link::Tag(repository.clone(), "latest".parse().expect("a tag"));
    let content = Bytes::from_static(b"blob");
    let members = storage.list_members(&repository, Membership::Layer, Algorithm::Sha256);
    vec![
        list_blobs(storage).await,
        storage.stat_blob(&digest).await.map(drop),
        storage.read_blob(&digest, 4, 0..4).await.map(drop),
        storage.put_blob(&digest, content).await,
        storage.upload_blob(&digest).await.map(drop),
        storage.read_link(&link).await.map(drop),
        storage.put_link(&link, &digest).await,
        storage.list_repositories(None).await.map(drop),
        storage.list_tags(&repository).await.map(drop),
        members.await.map(drop),
    ]
}
