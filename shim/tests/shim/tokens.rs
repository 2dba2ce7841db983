//! `auth.token`: who may see what is in a token.

use std::{fs, path::PathBuf, sync::Arc, time::SystemTime};

use axum::http::{Method, StatusCode};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use larder_config::{Auth, Config, SigningAlgorithm, TokenAuth};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

const REALM: &str = "https://auth.example.com/token";
/// How much of an RSA key of 2048 bits in PKCS #8 comes before what PKCS #1 has of it.
const PKCS8_BYTES: usize = 26;

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that are good for pulling from `a`.
fn claims() -> Value {
    json!({
        "iss": "the issuer", "sub": "alice", "aud": "the service", "exp": now_s() + 60,
        "nbf": now_s(), "iat": now_s(), "jti": "1",
        "access": [{"type": "repository", "name": "a", "actions": ["pull", "push"]}],
    })
}

fn access(kind: &str, name: &str, action: &str) -> Value {
    let mut claims = claims();
    claims["access"] = json!([{"type": kind, "name": name, "actions": [action]}]);
    claims
}

fn ec_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn self_signed(key: &KeyPair) -> Certificate {
    CertificateParams::new(["auth.example.com".to_owned()]).unwrap().self_signed(key).unwrap()
}

fn jwks(key: &KeyPair, name: &str) -> Value {
    let point = key.der_bytes();
    let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
    json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": name, "x": x, "y": y}]})
}

fn sign(head: &Header, claims: &Value, key: &KeyPair) -> String {
    let der = key.serialize_der();
    let key = match head.alg {
        Algorithm::RS256 => EncodingKey::from_rsa_der(&der[PKCS8_BYTES..]),
        Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
        _ => EncodingKey::from_ec_der(&der),
    };
    encode(head, claims, &key).unwrap()
}

fn named(algorithm: Algorithm, name: &str) -> Header {
    Header { kid: Some(name.to_owned()), ..Header::new(algorithm) }
}

/// A token server's files, and a shim that trusts them.
struct Trusting {
    shim: Shim,
    _upstream: Upstream,
    keys: PathBuf,
    _directory: TempDir,
}

impl Trusting {
    async fn start(
        bundle: &[&Certificate],
        keys: &Value,
        change: impl FnOnce(&mut TokenAuth),
    ) -> Self {
        let upstream = Upstream::start().await;
        upstream.add_manifest("a", "1", &"a manifest".into());
        let directory = TempDir::new().unwrap();
        let [certificates, set] = ["bundle", "jwks"].map(|name| directory.path().join(name));
        fs::write(&certificates, bundle.iter().map(|one| one.pem()).collect::<String>()).unwrap();
        fs::write(&set, keys.to_string()).unwrap();
        let mut auth = TokenAuth {
            realm: REALM.to_owned(),
            service: "the service".to_owned(),
            issuer: "the issuer".to_owned(),
            root_certificates: (!bundle.is_empty()).then_some(certificates),
            key_set: (!keys.is_null()).then(|| set.clone()),
            algorithms: Vec::new(),
            redirect_path: None,
        };
        change(&mut auth);
        let upstreams = Some(upstreams(&[upstream.url()]));
        let config = Config { auth: Some(Auth::Token(auth)), ..config(upstreams) };
        let shim = Shim::with(config, Arc::new(TempDir::new().unwrap())).await;
        Self { shim, _upstream: upstream, keys: set, _directory: directory }
    }

    async fn ask(&self, path: &str, token: &str) -> (StatusCode, String) {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", &*authorization)];
        let answer =
            self.shim.ask(Method::GET, path, &headers[usize::from(token.is_empty())..]).await;
        let challenge = answer.headers().get("www-authenticate");
        let challenge = challenge.map_or("", |challenge| challenge.to_str().unwrap()).to_owned();
        (answer.status(), challenge)
    }

    async fn accepts(&self, token: &str) -> bool {
        self.ask("a/manifests/1", token).await.0 == StatusCode::OK
    }
}

