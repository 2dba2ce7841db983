//! The keys that may sign tokens.
//!
//! A token names its key as Distribution has it: by a certificate chain (`x5c`) that leads to the
//! bundle, by the key itself (`jwk`), or by its name (`kid`). Names of the bundle's keys are those of
//! Distribution 2, libtrust's, and those of Distribution 3, of RFC 7638.

use std::{collections::HashMap, fs, path::Path};

use aws_lc_rs::digest;
use jsonwebtoken::{
    DecodingKey, Header,
    jwk::{Jwk, JwkSet, ThumbprintHash},
};
use tokio_rustls::rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use x509_parser::{
    certificate::X509Certificate, oid_registry::OID_SIG_ED25519, prelude::FromDer,
    public_key::PublicKey,
};

use crate::auth::AuthMistake;

/// How much of a public key libtrust makes a name of, and how it groups the letters of that.
const LIBTRUST_BYTES: usize = 30;
const LIBTRUST_GROUP: usize = 4;

/// The keys, by name, and the certificates.
pub struct Keys {
    named: HashMap<String, DecodingKey>,
    certificates: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
}

impl Keys {
    /// Reads `rootcertbundle` and `jwks`.
    pub fn read(bundle: Option<&Path>, set: Option<&Path>) -> Result<Self, AuthMistake> {
        let mut keys =
            Self { named: HashMap::new(), certificates: Vec::new(), roots: RootCertStore::empty() };
        if let Some(path) = bundle {
            keys.add_bundle(path).map_err(|reason| mistake("rootcertbundle", path, reason))?;
        }
        if let Some(path) = set {
            keys.add_set(path).map_err(|reason| mistake("jwks", path, reason))?;
        }
        Ok(keys)
    }

    fn add_bundle(&mut self, path: &Path) -> Result<(), String> {
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| error.to_string())?;
        if certificates.is_empty() {
            return Err("there is no certificate in it".to_owned());
        }
        for certificate in certificates {
            let (_, parsed) =
                X509Certificate::from_der(&certificate).map_err(|error| error.to_string())?;
            // Certificates that vouch for others may have keys that no token is signed with.
            if let Some(key) = public_key(&parsed) {
                self.named.insert(libtrust_name(parsed.public_key().raw), key.clone());
                if let Some(name) = Jwk::from_decoding_key(&key, None).ok().and_then(thumbprint) {
                    self.named.insert(name, key);
                }
            }
            // One that is no authority's vouches for itself alone, by being in the list.
            let _ = self.roots.add(certificate.clone());
            self.certificates.push(certificate);
        }
        Ok(())
    }

    fn add_set(&mut self, path: &Path) -> Result<(), String> {
        let text = fs::read(path).map_err(|error| error.to_string())?;
        let set: JwkSet = serde_json::from_slice(&text)
            .map_err(|error| format!("expected a JSON Web Key Set: {error}"))?;
        for jwk in set.keys {
            let key =
                DecodingKey::from_jwk(&jwk).map_err(|error| format!("a key in it: {error}"))?;
            let name = jwk.common.key_id.clone().or_else(|| thumbprint(jwk));
            if let Some(name) = name {
                self.named.insert(name, key);
            }
        }
        if self.named.is_empty() {
            return Err("there is no key in it".to_owned());
        }
        Ok(())
    }

    /// The key that a token says it is signed with, if that may sign.
    pub fn of(&self, head: &Header) -> Result<DecodingKey, String> {
        if head.x5c.is_some() {
            let chain = head.x5c_der().map_err(|error| error.to_string())?;
            return self.of_chain(chain.unwrap_or_default());
        }
        let name = match &head.jwk {
            Some(jwk) => thumbprint(jwk.clone()),
            None => head.kid.clone(),
        };
        let name = name.ok_or("it names no key")?;
        self.named.get(&name).cloned().ok_or_else(|| format!("the key {name:?} is not known"))
    }

    fn of_chain(&self, chain: Vec<Vec<u8>>) -> Result<DecodingKey, String> {
        let mut chain = chain.into_iter().map(CertificateDer::from);
        let leaf = chain.next().ok_or("its certificate chain is empty")?;
        let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|error| error.to_string())?;
        if !parsed.validity().is_valid() {
            return Err("its certificate is not valid now".to_owned());
        }
        if !self.certificates.contains(&leaf) {
            let intermediates: Vec<_> = chain.collect();
            ParsedCertificate::try_from(&leaf)
                .and_then(|leaf| {
                    verify_server_cert_signed_by_trust_anchor(
                        &leaf,
                        &self.roots,
                        &intermediates,
                        UnixTime::now(),
                        default_provider().signature_verification_algorithms.all,
                    )
                })
                .map_err(|error| format!("its certificate is not of the bundle: {error}"))?;
        }
        public_key(&parsed).ok_or_else(|| "no token is signed with a key of that kind".to_owned())
    }
}

fn mistake(key: &str, path: &Path, reason: String) -> AuthMistake {
    AuthMistake { what: format!("token.{key}"), reason: format!("{}: {reason}", path.display()) }
}

/// The key of a certificate, when it is of a kind that signs tokens.
fn public_key(certificate: &X509Certificate<'_>) -> Option<DecodingKey> {
    let key = certificate.public_key();
    if key.algorithm.algorithm == OID_SIG_ED25519 {
        return Some(DecodingKey::from_ed_der(&key.subject_public_key.data));
    }
    match key.parsed().ok()? {
        PublicKey::RSA(rsa) => {
            // DER puts a zero before a number that would else be negative.
            let [modulus, exponent] = [rsa.modulus, rsa.exponent].map(|number| {
                let zeros = number.iter().take_while(|byte| **byte == 0).count();
                &number[zeros..]
            });
            Some(DecodingKey::from_rsa_raw_components(modulus, exponent))
        }
        PublicKey::EC(point) => Some(DecodingKey::from_ec_der(point.data())),
        _ => None,
    }
}

fn thumbprint(jwk: Jwk) -> Option<String> {
    jwk.thumbprint(ThumbprintHash::SHA256).ok()
}

/// What libtrust calls a public key: `ABCD:EFGH:…`, the beginning of its hash in base 32.
fn libtrust_name(public_key: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = digest::digest(&digest::SHA256, public_key);
    let mut name = String::new();
    for (group, bytes) in hash.as_ref()[..LIBTRUST_BYTES].chunks(5).enumerate() {
        // Five bytes are eight letters.
        let bits = bytes.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for letter in 0..8 {
            if (group * 8 + letter) % LIBTRUST_GROUP == 0 && !name.is_empty() {
                name.push(':');
            }
            name.push(char::from(LETTERS[(bits >> (35 - 5 * letter) & 31) as usize]));
        }
    }
    name
}
