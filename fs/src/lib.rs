//! `larder-fs`: the shared storage as a local, content-addressed directory.
//!
//! A request goes from [`fuse`] (decode, reply) to [`filesystem`] (what each name is) and from
//! there to [`cache`], [`fetch`], [`ingest`] or [`links`], all over [`store`]. [`check`] tells an operator whether a storage is fit for it.

pub mod attributes;
pub mod cache;
pub mod check;
pub mod error;
pub mod fetch;
pub mod filesystem;
pub mod fuse;
pub mod ingest;
pub mod inodes;
pub mod layers;
pub mod links;
pub mod listing;
pub mod metrics;
pub mod opened;
pub mod store;
pub mod xattr;
