//! What a directory of content that cannot change answers, call by call, as pjdfstest asks.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    ffi::{CString, OsStr},
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
        },
    },
    path::{Path, PathBuf},
    ptr,
};

use larder_layout::{Algorithm, Digest, Entry, Link};
use larder_tests::{Mount, Sandbox, Storage, blobs_in, random_bytes};

const SIZE_BYTES: usize = 1_500_000;
const OK: i32 = 0;

/// A mount with a blob, another one, and a tag.
struct Tree {
    mount: PathBuf,
    content: Vec<u8>,
    blob: PathBuf,
    other: PathBuf,
    tag: PathBuf,
    /// In `ingest/`.
    staged: PathBuf,
    /// Nobody has published it.
    missing: PathBuf,
}

/// A call, what it is to answer, and what it has answered.
type Call = (&'static str, i32, io::Result<()>);

type Group = fn(&Tree) -> Vec<Call>;

macro_rules! calls {
    ($($name:literal => $errno:expr, $call:expr;)*) => {
        vec![$(($name, $errno, answer(|| $call)),)*]
    };
}

impl Tree {
    fn new(mount: &Path) -> Self {
        let publish = |content: &[u8]| {
            let digest = Digest::of(Algorithm::Sha256, content);
            let staged = mount.join("ingest/first");
            fs::write(&staged, content).unwrap();
            fs::rename(staged, mount.join(Entry::Blob(digest.clone()).path())).unwrap();
            digest
        };
        let content = random_bytes(SIZE_BYTES);
        let (digest, other) = (publish(&content), publish(b"{\"mediaType\": \"a/b\"}"));
        let link = Link::Tag("library/app".parse().unwrap(), "latest".parse().unwrap());
        let tag = mount.join(Entry::Link(link.clone()).path());
        fs::create_dir_all(tag.parent().unwrap()).unwrap();
        symlink(link.target(&other), mount.join("ingest/link")).unwrap();
        fs::rename(mount.join("ingest/link"), &tag).unwrap();
        let staged = mount.join("ingest/staged");
        fs::write(&staged, b"staged").unwrap();
        let path = |digest| mount.join(Entry::Blob(digest).path());
        Self {
            mount: mount.to_owned(),
            content,
            blob: path(digest),
            other: path(other),
            tag,
            staged,
            missing: path(Digest::new(Algorithm::Sha256, &"0".repeat(64)).unwrap()),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    fn names(&self) -> Vec<Call> {
        let long = "a".repeat(256);
        let in_ingest = self.at("ingest").join(&long);
        let in_blobs = self.at("blobs/sha256").join(long);
        let upper = self.at("blobs/sha256").join("A".repeat(64));
        let binary = self.at("ingest").join(OsStr::from_bytes(b"\xff\xfe"));
        let below = self.blob.join("below");
        let up = self.at("blobs/sha256/../..");
        calls! {
            "stat of a missing blob" => libc::ENOENT, stat(&self.missing);
            "open of a missing blob" => libc::ENOENT, File::open(&self.missing).map(drop);
            "stat of what is no digest" => libc::ENOENT, stat(&self.at("blobs/sha256/xyz"));
            "stat of a digest in capitals" => libc::ENOENT, stat(&upper);
            "stat of no algorithm" => libc::ENOENT, stat(&self.at("blobs/md5"));
            "stat of no name of the contract" => libc::ENOENT, stat(&self.at("lost+found"));
            "stat of a name that is too long" => libc::ENAMETOOLONG, stat(&in_blobs);
            "create of one" => libc::ENAMETOOLONG, File::create(&in_ingest).map(drop);
            "stat of a name that is not UTF-8" => libc::ENOENT, stat(&binary);
            "create of one" => libc::EPERM, File::create(&binary).map(drop);
            "create of a hidden name" => libc::EPERM, File::create(self.at("ingest/.x")).map(drop);
            "stat below a blob" => libc::ENOTDIR, stat(&below);
            "stat of the root, from below" => OK, {
                assert_eq!(fs::metadata(&up)?.ino(), fs::metadata(&self.mount)?.ino());
                Ok(())
            };
        }
    }

    fn opens(&self) -> Vec<Call> {
        let open = |path: &Path, flags: i32| {
            let flags = flags | libc::O_CLOEXEC;
            // SAFETY: the path ends with NUL, and the descriptor is closed below.
            match unsafe { libc::open(text(path).as_ptr(), flags, 0o644) } {
                -1 => Err(io::Error::last_os_error()),
                // SAFETY: it was just opened, and nobody else has it.
                file => check(unsafe { libc::close(file) }),
            }
        };
        let (blob, blobs) = (&self.blob, self.at("blobs/sha256"));
        calls! {
            "O_RDONLY" => OK, open(blob, libc::O_RDONLY);
            "O_WRONLY" => libc::EPERM, open(blob, libc::O_WRONLY);
            "O_RDWR" => libc::EPERM, open(blob, libc::O_RDWR);
            "O_WRONLY | O_TRUNC" => libc::EPERM, open(blob, libc::O_WRONLY | libc::O_TRUNC);
            "O_RDONLY | O_TRUNC" => libc::EPERM, open(blob, libc::O_TRUNC);
            "O_WRONLY | O_APPEND" => libc::EPERM, open(blob, libc::O_WRONLY | libc::O_APPEND);
            "O_CREAT on a blob" => OK, open(blob, libc::O_CREAT);
            "O_CREAT | O_EXCL on a blob" => libc::EEXIST, open(blob, libc::O_CREAT | libc::O_EXCL);
            "O_CREAT | O_EXCL on a staged file" =>
                libc::EEXIST, open(&self.staged, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY);
            "O_CREAT of a missing blob" =>
                libc::EPERM, open(&self.missing, libc::O_CREAT | libc::O_WRONLY);
            "O_CREAT of a tag" =>
                libc::EPERM, open(&self.tag.with_file_name("x"), libc::O_CREAT | libc::O_WRONLY);
            "O_CREAT in the root" => libc::EPERM, open(&self.at("x"), libc::O_CREAT | libc::O_WRONLY);
            "O_DIRECTORY on a blob" => libc::ENOTDIR, open(blob, libc::O_DIRECTORY);
            "O_WRONLY on a directory" => libc::EISDIR, open(&blobs, libc::O_WRONLY);
            "O_NOFOLLOW on a tag" => libc::ELOOP, open(&self.tag, libc::O_NOFOLLOW);
            "O_WRONLY through a tag" => libc::EPERM, open(&self.tag, libc::O_WRONLY);
            "O_WRONLY on a report" => libc::EPERM, open(&self.at(".larder/stats"), libc::O_WRONLY);
            "O_TMPFILE" => libc::EOPNOTSUPP,
                open(&self.at("ingest"), libc::O_TMPFILE | libc::O_WRONLY);
        }
    }

    fn changes(&self) -> Vec<Call> {
        let blob = &self.blob;
        let times = [libc::timespec { tv_sec: 1, tv_nsec: 0 }; 2];
        let node = |path: PathBuf, mode| {
            // SAFETY: the path ends with NUL.
            check(unsafe { libc::mknod(text(&path).as_ptr(), mode | 0o644, 0) })
        };
        calls! {
            "truncate" => libc::EPERM,
                // SAFETY: the path ends with NUL.
                check(unsafe { libc::truncate(text(blob).as_ptr(), 0) });
            "ftruncate" => libc::EINVAL, File::open(blob)?.set_len(0);
            "write" => libc::EBADF, File::open(blob)?.write_at(b"x", 0).map(drop);
            "chmod" => libc::EPERM, fs::set_permissions(blob, Permissions::from_mode(0o644));
            "chown" => libc::EPERM, chown(blob, Some(1), Some(1));
            "utimensat" => libc::EPERM,
                // SAFETY: the path ends with NUL, and there are two times.
                check(unsafe {
                    libc::utimensat(libc::AT_FDCWD, text(blob).as_ptr(), times.as_ptr(), 0)
                });
            "chmod of a directory" => libc::EPERM,
                fs::set_permissions(self.at("blobs"), Permissions::from_mode(0o700));
            "unlink" => libc::EPERM, fs::remove_file(blob);
            "unlink of a missing blob" => libc::ENOENT, fs::remove_file(&self.missing);
            "unlink of a tag" => libc::EPERM, fs::remove_file(&self.tag);
            "unlink of a report" => libc::EPERM, fs::remove_file(self.at(".larder/stats"));
            "unlink of a directory" => libc::EISDIR,
                // SAFETY: the path ends with NUL.
                check(unsafe { libc::unlink(text(&self.at("blobs")).as_ptr()) });
            "rmdir" => libc::EPERM, fs::remove_dir(self.at("ingest"));
            "rmdir of a blob" => libc::ENOTDIR, fs::remove_dir(blob);
            "mkdir in blobs" => libc::EPERM, fs::create_dir(self.at("blobs/sha256/x"));
            "mkdir in ingest" => libc::EPERM, fs::create_dir(self.at("ingest/x"));
            "mkdir of what is there" => libc::EEXIST, fs::create_dir(self.at("repositories"));
            "mkdir of no repository" => libc::EPERM, fs::create_dir(self.at("repositories/Upper"));
            "mknod of a file" => libc::EPERM, node(self.at("blobs/sha256/x"), libc::S_IFREG);
            "mknod of a pipe" => libc::EPERM, node(self.at("ingest/pipe"), libc::S_IFIFO);
            "mknod of a device" => libc::EPERM, node(self.at("ingest/device"), libc::S_IFBLK);
            "link" => libc::EPERM, fs::hard_link(blob, self.at("ingest/hard"));
            "link of a staged file" => libc::EPERM, fs::hard_link(&self.staged, &self.missing);
            "symlink to no blob" => libc::EINVAL, symlink("/etc/passwd", self.at("ingest/soft"));
            "symlink to itself" => libc::EINVAL, symlink("loop", self.at("ingest/loop"));
            "symlink in a repository" => libc::EPERM,
                symlink(blob, self.tag.with_file_name("other"));
            "fallocate" => libc::EBADF, allocate(&File::open(blob)?);
            "fallocate of a staged file" => libc::EOPNOTSUPP,
                allocate(&OpenOptions::new().write(true).open(&self.staged)?);
        }
    }

    fn renames(&self) -> Vec<Call> {
        let (blob, missing, staged) = (&self.blob, &self.missing, &self.staged);
        let with_flags = |flags| {
            let (from, to) = (text(staged), text(missing));
            let at = libc::AT_FDCWD;
            // SAFETY: both paths end with NUL.
            check(unsafe { libc::renameat2(at, from.as_ptr(), at, to.as_ptr(), flags) })
        };
        calls! {
            "rename of a blob to ingest" => libc::EPERM, fs::rename(blob, self.at("ingest/x"));
            "rename of a blob to another" => libc::EPERM, fs::rename(blob, &self.other);
            "rename of a missing blob" => libc::ENOENT, fs::rename(missing, self.at("ingest/x"));
            "rename of a directory" => libc::EPERM, fs::rename(self.at("blobs"), self.at("other"));
            "rename to the wrong digest" => libc::EBADMSG, fs::rename(staged, missing);
            "rename to another blob's" => libc::EBADMSG, fs::rename(staged, blob);
            "rename to no digest" => libc::EPERM, fs::rename(staged, self.at("blobs/sha256/x"));
            "rename in ingest" => libc::EPERM, fs::rename(staged, self.at("ingest/x"));
            "rename of a file to a tag" => libc::EINVAL, fs::rename(staged, &self.tag);
            "rename to a report" => libc::EPERM, fs::rename(staged, self.at(".larder/stats"));
            "rename out of the mount" => libc::EXDEV, fs::rename(staged, "/tmp/larder-staged");
            "RENAME_NOREPLACE" => libc::EINVAL, with_flags(libc::RENAME_NOREPLACE);
            "RENAME_EXCHANGE" => libc::ENOENT, with_flags(libc::RENAME_EXCHANGE);
        }
    }

    fn reads(&self) -> Vec<Call> {
        let (blob, size) = (&self.blob, SIZE_BYTES as i64);
        let file = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(blob);
        // SAFETY: lseek touches no memory.
        let seek =
            |offset, whence| match unsafe { libc::lseek(file()?.as_raw_fd(), offset, whence) } {
                -1 => Err(io::Error::last_os_error()),
                position => Ok(position),
            };
        let is_at =
            |offset, whence, expected| seek(offset, whence).map(|at| assert_eq!(at, expected));
        calls! {
            "read" => OK, fs::read(blob).map(|content| assert!(content == self.content));
            "read behind the end" => OK,
                file()?.read_at(&mut [0], 1 << 62).map(|size| assert_eq!(size, 0));
            "read at a negative offset" => libc::EINVAL, file()?.read_at(&mut [0], 1 << 63).map(drop);
            "read across the end" => OK,
                file()?.read_at(&mut [0; 9], SIZE_BYTES as u64 - 4).map(|size| assert_eq!(size, 4));
            "SEEK_END" => OK, is_at(0, libc::SEEK_END, size);
            "SEEK_DATA" => OK, is_at(7, libc::SEEK_DATA, 7);
            "SEEK_HOLE" => OK, is_at(7, libc::SEEK_HOLE, size);
            "SEEK_DATA at the end" => libc::ENXIO, seek(size, libc::SEEK_DATA).map(drop);
            "SEEK_SET before the beginning" => libc::EINVAL, seek(-1, libc::SEEK_SET).map(drop);
            "read of a directory" => libc::EISDIR,
                File::open(self.at("blobs"))?.read_at(&mut [0], 0).map(drop);
            "readlink of a blob" => libc::EINVAL, fs::read_link(blob).map(drop);
            "readdir of a blob" => libc::ENOTDIR, fs::read_dir(blob).map(drop);
            "readdir" => OK, {
                let names = fs::read_dir(self.at("blobs/sha256"))?.map(|entry| entry.unwrap().path());
                let mut names: Vec<_> = names.collect();
                names.sort();
                let mut expected = [blob.clone(), self.other.clone()];
                expected.sort();
                assert_eq!(names, expected);
                Ok(())
            };
            "read of a tag" => OK,
                fs::read(&self.tag).map(|content| assert_eq!(content, fs::read(&self.other).unwrap()));
        }
    }

    fn maps(&self) -> Vec<Call> {
        let map = |file: &File, protection: i32, flags: i32, use_it: &dyn Fn(&mut [u8])| {
            let (null, size) = (ptr::null_mut(), SIZE_BYTES);
            // SAFETY: a new mapping, which nothing else uses, and which is unmapped below.
            let at = unsafe { libc::mmap(null, size, protection, flags, file.as_raw_fd(), 0) };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: so many bytes are mapped. Those who are given a private mapping write to it.
            use_it(unsafe { std::slice::from_raw_parts_mut(at.cast(), size) });
            // SAFETY: nobody uses the mapping any more.
            check(unsafe { libc::munmap(at, size) })
        };
        let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
        let is_right = |mapped: &mut [u8]| assert!(mapped == self.content);
        let change = |mapped: &mut [u8]| mapped[0] = !mapped[0];
        let file = move || File::open(&self.blob);
        calls! {
            "mmap, private" => OK, map(&file()?, read, libc::MAP_PRIVATE, &is_right);
            "mmap, shared" => OK, map(&file()?, read, libc::MAP_SHARED, &is_right);
            "mmap to write, shared" => libc::EACCES, map(&file()?, write, libc::MAP_SHARED, &change);
            "mmap to write, private" => OK, map(&file()?, write, libc::MAP_PRIVATE, &change);
            "and what was written is nobody else's" => OK, map(&file()?, read, libc::MAP_SHARED, &is_right);
        }
    }

    fn attributes(&self) -> Vec<Call> {
        let (blob, other) = (&self.blob, &self.other);
        let digest = format!("sha256:{}", blob.file_name().unwrap().to_str().unwrap());
        let size = SIZE_BYTES.to_string();
        let is = |path: &Path, name: &str, expected: &str| {
            attribute(path, name, 200).map(|value| assert_eq!(value, expected, "{name}"))
        };
        let is_time = |name: &str| {
            attribute(blob, name, 200).map(|value| assert!(value.ends_with('Z'), "{name}: {value}"))
        };
        let set = |name: &str| {
            let (path, name) = (text(blob), CString::new(name).unwrap());
            // SAFETY: both strings end with NUL, and the value has one byte.
            check(unsafe {
                libc::setxattr(path.as_ptr(), name.as_ptr(), c"x".as_ptr().cast(), 1, 0)
            })
        };
        let remove = |name: &str| {
            let (path, name) = (text(blob), CString::new(name).unwrap());
            // SAFETY: both strings end with NUL.
            check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })
        };
        calls! {
            "user.larder.digest" => OK, is(blob, "user.larder.digest", &digest);
            "user.larder.size" => OK, is(blob, "user.larder.size", &size);
            "user.larder.where" => OK, is(blob, "user.larder.where", "local");
            "user.larder.cached" => OK, is_time("user.larder.cached");
            "user.larder.verified" => OK, is_time("user.larder.verified");
            "user.larder.media_type" => OK, is(other, "user.larder.media_type", "a/b");
            "user.larder.media_type of a layer" => libc::ENODATA,
                attribute(blob, "user.larder.media_type", 200).map(drop);
            "no attribute" => libc::ENODATA, attribute(blob, "user.larder.x", 200).map(drop);
            "somebody else's attribute" => libc::ENODATA, attribute(blob, "user.x", 200).map(drop);
            "an attribute of a directory" => libc::ENODATA,
                attribute(&self.at("blobs"), "user.larder.digest", 200).map(drop);
            "an attribute with no room" => libc::ERANGE,
                attribute(blob, "user.larder.digest", 5).map(drop);
            "listxattr" => OK, attribute_names(blob).map(|names| {
                let expected = ["digest", "size", "where", "cached", "verified"];
                assert_eq!(names, expected.map(|name| format!("user.larder.{name}")));
            });
            "setxattr" => libc::EPERM, set("user.larder.digest");
            "setxattr of another" => libc::EPERM, set("user.x");
            "removexattr" => libc::EPERM, remove("user.larder.digest");
        }
    }
}

/// What a call answers: `?` in it ends no more than the call.
fn answer(call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    call()
}

fn check(outcome: i32) -> io::Result<()> {
    if outcome == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn stat(path: &Path) -> io::Result<()> {
    fs::symlink_metadata(path).map(drop)
}

fn allocate(file: &File) -> io::Result<()> {
    // SAFETY: fallocate touches no memory.
    check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 4096) })
}

