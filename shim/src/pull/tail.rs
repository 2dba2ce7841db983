//! A client's view of a pull: a reader of the staging file behind the watermark.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::{Progress, Pull, Supplier, readers::Reader};
use crate::{body::PIECE_BYTES, error::Error};

impl Pull {
    /// Waits until the bytes begin to come, or all of them when there may be none: an empty answer
    /// is complete with its headers, and must not go out before its digest is known to be right.
    ///
    /// # Errors
    /// What the upstream said instead.
    pub async fn begun(&self) -> Result<(), Error> {
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

    /// Whether its bytes may come from the shared storage. Known once it has begun.
    pub(super) fn may_be_shared(&self) -> bool {
        let progress = self.progress.borrow();
        let is_published = progress.staging.as_ref().is_some_and(|staging| staging.is_published());
        is_published && self.supplier == Supplier::Any
    }

    /// Waits until it is over, with all its links.
    pub(super) async fn ended(&self) {
        let mut progress = self.progress.clone();
        while progress.changed().await.is_ok() {}
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
        let offset = range.as_ref().map_or(0, |range| range.start);
        let tail = Tail {
            progress: self.progress.clone(),
            reader: self.readers.enter(offset),
            offset,
            withheld: None,
            end: range.map(|range| range.end),
        };
        stream::try_unfold(tail, |mut tail| async move {
            Ok(tail.next().await?.map(|piece| (piece, tail)))
        })
    }
}

struct Tail {
    progress: watch::Receiver<Progress>,
    reader: Reader,
    offset: u64,
    /// The last byte, until the digest is right.
    withheld: Option<Bytes>,
    /// Where the answer ends; `None` is the end of the blob, wherever that is.
    end: Option<u64>,
}

impl Tail {
    /// The last byte is withheld until the digest is right, even if the answer is a range far before
    /// what came last: else the client would hold a complete answer of bytes that nobody has checked.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(last) = self.withheld.take() {
                let is_over = |progress: &Progress| progress.outcome.is_some();
                let progress = self.progress.wait_for(is_over).await.map_err(io::Error::other)?;
                return match &progress.outcome {
                    Some(Err(error)) => Err(io::Error::other(error.clone())),
                    _ => Ok(Some(last)),
                };
            }
            let Some(mut piece) = self.piece().await? else { return Ok(None) };
            if self.end == Some(self.offset) {
                self.withheld = Some(piece.split_off(piece.len() - 1));
                // It waits for nothing that is still to come.
                self.reader.advance(u64::MAX);
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// What can be read next, from memory if it came lately.
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        let (offset, end) = (self.offset, self.end.unwrap_or(u64::MAX));
        self.reader.advance(offset);
        let is_ready = |progress: &Progress| {
            progress.outcome.is_some() || progress.readable_bytes.min(end) > offset
        };
        let (staging, piece) = {
            let progress = self.progress.wait_for(is_ready).await.map_err(io::Error::other)?;
            if let Some(Err(error)) = &progress.outcome {
                return Err(io::Error::other(error.clone()));
            }
            let readable_to = progress.readable_bytes.min(end);
            if offset >= readable_to {
                return Ok(None);
            }
            if let Some(mut recent) = progress.recent.from(offset) {
                recent.truncate(usize::try_from(readable_to - offset).unwrap_or(usize::MAX));
                self.offset += recent.len() as u64;
                return Ok(Some(recent));
            }
            let stored_to = progress.stored_bytes.unwrap_or(u64::MAX);
            if offset >= stored_to {
                return Err(io::Error::other(
                    "it could not be stored, and this client was too slow",
                ));
            }
            let piece = offset..readable_to.min(stored_to).min(offset + PIECE_BYTES);
            (progress.staging.clone(), piece)
        };
        let Some(staging) = staging else { return Ok(None) };
        self.offset = piece.end;
        staging.read(piece).await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, TryStreamExt};

    use super::*;
    use crate::pull::Staging;

    #[tokio::test]
    async fn the_last_byte_of_every_answer_waits_for_the_digest() {
        let (sender, pull) = begun().await;
        sender.send_modify(|progress| {
            progress.recent.push((0..100).collect::<Vec<_>>().into());
            progress.readable_bytes = 100;
        });
        for (start, end) in [(0, 100), (0, 10), (9, 10), (50, 100)] {
            let mut answer = Box::pin(pull.read(Some(start..end)));
            let mut content = Vec::new();
            while let Some(piece) = answer.next().now_or_never() {
                content.extend(piece.unwrap().unwrap());
            }
            assert_eq!(content, (start as u8..end as u8 - 1).collect::<Vec<_>>());
        }
        let waiting = tokio::spawn(pull.read(Some(9..10)).try_collect::<Vec<_>>());
        sender.send_modify(|progress| progress.outcome = Some(Ok(())));
        assert_eq!(waiting.await.unwrap().unwrap(), [vec![9]]);
    }

    /// What is stored nowhere comes as its clients take it; who is left behind is cut.
    #[tokio::test(start_paused = true)]
    async fn what_is_only_in_memory_waits_for_its_clients() {
        let (sender, pull) = begun().await;
        assert!(!pull.readers.come_to(1).await, "nobody reads");
        let mut answers = [pull.read(Some(0..1 << 30)), pull.read(Some(0..1 << 30))].map(Box::pin);
        sender.send_modify(|progress| {
            progress.stored_bytes = Some(0);
            progress.recent.push(vec![1; 10].into());
            progress.readable_bytes = 10;
        });
        for answer in &mut answers {
            assert_eq!(answer.next().await.unwrap().unwrap(), vec![1; 10]);
        }
        let [fast, slow] = &mut answers;
        let waiting = tokio::spawn({
            let readers = Arc::clone(&pull.readers);
            async move { readers.come_to(10).await }
        });
        assert!(fast.next().now_or_never().is_none());
        assert!(waiting.await.unwrap(), "after a while the fast one goes on alone");
        sender.send_modify(|progress| {
            for _ in 0..3 {
                progress.recent.push(vec![2; 1 << 20].into());
            }
            progress.readable_bytes = 10 + (3 << 20);
        });
        assert!(slow.next().await.unwrap().is_err());
    }

    async fn begun() -> (watch::Sender<Progress>, Arc<Pull>) {
        let (sender, receiver) = watch::channel(Progress::default());
        let digest = larder_layout::Digest::of(larder_layout::Algorithm::Sha256, b"not empty");
        let content = crate::content::Content::new(std::path::Path::new("/nowhere"));
        let temporary = crate::calls::Calls::new("test");
        let staging = Staging::create(&content, &temporary, Some(&digest)).await.unwrap();
        sender.send_modify(|progress| progress.staging = Some(Arc::new(staging)));
        let (origin, supplier, readers) = ("a".parse().unwrap(), Supplier::Any, Arc::default());
        (sender, Arc::new(Pull { digest, origin, supplier, progress: receiver, readers }))
    }

    /// An empty answer is complete with its headers.
    #[tokio::test]
    async fn an_empty_blob_begins_only_when_it_is_checked() {
        let (sender, pull) = begun().await;
        sender.send_modify(|progress| progress.size_bytes = Some(0));
        assert!(pull.begun().now_or_never().is_none());
        sender.send_modify(|progress| progress.outcome = Some(Err(Error::Busy("test"))));
        assert!(pull.begun().await.is_err());
    }
}
