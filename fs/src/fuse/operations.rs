//! One function for each request of the kernel.

use std::{
    ffi::OsStr, fs::File, io, os::unix::ffi::OsStrExt, path::Path, sync::Arc, time::SystemTime,
};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::{
    Adapter, CONTENT_DEADLINE, DEADLINE, GENERATION, READ_DEADLINE,
    attributes::file_attr,
    errno,
    listing::{list, list_plus},
    passthrough::Mode,
};
use crate::{
    error::{Error, Result},
    fetch::blocking,
    filesystem::Attributes,
};

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
            self.files.passthrough.give_up("this kernel lacks FUSE passthrough (Linux 6.9)");
        }
        Ok(())
    }

    /// What is inside a layer may take as long as it takes to unpack that.
    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        let operation = async move { filesystem.lookup(parent.0, &name).await };
        self.answer(req, CONTENT_DEADLINE, operation, move |outcome| answer_entry(outcome, reply));
    }

    fn forget(&self, _req: &Request, number: INodeNo, lookups: u64) {
        if self.filesystem.forget(number.0, lookups) {
            self.files.forget(number.0);
        }
    }

    fn getattr(&self, req: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let filesystem = Arc::clone(&self.filesystem);
        let operation = async move { filesystem.getattr(number.0).await };
        self.answer(req, CONTENT_DEADLINE, operation, move |outcome| answer_attr(outcome, reply));
    }

    fn setattr(
        &self,
        req: &Request,
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
        self.answer(req, DEADLINE, operation, move |outcome| answer_attr(outcome, reply));
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

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        self.answer_entry(req, async move { filesystem.mkdir(parent.0, &name).await }, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        let operation = async move { filesystem.unlink(parent.0, &name).await };
        self.answer_empty(req, DEADLINE, operation, reply);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Error::ReadOnly));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (filesystem, name, target) =
            (Arc::clone(&self.filesystem), name.to_owned(), target.to_owned());
        let operation = async move { filesystem.symlink(parent.0, &name, &target).await };
        self.answer_entry(req, operation, reply);
    }

    fn rename(
        &self,
        req: &Request,
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
        self.answer_empty(req, CONTENT_DEADLINE, operation, reply);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(errno(&Error::ReadOnly));
    }

    fn open(&self, req: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let for_writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
        // Whoever reads past the page cache wants to know what is on the disk. A reader whom the
        // kernel has refused a page of a file asks so for the file to be hashed.
        let is_doubted = flags.0 & libc::O_DIRECT != 0;
        if is_doubted {
            self.filesystem.doubt(number.0);
        } else if !for_writing && let Some((handle, mode)) = self.files.reopen(number.0) {
            self.filesystem.count_opened();
            return answer_open(handle, &mode, reply);
        }
        let filesystem = Arc::clone(&self.filesystem);
        let files = Arc::clone(&self.files);
        let opening = Arc::clone(&filesystem);
        let operation = async move { opening.open(number.0, for_writing).await };
        self.answer(req, CONTENT_DEADLINE, operation, move |outcome| {
            let register = |file: &File| reply.open_backing(file);
            let opened =
                outcome.and_then(|opened| files.insert(number.0, opened, for_writing, register));
            match opened {
                Ok((handle, mode)) => answer_open(handle, &mode, reply),
                Err(e) => {
                    if matches!(e, Error::Stale) {
                        filesystem.renew(number.0);
                    }
                    reply.error(errno(&e));
                }
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        let files = Arc::clone(&self.files);
        let operation = blocking(move || filesystem.create(parent.0, &name));
        self.answer(req, DEADLINE, operation, move |outcome| {
            let created = outcome.and_then(|(attributes, opened)| {
                let register = |file: &File| reply.open_backing(file);
                let (handle, mode) = files.insert(attributes.number, opened, true, register)?;
                Ok((attributes, handle, mode))
            });
            match created {
                Ok((attributes, handle, mode)) => {
                    let attr = file_attr(&attributes);
                    reply.created(&attributes.validity, &attr, GENERATION, handle, mode.flags());
                }
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (filesystem, opened) = (Arc::clone(&self.filesystem), self.files.get(handle));
        let operation = async move { filesystem.read(opened?, offset, size).await };
        self.answer(req, READ_DEADLINE, operation, move |outcome| match outcome {
            Ok(content) => reply.data(&content),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn write(
        &self,
        req: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        content: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let opened = self.files.get(handle);
        let (written, content) = (content.len() as u32, content.to_owned());
        let operation = async move { opened?.write(offset, content).await };
        self.answer(req, DEADLINE, operation, move |outcome| match outcome {
            Ok(()) => reply.written(written),
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
        // Nobody waits for it.
        reply.ok();
        // Closing for the last time may evict, which waits for the disk.
        if let Some(last) = self.files.remove(number.0, handle) {
            self.runtime.spawn_blocking(move || drop(last));
        }
    }

    fn opendir(&self, req: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let (filesystem, files) = (Arc::clone(&self.filesystem), Arc::clone(&self.files));
        let operation = async move { filesystem.opendir(number.0).await };
        self.answer(req, CONTENT_DEADLINE, operation, move |outcome| match outcome {
            Ok(opened) => reply.opened(files.insert_directory(opened), FopenFlags::empty()),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn readdir(
        &self,
        req: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let (filesystem, opened) = (Arc::clone(&self.filesystem), self.files.get(handle));
        let operation = async move {
            let listed = list(&filesystem, &*opened?, offset, &mut reply).await;
            Ok((listed, reply))
        };
        // After the deadline the reply is dropped, which answers EIO.
        self.answer(req, DEADLINE, operation, |outcome| match outcome {
            Ok((Ok(()), reply)) => reply.ok(),
            Ok((Err(e), reply)) => reply.error(errno(&e)),
            Err(e) => tracing::warn!("cannot list a directory: {e}"),
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (filesystem, opened) = (Arc::clone(&self.filesystem), self.files.get(handle));
        let operation = async move {
            let listed = list_plus(&filesystem, &*opened?, (number.0, offset), &mut reply).await;
            Ok((listed, reply))
        };
        self.answer(req, DEADLINE, operation, |outcome| match outcome {
            Ok((Ok(()), reply)) => reply.ok(),
            Ok((Err(e), reply)) => reply.error(errno(&e)),
            Err(e) => tracing::warn!("cannot list a directory: {e}"),
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.files.remove(number.0, handle);
        reply.ok();
    }

    fn getxattr(&self, req: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (filesystem, name) = (Arc::clone(&self.filesystem), name.to_owned());
        let operation = blocking(move || filesystem.xattr(number.0, &name));
        self.answer(req, DEADLINE, operation, move |outcome| answer_xattr(outcome, size, reply));
    }

    fn listxattr(&self, req: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let filesystem = Arc::clone(&self.filesystem);
        let operation = blocking(move || filesystem.xattr_names(number.0));
        self.answer(req, DEADLINE, operation, move |outcome| answer_xattr(outcome, size, reply));
    }

    fn setxattr(
        &self,
        _req: &Request,
        _number: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(&Error::ReadOnly));
    }

    fn removexattr(&self, _req: &Request, _number: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Error::ReadOnly));
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, req: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let filesystem = Arc::clone(&self.filesystem);
        let operation = blocking(move || filesystem.disk());
        self.answer(req, DEADLINE, operation, move |outcome| match outcome {
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

pub(super) fn answer_entry(outcome: Result<Attributes>, reply: ReplyEntry) {
    match outcome {
        Ok(attributes) => reply.entry(&attributes.validity, &file_attr(&attributes), GENERATION),
        Err(e) => reply.error(errno(&e)),
    }
}

fn answer_attr(outcome: Result<Attributes>, reply: ReplyAttr) {
    match outcome {
        Ok(attributes) => reply.attr(&attributes.validity, &file_attr(&attributes)),
        Err(e) => reply.error(errno(&e)),
    }
}

fn answer_open(handle: FileHandle, mode: &Mode, reply: ReplyOpen) {
    match mode {
        Mode::Passthrough(id) => reply.opened_passthrough(handle, mode.flags(), id),
        Mode::Cached | Mode::Direct => reply.opened(handle, mode.flags()),
    }
}

/// Asked with no room, the length alone is told: getxattr(2).
fn answer_xattr(outcome: Result<String>, size: u32, reply: ReplyXattr) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(value.as_bytes()),
        Err(e) => reply.error(errno(&e)),
    }
}
