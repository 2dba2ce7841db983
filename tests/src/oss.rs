//! Alibaba Cloud's Object Storage Service, as far as Larder speaks to it: there is no emulator.
//! It checks the signature of every request (version 4), from Alibaba's description of it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use chrono::Utc;
use reqwest::Url;
use sha2::{Digest, Sha256};

use crate::Sandbox;

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// OSS's own default, a tenth of S3's.
const PAGE_KEYS: usize = 100;

/// A bucket.
pub struct Oss {
    address: String,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    bucket: Mutex<Bucket>,
    is_ending: AtomicBool,
}

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    /// The parts of unfinished uploads, by upload and number.
    parts: BTreeMap<(String, usize), Vec<u8>>,
    uploads: usize,
    /// How many objects came with `x-oss-server-side-encryption`.
    encrypted: usize,
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
        let address = sandbox.address();
        let listener = TcpListener::bind(&address).expect("a port of the sandbox");
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        let listener = thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared, listener: Some(listener) }
    }

    /// `storage.oss`, in one line. The endpoint is that of the bucket, as in Distribution.
    pub fn section(&self) -> String {
        format!(
            "accesskeyid: {}, accesskeysecret: {}, region: oss-cn-hangzhou, bucket: {}, \
             endpoint: \"{}\", secure: false",
            Self::KEY_ID,
            Self::KEY_SECRET,
            Self::BUCKET,
            self.address,
        )
    }

    /// The keys of all objects, and how many parts of unfinished uploads there are.
    pub fn content(&self) -> (Vec<String>, usize) {
        let bucket = self.shared.bucket();
        (bucket.objects.keys().cloned().collect(), bucket.parts.len())
    }

    /// How many objects were to be encrypted.
    pub fn encrypted(&self) -> usize {
        self.shared.bucket().encrypted
    }
}

impl Drop for Oss {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is to end.
        let woken = TcpStream::connect(&self.address).is_ok();
        if let Some(listener) = self.listener.take().filter(|_| woken) {
            listener.join().expect("the listener did not panic");
        }
    }
}

impl Shared {
    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no connection panicked")
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.is_ending.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(stream), shared) = (stream, Arc::clone(shared)) else { continue };
        thread::spawn(move || answer_all(&stream, &shared));
    }
}

struct Request {
    method: String,
    /// Decoded, without the leading slash.
    key: String,
    query: BTreeMap<String, String>,
    /// By their names in lower case.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: String::new(), body: body.into() }
    }

    fn error(status: &'static str, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code></Error>"))
    }
}

fn answer_all(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader)? {
        let answer = match refuse(&request) {
            Some(refusal) => refusal,
            None => shared.bucket().answer(&request),
        };
        let Answer { status, headers, body } = answer;
        let is_head = request.method == "HEAD";
        let length =
            if headers.contains("Content-Length") { String::new() } else { content_length(&body) };
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status}\r\n{length}{headers}\r\n")?;
        stream.write_all(if is_head { b"" } else { &body })?;
    }
    Ok(())
}

fn content_length(body: &[u8]) -> String {
    format!("Content-Length: {}\r\n", body.len())
}

fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let url = format!("http://oss{}", words.next().unwrap_or_default());
    let url: Url = url.parse().map_err(io::Error::other)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let key = decode(url.path().trim_start_matches('/'));
    let query = url.query_pairs().map(|(name, value)| (name.into(), value.into())).collect();
    Ok(Some(Request { method, key, query, headers, body }))
}

