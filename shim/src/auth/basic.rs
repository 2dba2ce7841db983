//! `Authorization: Basic` (RFC 7617), and what may be kept of it.

use aws_lc_rs::{
    hmac,
    rand::{self, SystemRandom},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::HeaderMap;
use larder_config::Secret;

use super::shown;

/// A user and a password, as a client sent them.
#[derive(Clone)]
pub struct Login {
    pub username: String,
    pub password: Secret,
}

impl Login {
    /// What a request shows; `None` when that is nothing, or nothing that can be read. Two empty texts
    /// are what podman sends when it has no credentials.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let encoded = shown(headers, "basic")?;
        let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        let is_empty = username.is_empty() && password.is_empty();
        let password = Secret::new(password.to_owned());
        (!is_empty).then(|| Self { username: username.to_owned(), password })
    }
}

/// What a login is remembered by: tells nothing of it, and means nothing to another process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Print([u8; 32]);

/// Makes [`Print`]s, with a key of this process.
pub struct Prints(hmac::Key);

impl Prints {
    /// With a new key.
    pub fn new() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let key: [u8; 32] = rand::generate(&SystemRandom::new())?.expose();
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The print of a login, and of what it is good for.
    pub fn of(&self, login: &Login, what: &str) -> Print {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [login.username.as_str(), login.password.expose(), what] {
            context.update(&part.len().to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut print = [0; 32];
        print.copy_from_slice(context.sign().as_ref());
        Print(print)
    }
}
