//! Directory listings, streamed: a directory of a million blobs is never in memory at once.

use std::{collections::VecDeque, sync::Arc};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use larder_layout::{Algorithm, Directory, Entry, Membership, Report};

use crate::{
    error::Result,
    ingest::Ingest,
    layers::Layers,
    store::{BlobMeta, Storage},
};

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub entry: Entry,
    /// Size and age, where the listing tells it.
    pub meta: Option<BlobMeta>,
}

/// Where listings come from.
#[derive(Clone)]
pub struct Listings {
    /// Published names.
    pub storage: Arc<Storage>,
    /// Staged names.
    pub ingest: Arc<Ingest>,
    /// Layers that are looked into.
    pub layers: Arc<Layers>,
}

impl Listings {
    /// Every name in `directory`, without `.` and `..`.
    fn stream(&self, directory: &Directory) -> BoxStream<'static, Result<Listed>> {
        match directory {
            Directory::BlobsOf(algorithm) => self.blobs(*algorithm),
            directory => {
                let (this, directory) = (self.clone(), directory.clone());
                let names = async move {
                    let names = this.names(&directory).await?;
                    Ok(stream::iter(names.into_iter().filter_map(move |name| {
                        let entry = directory.child(&name)?;
                        Some(Ok(Listed { name, entry, meta: None }))
                    })))
                };
                stream::once(names).flat_map(flatten).boxed()
            }
        }
    }

    fn blobs(&self, algorithm: Algorithm) -> BoxStream<'static, Result<Listed>> {
        let blobs = self.storage.list_blobs(algorithm);
        let listed = blobs.map(|blob| {
            let (digest, meta) = blob?;
            let name = digest.hex().to_owned();
            Ok(Listed { name, entry: Entry::Blob(digest), meta: Some(meta) })
        });
        listed.boxed()
    }

    async fn names(&self, directory: &Directory) -> Result<Vec<String>> {
        let algorithms = || owned(Algorithm::ALL.map(Algorithm::as_str));
        match directory {
            Directory::Root => {
                Ok(owned(["blobs", "repositories", "layers", "leases", "ingest", ".larder"]))
            }
            Directory::Blobs | Directory::Layers | Directory::Leases | Directory::Members(..) => {
                Ok(algorithms())
            }
            Directory::BlobsOf(_) => Ok(Vec::new()),
            Directory::Repositories => self.storage.list_repositories(None).await,
            Directory::Repository(repository) => {
                let mut names = self.storage.list_repositories(Some(repository)).await?;
                let is_repository = names.iter().any(|name| name.starts_with('_'));
                names.retain(|name| !name.starts_with('_'));
                if is_repository {
                    names.push("_tags".to_owned());
                    names.extend(owned(Membership::ALL.map(Membership::as_str)));
                }
                Ok(names)
            }
            Directory::Tags(repository) => self.storage.list_tags(repository).await,
            Directory::MembersOf(repository, membership, algorithm) => {
                self.storage.list_members(repository, *membership, *algorithm).await
            }
            // Others are there, too, but whoever walks through the mount is not to unpack them all.
            Directory::LayersOf(algorithm) => Ok(self.layers.unpacked(*algorithm)),
            Directory::LeasesOf(algorithm) => self.storage.list_leases(*algorithm).await,
            Directory::Ingest => Ok(self.ingest.ids().iter().map(ToString::to_string).collect()),
            Directory::Reports => Ok(owned(Report::ALL.map(Report::as_str))),
        }
    }
}

fn owned<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn flatten<S>(outcome: Result<S>) -> BoxStream<'static, Result<Listed>>
where
    S: stream::Stream<Item = Result<Listed>> + Send + 'static,
{
    match outcome {
        Ok(names) => names.boxed(),
        Err(e) => stream::once(std::future::ready(Err(e))).boxed(),
    }
}

/// An open directory: a position in its listing.
pub struct Listing {
    listings: Listings,
    directory: Directory,
    stream: BoxStream<'static, Result<Listed>>,
    /// What was read from the stream and not yet taken by the kernel, with positions.
    pending: VecDeque<(u64, Listed)>,
    /// How many names were read from the stream.
    position: u64,
}

impl Listing {
    /// Begins a listing.
    pub fn new(listings: Listings, directory: Directory) -> Self {
        // Asked again after its end, as the kernel does, a stream may panic.
        let stream = listings.stream(&directory).fuse().boxed();
        Self { listings, directory, stream, pending: VecDeque::new(), position: 0 }
    }

    /// The name at `position`, counted from 0; `None` behind the last.
    ///
    /// Reading on is cheap; going back starts the listing anew (seekdir(3), rewinddir(3)).
    pub async fn at(&mut self, position: u64) -> Result<Option<Listed>> {
        let first_kept = self.pending.front().map_or(self.position, |(position, _)| *position);
        if position < first_kept {
            *self = Self::new(self.listings.clone(), self.directory.clone());
        }
        while self.pending.front().is_some_and(|(kept, _)| *kept < position) {
            self.pending.pop_front();
        }
        while self.pending.is_empty() {
            let Some(listed) = self.stream.next().await.transpose()? else { return Ok(None) };
            if self.position >= position {
                self.pending.push_back((self.position, listed));
            }
            self.position += 1;
        }
        Ok(self.pending.front().map(|(_, listed)| listed.clone()))
    }
}
