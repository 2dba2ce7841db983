//! A disk that fails at any call fails that operation, and nothing else: nothing wrong is served,
//! nothing is lost count of, and the cache works again when the disk does.

use super::{super::disk::faults, *};

const FIRST: &[u8] = b"first";
const SECOND: &[u8] = b"second";
const THIRD: &[u8] = b"third";
const FOURTH: &[u8] = b"fourth";
const CONTENTS: [&[u8]; 4] = [FIRST, SECOND, THIRD, FOURTH];

/// A bit of everything. What fails, fails.
fn live(directory: &Path) -> Option<Node> {
    let state = State::open(&config(directory, 3), |_| false).ok()?;
    let node = Node { directory: directory.to_owned(), state };
    let _ = node.state.reconcile();
    let _ = node.state.remove_discarded();
    let digests = CONTENTS.map(|content| {
        let _ = node.try_put(Algorithm::Sha256, content);
        let digest = Digest::of(Algorithm::Sha256, content);
        read(&node, &digest, content);
        digest
    });
    // What is in the cache by now, if it is, looks changed; the last has changed.
    let _ = fs::File::open(node.path(&digests[2])).map(|f| f.set_modified(SystemTime::UNIX_EPOCH));
    let fourth = fs::File::options().write(true).open(node.path(&digests[3]));
    let _ = fourth.map(|mut file| file.write_all(b"F"));
    for (digest, content) in digests.iter().zip(CONTENTS) {
        read(&node, digest, content);
    }
    let _ = node.state.scrub(&Key::from(&digests[1]), |_| false);
    let _ = node.state.checkpoint();
    let _ = node.state.end_sync(0, Ok(()));
    // In place of one that is there.
    let _ = node.try_put(Algorithm::Sha256, SECOND);
    let _ = node.try_put(Algorithm::Sha256, FIRST);
    read(&node, &digests[1], SECOND);
    node.state.index().log_touches();
    let _ = node.state.flush();
    Some(node)
}

fn read(node: &Node, digest: &Digest, expected: &[u8]) {
    if let Ok(Some(blob)) = node.state.open_blob(digest) {
        assert_eq!(content(&blob), expected);
    }
}

/// The disk works again. Everything that is there counts, and everything works.
fn assert_well(directory: &Path) {
    let node = Node::open(directory, 3);
    node.state.remove_discarded().unwrap();
    node.state.make_room(0).unwrap();
    assert_consistent(&node);
    for content in CONTENTS {
        let digest = Digest::of(Algorithm::Sha256, content);
        read(&node, &digest, content);
        node.put(content);
        assert_eq!(node.get(&digest).as_deref(), Some(content));
    }
    assert_consistent(&node);
}

#[test]
fn every_call_may_fail() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EROFS, libc::EINVAL] {
        for mode in [faults::Mode::Once, faults::Mode::Done, faults::Mode::Lasting] {
            let mut calls = 0;
            loop {
                let directory = fast_directory();
                // Something of an earlier run, that is half done.
                let node = Node::open(directory.path(), 3);
                node.put(b"old");
                node.state.stage("half").unwrap();
                node.close();

                faults::plan(calls, errno, mode);
                let node = live(directory.path());
                let has_failed = faults::end();
                println!("call {calls} fails with {errno}, {mode:?}");
                if let Some(node) = node
                    && mode != faults::Mode::Lasting
                {
                    let _ = node.state.reconcile();
                    let _ = node.state.remove_discarded();
                    assert_consistent(&node);
                }
                assert_well(directory.path());
                if !has_failed {
                    assert!(calls > 100, "only {calls} calls");
                    break;
                }
                calls += 1;
            }
        }
    }
}
