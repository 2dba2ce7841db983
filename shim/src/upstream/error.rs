//! What goes wrong with an upstream.

use std::time::Duration;

use hyper::header::HeaderValue;

/// What the configuration says of the upstream cannot work.
#[derive(Debug, thiserror::Error)]
#[error("upstream {what}: {reason}")]
pub struct UpstreamMistake {
    pub(super) what: String,
    pub(super) reason: String,
}

/// Why the upstream gave nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It has no such thing.
    #[error("not found")]
    NotFound,
    /// It does not give it to us, or we must not show it our credentials.
    #[error("{0}")]
    Denied(String),
    /// Its rate limit is reached.
    #[error("too many requests")]
    TooManyRequests {
        /// Its `Retry-After`.
        retry_after: Option<HeaderValue>,
    },
    /// It cannot be reached, is in trouble, or said something that makes no sense.
    #[error("{0}")]
    Unavailable(String),
}

/// The word in metrics.
pub(super) fn outcome(error: &UpstreamError) -> &'static str {
    match error {
        UpstreamError::NotFound => "not_found",
        UpstreamError::Denied(_) => "denied",
        UpstreamError::TooManyRequests { .. } => "limited",
        UpstreamError::Unavailable(_) => "unavailable",
    }
}

/// What an error of the HTTP client says, without the URL: one that was redirected to may carry
/// a signature that opens it for everybody.
pub(super) struct Reason(pub(super) reqwest::Error);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut cause: Option<&dyn std::error::Error> = Some(&self.0);
        let mut separator = "";
        while let Some(error) = cause {
            write!(f, "{separator}{error}")?;
            (cause, separator) = (error.source(), ": ");
        }
        Ok(())
    }
}

impl From<reqwest::Error> for UpstreamError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unavailable(Reason(error.without_url()).to_string())
    }
}

pub(super) fn late(what: &str, deadline: Duration) -> UpstreamError {
    UpstreamError::Unavailable(format!("{what} did not come within {deadline:?}"))
}
