//! What the servers that are written for tests have in common: HTTP/1.1, a thread for each
//! connection, and an end with the test.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use reqwest::Url;

use crate::Sandbox;

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A request, with all of its body.
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, decoded.
    pub path: String,
    /// The parameters, decoded.
    pub query: BTreeMap<String, String>,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A header, which is empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A parameter, which is empty when there is none.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// The first byte that `Range: bytes=first-last` asks for, and the one behind the last, in a
    /// content of `size` bytes.
    pub fn range(&self, size: usize) -> Option<(usize, usize)> {
        let (first, last) = self.header("range").strip_prefix("bytes=")?.split_once('-')?;
        let end = last.parse().map_or(size, |last: usize| size.min(last + 1));
        Some((first.parse().ok()?, end))
    }
}

/// What a request is answered.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// More headers than `Content-Length`, each with the end of its line.
    pub headers: String,
    /// The body. HEAD is answered without it.
    pub body: Vec<u8>,
}

impl Answer {
    /// An answer without headers of its own.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: String::new(), body: body.into() }
    }

    /// An error, as S3 and those that speak like it tell it.
    pub fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code></Error>"))
    }

    /// With one more header.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    /// The part of `content` that `request` asks for.
    pub fn content(request: &Request, content: &[u8]) -> Self {
        let size = content.len();
        match request.range(size) {
            None => Self::new(200, content),
            Some((first, end)) if first < end => Self::new(206, &content[first..end])
                .with("Content-Range", format!("bytes {first}-{}/{size}", end - 1)),
            Some(_) => Self::error(416, "InvalidRange"),
        }
    }
}

/// A server in this process.
pub struct Server {
    address: String,
    is_ending: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers each request on a port of the sandbox.
    pub fn start(
        sandbox: &Sandbox,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let address = sandbox.address();
        let listener = TcpListener::bind(&address).expect("a port of the sandbox");
        let is_ending = Arc::new(AtomicBool::new(false));
        let (answer, ends) = (Arc::new(answer), Arc::clone(&is_ending));
        let accept = move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), answer) = (stream, Arc::clone(&answer)) else { continue };
                // A client that hangs up ends its connection, and that is all there is to it.
                thread::spawn(move || answer_all(&stream, &*answer));
            }
        };
        Self { address, is_ending, listener: Some(thread::spawn(accept)) }
    }

    /// Its address, host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is to end.
        let woken = TcpStream::connect(&self.address).is_ok();
        if let Some(listener) = self.listener.take().filter(|_| woken) {
            listener.join().expect("the listener did not panic");
        }
    }
}

fn answer_all(mut stream: &TcpStream, answer: &dyn Fn(&Request) -> Answer) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader)? {
        let Answer { status, headers, body } = answer(&request);
        let head =
            format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        let body = if request.method == "HEAD" { vec![] } else { body };
        // In one piece: what follows a small packet waits for its acknowledgement.
        stream.write_all(&[head.into_bytes(), body].concat())?;
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
    let url = format!("http://server{}", words.next().unwrap_or_default());
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
    let query = url.query_pairs().map(|(name, value)| (name.into(), value.into())).collect();
    Ok(Some(Request { method, path: decode(url.path()), query, headers, body }))
}

fn decode(path: &str) -> String {
    let as_query = format!("http://server/?k={}", path.replace('+', "%2B").replace('&', "%26"));
    let url: Url = as_query.parse().expect("a path");
    let (_, value) = url.query_pairs().next().expect("the value");
    value.into_owned()
}
