//! `http:`

use std::{path::PathBuf, time::Duration};

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
#[derive(Debug)]
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
