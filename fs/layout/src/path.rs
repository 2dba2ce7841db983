//! The tree of the contract: every name in it as a value, and back.

use std::path::PathBuf;

use crate::{
    digest::{Algorithm, Digest},
    name::{Repository, StagingId, Tag},
};

/// Anything that can have a path in the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A directory.
    Directory(Directory),
    /// `blobs/<algorithm>/<hex>`: a regular file.
    Blob(Digest),
    /// A symlink below a repository.
    Link(Link),
    /// `layers/<algorithm>/<hex>`: a directory with the files inside a layer, whose names are the layer's.
    Layer(Digest),
    /// `leases/<algorithm>/<hex>`: a symlink that says who fetches a blob.
    Lease(Lease),
    /// `ingest/<id>`: a file or symlink that is not published yet.
    Staged(StagingId),
    /// `.larder/<name>`: a file that is made up when it is read.
    Report(Report),
}

/// A directory of the contract.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Directory {
    /// `/`
    Root,
    /// `blobs/`
    Blobs,
    /// `blobs/<algorithm>/`
    BlobsOf(Algorithm),
    /// `repositories/`
    Repositories,
    /// `repositories/<name>/`: a repository, or the first components of one.
    Repository(Repository),
    /// `repositories/<name>/_tags/`
    Tags(Repository),
    /// `repositories/<name>/_manifests/` or `_layers/`
    Members(Repository, Membership),
    /// `repositories/<name>/_manifests/<algorithm>/` or `_layers/<algorithm>/`
    MembersOf(Repository, Membership, Algorithm),
    /// `layers/`
    Layers,
    /// `layers/<algorithm>/`
    LayersOf(Algorithm),
    /// `leases/`
    Leases,
    /// `leases/<algorithm>/`
    LeasesOf(Algorithm),
    /// `ingest/`
    Ingest,
    /// `.larder/`
    Reports,
}

/// How a blob belongs to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Membership {
    /// As one of its manifests: `_manifests/`.
    Manifest,
    /// As a layer or a config: `_layers/`.
    Layer,
}

/// A symlink below a repository. Its target is a blob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// `_tags/<tag>`: the manifest that the tag names.
    Tag(Repository, Tag),
    /// `_manifests/<algorithm>/<hex>` or `_layers/<algorithm>/<hex>`: the blob of the same name.
    Member(Repository, Membership, Digest),
}

/// The right to fetch a blob from its upstream for all nodes: `<hex>`, or `<hex>.<turn>`. Whoever creates
/// the name with symlink(2), which one alone can, has it, and removes it when it is done.
///
/// A node that dies leaves its lease behind. Who finds that out goes on to the next turn, which again one
/// alone gets: a name that is removed and created anew could be removed by the next to find out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The blob.
    pub digest: Digest,
    /// How many holders before this one have died, at most [`Lease::TURN_MAX`].
    pub turn: u8,
}

/// A virtual file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// `.larder/stats`: counters and sizes, JSON.
    Stats,
    /// `.larder/config`: the configuration in force, without its secrets.
    Config,
}

impl Membership {
    /// Both ways, in the order in which a repository lists them.
    pub const ALL: [Self; 2] = [Self::Manifest, Self::Layer];

    /// The directory's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "_manifests",
            Self::Layer => "_layers",
        }
    }
}

impl Report {
    /// Every report.
    pub const ALL: [Self; 2] = [Self::Stats, Self::Config];

    /// The file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stats => "stats",
            Self::Config => "config",
        }
    }
}

impl Link {
    /// The repository that the link is in.
    pub fn repository(&self) -> &Repository {
        match self {
            Self::Tag(repository, _) | Self::Member(repository, ..) => repository,
        }
    }

    /// Where the symlink points when it names `digest`: relative, so that it holds wherever
    /// the directory is mounted.
    pub fn target(&self, digest: &Digest) -> PathBuf {
        let depth = Entry::Link(self.clone()).path().components().count() - 1;
        let mut target: PathBuf = (0..depth).map(|_| "..").collect();
        target.push(Entry::Blob(digest.clone()).path());
        target
    }

