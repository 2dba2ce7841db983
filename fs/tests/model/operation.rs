//! What programs, other nodes, disks and storages do, in random order.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
};

use proptest::{collection::vec, prelude::*, sample::select};

/// How many nodes share the storage.
pub const NODES: usize = 2;
/// How many contents there are: see [`SIZES_BYTES`].
pub const CONTENTS: usize = SIZES_BYTES.len();
/// Their lengths: none, less than a block, a block, more than one, and more than a part.
pub const SIZES_BYTES: [usize; 8] =
    [0, 1, 3_000, 100_000, 1 << 20, (1 << 20) + 1, (5 << 20) / 2, (8 << 20) + 4_097];

/// How a file is written in `ingest/`.
#[derive(Clone, Copy, Debug)]
pub struct Staging {
    /// Its name tells its digest, so that it is sent while it comes.
    pub is_told: bool,
    pub order: Order,
    pub flaw: Flaw,
}

#[derive(Clone, Copy, Debug)]
pub enum Order {
    Forwards,
    Backwards,
    /// The beginning a second time, after it was wrong the first time.
    Again,
    /// Something more, which is then cut off.
    Truncated,
}

/// What is wrong with what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// One bit.
    Bit,
    /// The last byte is missing.
    Short,
}

/// What happens to a file of a node's cache behind its back.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    Flip,
    Truncate,
    /// By another file of the same length.
    Replace,
    Empty,
    Remove,
}

