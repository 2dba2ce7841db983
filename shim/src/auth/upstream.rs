//! `auth.upstream`: a client may see what the upstream lets it see.
//!
//! Before anything of a repository is answered, cached or not, the upstream is asked for the very
//! thing that the client asks for: without credentials first, so that what is public takes nobody's
//! there, then with the client's own. Its word holds for `ttl`, for that repository and those credentials.
//!
//! Clients get tokens from this cache ([`seal`]), because docker takes what is public without
//! credentials from no registry that wants `Basic`.

mod proofs;
mod seal;

use std::sync::Arc;

use hyper::{
    HeaderMap,
    header::{self, HeaderValue},
};
use larder_config::{self as config, Outage};
use larder_layout::Repository;

use self::{
    proofs::{Proof, Proofs},
    seal::Seal,
};
use super::{
    AuthMistake, Client, Grant, basic::Login, basic::Prints, challenge, quoted, redirected,
    token::Refusal,
};
use crate::{
    answer::Response,
    body::Body,
    error::Error,
    flights::Flights,
    shim::PullThrough,
    upstream::{Login as Shown, Upstream, UpstreamError},
};

/// Where clients get tokens.
const TOKEN_PATH: &str = "/token";
const SERVICE: &str = "larder";

/// Who may see what, by the word of the upstreams.
pub struct ByUpstream {
    config: config::UpstreamAuth,
    /// Whether clients reach this cache over TLS.
    is_tls: bool,
    seal: Seal,
    prints: Prints,
    proofs: Arc<Proofs>,
    /// Questions under way: whose, and for what.
    asked: Arc<Flights<(Proof, String), Answer>>,
}

/// The upstream as the client may ask it, or what it says instead.
type Answer = Result<Arc<Upstream>, UpstreamError>;

/// What a request shows.
enum Shows {
    Nothing,
    /// What is no token of this cache, or no longer.
    Nonsense,
    /// A token or a password: of nobody in particular, or of a user.
    Client(Option<Login>),
}

impl ByUpstream {
    pub fn new(config: &config::UpstreamAuth, is_tls: bool) -> Result<Self, AuthMistake> {
        let mistake = |error: aws_lc_rs::error::Unspecified| AuthMistake {
            what: "upstream".to_owned(),
            reason: error.to_string(),
        };
        Ok(Self {
            config: config.clone(),
            is_tls,
            seal: Seal::new(config.secret.as_ref()).map_err(mistake)?,
            prints: Prints::new().map_err(mistake)?,
            proofs: Arc::new(Proofs::new(config.ttl)),
            asked: Flights::new(),
        })
    }

    /// Whether a request shows anything at all that this cache gave, or could give.
    pub fn check_login(&self, client: Client<'_>) -> Result<Grant, Error> {
        match self.shows(client.headers) {
            Shows::Client(_) => Ok(Grant::Own),
            Shows::Nothing => Err(self.challenge(client, None, Refusal::Missing)),
            Shows::Nonsense => Err(self.challenge(client, None, Refusal::Invalid)),
        }
    }

    /// Nobody is told of repositories that it might not see.
    pub fn refuse_catalog(&self, client: Client<'_>) -> Error {
        self.challenge(client, Some("registry:catalog:*"), Refusal::Insufficient)
    }

    /// Whether a client may pull from a repository: whether the upstream gives it what it asks for,
    /// which is `probe` below the repository.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when the upstream does not say so, for whatever reason; and when it says
    /// nothing, what the declared policy makes of that.
    pub async fn check(
        &self,
        client: Client<'_>,
        through: &PullThrough,
        repository: &Repository,
        probe: &str,
    ) -> Result<Grant, Error> {
        let scope = format!("repository:{repository}:pull");
        let refused = |refusal| self.challenge(client, Some(&scope), refusal);
        let login = match self.shows(client.headers) {
            Shows::Nothing => None,
            Shows::Nonsense => return Err(refused(Refusal::Invalid)),
            Shows::Client(login) => login,
        };
        let missing = if login.is_some() { Refusal::Insufficient } else { Refusal::Missing };
        let anyones = Proof { repository: repository.clone(), print: None };
        if self.proofs.holds(&anyones).is_some() {
            return Ok(Grant::Own);
        }
        let own = login.map(|login| {
            let print = Some(self.prints.of(&login, ""));
            (Proof { print, ..anyones.clone() }, login)
        });
        if let Some(upstream) = own.as_ref().and_then(|(proof, _)| self.proofs.holds(proof)) {
            return Ok(Grant::Client(upstream.for_request_of(&through.upstream)));
        }
        let is_asked = own.is_some() && self.proofs.was_refused(&anyones);
        if !is_asked {
            match self.ask(through, anyones.clone(), None, probe).await {
                Ok(_) => return Ok(Grant::Own),
                // A limit on everybody's requests says nothing of the client's own.
                Err(UpstreamError::TooManyRequests { .. }) if own.is_some() => {}
                Err(error) if !is_answer(&error) => {
                    return self.without_upstream(&error, &anyones, own.map(|(proof, _)| proof));
                }
                Err(_) => {}
            }
        }
        let Some((proof, login)) = own else { return Err(refused(missing)) };
        match self.ask(through, proof.clone(), Some(login), probe).await {
            Ok(upstream) => Ok(Grant::Client(upstream)),
            Err(error) if is_answer(&error) => Err(refused(missing)),
            Err(error) => self.without_upstream(&error, &anyones, Some(proof)),
        }
    }

