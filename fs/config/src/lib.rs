//! Distribution's `config.yml` with Larder's additions, read once for both programs.
//!
//! Both programs take the same file, so both must judge it alike: every key either works, is
//! accepted with a [`Config::notes`] line that says why it changes nothing, or is refused with
//! its line and what to do. Nothing is silently ignored.

mod cache;
mod http;
mod log;
mod secret;
mod storage;
mod upstream;

use std::{ffi::OsString, path::Path};

pub use cache::{Cache, CacheSize};
pub use http::{Http, Tls, TlsVersion};
pub use log::{Formatter, Level, Log};
pub use secret::Secret;
pub use storage::{S3, Storage};
pub use upstream::{Credentials, Upstreams};

/// The exit code of a program whose configuration is wrong: `EX_USAGE` of sysexits(3).
pub const EXIT_CODE: u8 = 64;

/// The whole configuration.
#[derive(Debug)]
pub struct Config {
    /// `log:`
    pub log: Log,
    /// `storage:`
    pub storage: Storage,
    /// `cache:`, Larder's own section.
    pub cache: Cache,
    /// `http:`
    pub http: Http,
    /// `proxy:` or `middleware.registry[name=downstream]`; without either, nothing is pulled.
    pub upstreams: Option<Upstreams>,
    /// One sentence for each key that is accepted but changes nothing, to be logged at start.
    pub notes: Vec<String>,
}

impl Config {
    /// Reads `path`, with the `REGISTRY_…` variables of `environment` over it.
    ///
    /// # Errors
    /// Every mistake in the file at once.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let _ = (path, environment);
        unimplemented!()
    }
}

/// What is wrong with a configuration: one line each, `config.yml:12: storage.s3.buket: …`.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(Vec<String>);
