//! Who may see what: the one place where a request is let in or refused.
//!
//! What a request needs is decided by its [`Need`], before anything is looked up. So no answer tells
//! whether there is what the client may not see.

mod basic;
mod htpasswd;
mod token;
mod upstream;

use std::{fmt, sync::Arc};

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};
use larder_config as config;
use larder_layout::{Digest, Reference, Repository};

use self::{htpasswd::Htpasswd, token::Token, upstream::ByUpstream};
use crate::{
    answer::Response, error::Error, registries::Registries, shim::PullThrough, upstream::Upstream,
};

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What a request shows in `Authorization`, if it is of this scheme (RFC 9110, section 11.6.2).
pub fn shown<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (its_scheme, shown) = value.split_once(' ')?;
    its_scheme.eq_ignore_ascii_case(scheme).then_some(shown)
}

/// What a client must be allowed for a request.
#[derive(Clone, Copy, Debug)]
pub enum Need<'a> {
    /// Nothing: the operator's own probes.
    Nothing,
    /// To be somebody.
    Login,
    /// To pull from a repository.
    Pull {
        /// Its name in the directory.
        repository: &'a Repository,
        /// What is asked for below it: that the upstream gives this is what proves the right to it.
        probe: Probe<'a>,
    },
    /// To list every repository.
    Catalog,
}

/// A part of a repository, as a path below it.
#[derive(Clone, Copy, Debug)]
pub enum Probe<'a> {
    /// `manifests/<reference>`
    Manifest(&'a Reference),
    /// `manifests/<digest>` of what others refer to.
    Subject(&'a Digest),
    /// `blobs/<digest>`
    Blob(&'a Digest),
    /// `tags/list`, of which one is enough.
    Tags,
}

impl fmt::Display for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(reference) => write!(f, "manifests/{reference}"),
            Self::Subject(digest) => write!(f, "manifests/{digest}"),
            Self::Blob(digest) => write!(f, "blobs/{digest}"),
            Self::Tags => f.write_str("tags/list?n=1"),
        }
    }
}

/// Who asks, as far as the request says.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    /// The headers of the request.
    pub headers: &'a HeaderMap,
    /// The host that the client believes to speak to, with or without a port.
    pub host: Option<&'a str>,
}

/// How clients are told apart.
pub enum Auth {
    /// Not at all: everyone may see everything.
    Open,
    /// `auth.htpasswd`
    Htpasswd(Box<Htpasswd>),
    /// `auth.token`
    Token(Box<Token>),
    /// `auth.upstream`
    Upstream(Box<ByUpstream>),
}

/// What a client that is let in makes the upstream be asked as.
pub enum Grant {
    /// Larder itself.
    Own,
    /// The client.
    Client(Arc<Upstream>),
}

/// Something about `auth:` that the operator has to change.
#[derive(Debug, thiserror::Error)]
#[error("auth.{what}: {reason}")]
pub struct AuthMistake {
    what: String,
    reason: String,
}

impl Auth {
    /// What the configuration says.
    ///
    /// # Errors
    /// A file cannot be read, or says nothing that can be used.
    pub fn new(config: Option<&config::Auth>, is_tls: bool) -> Result<Self, AuthMistake> {
        Ok(match config {
            None => Self::Open,
            Some(config::Auth::Htpasswd(config)) => {
                Self::Htpasswd(Box::new(Htpasswd::new(config)?))
            }
            Some(config::Auth::Token(config)) => Self::Token(Box::new(Token::new(config)?)),
            Some(config::Auth::Upstream(config)) => {
                Self::Upstream(Box::new(ByUpstream::new(config, is_tls)?))
            }
        })
    }

    /// Whether a request with these headers may have what it needs.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when it may not, with what the client can show.
    pub async fn check(
        &self,
        client: Client<'_>,
        need: Need<'_>,
        through: Option<&Arc<PullThrough>>,
    ) -> Result<Grant, Error> {
        match (self, need) {
            (_, Need::Nothing) | (Self::Open, _) => {}
            (Self::Htpasswd(htpasswd), _) => Box::pin(htpasswd.check(client.headers)).await?,
            (Self::Token(token), need) => token.check(client, need)?,
            (Self::Upstream(upstream), Need::Login) => return upstream.check_login(client),
            (Self::Upstream(upstream), Need::Catalog) => {
                return Err(upstream.refuse_catalog(client));
            }
            (Self::Upstream(upstream), Need::Pull { repository, probe }) => {
                // A name that no upstream has is told to nobody as anything else is.
                let through = through.ok_or_else(|| Error::Registry(repository.clone()))?;
                let probe = probe.to_string();
                return Box::pin(upstream.check(client, through, repository, &probe)).await;
            }
        }
        Ok(Grant::Own)
    }

    /// A token for what a client shows.
    ///
    /// # Errors
    /// Tokens of this cache are for `auth.upstream` alone; or nobody is called so.
    pub async fn token(
        &self,
        client: Client<'_>,
        registries: &Registries,
    ) -> Result<Response, Error> {
        let Self::Upstream(by_upstream) = self else {
            return Err(Error::Path("/token".to_owned()));
        };
        let only = match registries.all() {
            [through] => Some(&*through.upstream),
            _ => None,
        };
        by_upstream.token(client, only).await
    }

    /// Reads files again that have changed.
    pub fn refresh(&self) {
        match self {
            Self::Open | Self::Upstream(_) => {}
            Self::Htpasswd(htpasswd) => htpasswd.refresh(),
            Self::Token(token) => token.refresh(),
        }
    }
}

/// A header that tells a client what to show; its parts were checked to be fit for one.
fn challenge(text: &str) -> Error {
    Error::Unauthorized(HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("Basic")))
}

/// A text between quotes (RFC 9110, section 5.6.4).
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A path of the host that the client asks, unless a proxy in front says otherwise over this scheme.
fn redirected(client: Client<'_>, scheme: &str, path: &str) -> String {
    let forwarded = client.headers.get(FORWARDED_PROTO).and_then(|value| value.to_str().ok());
    format!("{}://{}{path}", forwarded.unwrap_or(scheme), client.host.unwrap_or_default())
}
