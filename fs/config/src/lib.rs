//! Distribution's `config.yml` with Larder's additions, read once for both programs.
//!
//! Both programs take the same file, so both must judge it alike: every key either works, is
//! accepted with a [`Config::notes`] line that says why it changes nothing, or is refused with
//! its line and what to do. Nothing is silently ignored.

mod auth;
mod cache;
mod document;
mod environment;
mod findings;
mod http;
mod log;
mod node;
mod secret;
mod section;
mod storage;
mod tags;
#[cfg(test)]
mod tests;
mod unused;
mod upstream;
mod value;

use std::{ffi::OsString, fs, path::Path, time::Duration};

use document::Origin;
use findings::Findings;
use section::Section;

pub use auth::{Auth, Htpasswd, Outage, SigningAlgorithm, TokenAuth, UpstreamAuth};
pub use cache::{Cache, CacheSize, Fill};
pub use findings::Mistakes;
pub use http::{ClientAuth, Debug, Http, Tls, TlsVersion};
pub use log::{Formatter, Level, Log};
pub use node::Node;
pub use secret::Secret;
pub use storage::{
    Azure, AzureCredentials, Gcs, KeystoneDomain, KeystoneIdentity, KeystoneScope, Oss, S3,
    ServiceAccount, Storage, Swift, SwiftLogin,
};
pub use tags::{Check, Deleted, TagRule, Tags};
pub use upstream::{Credentials, SecretSource, Upstream};

/// The exit code of a program whose configuration is wrong: `EX_USAGE` of sysexits(3).
pub const EXIT_CODE: u8 = 64;
/// `catalog.maxentries` when absent, as in Distribution 3.
const CATALOG_MAX_ENTRIES: usize = 1000;
/// The most that it may be: an answer is made in memory.
const CATALOG_MOST_ENTRIES: usize = 100_000;

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
    /// `node:`, Larder's own section.
    pub node: Node,
    /// `proxy:` or `middleware.registry[name=downstream]`, and `upstreams:`; without any, nothing is
    /// pulled.
    pub upstreams: Vec<Upstream>,
    /// `auth:`; without it, everyone may see everything.
    pub auth: Option<Auth>,
    /// `catalog.maxentries`: how many repositories an answer lists at most; 1000 when absent.
    pub catalog_max_entries: usize,
    /// `tags:`, Larder's own section.
    pub tags: Tags,
    /// One sentence for each key that is accepted but changes nothing, to be logged at start.
    pub notes: Vec<String>,
}

fn catalog_entries(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(entries) if (1..=CATALOG_MOST_ENTRIES).contains(&entries) => Ok(entries),
        _ => Err(value::expected("a number from 1 to 100000", text)),
    }
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
        let text = fs::read_to_string(path).map_err(|error| Mistakes::unreadable(path, error))?;
        Self::parse(path, &text, environment)
    }

    /// How old a blob of the shared storage becomes before it is removed: only the default upstream says so.
    pub fn blob_ttl(&self) -> Option<Duration> {
        self.upstreams.iter().find_map(|upstream| upstream.blob_ttl)
    }

    /// Like [`Self::load`], with the content of the file.
    fn parse(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let mut findings = Findings::default();
        let mut document = match document::parse(text, None, &mut findings) {
            Ok(document) => document,
            Err(error) => {
                let line = Origin::Line(error.marker().line());
                findings.mistake(&line, format!("not valid YAML: {}", error.info()));
                return Err(findings.into_mistakes(path));
            }
        };
        environment::override_values(&mut document, environment);
        let config = Section::read(String::new(), document, &mut findings, Self::read);
        match config {
            Some(config) if findings.has_no_mistake() => {
                Ok(Self { notes: findings.into_notes(path), ..config })
            }
            _ => Err(findings.into_mistakes(path)),
        }
    }

    /// Reads every section; the notes are still to be added.
    fn read(root: &mut Section<'_>) -> Option<Self> {
        root.require("version");
        root.value("version", |version| match version {
            "0.1" => Ok(()),
            _ => Err(value::expected("0.1", version)),
        });
        let storage = Storage::read(root);
        let (log, cache, http) = (Log::read(root), Cache::read(root), Http::read(root));
        let (upstreams, auth) = (Upstream::read(root), Auth::read(root));
        if matches!(auth, Some(Auth::Upstream(_))) && upstreams.is_empty() {
            root.mistake(
                "auth.upstream",
                "there is no upstream to ask; name one in proxy or upstreams",
            );
        }
        let catalog_max_entries = root.section("catalog", |catalog| {
            catalog.value("maxentries", catalog_entries).unwrap_or(CATALOG_MAX_ENTRIES)
        });
        unused::read(root);
        Some(Self {
            log,
            storage: storage?,
            cache,
            http,
            node: Node::read(root),
            upstreams,
            auth,
            catalog_max_entries,
            tags: Tags::read(root),
            notes: Vec::new(),
        })
    }
}
