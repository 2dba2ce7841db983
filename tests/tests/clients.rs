//! Real clients pull through a node: `larder-shim` over a mount of `larder-fs`.

use larder_tests::{
    Kind,
    scenario::{Serving, pull_run_and_pull_again_without_upstream},
};

// "4. A blob that is cached is served while the upstream is down."
// Manifests and tags too, to every client, in OCI's and in Docker's media types.

#[test]
fn docker_pulls_runs_and_pulls_again_without_upstream() {
    pull_run_and_pull_again_without_upstream(Kind::Docker, Serving::Mount);
}

#[test]
fn containerd_pulls_runs_and_pulls_again_without_upstream() {
    pull_run_and_pull_again_without_upstream(Kind::Containerd, Serving::Mount);
}

#[test]
fn podman_pulls_runs_and_pulls_again_without_upstream() {
    pull_run_and_pull_again_without_upstream(Kind::Podman, Serving::Mount);
}

#[test]
fn skopeo_copies_and_copies_again_without_upstream() {
    pull_run_and_pull_again_without_upstream(Kind::Skopeo, Serving::Mount);
}
