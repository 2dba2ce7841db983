//! A token server: what a registry with `auth: token` sends its clients to.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use larder_layout::{Algorithm, Digest};
use serde_json::{Value, json};

use crate::{Answer, Request, Sandbox, Server, authority::request, run};

const OPENSSL_TIMEOUT: Duration = Duration::from_secs(30);
const ISSUER: &str = "issuer.test";
const SERVICE: &str = "registry.test";

/// The server. Its one user may pull everything; everybody else may pull nothing.
pub struct TokenServer {
    server: Server,
    certificate: PathBuf,
}

impl TokenServer {
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "openssl";

    /// Starts it, for a user with a password.
    pub fn start(sandbox: &Sandbox, username: &str, password: &str) -> Self {
        let (certificate, key) = (sandbox.path("tokens.pem"), sandbox.path("tokens.key"));
        let mut openssl = request(&[]);
        openssl.arg("-subj").arg("/CN=tokens").arg("-keyout").arg(&key);
        openssl.arg("-out").arg(&certificate);
        run(openssl, OPENSSL_TIMEOUT).expect("a certificate");
        let pem = fs::read_to_string(key).expect("a key");
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(base64).expect("a key in PEM");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).expect("a key");
        let login = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
        let server = Server::start(sandbox, move |request| answer(request, &login, &key));
        Self { server, certificate }
    }

    /// `auth:` of a registry that takes its tokens.
    pub fn section(&self) -> String {
        format!(
            "auth: {{token: {{realm: \"{}\", service: {SERVICE}, issuer: {ISSUER}, \
             rootcertbundle: {}}}}}\n",
            self.realm(),
            self.certificate.display()
        )
    }

    /// A token for a scope, for a user or for nobody in particular.
    ///
    /// # Panics
    /// When it gives none.
    pub fn token(&self, scope: &str, login: Option<(&str, &str)>) -> String {
        let client = reqwest::blocking::Client::new();
        let mut request = client.get(format!("{}?scope={scope}", self.realm()));
        if let Some((username, password)) = login {
            request = request.basic_auth(username, Some(password));
        }
        let grant = request.send().and_then(|answer| answer.bytes()).expect("a token");
        let grant: Value = serde_json::from_slice(&grant).expect("a token in JSON");
        grant["token"].as_str().expect("a token").to_owned()
    }

    fn realm(&self) -> String {
        format!("http://{}/token", self.server.address())
    }
}

fn answer(request: &Request, login: &str, key: &EcdsaKeyPair) -> Answer {
    if request.method != "GET" {
        return Answer::new(405, "");
    }
    let scope = request.parameter("scope");
    let access = match request.header("authorization") {
        "" => json!([]),
        shown if shown == login => granted(scope),
        _ => return Answer::new(401, ""),
    };
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |s| s.as_secs());
    let claims = json!({
        "iss": ISSUER, "sub": "somebody", "aud": SERVICE, "exp": now_s + 300, "nbf": now_s - 10,
        "iat": now_s, "jti": now_s.to_string(), "access": access,
    });
    let token = sign(&json!({"typ": "JWT", "alg": "ES256", "kid": name_of(key)}), &claims, key);
    Answer::new(200, json!({"token": token, "expires_in": 300}).to_string())
        .with("Content-Type", "application/json")
}

/// What a scope asks for, without the pushes.
fn granted(scope: &str) -> Value {
    let mut parts = scope.splitn(2, ':');
    let (kind, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match rest.rsplit_once(':') {
        Some((name, _)) => json!([{"type": kind, "name": name, "actions": ["pull"]}]),
        None => json!([]),
    }
}

fn sign(head: &Value, claims: &Value, key: &EcdsaKeyPair) -> String {
    let [head, claims] = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let signed = format!("{head}.{claims}");
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// What Distribution 2 calls a key: libtrust's fingerprint, in base 32, four letters and a colon.
fn name_of(key: &EcdsaKeyPair) -> String {
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().expect("a public key");
    let hash = Digest::of(Algorithm::Sha256, der.as_ref());
    let bits: String = hash.hex()[..60]
        .chars()
        .map(|digit| format!("{:04b}", digit.to_digit(16).expect("a hexadecimal digit")))
        .collect();
    let letters: Vec<char> = (0..bits.len() / 5)
        .map(|at| u8::from_str_radix(&bits[at * 5..at * 5 + 5], 2).expect("five bits"))
        .map(|value| char::from(if value < 26 { b'A' + value } else { b'2' + value - 26 }))
        .collect();
    letters.chunks(4).map(|group| group.iter().collect()).collect::<Vec<String>>().join(":")
}
