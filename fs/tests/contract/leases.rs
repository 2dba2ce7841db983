//! Who fetches a blob from the upstream.

use std::{path::PathBuf, sync::Arc, time::Duration};

use larder_fs::error::{Error, Result};
use larder_layout::{Algorithm, Directory, Entry, Lease};
use object_store::{ObjectStoreExt, path::Path as Key};

use crate::support::{Node, Recorder, blob};

impl Node {
    async fn take(&self, lease: &Lease, holder: &str) -> Result<()> {
        let (parent, name) = self.parent(&Entry::Lease(lease.clone()).path()).await?;
        self.filesystem.symlink(parent, &name, holder.as_ref()).await.map(drop)
    }

    async fn holder(&self, lease: &Lease) -> Result<PathBuf> {
        let attributes = self.stat(&Entry::Lease(lease.clone()).path()).await?;
        self.filesystem.readlink(attributes.number)
    }

    async fn end(&self, lease: &Lease) -> Result<()> {
        let (parent, name) = self.parent(&Entry::Lease(lease.clone()).path()).await?;
        self.filesystem.unlink(parent, &name).await
    }

    async fn leases(&self) -> Vec<String> {
        let directory = Entry::Directory(Directory::LeasesOf(Algorithm::Sha256)).path();
        let number = self.stat(&directory).await.unwrap().number;
        let opened = self.filesystem.opendir(number).await.unwrap();
        let mut names = Vec::new();
        while let Some((name, _)) =
            self.filesystem.listed(&opened, names.len() as u64).await.unwrap()
        {
            names.push(name.into_string().unwrap());
        }
        names
    }
}

#[tokio::test]
async fn one_node_at_a_time_has_a_lease_and_all_see_it() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let (_, digest) = blob(1);
    let [lease, next] = [0, 1].map(|turn| Lease { digest: digest.clone(), turn });
    assert!(matches!(b.holder(&lease).await, Err(Error::NotFound)));

    let (one, other) = tokio::join!(a.take(&lease, "a"), b.take(&lease, "b"));
    let (winner, loser, holder) = if one.is_ok() { (&a, other, "a") } else { (&b, one, "b") };
    assert_eq!(loser.unwrap_err().errno(), libc::EEXIST);
    for node in [&a, &b] {
        assert_eq!(node.holder(&lease).await.unwrap(), PathBuf::from(holder));
        assert_eq!(node.leases().await, [lease.name()]);
    }
    b.take(&next, "b").await.unwrap();
    assert_eq!(a.leases().await, [lease.name(), next.name()]);

    winner.end(&lease).await.unwrap();
    assert!(matches!(b.holder(&lease).await, Err(Error::NotFound)));
    a.take(&lease, "c").await.unwrap();
    assert_eq!(b.holder(&lease).await.unwrap(), PathBuf::from("c"), "nothing is remembered");
}

#[tokio::test]
async fn a_lease_is_a_symlink_with_a_short_target_and_nothing_else() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    let lease = Lease { digest: blob(1).1, turn: 0 };
    let long = "x".repeat(Lease::TARGET_MAX_BYTES + 1);
    assert!(matches!(node.take(&lease, &long).await, Err(Error::Invalid(_))));
    let path = Entry::Lease(lease.clone()).path();
    let (parent, name) = node.parent(&path).await.unwrap();
    let created = node.filesystem.create(parent, &name);
    assert!(matches!(created, Err(Error::ReadOnly)));
    node.stage(&"x".parse().unwrap(), b"content").await.unwrap();
    let renamed = node.rename("ingest/x".as_ref(), &path).await;
    assert!(matches!(renamed, Err(Error::ReadOnly)));
}

/// What a killed node left, and nobody came upon since.
#[tokio::test]
async fn old_leases_are_swept_and_nothing_else() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    let (content, digest) = blob(1);
    node.publish(&content, &digest).await.unwrap();
    let lease = Lease { digest: digest.clone(), turn: 3 };
    node.take(&lease, "a").await.unwrap();
    let storage = crate::support::storage(&store);
    assert_eq!(storage.sweep_leases(Duration::from_secs(60)).await.unwrap(), 0);
    assert_eq!(node.holder(&lease).await.unwrap(), PathBuf::from("a"));
    assert_eq!(storage.sweep_leases(Duration::ZERO).await.unwrap(), 1);
    assert!(matches!(node.holder(&lease).await, Err(Error::NotFound)));
    let key = format!("docker/larder/leases/sha256/{}", lease.name());
    assert!(store.objects.head(&Key::from(key)).await.is_err());
    assert_eq!(Node::on(&store).read(&digest).await.unwrap(), content);
}
