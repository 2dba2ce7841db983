//! `http:`

use std::{path::PathBuf, time::Duration};

use crate::{
    section::Section,
    value::{boolean, duration, expected, listen_address, path},
};

/// `http:`
#[derive(Debug)]
pub struct Http {
    /// `http.addr`, host and port: `:5000` has been made `0.0.0.0:5000`, which it also is when absent.
    pub addr: String,
    /// `http.tls`; plain HTTP without it.
    pub tls: Option<Tls>,
    /// `http.headers`, added to every answer.
    pub headers: Vec<(String, String)>,
    /// Whether HTTP/2 is spoken over TLS: unless `http.http2.disabled`.
    pub http2: bool,
    /// `http.h2c.enabled`: whether HTTP/2 is spoken without TLS, with clients that begin with it.
    pub h2c: bool,
    /// `http.debug`, when it has something to serve.
    pub debug: Option<Debug>,
    /// `http.draintimeout`: how long running answers may go on after SIGTERM; 60 s when absent.
    pub drain_timeout: Duration,
}

/// `http.debug`
#[derive(Clone, Debug)]
pub struct Debug {
    /// `addr`, host and port, as `http.addr`.
    pub addr: String,
    /// `prometheus.path`, `/metrics` when absent.
    pub metrics_path: String,
}

/// `http.tls`
#[derive(Clone, Debug)]
pub struct Tls {
    /// PEM file with the certificate chain.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
    /// `minimumtls`, TLS 1.2 when absent.
    pub minimum_version: TlsVersion,
    /// `ciphersuites`: the suites of TLS 1.2 that are spoken, all that are safe when empty. Those of
    /// TLS 1.3 always are.
    pub cipher_suites: Vec<String>,
    /// `clientcas`: PEM files with the authorities of clients' certificates; nobody is asked for
    /// one when empty.
    pub client_authorities: Vec<PathBuf>,
    /// `clientauth`
    pub client_auth: ClientAuth,
}

/// What becomes of a client without a certificate, where certificates are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// `require-and-verify-client-cert`, also when absent: it is refused.
    Required,
    /// `verify-client-cert-if-given`: it is served.
    IfGiven,
}

/// The cipher suites of TLS 1.2 that are spoken, by their registered names.
const CIPHER_SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
/// Those of TLS 1.3, which has no others that are spoken.
const CIPHER_SUITES_13: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// `tls1.2`
    Tls12,
    /// `tls1.3`
    Tls13,
}

impl Http {
    /// Reads `http:`.
    pub(crate) fn read(root: &mut Section<'_>) -> Self {
        root.section("http", |http| {
            http.value("net", network);
            http.value("prefix", no_prefix);
            http.note("host", "no answer of Larder's needs it");
            http.note("relativeurls", "no answer of Larder's names its host");
            http.note("secret", "it signs uploads, and a cache takes none");
            Self {
                addr: http
                    .value("addr", listen_address)
                    .unwrap_or_else(|| "0.0.0.0:5000".to_owned()),
                tls: http.section("tls", Tls::read),
                http2: http
                    .section("http2", |http2| !http2.value("disabled", boolean).unwrap_or(false)),
                h2c: http.section("h2c", |h2c| h2c.value("enabled", boolean).unwrap_or(false)),
                headers: http.section("headers", read_headers),
                debug: http.section("debug", Debug::read),
                drain_timeout: http
                    .value("draintimeout", duration)
                    .unwrap_or(Duration::from_secs(60)),
            }
        })
    }
}

impl Debug {
    fn read(debug: &mut Section<'_>) -> Option<Self> {
        let addr = debug.value("addr", listen_address);
        let metrics_path = debug.section("prometheus", |prometheus| {
            let is_enabled = prometheus.value("enabled", boolean).unwrap_or(false);
            let path = prometheus.value("path", url_path);
            is_enabled.then(|| path.unwrap_or_else(|| "/metrics".to_owned()))
        });
        match (addr, metrics_path) {
            (Some(addr), Some(metrics_path)) => Some(Self { addr, metrics_path }),
            (None, Some(_)) => {
                debug.require("addr");
                None
            }
            (Some(_), None) => {
                debug.add_note("addr", "nothing is served there unless prometheus.enabled");
                None
            }
            (None, None) => None,
        }
    }
}

