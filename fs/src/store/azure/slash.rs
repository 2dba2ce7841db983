//! Blobs whose names begin with a slash, as Distribution 2 wrote them: `/docker/registry/v2/…`. A
//! browser shows them in a directory without a name.
//!
//! The library's paths cannot begin with a slash. So it sends its requests through here, where the
//! slash is put into their paths, into the prefixes of listings, and into the requests within a
//! batch; what the account's key had signed is signed again. From the names in the answers the
//! library itself takes the slash away.

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use object_store::{
    ClientOptions, HeaderValue,
    azure::{AzureAuthorizer, AzureCredential},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
        HttpResponse, HttpService, ReqwestConnector,
    },
};

/// Requests to the storage have it, those for a token do not.
const VERSION: &str = "x-ms-version";
const AUTHORIZATION: &str = "authorization";
const CONTENT_LENGTH: &str = "content-length";
/// Between the lines of a batch.
const LINE_END: &str = "\r\n";

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Connects to a container whose blobs have the slash.
#[derive(Clone, Debug)]
pub struct LeadingSlash {
    /// The path of the container: `/container`, or `/account/container`.
    pub container: String,
    /// What signs again. Tokens and shared access signatures sign nothing of a path.
    pub signer: Option<Arc<Signer>>,
}

/// The key of an account.
#[derive(Debug)]
pub struct Signer {
    /// The account's name.
    pub account: String,
    /// The account's key.
    pub credential: AzureCredential,
}

impl HttpConnector for LeadingSlash {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Connection { client, container: self.clone() }))
    }
}

#[derive(Debug)]
struct Connection {
    client: HttpClient,
    container: LeadingSlash,
}

#[async_trait]
impl HttpService for Connection {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let request = self.container.rewrite(request);
        let request = request.map_err(|e| HttpError::new_boxed(HttpErrorKind::Unknown, e))?;
        self.client.execute(request).await
    }
}

impl LeadingSlash {
    fn rewrite(&self, mut request: HttpRequest) -> Result<HttpRequest> {
        if !request.headers().contains_key(VERSION) {
            return Ok(request);
        }
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        let Some(target) = self.rewrite_target(target) else { return Ok(request) };
        set_target(&mut request, &target)?;
        if target.contains("comp=batch") {
            let batch = request.body().as_bytes().ok_or("a batch in several pieces")?;
            let batch = self.rewrite_batch(std::str::from_utf8(batch)?, &request)?;
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(batch.len()));
            *request.body_mut() = batch.into();
        }
        self.sign(&mut request)?;
        Ok(request)
    }

    /// The slash is put behind the container in the path of a blob, and in front of the prefix of a
    /// listing. Nothing for what is not in the container.
    fn rewrite_target(&self, target: &str) -> Option<String> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (container, blob) = match path.strip_prefix(&self.container)? {
            "" | "/" => (path, String::new()),
            blob if blob.starts_with('/') => (&*self.container, format!("/{blob}")),
            _ => return None,
        };
        let mut pairs: Vec<_> = query.split('&').map(str::to_owned).collect();
        if query.contains("comp=list") {
            match pairs.iter_mut().find(|pair| pair.starts_with("prefix=")) {
                Some(pair) => pair.insert_str("prefix=".len(), "%2F"),
                None => pairs.push("prefix=%2F".to_owned()),
            }
        }
        let mark = if query.is_empty() { "" } else { "?" };
        Some(format!("{container}{blob}{mark}{}", pairs.join("&")))
    }

    /// Each request within a batch is signed for itself.
    fn rewrite_batch(&self, batch: &str, whole: &HttpRequest) -> Result<String> {
        let mut lines: Vec<_> = batch.split(LINE_END).map(str::to_owned).collect();
        let mut part = HttpRequest::new(HttpRequestBody::empty());
        for line in &mut lines {
            let target = line.strip_prefix("DELETE ").and_then(|line| line.split(' ').next());
            if let Some(target) = target.and_then(|target| self.rewrite_target(target)) {
                *part.method_mut() = "DELETE".parse()?;
                *part.uri_mut() = whole.uri().clone();
                set_target(&mut part, &target)?;
                part.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
                part.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("SharedKey"));
                self.sign(&mut part)?;
                *line = format!("DELETE {target} HTTP/1.1");
            } else if let (Some(_), Some((name, value))) = (&self.signer, line.split_once(": "))
                && (value.starts_with("SharedKey") || name == "Date")
                && let Some(value) = part.headers().get(name)
            {
                *line = format!("{name}: {}", value.to_str()?);
            }
        }
        Ok(lines.join(LINE_END))
    }

    fn sign(&self, request: &mut HttpRequest) -> Result<()> {
        let is_signed = |value: &HeaderValue| value.as_bytes().starts_with(b"SharedKey");
        if let Some(signer) = &self.signer
            && request.headers().get(AUTHORIZATION).is_some_and(is_signed)
        {
            request.headers_mut().remove(AUTHORIZATION);
            AzureAuthorizer::new(&signer.credential, &signer.account).try_authorize(request)?;
        }
        Ok(())
    }
}

fn set_target(request: &mut HttpRequest, target: &str) -> Result<()> {
    let uri = request.uri();
    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    *request.uri_mut() = format!("{scheme}://{authority}{target}").parse()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slash_is_put_where_names_are() {
        let container = |path: &str| LeadingSlash { container: path.to_owned(), signer: None };
        for (target, rewritten) in [
            ("/images/docker/a", Some("/images//docker/a")),
            (
                "/images/docker/a?comp=block&blockid=x",
                Some("/images//docker/a?comp=block&blockid=x"),
            ),
            (
                "/images?restype=container&comp=list&prefix=docker%2Fa%2F&delimiter=%2F",
                Some("/images?restype=container&comp=list&prefix=%2Fdocker%2Fa%2F&delimiter=%2F"),
            ),
            (
                "/images?restype=container&comp=list",
                Some("/images?restype=container&comp=list&prefix=%2F"),
            ),
            ("/images?restype=container&comp=batch", Some("/images?restype=container&comp=batch")),
            ("/images-of-others/docker/a", None),
            ("/tenant/oauth2/v2.0/token", None),
        ] {
            assert_eq!(container("/images").rewrite_target(target).as_deref(), rewritten);
        }
        let rewritten = container("/account/images").rewrite_target("/account/images/docker");
        assert_eq!(rewritten.as_deref(), Some("/account/images//docker"));
    }
}
