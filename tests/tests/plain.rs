//! Real clients pull through `larder-shim` over a plain directory, with no filesystem of ours
//! and no privileges: "the mount is the interface", and so is any directory.

use larder_tests::{
    Kind,
    scenario::{Serving, pull_run_and_pull_again_without_upstream},
};

// "4. A blob that is cached is served while the upstream is down."

#[test]
fn docker_pulls_from_an_unprivileged_shim() {
    pull_run_and_pull_again_without_upstream(Kind::Docker, Serving::Plain);
}

#[test]
fn containerd_pulls_from_an_unprivileged_shim() {
    pull_run_and_pull_again_without_upstream(Kind::Containerd, Serving::Plain);
}

#[test]
fn podman_pulls_from_an_unprivileged_shim() {
    pull_run_and_pull_again_without_upstream(Kind::Podman, Serving::Plain);
}

#[test]
fn skopeo_copies_from_an_unprivileged_shim() {
    pull_run_and_pull_again_without_upstream(Kind::Skopeo, Serving::Plain);
}
