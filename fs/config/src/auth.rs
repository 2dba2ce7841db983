//! `auth:`: who may see what.

use std::{path::PathBuf, time::Duration};

use crate::{
    Secret,
    section::Section,
    value::{boolean, duration, expected, path, secret, string},
};

/// How long an upstream's word on who may see what holds when the operator does not say.
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// How clients are told apart.
#[derive(Clone, Debug)]
pub enum Auth {
    /// `auth.htpasswd`
    Htpasswd(Htpasswd),
    /// `auth.token`
    Token(TokenAuth),
    /// `auth.upstream`
    Upstream(UpstreamAuth),
}

/// `auth.htpasswd`: users of a file, each of whom may see everything.
#[derive(Clone, Debug)]
pub struct Htpasswd {
    /// `realm`: what a client shows its user.
    pub realm: String,
    /// `path`: the file, as `htpasswd -B` writes it.
    pub path: PathBuf,
}

/// `auth.token`: tokens that a token server signs.
#[derive(Clone, Debug)]
pub struct TokenAuth {
    /// `realm`: the token server's URL.
    pub realm: String,
    /// `service`: this registry's name in tokens, their audience.
    pub service: String,
    /// `issuer`: the token server's name in tokens.
    pub issuer: String,
    /// `rootcertbundle`: a PEM file with certificates of the keys that sign, or of who vouches for them.
    pub root_certificates: Option<PathBuf>,
    /// `jwks`: a JSON file with the keys that sign (RFC 7517, section 5).
    pub key_set: Option<PathBuf>,
    /// `signingalgorithms`; every one that is known when empty.
    pub algorithms: Vec<SigningAlgorithm>,
    /// `autoredirectpath`, when `autoredirect` is set: clients are sent to this path of the host that
    /// they ask, instead of the realm.
    pub redirect_path: Option<String>,
}

/// An algorithm of RFC 7518, section 3.1, or RFC 8037.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the RFCs say what they are")]
pub enum SigningAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// `auth.upstream`, Larder's own: each client sees what the upstream lets it see.
#[derive(Clone, Debug)]
pub struct UpstreamAuth {
    /// `ttl`: how long the upstream's word on a client and a repository holds; 5 min when absent.
    pub ttl: Duration,
    /// `outage`: what is shown when the upstream cannot be asked; nothing when absent.
    pub outage: Outage,
    /// `secret`: what tokens for clients are encrypted with, the same on all nodes behind a balancer.
    pub secret: Option<Secret>,
    /// `realm`: the URL at which clients get tokens, when it is not `/token` on the host they ask.
    pub realm: Option<String>,
}

/// What clients see while an upstream cannot say who may see what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Nothing.
    Deny,
    /// What they were last allowed to see, for so much longer.
    Grace(Duration),
    /// What everybody was last allowed to see.
    PublicOnly,
}

impl SigningAlgorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::EdDSA,
    ];
}

impl Auth {
    /// Reads `auth:`, of which there is one kind at most.
    pub(crate) fn read(root: &mut Section<'_>) -> Option<Self> {
        root.section("auth", |auth| {
            auth.refuse("silly", "it lets everyone in who sends any Authorization; remove it");
            let kinds = ["htpasswd", "token", "upstream"];
            if kinds.iter().filter(|kind| auth.has(kind)).count() > 1 {
                auth.mistake_of_all("clients are told apart in more than one way; keep one");
            }
            let htpasswd = auth.section("htpasswd", Htpasswd::read).map(Self::Htpasswd);
            let token = auth.section("token", TokenAuth::read).map(Self::Token);
            let is_upstream = auth.names("upstream");
            let upstream = auth.section("upstream", UpstreamAuth::read);
            htpasswd.or(token).or(is_upstream.then_some(Self::Upstream(upstream)))
        })
    }
}

impl Htpasswd {
    fn read(htpasswd: &mut Section<'_>) -> Option<Self> {
        if !htpasswd.is_empty() {
            htpasswd.require("realm");
            htpasswd.require("path");
        }
        let (realm, path) = (htpasswd.value("realm", header_text), htpasswd.value("path", path));
        Some(Self { realm: realm?, path: path? })
    }
}

impl TokenAuth {
    fn read(token: &mut Section<'_>) -> Option<Self> {
        if !token.is_empty() {
            for key in ["realm", "service", "issuer"] {
                token.require(key);
            }
            if !token.has("rootcertbundle") && !token.has("jwks") {
                token.mistake(
                    "rootcertbundle",
                    "is missing, and so is jwks; name the keys that sign",
                );
            }
        }
        let is_redirected = token.value("autoredirect", boolean).unwrap_or(false);
        let redirect_path = token.value("autoredirectpath", header_text);
        let redirect_path = redirect_path.unwrap_or_else(|| "/auth/token".to_owned());
        let algorithms = token.list("signingalgorithms", algorithm);
        let (realm, service) =
            (token.value("realm", header_text), token.value("service", header_text));
        let issuer = token.value("issuer", string);
        let (root_certificates, key_set) =
            (token.value("rootcertbundle", path), token.value("jwks", path));
        Some(Self {
            realm: realm?,
            service: service?,
            issuer: issuer?,
            root_certificates,
            key_set,
            algorithms,
            redirect_path: is_redirected.then_some(redirect_path),
        })
    }
}

