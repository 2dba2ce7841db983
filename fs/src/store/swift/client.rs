//! Requests to one container: with a token, within a deadline, and repeated when that helps.

use std::{
    error::Error as StdError,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};
use larder_config::Swift as Config;
use object_store::Error;
use reqwest::{Response, Url, redirect::Policy};
use tokio::sync::{Mutex, OnceCell};

use super::login::{self, Session};

/// How long one request may take from its first byte to its last: a part on a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RETRIES_MAX: u32 = 3;
/// After so long nothing is tried again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(8);
/// After so long a server that cannot be reached is not tried again.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(4);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// A login that failed is not tried again for so long: those who waited for it share the answer,
/// and an account is not locked for too many wrong passwords.
const FAILED_LOGIN_TTL: Duration = Duration::from_secs(1);

/// What the sentences of failures name, the section itself last.
const KEYS: [&str; 6] = [
    "storage.swift.authurl",
    "storage.swift.container",
    "storage.swift.insecureskipverify",
    "storage.swift.password",
    "storage.swift.region",
    "storage.swift",
];

const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// A container, and who may use it.
pub struct Client {
    http: reqwest::Client,
    config: Config,
    session: Mutex<Cached>,
    container_is_there: OnceCell<()>,
}

enum Cached {
    Nothing,
    Session(Arc<Session>),
    Failed(Failure, Instant),
}

/// One request. Its body can be sent more than once.
pub struct Request<'a> {
    method: Method,
    /// The object; empty for the container itself.
    name: &'a str,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Bytes,
}

impl<'a> Request<'a> {
    /// A request without a body.
    pub fn new(method: Method, name: &'a str) -> Self {
        let (query, headers, body) = (Vec::new(), HeaderMap::new(), Bytes::new());
        Self { method, name, query, headers, body }
    }

    /// With one more parameter.
    pub fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// With one more header.
    pub fn header(mut self, name: impl Into<HeaderName>, value: HeaderValue) -> Self {
        self.headers.insert(name.into(), value);
        self
    }

    /// With a body.
    pub fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Failure {
    sentence: String,
    status: Option<StatusCode>,
    /// For how long it may be tried again.
    retry_within: Duration,
}

impl Failure {
    /// What trying again does not change.
    pub fn permanent(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), status: None, retry_within: Duration::ZERO }
    }

    /// What may pass.
    pub fn transient(sentence: impl Into<String>) -> Self {
        Self { retry_within: RETRY_TIMEOUT, ..Self::permanent(sentence) }
    }

    /// No answer, or only a part of one. `key` is what to look at then.
    pub fn transport(key: &str, error: &reqwest::Error) -> Self {
        let mut cause: &dyn StdError = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let cause = cause.to_string();
        let host = error.url().map_or("the server", |url| url.host_str().unwrap_or_default());
        if error.is_connect() {
            let advice = match cause.contains("certificate") {
                true => "; add its CA to the system's, or see storage.swift.insecureskipverify",
                false => "",
            };
            let sentence = format!("{key}: {host} cannot be reached: {cause}{advice}");
            let is_mistake = !advice.is_empty();
            let retry_within = if is_mistake { Duration::ZERO } else { UNREACHABLE_TIMEOUT };
            return Self { retry_within, ..Self::permanent(sentence) };
        }
        if error.is_timeout() {
            return Self::transient(format!("{key}: {host} did not answer in time"));
        }
        Self::transient(format!("{key}: the connection to {host} broke: {cause}"))
    }

    /// The status of the answer, when there was one.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// The key of the configuration to look at, when trying again changes nothing.
    pub fn mistaken_key(&self) -> Option<&'static str> {
        let is_named = |key: &&str| self.sentence.contains(key);
        KEYS.into_iter().find(is_named).filter(|_| self.retry_within.is_zero())
    }

    /// The same, as the library has it.
    pub fn of(self, name: &str) -> Error {
        let (path, status) = (name.to_owned(), self.status);
        let source = Box::new(self);
        match status {
            Some(StatusCode::NOT_FOUND) => Error::NotFound { path, source },
            Some(StatusCode::PRECONDITION_FAILED) => Error::Precondition { path, source },
            Some(StatusCode::UNAUTHORIZED) => Error::Unauthenticated { path, source },
            Some(StatusCode::FORBIDDEN) => Error::PermissionDenied { path, source },
            _ => Error::Generic { store: "Swift", source },
        }
    }
}

/// The attempts of one request.
struct Attempts {
    started: Instant,
    retries: u32,
}

impl Attempts {
    fn new() -> Self {
        Self { started: Instant::now(), retries: 0 }
    }

    /// Waits until the next attempt, or gives the failure back when there is to be none.
    async fn next(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.retries == RETRIES_MAX || self.started.elapsed() >= failure.retry_within {
            return Err(failure);
        }
        tokio::time::sleep(FIRST_BACKOFF * 2_u32.pow(self.retries)).await;
        self.retries += 1;
        Ok(())
    }
}

