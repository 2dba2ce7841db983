//! Every metric, by its name: how much the cache saves, and what it costs those who wait for it.
//!
//! They are those of this process, in Prometheus' text format, and served where `http.debug` says.

use std::{sync::LazyLock, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::answer::Source;

/// Of a memory's answer, up to a blob's that is thawed for a minute.
const WAIT_BUCKETS_S: [f64; 9] = [0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 16.0, 64.0];

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    method: &'static str,
    status: u32,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSource {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUpstream {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    upstream: String,
    outcome: &'static str,
}

struct Metrics {
    registry: Registry,
    requests: Family<OfRequest, Counter>,
    sent_bytes: Family<OfSource, Counter>,
    waits: Family<OfSource, Histogram, fn() -> Histogram>,
    errors: Family<OfCode, Counter>,
    upstream_requests: Family<OfOutcome, Counter>,
    upstream_bytes: Family<OfUpstream, Counter>,
    followed_bytes: Counter,
    saved: Counter,
    continued: Counter,
    pulls: Gauge,
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("larder"),
            requests: Family::default(),
            sent_bytes: Family::default(),
            waits: Family::new_with_constructor(|| Histogram::new(WAIT_BUCKETS_S)),
            errors: Family::default(),
            upstream_requests: Family::default(),
            upstream_bytes: Family::default(),
            followed_bytes: Counter::default(),
            saved: Counter::default(),
            continued: Counter::default(),
            pulls: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "requests",
            "Requests that were answered, by where the content came from",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "sent",
            "What clients were sent, by where it came from",
            Unit::Bytes,
            metrics.sent_bytes.clone(),
        );
        registry.register_with_unit(
            "wait",
            "How long requests waited for the head of their answer",
            Unit::Seconds,
            metrics.waits.clone(),
        );
        registry.register(
            "errors",
            "Answers without content, by the code of their error",
            metrics.errors.clone(),
        );
        registry.register(
            "upstream_requests",
            "Requests to upstreams, by host and outcome",
            metrics.upstream_requests.clone(),
        );
        registry.register_with_unit(
            "upstream_received",
            "What upstreams sent of blobs, by host",
            Unit::Bytes,
            metrics.upstream_bytes.clone(),
        );
        registry.register_with_unit(
            "followed",
            "What other nodes sent of blobs that they were pulling",
            Unit::Bytes,
            metrics.followed_bytes.clone(),
        );
        registry.register(
            "upstream_requests_saved",
            "Manifests and blobs that an upstream would have been asked for without this cache",
            metrics.saved.clone(),
        );
        registry.register(
            "continued",
            "Answers that the shared storage began and the upstream went on with",
            metrics.continued.clone(),
        );
        registry.register("pulls", "Blobs that are being pulled now", metrics.pulls.clone());
        metrics
    }
}

/// A request was answered; `status` is 0 when its client left before.
pub fn answered(method: &str, status: u16, source: Option<Source>, sent_bytes: u64) {
    // Whatever else a client sends, it must not become another metric each time.
    let method = match method {
        "GET" => "GET",
        "HEAD" => "HEAD",
        _ => "other",
    };
    let name = Source::name(source);
    let of_request = OfRequest { method, status: status.into(), source: name };
    METRICS.requests.get_or_create(&of_request).inc();
    METRICS.sent_bytes.get_or_create(&OfSource { source: name }).inc_by(sent_bytes);
    if method == "GET" && matches!(source, Some(Source::Local | Source::Shared)) {
        saved();
    }
}

/// The head of an answer was ready after so long.
pub fn waited(source: Option<Source>, wait: Duration) {
    let of_source = OfSource { source: Source::name(source) };
    METRICS.waits.get_or_create(&of_source).observe(wait.as_secs_f64());
}

/// There was no content in an answer.
pub fn failed(code: &'static str) {
    METRICS.errors.get_or_create(&OfCode { code }).inc();
}

/// An upstream was asked.
pub fn asked_upstream(host: &str, outcome: &'static str) {
    let of_outcome = OfOutcome { upstream: host.to_owned(), outcome };
    METRICS.upstream_requests.get_or_create(&of_outcome).inc();
}

/// An upstream sent a piece of a blob.
pub fn received(host: &str, size_bytes: u64) {
    let of_upstream = OfUpstream { upstream: host.to_owned() };
    METRICS.upstream_bytes.get_or_create(&of_upstream).inc_by(size_bytes);
}

/// Another node sent some of a blob.
pub fn followed(size_bytes: u64) {
    METRICS.followed_bytes.inc_by(size_bytes);
}

/// An upstream need not be asked for content.
pub fn saved() {
    METRICS.saved.inc();
}

/// The upstream goes on with an answer that the shared storage began.
pub fn continued() {
    METRICS.continued.inc();
}

/// So many pulls more run.
pub fn pulls(more: i64) {
    METRICS.pulls.inc_by(more);
}

/// All of them, in the OpenMetrics text format.
pub fn text() -> String {
    let mut text = String::new();
    // A String takes everything.
    let _ = encode(&mut text, &METRICS.registry);
    text
}
