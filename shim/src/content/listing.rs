//! The names in the directory, in byte order and a few at a time.
//!
//! A directory lists its names in no order and may have millions. Of one, only the first names
//! behind a given one are ever in memory, and it is read again for those that follow.

use std::{collections::BinaryHeap, fs, io, path::PathBuf};

use larder_layout::{Directory, Entry, Repository, Tag};

use super::{Content, found};
use crate::calls::PIECE_DEADLINE;

/// How many names of one directory are in memory while repositories are listed.
const NAMES_MAX: usize = 4096;

impl Content {
    /// The first `max` tags of a repository behind `last`, in byte order; `None` when there is no
    /// such repository.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn tags(
        &self,
        repository: &Repository,
        last: &str,
        max: usize,
    ) -> io::Result<Option<Vec<Tag>>> {
        let path = Entry::Directory(Directory::Tags(repository.clone())).path();
        let last = last.to_owned();
        let listed = self.call(PIECE_DEADLINE, move |root| {
            let mut first = First::new(max);
            for entry in fs::read_dir(root.join(path))? {
                let name = entry?.file_name().into_string();
                let is_tag = |name: &String| *name > last && name.parse::<Tag>().is_ok();
                first.offer(name.ok().filter(is_tag));
            }
            Ok(first.into_sorted())
        });
        let Some(names) = found(listed.await)? else { return Ok(None) };
        // A mount has a `_tags` wherever there may be one.
        if names.is_empty() && !self.names(repository.as_str(), String::new()).await?.is_repository
        {
            return Ok(None);
        }
        Ok(Some(names.into_iter().filter_map(|name| name.parse().ok()).collect()))
    }

    /// The repositories behind `last`, in byte order.
    pub fn repositories(&self, last: &str) -> Walk {
        // A text that ends with a slash is no name, and stands for what has been descended into.
        let behind = last.trim_end_matches('/').to_owned();
        let top = Level { prefix: String::new(), behind, names: None };
        Walk { content: self.clone(), levels: vec![top], ahead: None }
    }

    /// What is below `repositories/<parent>` and follows `behind`; nothing when there is no such
    /// directory.
    async fn names(&self, parent: &str, behind: String) -> io::Result<Names> {
        let path = match parent.parse() {
            Ok(repository) => Entry::Directory(Directory::Repository(repository)).path(),
            Err(_) => Entry::Directory(Directory::Repositories).path(),
        };
        let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
        let read = self.call(PIECE_DEADLINE, move |root| read(root.join(path), &prefix, &behind));
        Ok(found(read.await)?.unwrap_or_default())
    }
}

/// A walk over the repositories. Below `repositories/`, both the names of repositories and their
/// first components are directories, so each directory stands for two texts: `a`, which may be a
/// repository, and `a/`, which begins those below it. In the order of these texts the
/// repositories are met in the order of their names: `a`, `a-b`, `a/b`.
pub struct Walk {
    content: Content,
    levels: Vec<Level>,
    /// What was read to see whether this name is a repository: most often it is descended into next.
    ahead: Option<(String, Names)>,
}

struct Level {
    /// Empty, or with a slash at its end.
    prefix: String,
    /// What has been met here, or lies before what is asked for.
    behind: String,
    /// `None` before the first is read.
    names: Option<Names>,
}

/// Some of what is in a directory.
#[derive(Default)]
struct Names {
    /// Full names, the last of the order first; with a slash at the end, what begins with them.
    reversed: Vec<String>,
    /// There are more.
    is_cut: bool,
    /// The directory has what repositories have.
    is_repository: bool,
}

impl Walk {
    /// The next repository; `None` behind the last.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn next(&mut self) -> io::Result<Option<Repository>> {
        while let Some(level) = self.levels.last_mut() {
            let Some(names) = &mut level.names else {
                let parent = level.prefix.trim_end_matches('/');
                level.names = Some(self.content.names(parent, level.behind.clone()).await?);
                continue;
            };
            let Some(name) = names.reversed.pop() else {
                if names.is_cut {
                    level.names = None;
                } else {
                    self.levels.pop();
                }
                continue;
            };
            if let Some(parent) = name.strip_suffix('/') {
                // `behind` may lie in here. If so, it is where the walk goes on.
                let behind = level.behind.clone();
                level.behind.clone_from(&name);
                let ahead = self.ahead.take().filter(|(read, _)| read == parent);
                let names = ahead.map(|(_, names)| names);
                self.levels.push(Level { prefix: name, behind, names });
                continue;
            }
            level.behind.clone_from(&name);
            let names = self.content.names(&name, String::new()).await?;
            let is_repository = names.is_repository;
            self.ahead = Some((name.clone(), names));
            if let (true, Ok(repository)) = (is_repository, name.parse()) {
                return Ok(Some(repository));
            }
        }
        Ok(None)
    }
}

/// Reads a directory below `repositories/`.
fn read(path: PathBuf, prefix: &str, behind: &str) -> io::Result<Names> {
    let mut first = First::new(NAMES_MAX);
    let mut is_repository = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        is_repository |= matches!(&*name, "_manifests" | "_layers" | "_tags");
        let name = format!("{prefix}{name}");
        if name.parse::<Repository>().is_err() || !entry.file_type()?.is_dir() {
            continue;
        }
        let below = format!("{name}/");
        let holds_it = behind.starts_with(&below) && behind != below;
        first.offer(Some(below).filter(|below| **below > *behind || holds_it));
        first.offer(Some(name).filter(|name| **name > *behind));
    }
    let is_cut = first.is_cut;
    let mut reversed = first.into_sorted();
    reversed.reverse();
    Ok(Names { reversed, is_cut, is_repository })
}

/// The first few of many names.
struct First {
    max: usize,
    names: BinaryHeap<String>,
    is_cut: bool,
}

impl First {
    fn new(max: usize) -> Self {
        Self { max, names: BinaryHeap::new(), is_cut: false }
    }

    fn offer(&mut self, name: Option<String>) {
        self.names.extend(name);
        if self.names.len() > self.max {
            self.names.pop();
            self.is_cut = true;
        }
    }

    fn into_sorted(self) -> Vec<String> {
        self.names.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than fits in memory at once, with repositories below each.
    #[tokio::test]
    async fn a_directory_of_many_names_is_read_again_for_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let mut names: Vec<_> = (0..NAMES_MAX / 2 + 100).map(|n| format!("r{n}")).collect();
        names.extend(["r7/below", "r9/below"].map(str::to_owned));
        for name in &names {
            fs::create_dir_all(root.path().join(format!("repositories/{name}/_layers"))).unwrap();
        }
        names.sort_unstable();
        let mut walk = Content::new(root.path()).repositories("");
        let mut walked = Vec::new();
        while let Some(repository) = walk.next().await.unwrap() {
            walked.push(repository.to_string());
        }
        assert!(walked == names, "{} instead of {} names", walked.len(), names.len());
    }
}
