//! The servers that are measured, all with the same content.

use std::{fs, process::Command, thread, time::Duration};

use larder_layout::Digest;
use larder_tests::{Blob, Process, Registry, Sandbox, Storage, Upstream, bin, run};

use crate::meter;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// The repository.
pub const REPOSITORY: &str = "bench";

/// A server.
pub struct Server {
    /// What it is called in the tables.
    pub name: &'static str,
    /// Where it serves plain HTTP.
    pub address: String,
    /// Where it serves TLS, if it does.
    pub tls_address: Option<String>,
    /// All that it consists of.
    pub processes: Vec<u32>,
    _running: Vec<Process>,
}

/// A certificate for `localhost` that signs itself.
pub struct Certificate<'a> {
    sandbox: &'a Sandbox,
}

impl<'a> Certificate<'a> {
    /// Makes it.
    pub fn new(sandbox: &'a Sandbox) -> Self {
        let mut openssl = Command::new("openssl");
        openssl.args("req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256".split(' '));
        openssl.args("-days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost".split(' '));
        openssl.args("-addext basicConstraints=critical,CA:FALSE".split(' '));
        openssl.arg("-keyout").arg(sandbox.path("key.pem"));
        openssl.arg("-out").arg(sandbox.path("cert.pem"));
        run(openssl, COMMAND_TIMEOUT).expect("a certificate");
        Self { sandbox }
    }

    /// The PEM file.
    pub fn path(&self) -> std::path::PathBuf {
        self.sandbox.path("cert.pem")
    }

    fn pair(&self) -> [String; 2] {
        ["cert.pem", "key.pem"].map(|name| self.sandbox.path(name).display().to_string())
    }
}

/// `larder-fs` and `larder-shim` over a storage directory. Without TLS there is one shim, with it
/// there are two.
pub fn larder(
    sandbox: &Sandbox,
    name: &str,
    storage: &Storage,
    upstream: Option<&str>,
    certificate: Option<&Certificate<'_>>,
) -> Server {
    let (cache, mount) =
        (sandbox.directory(&format!("{name}-cache")), sandbox.directory(&format!("{name}-mount")));
    let config = |address: &str, tls: &str| {
        let proxy =
            upstream.map_or(String::new(), |url| format!("proxy: {{remoteurl: \"{url}\"}}"));
        sandbox.file(
            &format!("{name}-{}.yml", address.replace(':', "-")),
            &format!(
                "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 {}\n\
                 cache: {{directory: {}, size: 20GiB}}\nhttp: {{addr: \"{address}\"{tls}}}\n{proxy}\n",
                storage.section(),
                cache.display(),
            ),
        )
    };
    let mut running = Vec::new();
    let mut fs = Command::new(bin("larder-fs"));
    fs.arg("mount").arg("--config").arg(config(&sandbox.address(), "")).arg(&mount);
    let mut fs = Process::start(sandbox, &format!("{name}-fs"), fs);
    fs.wait_until("a mount", || mount.join("blobs").exists().then_some(()));
    running.push(fs);
    let mut shim = |address: &str, tls: &str| {
        let mut command = Command::new(bin("larder-shim"));
        command.arg("serve").arg("--config").arg(config(address, tls)).arg("--root").arg(&mount);
        let mut shim = Process::start(sandbox, &format!("{name}-shim"), command);
        shim.wait_until("a port", || std::net::TcpStream::connect(address).ok());
        running.push(shim);
    };
    let address = sandbox.address();
    shim(&address, "");
    let tls_address = certificate.map(|certificate| {
        let address = sandbox.address();
        let [certificate, key] = certificate.pair();
        shim(&address, &format!(", tls: {{certificate: {certificate}, key: {key}}}"));
        address
    });
    let processes = running.iter().map(Process::id).collect();
    Server { name: "larder", address, tls_address, processes, _running: running }
}

/// nginx, as it serves files best.
pub fn nginx(sandbox: &Sandbox, contents: &[&Blob], certificate: &Certificate<'_>) -> Server {
    let root = sandbox.directory("nginx");
    for blob in contents {
        for kind in ["blobs", "manifests"] {
            let path = root.join(path(kind, &blob.digest).trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, &blob.bytes).expect("a file");
        }
    }
    let (address, tls_address) = (sandbox.address(), sandbox.address());
    let [certificate, key] = certificate.pair();
    let config = sandbox.file(
        "nginx.conf",
        &format!(
            "daemon off; worker_processes auto; pid {pid}; error_log {errors} warn; user root;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n\
             client_body_temp_path {temp}; proxy_temp_path {temp}; fastcgi_temp_path {temp};\n\
             uwsgi_temp_path {temp}; scgi_temp_path {temp};\n\
             open_file_cache max=1000 inactive=1h; open_file_cache_valid 1h;\n\
             server {{ listen {address}; root {root}; }}\n\
             server {{ listen {tls_address} ssl; ssl_protocols TLSv1.3; root {root};\n\
             ssl_certificate {certificate}; ssl_certificate_key {key}; }} }}\n",
            pid = sandbox.path("nginx.pid").display(),
            errors = sandbox.path("nginx-errors.log").display(),
            temp = sandbox.directory("nginx-temp").display(),
            root = root.display(),
        ),
    );
    let mut command = Command::new("nginx");
    command.arg("-c").arg(config);
    let mut process = Process::start(sandbox, "nginx", command);
    process.wait_until("a port", || std::net::TcpStream::connect(&address).ok());
    // The master listens before there is anybody to serve.
    let (master, workers) = (process.id(), thread::available_parallelism().map_or(1, usize::from));
    let processes = process.wait_until("its workers", || {
        Some(meter::with_children(master)).filter(|processes| processes.len() > workers)
    });
    Server {
        name: "nginx",
        address,
        tls_address: Some(tls_address),
        processes,
        _running: vec![process],
    }
}

/// docker-registry, which is CNCF Distribution 2.8, over a storage directory.
pub fn distribution(upstream: &Upstream<'_>) -> Server {
    Server {
        name: "docker-registry",
        address: upstream.address().to_owned(),
        tls_address: None,
        processes: vec![upstream.id()],
        _running: Vec::new(),
    }
}

/// The path of a blob or manifest.
pub fn path(kind: &str, digest: &Digest) -> String {
    format!("/v2/{REPOSITORY}/{kind}/{digest}")
}

/// Fills a registry.
pub fn fill(registry: &Registry, blobs: &[&Blob], manifest: &Blob) {
    for blob in blobs {
        registry.push_blob(REPOSITORY, blob);
    }
    registry.push_manifest(REPOSITORY, "latest", manifest);
}
