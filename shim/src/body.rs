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

#[cfg(test)]
mod tests {
    use super::*;

    /// Guarantee 1: bytes served under a digest hash to it, or the transfer ends in an error.
    #[tokio::test]
    async fn a_file_that_is_shorter_than_it_was_ends_in_an_error() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(PIECE_BYTES + 10).unwrap();
        let read = |end| read(Calls::new("test"), Arc::clone(&file), 5..end).collect::<Vec<_>>();

        let pieces = read(PIECE_BYTES + 10).await;
        let sizes: Vec<_> = pieces.into_iter().map(|piece| piece.unwrap().len() as u64).collect();
        assert_eq!(sizes, [PIECE_BYTES, 5]);
        assert!(read(PIECE_BYTES + 11).await.last().unwrap().is_err());
    }
}
