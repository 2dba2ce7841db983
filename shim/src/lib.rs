//! `larder-shim`: a registry over the directory that `larder-fs` mounts, or over any other.
//!
//! A request goes `server` → `routes` → `blob`, `manifest` and the lists (`tags`, `referrers`,
//! `catalog`) → `content`, which is the directory; on a miss → `pull` → `upstream`. Only `content` names paths of the directory, only
//! `upstream` speaks HTTP to the upstream, and nothing here knows what is behind the directory.

mod access;
mod answer;
mod auth;
mod blob;
mod body;
mod calls;
mod catalog;
mod connection;
mod content;
mod debug;
mod error;
mod flights;
mod freshness;
pub mod fuzz;
mod lasting;
mod manifest;
mod metrics;
mod multipart;
mod node;
mod outbox;
mod page;
mod pull;
mod pulse;
mod range;
mod ready;
mod referrers;
mod registries;
mod resident;
mod routes;
mod server;
mod shim;
mod sightings;
mod stream;
mod tags;
mod tls;
mod traces;
mod turn;
mod upstream;
mod via;
mod watched;
mod workers;

pub use access::TARGET as ACCESS_LOG;
pub use debug::serve as serve_debug;
pub use server::{Mistake, Server};
pub use traces::Traces;
