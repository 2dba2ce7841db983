//! > The local cache survives a restart.
//!
//! And a crash at any instruction leaves nothing that a later start serves unless it is right.

use std::os::unix::fs::PermissionsExt;

use super::{super::journal::BOOT_ID, *};

const CONTENTS: [&[u8]; 4] = [b"one", b"two", b"three", b"four"];

fn restart(node: Node) -> Node {
    let (directory, blocks) = (node.directory.clone(), node.state.limits.size_bytes / BLOCK_BYTES);
    node.close();
    Node::open_uncounted(&directory, blocks)
}

#[test]
fn the_order_of_use_survives() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 100);
    let digests = CONTENTS.map(|content| node.put(content));
    node.get(&digests[1]).unwrap();
    node.get(&digests[0]).unwrap();
    let before = order(&node);

    let node = restart(node);
    assert_eq!(order(&node), before);
    assert!(node.state.is_counted.load(std::sync::atomic::Ordering::Relaxed));
    node.get(&digests[2]).unwrap();
    node.state.checkpoint().unwrap();
    node.get(&digests[3]).unwrap();
    let before = order(&node);
    let node = restart(node);
    assert_eq!(order(&node), before, "after a checkpoint");
    assert_eq!(node.verified_bytes(), 0, "nothing had to be hashed");
    assert_consistent(&node);
}

#[test]
fn what_was_adopted_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 100);
    let first = node.put(CONTENTS[0]);
    let second = node.try_put(Algorithm::Sha512, CONTENTS[1]).unwrap().digest().clone();
    node.state.stage("half").unwrap().write(|file| file.write_all_at(b"ha", 0)).unwrap();
    drop(node);

    let node = Node::open_uncounted(directory.path(), 100);
    assert_eq!(
        order(&node).iter().map(|(_, key)| key.digest()).collect::<Vec<_>>(),
        [first.clone(), second.clone()]
    );
    assert_eq!(node.state.index().sums.discarded, BLOCK_BYTES, "what was staged still counts");
    assert!(node.directory.join("staging").read_dir().unwrap().next().is_none());
    node.state.remove_discarded().unwrap();
    assert!(node.directory.join("discarded").read_dir().unwrap().next().is_none());
    assert_eq!(node.get(&first).as_deref(), Some(CONTENTS[0]));
    assert_eq!(node.get(&second).as_deref(), Some(CONTENTS[1]));
    assert_consistent(&node);
}

