//! The directory contract: what `larder-fs` mounts and `larder-shim` serves from.
//!
//! ```text
//! /
//! ├── blobs/<algorithm>/<hex>               a blob: regular file, 0444, immutable
//! ├── repositories/<name>/                  <name> has slashes: repositories/library/alpine/
//! │   ├── _tags/<tag>                       symlink to the blob of the manifest that the tag names
//! │   ├── _manifests/<algorithm>/<hex>      symlink: this manifest belongs to this repository
//! │   └── _layers/<algorithm>/<hex>         symlink: this layer or config belongs to this repository
//! ├── layers/<algorithm>/<hex>/…            the files inside a layer, to be looked at; only on a mount
//! ├── leases/<algorithm>/<hex>              symlink, of who fetches this blob: created first, it is a lease
//! ├── ingest/<id>                           private to the writer: stage here, publish by rename
//! └── .larder/                              read-only reports: stats, config
//! ```
//!
//! This crate knows paths, digests and names, and does no input or output, so that both
//! programs can agree on every name without agreeing on anything else.

mod digest;
mod name;
mod path;

pub use digest::{Algorithm, Digest, DigestError, Hasher, Mismatch, Verifier};
pub use name::{NameError, Reference, Repository, StagingId, Tag};
pub use path::{Directory, Entry, Lease, Link, Membership, Report};
