//! The FUSE adapter: decode a request, call [`Filesystem`], reply. With [`passthrough`], the only
//! place that names `fuser`.
//!
//! No request is answered on the thread that reads requests from the kernel: whatever may wait,
//! for the storage or the disk, waits in a task with a deadline, and the next request is read.

mod attributes;
mod listing;
mod open_files;
mod passthrough;

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    AccessFlags, BsdFileFlags, Config, Errno, FileHandle, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle as Runtime;

use self::{
    attributes::file_attr,
    listing::{list, list_plus},
    open_files::{OpenFiles, announce},
    passthrough::Passthrough,
};
use crate::{
    error::{Error, Result},
    fetch::blocking,
    filesystem::{Attributes, Filesystem},
};

/// How long anything may take that moves no content. The storage's own time-outs are shorter.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the content of one blob may take. Each step of a fetch or an upload has a shorter
/// deadline of its own; this is the end of it all.
const CONTENT_DEADLINE: Duration = Duration::from_hours(1);
/// An inode's number is never used twice.
const GENERATION: Generation = Generation(0);
/// A mounted filesystem, served by threads of its own.
pub fn mount(
    filesystem: Filesystem,
    mountpoint: &Path,
    allow_other: bool,
    runtime: Runtime,
) -> io::Result<Session<impl fuser::Filesystem>> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("larder".to_owned()),
        MountOption::Subtype("larder".to_owned()),
        MountOption::NoAtime,
        MountOption::NoExec,
    ];
    config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(2);
    config.clone_fd = true;
    let adapter = Adapter {
        filesystem: Arc::new(filesystem),
        open_files: Arc::default(),
        passthrough: Arc::default(),
        runtime,
    };
    Session::new(adapter, mountpoint, &config)
}

struct Adapter {
    filesystem: Arc<Filesystem>,
    open_files: Arc<OpenFiles>,
    passthrough: Arc<Passthrough>,
    runtime: Runtime,
}

