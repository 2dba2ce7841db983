//! Which upstream registry a request means, and what its repositories are called in the directory.
//!
//! The repositories of the default upstream have their own names there; those of every other
//! upstream have its key in front, as in `quay.io/org/app`. A request says which one it means by
//! containerd's `?ns=`, else by its `Host`, else by the first component of the repository's name.
//! Content of different registries never mixes: where the name of a default upstream's repository
//! begins with what another upstream is called, the other upstream's is meant, by `?ns=` too.

use std::{collections::HashMap, sync::Arc};

use larder_layout::Repository;

use crate::{error::Error, shim::PullThrough};

/// The registry that containerd's mirrors mean when the client names none.
const DOCKER_HUB: &str = "docker.io";

/// The upstreams.
#[derive(Default)]
pub struct Registries {
    all: Vec<Arc<PullThrough>>,
    /// What they are called, by the operator's word: keys and `hosts`.
    names: HashMap<String, usize>,
    default: Option<usize>,
}

/// How a request says which upstream it means, besides by the repository's name.
#[derive(Clone, Copy, Default)]
pub struct Chooser<'a> {
    /// `?ns=`
    pub namespace: Option<&'a str>,
    /// The host that the client believes to speak to, with or without a port.
    pub host: Option<&'a str>,
}

impl Registries {
    /// Adds an upstream, which is called so.
    pub fn add(&mut self, through: PullThrough, names: &[String], is_default: bool) {
        let index = self.all.len();
        if is_default {
            self.default = Some(index);
        }
        for name in names {
            self.names.entry(name.to_ascii_lowercase()).or_insert(index);
        }
        self.all.push(Arc::new(through));
    }

    /// Every upstream.
    pub fn all(&self) -> &[Arc<PullThrough>] {
        &self.all
    }

    /// The upstream that a repository of the directory is pulled from.
    pub fn of(&self, repository: &Repository) -> Option<&Arc<PullThrough>> {
        let is_keyed = |through: &&Arc<PullThrough>| through.upstream.has_key_of(repository);
        self.all.iter().find(is_keyed).or_else(|| self.default.map(|index| &self.all[index]))
    }

    /// The name in the directory of the repository that a client calls so.
    ///
    /// # Errors
    /// [`Error::Namespace`] and [`Error::Registry`] when this cache has no such upstream.
    pub fn resolve(&self, name: &Repository, by: Chooser<'_>) -> Result<Repository, Error> {
        let chosen = match by.namespace {
            Some(namespace) => self.of_namespace(namespace)?,
            None => by.host.and_then(|host| self.called(host)),
        };
        if self.all.is_empty() {
            return Ok(name.clone());
        }
        let first = name.as_str().split_once('/');
        let prefixed = first.and_then(|(first, rest)| Some((self.called(first)?, rest)));
        let (index, rest) = match (chosen, prefixed) {
            // The default upstream has no repository whose name begins like another upstream's.
            (Some(index), Some((other, _))) if Some(index) == self.default && other != index => {
                return Err(Error::Repository(name.clone()));
            }
            (Some(index), _) => (index, name.as_str()),
            (None, Some(prefixed)) => prefixed,
            (None, None) => {
                let default = self.default.ok_or_else(|| Error::Registry(name.clone()))?;
                (default, name.as_str())
            }
        };
        self.all[index].upstream.local_name(rest)
    }

    /// The upstream that `?ns=` means; `None` for a cache that pulls nothing. Docker Hub's name also
    /// stands for the default upstream: that is what most mirrors are told.
    fn of_namespace(&self, namespace: &str) -> Result<Option<usize>, Error> {
        let is_named = |index: &usize| {
            self.all[*index].upstream.is_at(namespace) && Some(*index) == self.default
        };
        let found = self.called(namespace).or_else(|| (0..self.all.len()).find(is_named));
        match found {
            Some(index) => Ok(Some(index)),
            None if namespace == DOCKER_HUB && self.default.is_some() => Ok(self.default),
            None if namespace == DOCKER_HUB && self.all.is_empty() => Ok(None),
            None => Err(Error::Namespace(namespace.to_owned())),
        }
    }

    /// The upstream that is called so, whatever the port.
    fn called(&self, name: &str) -> Option<usize> {
        if self.names.is_empty() {
            return None;
        }
        let name = name.to_ascii_lowercase();
        let host = name.rsplit_once(':').map_or(&*name, |(host, _)| host);
        self.names.get(&*name).or_else(|| self.names.get(host)).copied()
    }
}
