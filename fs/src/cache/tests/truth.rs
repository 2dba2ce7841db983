//! > Bytes served under a digest hash to it, or the transfer ends in an error.

use std::fs::File;

use super::*;

type Damage = (&'static str, fn(&Path));

/// What happens to a file behind our back, the file of [`CONTENT`].
const DAMAGES: [Damage; 10] = [
    ("flipped", |path| flip(path)),
    ("flipped, with its old modification time", |path| {
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        flip(path);
        File::open(path).unwrap().set_modified(modified).unwrap();
    }),
    ("truncated", |path| File::options().write(true).open(path).unwrap().set_len(3).unwrap()),
    ("emptied", |path| File::options().write(true).open(path).unwrap().set_len(0).unwrap()),
    ("grown", |path| {
        File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
    }),
    ("replaced", |path| {
        let other = path.with_extension("other");
        fs::write(&other, b"0123456780").unwrap();
        let times = File::open(path).unwrap().metadata().unwrap().modified().unwrap();
        File::open(&other).unwrap().set_modified(times).unwrap();
        fs::rename(other, path).unwrap();
    }),
    ("replaced by a directory", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
    ("replaced by a symlink", |path| {
        let other = path.with_extension("other");
        fs::rename(path, &other).unwrap();
        std::os::unix::fs::symlink(other, path).unwrap();
    }),
    ("replaced by a pipe", |path| {
        fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    }),
    ("removed", |path| fs::remove_file(path).unwrap()),
];

const CONTENT: &[u8] = b"0123456789";

pub fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(b"!", 4).unwrap();
}

#[test]
fn a_damaged_file_is_a_miss_and_the_blob_can_come_in_anew() {
    for (damage, harm) in DAMAGES {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(directory.path(), 100);
        let digest = node.put(CONTENT);
        harm(&node.path(&digest));

        assert_eq!(node.get(&digest), None, "{damage}");
        assert!(!node.has(&digest), "{damage}: still in the index");
        let kept = usize::from(damage != "removed");
        assert_eq!(node.quarantine().len(), kept, "{damage}");
        assert_eq!(node.used_bytes(), kept as u64 * BLOCK_BYTES, "{damage}");

        assert_eq!(node.put(CONTENT), digest);
        assert_eq!(node.get(&digest).as_deref(), Some(CONTENT), "{damage}");
    }
}

#[test]
fn a_damaged_file_is_found_after_a_restart() {
    for (damage, harm) in DAMAGES {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(directory.path(), 100);
        let digest = node.put(CONTENT);
        let path = node.path(&digest);
        node.close();
        harm(&path);
        let node = Node::open_uncounted(directory.path(), 100);
        assert_eq!(node.get(&digest), None, "{damage}");
    }
}

#[test]
fn a_file_that_is_changed_while_it_gets_its_name_is_not_vouched_for() {
    // With its old modification time, a file shows its change only by its change time, which
    // renaming sets as well.
    let shown = DAMAGES[..5].iter().filter(|(damage, _)| !damage.contains("old modification"));
    for (damage, harm) in shown {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(directory.path(), 100);
        let digest = Digest::of(Algorithm::Sha256, CONTENT);
        let mut room = Reservation::new(&node.state, CONTENT.len() as u64).unwrap();
        let staged = node.state.staging_path("x");
        fs::write(&staged, CONTENT).unwrap();
        let prepared = node.state.prepare(&staged, SystemTime::now()).unwrap();
        harm(&staged);
        let published = node.state.publish(&staged, &digest, prepared, &mut room);
        assert!(published.is_err(), "{damage}");
        assert_eq!(node.get(&digest), None, "{damage}");
        assert_eq!(node.quarantine().len(), 1, "{damage}");
    }
}

#[test]
fn a_file_that_only_looks_changed_is_hashed_once_and_served() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 100);
    let digest = node.put(CONTENT);
    assert_eq!(node.get(&digest).as_deref(), Some(CONTENT));
    assert_eq!(node.verified_bytes(), 0, "a file that looks the same was hashed");

    File::open(node.path(&digest)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(node.get(&digest).as_deref(), Some(CONTENT));
            });
        }
    });
    assert_eq!(node.verified_bytes(), CONTENT.len() as u64, "hashed once for all");
    assert_eq!(node.used_bytes(), BLOCK_BYTES);
}
