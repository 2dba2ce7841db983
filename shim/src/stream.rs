//! A connection as hyper reads and writes it, with or without TLS.
//!
//! Slices that are markers ([`crate::outbox`]) are not sent; the file that they stand for is, by
//! `sendfile` without TLS, by reading and encrypting it with TLS. What is not known to be in memory
//! is sent by a thread of its own ([`crate::turn`]). Nothing is mapped into memory: a file that shrinks or cannot be read cuts
//! the connection, and never kills the process.

use std::{
    fs::File,
    io::{self, IoSlice},
    mem,
    net::Shutdown,
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use crate::{
    calls::{Calls, PIECE_DEADLINE},
    content::place::doubt,
    outbox::{FileRange, Outbox, is_marker},
    resident,
    turn::{self, Turn},
};

/// A connection.
pub struct Stream {
    socket: Socket,
    layer: Layer,
    outbox: Arc<Outbox>,
    /// What files are read with.
    calls: Calls,
    turn: Option<Running>,
    /// How much of what is next in the outbox is in memory.
    in_memory_bytes: u64,
    /// Whether the kernel waits for full packets.
    is_corked: bool,
    /// Whether it has sent from memory, and other connections are to do so first.
    is_after_others: bool,
    /// Who waits to read until the turn is over.
    reader: Option<Waker>,
}

/// A socket that several may hold: a thread that hangs keeps it from becoming another's number.
#[derive(Clone)]
pub struct Socket(pub Arc<TcpStream>);

enum Layer {
    Plain,
    Tls(Box<TlsStream<Socket>>),
    /// TLS, which the thread of a running turn has.
    Away,
}

type Running = Pin<Box<dyn Future<Output = io::Result<(Turn, Layer)>> + Send>>;

impl Stream {
    /// A connection without TLS.
    pub fn plain(socket: Socket, outbox: Arc<Outbox>, calls: Calls) -> Self {
        Self {
            socket,
            layer: Layer::Plain,
            outbox,
            calls,
            turn: None,
            in_memory_bytes: 0,
            is_corked: false,
            is_after_others: false,
            reader: None,
        }
    }

    /// A connection with TLS.
    pub fn tls(tls: TlsStream<Socket>, outbox: Arc<Outbox>, calls: Calls) -> Self {
        let socket = tls.get_ref().0.clone();
        Self { layer: Layer::Tls(Box::new(tls)), ..Self::plain(socket, outbox, calls) }
    }

    /// Sends the file of a marker: at once what is in memory, else in a turn.
    fn poll_send(&mut self, context: &mut Context<'_>, marker: &[u8]) -> Poll<io::Result<usize>> {
        if mem::take(&mut self.is_after_others) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.cork(true)?;
        loop {
            let sent_bytes = if self.turn.is_some() {
                ready!(self.poll_turn(context))?
            } else if self.in_memory_bytes > 0 {
                let next = self.outbox.next(marker)?.split_front(self.in_memory_bytes);
                let send = || turn::send_file(&self.socket.0, &next.file, &next.range);
                match ready!(self.socket.poll_io(context, send)) {
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                        self.begin_doubt(next.file, error);
                        continue;
                    }
                    sent => {
                        let sent_bytes = sent?;
                        self.in_memory_bytes -= sent_bytes;
                        self.is_after_others = true;
                        sent_bytes
                    }
                }
            } else {
                let next = self.outbox.next(marker)?;
                if matches!(self.layer, Layer::Plain) {
                    self.in_memory_bytes = resident::known_bytes(&next);
                }
                if self.in_memory_bytes == 0 {
                    ready!(self.socket.poll_room(context))?;
                    self.begin_turn(next);
                }
                continue;
            };
            if sent_bytes > 0 {
                self.outbox.advance(sent_bytes);
                return Poll::Ready(usize::try_from(sent_bytes).map_err(io::Error::other));
            }
        }
    }

    /// Makes the kernel wait for full packets, or send what it has (tcp(7), `TCP_CORK`). `sendfile`
    /// moves 64 KiB at a time, and what of that does not fill a packet would go out in one of its own
    /// with the next acknowledgement: on loopback 53 bytes, and a third more packets.
    fn cork(&mut self, is_corked: bool) -> io::Result<()> {
        if self.is_corked != is_corked {
            SockRef::from(&*self.socket.0).set_tcp_cork(is_corked)?;
            self.is_corked = is_corked;
        }
        Ok(())
    }

    fn begin_turn(&mut self, range: FileRange) {
        let (socket, calls) = (self.socket.clone(), self.calls.clone());
        let mut layer = mem::replace(&mut self.layer, Layer::Away);
        self.turn = Some(Box::pin(async move {
            let turn = move || {
                let ended = match &mut layer {
                    Layer::Tls(tls) => turn::send_tls(&socket.0, tls.get_mut().1, &range),
                    Layer::Plain | Layer::Away => turn::send_plain(&socket.0, &range),
                };
                let ended = ended.inspect_err(|error| doubt(&range.file, error));
                ended.map(|ended| (ended, layer))
            };
            calls.run(PIECE_DEADLINE, turn).await
        }));
    }

    /// A turn that ends as sending from memory has: a page was not there, and is damaged. To say so
    /// may take a while.
    fn begin_doubt(&mut self, file: Arc<File>, error: io::Error) {
        let calls = self.calls.clone();
        self.turn = Some(Box::pin(async move {
            let turn = move || {
                doubt(&file, &error);
                Err(error)
            };
            calls.run(PIECE_DEADLINE, turn).await
        }));
    }

    /// Waits for the turn's end. A file that could not be read ends the connection at once, so
    /// that the client sees a cut transfer.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let Some(turn) = &mut self.turn else { return Poll::Ready(Ok(0)) };
        let ended = ready!(turn.as_mut().poll(context));
        self.turn = None;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        let sent = ended.and_then(|(ended, layer)| {
            self.layer = layer;
            match ended {
                Turn::Sent(sent_bytes) => Ok(sent_bytes),
                Turn::InMemory(in_memory_bytes) => {
                    self.in_memory_bytes = in_memory_bytes;
                    Ok(0)
                }
                Turn::Dead(error) => Err(error),
            }
        });
        if sent.is_err() {
            // It may be gone already.
            let _ = SockRef::from(&*self.socket.0).shutdown(Shutdown::Both);
        }
        Poll::Ready(sent)
    }

    /// Waits until no turn runs, so that the layer is here.
    fn poll_layer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut Layer>> {
        let sent_bytes = ready!(self.poll_turn(context))?;
        self.outbox.advance(sent_bytes);
        Poll::Ready(Ok(&mut self.layer))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        match &mut me.layer {
            Layer::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
            Layer::Plain => Pin::new(&mut me.socket).poll_read(context, buffer),
            Layer::Away if me.turn.is_some() => {
                me.reader = Some(context.waker().clone());
                Poll::Pending
            }
            Layer::Away => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let memory = slices.iter().take_while(|slice| !is_marker(slice)).count();
        if let (0, Some(marker)) = (memory, slices.first()) {
            return self.poll_send(context, marker);
        }
        let is_more = memory < slices.len();
        let slices = &slices[..memory];
        match ready!(self.poll_layer(context))? {
            Layer::Tls(tls) => Pin::new(tls).poll_write_vectored(context, slices),
            Layer::Plain => self.socket.poll_send(context, slices, is_more),
            Layer::Away => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Layer::Tls(tls) = ready!(self.poll_layer(context))? {
            ready!(Pin::new(tls).poll_flush(context))?;
        }
        self.cork(false)?;
        // hyper has given all away: a file that is left would go to the next answer.
        if self.outbox.size_bytes() > 0 {
            return Poll::Ready(Err(io::Error::other("a file was left out of an answer")));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.poll_layer(context))? {
            Layer::Tls(tls) => Pin::new(tls).poll_shutdown(context),
            Layer::Plain | Layer::Away => Pin::new(&mut self.socket).poll_shutdown(context),
        }
    }
}

impl Socket {
    /// How many bytes the client has taken, as far as its acknowledgements tell.
    pub fn taken_bytes(&self) -> u64 {
        // SAFETY: all of it are integers, for which 0 is a value.
        let mut info: libc::tcp_info = unsafe { mem::zeroed() };
        let mut size = size_of_val(&info) as libc::socklen_t;
        let (descriptor, to) = (self.0.as_raw_fd(), (&raw mut info).cast());
        // SAFETY: the descriptor is open as long as `self`, and the kernel writes at most `size`
        // bytes, which `info` has. What an old kernel does not tell stays 0, as all does in an error.
        unsafe { libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut size) };
        info.tcpi_bytes_acked
    }

    /// Waits until there is room to send.
    fn poll_room(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_io(context, || match turn::is_room(&self.0, Duration::ZERO)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        })
    }

    /// Sends memory. `is_more` is to come at once, and may share its packet.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        is_more: bool,
    ) -> Poll<io::Result<usize>> {
        let flags = libc::MSG_NOSIGNAL | if is_more { libc::MSG_MORE } else { 0 };
        let socket = SockRef::from(&*self.0);
        self.poll_io(context, || socket.send_vectored_with_flags(slices, flags))
    }

    fn poll_io<T>(
        &self,
        context: &mut Context<'_>,
        mut io: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_io(Interest::WRITABLE, &mut io) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            let mut read = None;
            let attempt = self.0.try_io(Interest::READABLE, || {
                let room_bytes = buffer.remaining();
                // SAFETY: recv(2) writes into it, and what it was does not come back.
                let unfilled = unsafe { buffer.unfilled_mut() };
                let size_bytes = SockRef::from(&*self.0).recv(unfilled)?;
                read = Some(size_bytes);
                // epoll(7): less than there is room for was all that there is. Said at once, this
                // spares each request the call that finds nothing.
                let is_all = (1..room_bytes).contains(&size_bytes);
                if is_all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (read, attempt) {
                (Some(size_bytes), _) => {
                    // SAFETY: recv(2) has written so many.
                    unsafe { buffer.assume_init(size_bytes) };
                    buffer.advance(size_bytes);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, outcome) => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, &[IoSlice::new(bytes)], false)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, slices, false)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}
