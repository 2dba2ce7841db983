//! A Google Cloud Storage: its XML interface, as far as larder-fs speaks it. No emulator has that.
//!
//! Requests carry a token that the service account signed itself (<https://google.aip.dev/auth/4111>):
//! signature, issuer, scope and times are checked.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::Utc;
use serde_json::{Value, json};

use crate::{Sandbox, Storage, run};

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const OPENSSL_TIMEOUT: Duration = Duration::from_secs(20);
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const EMAIL: &str = "larder@project.iam.gserviceaccount.com";
/// As many names as Google puts into one page of a listing.
const PAGE: usize = 1000;

/// A server in this process with one bucket.
pub struct Gcs {
    address: String,
    private_key: String,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    bucket: Mutex<Bucket>,
    public_key: Vec<u8>,
    /// By how much the server's clock is ahead.
    ahead_secs: AtomicU64,
    is_ending: AtomicBool,
}

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    uploads: HashMap<String, BTreeMap<usize, Vec<u8>>>,
    uploads_begun: usize,
}

struct Request {
    method: String,
    path: String,
    query: HashMap<String, String>,
    token: String,
    range: Option<(usize, usize)>,
    /// `x-goog-if-generation-match: 0`
    if_absent: bool,
    body: Vec<u8>,
}

/// A status, more headers, and a body.
type Answer = (u16, String, Vec<u8>);

impl Gcs {
    /// The bucket.
    pub const BUCKET: &'static str = "images";
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "openssl";

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

        let address = sandbox.address();
        let listener = TcpListener::bind(&address).expect("a port of the sandbox");
        let public_key = fs::read(public).expect("the public key");
        let shared = Arc::new(Shared { public_key, ..Shared::default() });
        let accepting = Arc::clone(&shared);
        let listener = thread::spawn(move || accept(&listener, &accepting));
        let private_key = fs::read_to_string(private).expect("the private key");
        Self { address, private_key, shared, listener: Some(listener) }
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
            "token_uri": "https://oauth2.googleapis.com/token",
            "gcs_base_url": format!("http://{}", self.address),
        })
    }

    /// The bucket as the storage of nodes.
    pub fn storage(&self, sandbox: &Sandbox) -> Storage {
        let path = sandbox.file("gcs-account.json", &self.key_file().to_string());
        Storage::Other(format!("gcs: {{bucket: {}, keyfile: {}}}", Self::BUCKET, path.display()))
    }

    /// Puts objects into the bucket.
    pub fn fill(&self, objects: impl IntoIterator<Item = (String, Vec<u8>)>) {
        self.shared.bucket().objects.extend(objects);
    }

    /// How many uploads were begun, and neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.shared.bucket().uploads.len()
    }

    /// Puts the server's clock forward.
    pub fn set_ahead(&self, time: Duration) {
        self.shared.ahead_secs.store(time.as_secs(), Ordering::SeqCst);
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is to end.
        let woken = TcpStream::connect(&self.address).is_ok();
        if let Some(listener) = self.listener.take().filter(|_| woken) {
            listener.join().expect("the listener did not panic");
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.is_ending.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(stream), shared) = (stream, Arc::clone(shared)) else { continue };
        // A client that hangs up ends its connection, and that is all there is to it.
        thread::spawn(move || serve(&stream, &shared));
    }
}

fn serve(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader)? {
        let (status, headers, body) = match shared.is_genuine(&request.token) {
            true => shared.bucket().answer(&request),
            false => error(401, "AuthenticationRequired"),
        };
        write!(stream, "HTTP/1.1 {status} -\r\nContent-Length: {}\r\n{headers}\r\n", body.len())?;
        if request.method != "HEAD" {
            stream.write_all(&body)?;
        }
    }
    Ok(())
}

fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = pairs.map(|(key, value)| (key.to_owned(), decode(value))).collect();
    let mut request = Request {
        method,
        path: decode(path),
        query,
        token: String::new(),
        range: None,
        if_absent: false,
        body: vec![],
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "authorization" => {
                request.token = value.strip_prefix("Bearer ").unwrap_or_default().to_owned();
            }
            "content-length" => request.body.resize(value.parse().unwrap_or_default(), 0),
            "range" => request.range = range(value),
            "x-goog-if-generation-match" => request.if_absent = value == "0",
            _ => {}
        }
    }
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// `bytes=first-last`
fn range(value: &str) -> Option<(usize, usize)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().unwrap_or(usize::MAX)))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&hex, 16).unwrap_or_default()
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn error(status: u16, code: &str) -> Answer {
    (status, String::new(), format!("<Error><Code>{code}</Code></Error>").into_bytes())
}

impl Shared {
    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no connection panicked")
    }

    /// Whether the account signed this token, for this service and this time.
    fn is_genuine(&self, token: &str) -> bool {
        let Some((message, signature)) = token.rsplit_once('.') else { return false };
        let Some((header, claims)) = message.split_once('.') else { return false };
        let decode = |text| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        let parse = |text| serde_json::from_slice::<Value>(&decode(text)).unwrap_or_default();
        let (header, claims) = (parse(header), parse(claims));
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
            + self.ahead_secs.load(Ordering::SeqCst);
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key);
        let time = |name: &str| claims[name].as_u64().unwrap_or_default();
        header["alg"] == "RS256"
            && header["kid"] == "key"
            && claims["iss"] == EMAIL
            && claims["sub"] == EMAIL
            && claims["scope"] == SCOPE
            && (time("iat")..time("exp")).contains(&now)
            && time("exp") - time("iat") <= 3600
            && key.verify(message.as_bytes(), &decode(signature)).is_ok()
    }
}

