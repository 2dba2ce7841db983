//! The names in the directory, in byte order and a few at a time.
//!
//! A directory lists its names in no order and may have millions. Of one, only the first names
//! behind a given one are ever in memory, and it is read again for those that follow.

use std::{
    collections::BinaryHeap,
    fs, io, mem,
    path::Path,
    time::{Duration, Instant},
};

use larder_layout::{Directory, Entry, Repository, Tag};

use super::{Content, found};
use crate::calls::PIECE_DEADLINE;

/// How many names of one directory are in memory while repositories are listed.
const NAMES_MAX: usize = 4096;
/// How long repositories are looked for. What was found by then is a page.
const WALK_MAX: Duration = Duration::from_secs(15);

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
        let (repository, last) = (repository.clone(), last.to_owned());
        let listed = self.call(PIECE_DEADLINE, move |root| {
            let mut first = First::new(max);
            for entry in fs::read_dir(root.join(path))? {
                let name = entry?.file_name().into_string();
                let is_tag = |name: &String| *name > last && name.parse::<Tag>().is_ok();
                first.offer(name.ok().filter(is_tag));
            }
            let names = first.into_sorted();
            // A mount has a `_tags` wherever there may be one.
            if names.is_empty() && !read(root, repository.as_str(), "", 1)?.is_repository {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
        });
        found(listed.await)
    }

    /// The first `max` repositories behind `last`, in byte order, and whether there may be more:
    /// so there may when it took too long to look for them.
    ///
    /// # Errors
    /// The storage is in trouble, or none was found in time.
    pub async fn repositories(
        &self,
        last: &str,
        max: usize,
    ) -> io::Result<(Vec<Repository>, bool)> {
        let last = last.to_owned();
        // One call, because each costs a change of thread.
        self.call(PIECE_DEADLINE, move |root| {
            let started = Instant::now();
            let mut walk = Walk::new(root, &last);
            let mut repositories = Vec::new();
            while let Some(repository) = walk.next(|| started.elapsed() > WALK_MAX)? {
                if repositories.len() == max {
                    return Ok((repositories, true));
                }
                repositories.push(repository);
            }
            let is_cut = !walk.levels.is_empty();
            if is_cut && repositories.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok((repositories, is_cut))
        })
        .await
    }
}

/// A walk over the repositories. Below `repositories/`, both the names of repositories and their
/// first components are directories, so each directory stands for two texts: `a`, which may be a
/// repository, and `a/`, which begins those below it. In the order of these texts the
/// repositories are met in the order of their names: `a`, `a-b`, `a/b`.
struct Walk<'a> {
    root: &'a Path,
    levels: Vec<Level>,
    /// How many names of one directory are in memory.
    names_max: usize,
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

impl<'a> Walk<'a> {
    fn new(root: &'a Path, last: &str) -> Self {
        // A text that ends with a slash is no name, and stands for what has been descended into.
        let behind = last.trim_end_matches('/').to_owned();
        let top = Level { prefix: String::new(), behind, names: None };
        Self { root, levels: vec![top], names_max: NAMES_MAX, ahead: None }
    }

    /// The next repository; `None` behind the last, or when `is_over` says so.
    fn next(&mut self, is_over: impl Fn() -> bool) -> io::Result<Option<Repository>> {
        while let Some(level) = self.levels.last_mut().filter(|_| !is_over()) {
            let Some(names) = &mut level.names else {
                let parent = level.prefix.trim_end_matches('/');
                level.names = Some(read(self.root, parent, &level.behind, self.names_max)?);
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
            // `behind` may lie below this name. If so, it is where the walk goes on.
            let behind = mem::replace(&mut level.behind, name.clone());
            if let Some(parent) = name.strip_suffix('/') {
                let ahead = self.ahead.take().filter(|(read, _)| read == parent);
                let names = ahead.map(|(_, names)| names);
                self.levels.push(Level { prefix: name, behind, names });
                continue;
            }
            let names = read(self.root, &name, "", self.names_max)?;
            let repository = name.parse().ok().filter(|_| names.is_repository);
            self.ahead = Some((name, names));
            if repository.is_some() {
                return Ok(repository);
            }
        }
        Ok(None)
    }
}

/// Reads the first `max` names of what is below `repositories/<parent>` and follows `behind`;
/// nothing when there is no such directory.
fn read(root: &Path, parent: &str, behind: &str, max: usize) -> io::Result<Names> {
    let (directory, prefix) = match parent.parse() {
        Ok(repository) => (Directory::Repository(repository), format!("{parent}/")),
        Err(_) => (Directory::Repositories, String::new()),
    };
    let path = root.join(Entry::Directory(directory).path());
    let Some(entries) = found(fs::read_dir(path))? else { return Ok(Names::default()) };
    let mut first = First::new(max);
    let mut is_repository = false;
    for entry in entries {
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

    /// More than fits in memory at once, with repositories below some.
    #[test]
    fn a_directory_of_many_names_is_read_again_for_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let mut names: Vec<_> = (0..20).map(|n| format!("r{n}")).collect();
        names.extend(["r1/a", "r1/b", "r1/c", "r1/d/e", "r9/below"].map(str::to_owned));
        for name in &names {
            fs::create_dir_all(root.path().join(format!("repositories/{name}/_layers"))).unwrap();
        }
        names.sort_unstable();
        for names_max in 1..=names.len() {
            let mut walk = Walk { names_max, ..Walk::new(root.path(), "") };
            let mut walked = Vec::new();
            while let Some(repository) = walk.next(|| false).unwrap() {
                walked.push(repository.to_string());
            }
            assert_eq!(walked, names, "{names_max} at a time");
        }
    }
}
