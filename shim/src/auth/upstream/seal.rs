//! Tokens of this cache: what a client showed, encrypted, so that any node that has the same secret
//! can read it and nobody else can.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    error::Unspecified,
    hmac,
    rand::{self, SystemRandom},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use larder_config::Secret;
use serde::{Deserialize, Serialize};

use crate::auth::basic::Login;

/// How long a token holds.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// What the key is for, so that the secret can be used for other things too.
const PURPOSE: &[u8] = b"larder: tokens of auth.upstream";

/// The key of the tokens.
pub struct Seal(RandomizedNonceKey);

#[derive(Serialize, Deserialize)]
struct Sealed {
    /// A Unix time.
    expires_s: u64,
    login: Option<(String, String)>,
}

impl Seal {
    /// With the secret that all nodes share, or with one of this process.
    pub fn new(secret: Option<&Secret>) -> Result<Self, Unspecified> {
        let key: [u8; 32] = match secret {
            Some(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
                hmac::sign(&key, PURPOSE).as_ref().try_into().map_err(|_| Unspecified)?
            }
            None => rand::generate(&SystemRandom::new())?.expose(),
        };
        RandomizedNonceKey::new(&AES_256_GCM_SIV, &key).map(Self)
    }

    /// A token for a client.
    pub fn seal(&self, login: Option<&Login>) -> Option<String> {
        let login = login.map(|login| (login.username.clone(), login.password.expose().to_owned()));
        let sealed = Sealed { expires_s: now_s() + LIFETIME.as_secs(), login };
        let mut content = serde_json::to_vec(&sealed).ok()?;
        let nonce = self.0.seal_in_place_append_tag(Aad::empty(), &mut content).ok()?;
        content.splice(0..0, *nonce.as_ref());
        Some(URL_SAFE_NO_PAD.encode(content))
    }

    /// The client that a token is for; `None` when it is none, or too old.
    pub fn open(&self, token: &str) -> Option<Option<Login>> {
        let mut content = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (nonce, content) = content.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let content = self.0.open_in_place(nonce, Aad::empty(), content).ok()?;
        let Sealed { expires_s, login } = serde_json::from_slice(content).ok()?;
        let login =
            login.map(|(username, password)| Login { username, password: Secret::new(password) });
        (now_s() < expires_s).then_some(login)
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_who_only_to_those_with_the_secret() {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let [one, same, other] =
            ["s", "s", "t"].map(|text| Seal::new(secret(text).as_ref()).unwrap());
        let random = Seal::new(None).unwrap();
        let password = Secret::new("p4ssword".to_owned());
        let alice = Login { username: "alice".to_owned(), password };
        let token = one.seal(Some(&alice)).unwrap();
        assert_eq!(same.open(&token).unwrap().unwrap().password.expose(), "p4ssword");
        assert!(one.open(&one.seal(None).unwrap()).unwrap().is_none());
        for seal in [&other, &random] {
            assert!(seal.open(&token).is_none());
        }
        for nothing in ["", "a", &token[1..], &token[..token.len() - 2], &token.to_lowercase()] {
            assert!(one.open(nothing).is_none(), "{nothing}");
        }
        let content = serde_json::to_vec(&Sealed { expires_s: now_s(), login: None }).unwrap();
        let mut content = content;
        let nonce = one.0.seal_in_place_append_tag(Aad::empty(), &mut content).unwrap();
        content.splice(0..0, *nonce.as_ref());
        assert!(one.open(&URL_SAFE_NO_PAD.encode(content)).is_none(), "an old one");
    }
}
