//! `http.tls`

use std::{
    fs, io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use larder_config::{Tls, TlsVersion};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, CipherSuite, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        version::{TLS12, TLS13},
    },
};

/// The certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsMistake {
    /// A file cannot be read as PEM.
    #[error("http.tls: {0}: {1}")]
    Pem(String, rustls::pki_types::pem::Error),
    /// The certificate and the key do not go together, or not with TLS.
    #[error("http.tls: {0}")]
    Pair(#[from] rustls::Error),
}

/// How often the files are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// TLS as the configuration has it, and as the files are now.
pub struct Reloaded {
    config: Tls,
    acceptor: TlsAcceptor,
    /// When the files were last changed. Looked at before they are read, so that what changes in
    /// between is read again.
    changed: Option<[SystemTime; 2]>,
}

impl Reloaded {
    /// Reads the files.
    ///
    /// # Errors
    /// The certificate or its key cannot be used.
    pub fn new(config: Tls) -> Result<Self, TlsMistake> {
        let changed = changed(&config).ok();
        Ok(Self { acceptor: acceptor(&config)?, config, changed })
    }

    /// What takes new connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Reads the files again if they have changed. Those that cannot be used change nothing: they
    /// may be half written, and what was good before still is.
    pub fn refresh(&mut self) {
        let changed = changed(&self.config).ok();
        if changed.is_none() || changed == self.changed {
            return;
        }
        self.changed = changed;
        match acceptor(&self.config) {
            Ok(acceptor) => {
                self.acceptor = acceptor;
                tracing::info!(certificate = %self.config.certificate.display(), "reloaded");
            }
            Err(error) => tracing::error!(%error, "the certificate from before stays in use"),
        }
    }
}

fn changed(config: &Tls) -> io::Result<[SystemTime; 2]> {
    let of = |path| fs::metadata(path)?.modified();
    Ok([of(&config.certificate)?, of(&config.key)?])
}

fn acceptor(config: &Tls) -> Result<TlsAcceptor, TlsMistake> {
    let pem = |path: &std::path::Path| {
        let path = path.display().to_string();
        move |error| TlsMistake::Pem(path, error)
    };
    let chain = CertificateDer::pem_file_iter(&config.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(pem(&config.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(pem(&config.key))?;
    let versions: &[_] = match config.minimum_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let mut provider = aws_lc_rs::default_provider();
    // AES-128 first: a third less work than AES-256, and no weaker against any attack there is.
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    let mut server = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    server.ignore_client_order = true;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rcgen::generate_simple_self_signed;

    use super::*;

    #[test]
    fn files_that_cannot_be_used_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [certificate, key] = ["cert", "key"].map(|name| directory.path().join(name));
        let pair = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&certificate, pair.cert.pem()).unwrap();
        fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let minimum_version = TlsVersion::Tls13;
        let config = Tls { certificate: certificate.clone(), key: key.clone(), minimum_version };
        let mut tls = Reloaded::new(config).unwrap();
        let first = Arc::clone(tls.acceptor().config());

        let mut now = SystemTime::now();
        let mut refresh = |content: &str| {
            fs::write(&key, content).unwrap();
            now += Duration::from_secs(1);
            File::open(&key).unwrap().set_modified(now).unwrap();
            tls.refresh();
            Arc::clone(tls.acceptor().config())
        };
        let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for unusable in ["half", &other.signing_key.serialize_pem()] {
            assert!(Arc::ptr_eq(&refresh(unusable), &first));
        }
        assert!(!Arc::ptr_eq(&refresh(&pair.signing_key.serialize_pem()), &first));
        fs::remove_file(&certificate).unwrap();
        tls.refresh();
    }
}