impl Tls {
    fn read(tls: &mut Section<'_>) -> Option<Self> {
        tls.refuse(
            "letsencrypt",
            "Larder fetches no certificates; let an ACME client do it, and name its files in \
             certificate and key",
        );
        if !tls.is_empty() {
            tls.require("certificate");
            tls.require("key");
        }
        let minimum_version = tls.value("minimumtls", tls_version).unwrap_or(TlsVersion::Tls12);
        let certificate = tls.value("certificate", path);
        let key = tls.value("key", path);
        let cipher_suites = tls.list("ciphersuites", cipher_suite);
        if tls.has("clientauth") && !tls.has("clientcas") {
            tls.mistake("clientcas", "is missing, and clientauth is of no use without it");
        }
        let client_authorities = tls.list("clientcas", path);
        let client_auth = tls.value("clientauth", client_auth).unwrap_or(ClientAuth::Required);
        Some(Self {
            certificate: certificate?,
            key: key?,
            minimum_version,
            cipher_suites,
            client_authorities,
            client_auth,
        })
    }
}

fn read_headers(headers: &mut Section<'_>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for name in headers.keys() {
        let values = headers.list(&name, header_value);
        if !is_header_name(&name) {
            headers.mistake(&name, "not the name of an HTTP header");
        }
        all.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    all
}

fn is_header_name(name: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(is_allowed)
}

/// The text is not quoted in the mistake: some headers are secrets.
fn header_value(text: &str) -> Result<String, String> {
    if text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) {
        Ok(text.to_owned())
    } else {
        Err("a header takes printable ASCII characters only".to_owned())
    }
}

fn url_path(text: &str) -> Result<String, String> {
    let is_plain = |b: u8| b.is_ascii_graphic() && !b"?#".contains(&b);
    match text.starts_with('/') && text.bytes().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err(expected("a path such as /metrics", text)),
    }
}

fn network(text: &str) -> Result<(), String> {
    match text {
        "tcp" => Ok(()),
        _ => Err(expected("tcp, the only network in this version", text)),
    }
}

fn no_prefix(text: &str) -> Result<(), String> {
    match text {
        "/" => Ok(()),
        _ => Err("a prefix is not supported: clients ask for /v2/ at the root of the host; \
                  remove it, and let the load balancer strip it if it adds one"
            .to_owned()),
    }
}

fn tls_version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "tls1.2" => Ok(TlsVersion::Tls12),
        "tls1.3" => Ok(TlsVersion::Tls13),
        _ => Err(expected("tls1.2 or tls1.3 (what is older is not safe)", text)),
    }
}

fn cipher_suite(text: &str) -> Result<String, String> {
    // Go also has these without their hash.
    let name = match text {
        name if name.ends_with("_CHACHA20_POLY1305") => format!("{name}_SHA256"),
        name => name.to_owned(),
    };
    if CIPHER_SUITES.contains(&&*name) || CIPHER_SUITES_13.contains(&&*name) {
        return Ok(name);
    }
    Err(format!(
        "{text:?} is not spoken: only suites with ECDHE and AES-GCM or ChaCha20-Poly1305 are safe; \
         remove it"
    ))
}

fn client_auth(text: &str) -> Result<ClientAuth, String> {
    match text {
        "require-and-verify-client-cert" => Ok(ClientAuth::Required),
        "verify-client-cert-if-given" => Ok(ClientAuth::IfGiven),
        "request-client-cert" | "require-any-client-cert" => Err(format!(
            "{text} would take any certificate, and so protect nothing; expected \
                         require-and-verify-client-cert or verify-client-cert-if-given"
        )),
        _ => Err(expected("require-and-verify-client-cert or verify-client-cert-if-given", text)),
    }
}
