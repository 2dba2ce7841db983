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

/// The `registries.conf` of podman and skopeo: a mirror for Docker Hub, and of quay.io as README says.
pub fn registries_conf(mirror: &str) -> String {
    let registry = |name: &str, mirror: &str| {
        format!(
            "[[registry]]\n\
             location = \"{name}\"\n\
             [[registry.mirror]]\n\
             location = \"{mirror}\"\n\
             insecure = true\n"
        )
    };
    registry("docker.io", mirror) + &registry("quay.io", &format!("{mirror}/quay.io"))
}

/// A container client with an empty image store that uses a mirror for Docker Hub; and for quay.io,
/// where it can.
pub trait Client: Sync {
    /// Logs in to a registry, given as host and port.
    ///
    /// # Errors
    /// [`Failure`] with what the client said.
    fn login(&self, registry: &str, username: &str, password: &str) -> Result<(), Failure>;

    /// Pulls the image by its name.
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
