//! A network, mount and cgroup namespace for one test.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU16, AtomicUsize, Ordering},
    time::Duration,
};

use tempfile::TempDir;

use crate::{Failure, bin, run};

/// Below the ports that the kernel picks for outgoing connections, with room for the programs
/// that also listen 10,000 above the port they are given.
const FIRST_PORT: u16 = 10_000;
const PREFIX: &str = "larder-tests-";
const CGROUPS: &str = "/sys/fs/cgroup";
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// A sandbox is only taken for abandoned when it had time to lock its directory.
const SWEEP_AGE: Duration = Duration::from_secs(60);

/// Who may be turned to without being named in a configuration: registries, and Google's storage.
const PUBLIC_NAMES: &str = "storage.googleapis.com docker.io index.docker.io registry-1.docker.io auth.docker.io \
     quay.io ghcr.io gcr.io registry.k8s.io mcr.microsoft.com public.ecr.aws";

/// A test's own piece of the machine, and its directory. What the test starts after entering it
/// is inside: commands, daemons, mounts, sockets.
pub struct Sandbox {
    directory: TempDir,
    next_port: AtomicU16,
    next_group: AtomicUsize,
    _lock: File,
}

impl Sandbox {
    /// Another name for 127.0.0.1, which no number and no `localhost` is.
    pub const HOST: &'static str = "host.test";
    /// A name below that one, for the same address.
    pub const HOST_BELOW: &'static str = "below.host.test";

    /// Moves the calling thread into a new sandbox, when the machine has all that the test
    /// `needs`: names of programs, or absolute paths.
    ///
    /// Nothing means that the test has to be skipped. With `CI` set, that is a failure instead.
    pub fn enter(needs: &[&str]) -> Option<Self> {
        let missing = missing(needs);
        if !missing.is_empty() {
            let message =
                format!("this test needs {} (scripts/test installs it)", missing.join(", "));
            assert!(env::var_os("CI").is_none(), "{message}");
            eprintln!("SKIPPED: {message}");
            return None;
        }
        sweep();
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .expect("a directory for the test");
        let lock = File::create(directory.path().join("lock")).expect("a lock file");
        lock.lock().expect("the lock of the test's directory");

        let sandbox = Self {
            directory,
            next_port: AtomicU16::new(first_port()),
            next_group: AtomicUsize::new(0),
            _lock: lock,
        };
        sandbox.unshare();
        Some(sandbox)
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new directory in the test's directory.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a directory in the test's directory");
        path
    }

    /// Writes a file in the test's directory, and gives its path.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory for a file");
        fs::write(&path, content).expect("a file in the test's directory");
        path
    }

    /// `127.0.0.1` and a port that nobody else can have: the network is the test's own.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.next_port.fetch_add(1, Ordering::Relaxed))
    }

    /// A command in a PID, mount and cgroup namespace of its own, for what runs containers: when
    /// the command ends, so does everything that it has started, and its mounts are gone.
    pub fn contained(&self, program: impl AsRef<OsStr>) -> Command {
        let group = self.next_group.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new("sh");
        command
            .arg(self.path("contain.sh"))
            .arg("join")
            .arg(format!("{}-{group}", self.name()))
            .arg(program);
        command
    }

    /// Whether the test's directory is on overlayfs, on which no other overlay can be stacked.
    pub fn is_on_overlay(&self) -> bool {
        let mut stat = Command::new("stat");
        stat.args(["-fc", "%T"]).arg(self.directory.path());
        run(stat, COMMAND_TIMEOUT).expect("the type of a filesystem").trim() == "overlayfs"
    }

    fn unshare(&self) {
        let flags = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;
        // SAFETY: unshare touches no memory.
        let result = unsafe { libc::unshare(flags) };
        assert_eq!(result, 0, "no new namespaces: {}", io::Error::last_os_error());

        let script = self.file("contain.sh", include_str!("contain.sh"));
        let own = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let hosts = self.file(
            "hosts",
            &format!("{own}\n127.0.0.1 {} {} {PUBLIC_NAMES}\n", Self::HOST, Self::HOST_BELOW),
        );
        let mut enter = Command::new("sh");
        enter.arg(script).arg("enter").arg(hosts);
        run(enter, COMMAND_TIMEOUT).expect("a network and mounts of the test's own");
    }

    fn name(&self) -> &str {
        name_of(self.directory.path())
    }
}

/// Networks are apart, but SeaweedFS also makes sockets in /tmp that are named after its ports, so
/// that tests must not all begin with the same.
fn first_port() -> u16 {
    const BLOCKS: u32 = 127;
    const BLOCK_PORTS: u16 = 100;
    FIRST_PORT + (process::id() % BLOCKS) as u16 * BLOCK_PORTS
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The namespace of this thread, not that of the process.
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        let mount_points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let own = mount_points.filter(|path| Path::new(path).starts_with(self.directory.path()));
        for path in own.collect::<Vec<_>>().into_iter().rev() {
            let mut umount = Command::new("umount");
            umount.arg("-l").arg(path);
            if let Err(Failure(message)) = run(umount, COMMAND_TIMEOUT) {
                eprintln!("{message}");
            }
        }
        remove_cgroups(self.name());
    }
}

fn name_of(directory: &Path) -> &str {
    directory.file_name().and_then(OsStr::to_str).expect("a name in ASCII")
}

fn missing<'a>(needs: &[&'a str]) -> Vec<&'a str> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |need: &str| match need {
        "larder-fs" | "larder-shim" => bin(need).exists(),
        _ => env::split_paths(&path).any(|directory| directory.join(need).exists()),
    };
    let always = ["busybox", "unshare", "umount"];
    let mut missing: Vec<_> =
        needs.iter().copied().chain(always).filter(|need| !is_there(need)).collect();
    // SAFETY: geteuid touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        missing.push("root");
    }
    missing
}

/// Removes what tests left behind that were killed before they could.
fn sweep() {
    let entries = fs::read_dir(env::temp_dir()).expect("the directory for temporary files");
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_ours =
            path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        let is_old =
            || path.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > SWEEP_AGE);
        let lock = || File::open(path.join("lock")).ok();
        if is_ours && is_old() == Some(true) && lock().is_some_and(|lock| lock.try_lock().is_ok()) {
            remove_cgroups(name_of(&path));
            // Another test may be sweeping too; what one leaves, the next one takes.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Removes the cgroups whose names start with `name`, in every hierarchy.
fn remove_cgroups(name: &str) {
    let groups_in = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let top = groups_in(Path::new(CGROUPS));
    let below = top.iter().flat_map(|hierarchy| groups_in(hierarchy));
    let is_named = |path: &PathBuf| name_of(path).starts_with(name);
    for group in top.iter().cloned().chain(below).filter(is_named) {
        let mut find = Command::new("find");
        find.arg(&group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
        if let Err(Failure(message)) = run(find, COMMAND_TIMEOUT) {
            eprintln!("{message}");
        }
    }
}
