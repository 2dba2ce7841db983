//! A blob from the node that fetches it from the upstream for all.

use std::{sync::Arc, time::Duration};

use hyper::header;
use larder_layout::{Algorithm, Digest};
use reqwest::{Client, redirect};
use tokio::time::timeout;
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{BLOB_DEADLINE, Download, IDENTITY, UpstreamError, accept, error::late};
use crate::node::Holder;

/// A node that does not even connect has died, or never could be reached.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// The holder itself may wait for its upstream for as long as that.
const DEADLINE: Duration = BLOB_DEADLINE.saturating_add(Duration::from_secs(5));

/// Begins to fetch a blob at `offset` from the node that has its lease. Whether the client may have the
/// blob is another question.
///
/// # Errors
/// The node cannot be reached, has no such lease any more, or is in trouble.
pub async fn fetch_from(
    holder: &Holder,
    digest: &Digest,
    offset: u64,
) -> Result<Download, UpstreamError> {
    let request = client(holder)?.get(format!("{}/leases/{digest}", holder.url));
    let mut request =
        request.bearer_auth(holder.token.expose()).header(header::ACCEPT_ENCODING, IDENTITY);
    if offset > 0 {
        request = request.header(header::RANGE, format!("bytes={offset}-"));
    }
    let answer = timeout(DEADLINE, request.send()).await;
    let answer = answer.map_err(|_| late("an answer", DEADLINE))??;
    Download::of(accept(answer)?, None, offset)
}

/// A client for one blob.
fn client(holder: &Holder) -> Result<Client, UpstreamError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let pinned =
        Pinned { certificate: holder.certificate.clone(), provider: Arc::clone(&provider) };
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| UpstreamError::Unavailable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_DEADLINE)
        .redirect(redirect::Policy::none())
        .no_proxy();
    Ok(client.build()?)
}

/// Trusts one certificate, whatever it says: the lease names it, and only nodes can write leases. The
/// names in it are those that clients know the cache by, not this node's address.
#[derive(Debug)]
struct Pinned {
    certificate: Option<Digest>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let digest = Digest::of(Algorithm::Sha256, end_entity);
        match self.certificate == Some(digest) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General("not the certificate of its lease".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
