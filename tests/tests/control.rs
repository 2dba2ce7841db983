//! The control: the clients pull from an ordinary registry. When this fails, it is the machine
//! or the harness that is wrong, not Larder.

use larder_tests::{Format, Image, Kind, Sandbox, Upstream, scenario::pull_and_run};

fn pulls_from_an_ordinary_registry(kind: Kind) {
    let Some(sandbox) = Sandbox::enter(&[kind.needs(), &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let upstream = Upstream::start(&sandbox);
    let client = kind.start(&sandbox, upstream.address());
    for image in Format::ALL.map(Image::new) {
        upstream.registry().push(&image);
        pull_and_run(&*client, &image);
        assert!(upstream.gets(&image.data().digest) >= 1);
        client.remove(&image);
        pull_and_run(&*client, &image);
        assert!(upstream.gets(&image.data().digest) >= 2, "removing an image leaves nothing");
    }
}

#[test]
fn docker_pulls_from_an_ordinary_registry() {
    pulls_from_an_ordinary_registry(Kind::Docker);
}

#[test]
fn containerd_pulls_from_an_ordinary_registry() {
    pulls_from_an_ordinary_registry(Kind::Containerd);
}

#[test]
fn podman_pulls_from_an_ordinary_registry() {
    pulls_from_an_ordinary_registry(Kind::Podman);
}

#[test]
fn skopeo_pulls_from_an_ordinary_registry() {
    pulls_from_an_ordinary_registry(Kind::Skopeo);
}
