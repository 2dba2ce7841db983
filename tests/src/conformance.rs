//! What every shared storage must do, tried through two independent clients of one real server.
//!
//! It begins with what an operator runs, `larder-fs check`, and goes on with what is too slow or
//! too many for that.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::join_all, stream};
use larder_config::{Config, Storage as Section};
use larder_fs::{
    check::{self, Verdict},
    store::{self, Backend},
};
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, WriteMultipart, path::Path as Key,
};

/// More than one part of any system, and more than the 64 MiB up to which some copy in one go.
const LARGE_BYTES: usize = (65 << 20) + 4321;
/// More than one page of any listing.
const KEYS: usize = 1_100;
const WRITERS: usize = 16;
const RACES: usize = 20;
/// SeaweedFS lets those who lose wait for seconds: races for other names go on meanwhile.
const RACES_AT_ONCE: usize = 10;
const ROUNDS: usize = 200;
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// What a storage cannot do. It is said here and in the storage's own documentation, and tried all
/// the same: a storage that has learned it shows up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lacks {
    /// Of several writers that create one name, more than one may win.
    pub atomic_create: bool,
    /// What was sent of an upload that is given up stays until the service itself removes it.
    pub abort: bool,
}

/// Tries the storage of a configuration, in which nothing is. `content` tells all that it holds,
/// segments, staged files and unfinished uploads included, from another source than Larder.
/// Panics at the first thing that is not as it must be.
///
/// # Panics
/// With what is wrong.
pub fn conforms(config: &Config, lacks: Lacks, content: impl Fn() -> Vec<String>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        check_is_content(&config.storage, lacks).await;
        let (first, second) = (open(&config.storage), open(&config.storage));
        let root = first.root_directory;
        let suite = Suite { first: first.objects, second: second.objects, root };
        suite.keeps_what_is_put().await;
        suite.keeps_large_objects(first.part_bytes).await;
        suite.removes_large_objects(first.part_bytes).await;
        suite.lists_many_keys().await;
        suite.shows_every_change_to_a_second_client().await;
        suite.lets_one_writer_create(lacks).await;
    });
    // "After put, overwrite, abort and delete of a multipart blob, a listing of the whole bucket or
    // container shows nothing left (segments, staged files, uploads)."
    let started = Instant::now();
    loop {
        let mut left = content();
        left.retain(|name| !(lacks.abort && name.contains("/given-up")));
        if left.is_empty() {
            return;
        }
        // A directory removes the names of staged files a little later.
        assert!(started.elapsed() < REMOVAL_TIMEOUT, "left over: {left:?}");
        std::thread::sleep(POLL);
    }
}

fn open(config: &Section) -> Backend {
    store::open(config).expect("a storage of this configuration")
}

async fn check_is_content(config: &Section, lacks: Lacks) {
    let mut findings = Vec::new();
    let is_well = check::all(config, |finding| findings.push(finding.clone())).await;
    for finding in &findings {
        eprintln!("{:<18} {:<8} {}", finding.check, finding.verdict, finding.detail);
    }
    assert!(is_well, "a check fails");
    let create = findings.iter().find(|finding| finding.check == "put-if-absent");
    let verdict = create.expect("a finding on put-if-absent").verdict;
    assert!(lacks.atomic_create || verdict == Verdict::Ok, "put-if-absent is not atomic");
}

struct Suite {
    first: Arc<dyn ObjectStore>,
    second: Arc<dyn ObjectStore>,
    root: String,
}

impl Suite {
    fn key(&self, name: &str) -> Key {
        Key::from(format!("{}/docker/larder/conformance/{name}", self.root))
    }

    async fn read(&self, key: &Key) -> Option<Bytes> {
        match self.second.get(key).await {
            Ok(object) => Some(object.bytes().await.expect("the body of an object")),
            Err(Error::NotFound { .. }) => None,
            Err(e) => panic!("{key}: {e}"),
        }
    }

    async fn keeps_what_is_put(&self) {
        let key = self.key("a.b_c-d/small/data");
        for content in [Bytes::new(), Bytes::from_static(b"x"), noise(100_000)] {
            self.first.put(&key, content.clone().into()).await.expect("a small object is put");
            let meta = self.second.head(&key).await.expect("its head");
            // A directory keeps what is called `data` as it was first written.
            let kept = self.read(&key).await.expect("what was just put");
            assert_eq!(meta.size, kept.len() as u64);
            self.first.delete(&key).await.expect("it is removed");
            assert_eq!(kept, content);
            assert_eq!(self.read(&key).await, None);
        }
        let missing = self.second.get_range(&key, 0..10).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    }

    async fn upload(&self, key: &Key, content: &Bytes, part_bytes: u64) -> WriteMultipart {
        let upload = self.first.put_multipart(key).await.expect("an upload begins");
        let part_bytes = usize::try_from(part_bytes).expect("a size");
        let mut parts = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        for piece in content.chunks(3 << 20) {
            parts.wait_for_capacity(4).await.expect("a part is sent");
            parts.put(content.slice_ref(piece));
        }
        parts
    }

