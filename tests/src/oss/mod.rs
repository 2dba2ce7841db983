//! Alibaba Cloud's Object Storage Service, as far as Larder speaks to it: there is no emulator.
//! It checks the signature of every request (version 4), from Alibaba's description of it.

mod bucket;
mod signature;

use std::sync::{Arc, Mutex, MutexGuard};

use self::bucket::Bucket;
use crate::{Sandbox, Storage, http::Server};

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

    /// How many objects were to be encrypted.
    pub fn encrypted(&self) -> usize {
        self.bucket().encrypted
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no connection panicked")
    }
}
