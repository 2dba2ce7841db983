//! `http.debug`: a listener of its own for what operators ask, and clients must not.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

use crate::metrics;

/// How many may ask at once: others wait.
const CONNECTIONS_MAX: usize = 32;
const HEADERS_DEADLINE: Duration = Duration::from_secs(10);
/// The pause after `accept` failed, which it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The format of `metrics::text` (OpenMetrics 1.0).
const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Answers `GET` of `path` with the metrics, for as long as the process lives.
pub async fn serve(listener: TcpListener, path: String) {
    let path: Arc<str> = path.into();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // A semaphore that is never closed always gives.
        let permit = Arc::clone(&permits).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let path = Arc::clone(&path);
                tokio::spawn(async move {
                    answer_all(stream, &path).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to http.debug was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer_all(stream: TcpStream, path: &str) {
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request, path)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to http.debug broke off");
    }
}

fn answer(request: &Request<Incoming>, path: &str) -> Response<String> {
    if request.method() != Method::GET || request.uri().path() != path {
        let mut response = Response::new(format!("the metrics are at {path}\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(metrics::text());
    response.headers_mut().insert(header::CONTENT_TYPE, METRICS_TYPE);
    response
}