    /// The blob that a symlink's target names, whatever leads up to it.
    pub fn digest_of_target(target: &std::path::Path) -> Option<Digest> {
        let mut components = target.iter().rev().map(|component| component.to_str());
        let (hex, algorithm, blobs) =
            (components.next()??, components.next()??, components.next()??);
        (blobs == "blobs").then(|| Digest::new(algorithm.parse().ok()?, hex).ok())?
    }
}

impl Lease {
    /// The last turn. Behind it, there is no lease.
    pub const TURN_MAX: u8 = 9;
    /// The longest target of the symlink that is one.
    pub const TARGET_MAX_BYTES: usize = 1024;

    /// The name in its directory.
    pub fn name(&self) -> String {
        match self.turn {
            0 => self.digest.hex().to_owned(),
            turn => format!("{}.{turn}", self.digest.hex()),
        }
    }

    /// The lease that is called so.
    pub fn named(algorithm: Algorithm, name: &str) -> Option<Self> {
        let (hex, turn) = match name.split_once('.') {
            Some((hex, turn)) => (hex, turn.parse().ok()?),
            None => (name, 0),
        };
        let lease = Self { digest: Digest::new(algorithm, hex).ok()?, turn };
        (turn <= Self::TURN_MAX && lease.name() == name).then_some(lease)
    }
}

impl Directory {
    /// The entry called `name` in this directory, when the contract has such a name. Whether it
    /// exists is another question.
    pub fn child(&self, name: &str) -> Option<Entry> {
        let directory = match self {
            Self::Root => match name {
                "blobs" => Self::Blobs,
                "repositories" => Self::Repositories,
                "layers" => Self::Layers,
                "leases" => Self::Leases,
                "ingest" => Self::Ingest,
                ".larder" => Self::Reports,
                _ => return None,
            },
            Self::Blobs => Self::BlobsOf(name.parse().ok()?),
            Self::BlobsOf(algorithm) => {
                return Some(Entry::Blob(Digest::new(*algorithm, name).ok()?));
            }
            Self::Repositories => {
                Self::Repository(name.parse().ok().filter(|_| !name.contains('/'))?)
            }
            Self::Repository(repository) => match name {
                "_tags" => Self::Tags(repository.clone()),
                "_manifests" => Self::Members(repository.clone(), Membership::Manifest),
                "_layers" => Self::Members(repository.clone(), Membership::Layer),
                _ => Self::Repository(repository.child(name).ok()?),
            },
            Self::Tags(repository) => {
                return Some(Entry::Link(Link::Tag(repository.clone(), name.parse().ok()?)));
            }
            Self::Members(repository, membership) => {
                Self::MembersOf(repository.clone(), *membership, name.parse().ok()?)
            }
            Self::MembersOf(repository, membership, algorithm) => {
                let digest = Digest::new(*algorithm, name).ok()?;
                return Some(Entry::Link(Link::Member(repository.clone(), *membership, digest)));
            }
            Self::Layers => Self::LayersOf(name.parse().ok()?),
            Self::LayersOf(algorithm) => {
                return Some(Entry::Layer(Digest::new(*algorithm, name).ok()?));
            }
            Self::Leases => Self::LeasesOf(name.parse().ok()?),
            Self::LeasesOf(algorithm) => return Lease::named(*algorithm, name).map(Entry::Lease),
            Self::Ingest => return Some(Entry::Staged(name.parse().ok()?)),
            Self::Reports => {
                let mut reports = Report::ALL.into_iter();
                return reports.find(|report| report.as_str() == name).map(Entry::Report);
            }
        };
        Some(Entry::Directory(directory))
    }

