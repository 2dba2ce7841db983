//! Clients that cost as little as possible, so that it is the server that is measured.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

const HEAD_MAX_BYTES: usize = 16 << 10;
const PIECE_BYTES: usize = 256 << 10;
/// Distribution serves what OCI defines to those alone who ask for it.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, */*";
/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked, again and again.
#[derive(Clone)]
pub struct Load {
    /// The server, host and port.
    pub address: String,
    /// `GET /…`
    pub line: String,
    /// How many clients ask at once, each on a connection that it keeps.
    pub connections: usize,
    /// How long they ask. What is under way at its end is not waited for.
    pub duration: Duration,
    /// TLS, if any.
    pub tls: Option<Arc<ClientConfig>>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Yield {
    /// Bytes of bodies.
    pub bytes: u64,
    /// Whole answers.
    pub answers: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Load {
    /// Asks, and counts.
    ///
    /// # Panics
    /// When a server answers with anything but 200, or does not answer.
    pub fn run(&self) -> Yield {
        let started = Instant::now();
        let until = started + self.duration;
        let mut total = Yield::default();
        thread::scope(|scope| {
            let clients: Vec<_> =
                (0..self.connections).map(|_| scope.spawn(move || self.client(until))).collect();
            for client in clients {
                let one = client.join().expect("a client that did not panic");
                let one = one.unwrap_or_else(|e| panic!("{} {}: {e}", self.address, self.line));
                total.bytes += one.bytes;
                total.answers += one.answers;
            }
        });
        total.elapsed = started.elapsed();
        total
    }

    /// Asks once, and gives the size of the body.
    ///
    /// # Panics
    /// As [`Load::run`].
    pub fn once(&self) -> u64 {
        let socket = TcpStream::connect(&self.address).expect("a connection");
        let count = self.ask(Plain(socket), Instant::now() + self.duration, 1);
        count.expect("an answer").bytes
    }

    fn client(&self, until: Instant) -> io::Result<Yield> {
        let socket = TcpStream::connect(&self.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        match &self.tls {
            None => self.ask(Plain(socket), until, u64::MAX),
            Some(config) => {
                let name = ServerName::try_from("localhost").expect("a name");
                let session = ClientConnection::new(Arc::clone(config), name);
                let session = session.map_err(io::Error::other)?;
                self.ask(
                    Tls(StreamOwned::new(session, socket), vec![0; PIECE_BYTES]),
                    until,
                    u64::MAX,
                )
            }
        }
    }

    fn ask(&self, mut wire: impl Wire, until: Instant, answers_max: u64) -> io::Result<Yield> {
        let request = format!("{} HTTP/1.1\r\nHost: bench\r\nAccept: {ACCEPT}\r\n\r\n", self.line);
        let has_body = self.line.starts_with("GET ");
        let mut count = Yield::default();
        while Instant::now() < until && count.answers < answers_max {
            wire.write_all(request.as_bytes())?;
            let (length, ahead) = read_head(&mut wire)?;
            let length = if has_body { length } else { 0 };
            let mut rest = length - ahead;
            count.bytes += ahead;
            while rest > 0 {
                if Instant::now() >= until && length > HEAD_MAX_BYTES as u64 {
                    return Ok(count);
                }
                let size = wire.discard(rest)?;
                if size == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                count.bytes += size;
                rest -= size;
            }
            count.answers += 1;
        }
        Ok(count)
    }
}

/// Reads the head of an answer; gives the length of its body and how much of that came with it.
fn read_head(wire: &mut impl Wire) -> io::Result<(u64, u64)> {
    let mut head = [0; HEAD_MAX_BYTES];
    let mut size = 0;
    loop {
        let read = wire.read(&mut head[size..])?;
        size += read;
        let text = &head[..size];
        let end = text.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        let text = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok());
        if !text.starts_with("http/1.1 200") {
            return Err(io::Error::other(text));
        }
        let length = length.ok_or_else(|| io::Error::other("no length"))?;
        return Ok((length, (size - end - 4) as u64));
    }
}

trait Wire: Read + Write {
    /// Takes at most so many bytes and forgets them. Gives how many.
    fn discard(&mut self, max_bytes: u64) -> io::Result<u64>;
}

struct Plain(TcpStream);
struct Tls(StreamOwned<ClientConnection, TcpStream>, Vec<u8>);

impl Wire for Plain {
    fn discard(&mut self, max_bytes: u64) -> io::Result<u64> {
        let size = max_bytes.min(4 << 20) as usize;
        // SAFETY: with MSG_TRUNC, tcp(7) discards the bytes and touches no buffer.
        let taken =
            unsafe { libc::recv(self.0.as_raw_fd(), std::ptr::null_mut(), size, libc::MSG_TRUNC) };
        u64::try_from(taken).map_err(|_| io::Error::last_os_error())
    }
}

impl Wire for Tls {
    fn discard(&mut self, max_bytes: u64) -> io::Result<u64> {
        let size = max_bytes.min(self.1.len() as u64) as usize;
        self.0.read(&mut self.1[..size]).map(|size| size as u64)
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
