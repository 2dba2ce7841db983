//! An upstream with users, as a registry with a token server has them.

use std::collections::HashMap;

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::support::Seen;

/// Who may read what.
#[derive(Clone, Default)]
pub struct Accounts {
    /// The upstream's own address.
    pub address: String,
    /// What somebody may not read is answered as if it were not there.
    pub hides: bool,
    /// Repositories that everybody may read.
    pub public: Vec<String>,
    /// The other repositories that a user may read, by name and password.
    pub users: HashMap<(String, String), Vec<String>>,
}

impl Accounts {
    /// What is answered instead of content, to those who may not have it.
    pub fn answer(&self, seen: &Seen) -> Option<Response> {
        if seen.path == "/token" {
            return Some(self.token(seen));
        }
        let user = seen.authorization.as_deref().and_then(|shown| shown.strip_prefix("Bearer of-"));
        let repository = seen.path.strip_prefix("/v2/")?;
        let name = ["/manifests/", "/blobs/", "/tags/list"]
            .iter()
            .find_map(|part| repository.split_once(part))
            .map(|(name, _)| name.to_owned());
        let Some(user) = user else { return Some(self.challenge(name.as_deref())) };
        let Some(name) = name else { return Some(StatusCode::OK.into_response()) };
        let of_user = self.users.iter().filter(|((name, _), _)| name == user);
        let may_read = self.public.contains(&name)
            || of_user.into_iter().any(|(_, repositories)| repositories.contains(&name));
        match (may_read, self.hides) {
            (true, _) => None,
            (false, true) => Some(StatusCode::NOT_FOUND.into_response()),
            (false, false) => Some(self.challenge(Some(&name))),
        }
    }

    fn token(&self, seen: &Seen) -> Response {
        let user = match &seen.authorization {
            None => Some("nobody".to_owned()),
            Some(shown) => {
                let decoded = STANDARD.decode(shown.strip_prefix("Basic ").unwrap()).unwrap();
                let decoded = String::from_utf8(decoded).unwrap();
                let (name, password) = decoded.split_once(':').unwrap();
                let key = (name.to_owned(), password.to_owned());
                self.users.contains_key(&key).then_some(key.0)
            }
        };
        let Some(user) = user else { return StatusCode::UNAUTHORIZED.into_response() };
        Body::from(format!(r#"{{"token":"of-{user}","expires_in":300}}"#)).into_response()
    }

    fn challenge(&self, repository: Option<&str>) -> Response {
        let scope =
            repository.map_or(String::new(), |name| format!(",scope=\"repository:{name}:pull\""));
        let challenge =
            format!("Bearer realm=\"http://{}/token\",service=\"up\"{scope}", self.address);
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
    }
}
