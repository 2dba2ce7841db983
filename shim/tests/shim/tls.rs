//! `http.tls`

use std::{path::Path, sync::Arc};

use larder_config::{ClientAuth, Http, Tls, TlsVersion};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedKey, IsCa, Issuer, KeyPair,
    generate_simple_self_signed,
};
use reqwest::{Certificate, Client, Identity, StatusCode};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, pem::PemObject},
        version::{TLS12, TLS13},
    },
};

use crate::{serving::directory, support::*};

/// Writes a new certificate and its key, and gives a client that knows no other.
pub fn certify(root: &TempDir) -> (Tls, Client) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| root.path().join(name));
    std::fs::write(&certificate, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    let root = Certificate::from_pem(cert.pem().as_bytes()).unwrap();
    let client = Client::builder().tls_certs_only([root]).build().unwrap();
    let tls = Tls {
        certificate,
        key,
        minimum_version: TlsVersion::Tls12,
        cipher_suites: Vec::new(),
        client_authorities: Vec::new(),
        client_auth: ClientAuth::Required,
    };
    (tls, client)
}

/// A shim with TLS over a directory, and a client that knows its certificate.
pub async fn with_tls(root: &Arc<TempDir>) -> (Shim, Client) {
    let (tls, client) = certify(root);
    (start(root, tls, true).await, client)
}

/// A shim with this TLS.
pub async fn start(root: &Arc<TempDir>, tls: Tls, http2: bool) -> Shim {
    let mut config = config(None);
    config.http = Http { tls: Some(tls), http2, ..config.http };
    let mut shim = Shim::with(config, Arc::clone(root)).await;
    let port = shim.address.rsplit_once(':').unwrap().1;
    shim.url = format!("https://localhost:{port}/v2");
    shim
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_restart() {
    let (root, _) = directory(b"x");
    let (shim, client) = with_tls(&root).await;
    assert_eq!(client.get(&shim.url).send().await.unwrap().status(), StatusCode::OK);
    // Connections that are kept keep their certificate.
    let (_, client) = certify(&root);
    let renewed = async {
        while client.get(&shim.url).send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, renewed).await.unwrap();
}

/// What TLS to connect with, to a shim whose certificate `certify` wrote.
pub fn client_config(root: &Path, is_tls13: bool) -> ClientConfig {
    let mut authorities = RootCertStore::empty();
    authorities.add(CertificateDer::from_pem_file(root.join("cert.pem")).unwrap()).unwrap();
    let version = if is_tls13 { &TLS13 } else { &TLS12 };
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(authorities)
        .with_no_client_auth()
}

pub async fn connect(
    shim: &Shim,
    config: ClientConfig,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(&shim.address).await.unwrap();
    let connect =
        TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream);
    timeout(PATIENCE, connect).await.unwrap()
}

#[tokio::test]
async fn the_version_and_the_cipher_suites_are_as_configured() {
    const RSA: &str = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    const CHACHA: &str = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    let (root, _) = directory(b"x");
    for (minimum_version, suites, of_tls12) in [
        (TlsVersion::Tls12, vec![], Some("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")),
        (TlsVersion::Tls12, vec![RSA, CHACHA], Some(CHACHA)),
        (TlsVersion::Tls12, vec!["TLS_AES_128_GCM_SHA256"], None),
        (TlsVersion::Tls13, vec![CHACHA], None),
    ] {
        let (tls, _) = certify(&root);
        let cipher_suites = suites.iter().map(|suite| (*suite).to_owned()).collect();
        let shim = start(&root, Tls { minimum_version, cipher_suites, ..tls }, true).await;
        let stream = connect(&shim, client_config(root.path(), false)).await;
        let suite = stream.ok().and_then(|stream| {
            let suite = stream.get_ref().1.negotiated_cipher_suite();
            suite.unwrap().suite().as_str()
        });
        assert_eq!(suite, of_tls12, "{minimum_version:?} {suites:?}");
        let stream = connect(&shim, client_config(root.path(), true)).await.unwrap();
        let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap();
        assert_eq!(suite.suite().as_str(), Some("TLS13_AES_128_GCM_SHA256"));
    }
}

/// An authority, and the certificate and key of a client that it vouches for, as PEM.
fn authority() -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let client_key = KeyPair::generate().unwrap();
    let client = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let client = client.signed_by(&client_key, &Issuer::new(params, key)).unwrap();
    (certificate, client.pem() + &client_key.serialize_pem())
}

#[tokio::test]
async fn only_clients_with_a_certificate_are_served_where_one_is_required() {
    let (root, digest) = directory(b"x");
    let authorities: [(String, String); 3] = [authority(), authority(), authority()];
    let files = [0, 1].map(|n| root.path().join(format!("ca{n}.pem")));
    for (file, (authority, _)) in files.iter().zip(&authorities) {
        std::fs::write(file, authority).unwrap();
    }
    for client_auth in [ClientAuth::Required, ClientAuth::IfGiven] {
        let (tls, _) = certify(&root);
        let tls = Tls { client_authorities: files.to_vec(), client_auth, ..tls };
        let shim = start(&root, tls, true).await;
        let own = std::fs::read(root.path().join("cert.pem")).unwrap();
        let ask = async |identity: Option<&str>| {
            let client = Client::builder().tls_certs_only([Certificate::from_pem(&own).unwrap()]);
            let client = match identity {
                Some(pem) => client.identity(Identity::from_pem(pem.as_bytes()).unwrap()),
                None => client,
            };
            let url = format!("{}/a/blobs/{digest}", shim.url);
            client.build().unwrap().get(url).send().await.ok().map(|answer| answer.status())
        };
        for (_, identity) in &authorities[..2] {
            assert_eq!(ask(Some(identity)).await, Some(StatusCode::OK));
        }
        assert_eq!(ask(Some(&authorities[2].1)).await, None, "a stranger's certificate");
        let without = ask(None).await;
        assert_eq!(without.is_some(), client_auth == ClientAuth::IfGiven);
    }
}
