//! A certificate authority that everything in a sandbox trusts.

use std::{path::PathBuf, process::Command, time::Duration};

use crate::{Sandbox, run};

const OPENSSL_TIMEOUT: Duration = Duration::from_secs(30);
/// Where programs on Debian look for the certificates that they trust.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The authority, and a certificate of it for [`Sandbox::HOST`].
pub struct Authority {
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// What a test needs to have one.
    pub const NEEDS: [&'static str; 2] = ["openssl", SYSTEM_BUNDLE];

    /// Makes both, and has the authority trusted by all that is started from now on.
    pub fn new(sandbox: &Sandbox) -> Self {
        let [ca, ca_key, certificate, key] =
            ["ca.pem", "ca.key", "server.pem", "server.key"].map(|name| sandbox.path(name));
        let mut authority = request(&[("basicConstraints", "critical,CA:TRUE")]);
        authority.arg("-subj").arg("/CN=authority").arg("-keyout").arg(&ca_key);
        authority.arg("-out").arg(&ca);
        run(authority, OPENSSL_TIMEOUT).expect("an authority");
        let names = format!("IP:127.0.0.1,DNS:localhost,DNS:{}", Sandbox::HOST);
        let mut server = request(&[
            ("basicConstraints", "critical,CA:FALSE"),
            ("subjectAltName", &names),
            ("extendedKeyUsage", "serverAuth"),
        ]);
        server.arg("-subj").arg(format!("/CN={}", Sandbox::HOST));
        server.arg("-CA").arg(&ca).arg("-CAkey").arg(&ca_key);
        server.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        run(server, OPENSSL_TIMEOUT).expect("a certificate");
        // Nodes run as other users too.
        let mut chmod = Command::new("chmod");
        chmod.arg("0644").arg(&key);
        run(chmod, OPENSSL_TIMEOUT).expect("a key that the node can read");
        let mut bind = Command::new("mount");
        bind.arg("--bind").arg(&ca).arg(SYSTEM_BUNDLE);
        run(bind, OPENSSL_TIMEOUT).expect("a trusted authority");
        Self { certificate, key }
    }

    /// `tls:` of the section `http:`.
    pub fn tls(&self) -> String {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        format!("tls: {{certificate: {certificate}, key: {key}}}")
    }
}

/// `openssl req` for a self-signed certificate, or one of an authority, with these extensions.
pub(crate) fn request(extensions: &[(&str, &str)]) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    command.args(["-nodes", "-days", "2"]);
    for (name, value) in extensions {
        command.arg("-addext").arg(format!("{name}={value}"));
    }
    command
}
