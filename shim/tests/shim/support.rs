//! An upstream that does what a test tells it, and a shim to ask.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use larder_config::{
    Cache, Config, Credentials, Formatter, Http, Level, Log, Node, Secret, SecretSource, Storage,
    Tags, Upstream as Registry,
};
use larder_layout::{Algorithm, Digest, Verifier};
use larder_shim::Server;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::accounts::Accounts;

/// How long anything may take before its test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A prime number below 64 KiB: where a chunk ends, nothing else does.
const CHUNK_BYTES: usize = 65_521;

/// A request that the upstream saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// What the upstream does. Every field may be changed while it runs.
#[derive(Default)]
pub struct Script {
    /// By path below `/v2/`, with its query where that makes a difference.
    pub content: HashMap<String, Bytes>,
    /// `Content-Type`, by the same.
    pub media_types: HashMap<String, &'static str>,
    /// `Link`, by the same.
    pub links: HashMap<String, String>,
    /// Answered to every request instead of anything else.
    pub failure: Option<StatusCode>,
    /// `HEAD` is answered with 405.
    pub refuses_heads: bool,
    /// The next bodies end with a broken connection after so many bytes.
    pub cuts: VecDeque<usize>,
    /// No `Content-Length`.
    pub hides_length: bool,
    /// Everything is said to be compressed, and is unless the client asks for it as it is.
    pub compresses: bool,
    /// `Range` is answered with 200.
    pub ignores_ranges: bool,
    /// How long each connection rests before a chunk.
    pub pause: Duration,
    /// No `Docker-Content-Digest`.
    pub hides_digest: bool,
    /// Requests without this `Authorization` get the challenge.
    pub guard: Option<(String, String)>,
    /// Blobs are redirected to this host.
    pub redirect: Option<String>,
    /// What a token server here answers.
    pub token: Option<String>,
    /// Who may read what.
    pub accounts: Option<Accounts>,
    /// Where a token server here sends those who ask.
    pub token_redirect: Option<String>,
}

/// A running upstream.
pub struct Upstream {
    pub address: String,
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// No body gets further than this.
    allowed: watch::Sender<u64>,
}

#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    allowed: watch::Receiver<u64>,
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (allowed, receiver) = watch::channel(u64::MAX);
        let scripted = Scripted { script: Arc::default(), seen: Arc::default(), allowed: receiver };
        let (script, seen) = (Arc::clone(&scripted.script), Arc::clone(&scripted.seen));
        let router = Router::new().fallback(answer).with_state(scripted);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, script, seen, allowed }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// Adds a blob to a repository.
    pub fn add_blob(&self, repository: &str, content: &Bytes) -> Digest {
        let digest = digest(content);
        let path = format!("{repository}/blobs/{digest}");
        self.script(|script| drop(script.content.insert(path, content.clone())));
        digest
    }

    /// Adds a manifest to a repository, and makes a tag name it.
    pub fn add_manifest(&self, repository: &str, tag: &str, content: &Bytes) -> Digest {
        let digest = digest(content);
        self.script(|script| {
            for reference in [tag, &digest.to_string()] {
                let path = format!("{repository}/manifests/{reference}");
                script.content.insert(path, content.clone());
            }
        });
        digest
    }

    /// Lets bodies go on until `offset` and no further.
    pub fn allow(&self, offset: u64) {
        self.allowed.send_replace(offset);
    }

    /// The requests so far whose path contains `part`.
    pub fn seen(&self, method: &Method, part: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| s.method == method && s.path.contains(part)).cloned().collect()
    }
}

impl Seen {
    /// The range of bytes that was asked for, up to its end if it was given one.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (start, last) = self.range.as_ref()?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().unwrap(), last.parse().ok().map(|last: usize| last + 1)))
    }
}

impl Script {
    /// What is answered instead of content, if anything is.
    fn refusal(&self, seen: &Seen) -> Option<Response> {
        if let Some(status) = self.failure {
            return Some(status.into_response());
        }
        if self.refuses_heads && seen.method == Method::HEAD {
            return Some(StatusCode::METHOD_NOT_ALLOWED.into_response());
        }
        self.accounts.as_ref().and_then(|accounts| accounts.answer(seen))
    }

    fn token_answer(&self) -> Response {
        if let Some(location) = &self.token_redirect {
            let location = [(header::LOCATION, location.clone())];
            return (StatusCode::TEMPORARY_REDIRECT, location).into_response();
        }
        let token = self.token.clone().map(|token| Body::from(token).into_response());
        token.unwrap_or(StatusCode::FORBIDDEN.into_response())
    }
}

