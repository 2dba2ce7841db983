//! `Via` (RFC 9110, section 7.6.3): which caches a request has come through, so that caches that are
//! each other's upstream by mistake say so instead of waiting for each other.

use std::hash::{BuildHasher, RandomState};

use hyper::{
    HeaderMap,
    header::{self, HeaderValue},
};

use crate::error::Error;

/// The longest `Via` that is sent on. What is longer has come through more caches than anybody has.
const VIA_MAX_BYTES: usize = 2048;

/// What this cache calls itself in `Via`: no other is called so, and nothing of the host is told.
pub struct Via {
    own: String,
}

impl Default for Via {
    fn default() -> Self {
        let random = RandomState::new().hash_one(std::process::id());
        Self { own: format!("1.1 larder-{random:016x}") }
    }
}

impl Via {
    /// What is sent to the upstream for a request with these headers; for one of no client, there are
    /// none.
    ///
    /// # Errors
    /// [`Error::Loop`] when the request has been here before.
    pub fn of(&self, headers: &HeaderMap) -> Result<HeaderValue, Error> {
        let mut before = String::new();
        for value in headers.get_all(header::VIA) {
            before += value.to_str().unwrap_or_default();
            before += ", ";
        }
        if before.split(", ").any(|cache| cache == self.own) || before.len() > VIA_MAX_BYTES {
            return Err(Error::Loop);
        }
        HeaderValue::from_str(&format!("{before}{}", self.own)).map_err(|_| Error::Loop)
    }
}
