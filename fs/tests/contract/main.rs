//! The contract, in process: nodes on one storage in memory, without a mount.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod layers;
mod leases;
mod publishing;
mod streaming;
mod support;
