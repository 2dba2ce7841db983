//! How a token is got: from TempAuth (version 1), or from Keystone (version 3).

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use larder_config::{KeystoneDomain, KeystoneIdentity, KeystoneScope, Swift as Config, SwiftLogin};
use reqwest::{Client, Response, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Failure;

/// A login is short, and every request waits for it.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(8);

const AUTH_USER: HeaderName = HeaderName::from_static("x-auth-user");
const AUTH_KEY: HeaderName = HeaderName::from_static("x-auth-key");
const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");
const STORAGE_URL: HeaderName = HeaderName::from_static("x-storage-url");

/// What a login gives.
pub struct Session {
    /// Sent with every request.
    pub token: HeaderValue,
    /// The account: what containers lie below.
    pub account: Url,
}

/// Logs in once.
pub async fn log_in(http: &Client, config: &Config) -> Result<Session, Failure> {
    match &config.login {
        SwiftLogin::V1 { username, password } => {
            let key = storage_header(password.expose())?;
            let request = http.get(&config.auth_url).header(AUTH_USER, username);
            let answer =
                send(config, request.header(AUTH_KEY, key), "username and password").await?;
            let account = header(&answer, &STORAGE_URL);
            session(config, header(&answer, &AUTH_TOKEN), account.as_deref())
        }
        SwiftLogin::V3 { identity, region, interface } => {
            let url = match config.auth_url.strip_suffix("/v3") {
                Some(base) => format!("{base}/v3/auth/tokens"),
                None => format!("{}/v3/auth/tokens", config.auth_url),
            };
            let request = http.post(url).header(CONTENT_TYPE, "application/json");
            let request = request.header(ACCEPT, "application/json");
            let request = request.body(keystone_request(identity).to_string());
            let keys = match identity {
                KeystoneIdentity::Password { .. } => "username, password, domain and tenant",
                KeystoneIdentity::Application { .. } => {
                    "applicationcredentialid and applicationcredentialsecret"
                }
            };
            let answer = send(config, request, keys).await?;
            let token = header(&answer, &SUBJECT_TOKEN);
            let catalog: Catalog = answer.json().await.map_err(|_| no_service(config))?;
            let account = catalog.account(region.as_deref(), interface);
            if token.is_some() && account.is_none() {
                let region = region.as_deref().unwrap_or("any region");
                return Err(Failure::permanent(format!(
                    "storage.swift.region and storage.swift.endpointtype: Keystone's catalog has no \
                     object-store with the endpoint {interface:?} in {region}"
                )));
            }
            session(config, token, account.as_deref())
        }
    }
}

async fn send(
    config: &Config,
    request: reqwest::RequestBuilder,
    keys: &str,
) -> Result<Response, Failure> {
    let answer = request.timeout(LOGIN_TIMEOUT).send().await;
    let answer = answer.map_err(|e| Failure::transport("storage.swift.authurl", &e))?;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            Err(Failure::permanent(format!(
                "storage.swift: {} refused the login with {status}; look at {keys}",
                config.auth_url
            )))
        }
        status if status.is_server_error() => Err(Failure::transient(format!(
            "storage.swift.authurl: {} answered the login with {status}",
            config.auth_url
        ))),
        status => Err(Failure::permanent(format!(
            "storage.swift.authurl: {} answered the login with {status}; look at authurl, and at \
             {keys}",
            config.auth_url
        ))),
    }
}

fn session(
    config: &Config,
    token: Option<String>,
    account: Option<&str>,
) -> Result<Session, Failure> {
    let account = account.and_then(|url| url.trim_end_matches('/').parse::<Url>().ok());
    let account = account.filter(|url| !url.cannot_be_a_base());
    let (token, account) = token.zip(account).ok_or_else(|| no_service(config))?;
    Ok(Session { token: storage_header(&token)?, account })
}

fn no_service(config: &Config) -> Failure {
    Failure::permanent(format!(
        "storage.swift.authurl: {} answered without a token and a storage URL; is it the URL to \
         log in at, with its version?",
        config.auth_url
    ))
}

fn header(answer: &Response, name: &HeaderName) -> Option<String> {
    text(answer.headers(), name).map(str::to_owned)
}

/// A header as text.
pub fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A secret as a header, which no log shows.
fn storage_header(secret: &str) -> Result<HeaderValue, Failure> {
    let value = HeaderValue::from_str(secret);
    let mut value = value.map_err(|_| {
        Failure::permanent("storage.swift.password: it has characters that no header can have")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn keystone_request(identity: &KeystoneIdentity) -> Value {
    match identity {
        KeystoneIdentity::Application { id, secret } => json!({"auth": {"identity": {
            "methods": ["application_credential"],
            "application_credential": {"id": id, "secret": secret.expose()},
        }}}),
        KeystoneIdentity::Password { username, password, domain, scope } => {
            let password = json!({"user": {
                "name": username, "domain": domain_json(domain), "password": password.expose(),
            }});
            let scope = match scope {
                KeystoneScope::Project(name, domain) => {
                    json!({"project": {"name": name, "domain": domain_json(domain)}})
                }
                KeystoneScope::ProjectId(id) => json!({"project": {"id": id}}),
                KeystoneScope::Trust(id) => json!({"OS-TRUST:trust": {"id": id}}),
            };
            let identity = json!({"methods": ["password"], "password": password});
            json!({"auth": {"identity": identity, "scope": scope}})
        }
    }
}

fn domain_json(domain: &KeystoneDomain) -> Value {
    match domain {
        KeystoneDomain::Name(name) => json!({"name": name}),
        KeystoneDomain::Id(id) => json!({"id": id}),
    }
}

/// What Keystone knows of the cloud's services.
#[derive(Deserialize)]
struct Catalog {
    token: Token,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    interface: String,
    region: Option<String>,
    url: String,
}

impl Catalog {
    fn account(self, region: Option<&str>, interface: &str) -> Option<String> {
        let services = self.token.catalog.into_iter().filter(|s| s.kind == "object-store");
        let mut endpoints = services.flat_map(|service| service.endpoints);
        let is_chosen = |endpoint: &Endpoint| {
            endpoint.interface == interface
                && region.is_none_or(|region| endpoint.region.as_deref() == Some(region))
        };
        endpoints.find(is_chosen).map(|endpoint| endpoint.url)
    }
}
