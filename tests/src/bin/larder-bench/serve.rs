//! `scripts/bench serve`: the registry against nginx and docker-registry.

use std::{path::Path, sync::Arc, thread, time::Duration};

use larder_tests::{Blob, Sandbox, Upstream, random_bytes};
use serde_json::json;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::{
    load::{Load, Yield},
    meter::{self, median},
    servers::{self, Certificate, Server},
};

pub const NEEDS: [&str; 6] =
    ["larder-fs", "larder-shim", "nginx", "docker-registry", "openssl", "/dev/fuse"];
pub const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;
pub const BLOB_BYTES: usize = 512 << 20;
pub const LARGE_BYTES: usize = 1 << 30;
const MANIFEST_BYTES: usize = 2300;
pub const ROUNDS: usize = 3;
const SLICE: Duration = Duration::from_secs(2);
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A measured slice of time.
#[derive(Clone, Copy)]
pub struct Figure {
    pub cpu: Duration,
    pub count: Yield,
}

impl Figure {
    pub fn cpu_per_gib(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.count.bytes as f64 / GIB)
    }

    pub fn gib_per_second(&self) -> f64 {
        self.count.bytes as f64 / GIB / self.count.elapsed.as_secs_f64()
    }

    fn answers_per_second(&self) -> f64 {
        self.count.answers as f64 / self.count.elapsed.as_secs_f64()
    }

    fn cpu_us_per_answer(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count.answers as f64
    }
}

/// Measures what is served warm and prints it.
///
/// # Panics
/// When a server does not serve what it should.
pub fn run() {
    let sandbox = Sandbox::enter(&NEEDS).expect("what the benchmark needs");
    let certificate = Certificate::new(&sandbox);
    let config = Blob::new("application/vnd.oci.image.config.v1+json", b"{}".to_vec());
    let blob = Blob::new(LAYER, random_bytes(BLOB_BYTES));
    let large = Blob::new(LAYER, random_bytes(LARGE_BYTES));
    let manifest = manifest(&config, &blob);

    let upstream = Upstream::start(&sandbox);
    servers::fill(&upstream.registry(), &[&config, &blob, &large], &manifest);
    let nginx = servers::nginx(&sandbox, &[&blob, &large, &manifest], &certificate);
    let larder = servers::larder(&sandbox, "warm", upstream.storage(), None, Some(&certificate));
    let distribution = servers::distribution(&upstream);
    let [blob, large] = [blob, large].map(|blob| servers::path("blobs", &blob.digest));
    let manifest = servers::path("manifests", &manifest.digest);
    for server in [&larder, &nginx, &distribution] {
        for path in [&blob, &large, &manifest] {
            warm(server, path);
        }
    }

    let all = [&larder, &nginx, &distribution];
    println!("\nWarm 512 MiB blob, plain HTTP");
    for connections in [1, 16, 64] {
        blobs(&all, &blob, connections, None);
    }
    println!("\nWarm 512 MiB blob, TLS 1.3");
    let tls = client_config(&certificate.path());
    for connections in [1, 16] {
        blobs(&[&larder, &nginx], &blob, connections, Some(&tls));
    }
    for method in ["GET", "HEAD"] {
        println!("\nManifest of {MANIFEST_BYTES} bytes, {method}, 16 connections");
        manifests(&all, method, &manifest);
    }
    println!("\nManifest, GET, 1 connection, while 16 others read the blob");
    for server in all {
        manifest_among_blobs(server, &manifest, &blob);
    }
    println!("\nMemory, 64 connections on a blob of 1 GiB (idle, peak, above idle; MiB)");
    for server in all {
        memory(server, &large);
    }
}

/// A manifest of the size that those of real images have.
pub fn manifest(config: &Blob, layer: &Blob) -> Blob {
    let descriptor = |blob: &Blob| {
        json!({
            "mediaType": blob.media_type,
            "digest": blob.digest.to_string(),
            "size": blob.bytes.len(),
        })
    };
    let with = |padding: usize| {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config),
            "layers": [descriptor(layer)],
            "annotations": { "padding": "x".repeat(padding) },
        });
        manifest.to_string().into_bytes()
    };
    Blob::new(MANIFEST, with(MANIFEST_BYTES - with(0).len()))
}

