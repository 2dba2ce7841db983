//! A registry whose faults a test can script.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use larder_layout::Digest;

use crate::{Blob, Image, Sandbox};

const WRITE_BYTES: usize = 64 << 10;
const SLOW_PAUSE: Duration = Duration::from_millis(8);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is wrong with the body of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One byte in the middle is another one.
    WrongByte,
    /// After so many bytes nothing more comes until the fault is healed.
    PauseAfter(usize),
    /// Each connection rests before each 64 KiB, and has less than 8 MiB/s.
    Slow,
}

/// A registry in this process. It serves what it was given, and counts.
pub struct ScriptedUpstream {
    address: String,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    script: Mutex<Script>,
    healed: Condvar,
    is_ending: AtomicBool,
}

#[derive(Default)]
struct Script {
    contents: HashMap<String, Blob>,
    faults: HashMap<Digest, Fault>,
    gets: HashMap<Digest, usize>,
    parts: HashMap<Digest, usize>,
}

impl ScriptedUpstream {
    /// Starts a registry that has this image.
    pub fn start(sandbox: &Sandbox, image: &Image) -> Self {
        let address = sandbox.address();
        let listener = TcpListener::bind(&address).expect("a port of the sandbox");
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        let listener = thread::spawn(move || accept(&listener, &accepting));
        let upstream = Self { address, shared, listener: Some(listener) };
        for blob in image.blobs() {
            upstream.add(&image.repository, blob);
        }
        for manifest in image.manifests() {
            let digest = manifest.digest.to_string();
            upstream.serve(format!("/v2/{}/manifests/{digest}", image.repository), manifest);
        }
        upstream.serve(format!("/v2/{}/manifests/{}", image.repository, image.tag), &image.index);
        upstream
    }

    /// Serves one more blob.
    pub fn add(&self, repository: &str, blob: &Blob) {
        self.serve(format!("/v2/{repository}/blobs/{}", blob.digest), blob);
    }

    /// Spoils a blob.
    pub fn spoil(&self, digest: &Digest, fault: Fault) {
        self.shared.script().faults.insert(digest.clone(), fault);
    }

    /// Serves a blob as it is from now on; a paused body goes on.
    pub fn heal(&self, digest: &Digest) {
        self.shared.script().faults.remove(digest);
        self.shared.healed.notify_all();
    }

    /// How often this content was asked for with GET, from somewhere up to its end.
    pub fn gets(&self, digest: &Digest) -> usize {
        self.shared.script().gets.get(digest).copied().unwrap_or_default()
    }

    /// How many parts of this content were asked for besides, as they are of what comes slowly, be it
    /// the machine's fault.
    pub fn parts(&self, digest: &Digest) -> usize {
        self.shared.script().parts.get(digest).copied().unwrap_or_default()
    }

    /// `http://` and its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn serve(&self, path: String, blob: &Blob) {
        self.shared.script().contents.insert(path, blob.clone());
    }
}

impl Drop for ScriptedUpstream {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::SeqCst);
        self.shared.script().faults.clear();
        self.shared.healed.notify_all();
        // Wakes the listener, which then sees that it is to end.
        let woken = TcpStream::connect(&self.address).is_ok();
        if let Some(listener) = self.listener.take().filter(|_| woken) {
            listener.join().expect("the upstream's listener did not panic");
        }
    }
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no connection panicked")
    }

    /// Blocks while a fault holds the body back at `sent` bytes.
    fn wait_while_paused(&self, digest: &Digest, sent: usize) {
        let is_paused = |script: &mut Script| match script.faults.get(digest) {
            Some(Fault::PauseAfter(bytes)) => sent >= *bytes,
            _ => false,
        };
        drop(self.healed.wait_while(self.script(), is_paused));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.is_ending.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(stream), shared) = (stream, Arc::clone(shared)) else { continue };
        // A client that hangs up ends its connection, and that is all there is to it.
        thread::spawn(move || answer_all(&stream, &shared));
    }
}

fn answer_all(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        let mut range = (0, None);
        for header in lines.by_ref() {
            let header = header?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            let asked =
                header.strip_prefix("range: bytes=").and_then(|asked| asked.split_once('-'));
            if let Some((first, last)) = asked {
                range = (first.parse().unwrap_or_default(), last.parse().ok());
            }
        }
        answer(stream, shared, &request, range)?;
    }
    Ok(())
}

fn answer(
    mut stream: &TcpStream,
    shared: &Shared,
    request: &str,
    (offset, last): (usize, Option<usize>),
) -> io::Result<()> {
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    if path == "/v2/" {
        return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    }
    let (blob, fault) = {
        let mut script = shared.script();
        let blob = script.contents.get(path).cloned();
        if let Some(blob) = blob.as_ref().filter(|_| method == "GET") {
            let counts = if last.is_none() { &mut script.gets } else { &mut script.parts };
            *counts.entry(blob.digest.clone()).or_default() += 1;
        }
        let fault = blob.as_ref().and_then(|blob| script.faults.get(&blob.digest).copied());
        (blob, fault)
    };
    let Some(Blob { digest, media_type, mut bytes }) = blob else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    if fault == Some(Fault::WrongByte) {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let total = bytes.len();
    let last = last.unwrap_or(total.saturating_sub(1));
    let (status, range) = match offset {
        0 => ("200 OK", String::new()),
        _ => ("206 Partial Content", format!("Content-Range: bytes {offset}-{last}/{total}\r\n")),
    };
    let body = bytes.get(offset..=last).unwrap_or_default();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
         Docker-Content-Digest: {digest}\r\nAccept-Ranges: bytes\r\n{range}\r\n",
        body.len(),
    )?;
    if method != "GET" {
        return Ok(());
    }
    let mut sent = offset;
    for chunk in body.chunks(WRITE_BYTES) {
        shared.wait_while_paused(&digest, sent);
        if fault == Some(Fault::Slow) {
            thread::sleep(SLOW_PAUSE);
        }
        stream.write_all(chunk)?;
        sent += chunk.len();
    }
    Ok(())
}
