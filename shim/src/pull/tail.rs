//! A client's view of a pull: a reader of the staging file behind the watermark.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::{Progress, Pull};
use crate::{body::PIECE_BYTES, error::Error};

impl Pull {
    /// Waits until the bytes begin to come, or all of them when there may be none: an empty answer
    /// is complete with its headers, and must not go out before its digest is known to be right.
    ///
    /// # Errors
    /// What the upstream said instead.
    pub(super) async fn begun(&self) -> Result<(), Error> {
        let mut progress = self.progress.clone();
        let is_begun = |progress: &Progress| match (&progress.outcome, &progress.staging) {
            (None, Some(_)) => progress.size_bytes.unwrap_or(progress.readable_bytes) > 0,
            (outcome, _) => outcome.is_some(),
        };
        let progress = progress.wait_for(is_begun).await;
        match progress.ok().map(|progress| progress.outcome.clone()) {
            Some(outcome) => outcome.unwrap_or(Ok(())),
            None => Err(Error::Busy("the pull of this blob ended without a word")),
        }
    }

    /// The length of the blob, when it is known by now.
    pub fn size_bytes(&self) -> Option<u64> {
        self.progress.borrow().size_bytes
    }

    /// The bytes of `range`, or all when the length is not known, as they come. When the pull
    /// fails, the stream ends with an error and the client sees a cut transfer.
    pub fn read(
        self: &Arc<Self>,
        range: Option<Range<u64>>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let tail = Tail {
            progress: self.progress.clone(),
            offset: range.as_ref().map_or(0, |range| range.start),
            end: range.map(|range| range.end),
        };
        stream::try_unfold(tail, |mut tail| async move {
            Ok(tail.next().await?.map(|piece| (piece, tail)))
        })
    }
}

struct Tail {
    progress: watch::Receiver<Progress>,
    offset: u64,
    /// Where the answer ends; `None` is the end of the blob, wherever that is.
    end: Option<u64>,
}

impl Tail {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let (offset, end) = (self.offset, self.end);
        let is_ready =
            |progress: &Progress| progress.outcome.is_some() || progress.readable_to(end) > offset;
        let (staging, piece) = {
            let progress = self.progress.wait_for(is_ready).await.map_err(io::Error::other)?;
            if let Some(Err(error)) = &progress.outcome {
                return Err(io::Error::other(error.clone()));
            }
            let end = progress.readable_to(end).min(offset + PIECE_BYTES);
            (progress.staging.clone(), offset..end)
        };
        let Some(staging) = staging.filter(|_| !piece.is_empty()) else { return Ok(None) };
        self.offset = piece.end;
        staging.read(piece).await.map(Some)
    }
}

impl Progress {
    /// Up to where an answer that ends at `end` may be sent. Its last byte is withheld until the
    /// digest is right, even if the range lies far before what came last: else the client would
    /// hold a complete answer of bytes that nobody has checked.
    fn readable_to(&self, end: Option<u64>) -> u64 {
        match (&self.outcome, end) {
            (Some(_), end) => end.unwrap_or(self.readable_bytes).min(self.readable_bytes),
            (None, Some(end)) => self.readable_bytes.min(end.saturating_sub(1)),
            (None, None) => self.readable_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::pull::Staging;

    #[test]
    fn the_last_byte_of_every_answer_waits_for_the_digest() {
        let mut progress = Progress { readable_bytes: 100, ..Progress::default() };
        assert_eq!(progress.readable_to(None), 100);
        assert_eq!(progress.readable_to(Some(200)), 100);
        assert_eq!(progress.readable_to(Some(100)), 99);
        assert_eq!(progress.readable_to(Some(10)), 9);
        assert_eq!(progress.readable_to(Some(0)), 0);
        progress.outcome = Some(Ok(()));
        assert_eq!(progress.readable_to(None), 100);
        assert_eq!(progress.readable_to(Some(10)), 10);
    }

    /// An empty answer is complete with its headers.
    #[tokio::test]
    async fn an_empty_blob_begins_only_when_it_is_checked() {
        let (sender, receiver) = watch::channel(Progress::default());
        let digest = larder_layout::Digest::of(larder_layout::Algorithm::Sha256, b"not empty");
        let pull = Pull { digest, origin: "a".parse().unwrap(), progress: receiver };
        let content = crate::content::Content::new(std::path::Path::new("/nowhere"));
        let temporary = crate::calls::Calls::new("test");
        let staging = Staging::create(&content, &temporary, &pull.digest).await.unwrap();
        let staging = Arc::new(staging);
        sender.send_modify(|progress| {
            progress.staging = Some(staging);
            progress.size_bytes = Some(0);
        });
        assert!(pull.begun().now_or_never().is_none());
        sender.send_modify(|progress| progress.outcome = Some(Err(Error::Busy("test"))));
        assert!(pull.begun().await.is_err());
    }
}
