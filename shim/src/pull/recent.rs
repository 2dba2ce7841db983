//! What came lately of a blob: whoever keeps up with the pull is sent this, and reads no file.

use std::collections::VecDeque;

use bytes::Bytes;

/// How much is kept of each pull. It is what a client may lag behind before it reads the file.
const RECENT_MAX_BYTES: usize = 2 << 20;

/// The last bytes that came, in the pieces that they came in.
#[derive(Clone, Default)]
pub(super) struct Recent {
    pieces: VecDeque<Bytes>,
    kept_bytes: usize,
    /// Where they end in the blob.
    end: u64,
}

impl Recent {
    /// Takes the piece that comes next in the blob.
    pub(super) fn push(&mut self, piece: Bytes) {
        self.end += piece.len() as u64;
        self.kept_bytes += piece.len();
        self.pieces.push_back(piece);
        while self.kept_bytes > RECENT_MAX_BYTES && self.pieces.len() > 1 {
            self.kept_bytes -= self.pieces.pop_front().map_or(0, |oldest| oldest.len());
        }
    }

    /// Where it begins in the blob.
    pub(super) fn start(&self) -> u64 {
        self.end - self.kept_bytes as u64
    }

    /// What is kept from `offset` on: as much as one piece has of it.
    pub(super) fn from(&self, offset: u64) -> Option<Bytes> {
        let mut start = self.start();
        self.pieces.iter().find_map(|piece| {
            let within = usize::try_from(offset.checked_sub(start)?).ok()?;
            start += piece.len() as u64;
            (within < piece.len()).then(|| piece.slice(within..))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pieces_are_kept_and_no_more() {
        let mut recent = Recent::default();
        assert_eq!(recent.from(0), None);
        let half = RECENT_MAX_BYTES / 2;
        for (byte, start) in [(1, 0), (2, 0), (3, half as u64)] {
            recent.push(vec![byte; half].into());
            assert_eq!(recent.start(), start);
        }
        let half = half as u64;
        assert_eq!(recent.from(half - 1), None);
        assert_eq!(recent.from(half).unwrap(), vec![2; half as usize]);
        assert_eq!(recent.from(3 * half - 1).unwrap(), [3_u8].as_slice());
        assert_eq!(recent.from(3 * half), None);
    }
}
