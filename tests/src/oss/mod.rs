//! Alibaba Cloud's Object Storage Service, as far as Larder speaks to it: there is no emulator.
//! It checks the signature of every request (version 4), from Alibaba's description of it.

mod bucket;
mod signature;

use std::sync::{Arc, Mutex, MutexGuard};

use self::bucket::Bucket;
use crate::{Sandbox, Storage, http::Server, vendor};

/// Begins every script.
const CONNECT: &str = "
import sys, oss2
from oss2.credentials import StaticCredentialsProvider
endpoint, key, secret, name, *arguments = sys.argv[1:]
auth = oss2.ProviderAuthV4(StaticCredentialsProvider(key, secret))
bucket = oss2.Bucket(auth, endpoint, name, region='cn-hangzhou', is_cname=True)
";

/// Reads `name path` lines: the content of each object is in a file. Distribution sends a layer in
/// parts, and the rest at once.
const FILL: &str = "
for line in open(arguments[0]):
    name, path = line.split()
    content = open(path, 'rb').read()
    if name.endswith('/data'):
        upload = bucket.init_multipart_upload(name).upload_id
        part = bucket.upload_part(name, upload, 1, content)
        bucket.complete_multipart_upload(name, upload, [oss2.models.PartInfo(1, part.etag)])
    else:
        bucket.put_object(name, content)
";

/// Prints the name of each object.
const LIST: &str = "
for object in oss2.ObjectIteratorV2(bucket):
    print(object.key)
";

/// A bucket.
pub struct Oss {
    server: Server,
    bucket: Arc<Mutex<Bucket>>,
}

impl Oss {
    /// The bucket.
    pub const BUCKET: &'static str = "larder";
    /// One that the server does not have.
    pub const MISSING_BUCKET: &'static str = "lader";
    /// `accesskeyid`
    pub const KEY_ID: &'static str = "larder-id";
    /// `accesskeysecret`
    pub const KEY_SECRET: &'static str = "larder-secret";

    /// What it takes to use Alibaba's library.
    pub const LIBRARY_NEEDS: &'static str = vendor::NEEDS;

    /// Starts a server.
    pub fn start(sandbox: &Sandbox) -> Self {
        let bucket = Arc::new(Mutex::new(Bucket::default()));
        let answering = Arc::clone(&bucket);
        let server = Server::start(sandbox, move |request| {
            signature::refuse(request)
                .unwrap_or_else(|| answering.lock().expect("no panic").answer(request))
        });
        Self { server, bucket }
    }

    /// `storage.oss`, in one line. The endpoint is that of the bucket, as in Distribution.
    pub fn section(&self) -> String {
        format!(
            "accesskeyid: {}, accesskeysecret: {}, region: oss-cn-hangzhou, bucket: {}, \
             endpoint: \"{}\", secure: false",
            Self::KEY_ID,
            Self::KEY_SECRET,
            Self::BUCKET,
            self.server.address(),
        )
    }

    /// The bucket as the storage of nodes.
    pub fn storage(&self) -> Storage {
        Storage::Other(format!("oss: {{{}}}", self.section()))
    }

    /// Its address, host and port.
    pub fn address(&self) -> &str {
        self.server.address()
    }

    /// The keys of all objects, and those that unfinished uploads were to become.
    pub fn content(&self) -> (Vec<String>, Vec<String>) {
        let bucket = self.bucket();
        let uploads = bucket.uploads.values().map(|upload| upload.key.clone());
        (bucket.objects.keys().cloned().collect(), uploads.collect())
    }

    /// Puts objects into the bucket with Alibaba's own library.
    pub fn fill(&self, sandbox: &Sandbox, objects: &[(String, Vec<u8>)]) {
        let objects = vendor::write_objects(sandbox, objects);
        self.python(FILL, &[objects.to_str().expect("a path in ASCII")]);
    }

    /// The names of all objects, as Alibaba's own library sees them.
    pub fn names(&self) -> Vec<String> {
        self.python(LIST, &[]).lines().map(str::to_owned).collect()
    }

    fn python(&self, script: &str, arguments: &[&str]) -> String {
        // Where the host has no name, the library puts the bucket into the path.
        let endpoint = format!("http://{}", self.address().replace("127.0.0.1", Sandbox::HOST));
        let login = [&*endpoint, Self::KEY_ID, Self::KEY_SECRET, Self::BUCKET];
        vendor::python(&format!("{CONNECT}{script}"), &[&login, arguments].concat())
    }

    /// How many objects were to be encrypted.
    pub fn encrypted(&self) -> usize {
        self.bucket().encrypted
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no connection panicked")
    }
}