/// The challenges are Distribution's, byte for byte: clients are known to read them.
#[tokio::test]
async fn a_client_is_told_which_token_it_needs() {
    let key = ec_key();
    let trusting = Trusting::start(&[], &jwks(&key, "k"), |_| {}).await;
    let token = |claims: &Value| sign(&named(Algorithm::ES256, "k"), claims, &key);
    let asked = format!(r#"Bearer realm="{REALM}",service="the service""#);
    let pull = format!(r#"{asked},scope="repository:a:pull""#);
    let unauthorized = |challenge: String| (StatusCode::UNAUTHORIZED, challenge);
    assert_eq!(trusting.ask("", "").await, unauthorized(asked.clone()));
    for path in ["a/manifests/1", "a/manifests/missing", "a/tags/list"] {
        assert_eq!(trusting.ask(path, "").await, unauthorized(pull.clone()), "{path}");
    }
    let catalog = format!(r#"{asked},scope="registry:catalog:*""#);
    assert_eq!(trusting.ask("_catalog", "").await, unauthorized(catalog.clone()));
    let insufficient = unauthorized(format!(r#"{catalog},error="insufficient_scope""#));
    assert_eq!(trusting.ask("_catalog", &token(&claims())).await, insufficient);
    let listing = token(&access("registry", "catalog", "*"));
    assert_eq!(trusting.ask("_catalog", &listing).await.0, StatusCode::OK);
    let invalid = unauthorized(format!(r#"{pull},error="invalid_token""#));
    assert_eq!(trusting.ask("a/manifests/1", "no.tok.en").await, invalid);
    let insufficient = unauthorized(format!(r#"{pull},error="insufficient_scope""#));
    for claims in [
        access("repository", "b", "pull"),
        access("repository", "a", "push"),
        access("registry", "a", "pull"),
        json!({"iss": "the issuer", "aud": "the service", "exp": now_s() + 60}),
        json!({"iss": "the issuer", "aud": "the service", "exp": now_s() + 60, "access": null}),
    ] {
        assert_eq!(trusting.ask("a/manifests/1", &token(&claims)).await, insufficient, "{claims}");
    }
    for claims in [claims(), access("repository", "a", "*")] {
        assert!(trusting.accepts(&token(&claims)).await, "{claims}");
        assert_eq!(trusting.ask("", &token(&claims)).await.0, StatusCode::OK);
    }
}

/// "7. A client sees only what `auth:` says that it may, and cannot tell the rest from what does not
/// exist."
#[tokio::test]
async fn only_the_token_servers_own_fresh_tokens_are_taken() {
    let (key, other) = (ec_key(), ec_key());
    let trusting = Trusting::start(&[], &jwks(&key, "k"), |_| {}).await;
    let head = named(Algorithm::ES256, "k");
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims
    };
    for good in [
        with("aud", json!(["other", "the service"])),
        with("exp", json!(now_s() - 30)),
        with("nbf", json!(now_s() + 30)),
    ] {
        assert!(trusting.accepts(&sign(&head, &good, &key)).await, "{good}");
    }
    for bad in [
        with("iss", json!("another")),
        with("aud", json!("another")),
        with("aud", json!([])),
        with("aud", Value::Null),
        with("exp", json!(now_s() - 90)),
        with("exp", Value::Null),
        with("nbf", json!(now_s() + 90)),
    ] {
        assert!(!trusting.accepts(&sign(&head, &bad, &key)).await, "{bad}");
    }
    for head in [head.clone(), Header::new(Algorithm::ES256), named(Algorithm::ES256, "other")] {
        assert!(!trusting.accepts(&sign(&head, &claims(), &other)).await, "{head:?}");
    }
    // The usual tricks: no signature, and the public key as a secret.
    let good = sign(&head, &claims(), &key);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (_, body) = signed.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT","kid":"k"}"#);
    let secret = EncodingKey::from_secret(key.der_bytes());
    let forged = encode(&named(Algorithm::HS256, "k"), &claims(), &secret).unwrap();
    for trick in [
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{signed}."),
        forged,
    ] {
        assert!(!trusting.accepts(&trick).await, "{trick}");
    }
}

#[tokio::test]
async fn a_key_is_named_by_certificates_or_by_itself() {
    let (authority_key, key, other) = (ec_key(), ec_key(), ec_key());
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(params, &authority_key);
    let params = || CertificateParams::new(["auth.example.com".to_owned()]).unwrap();
    let leaf = params().signed_by(&key, &issuer).unwrap();
    let stray = self_signed(&other);
    let listed_key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let listed = self_signed(&listed_key);
    let edwards_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let edwards = self_signed(&edwards_key);
    let trusting = Trusting::start(&[&authority, &listed, &edwards], &Value::Null, |_| {}).await;
    let chain = |algorithm, certificate: &Certificate| Header {
        x5c: Some(vec![STANDARD.encode(certificate.der())]),
        ..Header::new(algorithm)
    };
    for (head, key) in [
        (chain(Algorithm::ES256, &leaf), &key),
        (chain(Algorithm::RS256, &listed), &listed_key),
        (chain(Algorithm::EdDSA, &edwards), &edwards_key),
    ] {
        assert!(trusting.accepts(&sign(&head, &claims(), key)).await, "{head:?}");
    }
    for (head, key) in [
        (chain(Algorithm::ES256, &leaf), &other),
        (chain(Algorithm::ES256, &stray), &other),
        (Header { x5c: Some(Vec::new()), ..Header::new(Algorithm::ES256) }, &key),
    ] {
        assert!(!trusting.accepts(&sign(&head, &claims(), key)).await, "{head:?}");
    }
    // A key that comes with the token is only taken when the bundle has it.
    let jwk = |key: &KeyPair| {
        let jwk = serde_json::from_value(jwks(key, "k")["keys"][0].clone()).unwrap();
        Header { jwk: Some(jwk), ..Header::new(Algorithm::ES256) }
    };
    assert!(trusting.accepts(&sign(&jwk(&authority_key), &claims(), &authority_key)).await);
    assert!(!trusting.accepts(&sign(&jwk(&other), &claims(), &other)).await);
}

#[tokio::test]
async fn keys_change_without_a_restart_and_algorithms_are_limited() {
    let (old, new) = (ec_key(), ec_key());
    let trusting = Trusting::start(&[], &jwks(&old, "k"), |_| {}).await;
    let token = |key| sign(&named(Algorithm::ES256, "k"), &claims(), key);
    assert!(trusting.accepts(&token(&old)).await);
    fs::write(&trusting.keys, jwks(&new, "k").to_string() + "\n").unwrap();
    while !trusting.accepts(&token(&new)).await {}
    assert!(!trusting.accepts(&token(&old)).await);

    let only_rsa = |auth: &mut TokenAuth| auth.algorithms = vec![SigningAlgorithm::RS256];
    let trusting = Trusting::start(&[], &jwks(&old, "k"), only_rsa).await;
    assert!(!trusting.accepts(&token(&old)).await);
}

#[tokio::test]
async fn autoredirect_sends_clients_to_the_host_that_they_ask() {
    let redirect = |auth: &mut TokenAuth| auth.redirect_path = Some("/auth/token".to_owned());
    let trusting = Trusting::start(&[], &jwks(&ec_key(), "k"), redirect).await;
    let shim = &trusting.shim;
    for (headers, realm) in [
        (vec![("host", "cache.example.com")], "https://cache.example.com/auth/token"),
        (
            vec![("host", "cache:5000"), ("x-forwarded-proto", "http")],
            "http://cache:5000/auth/token",
        ),
    ] {
        let answer = shim.ask(Method::GET, "", &headers).await;
        let expected = format!(r#"Bearer realm="{realm}",service="the service""#);
        assert_eq!(answer.headers()["www-authenticate"], &*expected);
    }
}