impl Damage {
    /// Damages a file of a cache, if it is there, in a way that fstat(2) can see.
    pub fn inflict(self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else { return };
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let write = || OpenOptions::new().write(true).open(path);
        if write().is_err() {
            // Where fs-verity guards it, a copy takes its place.
            let copy = path.with_extension("copy");
            fs::copy(path, &copy).unwrap();
            fs::rename(copy, path).unwrap();
        }
        let open = || write().unwrap();
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        match self {
            // What changes in one tick of the clock is the scrubber's to find.
            Damage::Flip => {
                let (file, mut byte) = (open(), [0]);
                let _ = fs::File::open(path).unwrap().read_at(&mut byte, 0);
                let mut now = changed;
                while now == changed {
                    file.write_all_at(&[!byte[0]], 0).unwrap();
                    let metadata = file.metadata().unwrap();
                    now = (metadata.ctime(), metadata.ctime_nsec());
                }
            }
            Damage::Truncate => open().set_len(metadata.len() / 2).unwrap(),
            Damage::Empty => open().set_len(0).unwrap(),
            Damage::Remove => fs::remove_file(path).unwrap(),
            Damage::Replace => {
                let other = path.with_extension("other");
                fs::write(&other, vec![7; metadata.len() as usize]).unwrap();
                fs::rename(other, path).unwrap();
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Link {
    Tag(usize),
    /// The membership of a manifest, which is called as its blob.
    Member(usize),
}

/// What goes wrong with the storage.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    Error,
    DoneAndError,
    Stall,
    Short,
    StallInside,
    /// It is down until it is healed.
    Outage,
}

#[derive(Clone, Debug)]
pub enum Operation {
    /// Stages and renames, and removes what could not be published.
    Publish {
        node: usize,
        content: usize,
        staging: Staging,
    },
    Stage {
        node: usize,
        name: usize,
        content: usize,
        staging: Staging,
    },
    Rename {
        node: usize,
        name: usize,
        content: usize,
    },
    /// Who waits for it is interrupted, after the rename has gone on so many times.
    InterruptedRename {
        node: usize,
        name: usize,
        content: usize,
        steps: u32,
    },
    Unlink {
        node: usize,
        name: usize,
    },
    Link {
        node: usize,
        link: Link,
        content: usize,
    },
    ReadLink {
        node: usize,
        link: Link,
    },
    Open {
        node: usize,
        slot: usize,
        content: usize,
    },
    /// `at` in 255ths of the length.
    Read {
        node: usize,
        slot: usize,
        at: u8,
        size_bytes: u32,
    },
    Close {
        node: usize,
        slot: usize,
    },
    ReadWhole {
        node: usize,
        content: usize,
    },
    Stat {
        node: usize,
        content: usize,
    },
    List {
        node: usize,
    },
    /// The kernel forgets every name that is not open.
    Forget {
        node: usize,
    },
    /// All that goes on in the background comes to its end.
    Settle {
        node: usize,
    },
    Spoil {
        node: usize,
        content: usize,
        damage: Damage,
    },
    Crash {
        node: usize,
    },
    /// It crashes, and starts with an empty cache.
    LoseCache {
        node: usize,
    },
    Trouble {
        trouble: Trouble,
        calls_before: u32,
    },
    Heal,
    /// A bit flips where the blob is stored.
    DamageStored {
        content: usize,
    },
}

/// Operations when nothing goes wrong, but for programs.
pub fn calm() -> impl Strategy<Value = Vec<Operation>> {
    vec(well(), 1..60)
}

/// Operations while caches are spoiled and nodes crash.
pub fn rough() -> impl Strategy<Value = Vec<Operation>> {
    vec(prop_oneof![8 => well(), 1 => spoil(), 1 => crash()], 1..60)
}

/// Operations while the storage fails as well.
pub fn faulty() -> impl Strategy<Value = Vec<Operation>> {
    let trouble = (trouble(), 0_u32..8)
        .prop_map(|(trouble, calls_before)| Operation::Trouble { trouble, calls_before });
    let damage_stored = content().prop_map(|content| Operation::DamageStored { content });
    let operation = prop_oneof![
        16 => well(),
        2 => spoil(),
        1 => crash(),
        4 => trouble,
        2 => Just(Operation::Heal),
        1 => damage_stored,
    ];
    vec(operation, 1..60)
}

fn well() -> impl Strategy<Value = Operation> {
    prop_oneof![6 => publishing(), 8 => reading(), 1 => waiting()]
}

fn publishing() -> impl Strategy<Value = Operation> {
    let name = || 0..3_usize;
    prop_oneof![
        4 => (node(), content(), staging()).prop_map(|(node, content, staging)| {
            Operation::Publish { node, content, staging }
        }),
        2 => (node(), name(), content(), staging()).prop_map(|(node, name, content, staging)| {
            Operation::Stage { node, name, content, staging }
        }),
        2 => (node(), name(), content())
            .prop_map(|(node, name, content)| Operation::Rename { node, name, content }),
        1 => (node(), name(), content(), 0_u32..12).prop_map(|(node, name, content, steps)| {
            Operation::InterruptedRename { node, name, content, steps }
        }),
        1 => (node(), name()).prop_map(|(node, name)| Operation::Unlink { node, name }),
        2 => (node(), link(), content())
            .prop_map(|(node, link, content)| Operation::Link { node, link, content }),
    ]
}

fn reading() -> impl Strategy<Value = Operation> {
    let slot = || 0..3_usize;
    let size_bytes = || select(vec![1_u32, 4_096, 131_072, 1 << 20, 3 << 20]);
    prop_oneof![
        2 => (node(), slot(), content())
            .prop_map(|(node, slot, content)| Operation::Open { node, slot, content }),
        4 => (node(), slot(), any::<u8>(), size_bytes()).prop_map(|(node, slot, at, size_bytes)| {
            Operation::Read { node, slot, at, size_bytes }
        }),
        1 => (node(), slot()).prop_map(|(node, slot)| Operation::Close { node, slot }),
        3 => (node(), content()).prop_map(|(node, content)| Operation::ReadWhole { node, content }),
        1 => (node(), content()).prop_map(|(node, content)| Operation::Stat { node, content }),
        1 => (node(), link()).prop_map(|(node, link)| Operation::ReadLink { node, link }),
        1 => node().prop_map(|node| Operation::List { node }),
    ]
}

fn waiting() -> impl Strategy<Value = Operation> {
    prop_oneof![
        node().prop_map(|node| Operation::Forget { node }),
        node().prop_map(|node| Operation::Settle { node }),
    ]
}

fn spoil() -> impl Strategy<Value = Operation> {
    use Damage::{Empty, Flip, Remove, Replace, Truncate};
    let damage = select(vec![Flip, Replace, Truncate, Empty, Remove]);
    (node(), content(), damage).prop_map(|(node, content, damage)| Operation::Spoil {
        node,
        content,
        damage,
    })
}

fn crash() -> impl Strategy<Value = Operation> {
    node().prop_map(|node| Operation::Crash { node })
}

fn trouble() -> impl Strategy<Value = Trouble> {
    use Trouble::{DoneAndError, Error, Outage, Short, Stall, StallInside};
    select(vec![Error, DoneAndError, Stall, Short, StallInside, Outage])
}

fn node() -> impl Strategy<Value = usize> {
    0..NODES
}

/// A large one is hashed for as long as all that happens to small ones takes.
fn content() -> impl Strategy<Value = usize> {
    prop_oneof![40 => 0..CONTENTS - 3, 4 => Just(CONTENTS - 3), 3 => Just(CONTENTS - 2), 1 => Just(CONTENTS - 1)]
}

fn link() -> impl Strategy<Value = Link> {
    prop_oneof![
        2 => (0..2_usize).prop_map(Link::Tag),
        1 => (1..CONTENTS - 3).prop_map(Link::Member),
    ]
}

fn staging() -> impl Strategy<Value = Staging> {
    use Order::{Again, Backwards, Forwards, Truncated};
    let order = prop_oneof![3 => Just(Forwards), 1 => select(vec![Backwards, Again, Truncated])];
    let flaw = prop_oneof![8 => Just(Flaw::None), 1 => Just(Flaw::Bit), 1 => Just(Flaw::Short)];
    (any::<bool>(), order, flaw).prop_map(|(is_told, order, flaw)| Staging { is_told, order, flaw })
}