impl Client {
    /// A client that has sent nothing yet.
    pub fn new(config: Config) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .danger_accept_invalid_certs(config.skip_verify)
            // The token would go along to whatever host a redirect names.
            .redirect(Policy::none())
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .build();
        let http = http.map_err(|e| format!("storage.swift: no HTTP client: {e}"))?;
        let session = Mutex::new(Cached::Nothing);
        Ok(Self { http, config, session, container_is_there: OnceCell::new() })
    }

    /// The container's name.
    pub fn container(&self) -> &str {
        &self.config.container
    }

    /// Sends `request` until its answer has begun.
    pub async fn send(&self, request: Request<'_>) -> Result<Response, Failure> {
        let mut attempts = Attempts::new();
        loop {
            match self.send_with_token(&request).await {
                Err(failure) => attempts.next(failure).await?,
                answer => return answer,
            }
        }
    }

    /// Sends `request` until all of its answer is there.
    pub async fn fetch(&self, request: Request<'_>) -> Result<http::Response<Bytes>, Failure> {
        let mut attempts = Attempts::new();
        loop {
            match self.fetch_once(&request).await {
                Err(failure) => attempts.next(failure).await?,
                answer => return answer,
            }
        }
    }

    async fn fetch_once(&self, request: &Request<'_>) -> Result<http::Response<Bytes>, Failure> {
        let answer = self.send_with_token(request).await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(|e| Failure::transport("storage.swift", &e))?;
        let mut whole = http::Response::new(body);
        (*whole.status_mut(), *whole.headers_mut()) = (status, headers);
        Ok(whole)
    }

    /// Sends `request` once, or twice when the token is no longer good.
    async fn send_with_token(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let session = self.session(None).await?;
        let mut answer = self.send_once(request, &session).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let session = self.session(Some(&session)).await?;
            answer = self.send_once(request, &session).await?;
        }
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::NOT_FOUND => Err(self.not_found(request).await),
            _ => Err(refusal(&self.config, request, answer).await),
        }
    }

    async fn send_once(
        &self,
        request: &Request<'_>,
        session: &Session,
    ) -> Result<Response, Failure> {
        let url = self.url(session, request);
        let builder =
            self.http.request(request.method.clone(), url).headers(request.headers.clone());
        let mut builder = builder.header(AUTH_TOKEN, session.token.clone());
        if request.method == Method::PUT {
            // An empty body is sent without one, and Swift wants to know.
            builder = builder.header(CONTENT_LENGTH, request.body.len());
        }
        let answer = builder.body(request.body.clone()).send().await;
        let keys = "storage.swift (authurl, and with Keystone region and endpointtype)";
        answer.map_err(|e| Failure::transport(keys, &e))
    }

    fn url(&self, session: &Session, request: &Request<'_>) -> Url {
        let mut url = session.account.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(&self.config.container);
            if !request.name.is_empty() {
                segments.extend(request.name.split('/'));
            }
        }
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        url
    }

    /// The session, which is a new one if the cached one is `stale`. One login at a time, and
    /// whoever waits for it takes what it gave.
    async fn session(&self, stale: Option<&Arc<Session>>) -> Result<Arc<Session>, Failure> {
        let mut cached = self.session.lock().await;
        match &*cached {
            Cached::Session(session) if stale.is_none_or(|stale| !Arc::ptr_eq(stale, session)) => {
                return Ok(Arc::clone(session));
            }
            Cached::Failed(failure, at) if at.elapsed() < FAILED_LOGIN_TTL => {
                return Err(failure.clone());
            }
            _ => {}
        }
        match login::log_in(&self.http, &self.config).await {
            Ok(session) => {
                let session = Arc::new(session);
                *cached = Cached::Session(Arc::clone(&session));
                Ok(session)
            }
            Err(failure) => {
                *cached = Cached::Failed(failure.clone(), Instant::now());
                Err(failure)
            }
        }
    }

    /// Only a missing object is a miss: a missing container is a mistake in the configuration.
    async fn not_found(&self, request: &Request<'_>) -> Failure {
        if request.name.is_empty() || request.method == Method::PUT {
            return self.no_container();
        }
        if let Err(failure) =
            self.container_is_there.get_or_try_init(|| self.find_container()).await
        {
            return failure;
        }
        let sentence = format!("{} is not there", request.name);
        Failure { status: Some(StatusCode::NOT_FOUND), ..Failure::permanent(sentence) }
    }

    async fn find_container(&self) -> Result<(), Failure> {
        let session = self.session(None).await?;
        let answer = self.send_once(&Request::new(Method::HEAD, ""), &session).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Err(self.no_container()),
            status if status.is_server_error() => {
                Err(Failure::transient(format!("Swift answered HEAD with {status}")))
            }
            // Who may use its objects may still not be allowed to look at the container.
            _ => Ok(()),
        }
    }

    fn no_container(&self) -> Failure {
        Failure::permanent(format!(
            "storage.swift.container: there is no container {:?}; create it, or look at the name \
             and at the project",
            self.config.container
        ))
    }
}

/// What an answer that is no success means.
async fn refusal(config: &Config, request: &Request<'_>, answer: Response) -> Failure {
    let status = answer.status();
    let what = format!("Swift answered {} with {status}", request.method);
    let failure = match status {
        // The token is a new one: who may not do this is told 403. Keystone may be overloaded, which
        // Swift takes for a no.
        StatusCode::UNAUTHORIZED => Failure::transient(format!(
            "{what} to a token that {} has just issued; does Swift know it?",
            config.auth_url
        )),
        StatusCode::FORBIDDEN => Failure::permanent(format!(
            "storage.swift.container: {what}; this login may not use the container {:?}",
            config.container
        )),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Failure::transient(what),
        // Rate limiting, as Swift spells it.
        _ if status.as_u16() == 498 => Failure::transient(what),
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::INSUFFICIENT_STORAGE => Failure::permanent(
            format!("{what}: over a quota, or storage.swift.chunksize is too large for it"),
        ),
        _ if status.is_server_error() => Failure::transient(what),
        _ => {
            let body = answer.text().await.unwrap_or_default();
            let start: String = body.chars().filter(|c| !c.is_control()).take(200).collect();
            Failure::permanent(format!("{what}: {start}"))
        }
    };
    Failure { status: Some(status), ..failure }
}
