//! Answers that outlast the shared storage's copy of their blob.
//!
//! A blob that is in the shared storage alone is read while it is fetched. It may vanish meanwhile:
//! it expires, its storage or its mount dies, or it turns out to be damaged. What the client has by
//! then cannot be taken back, so it is continued from the upstream, once the upstream's blob has
//! shown to begin with the same bytes.

use std::{future::ready, io, ops::Range, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use larder_layout::{Algorithm, Digest, Hasher, Repository};
use tokio::task::spawn_blocking;

use crate::{
    body::FILE_PIECE_BYTES,
    calls::{Calls, PIECE_DEADLINE},
    content::Blob,
    metrics,
    pull::{Pull, Pulls},
    upstream::Upstream,
};

/// A blob of the shared storage, and who else has it.
pub struct Lasting {
    /// The blob, open.
    pub blob: Blob,
    /// What its file is read with.
    pub calls: Calls,
    /// Its digest.
    pub digest: Digest,
    /// Whose client asks for it.
    pub repository: Repository,
    /// The upstream, asked as that client may ask it.
    pub upstream: Arc<Upstream>,
    /// The pulls of that upstream.
    pub pulls: Arc<Pulls>,
}

impl Lasting {
    /// The bytes of a range. It ends with an error, so that the client sees a cut transfer, when the
    /// upstream has other bytes than the storage, or cannot go on either.
    pub fn read(
        self: &Arc<Self>,
        range: Range<u64>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let source = Source::File(Hasher::new(Algorithm::Sha256));
        let answer = Answer { lasting: Arc::clone(self), offset: range.start, range, source };
        stream::try_unfold(answer, |mut answer| async move {
            Ok(answer.next().await?.map(|piece| (piece, answer)))
        })
    }
}

/// A range on its way to a client.
struct Answer {
    lasting: Arc<Lasting>,
    range: Range<u64>,
    offset: u64,
    source: Source,
}

enum Source {
    /// The file, with what hashes all that is read of it.
    File(Hasher),
    Pull(Arc<Pull>, BoxStream<'static, io::Result<Bytes>>),
}

impl Answer {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.offset == self.range.end {
            return Ok(None);
        }
        let piece = self.piece().await.inspect_err(|error| {
            let Lasting { digest, repository, .. } = &*self.lasting;
            tracing::error!(%digest, %repository, %error, "an answer is cut, and not continued");
        })?;
        self.offset += piece.len() as u64;
        Ok(Some(piece))
    }

    /// The next bytes of the file, or, once that has failed, of the pull.
    async fn piece(&mut self) -> io::Result<Bytes> {
        if let Source::File(hasher) = &mut self.source {
            let piece = self.offset..self.range.end.min(self.offset + FILE_PIECE_BYTES);
            match self.lasting.read_file(piece, hasher).await {
                Ok(piece) => return Ok(piece),
                Err(failure) => self.join_pull(&failure).await?,
            }
        }
        let Source::Pull(pull, pieces) = &mut self.source else { return Err(ended()) };
        let piece = pieces.next().await.unwrap_or_else(|| Err(ended()))?;
        let is_last = self.offset + piece.len() as u64 == self.range.end;
        // The client was told the length that the storage's blob had. What comes last is given out
        // when the pull is checked, and has a length by then.
        if is_last && pull.size_bytes() != Some(self.lasting.blob.size_bytes) {
            return Err(differs());
        }
        Ok(piece)
    }

    /// Goes over to a pull, behind what was sent already, which must be the same there.
    async fn join_pull(&mut self, failure: &io::Error) -> io::Result<()> {
        let Lasting { digest, repository, upstream, pulls, .. } = &*self.lasting;
        let Source::File(sent) = &self.source else { return Err(ended()) };
        let (offset, sent) = (self.offset, sent.clone().finish());
        tracing::warn!(
            %digest, %repository, offset, %failure,
            "the storage has failed in the middle of an answer, which the upstream continues"
        );
        metrics::continued();
        let pull = pulls.join_anew(upstream, repository, digest).await.map_err(io::Error::other)?;
        let mut pieces = pull.read(Some(self.range.clone())).boxed();
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut missing_bytes = offset - self.range.start;
        while missing_bytes > 0 {
            let mut piece = pieces.next().await.unwrap_or_else(|| Err(ended()))?;
            let known_bytes = missing_bytes.min(piece.len() as u64);
            let rest = piece.split_off(usize::try_from(known_bytes).map_err(io::Error::other)?);
            let hashed = spawn_blocking(move || {
                hasher.update(&piece);
                hasher
            });
            hasher = hashed.await.map_err(io::Error::other)?;
            missing_bytes -= known_bytes;
            if !rest.is_empty() {
                pieces = stream::once(ready(Ok(rest))).chain(pieces).boxed();
            }
        }
        if hasher.finish() != sent {
            return Err(differs());
        }
        self.source = Source::Pull(pull, pieces);
        Ok(())
    }
}

impl Lasting {
    /// The bytes of a piece, which are hashed unless it fails.
    async fn read_file(&self, piece: Range<u64>, hasher: &mut Hasher) -> io::Result<Bytes> {
        let (file, mut hashing) = (Arc::clone(&self.blob.file), hasher.clone());
        let size_bytes = usize::try_from(piece.end - piece.start).map_err(io::Error::other)?;
        let read = self.calls.run(PIECE_DEADLINE, move || {
            let mut content = vec![0; size_bytes];
            file.read_exact_at(&mut content, piece.start)?;
            hashing.update(&content);
            Ok((Bytes::from(content), hashing))
        });
        let (content, hashed) = read.await?;
        *hasher = hashed;
        Ok(content)
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the upstream's blob ends before its end")
}

fn differs() -> io::Error {
    let reason = "the storage's copy was damaged: what was sent of it is not what the upstream has";
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
