//! A cache node: the two programs as an operator starts them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use larder_layout::{Digest, Entry};
use serde_json::Value;

use crate::{Authority, Failure, Process, Registry, Sandbox, Storage, run};

/// How long anything that touches the mount may take: a mount must never hang.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// `cache.fill`, unless a test says otherwise.
const FILL: &str = "sequential";

/// A program under test. It lies where cargo builds it, beside the directory of the tests'
/// executables, unless `LARDER_BIN_DIR` names another place.
pub fn bin(name: &str) -> PathBuf {
    let built = || {
        let test = env::current_exe().expect("the path of the test");
        test.ancestors().nth(2).expect("the directory above deps/").to_owned()
    };
    env::var_os("LARDER_BIN_DIR").map_or_else(built, PathBuf::from).join(name)
}

/// A request as `larder-shim` logged it.
#[derive(Clone, Debug)]
pub struct Access {
    /// The method.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The status of the answer.
    pub status: u64,
    /// The size of the body that was sent.
    pub bytes: u64,
    /// Where it came from.
    pub source: String,
}

/// One node. Its mount, cache and address stay when its programs are restarted.
pub struct Node<'a> {
    sandbox: &'a Sandbox,
    name: String,
    address: String,
    config: PathBuf,
    /// The directory that the shim serves: the mount, or a plain one.
    directory: PathBuf,
    /// Where the shim has its temporary files, if not in `/tmp`.
    pub temporary: Option<PathBuf>,
    is_tls: bool,
    has_mount: bool,
    is_privileged: bool,
    fs: Option<Process>,
    shim: Option<Process>,
}

