//! What every container client can do.

use std::time::Duration;

use crate::{
    Failure, Image, Sandbox, containerd::Containerd, dockerd::Dockerd, podman::Podman,
    skopeo::Skopeo,
};

/// Longer than the slowest recovery measured (docker waits 15 s for an answer it dislikes).
pub const PULL_TIMEOUT: Duration = Duration::from_secs(90);

/// Enough for everything that a client does without a registry.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The `registries.conf` of podman and skopeo.
pub fn registries_conf(mirror: &str) -> String {
    format!(
        "[[registry]]\n\
         location = \"docker.io\"\n\
         [[registry.mirror]]\n\
         location = \"{mirror}\"\n\
         insecure = true\n"
    )
}

/// A container client with an empty image store that uses a mirror for Docker Hub.
pub trait Client: Sync {
    /// Pulls the image by its name on Docker Hub.
    ///
    /// # Errors
    /// [`Failure`] with what the client said.
    fn pull(&self, image: &Image) -> Result<(), Failure>;

    /// The digests under which the client has the image now.
    fn digests(&self, image: &Image) -> String;

    /// Runs a shell script in a container of the image, without network. Gives its output.
    fn sh(&self, image: &Image, script: &str) -> String;

    /// Removes the image with its layers.
    fn remove(&self, image: &Image);
}

/// The clients there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `docker pull` with a dockerd.
    Docker,
    /// `ctr images pull` with a containerd.
    Containerd,
    /// `podman pull`
    Podman,
    /// `skopeo copy`
    Skopeo,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Docker, Self::Containerd, Self::Podman, Self::Skopeo];

    /// The programs that it takes.
    pub fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["dockerd", "docker", "containerd", "runc"],
            Self::Containerd => &["containerd", "ctr", "runc"],
            Self::Podman => &["podman", "crun", "conmon"],
            Self::Skopeo => &["skopeo", "tar", "chroot"],
        }
    }

    /// Starts one whose mirror is the registry on `mirror`, host and port.
    pub fn start<'a>(self, sandbox: &'a Sandbox, mirror: &str) -> Box<dyn Client + 'a> {
        match self {
            Self::Docker => Box::new(Dockerd::start(sandbox, mirror)),
            Self::Containerd => Box::new(Containerd::start(sandbox, mirror)),
            Self::Podman => Box::new(Podman::new(sandbox, mirror)),
            Self::Skopeo => Box::new(Skopeo::new(sandbox, mirror)),
        }
    }
}
