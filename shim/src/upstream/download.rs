//! A blob on its way from an upstream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{StatusCode, header};
use reqwest::Response;
use tokio::time::timeout;

use crate::metrics;

use super::{UpstreamError, endpoint::Endpoint, error::late, text};

/// How long each next byte of a blob may take.
const STALL_DEADLINE: Duration = Duration::from_secs(30);

/// A blob on its way.
pub struct Download {
    response: Response,
    /// The upstream's URL; without one, it comes from another node.
    endpoint: Option<Arc<Endpoint>>,
    /// The length of the whole blob, when the upstream says so.
    pub size_bytes: Option<u64>,
    /// The offset of the first byte that comes.
    pub offset: u64,
}

impl Download {
    pub(super) fn of(
        response: Response,
        endpoint: Option<Arc<Endpoint>>,
        asked_offset: u64,
    ) -> Result<Self, UpstreamError> {
        let headers = response.headers();
        let (offset, size_bytes) = if response.status() == StatusCode::PARTIAL_CONTENT {
            text(headers, &header::CONTENT_RANGE)
                .and_then(content_range)
                .filter(|(offset, _)| *offset == asked_offset)
                .ok_or_else(|| {
                    UpstreamError::Unavailable("it answered with another range".to_owned())
                })?
        } else {
            let size = text(headers, &header::CONTENT_LENGTH).and_then(|size| size.parse().ok());
            (0, size)
        };
        Ok(Self { response, endpoint, size_bytes, offset })
    }

    /// The next bytes of the blob; `None` behind the last. May be dropped while it waits.
    ///
    /// # Errors
    /// The transfer broke off, or no byte came for 30 s. Another URL is then asked before this one.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let chunk = timeout(STALL_DEADLINE, self.response.chunk()).await;
        let chunk = chunk.map_err(|_| late("the next byte", STALL_DEADLINE));
        let chunk = chunk.and_then(|chunk| Ok(chunk?));
        match (&chunk, &self.endpoint) {
            (Ok(Some(chunk)), Some(endpoint)) => {
                metrics::received(endpoint.url.authority(), chunk.len() as u64);
            }
            (Ok(Some(chunk)), None) => metrics::followed(chunk.len() as u64),
            (Err(_), Some(endpoint)) => endpoint.broke(),
            (Ok(None), _) | (Err(_), None) => {}
        }
        chunk
    }
}

/// The first byte and the whole length of `bytes 5-9/10`; the length may be `*`.
fn content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((first.parse().ok()?, size))
}
