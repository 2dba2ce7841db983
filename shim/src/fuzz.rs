//! What must hold for every text that a client or an upstream may send, however hostile.
//!
//! Each function panics when it does not. `fuzz/` gives them to a fuzzer, and the tests give them the
//! corpus that is kept there and random texts, on every run.

use larder_layout::{Entry, Lease, Link, Membership, Reference};

use crate::{
    range::{self, Selection},
    routes::Route,
    upstream::parse_challenges,
};

/// A path is what its request says it is, or refused: no two spellings of one request, and nothing
/// that leads out of the directory.
pub fn path(path: &str) {
    let Ok(route) = Route::parse(path) else { return };
    let (spelling, entry) = match route {
        Route::Health | Route::Ready | Route::Token | Route::Base | Route::Catalog => return,
        Route::Lease(digest) => {
            let spelling = format!("/leases/{digest}");
            (spelling, Entry::Lease(Lease { digest, turn: 0 }))
        }
        Route::Manifest(name, reference) => {
            let spelling = format!("/v2/{name}/manifests/{reference}");
            let link = match reference {
                Reference::Tag(tag) => Link::Tag(name, tag),
                Reference::Digest(digest) => Link::Member(name, Membership::Manifest, digest),
            };
            (spelling, Entry::Link(link))
        }
        Route::Blob(name, digest) => {
            let spelling = format!("/v2/{name}/blobs/{digest}");
            (spelling, Entry::Link(Link::Member(name, Membership::Layer, digest)))
        }
        Route::Referrers(name, digest) => {
            (format!("/v2/{name}/referrers/{digest}"), Entry::Blob(digest))
        }
        Route::Tags(name) => {
            let tags = larder_layout::Directory::Tags(name.clone());
            (format!("/v2/{name}/tags/list"), Entry::Directory(tags))
        }
    };
    assert_eq!(spelling, path);
    let path = entry.path();
    let is_plain = |part| matches!(part, std::path::Component::Normal(_));
    assert!(path.components().all(is_plain) && path.as_os_str().len() < 512, "{path:?}");
}

/// A reference is one text of one meaning.
pub fn reference(text: &str) {
    let Ok(reference) = text.parse::<Reference>() else { return };
    assert_eq!(reference.to_string(), text);
    assert_eq!(matches!(reference, Reference::Digest(_)), text.contains(':'));
}

/// A `Range` selects bytes that are there, each at most once, in a few parts.
pub fn range(header: &str, size_bytes: u64) {
    let Selection::Parts(parts) = range::select(Some(header), size_bytes) else { return };
    assert!((1..=16).contains(&parts.len()), "{parts:?}");
    for (index, part) in parts.iter().enumerate() {
        assert!(part.start < part.end && part.end <= size_bytes, "{part:?} of {size_bytes}");
        let others = parts.iter().skip(index + 1);
        let touches =
            |other: &std::ops::Range<u64>| other.start <= part.end && part.start <= other.end;
        assert!(!others.into_iter().any(touches), "{parts:?}");
    }
}

/// A challenge is read to its end, and what is read of it was in it.
pub fn challenge(header: &str) {
    let challenges = parse_challenges(header);
    let schemes: usize = challenges.iter().map(|challenge| challenge.scheme.len()).sum();
    assert!(schemes <= header.len());
    for challenge in &challenges {
        assert!(!challenge.scheme.is_empty());
        assert!(!challenge.scheme.bytes().any(|b| b.is_ascii_uppercase() || b.is_ascii_control()));
        let realm = challenge.parameter("realm").unwrap_or_default();
        assert!(realm.len() <= header.len());
    }
}
