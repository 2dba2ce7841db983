//! `http:`

use std::{path::PathBuf, time::Duration};

use crate::{
    section::Section,
    value::{duration, expected, listen_address, path},
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
    /// `http.draintimeout`: how long running answers may go on after SIGTERM; 60 s when absent.
    pub drain_timeout: Duration,
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
}

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
            http.note("debug", "there is no debug server in this version");
            http.note("http2", "only HTTP/1.1 is spoken in this version");
            http.note("h2c", "only HTTP/1.1 is spoken in this version");
            Self {
                addr: http
                    .value("addr", listen_address)
                    .unwrap_or_else(|| "0.0.0.0:5000".to_owned()),
                tls: http.section("tls", Tls::read),
                headers: http.section("headers", read_headers),
                drain_timeout: http
                    .value("draintimeout", duration)
                    .unwrap_or(Duration::from_secs(60)),
            }
        })
    }
}

impl Tls {
    fn read(tls: &mut Section<'_>) -> Option<Self> {
        tls.refuse(
            "clientcas",
            "clients' certificates are not checked in this version, so everyone would be let in; \
             remove it only if that is right, or put a proxy that checks them in front",
        );
        tls.refuse("clientauth", "clients' certificates are not checked in this version");
        tls.refuse(
            "ciphersuites",
            "the cipher suites cannot be chosen, and there is no weak one among them; remove it",
        );
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
        Some(Self { certificate: certificate?, key: key?, minimum_version })
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
