//! The content of a file as the body of an answer.

use std::{fs::File, io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use crate::calls::Calls;

/// How much of a file is read at once.
pub const PIECE_BYTES: u64 = 1 << 20;

/// The bytes of `range`, read one piece ahead of the client. A file that turns out shorter ends
/// the stream with an error, so that the client sees a cut transfer.
pub fn read(
    calls: Calls,
    file: Arc<File>,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let pieces = stream::iter(pieces(range));
    pieces
        .map(move |piece| {
            let (calls, file) = (calls.clone(), Arc::clone(&file));
            async move { calls.read(&file, piece).await }
        })
        .buffered(2)
}

fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> + Send {
    let mut offset = range.start;
    std::iter::from_fn(move || {
        let piece = offset..range.end.min(offset + PIECE_BYTES);
        offset = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}
