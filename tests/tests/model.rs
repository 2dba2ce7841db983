//! The model of the contract, and two mounts that are held to it by ordinary file calls.
//!
//! `PROPTEST_CASES` is how many cases there are; proptest tells how to have one again.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

#[path = "../../fs/tests/model/operation.rs"]
#[allow(dead_code, reason = "storages fail in the model without a mount")]
mod operation;
#[path = "../../fs/tests/model/reference/mod.rs"]
#[allow(dead_code, reason = "and so do disks")]
mod reference;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use larder_layout::{Digest, Entry, Report};
use larder_tests::{Mount, Sandbox, Storage, blobs_in, until};
use proptest::test_runner::{Config, TestError, TestRunner};

use self::{
    operation::{Damage, NODES, Trouble},
    reference::{Content, Outcome, Reference, System},
};

const CASES: u32 = 200;
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// The first cache holds the small contents and one large one at a time; the second holds all.
const CACHE_BYTES: [u64; NODES] = [3 << 20, 96 << 20];

/// Two mounts on one directory.
#[derive(Clone, Copy)]
struct Mounts<'a>([&'a Mount<'a>; NODES]);

fn errno<T>(outcome: io::Result<T>) -> Outcome<T> {
    outcome.map_err(|e| e.raw_os_error().expect("an errno"))
}

impl Mounts<'_> {
    fn call<T: Send>(
        self,
        node: usize,
        path: &Path,
        call: impl FnOnce(&Path) -> io::Result<T> + Send,
    ) -> Outcome<T> {
        errno(self.0[node].call(|mount| call(&mount.join(path))))
    }

    fn used_bytes(self, node: usize) -> u64 {
        let path = Entry::Report(Report::Stats).path();
        let stats = self.call(node, &path, |path| fs::read_to_string(path)).unwrap();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats["cache"]["used_bytes"].as_u64().unwrap()
    }
}

impl System for Mounts<'_> {
    type File = File;

    fn create(&mut self, node: usize, path: &Path) -> Outcome<File> {
        let options = || OpenOptions::new().read(true).write(true).create_new(true).clone();
        self.call(node, path, |path| options().open(path))
    }

    fn write(&mut self, node: usize, file: &File, at: u64, content: &[u8]) -> Outcome<()> {
        errno(self.0[node].call(|_| file.write_all_at(content, at)))
    }

    fn truncate(&mut self, node: usize, path: &Path, size_bytes: u64) -> Outcome<()> {
        self.call(node, path, |path| OpenOptions::new().write(true).open(path)?.set_len(size_bytes))
    }

    fn rename(&mut self, node: usize, from: &Path, to: &Path) -> Outcome<()> {
        errno(self.0[node].call(|mount| fs::rename(mount.join(from), mount.join(to))))
    }

    fn interrupted_rename(
        &mut self,
        node: usize,
        from: &Path,
        to: &Path,
        _steps: u32,
    ) -> Option<Outcome<()>> {
        Some(self.rename(node, from, to))
    }

    fn unlink(&mut self, node: usize, path: &Path) -> Outcome<()> {
        self.call(node, path, |path| fs::remove_file(path))
    }

    fn symlink(&mut self, node: usize, target: &Path, path: &Path) -> Outcome<()> {
        self.call(node, path, |path| std::os::unix::fs::symlink(target, path))
    }

    fn make_directories(&mut self, node: usize, path: &Path) -> Outcome<()> {
        self.call(node, path, |path| fs::create_dir_all(path))
    }

    fn read_link(&mut self, node: usize, path: &Path) -> Outcome<PathBuf> {
        self.call(node, path, |path| fs::read_link(path))
    }

    fn open(&mut self, node: usize, path: &Path) -> Outcome<File> {
        self.call(node, path, |path| File::open(path))
    }

    fn read(&mut self, node: usize, file: &File, at: u64, size_bytes: u32) -> Outcome<Vec<u8>> {
        let mut content = vec![0; size_bytes as usize];
        let mut filled = 0;
        let read = self.0[node].call(|_| {
            loop {
                match file.read_at(&mut content[filled..], at + filled as u64)? {
                    0 => return Ok(()),
                    size => filled += size,
                }
            }
        });
        errno(read)?;
        content.truncate(filled);
        Ok(content)
    }

    fn size_bytes(&mut self, node: usize, path: &Path) -> Outcome<u64> {
        self.call(node, path, |path| fs::symlink_metadata(path)).map(|metadata| metadata.len())
    }

    fn list(&mut self, node: usize, path: &Path) -> Outcome<Vec<String>> {
        self.call(node, path, |path| {
            let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
            names.map(|name| Ok(name?.into_string().expect("ASCII"))).collect()
        })
    }

    fn forget(&mut self, _node: usize) {}

    fn settle(&mut self, _node: usize) {}

    fn is_cached(&mut self, _node: usize, _digest: &Digest) -> bool {
        false
    }

    fn spoil(&mut self, node: usize, digest: &Digest, damage: Damage) {
        let directory = self.0[node].cache().join("blobs").join(digest.algorithm().as_str());
        damage.inflict(&directory.join(digest.hex()));
    }

    fn crash(&mut self, node: usize, keeps_cache: bool) {
        let mount = self.0[node];
        mount.kill();
        if !keeps_cache {
            fs::remove_dir_all(mount.cache()).unwrap();
        }
        mount.restart();
    }

    fn trouble(&mut self, _trouble: Trouble, _calls_before: u32) {}

    fn heal(&mut self) {}

    fn damage_stored(&mut self, _digest: &Digest) {}

    /// "8. The local cache stays inside its size limit."
    fn check(&mut self) {
        for (node, limit_bytes) in CACHE_BYTES.into_iter().enumerate() {
            let used_bytes = self.used_bytes(node);
            assert!(used_bytes <= limit_bytes, "{used_bytes} of {limit_bytes} bytes are used");
        }
    }

    fn check_idle(&mut self, _was_in_trouble: bool) {
        for mount in self.0 {
            until("nothing is staged", SETTLES_WITHIN, || {
                let mut staged = fs::read_dir(mount.cache().join("staging")).unwrap();
                staged.next().is_none().then_some(())
            });
        }
    }
}

/// The guarantees 1, 2, 3, 6 and 8, each with what is asserted in the model, by way of the kernel.
#[test]
fn caches_are_spoiled_and_nodes_are_killed() {
    let Some(sandbox) = Sandbox::enter(&Mount::NEEDS) else { return };
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    let start = |name: &str, size_bytes: u64| {
        Mount::start(&sandbox, name, &storage, &format!("size: {size_bytes}, scrub: 0"))
    };
    let (small, large) = (start("small", CACHE_BYTES[0]), start("large", CACHE_BYTES[1]));
    let mounts = Mounts([&small, &large]);

    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let salt = AtomicU64::new(0);
    let outcome = TestRunner::new(config).run(&operation::rough(), |operations| {
        let salt = salt.fetch_add(1, Ordering::Relaxed);
        let repository = format!("library/app{salt}");
        Reference::new(mounts, &Content::all(salt), &repository).run(&operations);
        Ok(())
    });
    match outcome {
        Ok(()) => drop(blobs_in(&directory)),
        Err(TestError::Fail(reason, operations)) => panic!("{reason}, after {operations:?}"),
        Err(e) => panic!("{e}"),
    }
}