    fn path(&self) -> PathBuf {
        let repositories =
            |repository: &Repository| PathBuf::from("repositories").join(repository.as_str());
        match self {
            Self::Root => PathBuf::new(),
            Self::Blobs => "blobs".into(),
            Self::BlobsOf(algorithm) => PathBuf::from("blobs").join(algorithm.as_str()),
            Self::Repositories => "repositories".into(),
            Self::Repository(repository) => repositories(repository),
            Self::Tags(repository) => repositories(repository).join("_tags"),
            Self::Members(repository, membership) => {
                repositories(repository).join(membership.as_str())
            }
            Self::MembersOf(repository, membership, algorithm) => {
                repositories(repository).join(membership.as_str()).join(algorithm.as_str())
            }
            Self::Layers => "layers".into(),
            Self::LayersOf(algorithm) => PathBuf::from("layers").join(algorithm.as_str()),
            Self::Leases => "leases".into(),
            Self::LeasesOf(algorithm) => PathBuf::from("leases").join(algorithm.as_str()),
            Self::Ingest => "ingest".into(),
            Self::Reports => ".larder".into(),
        }
    }
}

impl Entry {
    /// The path below the root of the directory.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.path(),
            Self::Blob(digest) => Directory::BlobsOf(digest.algorithm()).path().join(digest.hex()),
            Self::Link(Link::Tag(repository, tag)) => {
                Directory::Tags(repository.clone()).path().join(tag.as_str())
            }
            Self::Link(Link::Member(repository, membership, digest)) => {
                Directory::MembersOf(repository.clone(), *membership, digest.algorithm())
                    .path()
                    .join(digest.hex())
            }
            Self::Layer(digest) => {
                Directory::LayersOf(digest.algorithm()).path().join(digest.hex())
            }
            Self::Lease(lease) => {
                Directory::LeasesOf(lease.digest.algorithm()).path().join(lease.name())
            }
            Self::Staged(id) => Directory::Ingest.path().join(id.as_str()),
            Self::Report(report) => Directory::Reports.path().join(report.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks a path through [`Directory::child`], as a kernel does.
    fn walk(path: &str) -> Option<Entry> {
        path.split('/').try_fold(Entry::Directory(Directory::Root), |entry, name| match entry {
            Entry::Directory(directory) => directory.child(name),
            _ => None,
        })
    }

    #[test]
    fn every_path_leads_back_to_its_entry() {
        let hex = "ab".repeat(32);
        for path in [
            "blobs".to_owned(),
            format!("blobs/sha256/{hex}"),
            format!("blobs/sha512/{hex}{hex}"),
            "repositories/library/alpine".to_owned(),
            "repositories/library/alpine/_tags/3.20".to_owned(),
            format!("repositories/library/alpine/_manifests/sha256/{hex}"),
            format!("repositories/a/b/c/_layers/sha256/{hex}"),
            format!("layers/sha256/{hex}"),
            format!("leases/sha256/{hex}"),
            format!("leases/sha512/{hex}{hex}.9"),
            "ingest/1-2.x".to_owned(),
            ".larder/stats".to_owned(),
        ] {
            let entry = walk(&path).unwrap_or_else(|| panic!("{path} is not in the contract"));
            assert_eq!(entry.path(), PathBuf::from(&path));
        }
    }

    #[test]
    fn names_outside_the_contract_have_no_entry() {
        let hex = "ab".repeat(32);
        for path in [
            "..".to_owned(),
            "lost+found".to_owned(),
            format!("blobs/sha512/{hex}"),
            "blobs/md5".to_owned(),
            "repositories/_tags".to_owned(),
            "repositories/Upper".to_owned(),
            "repositories/a/_uploads".to_owned(),
            format!("layers/sha256/{hex}/etc"),
            format!("leases/sha256/{hex}.0"),
            format!("leases/sha256/{hex}.01"),
            format!("leases/sha256/{hex}.10"),
            "ingest/.hidden".to_owned(),
            ".larder/secrets".to_owned(),
        ] {
            assert_eq!(walk(&path), None, "{path} has an entry");
        }
    }

    #[test]
    fn a_links_target_names_its_blob_from_where_the_link_is() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let link = Link::Tag("library/alpine".parse().unwrap(), "latest".parse().unwrap());
        let target = link.target(&digest);
        assert_eq!(target, PathBuf::from(format!("../../../../blobs/sha256/{}", digest.hex())));
        assert_eq!(Link::digest_of_target(&target), Some(digest));
        assert_eq!(Link::digest_of_target("../../etc/passwd".as_ref()), None);
    }
}
