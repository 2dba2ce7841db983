//! OpenTelemetry traces: a span for each request, and one for each request to an upstream. They are
//! configured by the environment, as its specification says: `OTEL_EXPORTER_OTLP_ENDPOINT` and others.

use std::{env, error::Error};

use hyper::{
    HeaderMap, Request,
    header::{HeaderName, HeaderValue},
};
use opentelemetry::{
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Span, Subscriber, field::Empty, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    registry::LookupSpan,
};

use crate::answer::Source;

/// The target of the spans. No log takes them.
const TARGET: &str = "traces";
/// The variables without which nothing is traced.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Where spans go.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// What the environment configures, if it does.
    ///
    /// # Errors
    /// What it says cannot work.
    pub fn new() -> Result<Option<Self>, Box<dyn Error>> {
        if ENDPOINTS.iter().all(|name| env::var_os(name).is_none()) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().build()?;
        let resource = Resource::builder();
        let resource = match env::var_os("OTEL_SERVICE_NAME") {
            None => resource.with_service_name("larder-shim"),
            Some(_) => resource,
        };
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
        Ok(Some(Self(provider.with_resource(resource.build()).build())))
    }

    /// What takes the spans.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let layer = tracing_opentelemetry::layer().with_tracer(self.0.tracer("larder-shim"));
        layer.with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }

    /// Sends what is not sent yet.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last traces are lost");
        }
    }
}

/// The span of a request, below the one that its client names.
pub fn request<B>(request: &Request<B>) -> Span {
    let span = info_span!(
        target: TARGET,
        "request",
        otel.name = request.method().as_str(),
        otel.kind = "server",
        http.request.method = request.method().as_str(),
        url.path = request.uri().path(),
        http.response.status_code = Empty,
        larder.source = Empty,
    );
    if !span.is_disabled() {
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // An error says that nobody traces.
        let _ = span.set_parent(parent);
    }
    span
}

/// A request is answered.
pub fn answered(span: &Span, status: u16, source: Option<Source>) {
    span.record("http.response.status_code", status);
    span.record("larder.source", Source::name(source));
}

/// The span of a request to an upstream.
pub fn upstream(host: &str, method: &str, path: &str) -> Span {
    info_span!(
        target: TARGET,
        "upstream",
        otel.name = method,
        otel.kind = "client",
        http.request.method = method,
        server.address = host,
        url.path = path,
    )
}

/// The headers that tell an upstream of the current span.
pub fn headers() -> HeaderMap {
    let (span, mut headers) = (Span::current(), HeaderMap::new());
    if !span.is_disabled() {
        let mut injected = InjectedHeaders(&mut headers);
        TraceContextPropagator::new().inject_context(&span.context(), &mut injected);
    }
    headers
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct InjectedHeaders<'a>(&'a mut HeaderMap);

impl Injector for InjectedHeaders<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