impl Bucket {
    fn answer(&mut self, request: &Request) -> Answer {
        let path = request.path.strip_prefix('/').unwrap_or_default();
        let (bucket, name) = path.split_once('/').unwrap_or((path, ""));
        if bucket != Gcs::BUCKET {
            return error(404, "NoSuchBucket");
        }
        let upload = request.query.get("uploadId");
        match (&*request.method, upload) {
            ("GET", _) if name.is_empty() => self.list(request),
            ("GET" | "HEAD", None) => self.get(name, request.range),
            ("PUT", None) if request.if_absent && self.objects.contains_key(name) => {
                error(412, "PreconditionFailed")
            }
            ("PUT", None) => {
                self.objects.insert(name.to_owned(), request.body.clone());
                (200, "ETag: \"1\"\r\n".to_owned(), vec![])
            }
            ("DELETE", None) => match self.objects.remove(name) {
                Some(_) => (204, String::new(), vec![]),
                None => error(404, "NoSuchKey"),
            },
            ("POST", None) if request.query.contains_key("uploads") => {
                self.uploads_begun += 1;
                let id = self.uploads_begun.to_string();
                self.uploads.insert(id.clone(), BTreeMap::new());
                let name = "InitiateMultipartUploadResult";
                (200, String::new(), format!("<{name}><UploadId>{id}</UploadId></{name}>").into())
            }
            (method, Some(id)) => self.upload(method, id, name, request),
            _ => error(400, "InvalidArgument"),
        }
    }

    fn upload(&mut self, method: &str, id: &str, name: &str, request: &Request) -> Answer {
        let Some(parts) = self.uploads.get_mut(id) else { return error(404, "NoSuchUpload") };
        match method {
            "PUT" => {
                let number = request.query.get("partNumber").and_then(|n| n.parse().ok());
                let number: usize = number.unwrap_or_default();
                parts.insert(number, request.body.clone());
                (200, format!("ETag: \"{number}\"\r\n"), vec![])
            }
            "POST" => {
                let parts: Vec<_> = self.uploads.remove(id).into_iter().flatten().collect();
                let last = parts.len().saturating_sub(1);
                if parts[..last].iter().any(|(_, part)| part.len() < 5 << 20) {
                    return error(400, "EntityTooSmall");
                }
                let content = parts.into_iter().flat_map(|(_, part)| part).collect();
                self.objects.insert(name.to_owned(), content);
                let name = "CompleteMultipartUploadResult";
                (200, String::new(), format!("<{name}><ETag>\"1\"</ETag></{name}>").into())
            }
            _ => {
                self.uploads.remove(id);
                (204, String::new(), vec![])
            }
        }
    }

    fn get(&self, name: &str, range: Option<(usize, usize)>) -> Answer {
        let Some(content) = self.objects.get(name) else { return error(404, "NoSuchKey") };
        // An object has no date of its own here, and is always new.
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        let headers = format!("ETag: \"1\"\r\nLast-Modified: {date}\r\n");
        let Some((first, last)) = range else { return (200, headers, content.clone()) };
        if first >= content.len() {
            return error(416, "InvalidRange");
        }
        let last = last.min(content.len() - 1);
        let range = format!("Content-Range: bytes {first}-{last}/{}\r\n", content.len());
        (206, headers + &range, content[first..=last].to_vec())
    }

    fn list(&self, request: &Request) -> Answer {
        let asked = |key: &str| request.query.get(key).map_or("", String::as_str);
        let (prefix, delimiter) = (asked("prefix"), asked("delimiter"));
        // What lies below a delimiter is one entry; an entry is a name and its size.
        let mut entries = BTreeMap::new();
        for (name, content) in &self.objects {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            match rest.split_once(delimiter).filter(|_| !delimiter.is_empty()) {
                Some((part, _)) => entries.insert(format!("{prefix}{part}{delimiter}"), None),
                None => entries.insert(name.clone(), Some(content.len())),
            };
        }
        let after = asked("continuation-token");
        let mut rest = entries.into_iter().filter(|(name, _)| name.as_str() > after);
        let page: Vec<_> = rest.by_ref().take(PAGE).collect();
        let mut xml = "<ListBucketResult>".to_owned();
        for (name, size) in &page {
            xml += &match size {
                Some(size) => format!(
                    "<Contents><Key>{name}</Key><Size>{size}</Size><ETag>\"1\"</ETag>\
                     <LastModified>2026-11-23T09:00:00.000Z</LastModified></Contents>"
                ),
                None => format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
            };
        }
        if let (Some((last, _)), Some(_)) = (page.last(), rest.next()) {
            xml += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
        }
        (200, String::new(), (xml + "</ListBucketResult>").into_bytes())
    }
}
