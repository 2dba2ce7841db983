//! The access log: one line per request, when its answer has ended.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, Uri,
    body::{Body, Frame, SizeHint},
    header::{self, HeaderValue},
};
use tracing::Span;

use crate::{
    answer::Source,
    body::Outgoing,
    metrics,
    pulse::{Awaited, Pulse},
    traces,
};

/// The target of the lines, by which the configuration turns them off.
pub const TARGET: &str = "access";
/// How much of a client's name of itself is logged.
const USER_AGENT_MAX_BYTES: usize = 200;

/// A line that is written when this is dropped: then the answer has ended, one way or another.
pub struct Line {
    id: u64,
    client: SocketAddr,
    method: Method,
    uri: Uri,
    user_agent: Option<HeaderValue>,
    started: Instant,
    span: Span,
    /// 0 when the client left before there was an answer.
    status: u16,
    source: Option<Source>,
    sent_bytes: u64,
}

impl Line {
    /// The line of a request that has just come.
    pub fn of<B>(request: &Request<B>, client: SocketAddr) -> Self {
        static NEXT: LazyLock<AtomicU64> =
            LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(std::process::id())));
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            client,
            method: request.method().clone(),
            uri: request.uri().clone(),
            user_agent: request.headers().get(header::USER_AGENT).cloned(),
            started: Instant::now(),
            span: traces::request(request),
            status: 0,
            source: None,
            sent_bytes: 0,
        }
    }

    /// The span of the request, which ends with this.
    pub fn span(&self) -> Span {
        self.span.clone()
    }

    /// Follows an answer to its end.
    pub fn follow(
        mut self,
        response: Response<Outgoing>,
        source: Option<Source>,
        pulse: Arc<Pulse>,
    ) -> Response<Followed> {
        self.status = response.status().as_u16();
        self.source = source;
        metrics::waited(self.source, self.started.elapsed());
        traces::answered(&self.span, self.status, self.source);
        response.map(|body| Followed { body, line: self, pulse, awaited: None })
    }

    fn user_agent(&self) -> &str {
        let user_agent = self.user_agent.as_ref().and_then(|value| value.to_str().ok());
        let user_agent = user_agent.unwrap_or_default();
        // `to_str` took ASCII only, so this cuts no character in half.
        &user_agent[..user_agent.len().min(USER_AGENT_MAX_BYTES)]
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        metrics::answered(self.method.as_str(), self.status, self.source, self.sent_bytes);
        tracing::info!(
            target: TARGET,
            id = format_args!("{:016x}", self.id),
            client = %self.client,
            method = self.method.as_str(),
            path = self.uri.path(),
            status = self.status,
            bytes = self.sent_bytes,
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            user_agent = self.user_agent(),
            source = Source::name(self.source),
        );
    }
}

/// A body that counts what the connection takes of it, and tells who waits for whom.
pub struct Followed {
    body: Outgoing,
    line: Line,
    pulse: Arc<Pulse>,
    /// While there is no more of it yet.
    awaited: Option<Awaited>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        // hyper has what a whole answer consists of before it is sent; of one that is cut, what
        // was not sent is known.
        if !self.body.is_end_stream() {
            self.line.sent_bytes -= self.body.unsent_bytes().min(self.line.sent_bytes);
        }
    }
}

impl Body for Followed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            let awaited = self.awaited.take().unwrap_or_else(|| self.pulse.awaited());
            self.awaited = Some(awaited);
            return Poll::Pending;
        };
        self.awaited = None;
        match &frame {
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, Bytes::len);
                self.line.sent_bytes += size as u64;
            }
            Some(Err(error)) => {
                tracing::warn!(path = self.line.uri.path(), %error, "an answer is cut")
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
