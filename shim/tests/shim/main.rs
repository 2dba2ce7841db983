//! The shim over a plain directory, with a scripted upstream and real HTTP on both sides.

mod blobs;
mod credentials;
mod manifests;
mod requests;
mod support;
