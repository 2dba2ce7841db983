//! containerd without Docker or Kubernetes, used through ctr.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    Client, Failure, Image, Process, Sandbox,
    client::{COMMAND_TIMEOUT, PULL_TIMEOUT},
    run,
};

/// A containerd, and the command line that talks to it.
pub struct Containerd {
    socket: PathBuf,
    hosts: PathBuf,
    snapshotter: &'static str,
    next_container: AtomicUsize,
    /// What `ctr` is told with every pull: it remembers no login.
    login: Mutex<Option<String>>,
    _process: Process,
}

impl Containerd {
    /// Starts a daemon and waits until it answers.
    pub fn start(sandbox: &Sandbox, mirror: &str) -> Self {
        let directory = sandbox.directory("containerd");
        let socket = directory.join("socket");
        let at = directory.display();
        let config = format!(
            "version = 2\n\
             root = \"{at}/root\"\n\
             state = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n\
             address = \"{at}/socket\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n\
             path = \"{at}/opt\"\n"
        );
        let config = sandbox.file("containerd/config.toml", &config);
        for (registry, server) in [("docker.io", "registry-1.docker.io"), ("quay.io", "quay.io")] {
            sandbox.file(
                &format!("containerd/hosts/{registry}/hosts.toml"),
                &format!(
                    "server = \"https://{server}\"\n\
                     [host.\"http://{mirror}\"]\n\
                     capabilities = [\"pull\", \"resolve\"]\n"
                ),
            );
        }
        let mut command = sandbox.contained("containerd");
        command.arg("--config").arg(config);
        let mut process = Process::start(sandbox, "containerd", command);
        process.wait_until("an answer", || ctr(&socket, &["version"], COMMAND_TIMEOUT).ok());
        Self {
            socket,
            hosts: directory.join("hosts"),
            snapshotter: if sandbox.is_on_overlay() { "native" } else { "overlayfs" },
            next_container: AtomicUsize::new(0),
            login: Mutex::new(None),
            _process: process,
        }
    }

    fn ctr(&self, args: &[&str], timeout: Duration) -> Result<String, Failure> {
        ctr(&self.socket, args, timeout)
    }
}

impl Client for Containerd {
    fn login(&self, _registry: &str, username: &str, password: &str) -> Result<(), Failure> {
        *self.login.lock().expect("no pull panicked") = Some(format!("{username}:{password}"));
        Ok(())
    }

    fn pull(&self, image: &Image) -> Result<(), Failure> {
        let name = image.name();
        let login = self.login.lock().expect("no pull panicked").clone();
        let login = login.as_deref().map_or(vec![], |login| vec!["--user", login]);
        let hosts = self.hosts.to_str().expect("a path in UTF-8");
        let args = ["images", "pull", "--hosts-dir", hosts, "--snapshotter", self.snapshotter];
        self.ctr(&[&args[..], &login, &[&name]].concat(), PULL_TIMEOUT).map(drop)
    }

    fn digests(&self, image: &Image) -> String {
        let filter = format!("name=={}", image.name());
        self.ctr(&["images", "ls", &filter], COMMAND_TIMEOUT).expect("containerd has the image")
    }

    fn sh(&self, image: &Image, script: &str) -> String {
        let id = format!("c{}", self.next_container.fetch_add(1, Ordering::Relaxed));
        let name = image.name();
        // The shares that ctr sets otherwise are an error where the cpu controller is not ours.
        let run = ["run", "--rm", "--cpu-shares", "0", "--snapshotter", self.snapshotter];
        let args = [&run[..], &[&name, &id, "sh", "-c", script]].concat();
        self.ctr(&args, COMMAND_TIMEOUT).expect("containerd runs the image")
    }

    fn remove(&self, image: &Image) {
        let args = ["images", "rm", "--sync", &image.name()];
        self.ctr(&args, COMMAND_TIMEOUT).expect("containerd removes the image");
    }
}

fn ctr(socket: &Path, args: &[&str], timeout: Duration) -> Result<String, Failure> {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(args);
    run(command, timeout)
}
