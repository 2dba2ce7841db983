//! Who may see what: the one place where a request is let in or refused.
//!
//! What a request needs is decided by its [`Need`], before anything is looked up. So no answer tells
//! whether there is what the client may not see.

mod basic;
mod htpasswd;
mod token;
mod watched;

use hyper::{HeaderMap, header::HeaderValue};
use larder_config as config;
use larder_layout::Repository;

use self::{htpasswd::Htpasswd, token::Token};
use crate::error::Error;

/// What a client must be allowed for a request.
#[derive(Clone, Debug)]
pub enum Need {
    /// Nothing: the operator's own probes.
    Nothing,
    /// To be somebody.
    Login,
    /// To pull from a repository, by its name in the directory.
    Pull(Repository),
    /// To list every repository.
    Catalog,
}

/// How clients are told apart.
pub enum Auth {
    /// Not at all: everyone may see everything.
    Open,
    /// `auth.htpasswd`
    Htpasswd(Box<Htpasswd>),
    /// `auth.token`
    Token(Box<Token>),
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
    pub fn new(config: Option<&config::Auth>) -> Result<Self, AuthMistake> {
        Ok(match config {
            None => Self::Open,
            Some(config::Auth::Htpasswd(config)) => {
                Self::Htpasswd(Box::new(Htpasswd::new(config)?))
            }
            Some(config::Auth::Token(config)) => Self::Token(Box::new(Token::new(config)?)),
        })
    }

    /// Whether a request with these headers may have what it needs.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when it may not, with what the client can show.
    pub async fn check(&self, headers: &HeaderMap, need: &Need) -> Result<(), Error> {
        match (self, need) {
            (_, Need::Nothing) | (Self::Open, _) => Ok(()),
            (Self::Htpasswd(htpasswd), _) => htpasswd.check(headers).await,
            (Self::Token(token), need) => token.check(headers, need),
        }
    }

    /// Reads files again that have changed.
    pub fn refresh(&self) {
        match self {
            Self::Open => {}
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
