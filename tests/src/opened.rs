//! A storage as `larder-fs` opens it, without a mount.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use larder_config::Config;
use larder_fs::{
    check::{self, Readiness},
    store::{self, Backend},
};
use object_store::{ObjectStoreExt, WriteMultipart, path::Path as ObjectPath};
use tokio::runtime::{self, Runtime};

use crate::{Process, Sandbox, random_bytes, run};

/// More than one request takes, and more than one page.
const LARGE_BYTES: usize = (65 << 20) + 1;
const PART_BYTES: usize = 8 << 20;
const PIECE_BYTES: usize = 1 << 20;
const MANY: usize = 1_100;

const OPENSSL_TIMEOUT: Duration = Duration::from_secs(20);

/// A `storage:` section, opened. What it sends, it sends from the sandbox of this thread.
pub struct Opened {
    /// The section.
    pub config: Config,
    /// The storage.
    pub backend: Backend,
    runtime: Runtime,
}

impl Opened {
    /// Opens a section, `azure: {…}` for example.
    ///
    /// # Errors
    /// The mistakes in it.
    pub fn open(sandbox: &Sandbox, section: &str) -> Result<Self, String> {
        let text = format!("version: 0.1\nstorage: {{{section}}}\n");
        let path = sandbox.file("storage.yml", &text);
        let config = Config::load(Path::new(&path), []).map_err(|e| e.to_string())?;
        let backend = store::open(&config.storage)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { config, backend, runtime: runtime.expect("a runtime") })
    }

    /// Runs something that needs the runtime.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// What `larder-fs` says of the storage when it starts.
    ///
    /// # Errors
    /// That sentence.
    pub fn check(&self) -> Result<(), String> {
        match self.run(check::readiness(&self.config.storage)) {
            Readiness::Ready => Ok(()),
            Readiness::Unreachable(reason)
            | Readiness::Inconsistent(reason)
            | Readiness::Unfit(reason) => Err(reason),
        }
    }
}

/// A private key, and a certificate for this name that only who is told to trusts, in PEM.
///
/// # Panics
/// When openssl makes none.
pub fn certificate(sandbox: &Sandbox, name: &str) -> (PathBuf, PathBuf) {
    let (key, certificate) = (sandbox.path("tls.key"), sandbox.path("tls.pem"));
    let mut request = Command::new("openssl");
    request
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test"])
        .args(["-addext", &format!("subjectAltName={name}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    run(request, OPENSSL_TIMEOUT).expect("a certificate");
    (key, certificate)
}

/// A server whose certificate nobody trusts.
pub struct Untrusted {
    address: String,
    _process: Process,
}

impl Untrusted {
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "openssl";

    /// Makes a certificate and serves with it.
    pub fn start(sandbox: &Sandbox) -> Self {
        let (key, certificate) = certificate(sandbox, "IP:127.0.0.1");
        let address = sandbox.address();
        let mut server = Command::new("openssl");
        server.args(["s_server", "-quiet", "-www", "-accept", &address, "-key"]);
        server.arg(key).arg("-cert").arg(certificate);
        let mut process = Process::start(sandbox, "untrusted", server);
        process.wait_until("a connection", || std::net::TcpStream::connect(&address).ok());
        Self { address, _process: process }
    }

    /// `https://` and its address.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl Opened {
    /// Puts, reads, lists, replaces and deletes objects of many sizes.
    ///
    /// # Panics
    /// When the storage does something else than what it was told.
    pub fn exercise(&self) {
        let objects = &self.backend.objects;
        let at = |name: String| ObjectPath::from(format!("docker/larder/test/{name}"));
        let done = self.run(async {
            let one = at("one".to_owned());
            for content in ["first", "second, which is longer"] {
                objects.put(&one, content.into()).await?;
                assert_eq!(objects.get(&one).await?.bytes().await?, content);
            }
            assert_eq!(objects.get_range(&one, 8..100).await?, "which is longer");
            objects.delete(&one).await?;
            let missing = objects.get(&one).await.expect_err("a deleted object is gone");
            assert!(matches!(missing, object_store::Error::NotFound { .. }), "{missing}");

            let large = random_bytes(LARGE_BYTES);
            let upload = objects.put_multipart(&one).await?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            for piece in large.chunks(PIECE_BYTES) {
                parts.wait_for_capacity(4).await?;
                parts.write(piece);
            }
            let before = objects.head(&one).await;
            assert!(before.is_err(), "an upload is not visible before it is complete");
            parts.finish().await?;
            assert_eq!(objects.head(&one).await?.size, LARGE_BYTES as u64);
            let middle = LARGE_BYTES as u64 / 2;
            let range = objects.get_range(&one, middle..middle + 9).await?;
            assert_eq!(range, large[LARGE_BYTES / 2..][..9]);
            let read = objects.get(&one).await?.bytes().await?;
            assert!(read == large, "the large object is what was sent");

            let two = at("two".to_owned());
            let mut aborted = objects.put_multipart(&two).await?;
            aborted.put_part(vec![0; PART_BYTES].into()).await?;
            aborted.abort().await?;
            assert!(objects.head(&two).await.is_err(), "an aborted upload leaves no object");

            let many = (0..MANY).map(|index| at(format!("many/{index:04}"))).collect::<Vec<_>>();
            let puts = stream::iter(&many).map(|name| objects.put(name, "x".into()));
            puts.buffer_unordered(16).try_collect::<Vec<_>>().await?;
            let prefix = at("many".to_owned());
            let listed = || objects.list(Some(&prefix)).map_ok(|meta| meta.location);
            assert_eq!(listed().try_collect::<Vec<_>>().await?, many);
            let deleted = objects.delete_stream(stream::iter(many.clone()).map(Ok).boxed());
            assert_eq!(deleted.try_collect::<Vec<_>>().await?.len(), MANY);
            assert_eq!(listed().try_collect::<Vec<_>>().await?, []);
            Ok::<_, object_store::Error>(())
        });
        done.expect("the storage does what it is told");
    }
}
