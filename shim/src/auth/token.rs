//! `auth.token`: tokens that a token server signs (token specification of Distribution).

mod keys;

use hyper::HeaderMap;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use larder_config::{self as config, SigningAlgorithm};
use serde::Deserialize;

use self::keys::Keys;
use super::{AuthMistake, Client, Need, challenge, quoted, redirected, shown};
use crate::{error::Error, watched::Watched};

/// How far the clock of the token server may be off, as in Distribution.
const LEEWAY_S: u64 = 60;

/// What tokens have to be like.
pub struct Token {
    config: config::TokenAuth,
    algorithms: Vec<Algorithm>,
    keys: Watched<Keys, AuthMistake>,
}

/// Why a token does not do.
#[derive(Clone, Copy)]
pub enum Refusal {
    /// There is none.
    Missing,
    /// It is none, or none of the token server's, or not for this service, or too old.
    Invalid,
    /// It is good for something else.
    Insufficient,
}

impl Refusal {
    /// What is added to a challenge (RFC 6750, section 3).
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Missing => "",
            Self::Invalid => ",error=\"invalid_token\"",
            Self::Insufficient => ",error=\"insufficient_scope\"",
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    access: Option<Vec<Access>>,
}

/// What a token is good for.
#[derive(Deserialize)]
struct Access {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(default)]
    actions: Option<Vec<String>>,
}

impl Access {
    fn allows(&self, kind: &str, name: &str, action: &str) -> bool {
        let mut actions = self.actions.iter().flatten();
        self.kind == kind
            && self.name == name
            && actions.any(|given| given == action || given == "*")
    }
}

impl Token {
    pub fn new(config: &config::TokenAuth) -> Result<Self, AuthMistake> {
        let files = config.root_certificates.iter().chain(&config.key_set).cloned().collect();
        let (certificates, set) = (config.root_certificates.clone(), config.key_set.clone());
        let keys =
            Watched::new(files, move || Keys::read(certificates.as_deref(), set.as_deref()))?;
        let algorithms = match &*config.algorithms {
            [] => SigningAlgorithm::ALL.map(algorithm).to_vec(),
            some => some.iter().copied().map(algorithm).collect(),
        };
        Ok(Self { config: config.clone(), algorithms, keys })
    }

    pub fn refresh(&self) {
        self.keys.refresh();
    }

    /// Whether the token of a request is good for what it needs.
    pub fn check(&self, client: Client<'_>, need: Need<'_>) -> Result<(), Error> {
        let claims = self.claims(client.headers);
        let (kind, name, action) = match need {
            Need::Nothing => return Ok(()),
            Need::Login => {
                let challenge = |refusal| self.challenge(client, None, refusal);
                return claims.map(drop).map_err(challenge);
            }
            Need::Pull { repository, .. } => ("repository", repository.as_str(), "pull"),
            Need::Catalog => ("registry", "catalog", "*"),
        };
        let allows = |claims: Claims| {
            let mut access = claims.access.iter().flatten();
            let is_allowed = access.any(|access| access.allows(kind, name, action));
            if is_allowed { Ok(()) } else { Err(Refusal::Insufficient) }
        };
        let scope = format!("{kind}:{name}:{action}");
        claims.and_then(allows).map_err(|refusal| self.challenge(client, Some(&scope), refusal))
    }

    fn claims(&self, headers: &HeaderMap) -> Result<Claims, Refusal> {
        let token = shown(headers, "bearer").filter(|token| !token.is_empty());
        let token = token.ok_or(Refusal::Missing)?;
        let invalid = |reason: &dyn std::fmt::Display| {
            tracing::info!(%reason, "a token is not accepted");
            Refusal::Invalid
        };
        let head = decode_header(token).map_err(|error| invalid(&error))?;
        if !self.algorithms.contains(&head.alg) {
            return Err(invalid(&format_args!("{:?} is not allowed to sign", head.alg)));
        }
        let key = self.keys.get().of(&head).map_err(|reason| invalid(&reason))?;
        let mut validation = Validation::new(head.alg);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.config.service]);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let token = decode(token, &key, &validation).map_err(|error| invalid(&error))?;
        Ok(token.claims)
    }

    /// As Distribution writes it, byte for byte.
    fn challenge(&self, client: Client<'_>, scope: Option<&str>, refusal: Refusal) -> Error {
        let config = &self.config;
        let realm = match &config.redirect_path {
            Some(path) => redirected(client, "https", path),
            None => config.realm.clone(),
        };
        let mut text =
            format!("Bearer realm={},service={}", quoted(&realm), quoted(&config.service));
        if let Some(scope) = scope {
            text += &format!(",scope={}", quoted(scope));
        }
        text += refusal.parameter();
        challenge(&text)
    }
}

fn algorithm(name: SigningAlgorithm) -> Algorithm {
    match name {
        SigningAlgorithm::RS256 => Algorithm::RS256,
        SigningAlgorithm::RS384 => Algorithm::RS384,
        SigningAlgorithm::RS512 => Algorithm::RS512,
        SigningAlgorithm::PS256 => Algorithm::PS256,
        SigningAlgorithm::PS384 => Algorithm::PS384,
        SigningAlgorithm::PS512 => Algorithm::PS512,
        SigningAlgorithm::ES256 => Algorithm::ES256,
        SigningAlgorithm::ES384 => Algorithm::ES384,
        SigningAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}
