//! An S3 server that checks signatures: SeaweedFS.

use std::process::Command;

use reqwest::blocking::{Client, Response};
use serde_json::Value;

use crate::{Process, Sandbox, Storage};

/// A SeaweedFS with one bucket.
pub struct S3 {
    endpoint: String,
    /// The bucket as a directory, where nothing has to be signed.
    bucket_url: String,
    client: Client,
    process: Process,
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
        let bucket_url = format!("http://{filer}/buckets/{}", Self::BUCKET);
        let probe = format!("{bucket_url}/probe");
        let client = Client::builder().no_proxy().build().expect("an HTTP client");
        let is_put = || client.put(&probe).body("probe").send()?.error_for_status();
        process.wait_until("a bucket that takes an object", || is_put().ok());
        client.delete(probe).send().expect("the bucket is empty again");
        process.wait_until("the S3 service", || client.get(format!("http://{s3}/")).send().ok());
        Self { endpoint: format!("http://{s3}"), bucket_url, client, process }
    }

    /// `http://` and its address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The keys of all objects, and every part of an unfinished upload.
    ///
    /// # Panics
    /// When the bucket cannot be listed.
    pub fn content(&self) -> (Vec<String>, Vec<String>) {
        let files = self.files_in("");
        files.into_iter().partition(|path| !path.starts_with(".uploads/"))
    }

    /// Every file below a directory, which is empty or ends with a slash.
    fn files_in(&self, directory: &str) -> Vec<String> {
        let request = self.client.get(format!("{}/{directory}?limit=10000", self.bucket_url));
        let answer = request.header("Accept", "application/json").send();
        let answer = answer.and_then(Response::error_for_status).and_then(Response::text);
        let listing: Value = serde_json::from_str(&answer.expect("a listing")).expect("JSON");
        let entries = listing["Entries"].as_array().into_iter().flatten();
        let files = entries.flat_map(|entry| {
            let path = entry["FullPath"].as_str().unwrap_or_default();
            let name = path.rsplit('/').next().unwrap_or_default();
            // The highest bit that Go knows of a mode tells a directory.
            match entry["Mode"].as_u64().unwrap_or_default() >> 31 {
                0 => vec![format!("{directory}{name}")],
                _ => self.files_in(&format!("{directory}{name}/")),
            }
        });
        files.collect()
    }

    /// Removes an object.
    ///
    /// # Panics
    /// When it is not there.
    pub fn remove(&self, key: &str) {
        let removed = self.client.delete(format!("{}/{key}", self.bucket_url)).send();
        removed.and_then(Response::error_for_status).expect("an object to remove");
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops it: it takes connections, and answers nothing. [`S3::thaw`] has it go on.
    pub fn freeze(&self) {
        self.process.signal(libc::SIGSTOP);
    }

    /// Has it go on where it was stopped.
    pub fn thaw(&self) {
        self.process.signal(libc::SIGCONT);
    }

    /// The bucket as the storage of nodes.
    pub fn storage(&self) -> Storage {
        Storage::S3 { endpoint: self.endpoint.clone() }
    }
}