impl UpstreamAuth {
    fn read(upstream: &mut Section<'_>) -> Self {
        Self {
            ttl: upstream.value("ttl", duration).unwrap_or(DEFAULT_TTL),
            outage: upstream.named_section("outage", Outage::read),
            secret: upstream.value("secret", secret),
            realm: upstream.value("realm", header_text),
        }
    }
}

impl Outage {
    fn read(outage: &mut Section<'_>) -> Self {
        let is_denied = outage.names("deny");
        let is_public = outage.names("public-only");
        if outage.names("grace") {
            outage.require("grace");
        }
        let grace = outage.value("grace", duration);
        let count = usize::from(is_denied) + usize::from(is_public) + usize::from(grace.is_some());
        if count > 1 {
            outage.mistake_of_all("expected one of deny, public-only and {grace: 10m}");
        }
        match grace {
            Some(grace) => Self::Grace(grace),
            None if is_public => Self::PublicOnly,
            None => Self::Deny,
        }
    }
}

fn algorithm(text: &str) -> Result<SigningAlgorithm, String> {
    if text.starts_with("HS") {
        return Err(format!(
            "{text} signs with a secret that whoever checks a token could sign with too; name one of \
             RS256, PS256, ES256 and EdDSA"
        ));
    }
    let mut all = SigningAlgorithm::ALL.into_iter();
    let found = all.find(|algorithm| format!("{algorithm:?}") == text);
    found.ok_or_else(|| expected("RS256, RS384, RS512, PS256, …, ES256, ES384 or EdDSA", text))
}

/// What a client is told in the header of a challenge.
fn header_text(text: &str) -> Result<String, String> {
    if text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        Ok(text.to_owned())
    } else {
        Err(expected("printable ASCII characters", text))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Config, Mistakes};

    fn parse(auth: &str) -> Result<Config, Mistakes> {
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{}}}}\nproxy: {{remoteurl: 'https://a'}}\n\
             auth: {{{auth}}}\n"
        );
        Config::parse(Path::new("config.yml"), &text, [])
    }

    #[test]
    fn token_keys_are_distributions() {
        let token = "token: {realm: 'https://a/token', service: s, issuer: i, rootcertbundle: /c, \
                     jwks: /k, signingalgorithms: [RS256, EdDSA], autoredirect: true}";
        let Some(Auth::Token(token)) = parse(token).unwrap().auth else { panic!("no token") };
        assert_eq!((&*token.realm, &*token.service, &*token.issuer), ("https://a/token", "s", "i"));
        assert_eq!(token.root_certificates.as_deref(), Some(Path::new("/c")));
        assert_eq!(token.key_set.as_deref(), Some(Path::new("/k")));
        assert_eq!(token.algorithms, [SigningAlgorithm::RS256, SigningAlgorithm::EdDSA]);
        assert_eq!(token.redirect_path.as_deref(), Some("/auth/token"));
    }

    #[test]
    fn the_policy_for_an_outage_is_declared() {
        for (text, ttl_s, outage) in [
            ("upstream: {}", 300, Outage::Deny),
            ("upstream: {ttl: 1m, outage: deny}", 60, Outage::Deny),
            ("upstream: {outage: public-only}", 300, Outage::PublicOnly),
            ("upstream: {outage: {grace: 10m}}", 300, Outage::Grace(Duration::from_secs(600))),
        ] {
            let config = parse(text).unwrap();
            let Some(Auth::Upstream(auth)) = config.auth else { panic!("{text}") };
            assert_eq!((auth.ttl.as_secs(), auth.outage), (ttl_s, outage), "{text}");
        }
    }

    #[test]
    fn each_mistake_is_found() {
        for (auth, mistake) in [
            ("silly: {realm: r}", "auth.silly: it lets everyone in"),
            ("htpasswd: {realm: r}", "auth.htpasswd.path: is missing"),
            (
                "htpasswd: {realm: r, path: p}, token: {realm: r, service: s, issuer: i, jwks: j}",
                "auth: clients are told apart in more",
            ),
            ("token: {realm: r, service: s, jwks: j}", "auth.token.issuer: is missing"),
            (
                "token: {realm: r, service: s, issuer: i}",
                "auth.token.rootcertbundle: is missing, and so is jwks",
            ),
            (
                "token: {realm: r, service: s, issuer: i, jwks: j, signingalgorithms: [HS256]}",
                "HS256 signs with a secret",
            ),
            (
                "token: {realm: r, service: s, issuer: i, jwks: j, signingalgorithms: [none]}",
                "expected RS256",
            ),
            ("upstream: {outage: grace}", "auth.upstream.outage.grace: is missing"),
            ("upstream: {outage: allow}", "auth.upstream.outage.allow: unknown key"),
            ("upstream: {outage: {deny: , grace: 1m}}", "expected one of deny"),
        ] {
            let found = parse(auth).unwrap_err().to_string();
            assert!(found.contains(mistake), "{auth}\n{found}");
            assert_eq!(found.lines().count(), 1, "{auth}\n{found}");
        }
    }
}
