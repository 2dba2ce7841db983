//! The files of one layer.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// NAME_MAX and PATH_MAX: what is longer cannot be named in a mount.
const NAME_MAX_BYTES: usize = 255;
const PATH_MAX_BYTES: usize = 4096;
/// The root directory of every layer.
pub const ROOT: u32 = 0;

/// What a layer holds, as its archive says: it is not merged with those below it, and what it removes from
/// them is there as a file, `.wh.<name>` (OCI image-spec, "Whiteouts").
#[derive(Debug)]
pub struct Tree {
    files: Vec<LayerFile>,
}

/// One file, of whatever type.
#[derive(Debug)]
pub struct LayerFile {
    /// Its type, with what only that has.
    pub content: Content,
    /// What stat(2) tells of it besides.
    pub metadata: Metadata,
}

/// The type of a file.
#[derive(Debug)]
pub enum Content {
    /// A directory, with its files by their names.
    Directory(BTreeMap<OsString, u32>),
    /// A regular file: where it is in what was unpacked, and how long it is.
    Regular {
        /// Where it begins.
        offset: u64,
        /// Its length.
        size_bytes: u64,
    },
    /// A symbolic link.
    Symlink(PathBuf),
    /// A device, by its number.
    CharDevice(u32),
    /// The same.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
}

/// What stat(2) tells of a file of any type.
#[derive(Clone, Copy, Debug)]
pub struct Metadata {
    /// Permissions, and the bits for set-user-ID, set-group-ID and sticky.
    pub mode: u16,
    /// The number of its owner.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
    /// When it was changed.
    pub modified: SystemTime,
    /// How many names it has.
    pub links: u32,
}

impl Metadata {
    /// Those of a directory that an archive has files in, but says nothing of.
    const IMPLIED: Self =
        Self { mode: 0o755, uid: 0, gid: 0, modified: SystemTime::UNIX_EPOCH, links: 1 };
}

impl Default for Tree {
    /// Only the root directory.
    fn default() -> Self {
        let content = Content::Directory(BTreeMap::new());
        Self { files: vec![LayerFile { content, metadata: Metadata::IMPLIED }] }
    }
}

impl Tree {
    /// How many files there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// A file by its number.
    pub fn get(&self, index: u32) -> Option<&LayerFile> {
        self.files.get(usize::try_from(index).ok()?)
    }

    /// The file called `name` in a directory.
    pub fn child(&self, directory: u32, name: &OsStr) -> Option<u32> {
        self.children(directory)?.get(name).copied()
    }

