//! One turn of sending a file: it runs on a blocking thread, not on one that serves others.
//!
//! The file may be on a mount that is slow or hangs, and its pages may have to be read first. Only
//! what a turn has found to be in memory is sent without a thread of its own, which costs a quarter
//! less. A turn that sends goes on while the client keeps up, so that a fast client costs few
//! changes of thread, and ends soon when it does not, so that a slow one does not keep the thread.

use std::{
    fs::File,
    io::{self, ErrorKind, IoSlice, Write},
    ops::Range,
    os::{fd::AsFd, unix::fs::FileExt},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::sendfile::sendfile64,
};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConnection;

use crate::{outbox::FileRange, resident};

/// How long a turn may last before others get the thread.
const TURN: Duration = Duration::from_millis(50);
/// How long a turn waits for a client to take more.
const PATIENCE: Duration = Duration::from_millis(10);
/// How much one call of `sendfile` may move. Other connections then have their turn.
const SENDFILE_MAX_BYTES: u64 = 2 << 20;
/// How much of a file is read at once where it has to be.
const PIECE_BYTES: usize = 64 << 10;
/// How much is encrypted at once. It stays in a core's own cache from the file to the socket, and
/// is still sent with few system calls.
const ENCRYPT_BYTES: usize = 256 << 10;

/// How far apart the bytes are that are looked at. The kernel reads ahead, and gives up, in pieces
/// of this size or larger.
const STRIDE_BYTES: usize = 128 << 10;
/// How far apart they are where the first of them took long to read.
const CLOSE_STRIDE_BYTES: usize = STRIDE_BYTES / 4;
/// A byte that takes longer was not in memory: a disk takes longer, and so does a FUSE daemon.
const MEMORY_MAX: Duration = Duration::from_micros(5);

/// How a turn ended.
pub enum Turn {
    /// So many bytes were sent.
    Sent(u64),
    /// So many bytes are in memory, and [`send_file`] sends them without waiting.
    InMemory(u64),
    /// The connection is dead, and this is what it died of.
    Dead(io::Error),
}

/// Looks whether a range begins with what is in memory; sends it, or as much of it as the client
/// takes in one turn, if it does not.
///
/// # Errors
/// The file cannot be read, or is shorter.
pub fn send_plain(socket: &TcpStream, from: &FileRange) -> io::Result<Turn> {
    let window = resident::first_window(from);
    if is_in_memory(&from.file, window.clone())? {
        resident::note(from.inode, window.clone());
        return Ok(Turn::InMemory(window.end - window.start));
    }
    let started = Instant::now();
    let mut range = from.range.clone();
    while !range.is_empty() {
        match send_file(socket, &from.file, &range) {
            Ok(sent_bytes) => range.start += sent_bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !is_room_soon(socket, started)? {
                    break;
                }
            }
            // `sendfile` does not say which of its two ends is in trouble.
            Err(error) if socket.peer_addr().is_err() => return Ok(Turn::Dead(error)),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Turn::Dead(error)),
            Err(error) => return Err(error),
        }
    }
    Ok(Turn::Sent(range.start - from.range.start))
}

/// Whether all of a range is in memory, by how long it takes to read a byte here and there.
/// `RWF_NOWAIT` would tell, but no file on a FUSE mount supports it.
///
/// A read also takes long when the thread has to wait for its processor, which is common on a busy
/// machine. So it is looked closer then: where a disk was read, or a FUSE daemon asked, for one byte,
/// those around it take as long, unless they have come with it.
fn is_in_memory(file: &File, range: Range<u64>) -> io::Result<bool> {
    for offset in range.clone().step_by(STRIDE_BYTES) {
        if !takes_long(file, offset)? {
            continue;
        }
        let end = range.end.min(offset + STRIDE_BYTES as u64);
        for near in (offset..end).step_by(CLOSE_STRIDE_BYTES).skip(1) {
            if takes_long(file, near)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn takes_long(file: &File, offset: u64) -> io::Result<bool> {
    let started = Instant::now();
    file.read_exact_at(&mut [0], offset)?;
    Ok(started.elapsed() > MEMORY_MAX)
}

/// Sends a range, or as much of it as there is room for.
///
/// # Errors
/// [`ErrorKind::WouldBlock`] when there is no room; the connection is dead, or the file cannot be
/// read, or is shorter.
pub fn send_file(socket: &TcpStream, file: &File, range: &Range<u64>) -> io::Result<u64> {
    let mut offset = i64::try_from(range.start).map_err(io::Error::other)?;
    let size_bytes = (range.end - range.start).min(SENDFILE_MAX_BYTES);
    let size_bytes = usize::try_from(size_bytes).map_err(io::Error::other)?;
    match sendfile64(socket, file, Some(&mut offset), size_bytes) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(sent_bytes) => Ok(sent_bytes as u64),
        // sendfile(2): a filesystem may not know it.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            let mut piece = [0; PIECE_BYTES];
            let piece = &mut piece[..size_bytes.min(PIECE_BYTES)];
            file.read_exact_at(piece, range.start)?;
            Ok((&*SockRef::from(socket)).write(piece)? as u64)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// The same, encrypted. What does not go out at once stays in `session`.
///
/// # Errors
/// The file cannot be read, or is shorter.
pub fn send_tls(
    socket: &TcpStream,
    session: &mut ServerConnection,
    from: &FileRange,
) -> io::Result<Turn> {
    let started = Instant::now();
    let mut range = from.range.clone();
    let mut buffer = vec![0; ENCRYPT_BYTES];
    session.set_buffer_limit(Some(ENCRYPT_BYTES));
    loop {
        match flush(socket, session, started) {
            Ok(true) if !range.is_empty() => {}
            Ok(_) => return Ok(Turn::Sent(range.start - from.range.start)),
            Err(error) => return Ok(Turn::Dead(error)),
        }
        let size_bytes = (range.end - range.start).min(ENCRYPT_BYTES as u64);
        let piece = &mut buffer[..usize::try_from(size_bytes).map_err(io::Error::other)?];
        from.file.read_exact_at(piece, range.start)?;
        range.start += session.writer().write(piece)? as u64;
    }
}

/// Sends what is encrypted. Tells whether all of it has gone, with time left in the turn.
fn flush(socket: &TcpStream, session: &mut ServerConnection, started: Instant) -> io::Result<bool> {
    while session.wants_write() {
        match session.write_tls(&mut Wire(socket)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !is_room_soon(socket, started)? {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(started.elapsed() < TURN)
}

/// Waits a little until the client takes more; `false` when it does not, or the turn is over.
fn is_room_soon(socket: &TcpStream, started: Instant) -> io::Result<bool> {
    Ok(started.elapsed() < TURN && is_room(socket, PATIENCE)?)
}

/// Whether the socket takes more within `patience`. So does one that is broken: it says so then.
///
/// # Errors
/// poll(2) failed.
pub fn is_room(socket: &TcpStream, patience: Duration) -> io::Result<bool> {
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(patience).map_err(io::Error::other)?;
    match poll(&mut sockets, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// The socket as rustls writes to it.
struct Wire<'a>(&'a TcpStream);

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*SockRef::from(self.0)).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*SockRef::from(self.0)).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