/// What a request is answered that has no business here.
fn refuse(request: &Request) -> Option<Answer> {
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    if request.headers.keys().any(|name| name.starts_with("x-amz-")) {
        return Some(Answer::error("400 Bad Request", "NotOurHeader"));
    }
    let unsigned = || Answer::error("403 Forbidden", "AccessDenied");
    let Some(authorization) = header("authorization").strip_prefix("OSS4-HMAC-SHA256 ") else {
        return Some(unsigned());
    };
    let field = |name: &str| {
        let fields = authorization.split(',').map(str::trim);
        fields.filter_map(|field| field.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v)
    };
    let (Some(credential), Some(signature)) = (field("Credential"), field("Signature")) else {
        return Some(unsigned());
    };
    let (id, scope) = credential.split_once('/').unwrap_or_default();
    if id != Oss::KEY_ID {
        return Some(Answer::error("403 Forbidden", "InvalidAccessKeyId"));
    }
    let additional = field("AdditionalHeaders").unwrap_or_default();
    let date = header("x-oss-date");
    let first = format!("aliyun_v4{}", Oss::KEY_SECRET).into_bytes();
    let key = scope.split('/').fold(first, |key, part| hmac(&key, part.as_bytes()));
    let is_of = |bucket| {
        let canonical = hex(&Sha256::digest(canonical_request(request, bucket, additional)));
        let text = format!("OSS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
        hex(&hmac(&key, text.as_bytes())) == signature
    };
    let is_of_region = scope.ends_with("/cn-hangzhou/oss/aliyun_v4_request");
    if is_of_region && is_of(Oss::BUCKET) {
        None
    } else if is_of_region && is_of(Oss::MISSING_BUCKET) {
        Some(Answer::error("404 Not Found", "NoSuchBucket"))
    } else {
        Some(Answer::error("403 Forbidden", "SignatureDoesNotMatch"))
    }
}

fn canonical_request(request: &Request, bucket: &str, additional: &str) -> String {
    let query = request.query.iter().map(|(name, value)| match &**value {
        "" => encode(name),
        value => format!("{}={}", encode(name), encode(value)),
    });
    let is_signed = |name: &str| {
        name.starts_with("x-oss-")
            || ["content-type", "content-md5"].contains(&name)
            || additional.split(';').any(|additional| additional == name)
    };
    let headers = request.headers.iter().filter(|(name, _)| is_signed(name));
    let headers: String = headers.map(|(name, value)| format!("{name}:{value}\n")).collect();
    let path = encode(&format!("/{bucket}/{}", request.key)).replace("%2F", "/");
    format!(
        "{}\n{path}\n{}\n{headers}\n{additional}\n{}",
        request.method,
        query.collect::<Vec<_>>().join("&"),
        request.headers.get("x-oss-content-sha256").map_or("", String::as_str),
    )
}

impl Bucket {
    fn answer(&mut self, request: &Request) -> Answer {
        let parameter = |name: &str| request.query.get(name).cloned();
        let key = request.key.clone();
        match (&*request.method, parameter("uploadId")) {
            ("GET", None) if key.is_empty() => self.list(request),
            ("GET" | "HEAD", None) => self.get(request),
            ("PUT", None) => self.put(request, key),
            ("DELETE", None) => {
                self.objects.remove(&key);
                Answer::new("204 No Content", "")
            }
            ("POST", None) if request.query.contains_key("uploads") => {
                self.count_encrypted(request);
                self.uploads += 1;
                let id = self.uploads;
                Answer::new(
                    "200 OK",
                    format!(
                        "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                     </InitiateMultipartUploadResult>"
                    ),
                )
            }
            ("PUT", Some(upload)) => {
                let number = parameter("partNumber").and_then(|number| number.parse().ok());
                self.parts.insert((upload, number.unwrap_or(0)), request.body.clone());
                with_etag(Answer::new("200 OK", ""))
            }
            ("POST", Some(upload)) => {
                let content = self.take_parts(&upload).concat();
                self.objects.insert(key, content);
                Answer::new(
                    "200 OK",
                    "<CompleteMultipartUploadResult><ETag>\"e\"</ETag>\
                     </CompleteMultipartUploadResult>",
                )
            }
            ("DELETE", Some(upload)) => {
                self.take_parts(&upload);
                Answer::new("204 No Content", "")
            }
            _ => Answer::error("405 Method Not Allowed", "MethodNotAllowed"),
        }
    }

    fn take_parts(&mut self, upload: &str) -> Vec<Vec<u8>> {
        let is_of_it = |(of, _): &(String, usize), _: &mut Vec<u8>| of == upload;
        self.parts.extract_if(.., is_of_it).map(|(_, content)| content).collect()
    }

    fn count_encrypted(&mut self, request: &Request) {
        self.encrypted += usize::from(request.headers.contains_key("x-oss-server-side-encryption"));
    }

    fn put(&mut self, request: &Request, key: String) -> Answer {
        let forbids = request.headers.get("x-oss-forbid-overwrite").is_some_and(|v| v == "true");
        if forbids && self.objects.contains_key(&key) {
            return Answer::error("409 Conflict", "FileAlreadyExists");
        }
        self.count_encrypted(request);
        self.objects.insert(key, request.body.clone());
        with_etag(Answer::new("200 OK", ""))
    }

    fn get(&self, request: &Request) -> Answer {
        let Some(content) = self.objects.get(&request.key) else {
            return Answer::error("404 Not Found", "NoSuchKey");
        };
        let total = content.len();
        let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        let range = range.and_then(|range| range.split_once('-'));
        let mut answer = match range {
            None => Answer::new("200 OK", content.clone()),
            Some((first, last)) => {
                let first = first.parse().unwrap_or(0);
                let end = last.parse().map_or(total, |last: usize| total.min(last + 1));
                let mut answer = Answer::new("206 Partial Content", &content[first..end]);
                let last = end - 1;
                answer.headers = format!("Content-Range: bytes {first}-{last}/{total}\r\n");
                answer
            }
        };
        answer.headers += &content_length(&answer.body);
        // An object has no date of its own here, and is always new.
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        answer.headers += &format!("Last-Modified: {date}\r\n");
        with_etag(answer)
    }

    fn list(&self, request: &Request) -> Answer {
        let parameter = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (parameter("prefix"), parameter("delimiter"));
        let marker = parameter("continuation-token").to_owned();
        let (mut lines, mut last_group, mut next) = (Vec::new(), String::new(), None);
        for (key, content) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            let group = rest.find(delimiter).filter(|_| !delimiter.is_empty());
            let group = group.map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]));
            let name = group.clone().unwrap_or_else(|| key.clone());
            if name <= marker || (group.is_some() && name == last_group) {
                continue;
            }
            if lines.len() == PAGE_KEYS {
                next = Some(last_group.clone());
                break;
            }
            last_group.clone_from(&name);
            lines.push(match group {
                Some(group) => {
                    format!("<CommonPrefixes><Prefix>{group}</Prefix></CommonPrefixes>")
                }
                None => format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-11-23T09:00:00.000Z</LastModified>\
                     <ETag>\"e\"</ETag><Size>{}</Size></Contents>",
                    content.len()
                ),
            });
        }
        let next = next.map_or_else(String::new, |next| {
            format!("<NextContinuationToken>{next}</NextContinuationToken>")
        });
        let lines = lines.concat();
        Answer::new("200 OK", format!("<ListBucketResult>{lines}{next}</ListBucketResult>"))
    }
}

fn with_etag(mut answer: Answer) -> Answer {
    answer.headers += "ETag: \"e\"\r\n";
    answer
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64, "a key that fits into a block");
    let pad = |byte: u8| -> Vec<u8> {
        (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ byte).collect()
    };
    let inner = Sha256::digest([&pad(0x36), text].concat());
    Sha256::digest([&pad(0x5c), &inner[..]].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn decode(text: &str) -> String {
    let as_query = format!("http://oss/?k={}", text.replace('+', "%2B"));
    let url: Url = as_query.parse().expect("a path");
    let (_, value) = url.query_pairs().next().expect("the value");
    value.into_owned()
}
