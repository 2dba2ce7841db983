//! Docker: a daemon with its own containerd, data and socket.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::json;

use crate::{
    Client, Failure, Image, Process, Sandbox,
    client::{COMMAND_TIMEOUT, PULL_TIMEOUT},
    run,
};

/// A Docker daemon, and the command line that talks to it.
pub struct Dockerd {
    socket: PathBuf,
    cli_config: PathBuf,
    _process: Process,
}

impl Dockerd {
    /// Starts a daemon and waits until it answers.
    pub fn start(sandbox: &Sandbox, mirror: &str) -> Self {
        let directory = sandbox.directory("dockerd");
        let socket = directory.join("socket");
        let config = json!({
            "hosts": [format!("unix://{}", socket.display())],
            "data-root": directory.join("data"),
            "exec-root": directory.join("exec"),
            "pidfile": directory.join("pid"),
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "storage-driver": if sandbox.is_on_overlay() { "vfs" } else { "overlay2" },
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "registry-mirrors": [format!("http://{mirror}")],
        });
        let mut command = sandbox.contained("dockerd");
        let config = sandbox.file("dockerd/daemon.json", &config.to_string());
        command.arg("--config-file").arg(config);
        let mut process = Process::start(sandbox, "dockerd", command);

        let cli_config = sandbox.directory("docker-cli");
        let docker = |args: &[&str]| docker(&socket, &cli_config, args, COMMAND_TIMEOUT);
        process.wait_until("an answer", || docker(&["version"]).ok());
        Self { socket, cli_config, _process: process }
    }

    fn docker(&self, args: &[&str], timeout: Duration) -> Result<String, Failure> {
        docker(&self.socket, &self.cli_config, args, timeout)
    }
}

impl Client for Dockerd {
    fn login(&self, registry: &str, username: &str, password: &str) -> Result<(), Failure> {
        let args = ["login", "--username", username, "--password", password, registry];
        self.docker(&args, COMMAND_TIMEOUT).map(drop)
    }

    fn pull(&self, image: &Image) -> Result<(), Failure> {
        self.docker(&["pull", &image.name()], PULL_TIMEOUT).map(drop)
    }

    fn digests(&self, image: &Image) -> String {
        let args = ["image", "inspect", "--format", "{{.RepoDigests}}", &image.name()];
        self.docker(&args, COMMAND_TIMEOUT).expect("docker has the image")
    }

    fn sh(&self, image: &Image, script: &str) -> String {
        let args = ["run", "--rm", "--network", "none", &image.name(), "sh", "-c", script];
        self.docker(&args, COMMAND_TIMEOUT).expect("docker runs the image")
    }

    fn remove(&self, image: &Image) {
        self.docker(&["rmi", &image.name()], COMMAND_TIMEOUT).expect("docker removes the image");
    }
}

fn docker(
    socket: &Path,
    cli_config: &Path,
    args: &[&str],
    timeout: Duration,
) -> Result<String, Failure> {
    let mut command = Command::new("docker");
    command.arg("--config").arg(cli_config);
    command.arg("--host").arg(format!("unix://{}", socket.display()));
    command.args(args);
    run(command, timeout)
}
