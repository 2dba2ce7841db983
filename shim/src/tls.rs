//! `http.tls`

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use larder_config::{ClientAuth, Tls, TlsVersion};
use larder_layout::{Algorithm, Digest};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, CipherSuite, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{WebPkiClientVerifier, danger::ClientCertVerifier},
        version::{TLS12, TLS13},
    },
};

use crate::watched::Watched;

/// The certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsMistake {
    /// A file cannot be read as PEM.
    #[error("http.tls: {0}: {1}")]
    Pem(String, rustls::pki_types::pem::Error),
    /// The certificate and the key do not go together, or not with TLS.
    #[error("http.tls: {0}")]
    Pair(#[from] rustls::Error),
    /// A file of `clientcas` holds no authority that can be used.
    #[error("http.tls.clientcas: {0}: {1}")]
    Authority(String, String),
}

/// What ALPN calls HTTP/2.
pub const HTTP2: &[u8] = b"h2";

/// TLS as the configuration has it, and as the files are now.
pub struct Reloaded(Watched<Loaded, TlsMistake>);

struct Loaded {
    acceptor: TlsAcceptor,
    /// Of the certificate.
    digest: Digest,
}

impl Reloaded {
    /// Reads the files. `http2` is offered to clients if it may be.
    ///
    /// # Errors
    /// The certificate, its key or an authority cannot be used.
    pub fn new(config: Tls, http2: bool) -> Result<Self, TlsMistake> {
        let files = [&config.certificate, &config.key].into_iter();
        let files = files.chain(&config.client_authorities).cloned().collect();
        Watched::new(files, move || acceptor(&config, http2)).map(Self)
    }

    /// What takes new connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.get().acceptor.clone()
    }

    /// The digest of the certificate that clients are shown.
    pub fn certificate(&self) -> Digest {
        self.0.get().digest.clone()
    }

    /// Reads the files again if they have changed.
    pub fn refresh(&self) {
        self.0.refresh();
    }
}

fn acceptor(config: &Tls, http2: bool) -> Result<Loaded, TlsMistake> {
    let chain = certificates(&config.certificate)?;
    let certificate = chain.first().map_or(&[][..], |certificate| certificate);
    let digest = Digest::of(Algorithm::Sha256, certificate);
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(unreadable(&config.key))?;
    let versions: &[_] = match config.minimum_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let mut provider = aws_lc_rs::default_provider();
    // AES-128 first: a third less work than AES-256, and no weaker against any attack there is.
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    if !config.cipher_suites.is_empty() {
        let is_named = |suite: CipherSuite| {
            config.cipher_suites.iter().any(|name| suite.as_str() == Some(name))
        };
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || is_named(suite.suite()));
    }
    let provider = Arc::new(provider);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?;
    let builder = match client_verifier(config, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, key)?;
    server.ignore_client_order = true;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    if http2 {
        server.alpn_protocols.insert(0, HTTP2.to_vec());
    }
    Ok(Loaded { acceptor: TlsAcceptor::from(Arc::new(server)), digest })
}

/// What checks the certificates of clients; `None` where they need none.
fn client_verifier(
    config: &Tls,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsMistake> {
    if config.client_authorities.is_empty() {
        return Ok(None);
    }
    let mut authorities = RootCertStore::empty();
    for path in &config.client_authorities {
        let unusable = |reason: &dyn ToString| {
            TlsMistake::Authority(path.display().to_string(), reason.to_string())
        };
        let certificates = certificates(path)?;
        if certificates.is_empty() {
            return Err(unusable(&"there is no certificate in it"));
        }
        for certificate in certificates {
            authorities.add(certificate).map_err(|error| unusable(&error))?;
        }
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider);
    let builder = match config.client_auth {
        ClientAuth::Required => builder,
        ClientAuth::IfGiven => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|error| {
        let paths: Vec<_> = config.client_authorities.iter().map(|path| path.display()).collect();
        TlsMistake::Authority(format!("{paths:?}"), error.to_string())
    })?;
    Ok(Some(verifier))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsMistake> {
    let certificates = CertificateDer::pem_file_iter(path);
    certificates.and_then(Iterator::collect::<Result<_, _>>).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl Fn(rustls::pki_types::pem::Error) -> TlsMistake {
    let path: PathBuf = path.to_owned();
    move |error| TlsMistake::Pem(path.display().to_string(), error)
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
    use std::{
        fs::{self, File},
        time::{Duration, SystemTime},
    };

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
        let config = Tls {
            certificate: certificate.clone(),
            key: key.clone(),
            minimum_version,
            cipher_suites: Vec::new(),
            client_authorities: Vec::new(),
            client_auth: ClientAuth::Required,
        };
        let tls = Reloaded::new(config, true).unwrap();
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
