//! A Google Cloud Storage: its XML interface, as far as larder-fs speaks it. No emulator has that. And
//! the JSON one, as far as Google's own library does: both show the same objects.
//!
//! Requests carry a token that the service account signed itself (<https://google.aip.dev/auth/4111>):
//! signature, issuer, scope and times are checked.

mod json;
mod xml;

use std::{
    fs,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use self::xml::Bucket;
pub(crate) use self::xml::uploads_page;
use crate::{
    Sandbox, Storage,
    http::{Answer, Request, Server},
    run, vendor,
};

const OPENSSL_TIMEOUT: Duration = Duration::from_secs(20);
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const EMAIL: &str = "larder@project.iam.gserviceaccount.com";

/// Begins every script.
const CONNECT: &str = "
import json, sys
from google.cloud import storage
from google.oauth2.service_account import Credentials
key, bucket, *arguments = sys.argv[1:]
account = json.load(open(key))
client = storage.Client(
    project=account['project_id'],
    credentials=Credentials.from_service_account_info(account),
    client_options={'api_endpoint': account['gcs_base_url']},
)
bucket = client.bucket(bucket)
";

/// Reads `name path` lines: the content of each object is in a file.
const FILL: &str = "
for line in open(arguments[0]):
    name, path = line.split()
    bucket.blob(name).upload_from_filename(path, content_type='application/octet-stream')
";

/// Prints the name of each object.
const LIST: &str = "
for blob in client.list_blobs(bucket):
    print(blob.name)
";

/// A server in this process with one bucket.
pub struct Gcs {
    private_key: String,
    shared: Arc<Shared>,
    server: Server,
}

struct Shared {
    bucket: Mutex<Bucket>,
    public_key: Vec<u8>,
    /// By how much the server's clock is ahead.
    ahead_secs: AtomicU64,
}

impl Gcs {
    /// The bucket.
    pub const BUCKET: &'static str = "images";
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "openssl";
    /// What it takes to use Google's library.
    pub const LIBRARY_NEEDS: &'static str = vendor::NEEDS;

    /// Starts a server with an empty bucket and a new service account.
    pub fn start(sandbox: &Sandbox) -> Self {
        let (private, public) = (sandbox.path("gcs.key"), sandbox.path("gcs.pub"));
        let mut generate = Command::new("openssl");
        generate.args(["genpkey", "-algorithm", "RSA", "-out"]).arg(&private);
        run(generate, OPENSSL_TIMEOUT).expect("a private key");
        let mut publish = Command::new("openssl");
        publish.args(["rsa", "-RSAPublicKey_out", "-outform", "DER", "-in"]).arg(&private);
        publish.arg("-out").arg(&public);
        run(publish, OPENSSL_TIMEOUT).expect("a public key");

        let public_key = fs::read(public).expect("the public key");
        let (bucket, ahead_secs) = Default::default();
        let shared = Arc::new(Shared { bucket, public_key, ahead_secs });
        let answering = Arc::clone(&shared);
        let server = Server::start(sandbox, move |request| answering.answer(request));
        let private_key = fs::read_to_string(private).expect("the private key");
        Self { private_key, shared, server }
    }

    /// Its address, host and port.
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// The account's key file, as Google gives it out, with the address of this server in it.
    pub fn key_file(&self) -> Value {
        json!({
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "key",
            "private_key": self.private_key,
            "client_email": EMAIL,
            "client_id": "1",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": format!("http://{}{}", self.server.address(), json::TOKEN),
            "gcs_base_url": format!("http://{}", self.server.address()),
        })
    }

    /// The bucket as the storage of nodes.
    pub fn storage(&self, sandbox: &Sandbox) -> Storage {
        let path = sandbox.file("gcs-account.json", &self.key_file().to_string());
        Storage::Other(format!("gcs: {{bucket: {}, keyfile: {}}}", Self::BUCKET, path.display()))
    }

    /// Puts objects into the bucket with Google's own library.
    pub fn fill(&self, sandbox: &Sandbox, objects: &[(String, Vec<u8>)]) {
        let objects = vendor::write_objects(sandbox, objects);
        self.python(sandbox, FILL, &[objects.to_str().expect("a path in ASCII")]);
    }

    /// The names of all objects, as Google's own library sees them.
    pub fn names(&self, sandbox: &Sandbox) -> Vec<String> {
        self.python(sandbox, LIST, &[]).lines().map(str::to_owned).collect()
    }

    fn python(&self, sandbox: &Sandbox, script: &str, arguments: &[&str]) -> String {
        let key = sandbox.file("google-account.json", &self.key_file().to_string());
        let key = key.to_str().expect("a path in ASCII");
        let script = format!("{CONNECT}{script}");
        vendor::python(&script, &[&[key, Self::BUCKET], arguments].concat())
    }

    /// The names of all objects, and those that unfinished uploads were to become.
    pub fn content(&self) -> (Vec<String>, Vec<String>) {
        let bucket = self.shared.bucket();
        let uploads = bucket.uploads.values().map(|upload| upload.name.clone());
        (bucket.objects.keys().cloned().collect(), uploads.collect())
    }

    /// Puts the server's clock forward.
    pub fn set_ahead(&self, time: Duration) {
        self.shared.ahead_secs.store(time.as_secs(), Ordering::SeqCst);
    }
}

impl Shared {
    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no connection panicked")
    }

    fn answer(&self, request: &Request) -> Answer {
        if let Some(answer) = json::answer(self, request) {
            return answer;
        }
        let token = request.header("authorization").strip_prefix("Bearer ").unwrap_or_default();
        match self.is_genuine(token) {
            true => self.bucket().answer(request),
            false => Answer::error(401, "AuthenticationRequired"),
        }
    }

    /// Whether the account signed this token for all of Google's services.
    fn is_genuine(&self, token: &str) -> bool {
        let claims = self.claims(token).unwrap_or_default();
        claims["sub"] == EMAIL && claims["scope"] == SCOPE
    }

    /// What a token says that the account signed for this time.
    fn claims(&self, token: &str) -> Option<Value> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let decode = |text| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        let parse = |text| serde_json::from_slice::<Value>(&decode(text)).unwrap_or_default();
        let (header, claims) = (parse(header), parse(claims));
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
            + self.ahead_secs.load(Ordering::SeqCst);
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key);
        let time = |name: &str| claims[name].as_u64().unwrap_or_default();
        let is_genuine = header["alg"] == "RS256"
            && header["kid"] == "key"
            && claims["iss"] == EMAIL
            && (time("iat")..time("exp")).contains(&now)
            && time("exp") - time("iat") <= 3600
            && key.verify(message.as_bytes(), &decode(signature)).is_ok();
        is_genuine.then_some(claims)
    }
}
