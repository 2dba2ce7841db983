//! `proxy:`, DTR's `middleware.registry[name=downstream]`, and Larder's own `upstreams:`: where a
//! miss is pulled from.

mod credentials;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use larder_layout::Repository;

pub use self::credentials::{Credentials, SecretSource};
use crate::{
    section::Section,
    value::{boolean, duration, host_and_port, path, url, url_or_host},
};

/// Why the storage middlewares of Distribution do nothing.
const REDIRECTS_NOBODY: &str = "Larder serves every blob itself and redirects nobody";

/// Docker Hub's name, which is not the host that serves it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_URL: &str = "https://registry-1.docker.io";
const DOCKER_HUB_HOSTS: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// One upstream registry, reachable under one URL or several.
#[derive(Debug)]
pub struct Upstream {
    /// Its key in `upstreams:`, a component of a repository's name; `None` for the one of `proxy:`
    /// or `middleware:`, which is always the default.
    pub key: Option<String>,
    /// Whether repositories that name no registry are this one's. At most one upstream is.
    pub is_default: bool,
    /// `hosts`: what else it is called in `?ns=`, in a path, and as the `Host` of a request.
    pub hosts: Vec<String>,
    /// `mirror`: whether its URLs are those of a mirror of several registries, which is told by
    /// `?ns=` which of them is meant, as containerd does.
    pub is_mirror: bool,
    /// `scheme://host[:port]`, without a trailing slash; at least one. All serve the same content.
    pub urls: Vec<String>,
    /// PEM files with the certificates to trust besides the system's.
    pub certificate_authorities: Vec<PathBuf>,
    /// What Larder says of itself when it is asked.
    pub credentials: Option<Credentials>,
    /// `realms`: token servers outside of its domain that may see the credentials, as
    /// `scheme://host[:port]`.
    pub realms: Vec<String>,
    /// `proxy.ttl`, or `blobttl`: how old a blob of the shared storage becomes, whoever put it there.
    /// For ever when absent, which is not Distribution's default, or 0.
    pub blob_ttl: Option<Duration>,
}

impl Upstream {
    /// Reads `proxy:`, `middleware:` and `upstreams:`.
    pub(crate) fn read(root: &mut Section<'_>) -> Vec<Self> {
        let proxy = root.section("proxy", Self::read_proxy);
        let mut all = root.section("middleware", read_middleware);
        all.extend(proxy);
        if all.len() > 1 {
            root.mistake(
                "middleware",
                "the default upstream is given more than once, by proxy or another downstream; \
                 keep one, and put others into upstreams",
            );
        }
        let keyed = root.section("upstreams", |upstreams| {
            let keys = upstreams.keys();
            let read = |key: &String| upstreams.section(key, |one| Self::read_keyed(key, one));
            keys.iter().map(read).collect::<Vec<_>>()
        });
        let defaults = keyed.iter().filter(|upstream| upstream.is_default).count();
        if defaults + all.len().min(1) > 1 {
            root.mistake(
                "upstreams",
                "more than one upstream is the default, that of proxy or middleware counted; keep one",
            );
        }
        let names = keyed.iter().flat_map(|upstream| upstream.key.iter().chain(&upstream.hosts));
        let mut names: Vec<_> = names.map(|name| name.to_ascii_lowercase()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            root.mistake(
                "upstreams",
                &format!("{} is what two of them are called; keep one", twice[0]),
            );
        }
        all.extend(keyed);
        all
    }

    fn read_proxy(proxy: &mut Section<'_>) -> Option<Self> {
        let blob_ttl = read_ttl(proxy, "ttl");
        if !proxy.is_empty() {
            proxy.require("remoteurl");
        }
        let credentials = Credentials::read(proxy);
        let realms = proxy.list("realms", url);
        let urls = vec![proxy.value("remoteurl", url)?];
        Some(Self { credentials, realms, blob_ttl, ..Self::default_at(urls) })
    }

    fn read_downstream(options: &mut Section<'_>) -> Self {
        let blob_ttl = read_ttl(options, "blobttl");
        options.require("upstreams");
        let urls = options.list("upstreams", |text| url_or_host(text, "https"));
        let certificate_authorities = options.list("cas", path);
        Self { certificate_authorities, blob_ttl, ..Self::default_at(urls) }
    }

    /// The default upstream, with nothing but its URLs.
    fn default_at(urls: Vec<String>) -> Self {
        Self {
            key: None,
            is_default: true,
            hosts: Vec::new(),
            is_mirror: false,
            urls,
            certificate_authorities: Vec::new(),
            credentials: None,
            realms: Vec::new(),
            blob_ttl: None,
        }
    }

    fn read_keyed(key: &str, upstream: &mut Section<'_>) -> Self {
        if key.contains('/') || key.parse::<Repository>().is_err() {
            upstream.mistake_of_all(
                "repositories are named after it, so it takes lower-case letters and digits, joined \
                 by . _ or -, and no port; what else it is called goes into hosts",
            );
        }
        let mut urls = upstream.list("urls", |text| url_or_host(text, "https"));
        let mut hosts = upstream.list("hosts", host_and_port);
        if key == DOCKER_HUB {
            hosts.extend(DOCKER_HUB_HOSTS.map(str::to_owned));
        }
        if urls.is_empty() {
            urls.push(if key == DOCKER_HUB {
                DOCKER_HUB_URL.to_owned()
            } else {
                format!("https://{key}")
            });
        }
        Self {
            key: Some(key.to_owned()),
            is_default: upstream.value("default", boolean).unwrap_or(false),
            hosts,
            is_mirror: upstream.value("mirror", boolean).unwrap_or(false),
            urls,
            certificate_authorities: upstream.list("cas", path),
            credentials: Credentials::read(upstream),
            realms: upstream.list("realms", url),
            blob_ttl: None,
        }
    }
}

fn read_ttl(section: &mut Section<'_>, key: &str) -> Option<Duration> {
    section.value(key, duration).filter(|ttl| !ttl.is_zero())
}

/// What the `downstream`s of `middleware:` say; more than one is one too many.
fn read_middleware(middleware: &mut Section<'_>) -> Vec<Upstream> {
    middleware.refuse("repository", "not supported; remove it");
    middleware.sections("storage", read_storage_middleware);
    let downstreams = middleware.sections("registry", read_registry_middleware);
    downstreams.into_iter().flatten().collect()
}

fn read_registry_middleware(registry: &mut Section<'_>) -> Option<Upstream> {
    let is_disabled = registry.value("disabled", boolean) == Some(true);
    registry.require("name");
    let is_downstream = registry.value("name", |name| match name {
        "downstream" => Ok(!is_disabled),
        _ if is_disabled => Ok(false),
        _ => Err(format!("a registry middleware {name:?} is not supported; remove it")),
    });
    if is_downstream == Some(true) {
        return Some(registry.section("options", Upstream::read_downstream));
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
