//! An Azure Blob Storage that checks signatures: Microsoft's emulator Azurite.

use std::{net::TcpStream, process::Command};

use crate::{Process, Sandbox, Storage, vendor};

/// Reads `name path` lines: the content of each blob is in a file. Distribution appends to the blob
/// of a layer, and writes the rest at once.
const FILL: &str = "
import sys
from azure.storage.blob import ContainerClient
url, container, key, blobs = sys.argv[1:]
client = ContainerClient(url, container, credential=key)
if not client.exists():
    client.create_container()
for line in open(blobs):
    name, path = line.split()
    kind = 'AppendBlob' if name.endswith('/data') else 'BlockBlob'
    client.upload_blob(name, open(path, 'rb').read(), blob_type=kind)
";

/// Prints the name of each blob, those of which there are only parts among them.
const LIST: &str = "
import sys
from azure.storage.blob import ContainerClient
url, container, key = sys.argv[1:]
container = ContainerClient(url, container, credential=key)
for blob in container.list_blobs(include=['uncommittedblobs']):
    print(blob.name)
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
    pub const NEEDS: [&'static str; 2] = ["azurite-blob", vendor::NEEDS];

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

    /// Puts blobs into the container with Microsoft's own library.
    pub fn fill(&self, blobs: &[(String, Vec<u8>)]) {
        let blobs = vendor::write_objects(self.sandbox, blobs);
        self.python(FILL, &[blobs.to_str().expect("a path in ASCII")]);
    }

    /// The names of all blobs, uploaded or begun, as Microsoft's own library sees them.
    pub fn names(&self) -> Vec<String> {
        self.python(LIST, &[]).lines().map(str::to_owned).collect()
    }

    fn python(&self, script: &str, arguments: &[&str]) -> String {
        let login = [&*self.service_url, Self::CONTAINER, Self::KEY];
        vendor::python(script, &[&login, arguments].concat())
    }
}