    /// The names in a directory; `None` for any other file.
    pub fn children(&self, directory: u32) -> Option<&BTreeMap<OsString, u32>> {
        match &self.get(directory)?.content {
            Content::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// The file at a path, as an archive spells it.
    pub fn find(&self, path: &Path) -> Option<u32> {
        let names = names(path)?;
        names.into_iter().try_fold(ROOT, |directory, name| self.child(directory, name))
    }

    /// Adds a file, or replaces the one that has its name, as unpacking it would. Tells whether there can be
    /// such a name here: one that leads out of the layer, or through what is no directory, cannot.
    pub fn add(&mut self, path: &Path, file: LayerFile) -> bool {
        let Some(mut names) = names(path) else { return false };
        let Some(name) = names.pop() else {
            // The root itself.
            self.files[0].metadata = file.metadata;
            return matches!(file.content, Content::Directory(_));
        };
        let Some(parent) = self.directory(&names) else { return false };
        let is_directory = matches!(file.content, Content::Directory(_));
        if let Some(known) = self.child(parent, name)
            && is_directory
            && self.children(known).is_some()
        {
            self.files[known as usize].metadata = file.metadata;
            return true;
        }
        let index = self.push(file);
        self.name(parent, name, index);
        true
    }

    /// Gives a file that is there another name. Tells whether there is one, and can be such a name.
    pub fn link(&mut self, path: &Path, target: &Path) -> bool {
        let (Some(target), Some(mut names)) = (self.find(target), names(path)) else {
            return false;
        };
        let (Some(name), None) = (names.pop(), self.children(target)) else { return false };
        let Some(parent) = self.directory(&names) else { return false };
        self.files[target as usize].metadata.links += 1;
        self.name(parent, name, target);
        true
    }

    /// The directory at a path, which is made where it is missing.
    fn directory(&mut self, names: &[&OsStr]) -> Option<u32> {
        let mut directory = ROOT;
        for name in names {
            directory = match self.child(directory, name) {
                Some(known) => {
                    self.children(known)?;
                    known
                }
                None => {
                    let content = Content::Directory(BTreeMap::new());
                    let made = self.push(LayerFile { content, metadata: Metadata::IMPLIED });
                    self.name(directory, name, made);
                    made
                }
            };
        }
        Some(directory)
    }

    fn push(&mut self, file: LayerFile) -> u32 {
        self.files.push(file);
        (self.files.len() - 1) as u32
    }

    fn name(&mut self, directory: u32, name: &OsStr, index: u32) {
        if let Content::Directory(children) = &mut self.files[directory as usize].content {
            children.insert(name.to_owned(), index);
        }
    }
}

/// The names in a path; `None` for one that leads out of the layer, or is too long.
fn names(path: &Path) -> Option<Vec<&OsStr>> {
    use std::path::Component;
    if path.as_os_str().len() > PATH_MAX_BYTES {
        return None;
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if name.len() <= NAME_MAX_BYTES => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::Normal(_) | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: Content) -> LayerFile {
        LayerFile { content, metadata: Metadata::IMPLIED }
    }

    fn regular(offset: u64) -> LayerFile {
        file(Content::Regular { offset, size_bytes: 1 })
    }

    fn offset(tree: &Tree, path: &str) -> Option<u64> {
        match tree.get(tree.find(path.as_ref())?)?.content {
            Content::Regular { offset, .. } => Some(offset),
            _ => None,
        }
    }

    #[test]
    fn what_comes_later_replaces_what_came_before() {
        let mut tree = Tree::default();
        assert!(tree.add("./etc/passwd".as_ref(), regular(1)));
        assert!(tree.add("/etc/passwd".as_ref(), regular(2)));
        assert_eq!(offset(&tree, "etc/passwd"), Some(2));
        // A directory keeps what is in it.
        assert!(tree.add("etc/".as_ref(), file(Content::Directory(BTreeMap::new()))));
        assert_eq!(offset(&tree, "etc/passwd"), Some(2));
        assert!(tree.add("etc".as_ref(), file(Content::Symlink("elsewhere".into()))));
        assert_eq!(tree.find("etc/passwd".as_ref()), None);
    }

    #[test]
    fn a_hard_link_is_the_same_file() {
        let mut tree = Tree::default();
        assert!(tree.add("a".as_ref(), regular(1)));
        assert!(tree.link("d/b".as_ref(), "./a".as_ref()));
        assert_eq!(tree.find("d/b".as_ref()), tree.find("a".as_ref()));
        assert_eq!(tree.get(tree.find("a".as_ref()).unwrap()).unwrap().metadata.links, 2);
        assert!(!tree.link("c".as_ref(), "of-another-layer".as_ref()));
        assert!(!tree.link("c".as_ref(), "d".as_ref()), "not of a directory");
    }

    #[test]
    fn nothing_leads_out_of_a_layer() {
        let mut tree = Tree::default();
        assert!(tree.add("a/link".as_ref(), file(Content::Symlink("/".into()))));
        for path in ["../a", "a/../../b", "a/link/b", &"x".repeat(256), &"x/".repeat(2049)] {
            assert!(!tree.add(path.as_ref(), regular(1)), "{path}");
        }
        assert_eq!(tree.count(), 3);
    }
}