    async fn keeps_large_objects(&self, part_bytes: u64) {
        let (key, content) = (self.key("large/data"), noise(LARGE_BYTES));
        let upload = self.upload(&key, &content, part_bytes).await;
        assert_eq!(self.read(&key).await, None, "an upload shows before it is complete");
        upload.finish().await.expect("it is completed");
        assert_eq!(self.second.head(&key).await.expect("its head").size, LARGE_BYTES as u64);
        assert!(
            self.read(&key).await.expect("a large object") == content,
            "it came back different"
        );
        for range in [0..1, 8 << 20..16 << 20, LARGE_BYTES - 7..LARGE_BYTES] {
            let got = self.second.get_range(&key, range.start as u64..range.end as u64).await;
            assert!(got.expect("a range") == content[range.clone()], "{range:?} is different");
        }
        self.first.delete(&key).await.expect("it is removed");
        assert_eq!(self.read(&key).await, None);
    }

    /// Puts a blob in parts, over it another time, and over both a small one; gives uploads up over
    /// it and where nothing is; and removes it.
    async fn removes_large_objects(&self, part_bytes: u64) {
        let (key, other) = (self.key("removed/data"), self.key("given-up/data"));
        let content = noise(20 << 20);
        for _ in 0..2 {
            let upload = self.upload(&key, &content, part_bytes).await;
            upload.finish().await.expect("it is completed");
        }
        for key in [&key, &other] {
            let mut upload = self.upload(key, &content, part_bytes).await;
            upload.wait_for_capacity(1).await.expect("its parts are sent");
            upload.abort().await.expect("it is aborted");
        }
        assert!(self.read(&key).await.is_some_and(|read| read == content));
        assert_eq!(self.read(&other).await, None);
        self.first.put(&key, Bytes::from_static(b"x").into()).await.expect("a small object");
        self.first.delete(&key).await.expect("it is removed");
    }

    async fn lists_many_keys(&self) {
        let keys: Vec<_> = (0..KEYS).map(|n| self.key(&format!("many/{n:04}/link"))).collect();
        let puts =
            stream::iter(&keys).map(|key| self.first.put(key, Bytes::from_static(b"x").into()));
        puts.buffer_unordered(32).try_collect::<Vec<_>>().await.expect("many objects are put");

        let prefix = self.key("many");
        let listed = self.second.list(Some(&prefix)).map_ok(|meta| meta.location);
        let mut listed: Vec<_> = listed.try_collect().await.expect("a listing");
        listed.sort();
        assert!(listed == keys, "{} of {KEYS} keys are listed", listed.len());
        let level = self.second.list_with_delimiter(Some(&prefix)).await.expect("a level");
        assert_eq!((level.common_prefixes.len(), level.objects.len()), (KEYS, 0));

        let deletes = stream::iter(&keys).map(|key| self.first.delete(key));
        deletes.buffer_unordered(32).try_collect::<Vec<_>>().await.expect("they are removed");
    }

    async fn shows_every_change_to_a_second_client(&self) {
        let link = self.key("tag/link");
        for round in 0..ROUNDS {
            let content = Bytes::from(format!("{round:032}"));
            self.first.put(&link, content.clone().into()).await.expect("a link is put");
            assert_eq!(self.read(&link).await, Some(content), "round {round}");
        }
        self.first.delete(&link).await.expect("it is removed");
        for round in 0..ROUNDS {
            let key = self.key(&format!("new-{round}/data"));
            assert_eq!(self.read(&key).await, None, "round {round}");
            self.first.put(&key, Bytes::from_static(b"x").into()).await.expect("a blob is put");
            assert!(self.read(&key).await.is_some(), "round {round}");
            self.first.delete(&key).await.expect("it is removed");
            assert_eq!(self.read(&key).await, None, "round {round}");
        }
    }

    async fn lets_one_writer_create(&self, lacks: Lacks) {
        let races = stream::iter(0..RACES).map(|race| self.race(race, lacks));
        races.buffer_unordered(RACES_AT_ONCE).collect::<()>().await;
    }

    async fn race(&self, race: usize, lacks: Lacks) {
        let key = self.key(&format!("race-{race}"));
        let attempts = (0..WRITERS).map(|writer| {
            let store = if writer % 2 == 0 { &self.first } else { &self.second };
            let content = Bytes::from(writer.to_string());
            store.put_opts(&key, content.into(), PutOptions::from(PutMode::Create))
        });
        let mut winners = 0;
        for attempt in join_all(attempts).await {
            match attempt {
                Ok(_) => winners += 1,
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
                Err(e) => panic!("race {race}: {e}"),
            }
        }
        assert!(winners == 1 || lacks.atomic_create, "race {race} has {winners} winners");
        assert!(winners > 0, "nobody wins race {race}");
        self.first.delete(&key).await.expect("it is removed");
    }
}

fn noise(size_bytes: usize) -> Bytes {
    crate::random_bytes(size_bytes).into()
}