/// Reads content until the server has it where it serves it from best.
fn warm(server: &Server, path: &str) {
    for _ in 0..2 {
        load(server, &format!("GET {path}"), 1, None, Duration::from_millis(1500)).run();
    }
}

fn load(
    server: &Server,
    line: &str,
    connections: usize,
    tls: Option<&Arc<ClientConfig>>,
    duration: Duration,
) -> Load {
    let address = match tls {
        Some(_) => server.tls_address.clone().expect("a server with TLS"),
        None => server.address.clone(),
    };
    Load { address, line: line.to_owned(), connections, duration, tls: tls.cloned() }
}

/// Measures the servers in turn, and gives the medians of the figures of each.
fn in_turn(
    servers: &[&Server],
    line: &str,
    connections: usize,
    tls: Option<&Arc<ClientConfig>>,
    figures: [fn(&Figure) -> f64; 2],
) -> Vec<[f64; 2]> {
    let mut all = vec![Vec::new(); servers.len()];
    for _ in 0..ROUNDS {
        for (server, measured) in servers.iter().zip(&mut all) {
            let before = meter::cpu(&server.processes);
            let count = load(server, line, connections, tls, SLICE).run();
            measured.push(Figure { cpu: meter::cpu(&server.processes) - before, count });
        }
    }
    let medians = |measured: &Vec<Figure>| {
        figures.map(|figure| median(measured.iter().map(figure).collect()))
    };
    all.iter().map(medians).collect()
}

fn blobs(servers: &[&Server], path: &str, connections: usize, tls: Option<&Arc<ClientConfig>>) {
    println!("  {connections} connections");
    let figures = [Figure::cpu_per_gib as fn(&Figure) -> f64, Figure::gib_per_second];
    let rows = in_turn(servers, &format!("GET {path}"), connections, tls, figures);
    for (server, [cpu, speed]) in servers.iter().zip(&rows) {
        let [[own_cpu, own_speed], ..] = rows[..] else { return };
        println!(
            "    {:16} {cpu:6.3} CPU-s/GiB  {speed:6.2} GiB/s   larder: {:.2} x the CPU, {:.2} x the throughput",
            server.name,
            own_cpu / cpu,
            own_speed / speed,
        );
    }
}

fn manifests(servers: &[&Server], method: &str, path: &str) {
    let figures = [Figure::answers_per_second as fn(&Figure) -> f64, Figure::cpu_us_per_answer];
    let rows = in_turn(servers, &format!("{method} {path}"), 16, None, figures);
    for (server, [rate, cpu]) in servers.iter().zip(&rows) {
        let [[own_rate, _], ..] = rows[..] else { return };
        println!(
            "    {:16} {rate:8.0} answers/s  {cpu:7.1} CPU-us each   larder: {:.2} x the rate",
            server.name,
            own_rate / rate,
        );
    }
}

/// How long a small answer takes that has large ones beside it.
fn manifest_among_blobs(server: &Server, manifest: &str, blob: &str) {
    let times = (0..ROUNDS).map(|_| {
        let count = thread::scope(|scope| {
            let blobs = load(server, &format!("GET {blob}"), 16, None, SLICE);
            let blobs = scope.spawn(move || blobs.run());
            let count = load(server, &format!("GET {manifest}"), 1, None, SLICE).run();
            assert!(blobs.join().expect("a load").bytes > 0, "nobody read the blob");
            count
        });
        count.elapsed.as_secs_f64() * 1e3 / count.answers as f64
    });
    println!("    {:16} {:7.1} ms each", server.name, median(times.collect()));
}

fn memory(server: &Server, path: &str) {
    meter::reset_peak(&server.processes);
    let idle = meter::peak_bytes(&server.processes);
    load(server, &format!("GET {path}"), 64, None, SLICE).run();
    let peak = meter::peak_bytes(&server.processes);
    let [idle, peak] = [idle, peak].map(|bytes| bytes as f64 / MIB);
    println!("    {:16} {idle:7.1} {peak:7.1} {:7.1}", server.name, peak - idle);
}

fn client_config(certificate: &Path) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    let first = |suite: &str| suite != "TLS13_AES_128_GCM_SHA256";
    provider.cipher_suites.retain(|suite| !first(&format!("{:?}", suite.suite())));
    let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
