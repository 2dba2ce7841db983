//! Where CNCF Distribution puts an object (`registry/storage/paths.go`), under the root directory:
//!
//! ```text
//! docker/registry/v2/blobs/<algorithm>/<first two hex>/<hex>/data
//! docker/registry/v2/repositories/<name>/_manifests/tags/<tag>/current/link
//! docker/registry/v2/repositories/<name>/_manifests/tags/<tag>/index/<algorithm>/<hex>/link
//! docker/registry/v2/repositories/<name>/_manifests/revisions/<algorithm>/<hex>/link
//! docker/registry/v2/repositories/<name>/_layers/<algorithm>/<hex>/link
//! ```

use larder_layout::{Algorithm, Digest, Lease, Link, Membership, Repository, Tag};
use object_store::path::Path;

/// The keys of one storage, all below its root directory.
#[derive(Clone, Debug)]
pub struct Keys {
    /// `<root directory>/docker/registry/v2`
    v2: Path,
    /// `<root directory>/docker/larder`, where no registry looks.
    larder: Path,
}

impl Keys {
    /// Keys below `root_directory`, which may be empty.
    pub fn new(root_directory: &str) -> Self {
        let below = |path| Path::from(format!("{root_directory}/docker/{path}"));
        Self { v2: below("registry/v2"), larder: below("larder") }
    }

    /// The object that is written to see what time it is in the storage.
    pub fn clock(&self) -> Path {
        self.larder.clone().join("clock")
    }

    /// What all leases lie below.
    pub fn all_leases(&self) -> Path {
        self.larder.clone().join("leases")
    }

    /// What all leases of an algorithm lie below.
    pub fn leases(&self, algorithm: Algorithm) -> Path {
        self.all_leases().join(algorithm.as_str())
    }

    /// The object that says who has a lease.
    pub fn lease(&self, lease: &Lease) -> Path {
        self.leases(lease.digest.algorithm()).join(lease.name())
    }

    /// The content of a blob.
    pub fn blob(&self, digest: &Digest) -> Path {
        let hex = digest.hex();
        self.blobs(digest.algorithm()).join(&hex[..2]).join(hex).join("data")
    }

    /// What all blobs of an algorithm lie below.
    pub fn blobs(&self, algorithm: Algorithm) -> Path {
        self.all_blobs().join(algorithm.as_str())
    }

    /// What all blobs lie below.
    pub fn all_blobs(&self) -> Path {
        self.v2.clone().join("blobs")
    }

    /// The digest of the blob whose content is, or was to be, in the object `key`.
    pub fn digest_of(&self, key: &str) -> Option<Digest> {
        let below = key.strip_prefix(self.all_blobs().as_ref())?.strip_prefix('/')?;
        let (algorithm, below) = below.split_once('/')?;
        let hex = below.strip_suffix("/data")?.rsplit('/').next()?;
        let digest = Digest::new(algorithm.parse().ok()?, hex).ok()?;
        (self.blob(&digest).as_ref() == key).then_some(digest)
    }

    /// What all repositories, or those whose name begins with `repository/`, lie below.
    pub fn repositories(&self, repository: Option<&Repository>) -> Path {
        let components = repository.into_iter().flat_map(|name| name.as_str().split('/'));
        components.fold(self.v2.clone().join("repositories"), Path::join)
    }

    /// What all tags of a repository lie below.
    pub fn tags(&self, repository: &Repository) -> Path {
        self.repositories(Some(repository)).join("_manifests").join("tags")
    }

    /// What all members of a repository lie below.
    pub fn members(
        &self,
        repository: &Repository,
        membership: Membership,
        algorithm: Algorithm,
    ) -> Path {
        let repository = self.repositories(Some(repository));
        let members = match membership {
            Membership::Manifest => repository.join("_manifests").join("revisions"),
            Membership::Layer => repository.join("_layers"),
        };
        members.join(algorithm.as_str())
    }

    /// The object that holds a link's digest.
    pub fn link(&self, link: &Link) -> Path {
        match link {
            Link::Tag(repository, tag) => {
                self.tags(repository).join(tag.as_str()).join("current").join("link")
            }
            Link::Member(repository, membership, digest) => self
                .members(repository, *membership, digest.algorithm())
                .join(digest.hex())
                .join("link"),
        }
    }

    /// The object by which Distribution remembers that `tag` once named `digest`; its garbage
    /// collector and its deletion of tags go by it.
    pub fn tag_history(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Path {
        let index = self.tags(repository).join(tag.as_str()).join("index");
        index.join(digest.algorithm().as_str()).join(digest.hex()).join("link")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_that_distribution_writes() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let hex = digest.hex().to_owned();
        let repository: Repository = "library/alpine".parse().unwrap();
        let tag: Tag = "3.20".parse().unwrap();
        let keys = Keys::new("prefix");
        let v2 = "prefix/docker/registry/v2";
        let of_repository = format!("{v2}/repositories/library/alpine");

        assert_eq!(keys.blob(&digest).as_ref(), format!("{v2}/blobs/sha256/e3/{hex}/data"));
        assert_eq!(
            keys.link(&Link::Tag(repository.clone(), tag.clone())).as_ref(),
            format!("{of_repository}/_manifests/tags/3.20/current/link")
        );
        assert_eq!(
            keys.tag_history(&repository, &tag, &digest).as_ref(),
            format!("{of_repository}/_manifests/tags/3.20/index/sha256/{hex}/link")
        );
        let member = |membership| Link::Member(repository.clone(), membership, digest.clone());
        assert_eq!(
            keys.link(&member(Membership::Manifest)).as_ref(),
            format!("{of_repository}/_manifests/revisions/sha256/{hex}/link")
        );
        assert_eq!(
            keys.link(&member(Membership::Layer)).as_ref(),
            format!("{of_repository}/_layers/sha256/{hex}/link")
        );
        assert_eq!(keys.digest_of(keys.blob(&digest).as_ref()), Some(digest.clone()));
        for foreign in [
            format!("{of_repository}/_uploads/e3/{hex}/data"),
            format!("{v2}/blobs/sha256/e3/{hex}/data2"),
            format!("{v2}/blobs/sha256/00/{hex}/data"),
            format!("other{v2}/blobs/sha256/e3/{hex}/data"),
        ] {
            assert_eq!(keys.digest_of(&foreign), None, "{foreign}");
        }
        let lease = Lease { digest, turn: 1 };
        let of_lease = format!("prefix/docker/larder/leases/sha256/{hex}.1");
        assert_eq!(keys.lease(&lease).as_ref(), of_lease);
        assert_eq!(keys.clock().as_ref(), "prefix/docker/larder/clock");
        assert_eq!(
            Keys::new("").blobs(Algorithm::Sha512).as_ref(),
            "docker/registry/v2/blobs/sha512"
        );
    }
}
