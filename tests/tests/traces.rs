//! OpenTelemetry: what arrives at a collector.

use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use larder_tests::{Answer, Process, Registry, Sandbox, Server, bin, until};
use reqwest::blocking::Client;

const TIMEOUT: Duration = Duration::from_secs(30);
const TRACE: [u8; 16] = *b"\x0a\xf7\x65\x19\x16\xcd\x43\xdd\x84\x48\xeb\x21\x1c\x80\x31\x9c";

fn contains(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

/// "OpenTelemetry traces if configured": a request is part of its client's trace, and so is what the
/// upstream is asked for it.
#[test]
fn a_request_and_what_it_asks_of_the_upstream_are_one_trace() {
    let Some(sandbox) = Sandbox::enter(&["larder-shim"]) else { return };
    let traces = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let received = Arc::clone(&traces);
    let collector = Server::start(&sandbox, move |request| {
        assert_eq!((&*request.method, &*request.path), ("POST", "/v1/traces"));
        received.lock().expect("no panic").push(request.body.clone());
        Answer::new(200, "")
    });
    let parents = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&parents);
    let upstream = Server::start(&sandbox, move |request| {
        seen.lock().expect("no panic").push(request.header("traceparent").to_owned());
        Answer::new(404, "")
    });

    let address = sandbox.address();
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: /nowhere}}}}\n\
         http: {{addr: \"{address}\"}}\nproxy: {{remoteurl: 'http://{}'}}\n",
        upstream.address()
    );
    let mut shim = Command::new(bin("larder-shim"));
    shim.arg("serve").arg("--config").arg(sandbox.file("config.yml", &config));
    shim.arg("--root").arg(sandbox.directory("root"));
    shim.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address()));
    let mut shim = Process::start(&sandbox, "shim", shim);
    shim.wait_until("/healthz", || Registry::at(&address).is_ok("/healthz").then_some(()));
    let trace = TRACE.map(|byte| format!("{byte:02x}")).concat();
    let request = Client::new().get(format!("http://{address}/v2/library/app/manifests/latest"));
    let request = request.header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
    assert_eq!(request.send().expect("an answer").status(), 404);
    shim.stop();

    let parents = parents.lock().expect("no panic");
    assert!(
        parents.iter().any(|parent| parent.starts_with(&format!("00-{trace}-"))),
        "{parents:?}"
    );
    let body = until("spans", TIMEOUT, || {
        let bodies = traces.lock().expect("no panic").concat();
        (!bodies.is_empty()).then_some(bodies)
    });
    let upstream = upstream.address().as_bytes();
    let parts: [&[u8]; 5] = [
        b"larder-shim",
        &TRACE,
        b"/v2/library/app/manifests/latest",
        b"manifests/latest",
        upstream,
    ];
    for part in parts {
        assert!(contains(&body, part), "no {} in the spans", String::from_utf8_lossy(part));
    }
}
