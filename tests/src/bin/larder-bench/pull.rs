//! `scripts/bench pull`: a cold pull against docker-registry, which is a pull-through mirror as well.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use larder_layout::{Algorithm, Digest};
use larder_tests::{Blob, Sandbox, Storage, Upstream, random_bytes, until};

use crate::{
    load::{Load, Yield},
    meter::{self, median},
    ocean::{self, Ocean},
    serve::{BLOB_BYTES, Figure, GIB, LARGE_BYTES, LAYER, NEEDS, ROUNDS, manifest},
    servers::{self, REPOSITORY},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Measures a pull of 1 GiB, until it is in the storage, beside what a file of that size and its
/// digest cost, and prints it.
///
/// # Panics
/// When it fails.
pub fn run() {
    let sandbox = Sandbox::enter(&NEEDS).expect("what the benchmark needs");
    let config = Blob::new("application/vnd.oci.image.config.v1+json", b"{}".to_vec());
    let blob = Blob::new(LAYER, random_bytes(LARGE_BYTES));
    let upstream = Upstream::start(&sandbox);
    servers::fill(&upstream.registry(), &[&config, &blob], &manifest(&config, &blob));
    println!("\nCold pull of 1 GiB, both checks of its digest included");
    for (memory, touched_bytes) in [("as it is", 0), ("in use just before", 3 * LARGE_BYTES)] {
        println!("  memory {memory}");
        let mut figures = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            for (figures, is_larder) in figures.iter_mut().zip([true, false]) {
                // A virtual machine may get memory from its host when it is touched, and give it
                // back soon.
                write(&sandbox, touched_bytes);
                let name = format!("cold-{touched_bytes}-{round}-{is_larder}");
                figures.push(cold(&sandbox, &upstream.url(), &blob.digest, &name, is_larder));
            }
        }
        print(&figures);
        let costs = (0..ROUNDS).map(|_| write(&sandbox, LARGE_BYTES));
        println!("    {:16} {:6.3} CPU-s/GiB", "a new file", median(costs.collect()));
    }
    let costs = (0..ROUNDS).map(|_| hash_twice(&blob.bytes));
    println!("  {:18} {:6.3} CPU-s/GiB", "both digests", median(costs.collect()));
    across_an_ocean(&sandbox, &upstream);
}

/// The same from an upstream that is far away.
fn across_an_ocean(sandbox: &Sandbox, upstream: &Upstream<'_>) {
    let blob = Blob::new(LAYER, random_bytes(BLOB_BYTES));
    upstream.registry().push_blob(REPOSITORY, &blob);
    let address = sandbox.address();
    let _ocean = Ocean::between(&address, upstream.address());
    let (window, round_trip) = (ocean::WINDOW_BYTES >> 20, ocean::ROUND_TRIP.as_millis());
    println!("\nCold pull of 512 MiB, {round_trip} ms from the upstream, window of {window} MiB");
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (figures, is_larder) in figures.iter_mut().zip([true, false]) {
            let (url, name) = (format!("http://{address}"), format!("far-{round}-{is_larder}"));
            figures.push(cold(sandbox, &url, &blob.digest, &name, is_larder));
        }
    }
    print(&figures);
}

fn print(figures: &[Vec<Figure>; 2]) {
    let medians = |figure: fn(&Figure) -> f64| {
        figures.each_ref().map(|figures| median(figures.iter().map(figure).collect()))
    };
    let (cpu, speed) = (medians(Figure::cpu_per_gib), medians(Figure::gib_per_second));
    for (name, nth) in [("larder", 0), ("docker-registry", 1)] {
        println!(
            "    {name:16} {:6.3} CPU-s/GiB  {:6.3} GiB/s to the client   larder: {:.2} x the CPU, {:.2} x the throughput",
            cpu[nth],
            speed[nth],
            cpu[0] / cpu[nth],
            speed[0] / speed[nth],
        );
    }
}

/// One pull by a new cache: the processor time of all its processes until the blob is in its
/// storage, and how long its client took.
fn cold(sandbox: &Sandbox, upstream: &str, digest: &Digest, name: &str, is_larder: bool) -> Figure {
    let directory = sandbox.directory(&format!("{name}-storage"));
    let storage = Storage::Directory(directory.clone());
    if is_larder {
        let server = servers::larder(sandbox, name, &storage, Some(upstream), None);
        return pull(&server.address, &server.processes, &directory, digest);
    }
    let mut mirror = Upstream::over(sandbox, name, &storage);
    mirror.restart_with(&format!("proxy: {{remoteurl: \"{upstream}\"}}"));
    pull(mirror.address(), &[mirror.id()], &directory, digest)
}

fn pull(address: &str, processes: &[u32], storage: &Path, digest: &Digest) -> Figure {
    let line = format!("GET {}", servers::path("blobs", digest));
    let (address, duration) = (address.to_owned(), PATIENCE);
    let (before, started) = (meter::cpu(processes), Instant::now());
    let bytes = Load { address, line, connections: 1, duration, tls: None }.once();
    let elapsed = started.elapsed();
    let link = Path::new("docker/registry/v2/repositories/bench/_layers/sha256");
    let link = storage.join(link).join(digest.hex()).join("link");
    until("the blob in the storage", PATIENCE, || link.exists().then_some(()));
    let count = Yield { bytes, answers: 1, elapsed };
    Figure { cpu: meter::cpu(processes) - before, count }
}

/// Hashes memory as often as a pull is hashed, in CPU-seconds per GiB of this process.
fn hash_twice(content: &[u8]) -> f64 {
    let before = meter::cpu(&[std::process::id()]);
    let [first, second] = [(); 2].map(|()| Digest::of(Algorithm::Sha256, content));
    assert_eq!(first, second, "of the same bytes");
    let cpu = meter::cpu(&[std::process::id()]) - before;
    cpu.as_secs_f64() / (content.len() as f64 / GIB)
}

/// Writes a new file and removes it, in CPU-seconds per GiB of this process.
fn write(sandbox: &Sandbox, size_bytes: usize) -> f64 {
    let (path, piece) = (sandbox.path("written"), vec![1; 1 << 20]);
    let before = meter::cpu(&[std::process::id()]);
    let mut file = File::create(&path).expect("a file");
    for _ in 0..size_bytes / piece.len() {
        file.write_all(&piece).expect("room on the disk");
    }
    let cpu = meter::cpu(&[std::process::id()]) - before;
    fs::remove_file(path).expect("the file");
    cpu.as_secs_f64() / (size_bytes as f64 / GIB)
}