impl Adapter {
    /// Runs `operation` until its deadline, and hands its outcome to `reply`.
    fn answer<T: Send + 'static>(
        &self,
        deadline: Duration,
        operation: impl Future<Output = Result<T>> + Send + 'static,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        self.runtime.spawn(async move {
            let outcome = tokio::time::timeout(deadline, operation).await;
            reply(outcome.unwrap_or(Err(Error::TimedOut)));
        });
    }

    fn answer_entry(
        &self,
        operation: impl Future<Output = Result<Attributes>> + Send + 'static,
        reply: ReplyEntry,
    ) {
        self.answer(DEADLINE, operation, move |outcome| match outcome {
            Ok(attributes) => {
                reply.entry(&attributes.validity, &file_attr(&attributes), GENERATION);
            }
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn answer_empty(
        &self,
        deadline: Duration,
        operation: impl Future<Output = Result<()>> + Send + 'static,
        reply: ReplyEmpty,
    ) {
        self.answer(deadline, operation, move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        });
    }
}

/// The errno of the contract. What an operator has to look at is logged.
fn errno(error: &Error) -> Errno {
    let errno = error.errno();
    if matches!(errno, libc::EIO | libc::ETIMEDOUT | libc::ENOSPC | libc::EBADMSG) {
        tracing::warn!("{error}");
    }
    Errno::from_i32(errno)
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO;
        // A kernel that lacks one of these is only slower.
        let _ = config.add_capabilities(wanted);
        let has_passthrough = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        if !has_passthrough {
            self.passthrough.give_up("this kernel lacks FUSE passthrough (Linux 6.9)");
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        self.answer_entry(async move { filesystem.lookup(parent.0, &name).await }, reply);
    }

    fn forget(&self, _req: &Request, number: INodeNo, lookups: u64) {
        self.filesystem.forget(number.0, lookups);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let filesystem = Arc::clone(&self.filesystem);
        let operation = async move { filesystem.getattr(number.0).await };
        self.answer(DEADLINE, operation, move |outcome| answer_attr(outcome, reply));
    }

    fn setattr(
        &self,
        _req: &Request,
        number: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size_bytes: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let filesystem = Arc::clone(&self.filesystem);
        let operation = async move { filesystem.setattr(number.0, size_bytes).await };
        self.answer(DEADLINE, operation, move |outcome| answer_attr(outcome, reply));
    }

    fn readlink(&self, _req: &Request, number: INodeNo, reply: ReplyData) {
        match self.filesystem.readlink(number.0) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(&Error::ReadOnly));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        self.answer_entry(async move { filesystem.mkdir(parent.0, &name).await }, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        let operation = blocking(move || filesystem.unlink(parent.0, &name));
        self.answer_empty(DEADLINE, operation, reply);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Error::ReadOnly));
    }

    fn symlink(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let outcome = self.filesystem.symlink(parent.0, name, target);
        self.answer_entry(std::future::ready(outcome), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(errno(&Error::Invalid("rename takes no flags here")));
        }
        let filesystem = Arc::clone(&self.filesystem);
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let operation =
            async move { filesystem.rename((parent.0, &name), (new_parent.0, &new_name)).await };
        self.answer_empty(CONTENT_DEADLINE, operation, reply);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(errno(&Error::ReadOnly));
    }

    fn open(&self, _req: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let filesystem = Arc::clone(&self.filesystem);
        let (open_files, passthrough) =
            (Arc::clone(&self.open_files), Arc::clone(&self.passthrough));
        let for_writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let operation = async move { filesystem.open(number.0, for_writing).await };
        self.answer(CONTENT_DEADLINE, operation, move |outcome| match outcome {
            Ok(opened) => {
                let register = |file: &File| reply.open_backing(file);
                let (backing, flags) = announce(&passthrough, number.0, &opened, register);
                let handle = open_files.insert(opened);
                match backing {
                    Some(id) => reply.opened_passthrough(handle, flags, &id),
                    None => reply.opened(handle, flags),
                }
            }
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        let (open_files, passthrough) =
            (Arc::clone(&self.open_files), Arc::clone(&self.passthrough));
        let operation = blocking(move || filesystem.create(parent.0, &name));
        self.answer(DEADLINE, operation, move |outcome| match outcome {
            Ok((attributes, opened)) => {
                let register = |file: &File| reply.open_backing(file);
                let (backing, flags) = announce(&passthrough, attributes.number, &opened, register);
                let handle = open_files.insert(opened);
                let (attr, ttl) = (file_attr(&attributes), attributes.validity);
                match backing {
                    Some(id) => {
                        reply.created_passthrough(&ttl, &attr, GENERATION, handle, flags, &id);
                    }
                    None => reply.created(&ttl, &attr, GENERATION, handle, flags),
                }
            }
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn read(
        &self,
        _req: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let opened = self.open_files.get(handle);
        let operation = blocking(move || opened?.read(offset, size));
        self.answer(DEADLINE, operation, move |outcome| match outcome {
            Ok(content) => reply.data(&content),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn write(
        &self,
        _req: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        content: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let opened = self.open_files.get(handle);
        let content = content.to_owned();
        let operation = blocking(move || {
            opened?.write(offset, &content)?;
            Ok(content.len() as u32)
        });
        self.answer(DEADLINE, operation, move |outcome| match outcome {
            Ok(written) => reply.written(written),
            Err(e) => reply.error(errno(&e)),
        });
    }

    /// Nothing to do: what is staged needs no durability, and `rename` gives it to the rest.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    /// As [`fuser::Filesystem::fsync`].
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.open_files.get(handle).is_ok_and(|opened| opened.file().is_some()) {
            self.passthrough.close(number.0);
        }
        // Closing may evict, which waits for the disk.
        let open_files = Arc::clone(&self.open_files);
        let operation = blocking(move || {
            open_files.remove(handle);
            Ok(())
        });
        self.answer_empty(DEADLINE, operation, reply);
    }

    fn opendir(&self, _req: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.filesystem.opendir(number.0) {
            Ok(opened) => reply.opened(self.open_files.insert(opened), FopenFlags::empty()),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let (filesystem, opened) = (Arc::clone(&self.filesystem), self.open_files.get(handle));
        let operation = async move {
            let listed = list(&filesystem, &*opened?, offset, &mut reply).await;
            Ok((listed, reply))
        };
        // After the deadline the reply is dropped, which answers EIO.
        self.answer(DEADLINE, operation, |outcome| match outcome {
            Ok((Ok(()), reply)) => reply.ok(),
            Ok((Err(e), reply)) => reply.error(errno(&e)),
            Err(e) => tracing::warn!("cannot list a directory: {e}"),
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (filesystem, opened) = (Arc::clone(&self.filesystem), self.open_files.get(handle));
        let operation = async move {
            let listed = list_plus(&filesystem, &*opened?, (number.0, offset), &mut reply).await;
            Ok((listed, reply))
        };
        self.answer(DEADLINE, operation, |outcome| match outcome {
            Ok((Ok(()), reply)) => reply.ok(),
            Ok((Err(e), reply)) => reply.error(errno(&e)),
            Err(e) => tracing::warn!("cannot list a directory: {e}"),
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.open_files.remove(handle);
        reply.ok();
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let filesystem = Arc::clone(&self.filesystem);
        let operation = blocking(move || filesystem.disk());
        self.answer(DEADLINE, operation, move |outcome| match outcome {
            Ok(disk) => reply.statfs(
                disk.blocks(),
                disk.blocks_free(),
                disk.blocks_available(),
                disk.files(),
                disk.files_free(),
                disk.block_size() as u32,
                255,
                disk.fragment_size() as u32,
            ),
            Err(e) => reply.error(errno(&e)),
        });
    }
}

fn answer_attr(outcome: Result<Attributes>, reply: ReplyAttr) {
    match outcome {
        Ok(attributes) => reply.attr(&attributes.validity, &file_attr(&attributes)),
        Err(e) => reply.error(errno(&e)),
    }
}
