//! Who fetches a blob from the upstream, of all nodes that share the directory: the one that has the lease.
//! The others are sent what it has by then, and the rest as it comes. When it dies, one of them takes the
//! lease of the next turn, and goes on from where it is.
//!
//! A lease saves the upstream a transfer. Where there is none to be had, each node pulls by itself.

use std::time::Duration;

use larder_layout::Lease;
use tokio::time::{sleep, timeout};

use super::{Pull, Pulls, Supplier};
use crate::{
    node::Holder,
    upstream::{Download, fetch_from},
};

/// The pauses between two looks whether another node has published what it has sent, and how long it may
/// take for that.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(120);

/// What a pull knows of the lease of its blob.
pub(super) struct Claim<'a> {
    pulls: &'a Pulls,
    pull: &'a Pull,
    turn: u8,
    role: Role,
    /// From where the holder was asked for the blob the last time.
    followed_from: Option<u64>,
}

enum Role {
    /// It has not asked for the lease yet.
    Unknown,
    /// It has the lease.
    Holder,
    /// Another node has it.
    Follower(Holder),
    /// There is none to be had.
    Alone,
}

impl<'a> Claim<'a> {
    /// The lease is not asked for yet.
    pub(super) fn new(pulls: &'a Pulls, pull: &'a Pull) -> Self {
        // What a node has from the shared storage may be what has failed the client.
        let role = if pull.supplier == Supplier::Any { Role::Unknown } else { Role::Alone };
        Self { pulls, pull, turn: 0, role, followed_from: None }
    }

    /// Begins to fetch the blob at `offset` from the node that has the lease; `None` when that is this one,
    /// or nobody.
    pub(super) async fn follow(&mut self, offset: u64) -> Option<Download> {
        if matches!(self.role, Role::Unknown) {
            self.role = self.take().await;
        }
        while let Role::Follower(holder) = &self.role {
            let digest = &self.pull.digest;
            let reason = match self.followed_from.replace(offset) {
                Some(before) if before == offset => "it sent nothing".to_owned(),
                _ => match fetch_from(holder, digest, offset).await {
                    Ok(download) => return Some(download),
                    Err(reason) => reason.to_string(),
                },
            };
            tracing::info!(%digest, node = holder.url, reason, "a node does not go on with a blob");
            self.followed_from = None;
            self.turn += 1;
            self.role = self.take().await;
        }
        None
    }

    /// Pulls without a lease.
    pub(super) fn waive(&mut self) {
        self.role = Role::Alone;
    }

    /// Whether this node has the lease.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.role, Role::Holder)
    }

    /// Whether another node has it.
    pub(super) fn is_followed(&self) -> bool {
        matches!(self.role, Role::Follower(_))
    }

    /// Waits until the node that is followed, if there is one, has published the blob, or is known to have
    /// ended otherwise: then a mount finds the blob there, and need not send it as well.
    pub(super) async fn followed_to_its_end(&self) {
        let Role::Follower(holder) = &self.role else { return };
        let target = holder.target();
        let ended = async {
            let mut pause = PAUSE_MIN;
            while matches!(self.pulls.content.lease(&self.lease()).await, Ok(Some(it)) if it == target)
            {
                sleep(pause).await;
                pause = PAUSE_MAX.min(pause * 2);
            }
        };
        let _ = timeout(PATIENCE, ended).await;
    }

    /// Ends the lease, if this node has it.
    pub(super) async fn end(self) {
        if self.is_held() {
            self.pulls.show(self.pull, None);
            self.pulls.content.end_lease(self.lease()).await;
        }
    }

    fn lease(&self) -> Lease {
        Lease { digest: self.pull.digest.clone(), turn: self.turn }
    }

    /// Takes the lease of this turn or a later one, or finds out who has it.
    async fn take(&mut self) -> Role {
        let own = self.pulls.node.as_ref().and_then(|node| node.holder());
        let Some(own) = own else { return Role::Alone };
        let target = own.target();
        // Before anyone can read it.
        self.pulls.show(self.pull, Some(own.token));
        let role = loop {
            if self.turn > Lease::TURN_MAX {
                break Role::Alone;
            }
            match self.pulls.content.take_lease(&self.lease(), target.clone()).await {
                Ok(None) => return Role::Holder,
                Ok(Some(other)) => match other.parse() {
                    Ok(holder) => break Role::Follower(holder),
                    Err(()) => self.turn += 1,
                },
                Err(error) => {
                    let digest = &self.pull.digest;
                    tracing::debug!(%digest, %error, "a blob is pulled without a lease");
                    break Role::Alone;
                }
            }
        };
        self.pulls.show(self.pull, None);
        role
    }
}
