//! An ordinary registry: Debian's docker-registry, which is CNCF Distribution 2.8.

use std::process::Command;

use larder_layout::Digest;

use crate::{Process, Registry, Sandbox, Storage};

/// A registry over a storage, on an address that it keeps when it is restarted.
pub struct Upstream<'a> {
    sandbox: &'a Sandbox,
    name: String,
    address: String,
    storage: Storage,
    /// More of its configuration.
    sections: String,
    process: Option<Process>,
}

impl<'a> Upstream<'a> {
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "docker-registry";

    /// Starts an empty registry.
    pub fn start(sandbox: &'a Sandbox) -> Self {
        Self::over(sandbox, "upstream", &Storage::Directory(sandbox.directory("upstream")))
    }

    /// Starts a registry over a storage that something else may have filled: `filesystem`, `s3` or
    /// `swift`, since Debian builds it with these drivers only.
    pub fn over(sandbox: &'a Sandbox, name: &str, storage: &Storage) -> Self {
        let mut upstream = Self {
            sandbox,
            name: name.to_owned(),
            address: sandbox.address(),
            storage: storage.clone(),
            sections: String::new(),
            process: None,
        };
        upstream.restart();
        upstream
    }

    /// Starts it again on the same address, with the same storage.
    pub fn restart(&mut self) {
        let config = self.sandbox.file(
            &format!("{}.yml", self.name),
            &format!(
                "version: 0.1\n\
                 log: {{level: error}}\n\
                 {}\n\
                 http: {{addr: {}}}\n\
                 {}",
                self.storage.section(),
                self.address,
                self.sections,
            ),
        );
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config).env("OTEL_TRACES_EXPORTER", "none");
        // Its S3 driver ends in a panic when this is set.
        command.env_remove("AWS_CA_BUNDLE");
        let mut process = Process::start(self.sandbox, &self.name, command);
        let registry = self.registry();
        process.wait_until("an answer", || registry.get("/v2/").ok());
        self.process = Some(process);
    }

    /// Starts it again with more sections in its configuration: `auth:`.
    pub fn restart_with(&mut self, sections: &str) {
        self.process = None;
        sections.clone_into(&mut self.sections);
        self.restart();
    }

    /// Ends it: its address refuses connections.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Its storage.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// `http://` and its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The number of its process.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("a registry that runs").id()
    }

    /// Its address, host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A client of it.
    pub fn registry(&self) -> Registry {
        Registry::at(&self.address)
    }

    /// How often a blob was asked for with GET since the last restart of the test's directory.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn gets(&self, digest: &Digest) -> usize {
        let log = self.process.as_ref().expect("the upstream runs").log();
        let is_get =
            |line: &&str| line.contains("\"GET /v2/") && line.contains(&format!("/blobs/{digest}"));
        log.lines().filter(is_get).count()
    }
}