fn attribute(path: &Path, name: &str, room: usize) -> io::Result<String> {
    let (path, name, mut value) = (text(path), CString::new(name).unwrap(), vec![0; room]);
    let into = value.as_mut_ptr().cast();
    // SAFETY: both strings end with NUL, and the value has room for so many bytes.
    let size = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), into, room) };
    let size = usize::try_from(size).map_err(|_| io::Error::last_os_error())?;
    value.truncate(size);
    Ok(String::from_utf8(value).unwrap())
}

fn attribute_names(path: &Path) -> io::Result<Vec<String>> {
    let (path, mut names) = (text(path), vec![0_u8; 1000]);
    // SAFETY: the path ends with NUL, and there is room for so many bytes.
    let size = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let size = usize::try_from(size).map_err(|_| io::Error::last_os_error())?;
    let names = String::from_utf8(names[..size].to_vec()).unwrap();
    Ok(names.split_terminator('\0').map(str::to_owned).collect())
}

// "write under `blobs/` EPERM", "unknown name ENOENT", "digest mismatch EBADMSG": each call.

#[test]
fn every_call_has_its_errno() {
    let Some(sandbox) = Sandbox::enter(&Mount::NEEDS) else { return };
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    let mount = Mount::start(&sandbox, "node", &storage, "size: 64MiB");
    let tree = mount.call(Tree::new);
    let groups: [(&str, Group); 7] = [
        ("names", Tree::names),
        ("open", Tree::opens),
        ("changes", Tree::changes),
        ("rename", Tree::renames),
        ("reads", Tree::reads),
        ("mmap", Tree::maps),
        ("attributes", Tree::attributes),
    ];
    let mut wrong = Vec::new();
    for (group, calls) in groups {
        for (name, expected, outcome) in mount.call(|_| calls(&tree)) {
            let errno = outcome.as_ref().map_or_else(|e| e.raw_os_error().unwrap_or(-1), |()| OK);
            if errno != expected {
                let is = io::Error::from_raw_os_error(expected);
                wrong.push(format!("{group}: {name}: {outcome:?}, and not {is}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} calls:\n{}", wrong.len(), wrong.join("\n"));
    let content = mount.call(|_| fs::read(&tree.blob).unwrap());
    assert!(content == tree.content, "the blob is what it was");
    assert_eq!(blobs_in(&directory).len(), 2, "and nothing else was published");
}
