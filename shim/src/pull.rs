//! Pulls: one transfer of a blob from the upstream, however many clients want it.
//!
//! A [`Pull`] runs by itself, in a task that no client can cancel. It appends what the upstream
//! sends to a staging file, with a running check of the digest. Every client, the first one
//! included, is a reader of that file behind a watermark ([`tail`]), and gets what came lately without
//! the file being read ([`recent`]). The watermark always lags behind by what came last, so content
//! that turns out to be wrong ends as a cut transfer.

mod lease;
mod parts;
mod readers;
mod recent;
mod source;
mod staging;
mod tail;
mod transfer;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use larder_layout::{Digest, Link, Membership, Repository};
use tokio::sync::{Semaphore, watch};
use tracing::Instrument;

use self::{lease::Claim, readers::Readers, recent::Recent, staging::Staging};
use crate::{
    calls::Calls,
    content::{Blob, Content},
    error::Error,
    metrics,
    node::{Node, Token},
    upstream::Upstream,
};

/// How many pulls may run at once: each holds a connection, a staging file and a buffer.
const PULLS_MAX: usize = 512;
/// How many connections to an upstream there may be before slow pulls get no more than one each. What
/// comes over the others waits in memory: at most 8 MiB for each.
const CONNECTIONS_MAX: usize = 32;
/// How often a client whose repository has a blob joins the pull of another that has it not.
const JOINS_MAX: usize = 4;

/// Every pull that runs in this process, by digest.
pub struct Pulls {
    content: Content,
    /// The calls to temporary files, for blobs that the directory does not take.
    temporary: Calls,
    /// The places for connections to the upstream, of which slow pulls get several.
    connections: Arc<Semaphore>,
    /// How other nodes reach this one, if they can.
    node: Option<Arc<Node>>,
    running: Mutex<HashMap<Digest, Running>>,
    /// How many run, to wait for.
    count: watch::Sender<usize>,
}

struct Running {
    pull: Arc<Pull>,
    /// Whose clients may have the blob: the upstream said so for each.
    repositories: Vec<Repository>,
    /// How many of these have their link.
    linked: usize,
    /// What other nodes show that may follow it, while this one has the lease.
    token: Option<Token>,
}

/// One pull, as its clients see it.
pub struct Pull {
    digest: Digest,
    /// The repository whose client came first, and whose name the upstream is asked by.
    origin: Repository,
    supplier: Supplier,
    progress: watch::Receiver<Progress>,
    readers: Arc<Readers>,
}

/// Where a pull may take a blob from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Supplier {
    /// The directory, when it has the blob by then, else the upstream.
    Any,
    /// The same, but what the mount would have to fetch from the shared storage is no good: that
    /// has failed a client.
    NotShared,
}

/// How far a pull has come.
#[derive(Clone, Default)]
struct Progress {
    /// Where its bytes are, once the upstream has begun to answer.
    staging: Option<Arc<Staging>>,
    /// The blob's length, when the upstream said so or all of it has come.
    size_bytes: Option<u64>,
    /// How many bytes may be read; never the last ones that came before all are checked.
    readable_bytes: u64,
    /// What came lately, in memory.
    recent: Recent,
    /// How many of the first bytes are in the file, when there is room for no more.
    stored_bytes: Option<u64>,
    /// How it ended: the digest is right, or there will be no more bytes.
    outcome: Option<Result<(), Error>>,
}

impl Pulls {
    /// No pulls yet.
    pub fn new(content: Content, node: Option<Arc<Node>>) -> Arc<Self> {
        Arc::new(Self {
            content,
            node,
            temporary: Calls::new("temporary files"),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            running: Mutex::new(HashMap::new()),
            count: watch::Sender::new(0),
        })
    }

