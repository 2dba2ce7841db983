//! The FUSE adapter: decode a request, call [`Filesystem`], reply. With [`passthrough`], the only
//! place that names `fuser`.
//!
//! The thread that reads requests from the kernel answers only what it can at once. Whatever may
//! wait, for the storage or the disk, waits in a task with a deadline, and the next request is read.

mod attributes;
mod interrupt;
mod listing;
mod open_files;
mod operations;
mod passthrough;
mod warm;

use std::{io, path::Path, sync::Arc, time::Duration};

use fuser::{
    Config, Errno, Generation, MountOption, ReplyEmpty, ReplyEntry, Request, Session, SessionACL,
};
use tokio::runtime::Handle as Runtime;

use self::{interrupt::interrupted, open_files::OpenFiles, operations::answer_entry};
use crate::{
    error::{Error, Result},
    filesystem::{Attributes, Filesystem},
};

/// How long anything may take that moves no content. The storage's own time-outs are shorter.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the content of one blob may take. Each step of a fetch or an upload has a shorter
/// deadline of its own; this is the end of it all.
const CONTENT_DEADLINE: Duration = Duration::from_hours(1);
/// How long a read may wait. A blob that is shown only after all of it was fetched takes longer
/// than a range, and whoever has other patience is interrupted or closes the file.
const READ_DEADLINE: Duration = Duration::from_secs(120);
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
        // Layers have devices and set-user-ID programs in them.
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(2);
    config.clone_fd = true;
    let files = Arc::new(OpenFiles::new(filesystem.cache_bytes()));
    let adapter = Adapter { filesystem: Arc::new(filesystem), files, runtime };
    Session::new(adapter, mountpoint, &config)
}

struct Adapter {
    filesystem: Arc<Filesystem>,
    files: Arc<OpenFiles>,
    runtime: Runtime,
}

impl Adapter {
    /// Runs `operation` until its deadline, or until a signal waits for whoever asked, and hands
    /// its outcome to `reply`.
    fn answer<T: Send + 'static>(
        &self,
        request: &Request,
        deadline: Duration,
        operation: impl Future<Output = Result<T>> + Send + 'static,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let thread = request.pid();
        self.runtime.spawn(async move {
            let outcome = tokio::select! {
                biased;
                outcome = operation => outcome,
                () = tokio::time::sleep(deadline) => Err(Error::TimedOut),
                () = interrupted(thread) => Err(Error::Interrupted),
            };
            reply(outcome);
        });
    }

    fn answer_entry(
        &self,
        request: &Request,
        operation: impl Future<Output = Result<Attributes>> + Send + 'static,
        reply: ReplyEntry,
    ) {
        self.answer(request, DEADLINE, operation, move |outcome| answer_entry(outcome, reply));
    }

    fn answer_empty(
        &self,
        request: &Request,
        deadline: Duration,
        operation: impl Future<Output = Result<()>> + Send + 'static,
        reply: ReplyEmpty,
    ) {
        self.answer(request, deadline, operation, move |outcome| match outcome {
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
