//! Podman: no daemon, but configuration and an image store of its own.

use std::{path::PathBuf, time::Duration};

use crate::{
    Client, Failure, Image, Sandbox,
    client::{COMMAND_TIMEOUT, PULL_TIMEOUT, registries_conf},
    run,
};

/// A podman installation.
pub struct Podman<'a> {
    sandbox: &'a Sandbox,
    registries: PathBuf,
    storage: PathBuf,
    containers: PathBuf,
    /// Logins.
    auth: PathBuf,
}

impl<'a> Podman<'a> {
    /// Writes the configuration.
    pub fn new(sandbox: &'a Sandbox, mirror: &str) -> Self {
        let directory = sandbox.directory("podman");
        let at = directory.display();
        let driver = if sandbox.is_on_overlay() { "vfs" } else { "overlay" };
        let storage = format!(
            "[storage]\n\
             driver = \"{driver}\"\n\
             graphroot = \"{at}/graph\"\n\
             runroot = \"{at}/run\"\n"
        );
        // The limits that podman asks for otherwise are above those of many a CI machine.
        let containers = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n\
             lock_type = \"file\"\n\
             runtime = \"crun\"\n\
             tmp_dir = \"{at}/tmp\"\n"
        );
        Self {
            sandbox,
            registries: sandbox.file("podman/registries.conf", &registries_conf(mirror)),
            storage: sandbox.file("podman/storage.conf", &storage),
            containers: sandbox.file("podman/containers.conf", &containers),
            auth: sandbox.file("podman/auth.json", "{}"),
        }
    }

    fn podman(&self, args: &[&str], timeout: Duration) -> Result<String, Failure> {
        let mut command = self.sandbox.contained("podman");
        command
            .args(args)
            .env("CONTAINERS_REGISTRIES_CONF", &self.registries)
            .env("CONTAINERS_STORAGE_CONF", &self.storage)
            .env("CONTAINERS_CONF", &self.containers)
            .env("REGISTRY_AUTH_FILE", &self.auth);
        run(command, timeout)
    }
}

impl Client for Podman<'_> {
    fn login(&self, registry: &str, username: &str, password: &str) -> Result<(), Failure> {
        let args = ["login", "--username", username, "--password", password, registry];
        self.podman(&args, COMMAND_TIMEOUT).map(drop)
    }

    fn pull(&self, image: &Image) -> Result<(), Failure> {
        self.podman(&["pull", &image.name()], PULL_TIMEOUT).map(drop)
    }

    fn digests(&self, image: &Image) -> String {
        let args = ["image", "inspect", "--format", "{{.RepoDigests}}", &image.name()];
        self.podman(&args, COMMAND_TIMEOUT).expect("podman has the image")
    }

    fn sh(&self, image: &Image, script: &str) -> String {
        let name = image.name();
        // Podman insists on controllers that are not ours everywhere: no cgroups, then.
        let run = ["run", "--rm", "--network", "none", "--cgroups", "disabled"];
        let args = [&run[..], &[&name, "sh", "-c", script]].concat();
        self.podman(&args, COMMAND_TIMEOUT).expect("podman runs the image")
    }

    fn remove(&self, image: &Image) {
        self.podman(&["rmi", &image.name()], COMMAND_TIMEOUT).expect("podman removes the image");
    }
}
