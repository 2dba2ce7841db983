//! What the systems that are reached through HTTP have in common: deadlines, retries, and how
//! their errors are told.

use std::{error::Error as _, time::Duration};

use object_store::{
    ClientConfigKey, ClientOptions, RetryConfig,
    client::{HttpError, HttpErrorKind},
};

/// How long one request may take from its first byte to its last: a part of 8 MiB on a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection is kept that nothing is sent over. Servers close theirs, after no less than
/// 5 s (Apache, Node), and what is sent at that moment is lost. What may be carried out twice is then
/// sent again; what creates an object if there is none may not, so it would fail.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The library's own default is ten attempts in three minutes, in which a client gives up.
const RETRIES_MAX: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(8);
/// As much of what a server says as an operator reads.
const CAUSE_MAX_CHARS: usize = 200;

/// The connections to an endpoint.
pub fn client(endpoint: Option<&str>, skip_verify: bool) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_pool_idle_timeout(IDLE_TIMEOUT)
        .with_allow_http(endpoint.is_some_and(|url| url.starts_with("http://")))
        .with_allow_invalid_certificates(skip_verify)
        .with_config(ClientConfigKey::UserAgent, concat!("larder/", env!("CARGO_PKG_VERSION")))
}

/// How often, and for how long, a request is tried again.
pub fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() }
}

/// Everything that an error says, its causes included, to search in: the library's own types for
/// what a server answered are not public.
pub fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}\n{cause}");
        source = cause.source();
    }
    text
}

/// Whether there was no connection, or no answer: it may be back in a minute. A certificate that is
/// not trusted will not.
pub fn is_unreachable(error: &object_store::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<HttpError>() {
            return matches!(error.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout)
                && !text(error).contains("certificate");
        }
        source = cause.source();
    }
    false
}

/// Why a request failed, in a few words: the code that the server answered with, or else the
/// first cause.
pub fn cause(error: &object_store::Error) -> String {
    let text = text(error);
    let last = || text.lines().last().unwrap_or_default();
    let cause = element(&text, "Code").unwrap_or_else(last);
    let cause: String = cause.chars().take(CAUSE_MAX_CHARS).collect();
    match element(&text, "Region") {
        Some(region) => format!("{cause}: the bucket is in {region}"),
        None => cause,
    }
}

/// An element of what S3, and those that speak like it, answer to a request that fails.
pub fn element<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = answer.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0)
}

#[cfg(test)]
mod tests {
    use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_over_a_connection_that_was_idle_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("its address"));
        let (connected, mut connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut connection, peer)) = listener.accept().await {
                connected.send(peer).expect("somebody counts");
                tokio::spawn(async move {
                    while connection.read(&mut [0; 4096]).await.is_ok_and(|bytes| bytes > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        connection.write_all(answer).await.expect("an answer is sent");
                    }
                });
            }
        });
        let client = ReqwestConnector::default().connect(&client(Some(&url), false));
        let client = client.expect("a client");
        let mut opens_a_connection = async || {
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            *request.uri_mut() = url.parse().expect("a URL");
            client.execute(request).await.expect("an answer");
            connections.try_recv().is_ok()
        };
        // The first does, and then one finds what another left.
        while opens_a_connection().await {}
        // Only time itself makes a connection idle.
        tokio::time::sleep(IDLE_TIMEOUT).await;
        assert!(opens_a_connection().await);
    }
}
