//! An S3 server that checks signatures: SeaweedFS.

use std::process::Command;

use reqwest::blocking::Client;

use crate::{Process, Sandbox, Storage};

/// A SeaweedFS with one bucket.
pub struct S3 {
    endpoint: String,
    _process: Process,
}

impl S3 {
    /// The bucket.
    pub const BUCKET: &'static str = "larder";
    /// Who may do everything with the bucket, and nothing else.
    pub const ACCESS_KEY: &'static str = "larder-access";
    /// The secret that requests are signed with.
    pub const SECRET_KEY: &'static str = "larder-secret";
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "weed";

    /// Starts a server and makes the bucket.
    pub fn start(sandbox: &Sandbox) -> Self {
        let identities = format!(
            r#"{{"identities": [{{"name": "larder",
                "actions": ["Read:{bucket}", "Write:{bucket}", "List:{bucket}", "Tagging:{bucket}"],
                "credentials": [{{"accessKey": "{}", "secretKey": "{}"}}]}}]}}"#,
            Self::ACCESS_KEY,
            Self::SECRET_KEY,
            bucket = Self::BUCKET,
        );
        let config = sandbox.file("s3.json", &identities);
        let [master, volume, filer, s3] = [(); 4].map(|()| sandbox.address());
        let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
        let mut command = Command::new("weed");
        command
            .args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .args(["-filer", "-s3", "-master.volumeSizeLimitMB=64", "-volume.max=50"])
            .arg(format!("-dir={}", sandbox.directory("s3").display()))
            .arg(format!("-master.port={}", port(&master)))
            .arg(format!("-volume.port={}", port(&volume)))
            .arg(format!("-filer.port={}", port(&filer)))
            .arg(format!("-s3.port={}", port(&s3)))
            .arg(format!("-s3.config={}", config.display()))
            .env("HOME", sandbox.directory("s3-home"));
        let mut process = Process::start(sandbox, "s3", command);

        // Through the filer nothing has to be signed: a directory below /buckets is a bucket.
        let probe = format!("http://{filer}/buckets/{}/probe", Self::BUCKET);
        let client = Client::builder().no_proxy().build().expect("an HTTP client");
        let is_put = || client.put(&probe).body("probe").send()?.error_for_status();
        process.wait_until("a bucket that takes an object", || is_put().ok());
        process.wait_until("the S3 service", || client.get(format!("http://{s3}/")).send().ok());
        Self { endpoint: format!("http://{s3}"), _process: process }
    }

    /// The bucket as the storage of nodes.
    pub fn storage(&self) -> Storage {
        Storage::S3 { endpoint: self.endpoint.clone() }
    }
}