    /// Joins the pull of a blob, or starts it, and waits until its bytes begin to come. The upstream is
    /// asked as the client may ask it.
    ///
    /// A client must not reach a blob through a repository that has it not: a pull that another
    /// repository started is joined only after the upstream was asked.
    ///
    /// # Errors
    /// What the upstream says of the blob in this repository.
    pub async fn join(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Arc<Pull>, Error> {
        self.join_from(Supplier::Any, upstream, repository, digest).await
    }

    /// The same for a client that the shared storage's copy has failed, which is not taken again.
    ///
    /// # Errors
    /// What the upstream says of the blob in this repository.
    pub async fn join_anew(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Arc<Pull>, Error> {
        self.join_from(Supplier::NotShared, upstream, repository, digest).await
    }

    async fn join_from(
        self: &Arc<Self>,
        supplier: Supplier,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Arc<Pull>, Error> {
        let mut is_allowed = false;
        for _ in 0..JOINS_MAX {
            let Some(pull) = self.enter(supplier, upstream, repository, digest, is_allowed)? else {
                ask(upstream, repository, digest).await?;
                is_allowed = true;
                continue;
            };
            match pull.begun().await {
                Ok(()) if supplier == Supplier::NotShared && pull.may_be_shared() => {
                    pull.ended().await;
                }
                // What another repository was refused says nothing about this one.
                Err(_) if pull.origin != *repository => continue,
                begun => return begun.map(|()| pull),
            }
        }
        Err(Error::Busy("the pull of this blob fails again and again"))
    }

    /// The pull of a blob that runs and that this repository's clients may join.
    pub fn running(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Pull>> {
        let running = self.lock();
        let running = running.get(digest)?;
        running.repositories.contains(repository).then(|| Arc::clone(&running.pull))
    }

    /// The pull of a blob whose lease this node has, for another node that has read in it what to show.
    pub fn leased(&self, digest: &Digest, shown: &str) -> Option<Arc<Pull>> {
        let running = self.lock();
        let running = running.get(digest)?;
        let is_shown = running.token.as_ref().is_some_and(|token| token.is(shown));
        is_shown.then(|| Arc::clone(&running.pull))
    }

    /// Says what other nodes have to show.
    fn show(&self, pull: &Pull, token: Option<Token>) {
        // Another pull of the same blob may have taken the place since.
        let is_ours = |running: &&mut Running| std::ptr::eq(&*running.pull, pull);
        if let Some(running) = self.lock().get_mut(&pull.digest).filter(is_ours) {
            running.token = token;
        }
    }

    /// Waits until no pull runs.
    pub async fn finished(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Joins or starts a pull; `None` when the repository may not join before it is allowed to.
    fn enter(
        self: &Arc<Self>,
        supplier: Supplier,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
        is_allowed: bool,
    ) -> Result<Option<Arc<Pull>>, Error> {
        let mut all = self.lock();
        let count = all.len();
        match all.entry(digest.clone()) {
            Entry::Occupied(mut running) => {
                let running = running.get_mut();
                if !running.repositories.contains(repository) {
                    if !is_allowed {
                        return Ok(None);
                    }
                    running.repositories.push(repository.clone());
                }
                metrics::saved();
                Ok(Some(Arc::clone(&running.pull)))
            }
            Entry::Vacant(_) if count >= PULLS_MAX => Err(Error::Busy("too many pulls run")),
            Entry::Vacant(vacant) => {
                let (sender, progress) = watch::channel(Progress::default());
                let pull = Arc::new(Pull {
                    digest: digest.clone(),
                    origin: repository.clone(),
                    supplier,
                    progress,
                    readers: Arc::default(),
                });
                vacant.insert(Running {
                    pull: Arc::clone(&pull),
                    repositories: vec![repository.clone()],
                    linked: 0,
                    token: None,
                });
                self.count.send_modify(|count| *count += 1);
                metrics::pulls(1);
                let place = Place { pulls: Arc::clone(self), pull: Arc::clone(&pull) };
                tokio::spawn(run(place, Arc::clone(upstream), sender).in_current_span());
                Ok(Some(pull))
            }
        }
    }

    /// Links the blob into every repository that joined, and ends the pull when none is left.
    async fn link(&self, digest: &Digest) {
        while let Some(repository) = self.next_to_link(digest) {
            let link = Link::Member(repository, Membership::Layer, digest.clone());
            if let Err(error) = self.content.publish_link(link, digest).await {
                tracing::warn!(%digest, %error, "a blob was pulled but not linked");
            }
        }
    }

    /// The next repository without a link. Where there is none, the pull is no longer joinable,
    /// under the same lock: who comes now finds all in the directory.
    fn next_to_link(&self, digest: &Digest) -> Option<Repository> {
        let mut all = self.lock();
        let running = all.get_mut(digest)?;
        let next = running.repositories.get(running.linked).cloned();
        running.linked += 1;
        if next.is_none() {
            self.remove(&mut all, digest);
        }
        next
    }

    fn remove(&self, all: &mut HashMap<Digest, Running>, digest: &Digest) {
        if all.remove(digest).is_some() {
            self.count.send_modify(|count| *count -= 1);
            metrics::pulls(-1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running pull's place in the map, given up even if its task panics.
struct Place {
    pulls: Arc<Pulls>,
    pull: Arc<Pull>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.pulls.lock();
        // Another pull of the same blob may have taken the place since.
        let is_ours = |running: &Running| Arc::ptr_eq(&running.pull, &self.pull);
        if all.get(&self.pull.digest).is_some_and(is_ours) {
            self.pulls.remove(&mut all, &self.pull.digest);
        }
    }
}

/// Asks the upstream whether a repository has a blob.
async fn ask(upstream: &Upstream, repository: &Repository, digest: &Digest) -> Result<(), Error> {
    let head = upstream.head_blob(repository, digest).await;
    head.map_err(|error| Error::from_upstream(error, Error::Blob(digest.clone())))?;
    Ok(())
}

/// The task of one pull.
async fn run(place: Place, upstream: Arc<Upstream>, progress: watch::Sender<Progress>) {
    let (pulls, pull) = (Arc::clone(&place.pulls), Arc::clone(&place.pull));
    let digest = &pull.digest;
    let mut claim = Claim::new(&pulls, &pull);
    let staging = match obtain(&pulls, &pull, &upstream, &progress, &mut claim).await {
        Ok(staging) => staging,
        Err(error) => {
            tracing::warn!(%digest, repository = %pull.origin, %error, "a pull failed");
            claim.end().await;
            // Whoever comes after this starts anew, so the place is left before anyone is told.
            drop(place);
            progress.send_modify(|progress| progress.outcome = Some(Err(error)));
            return;
        }
    };
    // The last bytes go out at once: publishing may take as long as an upload does.
    progress.send_modify(|progress| progress.outcome = Some(Ok(())));
    if progress.borrow().stored_bytes.is_none() {
        claim.followed_to_its_end().await;
        let size_bytes = progress.borrow().readable_bytes;
        match staging.publish(&pulls.content, size_bytes, digest).await {
            Ok(true) => pulls.link(digest).await,
            Ok(false) => {}
            Err(error) => tracing::warn!(%digest, %error, "a blob was pulled but not kept"),
        }
    }
    // The blob is there before the lease is gone: who comes then finds one or the other.
    claim.end().await;
}

/// Gets the whole blob, checked, into a file.
async fn obtain(
    pulls: &Pulls,
    pull: &Pull,
    upstream: &Arc<Upstream>,
    progress: &watch::Sender<Progress>,
    claim: &mut Claim<'_>,
) -> Result<Arc<Staging>, Error> {
    let mut found = find(pulls, pull).await;
    let mut followed = None;
    if found.is_none() {
        followed = claim.follow(0).await;
        if claim.is_held() {
            // Whoever had the lease before has published the blob, unless that failed.
            found = find(pulls, pull).await;
        }
    }
    // It may be there, or pulled elsewhere, through another repository: so it takes the upstream's word
    // that this one has it, too.
    let Some(blob) = found else {
        if followed.is_some() {
            match ask(upstream, &pull.origin, &pull.digest).await {
                Ok(()) => metrics::saved(),
                Err(_) => {
                    // What it says to a GET counts: there are those that know no HEAD.
                    claim.waive();
                    followed = None;
                }
            }
        }
        return transfer::run(pulls, pull, upstream, progress, claim, followed).await;
    };
    ask(upstream, &pull.origin, &pull.digest).await?;
    let size_bytes = blob.size_bytes;
    let staging = Arc::new(Staging::published(&pulls.content, blob));
    progress.send_modify(|progress| {
        progress.staging = Some(Arc::clone(&staging));
        progress.size_bytes = Some(size_bytes);
        progress.readable_bytes = size_bytes;
    });
    Ok(staging)
}

/// The blob, if the directory has it by now.
async fn find(pulls: &Pulls, pull: &Pull) -> Option<Blob> {
    let found = match pull.supplier {
        Supplier::Any => pulls.content.open(&pull.digest).await,
        Supplier::NotShared => pulls.content.open_local(&pull.digest).await,
    };
    found.ok().flatten()
}
