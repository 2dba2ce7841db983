//! The body of an answer, from where it is made to its connection.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::BoxStream};
use hyper::body::{Frame, SizeHint};

use crate::{
    calls::Calls,
    outbox::{FileRange, MARKER_MAX_BYTES, Outbox},
};

/// How much of a blob on its way is read at once.
pub const PIECE_BYTES: u64 = 1 << 20;
/// How much of a file is read at once where it has to become memory. Less costs more processor
/// time, and each request may hold three of these.
pub const FILE_PIECE_BYTES: u64 = 256 << 10;

/// What an answer has for a body.
pub enum Body {
    /// What is in memory, perhaps nothing.
    Memory(Bytes),
    /// A part of a file of the directory. How it is sent is the connection's business.
    File(FileRange),
    /// What comes as it comes.
    Stream(BoxStream<'static, io::Result<Bytes>>),
    /// One after the other.
    Parts(Vec<Body>),
}

/// A body on its way to hyper.
pub enum Outgoing {
    /// What is in memory.
    Memory(Bytes),
    /// A file that the connection sends by itself.
    File(FileRange, Arc<Outbox>),
    /// What comes as it comes.
    Stream(BoxStream<'static, io::Result<Bytes>>),
    /// One after the other, with the outbox that those before may have left something in.
    Parts(VecDeque<Outgoing>, Option<Arc<Outbox>>),
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::Memory(Bytes::new())
    }

    /// What comes as it comes.
    pub fn stream(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self::Stream(stream.boxed())
    }

    /// Sends it over a connection, through its outbox if it has one.
    pub fn send(self, outbox: Option<&Arc<Outbox>>, calls: &Calls) -> Outgoing {
        match (self, outbox) {
            (Self::Memory(bytes), _) => Outgoing::Memory(bytes),
            (Self::File(range), Some(outbox)) => Outgoing::File(range, Arc::clone(outbox)),
            (Self::File(range), None) => Outgoing::Stream(read(calls.clone(), range).boxed()),
            (Self::Stream(stream), _) => Outgoing::Stream(stream),
            (Self::Parts(parts), outbox) => {
                let parts = parts.into_iter().map(|part| part.send(outbox, calls));
                Outgoing::Parts(parts.collect(), outbox.cloned())
            }
        }
    }
}

impl Outgoing {
    /// How much of what hyper has taken was not sent, and will not be.
    pub fn unsent_bytes(&self) -> u64 {
        match self {
            Self::File(_, outbox) | Self::Parts(_, Some(outbox)) => outbox.size_bytes(),
            Self::Memory(_) | Self::Stream(_) | Self::Parts(_, None) => 0,
        }
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = match &mut *self {
            Self::Memory(bytes) => {
                (!bytes.is_empty()).then(|| Ok(Frame::data(std::mem::take(bytes))))
            }
            Self::File(range, outbox) => (range.len() > 0).then(|| {
                let front = range.split_front(MARKER_MAX_BYTES as u64);
                Ok(Frame::data(outbox.put(front)))
            }),
            Self::Stream(stream) => {
                ready!(stream.poll_next_unpin(context)).map(|piece| piece.map(Frame::data))
            }
            Self::Parts(parts, _) => loop {
                let Some(part) = parts.front_mut() else { break None };
                match ready!(Pin::new(part).poll_frame(context)) {
                    None => drop(parts.pop_front()),
                    frame => break frame,
                }
            },
        };
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Memory(bytes) => bytes.is_empty(),
            Self::File(range, _) => range.len() == 0,
            Self::Stream(_) => false,
            Self::Parts(parts, _) => parts.iter().all(Self::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Memory(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::File(range, _) => SizeHint::with_exact(range.len()),
            // Whoever makes parts says how long they are.
            Self::Stream(_) | Self::Parts(..) => SizeHint::default(),
        }
    }
}

/// The bytes of a file, for HTTP/2, which asks for one piece ahead of what it sends. A file that
/// turns out shorter ends the stream with an error, so that the client sees a cut transfer.
fn read(calls: Calls, from: FileRange) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::iter(pieces(from.range)).then(move |piece| {
        let (calls, file) = (calls.clone(), Arc::clone(&from.file));
        async move { calls.read(&file, piece).await }
    })
}

fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> + Send {
    let mut offset = range.start;
    std::iter::from_fn(move || {
        let piece = offset..range.end.min(offset + FILE_PIECE_BYTES);
        offset = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guarantee 1: bytes served under a digest hash to it, or the transfer ends in an error.
    #[tokio::test]
    async fn a_file_that_is_shorter_than_it_was_ends_in_an_error() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(FILE_PIECE_BYTES + 10).unwrap();
        let read = |end| {
            let range = FileRange { file: Arc::clone(&file), inode: 1, range: 5..end };
            read(Calls::new("test"), range).collect::<Vec<_>>()
        };

        let pieces = read(FILE_PIECE_BYTES + 10).await;
        let sizes: Vec<_> = pieces.into_iter().map(|piece| piece.unwrap().len() as u64).collect();
        assert_eq!(sizes, [FILE_PIECE_BYTES, 5]);
        assert!(read(FILE_PIECE_BYTES + 11).await.last().unwrap().is_err());
    }
}
