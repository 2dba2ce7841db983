//! `/v2/…` paths, turned into typed requests.
//!
//! A path is never decoded: every name of the API is plain ASCII that needs no escapes, so `%2e%2e`
//! and its like are refused by the grammar of names and never become anything else.

use larder_layout::{Digest, Reference, Repository};

use crate::error::Error;

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`: whether this process lives.
    Health,
    /// `/readyz`: whether it can serve, and from where.
    Ready,
    /// `/token`: what clients show instead of their password, under `auth.upstream`.
    Token,
    /// `/leases/<digest>`: a blob that this node pulls, for the other nodes.
    Lease(Digest),
    /// `/v2/`: whether this is a registry.
    Base,
    /// `/v2/_catalog`: the repositories.
    Catalog,
    /// `/v2/<name>/manifests/<reference>`
    Manifest(Repository, Reference),
    /// `/v2/<name>/blobs/<digest>`
    Blob(Repository, Digest),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(Repository, Digest),
    /// `/v2/<name>/tags/list`
    Tags(Repository),
}

impl Route {
    /// The request that `path` makes.
    ///
    /// # Errors
    /// [`Error::Path`] for a path of another shape; [`Error::Name`], [`Error::Digest`] and
    /// [`Error::Manifest`] when a part of it is not the name it should be.
    pub fn parse(path: &str) -> Result<Self, Error> {
        let unknown = || Error::Path(path.to_owned());
        let rest = match path {
            "/healthz" => return Ok(Self::Health),
            "/readyz" => return Ok(Self::Ready),
            "/token" => return Ok(Self::Token),
            "/v2" | "/v2/" => return Ok(Self::Base),
            "/v2/_catalog" => return Ok(Self::Catalog),
            _ => match path.strip_prefix("/leases/") {
                Some(digest) => return Ok(Self::Lease(digest.parse()?)),
                None => path.strip_prefix("/v2/").ok_or_else(unknown)?,
            },
        };
        // From the right, because a name may itself end in `/manifests` or `/blobs`.
        let (head, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
        let (name, kind) = head.rsplit_once('/').ok_or_else(unknown)?;
        match (kind, last) {
            ("manifests", reference) => Ok(Self::Manifest(name.parse()?, parse(reference)?)),
            ("blobs", digest) => Ok(Self::Blob(name.parse()?, digest.parse()?)),
            ("referrers", digest) => Ok(Self::Referrers(name.parse()?, digest.parse()?)),
            ("tags", "list") => Ok(Self::Tags(name.parse()?)),
            _ => Err(unknown()),
        }
    }
}

/// A text with a colon is meant as a digest; any other that is no tag names nothing there can be.
fn parse(reference: &str) -> Result<Reference, Error> {
    if reference.contains(':') {
        return Ok(Reference::Digest(reference.parse()?));
    }
    reference.parse().map_err(|_| Error::Manifest(reference.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_slashes_and_the_apis_own_words() {
        let manifest = |name: &str, reference: &str| {
            Route::Manifest(name.parse().unwrap(), reference.parse().unwrap())
        };
        for (path, route) in [
            ("/v2/alpine/manifests/3.20", manifest("alpine", "3.20")),
            ("/v2/a/b/c/manifests/latest", manifest("a/b/c", "latest")),
            ("/v2/a/manifests/manifests/latest", manifest("a/manifests", "latest")),
            ("/v2/blobs/tags/list", Route::Tags("blobs".parse().unwrap())),
            ("/v2/", Route::Base),
            ("/v2/_catalog", Route::Catalog),
        ] {
            assert_eq!(Route::parse(path).unwrap(), route, "{path}");
        }
    }

    #[test]
    fn tricks_are_refused() {
        let hex = "0".repeat(64);
        for path in [
            "/v1/".to_owned(),
            "/v2/../etc/passwd".to_owned(),
            "/v2/a/../b/manifests/latest".to_owned(),
            "/v2/a/manifests/..".to_owned(),
            "/v2/a/manifests/latest/".to_owned(),
            "/v2/%2e%2e/manifests/latest".to_owned(),
            "/v2/a%2fb/manifests/latest".to_owned(),
            "/v2/a//b/manifests/latest".to_owned(),
            "/v2//manifests/latest".to_owned(),
            "/v2/_tags/manifests/latest".to_owned(),
            "/v2/A/manifests/latest".to_owned(),
            format!("/v2/a/blobs/sha256:{}", &hex[1..]),
            format!("/v2/a/blobs/sha256:{}..", &hex[2..]),
            format!("/v2/a/blobs/md5:{}", &hex[..32]),
            format!("/v2/a/blobs/sha256%3A{hex}"),
            format!("/v2/a/blobs/../blobs/sha256:{hex}"),
            format!("/v2/{}/tags/list", "a".repeat(256)),
            format!("/leases/../sha256:{hex}"),
            "/leases/".to_owned(),
        ] {
            assert!(Route::parse(&path).is_err(), "{path} was taken for a request");
        }
    }
}