async fn answer(State(upstream): State<Scripted>, request: Request) -> Response {
    let text = |name| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let seen = Seen {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
    };
    upstream.seen.lock().unwrap().push(seen.clone());
    let mut script = upstream.script.lock().unwrap();
    if let Some(refusal) = script.refusal(&seen) {
        return refusal;
    }
    if seen.path == "/token" {
        return script.token_answer();
    }
    if let Some((authorization, challenge)) = &script.guard
        && seen.authorization.as_ref() != Some(authorization)
    {
        let challenge = [(header::WWW_AUTHENTICATE, challenge.clone())];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    let path = seen.path.strip_prefix("/v2/").unwrap_or_default();
    let full = format!("{path}?{}", seen.query);
    let of_path = script.content.get(&full).or_else(|| script.content.get(path));
    let Some(content) = of_path.cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut headers = HeaderMap::new();
    if script.compresses {
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        if text(header::ACCEPT_ENCODING).as_deref() != Some("identity") {
            return (headers, "something else").into_response();
        }
    }
    let key = if seen.query.is_empty() { path } else { &full };
    let media_type = script.media_types.get(key);
    headers.extend(media_type.map(|kind| (header::CONTENT_TYPE, kind.parse().unwrap())));
    let link = script.links.get(key);
    headers.extend(link.map(|link| (header::LINK, link.parse().unwrap())));
    if path.contains("/manifests/") && !script.hides_digest {
        headers.insert("docker-content-digest", digest(&content).to_string().parse().unwrap());
    }
    if let Some(host) = script.redirect.as_ref().filter(|_| path.contains("/blobs/")) {
        let location = [(header::LOCATION, format!("http://{host}{}", seen.path))];
        return (StatusCode::TEMPORARY_REDIRECT, location).into_response();
    }
    let range = seen.range().filter(|_| !script.ignores_ranges);
    let (start, end) = range.unwrap_or((0, None));
    let end = end.unwrap_or(content.len());
    if range.is_some() {
        let range = format!("bytes {start}-{}/{}", end - 1, content.len());
        headers.insert(header::CONTENT_RANGE, range.parse().unwrap());
    }
    if !script.hides_length {
        headers.insert(header::CONTENT_LENGTH, (end - start).into());
    }
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let is_get = seen.method == Method::GET;
    let cut = if is_get { script.cuts.pop_front() } else { None };
    let body = body(content, start..end, cut, script.pause, upstream.allowed.clone());
    let body = Body::from_stream(body);
    (status, headers, if is_get { body } else { Body::empty() }).into_response()
}

fn body(
    content: Bytes,
    range: Range<usize>,
    cut: Option<usize>,
    pause: Duration,
    allowed: watch::Receiver<u64>,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    let end = cut.map_or(range.end, |cut| range.end.min(range.start + cut));
    let is_cut = end < range.end;
    stream::try_unfold((range.start, allowed), move |(offset, mut allowed)| {
        let next = end.min(offset + CHUNK_BYTES);
        let chunk = content.slice(offset..next);
        async move {
            if chunk.is_empty() {
                return if is_cut { Err(io::Error::other("cut")) } else { Ok(None) };
            }
            allowed.wait_for(|allowed| *allowed >= next as u64).await.unwrap();
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            Ok(Some((chunk, (next, allowed))))
        }
    })
}

pub fn digest(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(size_bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(size_bytes + 8);
    while content.len() < size_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(size_bytes);
    content.into()
}

/// A running shim over a plain directory.
pub struct Shim {
    pub url: String,
    pub address: String,
    pub root: Arc<TempDir>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Shim {
    /// Over an empty directory.
    pub async fn start(upstream: &Upstream) -> Self {
        let root = Arc::new(TempDir::new().unwrap());
        Self::over(root, Some(upstreams(&[upstream.url()]))).await
    }

    pub async fn over(root: Arc<TempDir>, upstreams: Option<Registry>) -> Self {
        Self::with(config(upstreams), root).await
    }

    /// Over an empty directory, with several upstreams.
    pub async fn of(upstreams: Vec<Registry>) -> Self {
        let config = Config { upstreams, ..config(None) };
        Self::with(config, Arc::new(TempDir::new().unwrap())).await
    }

    pub async fn with(config: Config, root: Arc<TempDir>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, config, root).await
    }

    pub async fn on(listener: TcpListener, mut config: Config, root: Arc<TempDir>) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let scheme = if config.http.tls.is_some() { "https" } else { "http" };
        config.node.url = Some(format!("{scheme}://{address}"));
        let server = Server::new(&config, root.path()).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(listener, async {
            let _ = stopped.await;
        }));
        let url = format!("http://{address}/v2");
        Self { url, address, root, stop: Some(stop), task: Some(task) }
    }

    /// What SIGTERM does.
    pub fn terminate(&mut self) -> JoinHandle<()> {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.take().unwrap()
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.ask(Method::GET, path, &[]).await
    }

    pub async fn head(&self, path: &str) -> reqwest::Response {
        self.ask(Method::HEAD, path, &[]).await
    }

    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> reqwest::Response {
        let url = format!("{}/{path}", self.url);
        let mut request = reqwest::Client::new().request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        timeout(PATIENCE, request.send()).await.unwrap().unwrap()
    }

    /// Waits until the directory has a path.
    pub async fn has(&self, path: &str) {
        eventually(path, || self.root.path().join(path).exists()).await;
    }

    /// The names of everything in a directory.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.path().join(path)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub fn target(&self, link: &str) -> String {
        let target = fs::read_link(self.root.path().join(link)).unwrap();
        target.file_name().unwrap().to_str().unwrap().to_owned()
    }
}