/// A journal with all kinds of records, and the directory that it belongs to. One of the files is
/// damaged, and one is gone.
fn journal_of_all_kinds(directory: &Path) -> (Vec<u8>, Vec<(Digest, &'static [u8])>) {
    let node = Node::open(directory, 5);
    let mut digests = Vec::new();
    for content in CONTENTS {
        digests.push((node.put(content), content));
    }
    digests.push((node.try_put(Algorithm::Sha512, b"five").unwrap().digest().clone(), b"five"));
    node.get(&digests[1].0).unwrap();
    // It takes the place of the first.
    digests.push((node.put(b"six"), b"six"));
    node.state.flush().unwrap();
    node.state.end_sync(300, Ok(())).unwrap();
    let damaged = node.path(&digests[2].0);
    fs::remove_file(&damaged).unwrap();
    fs::write(&damaged, b"threx").unwrap();
    fs::remove_file(node.path(&digests[3].0)).unwrap();
    node.close();
    (fs::read(directory.join("index")).unwrap(), digests)
}

/// Whatever the index says, what is served is right; and in the end all that is right is served.
fn assert_right(directory: &Path, digests: &[(Digest, &'static [u8])], case: &str) {
    let node = Node::open_uncounted(directory, 5);
    for (digest, content) in digests {
        let served = node.get(digest);
        assert!(served.is_none_or(|served| served == *content), "{case}");
    }
    node.state.reconcile().unwrap();
    for (place, (digest, content)) in digests.iter().enumerate() {
        let expected = if [0, 2, 3].contains(&place) { None } else { Some(*content) };
        assert_eq!(node.get(digest).as_deref(), expected, "{case}, blob {place}");
    }
    assert_eq!(node.state.index().len(), 3, "{case}");
    assert_consistent(&node);
}

#[test]
fn an_index_that_is_torn_or_damaged_anywhere_lets_nothing_wrong_through() {
    let directory = fast_directory();
    let (index, digests) = journal_of_all_kinds(directory.path());
    let path = directory.path().join("index");
    let threex = Digest::of(Algorithm::Sha256, CONTENTS[2]);
    let threex = directory.path().join("blobs/sha256").join(threex.hex());
    let case = |name: String, index: &[u8]| {
        fs::write(&path, index).unwrap();
        fs::write(&threex, b"threx").unwrap();
        assert_right(directory.path(), &digests, &name);
    };
    for length in 0..=index.len() {
        case(format!("cut to {length}"), &index[..length]);
        let mut torn = index[..length].to_vec();
        torn.resize(index.len() + 100, 0);
        case(format!("zeroes from {length}"), &torn);
    }
    for position in 0..index.len() {
        let mut flipped = index.clone();
        flipped[position] ^= 1 << (position % 8);
        case(format!("flipped at {position}"), &flipped);
    }
}

#[test]
fn a_journal_that_was_cut_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 100);
    let first = node.put(CONTENTS[0]);
    node.close();
    let path = directory.path().join("index");
    let mut torn = fs::read(&path).unwrap();
    torn.extend(b"\x02half a record");
    fs::write(&path, torn).unwrap();

    let node = Node::open(directory.path(), 100);
    let second = node.put(CONTENTS[1]);
    let node = restart(node);
    assert!(node.state.is_counted.load(std::sync::atomic::Ordering::Relaxed), "torn once more");
    assert!(node.has(&first) && node.has(&second));
}

#[test]
fn after_a_crash_of_the_machine_what_was_not_synced_is_hashed() {
    let directory = tempfile::tempdir().unwrap();
    BOOT_ID.set(Some([1; 16]));
    let node = Node::open(directory.path(), 100);
    let synced = node.put(CONTENTS[0]);
    node.state.flush().unwrap();
    let offset = node.state.journal().size_bytes();
    let unsynced = node.put(CONTENTS[1]);
    node.state.end_sync(offset, Ok(())).unwrap();
    node.close();

    for boot in [1, 2, 2] {
        BOOT_ID.set(Some([boot; 16]));
        let node = Node::open_uncounted(directory.path(), 100);
        node.state.flush().unwrap();
        node.get(&synced).unwrap();
        assert_eq!(node.verified_bytes(), 0);
        node.get(&unsynced).unwrap();
        let hashed = if boot == 1 { 0 } else { CONTENTS[1].len() as u64 };
        assert_eq!(node.verified_bytes(), hashed, "boot {boot}");
        // Killed: the journal does not say that it was hashed.
    }
    BOOT_ID.set(None);
}

#[test]
fn a_file_that_the_index_does_not_know_is_hashed_and_served() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 100);
    let sound = node.put(CONTENTS[0]);
    let damaged = node.put(CONTENTS[1]);
    let path = node.path(&damaged);
    node.close();
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"owt").unwrap();
    let note = path.with_file_name("note");
    fs::write(&note, "not a blob").unwrap();
    fs::remove_file(directory.path().join("index")).unwrap();

    let node = Node::open_uncounted(directory.path(), 100);
    assert!(!node.has(&sound));
    node.state.reconcile().unwrap();
    assert!(node.has(&sound) && node.has(&damaged));
    assert!(node.state.stat(&sound).is_none(), "its size is not known to be right");
    assert_eq!(node.get(&sound).as_deref(), Some(CONTENTS[0]));
    assert_eq!(node.state.stat(&sound).unwrap().size_bytes, 3);
    assert_eq!(node.get(&damaged), None);
    fs::remove_file(note).expect("what is not Larder's is left alone");
    assert_consistent(&node);
}

#[test]
fn no_room_is_promised_before_what_is_there_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 2);
    node.put(CONTENTS[0]);
    node.put(CONTENTS[1]);
    node.close();
    fs::remove_file(directory.path().join("index")).unwrap();

    let node = Node::open_uncounted(directory.path(), 2);
    std::thread::scope(|scope| {
        let reserved = scope.spawn(|| Reservation::new(&node.state, 1).unwrap());
        node.state.reconcile().unwrap();
        drop(reserved.join().unwrap());
    });
    assert_eq!(node.state.index().len(), 1);
    assert_consistent(&node);
}

#[test]
fn a_cache_that_was_made_smaller_shrinks() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 4);
    let digests = CONTENTS.map(|content| node.put(content));
    node.close();
    let node = Node::open(directory.path(), 2);
    node.state.make_room(0).unwrap();
    assert_eq!(digests.map(|digest| node.has(&digest)), [false, false, true, true]);
    assert_consistent(&node);
}

#[test]
fn a_directory_is_for_one_cache_and_one_user() {
    let directory = tempfile::tempdir().unwrap();
    let _node = Node::open(directory.path(), 4);
    let refused = |path| State::open(&config(path, 4), |_| false).err().unwrap();
    assert!(refused(directory.path()).contains("in use"));
    for name in ["blobs", "blobs/sha256", "staging", "quarantine", "discarded"] {
        let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refused(&open).contains("others may write in it"));
}