impl<'a> Node<'a> {
    /// What a test needs to have one with a mount.
    pub const NEEDS: [&'static str; 3] = ["larder-fs", "larder-shim", "/dev/fuse"];
    /// What a test needs to have one over a plain directory.
    pub const NEEDS_PLAIN: [&'static str; 2] = ["larder-shim", "setpriv"];

    /// Starts a node on a storage: `larder-fs` mounts it, `larder-shim` serves the mount.
    /// Without an upstream it serves what the storage holds and pulls nothing.
    pub fn start(
        sandbox: &'a Sandbox,
        name: &str,
        storage: &Storage,
        upstream: Option<&str>,
    ) -> Self {
        Self::start_with(sandbox, name, storage, &proxy(upstream))
    }

    /// The same, with these sections in its configuration.
    pub fn start_with(sandbox: &'a Sandbox, name: &str, storage: &Storage, sections: &str) -> Self {
        Self::start_filling(sandbox, name, storage, FILL, sections)
    }

    /// The same, with this as its `cache.fill`.
    pub fn start_filling(
        sandbox: &'a Sandbox,
        name: &str,
        storage: &Storage,
        fill: &str,
        sections: &str,
    ) -> Self {
        let directory = sandbox.directory(&format!("{name}-mount"));
        let mut node = Self::new(sandbox, name, &directory, storage, None, fill, sections);
        node.has_mount = true;
        node.is_privileged = true;
        node.start_fs();
        node.start_shim();
        node
    }

    /// The same, but as a user who may mount and has no other privileges: for NFS, where root may
    /// write nothing.
    pub fn unprivileged(
        sandbox: &'a Sandbox,
        name: &str,
        storage: &Storage,
        upstream: Option<&str>,
    ) -> Self {
        let directory = sandbox.directory(&format!("{name}-mount"));
        let sections = proxy(upstream);
        let mut node = Self::new(sandbox, name, &directory, storage, None, FILL, &sections);
        give_to_nobody(&sandbox.path(&format!("{name}-cache")));
        node.has_mount = true;
        node.start_fs();
        node.start_shim();
        node
    }

    /// Starts `larder-shim` alone over a plain directory, as a user without any privileges.
    pub fn plain(sandbox: &'a Sandbox, name: &str, upstream: Option<&str>) -> Self {
        Self::plain_with(sandbox, name, None, &proxy(upstream))
    }

    /// The same, over TLS or not, and with these sections in its configuration.
    pub fn plain_with(
        sandbox: &'a Sandbox,
        name: &str,
        authority: Option<&Authority>,
        sections: &str,
    ) -> Self {
        let directory = sandbox.directory(&format!("{name}-directory"));
        give_to_nobody(&directory);
        let storage = Storage::Directory(sandbox.path(&format!("{name}-unused")));
        let mut node = Self::new(sandbox, name, &directory, &storage, authority, FILL, sections);
        node.start_shim();
        node
    }

    fn new(
        sandbox: &'a Sandbox,
        name: &str,
        directory: &Path,
        storage: &Storage,
        authority: Option<&Authority>,
        fill: &str,
        sections: &str,
    ) -> Self {
        let address = sandbox.address();
        let tls = authority.map_or_else(String::new, |authority| format!(", {}", authority.tls()));
        let cache = sandbox.directory(&format!("{name}-cache"));
        let config = format!(
            "version: 0.1\n\
             log: {{level: info, formatter: json}}\n\
             {}\n\
             cache: {{directory: {}, size: 4GiB, min_free: 0, fill: {fill}}}\n\
             http: {{addr: \"{address}\"{tls}}}\n\
             {sections}",
            storage.section(),
            cache.display(),
        );
        Self {
            sandbox,
            name: name.to_owned(),
            config: sandbox.file(&format!("{name}.yml"), &config),
            address,
            directory: directory.to_owned(),
            temporary: None,
            is_tls: authority.is_some(),
            has_mount: false,
            is_privileged: false,
            fs: None,
            shim: None,
        }
    }

    /// Mounts, and waits until the mount answers.
    pub fn start_fs(&mut self) {
        let mut command = self.command("larder-fs");
        command.arg("mount").arg("--config").arg(&self.config).arg(&self.directory);
        command.arg("--allow-other");
        let mut process = Process::start(self.sandbox, &format!("{}-fs", self.name), command);
        process.wait_until("a mount that lists its blobs", || self.on_mount("ls", &["blobs"]).ok());
        self.fs = Some(process);
    }

    /// Starts the registry, and waits until it says that it is healthy.
    pub fn start_shim(&mut self) {
        let mut command = self.command("larder-shim");
        command.arg("serve").arg("--config").arg(&self.config).arg("--root").arg(&self.directory);
        if let Some(temporary) = &self.temporary {
            command.env("TMPDIR", temporary);
        }
        let mut process = Process::start(self.sandbox, &format!("{}-shim", self.name), command);
        let registry = self.registry();
        process.wait_until("/healthz", || registry.is_ok("/healthz").then_some(()));
        self.shim = Some(process);
    }

    fn command(&self, program: &str) -> Command {
        if self.is_privileged {
            return Command::new(bin(program));
        }
        let mut command = as_nobody();
        if program == "larder-fs" {
            // As systemd starts it: it may mount, and nothing else that others may not.
            command.args(["--inh-caps=-all,+sys_admin", "--ambient-caps=+sys_admin"]);
            command.args(["--bounding-set=-all,+sys_admin", "--no-new-privs"]);
        } else {
            command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
        }
        command.arg(shown(self.sandbox, &self.name, program));
        command
    }

    /// The number of `larder-fs`.
    pub fn fs_id(&self) -> u32 {
        self.fs.as_ref().expect("larder-fs runs").id()
    }

    /// Unmounts with SIGTERM.
    pub fn stop_fs(&mut self) {
        self.fs.as_mut().expect("larder-fs runs").stop();
    }

    /// Kills `larder-fs` with SIGKILL. Its mount stays, dead.
    pub fn kill_fs(&mut self) {
        self.fs.as_mut().expect("larder-fs runs").kill();
    }

    /// Kills `larder-shim` with SIGKILL.
    pub fn kill_shim(&mut self) {
        self.shim.as_mut().expect("larder-shim runs").kill();
    }

    /// Its address, host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A client of it.
    pub fn registry(&self) -> Registry {
        if self.is_tls { Registry::over_tls(&self.address) } else { Registry::at(&self.address) }
    }

    /// Its address by a name instead of a number, as clients know it who insist on TLS.
    pub fn named_address(&self) -> String {
        self.address.replace("127.0.0.1", Sandbox::HOST)
    }

    /// The mount, or the plain directory. Not to be touched without a deadline: see
    /// [`Self::on_mount`].
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a program in the mount as its working directory, and gives its output.
    ///
    /// # Errors
    /// [`Failure`] when the program fails, or hangs.
    pub fn on_mount(&self, program: &str, args: &[&str]) -> Result<String, Failure> {
        // `env -C` changes the directory in the child: a dead mount cannot hurt this process.
        let mut command = Command::new("env");
        command.arg("-C").arg(&self.directory).arg(program).args(args).env("LC_ALL", "C");
        run(command, MOUNT_TIMEOUT)
    }

    /// The digests of the blobs that the mount lists, each read whole and checked by
    /// `sha256sum`.
    ///
    /// # Panics
    /// When a blob is not what its name says.
    pub fn blobs(&self) -> Vec<Digest> {
        let listed = self.on_mount("ls", &["blobs/sha256"]).expect("the mount lists its blobs");
        let digests = listed.lines().map(|name| format!("sha256:{name}"));
        let digests =
            digests.map(|text| text.parse::<Digest>().expect("blobs have digests for names"));
        digests.inspect(|digest| self.check_blob(digest).expect("a blob can be read")).collect()
    }

    /// Reads one blob through the mount and checks it.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be read.
    ///
    /// # Panics
    /// When it is not what its name says.
    pub fn check_blob(&self, digest: &Digest) -> Result<(), Failure> {
        let path = Entry::Blob(digest.clone()).path();
        let sum = self.on_mount("sha256sum", &[path.to_str().expect("a path in ASCII")])?;
        assert!(sum.starts_with(digest.hex()), "the blob {digest} hashes to {sum}");
        Ok(())
    }

    /// What the shim has logged, before a restart too.
    pub fn log(&self) -> String {
        self.shim.as_ref().expect("larder-shim runs").log()
    }

    /// What `larder-fs` has logged.
    pub fn fs_log(&self) -> String {
        self.fs.as_ref().expect("larder-fs runs").log()
    }

    /// The requests in the log of the shim.
    pub fn accesses(&self) -> Vec<Access> {
        let log = self.log();
        log.lines().filter_map(|line| access(&serde_json::from_str(line).ok()?)).collect()
    }

    /// How many bytes of this blob clients were sent.
    pub fn sent_bytes(&self, digest: &Digest) -> u64 {
        let end = format!("/blobs/{digest}");
        let accesses = self.accesses();
        let gets = accesses.iter().filter(|a| a.method == "GET" && a.path.ends_with(&end));
        gets.filter(|a| matches!(a.status, 200 | 206)).map(|a| a.bytes).sum()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // The shim first, so that it has nothing open in the mount that is going.
        self.shim = None;
        if let Some(fs) = &mut self.fs {
            fs.stop();
        }
    }
}

/// The section that names an upstream.
fn proxy(upstream: Option<&str>) -> String {
    upstream.map_or_else(String::new, |url| format!("proxy: {{remoteurl: \"{url}\"}}\n"))
}

/// A command that runs another one as a user that owns nothing.
pub(crate) fn as_nobody() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]);
    command
}

/// A program at a path that nobody can reach: it may have been built where nobody else may look.
pub(crate) fn shown(sandbox: &Sandbox, name: &str, program: &str) -> PathBuf {
    let shown = sandbox.file(&format!("{name}-{program}"), "");
    let mut bind = Command::new("mount");
    bind.arg("--bind").arg(bin(program)).arg(&shown);
    run(bind, MOUNT_TIMEOUT).expect("a program where everybody can reach it");
    shown
}

pub(crate) fn give_to_nobody(directory: &Path) {
    let mut chown = Command::new("chown");
    chown.arg("nobody:").arg(directory);
    run(chown, MOUNT_TIMEOUT).expect("a directory that belongs to nobody");
}

fn access(line: &Value) -> Option<Access> {
    if line["target"] != "access" {
        return None;
    }
    let text = |name: &str| Some(line[name].as_str()?.to_owned());
    Some(Access {
        method: text("method")?,
        path: text("path")?.split('?').next()?.to_owned(),
        status: line["status"].as_u64()?,
        bytes: line["bytes"].as_u64()?,
        source: text("source")?,
    })
}
