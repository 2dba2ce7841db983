//! `larder-fs` alone, and calls on its mount that cannot last for ever.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, mpsc},
    thread,
    time::Duration,
};

use larder_layout::{Algorithm, Digest, Entry, Report};

use crate::{
    Process, Sandbox, Storage, bin,
    node::{as_nobody, give_to_nobody, shown},
};

/// How long one call on a mount may take. The program's own deadlines are longer, but for what a
/// storage that answers is asked for.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Publishes content by ordinary calls, and tells under which digest.
///
/// # Errors
/// What the calls say. `ingest/x` may then be left.
pub fn publish(mount: &Path, content: &[u8]) -> io::Result<Digest> {
    let (staged, digest) = (mount.join("ingest/x"), Digest::of(Algorithm::Sha256, content));
    fs::write(&staged, content)?;
    fs::rename(staged, mount.join(Entry::Blob(digest.clone()).path()))?;
    Ok(digest)
}

/// One mount. Its cache stays when it is killed.
pub struct Mount<'a> {
    sandbox: &'a Sandbox,
    name: String,
    config: PathBuf,
    directory: PathBuf,
    cache: PathBuf,
    /// The program, where it has no privileges.
    shown: Option<PathBuf>,
    process: Mutex<Option<Process>>,
}

impl<'a> Mount<'a> {
    /// What a test needs to have one.
    pub const NEEDS: [&'static str; 2] = ["larder-fs", "/dev/fuse"];

    /// Mounts a storage, with these keys of `cache:` besides its directory. The disk may be filled
    /// unless they say otherwise.
    pub fn start(sandbox: &'a Sandbox, name: &str, storage: &Storage, cache: &str) -> Self {
        let mount = Self::new(sandbox, name, storage, cache);
        mount.restart();
        mount
    }

    /// The same, but as a user without any privileges, to whom the storage belongs: the kernel
    /// passes nothing through.
    pub fn unprivileged(sandbox: &'a Sandbox, name: &str, storage: &Path, cache: &str) -> Self {
        let mut mount = Self::new(sandbox, name, &Storage::Directory(storage.to_owned()), cache);
        for directory in [storage, &mount.directory, &mount.cache] {
            give_to_nobody(directory);
        }
        mount.shown = Some(shown(sandbox, name, "larder-fs"));
        mount.restart();
        mount
    }

    fn new(sandbox: &'a Sandbox, name: &str, storage: &Storage, cache: &str) -> Self {
        let directory = sandbox.directory(&format!("{name}-cache"));
        let min_free = if cache.contains("min_free") { "" } else { "min_free: 0, " };
        let config = format!(
            "version: 0.1\n\
             log: {{level: info, formatter: text}}\n\
             {}\n\
             cache: {{directory: {}, {min_free}{cache}}}\n",
            storage.section(),
            directory.display(),
        );
        Self {
            sandbox,
            name: name.to_owned(),
            config: sandbox.file(&format!("{name}.yml"), &config),
            directory: sandbox.directory(&format!("{name}-mount")),
            cache: directory,
            shown: None,
            process: Mutex::default(),
        }
    }

    /// Starts the program anew, and waits until the mount answers.
    pub fn restart(&self) {
        let mut command = match &self.shown {
            None => Command::new(bin("larder-fs")),
            Some(shown) => {
                let mut command = as_nobody();
                command.arg(shown);
                command
            }
        };
        command.arg("mount").arg("--config").arg(&self.config).arg("--allow-other");
        command.arg(&self.directory);
        let mut process = Process::start(self.sandbox, &self.name, command);
        // A dead mount still tells what the kernel remembers of it, but opens nothing.
        let report = self.directory.join(Entry::Report(Report::Stats).path());
        let id = process.id();
        process.wait_until("a mount", || self.watch(id, CALL_TIMEOUT, || fs::read(&report)).ok());
        *self.process() = Some(process);
    }

    /// Kills the program with SIGKILL. Its mount stays, dead.
    pub fn kill(&self) {
        self.process().as_mut().expect("larder-fs runs").kill();
    }

    /// Unmounts with SIGTERM.
    pub fn stop(&self) {
        self.process().as_mut().expect("larder-fs runs").stop();
    }

    /// Stops the program: what calls the mount waits for it. [`Mount::thaw`] has it go on.
    pub fn freeze(&self) {
        self.process().as_ref().expect("larder-fs runs").signal(libc::SIGSTOP);
    }

    /// Has it go on where it was stopped.
    pub fn thaw(&self) {
        self.process().as_ref().expect("larder-fs runs").signal(libc::SIGCONT);
    }

    /// Where it is mounted. Not to be touched but in [`Self::call`].
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of its cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Everything it has written to its log.
    pub fn log(&self) -> String {
        self.process().as_ref().expect("larder-fs runs").log()
    }

    /// Calls something that touches the mount.
    ///
    /// # Panics
    /// When it is not done in 30 s: then `larder-fs` is killed, which ends the call.
    pub fn call<T: Send>(&self, call: impl FnOnce(&Path) -> T + Send) -> T {
        self.call_within(CALL_TIMEOUT, call)
    }

    /// The same with another limit.
    pub fn call_within<T: Send>(&self, limit: Duration, call: impl FnOnce(&Path) -> T + Send) -> T {
        let process = self.process().as_ref().map(Process::id);
        self.watch(process.expect("larder-fs runs"), limit, || call(&self.directory))
    }

    fn watch<T: Send>(&self, process: u32, limit: Duration, call: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let (done, ended) = mpsc::channel::<()>();
            let called = scope.spawn(move || {
                let outcome = call();
                drop(done);
                outcome
            });
            let hangs = ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if hangs {
                let process = libc::pid_t::try_from(process).expect("a process id");
                // SAFETY: kill touches no memory. The process is our child, and not waited for yet.
                unsafe { libc::kill(process, libc::SIGKILL) };
            }
            let outcome = called.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(!hangs, "a call on the mount {} took more than {limit:?}", self.name);
            outcome
        })
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Some(process) = &mut *self.process() {
            process.stop();
        }
    }
}
