//! `http.tls`

use std::sync::Arc;

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

/// What takes TLS connections as the configuration has it.
///
/// # Errors
/// The certificate or its key cannot be used.
pub fn acceptor(config: &Tls) -> Result<TlsAcceptor, TlsMistake> {
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