    /// What the declared policy makes of an upstream that cannot say who may see what.
    fn without_upstream(
        &self,
        error: &UpstreamError,
        anyones: &Proof,
        own: Option<Proof>,
    ) -> Result<Grant, Error> {
        let found = match self.config.outage {
            Outage::Deny => None,
            Outage::Grace(grace) => {
                let held = |proof: &Proof| self.proofs.held_within(proof, grace);
                held(anyones).map(|_| Grant::Own).or(own.as_ref().and_then(held).map(Grant::Client))
            }
            Outage::PublicOnly => self.proofs.ever_held(anyones).then_some(Grant::Own),
        };
        let reason = || Error::Upstream(format!("it cannot say who may see this: {error}"));
        found.ok_or_else(reason)
    }

    /// Asks the upstream, once for all who ask the same at the same time.
    async fn ask(
        &self,
        through: &PullThrough,
        proof: Proof,
        login: Option<Login>,
        probe: &str,
    ) -> Result<Arc<Upstream>, UpstreamError> {
        // What it was asked as before may still hold a token.
        let known = self.proofs.known(&proof).map(|known| known.for_request_of(&through.upstream));
        let upstream = known.unwrap_or_else(|| {
            let shown =
                login.map(|Login { username, password }| Shown::Password { username, password });
            Arc::new(through.upstream.on_behalf_of(shown))
        });
        let key = (proof, probe.to_owned());
        let work = {
            let (proofs, (proof, probe)) = (Arc::clone(&self.proofs), key.clone());
            async move {
                let answer = upstream.may_read(&proof.repository, &probe).await;
                match &answer {
                    Ok(()) => proofs.note(proof, Arc::clone(&upstream)),
                    Err(error) if is_answer(error) => {
                        let (repository, is_public) = (&proof.repository, proof.print.is_none());
                        tracing::debug!(%repository, is_public, %error, "a client is not let in");
                        proofs.refuse(proof);
                    }
                    Err(_) => {}
                }
                answer.map(|()| upstream)
            }
        };
        let ended =
            || UpstreamError::Unavailable("a question to it ended without a word".to_owned());
        self.asked.join(key, work).await.unwrap_or_else(|| Err(ended()))
    }

    /// `/token`: a token for what a client shows, to be shown instead. A password is tried at the
    /// upstream when there is just one; what it may see is another question.
    ///
    /// # Errors
    /// The upstream does not know the user.
    pub async fn token(
        &self,
        client: Client<'_>,
        upstream: Option<&Upstream>,
    ) -> Result<Response, Error> {
        let login = Login::of(client.headers);
        if let (Some(Login { username, password }), Some(upstream)) = (&login, upstream) {
            let (username, password) = (username.clone(), password.clone());
            let as_user = upstream.on_behalf_of(Some(Shown::Password { username, password }));
            if as_user.knows().await.is_err_and(|error| is_answer(&error)) {
                return Err(self.challenge(client, None, Refusal::Missing));
            }
        }
        let token = self.seal.seal(login.as_ref()).ok_or(Error::Busy("no token can be made"))?;
        let lifetime_s = seal::LIFETIME.as_secs();
        let grant = serde_json::json!({
            "token": token, "access_token": token, "expires_in": lifetime_s
        });
        let mut response = Response::new(Body::Memory(grant.to_string().into()));
        let headers = &mut response.headers;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    fn shows(&self, headers: &HeaderMap) -> Shows {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Shows::Nothing };
        let value = value.to_str().unwrap_or_default();
        match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                self.seal.open(token).map_or(Shows::Nonsense, Shows::Client)
            }
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("basic") => {
                Shows::Client(Login::of(headers))
            }
            _ => Shows::Nonsense,
        }
    }

    fn challenge(&self, client: Client<'_>, scope: Option<&str>, refusal: Refusal) -> Error {
        let realm = match &self.config.realm {
            Some(realm) => realm.clone(),
            None => redirected(client, if self.is_tls { "https" } else { "http" }, TOKEN_PATH),
        };
        let scope = scope.map_or(String::new(), |scope| format!(",scope={}", quoted(scope)));
        let error = refusal.parameter();
        challenge(&format!("Bearer realm={},service=\"{SERVICE}\"{scope}{error}", quoted(&realm)))
    }
}

/// Whether an upstream has said that it does not give something, and not that it cannot.
fn is_answer(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::NotFound | UpstreamError::Denied(_) => true,
        UpstreamError::TooManyRequests { .. } | UpstreamError::Unavailable(_) => false,
    }
}
