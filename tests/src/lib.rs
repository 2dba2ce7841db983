//! The harness of the whole-system tests: real clients, real registries, real storage servers,
//! real mounts, and the two programs as an operator starts them.
//!
//! Every part is a value with `start`, and `Drop` ends it. A test enters a [`Sandbox`] first: a
//! network, mount and cgroup namespace of its own. So ports never collide, nothing leaves the
//! machine, and whatever is mounted or started is gone with the test, however it ends.

mod authority;
mod azurite;
mod client;
pub mod conformance;
mod containerd;
pub mod distribution;
mod dockerd;
mod gcs;
mod haproxy;
mod http;
mod image;
mod keystone;
mod machine;
mod mount;
pub mod nfs;
mod node;
mod opened;
mod oss;
mod podman;
mod process;
mod registry;
mod s3;
mod sandbox;
pub mod scenario;
mod scripted;
mod skopeo;
mod storage;
pub mod store;
mod swift;
mod tokens;
mod upstream;
mod vendor;
pub mod verity;

pub use authority::Authority;
pub use azurite::Azurite;
pub use client::{Client, Kind};
pub use gcs::Gcs;
pub use haproxy::Haproxy;
pub use http::{Answer, Request, Server};
pub use image::{Blob, Format, Image, Platform, random_bytes};
pub use keystone::Keystone;
pub use mount::{Mount, publish};
pub use node::{Access, Node, bin};
pub use opened::{Opened, Untrusted, certificate};
pub use oss::Oss;
pub use process::{Failure, Process, run, until};
pub use registry::{Download, Registry};
pub use s3::S3;
pub use sandbox::Sandbox;
pub use scripted::{Fault, ScriptedUpstream};
pub use storage::{Storage, blobs_in, files_in};
pub use swift::Swift;
pub use tokens::TokenServer;
pub use upstream::Upstream;
