//! `proxy:` and DTR's `middleware.registry[name=downstream]`: where a miss is pulled from.

use std::path::PathBuf;

use crate::{
    Secret,
    section::Section,
    value::{boolean, duration, path, secret, string, url, url_or_host},
};

/// Why neither `proxy.ttl` nor `blobttl` does anything.
const NOTHING_EXPIRES: &str = "nothing is removed from the storage in this version";
/// Why the storage middlewares of Distribution do nothing.
const REDIRECTS_NOBODY: &str = "Larder serves every blob itself and redirects nobody";

/// The upstream registry, reachable under one URL or several.
#[derive(Debug)]
pub struct Upstreams {
    /// `scheme://host[:port]`, without a trailing slash; at least one. All serve the same content.
    pub urls: Vec<String>,
    /// PEM files with the certificates to trust besides the system's.
    pub certificate_authorities: Vec<PathBuf>,
    /// `proxy.username` and `proxy.password`.
    pub credentials: Option<Credentials>,
}

/// What Larder says to the upstream of itself.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password or token.
    pub password: Secret,
}

impl Upstreams {
    /// Reads `proxy:` and `middleware:`.
    pub(crate) fn read(root: &mut Section<'_>) -> Option<Self> {
        let proxy = root.section("proxy", Self::read_proxy);
        let mut all = root.section("middleware", read_middleware);
        all.extend(proxy);
        if all.len() > 1 {
            root.mistake(
                "middleware",
                "the upstream is given more than once, by proxy or another downstream; keep one",
            );
        }
        all.pop()
    }

    fn read_proxy(proxy: &mut Section<'_>) -> Option<Self> {
        proxy.refuse(
            "exec",
            "no program is run for credentials; give username and password, and restart Larder \
             when they change",
        );
        proxy.note_valid("ttl", duration, NOTHING_EXPIRES);
        if !proxy.is_empty() {
            proxy.require("remoteurl");
        }
        let credentials = Credentials::read(proxy);
        let urls = vec![proxy.value("remoteurl", url)?];
        Some(Self { urls, certificate_authorities: Vec::new(), credentials })
    }

    fn read_downstream(options: &mut Section<'_>) -> Self {
        options.note_valid("blobttl", duration, NOTHING_EXPIRES);
        options.require("upstreams");
        Self {
            urls: options.list("upstreams", |text| url_or_host(text, "https")),
            certificate_authorities: options.list("cas", path),
            credentials: None,
        }
    }
}

impl Credentials {
    fn read(proxy: &mut Section<'_>) -> Option<Self> {
        proxy.require_both("username", "password");
        let username = proxy.value("username", string);
        let password = proxy.value("password", secret);
        Some(Self { username: username?, password: password? })
    }
}

/// What the `downstream`s of `middleware:` say; more than one is one too many.
fn read_middleware(middleware: &mut Section<'_>) -> Vec<Upstreams> {
    middleware.refuse("repository", "not supported; remove it");
    middleware.sections("storage", read_storage_middleware);
    let downstreams = middleware.sections("registry", read_registry_middleware);
    downstreams.into_iter().flatten().collect()
}

fn read_registry_middleware(registry: &mut Section<'_>) -> Option<Upstreams> {
    let is_disabled = registry.value("disabled", boolean) == Some(true);
    registry.require("name");
    let is_downstream = registry.value("name", |name| match name {
        "downstream" => Ok(!is_disabled),
        _ if is_disabled => Ok(false),
        _ => Err(format!("a registry middleware {name:?} is not supported; remove it")),
    });
    if is_downstream == Some(true) {
        return Some(registry.section("options", Upstreams::read_downstream));
    }
    registry.note("options", "this middleware is disabled");
    None
}

fn read_storage_middleware(storage: &mut Section<'_>) {
    storage.require("name");
    storage.note_valid(
        "name",
        |name| match name {
            "redirect" | "cloudfront" | "alicdn" | "rewrite" => Ok(()),
            _ => Err(format!("a storage middleware {name:?} is not supported; remove it")),
        },
        REDIRECTS_NOBODY,
    );
    storage.note("options", REDIRECTS_NOBODY);
    storage.note("disabled", REDIRECTS_NOBODY);
}
