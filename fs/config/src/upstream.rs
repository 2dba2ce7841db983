//! `proxy:` and DTR's `middleware.registry[name=downstream]`: where a miss is pulled from.

use std::path::PathBuf;

use crate::Secret;

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
