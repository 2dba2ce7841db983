//! An Azure Blob Storage that checks signatures: Microsoft's emulator Azurite.

use std::{fmt::Write, net::TcpStream, process::Command, time::Duration};

use crate::{Process, Sandbox, Storage, run};

/// How long a script may take.
const PYTHON_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads `name type path` lines: the content of each blob is in a file.
const FILL: &str = "
import sys
from azure.storage.blob import ContainerClient
url, container, key, blobs = sys.argv[1:]
client = ContainerClient(url, container, credential=key)
if not client.exists():
    client.create_container()
for line in open(blobs):
    name, kind, path = line.split()
    client.upload_blob(name, open(path, 'rb').read(), blob_type=kind)
";

/// Prints the name of each blob.
const LIST: &str = "
import sys
from azure.storage.blob import ContainerClient
url, container, key = sys.argv[1:]
print(*ContainerClient(url, container, credential=key).list_blob_names(), sep='\\n')
";

/// An Azurite with one account and one container.
pub struct Azurite<'a> {
    sandbox: &'a Sandbox,
    service_url: String,
    _process: Process,
}

impl<'a> Azurite<'a> {
    /// The account.
    pub const ACCOUNT: &'static str = "larder";
    /// The account's key, in base64.
    pub const KEY: &'static str = "bGFyZGVyLXNlY3JldC1sYXJkZXItc2VjcmV0LWxhcmRlcg==";
    /// The container.
    pub const CONTAINER: &'static str = "images";
    /// What a test needs to have one.
    pub const NEEDS: [&'static str; 2] = ["azurite-blob", "larder-python"];

    /// Starts a server and makes the container.
    pub fn start(sandbox: &'a Sandbox) -> Self {
        let address = sandbox.address();
        let (host, port) = address.rsplit_once(':').expect("a host and a port");
        let mut command = Command::new("azurite-blob");
        command
            .args(["--silent", "--disableTelemetry", "--skipApiVersionCheck"])
            .args(["--blobHost", host, "--blobPort", port, "--location"])
            .arg(sandbox.directory("azurite"))
            .env("AZURITE_ACCOUNTS", format!("{}:{}", Self::ACCOUNT, Self::KEY));
        let mut process = Process::start(sandbox, "azurite", command);
        process.wait_until("a connection", || TcpStream::connect(&address).ok());
        let service_url = format!("http://{address}/{}", Self::ACCOUNT);
        let azurite = Self { sandbox, service_url, _process: process };
        azurite.fill(&[]);
        azurite
    }

    /// The `serviceurl` of the configuration.
    pub fn service_url(&self) -> &str {
        &self.service_url
    }

    /// The container as the storage of nodes.
    pub fn storage(&self) -> Storage {
        Storage::Other(format!(
            "azure: {{accountname: {}, accountkey: {}, container: {}, serviceurl: '{}'}}",
            Self::ACCOUNT,
            Self::KEY,
            Self::CONTAINER,
            self.service_url,
        ))
    }

    /// Puts blobs into the container with Microsoft's own library. Distribution writes the layers
    /// as `AppendBlob` and the rest as `BlockBlob`.
    pub fn fill(&self, blobs: &[(String, Vec<u8>)]) {
        let mut lines = String::new();
        for (index, (name, content)) in blobs.iter().enumerate() {
            let kind = if name.ends_with("/data") { "AppendBlob" } else { "BlockBlob" };
            let path = self.sandbox.path(&format!("blob-{index}"));
            std::fs::write(&path, content).expect("a file with the content of a blob");
            writeln!(lines, "{name} {kind} {}", path.display()).expect("a line");
        }
        let list = self.sandbox.file("blobs.txt", &lines);
        self.python(FILL, &[list.to_str().expect("a path in ASCII")]);
    }

    /// The names of all blobs, as Microsoft's own library sees them.
    pub fn names(&self) -> Vec<String> {
        self.python(LIST, &[]).lines().map(str::to_owned).collect()
    }

    fn python(&self, script: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("larder-python");
        command.args(["-c", script, &self.service_url, Self::CONTAINER, Self::KEY]);
        command.args(arguments);
        run(command, PYTHON_TIMEOUT).expect("Microsoft's library does what it is told")
    }
}
