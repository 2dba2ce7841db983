//! The shim over a plain directory, with a scripted upstream and real HTTP on both sides.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod accounts;
mod blobs;
mod by_upstream;
mod credentials;
mod foreign;
mod freshness;
mod fuzz;
mod http2;
mod lasting;
mod leases;
mod limits;
mod lists;
mod manifests;
mod operating;
mod parts;
mod ranges;
mod referrers;
mod requests;
mod serving;
mod spec;
mod support;
mod tls;
mod tokens;
mod upstreams;
mod users;
