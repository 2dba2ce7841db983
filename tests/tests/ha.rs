//! Two nodes behind the load balancer that operators are given the configuration of.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use larder_tests::{
    Blob, Client, Format, Haproxy, Image, Kind, Node, Registry, Sandbox, Storage, Upstream,
    random_bytes, until,
};

const KILLS: usize = 4;
/// More than a kill has time for: docker waits 5 s before it goes on with a cut body.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(90);
/// More than all the socket buffers on the way to a client that does not read.
const LARGE_BLOB_BYTES: usize = 32 << 20;
/// Paths of the large blob. The load balancer spreads paths over the nodes, so that out of so
/// many both nodes have some.
const DOWNLOADS: usize = 8;

/// What goes on while nodes die.
#[derive(Default)]
struct Scene {
    is_over: AtomicBool,
    /// Counts up before and after each kill: odd while one is being done.
    kill_clock: AtomicUsize,
}

/// Pulls one image after another, each of them new and cold, until the scene is over.
struct Traffic<'a> {
    pulls: AtomicUsize,
    pull: Box<dyn Fn(&Image) + Sync + 'a>,
}

impl<'a> Traffic<'a> {
    fn new(pull: impl Fn(&Image) + Sync + 'a) -> Self {
        Self { pulls: AtomicUsize::new(0), pull: Box::new(pull) }
    }

    fn run(&self, scene: &Scene, upstream: &Registry) {
        for format in Format::ALL.into_iter().cycle() {
            if scene.is_over.load(Ordering::SeqCst) {
                return;
            }
            let image = Image::new(format);
            upstream.push(&image);
            (self.pull)(&image);
            self.pulls.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Waits until each client has done the pull that it is at, and one more that began after this.
fn wait_for_pulls(traffic: &[Traffic<'_>]) {
    let done = || traffic.iter().map(|client| client.pulls.load(Ordering::SeqCst));
    let enough: Vec<_> = done().map(|pulls| pulls + 2).collect();
    until("every client goes on pulling", PROGRESS_TIMEOUT, || {
        done().zip(&enough).all(|(pulls, enough)| pulls >= *enough).then_some(())
    });
}

/// Ends the scene when the test does, by a panic too, so that the clients' threads end.
struct Curtain<'a>(&'a Scene);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

// "A highly available cache": a node that dies costs no pull.
//
// What that means depends on the client, and no server can change it. A request that got no answer
// is repeated by the load balancer, for every client. A body that was cut is continued by
// docker, containerd and our own client: for these no pull fails, ever. Skopeo 1.9 and podman 4
// do not continue a body: a pull of theirs may fail when a node dies during it, and only then, and
// repeating it must succeed. In no case is an error status seen.

#[test]
fn no_pull_fails_when_nodes_are_killed() {
    let kinds = [Kind::Docker, Kind::Containerd, Kind::Skopeo];
    let mut needs = [&Node::NEEDS[..], &[Upstream::NEEDS, Haproxy::NEEDS]].concat();
    needs.extend(kinds.iter().flat_map(|kind| kind.needs()));
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let upstream = Upstream::start(&sandbox);
    let origin = upstream.registry();
    let storage = Storage::Directory(sandbox.directory("storage"));
    let mut nodes =
        ["a", "b"].map(|name| Node::start(&sandbox, name, &storage, Some(&upstream.url())));
    let haproxy = Haproxy::start(&sandbox, [nodes[0].address(), nodes[1].address()]);

    let scene = Scene::default();
    let registry = Registry::at(haproxy.address());
    let [docker, containerd, skopeo] = kinds.map(|kind| kind.start(&sandbox, haproxy.address()));
    let traffic = [
        Traffic::new(|image| registry.pull(image, &image.native).expect("our client pulls")),
        Traffic::new(|image| docker.pull(image).expect("docker pulls")),
        Traffic::new(|image| containerd.pull(image).expect("containerd pulls")),
        Traffic::new(|image| pull_without_resume(&*skopeo, image, &scene)),
    ];
    let blob = Blob::new("application/octet-stream", random_bytes(LARGE_BLOB_BYTES));
    let repositories: Vec<_> = (0..DOWNLOADS).map(|n| format!("library/large-{n}")).collect();
    for repository in &repositories {
        origin.push_blob(repository, &blob);
    }

    let mut cuts = 0;
    thread::scope(|scope| {
        let _curtain = Curtain(&scene);
        for client in &traffic {
            scope.spawn(|| client.run(&scene, &origin));
        }
        for kill in 0..KILLS {
            let node = &mut nodes[kill % 2];
            wait_for_pulls(&traffic);
            let downloads: Vec<_> = repositories
                .iter()
                .map(|name| registry.open_blob(name, &blob.digest).expect("an answer begins"))
                .collect();
            scene.kill_clock.fetch_add(1, Ordering::SeqCst);
            node.kill_shim();
            scene.kill_clock.fetch_add(1, Ordering::SeqCst);
            for download in downloads {
                cuts += download.finish_with_resumes().expect("the other node goes on");
            }
            wait_for_pulls(&traffic);
            node.start_shim();
        }
    });
    let pulls: usize = traffic.iter().map(|client| client.pulls.load(Ordering::SeqCst)).sum();
    eprintln!("{pulls} pulls, {KILLS} kills, {cuts} of our own bodies cut");
    let errors = haproxy.server_errors();
    assert!(errors.is_empty(), "clients saw errors:\n{}", errors.join("\n"));
    assert!(cuts > 0, "no kill has cut a body, so that this has proved nothing");
}

fn pull_without_resume(client: &dyn Client, image: &Image, scene: &Scene) {
    let before = scene.kill_clock.load(Ordering::SeqCst);
    let Err(failure) = client.pull(image) else { return };
    let after = scene.kill_clock.load(Ordering::SeqCst);
    let a_node_died = after > before || before % 2 == 1;
    assert!(a_node_died, "a pull failed though no node died: {}", failure.0);
    pull_without_resume(client, image, scene);
}
