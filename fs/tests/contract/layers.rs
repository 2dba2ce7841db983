//! The files inside a layer.

use std::{io::Write, path::Path, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use larder_fs::{
    error::{Error, Result},
    filesystem::Kind,
};
use larder_layout::{Algorithm, Digest, Entry, Report};
use proptest::prelude::*;

use crate::support::{Node, Recorder};

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

impl Node {
    async fn add(&self, blob: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, blob);
        self.publish(blob, &digest).await.unwrap();
        digest
    }

    async fn cat(&self, layer: &Digest, file: &str) -> Result<Vec<u8>> {
        self.read_path(&Entry::Layer(layer.clone()).path().join(file)).await
    }

    /// Reads everything that there is in a directory of a layer, and tells how many files that were.
    async fn walk(&self, directory: &Path) -> Result<usize> {
        let number = self.stat(directory).await?.number;
        let opened = self.filesystem.opendir(number).await?;
        let mut count = 0;
        while let Some((name, kind)) = self.filesystem.listed(&opened, count as u64).await? {
            let path = directory.join(&name);
            let attributes = self.stat(&path).await?;
            assert_eq!(attributes.kind, kind);
            if self.filesystem.opendir(attributes.number).await.is_ok() {
                Box::pin(self.walk(&path)).await?;
            } else if let Ok(content) = self.read_path(&path).await {
                assert_eq!(content.len() as u64, attributes.size_bytes);
            }
            count += 1;
        }
        Ok(count)
    }

    async fn reserved_bytes(&self) -> u64 {
        let report = self.read_path(&Entry::Report(Report::Stats).path()).await.unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        report["cache"]["reserved_bytes"].as_u64().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_nobody_looks_into_takes_no_room() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    let layer = node.add(&archive(&[("a/b", b"content")])).await;
    assert_eq!(node.cat(&layer, "a/b").await.unwrap(), b"content");
    let kind = node.stat(&Entry::Layer(layer.clone()).path()).await.unwrap().kind;
    assert_eq!(kind, Kind::Directory);
    assert!(node.reserved_bytes().await > 0);
    tokio::time::sleep(Duration::from_secs(590)).await;
    assert_eq!(node.cat(&layer, "a/b").await.unwrap(), b"content");
    tokio::time::sleep(Duration::from_secs(590)).await;
    assert!(node.reserved_bytes().await > 0, "somebody did, since");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(node.reserved_bytes().await, 0);
    assert_eq!(node.cat(&layer, "a/b").await.unwrap(), b"content", "it can be looked into again");
}

#[tokio::test]
async fn few_layers_are_kept_unpacked_and_files_that_are_open_stay() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    let mut layers = Vec::new();
    for n in 0..6_u8 {
        layers.push(node.add(&gzip(&archive(&[("file", &[n; 1000])]))).await);
    }
    let path = Entry::Layer(layers[0].clone()).path().join("file");
    let number = node.stat(&path).await.unwrap().number;
    let opened = Arc::new(node.filesystem.open(number, false).await.unwrap());
    for _ in 0..2 {
        for (n, layer) in (0..).zip(&layers) {
            assert_eq!(node.cat(layer, "file").await.unwrap(), [n; 1000]);
        }
    }
    assert_eq!(opened.read(500, 1000).await.unwrap(), [0; 500].as_slice());
    assert!(node.reserved_bytes().await <= 5 * (16 << 20), "those kept, and the one that is open");
}

#[tokio::test]
async fn a_layer_that_is_too_large_takes_no_room() {
    let store = Arc::new(Recorder::default());
    let node = Node::with_cache(&store, 8 << 20);
    let kept = node.add(b"another blob").await;
    let layer = node.add(&gzip(&archive(&[("small", b"x"), ("large", &vec![0; 2 << 20])]))).await;
    let outcome = node.cat(&layer, "small").await;
    assert_eq!(outcome.unwrap_err().errno(), libc::ENOSPC);
    assert_eq!(node.reserved_bytes().await, 0);
    assert_eq!(node.read(&kept).await.unwrap(), b"another blob");
}

#[tokio::test]
async fn a_header_that_would_fill_the_memory_is_refused() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    for kind in [tar::EntryType::XHeader, tar::EntryType::GNULongName] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(64 << 20);
        header.set_cksum();
        let blob = gzip(&[header.as_bytes().as_slice(), &vec![b'x'; 64 << 20]].concat());
        let layer = node.add(&blob).await;
        let Err(Error::Layer { reason, .. }) = node.cat(&layer, "x").await else {
            panic!("{kind:?}");
        };
        assert!(reason.contains("header"), "{reason}");
    }
}

/// As some tools write them: padded, or followed by what is no archive.
#[tokio::test]
async fn what_is_behind_the_end_of_a_layer_does_not_matter() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    let whole = archive(&[("a", b"content")]);
    for rest in [&[0_u8; 10_000][..], b"something else"] {
        for start in [whole.clone(), gzip(&whole), zstd::encode_all(&*whole, 1).unwrap()] {
            let layer = node.add(&[&start, rest].concat()).await;
            assert_eq!(node.cat(&layer, "a").await.unwrap(), b"content");
        }
    }
}

#[tokio::test]
async fn a_blob_that_is_no_layer_is_no_directory() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    for blob in [&b"{}"[..], b"", &[0; 1024]] {
        let digest = node.add(blob).await;
        assert!(matches!(node.cat(&digest, "x").await, Err(Error::NotDirectory)));
    }
    let missing = Digest::of(Algorithm::Sha256, b"missing");
    assert!(matches!(node.cat(&missing, "x").await, Err(Error::NotFound)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever an archive says, it can be walked through to its end, or says that it is broken.
    #[test]
    fn hostile_archives_do_no_harm(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        how in 0..3,
    ) {
        let long = "d/".repeat(80) + "file";
        let mut blob = archive(&[("a", b"content"), (&long, b"deep"), ("b/c", &[7; 1500])]);
        let spoil = |blob: &mut Vec<u8>| {
            for (at, byte) in &damage {
                let at = at.index(blob.len());
                blob[at] = *byte;
            }
        };
        // Before it is compressed, or after.
        match how {
            0 => spoil(&mut blob),
            1 => {
                spoil(&mut blob);
                blob = gzip(&blob);
            }
            _ => {
                blob = zstd::encode_all(&*blob, 1).unwrap();
                spoil(&mut blob);
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Arc::new(Recorder::default());
            let node = Node::with_cache(&store, 64 << 20);
            let layer = node.add(&blob).await;
            let outcome = node.walk(&Entry::Layer(layer).path()).await;
            let is_told = matches!(
                outcome,
                Ok(_) | Err(Error::Layer { .. } | Error::NotDirectory | Error::Disk { .. })
            );
            assert!(is_told, "{outcome:?}");
        });
    }
}
