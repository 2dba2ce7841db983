//! Skopeo: copies an image with all its platforms into a directory.

use std::{fs, path::PathBuf, process::Command};

use larder_layout::{Algorithm, Digest};

use crate::{
    Client, Failure, Image, Sandbox,
    client::{COMMAND_TIMEOUT, PULL_TIMEOUT, registries_conf},
    run,
};

/// A skopeo, and the directory that it copies images into.
pub struct Skopeo<'a> {
    sandbox: &'a Sandbox,
    registries: PathBuf,
}

impl<'a> Skopeo<'a> {
    /// Writes the configuration.
    pub fn new(sandbox: &'a Sandbox, mirror: &str) -> Self {
        sandbox.directory("skopeo/images");
        let registries = sandbox.file("skopeo/registries.conf", &registries_conf(mirror));
        Self { sandbox, registries }
    }

    fn skopeo(&self) -> Command {
        let mut command = Command::new("skopeo");
        command.arg("--registries-conf").arg(&self.registries);
        command.env("REGISTRY_AUTH_FILE", self.sandbox.path("skopeo/auth.json"));
        command
    }

    fn directory(&self, image: &Image) -> PathBuf {
        self.sandbox.path("skopeo/images").join(image.index.digest.hex())
    }
}

impl Client for Skopeo<'_> {
    fn login(&self, registry: &str, username: &str, password: &str) -> Result<(), Failure> {
        let mut command = self.skopeo();
        command.args(["login", "--username", username, "--password", password, registry]);
        run(command, COMMAND_TIMEOUT).map(drop)
    }

    fn pull(&self, image: &Image) -> Result<(), Failure> {
        let mut command = self.skopeo();
        command
            .args(["--insecure-policy", "copy", "--all", "--preserve-digests"])
            .arg(format!("docker://{}", image.name()))
            .arg(format!("dir:{}", self.directory(image).display()));
        run(command, PULL_TIMEOUT).map(drop)
    }

    fn digests(&self, image: &Image) -> String {
        let files = ["manifest.json".to_owned()].into_iter().chain(
            [&image.native, &image.foreign]
                .map(|p| format!("{}.manifest.json", p.manifest.digest.hex())),
        );
        let digest_of = |file: String| {
            let content = fs::read(self.directory(image).join(&file)).expect(&file);
            Digest::of(Algorithm::Sha256, &content).to_string()
        };
        files.map(digest_of).collect::<Vec<_>>().join(" ")
    }

    /// Unpacks the layers as a container runtime does, and runs the script in them.
    fn sh(&self, image: &Image, script: &str) -> String {
        let root = self.sandbox.directory(&format!("skopeo/roots/{}", image.repository));
        for layer in image.native.layers() {
            let mut tar = Command::new("tar");
            tar.arg("-xzf").arg(self.directory(image).join(layer.digest.hex()));
            tar.arg("-C").arg(&root);
            run(tar, COMMAND_TIMEOUT).expect("a layer unpacks");
        }
        let mut chroot = Command::new("chroot");
        chroot.arg(&root).args(["/bin/sh", "-c", script]).env("PATH", "/usr/sbin:/bin");
        run(chroot, COMMAND_TIMEOUT).expect("the image runs")
    }

    fn remove(&self, image: &Image) {
        fs::remove_dir_all(self.directory(image)).expect("skopeo has the image");
    }
}
