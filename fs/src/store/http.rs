//! What the systems that are reached through HTTP have in common: deadlines and retries.

use std::time::Duration;

use object_store::{ClientConfigKey, ClientOptions, RetryConfig};

/// How long one request may take from its first byte to its last: a part of 8 MiB on a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The library's own default is ten attempts in three minutes, in which a client gives up.
const RETRIES_MAX: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(8);

/// The connections to an endpoint.
pub fn client(endpoint: Option<&str>, skip_verify: bool) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(endpoint.is_some_and(|url| url.starts_with("http://")))
        .with_allow_invalid_certificates(skip_verify)
        .with_config(ClientConfigKey::UserAgent, concat!("larder/", env!("CARGO_PKG_VERSION")))
}

/// How often, and for how long, a request is tried again.
pub fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() }
}
