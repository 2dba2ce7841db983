//! What may be published, and what is known of it.

use std::sync::Arc;

use larder_layout::{Algorithm, Digest};

use crate::operation::{CONTENTS, SIZES_BYTES};

/// What may be published.
#[derive(Clone)]
pub struct Content {
    pub(super) bytes: Arc<[u8]>,
    pub(super) digest: Digest,
}

impl Content {
    /// All of them, and others for each `salt`.
    pub fn all(salt: u64) -> Vec<Self> {
        let sizes_bytes = SIZES_BYTES.into_iter().zip(salt * CONTENTS as u64..);
        let contents = sizes_bytes.map(|(size_bytes, seed)| {
            let mut bytes = vec![0; size_bytes];
            let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for piece in bytes.chunks_mut(8) {
                // Marsaglia's xorshift64.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
            }
            // One of them has a digest of the other kind.
            let algorithm =
                if size_bytes == SIZES_BYTES[2] { Algorithm::Sha512 } else { Algorithm::Sha256 };
            Self { digest: Digest::of(algorithm, &bytes), bytes: bytes.into() }
        });
        contents.collect()
    }
}

pub(super) struct Blob {
    pub(super) bytes: Arc<[u8]>,
    pub(super) digest: Digest,
    pub(super) presence: Presence,
    pub(super) is_damaged: bool,
}

impl Blob {
    pub(super) fn new(Content { bytes, digest }: Content) -> Self {
        // What is too short to be another content each time may be there from an earlier case.
        let is_short = bytes.len() < size_of::<u64>();
        let presence = if is_short { Presence::Perhaps } else { Presence::Absent };
        Self { bytes, digest, presence, is_damaged: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Absent,
    /// Its publication failed, which may have been told too late.
    Perhaps,
    Published,
}