/// Reads a body to its end and checks it while it comes.
pub async fn check(response: reqwest::Response, digest: &Digest) -> Result<(), String> {
    let mut verifier = Verifier::new(digest.clone());
    let mut body = response.bytes_stream();
    while let Some(chunk) = timeout(PATIENCE, body.next()).await.unwrap() {
        verifier.update(&chunk.map_err(|error| error.to_string())?);
    }
    verifier.finish().map_err(|mismatch| mismatch.to_string())
}

/// The code of an error, as the specification wants it told.
pub async fn code(answer: reqwest::Response) -> String {
    assert_eq!(answer.headers()["content-type"], "application/json");
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

/// Puts a manifest into a directory that no shim runs over yet, and makes a tag name it.
pub fn put_manifest(root: &Path, repository: &str, tag: &str, content: &[u8]) -> Digest {
    let digest = digest(content);
    let blob = format!("blobs/sha256/{}", digest.hex());
    let repository = format!("repositories/{repository}");
    let up = "../".repeat(repository.matches('/').count() + 2);
    let links = [format!("_tags/{tag}"), format!("_manifests/sha256/{}", digest.hex())];
    fs::create_dir_all(root.join("blobs/sha256")).unwrap();
    fs::write(root.join(&blob), content).unwrap();
    for link in links {
        let link = root.join(&repository).join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up =
            format!("{up}{}", if link.to_str().unwrap().contains("_tags") { "" } else { "../" });
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(format!("{up}{blob}"), link).unwrap();
    }
    digest
}

pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The default upstream, at these URLs.
pub fn upstreams(urls: &[String]) -> Registry {
    Registry {
        key: None,
        is_default: true,
        hosts: Vec::new(),
        is_mirror: false,
        urls: urls.to_vec(),
        certificate_authorities: Vec::new(),
        credentials: None,
        realms: Vec::new(),
        blob_ttl: None,
    }
}

/// An upstream with a key.
pub fn keyed(key: &str, url: String) -> Registry {
    Registry { key: Some(key.to_owned()), is_default: false, ..upstreams(&[url]) }
}

pub fn credentials() -> Option<Credentials> {
    let password = SecretSource::Value(Secret::new("p4ssword".to_owned()));
    Some(Credentials::Password { username: "larder".to_owned(), password })
}

pub fn config(upstreams: Option<Registry>) -> Config {
    Config {
        log: Log { level: Level::Info, formatter: Formatter::Text, access_log: true },
        storage: Storage::Filesystem { root_directory: Path::new("/nowhere").into() },
        cache: Cache::default(),
        http: Http {
            addr: "127.0.0.1:0".to_owned(),
            tls: None,
            headers: vec![("X-Content-Type-Options".to_owned(), "nosniff".to_owned())],
            http2: true,
            h2c: false,
            debug: None,
            drain_timeout: PATIENCE,
        },
        node: Node { url: None },
        upstreams: upstreams.into_iter().collect(),
        auth: None,
        catalog_max_entries: 1000,
        tags: Tags::default(),
        notes: Vec::new(),
    }
}
