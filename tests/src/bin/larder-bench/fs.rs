//! `scripts/bench fs`: the mount against the same files read natively, and a cold blob against the
//! storage server's own throughput.

use std::{
    fmt,
    fs::{self, File},
    hint::black_box,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    process::Command,
    ptr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use larder_fs::store::Backend;
use larder_layout::{Algorithm, Digest, Entry, StagingId};
use larder_tests::{Node, S3, Sandbox, Storage, random_bytes, run, store};
use object_store::{ObjectStoreExt, path::Path as Key};

use crate::meter::{self, median};

const NEEDS: [&str; 3] = ["larder-fs", "larder-shim", "/dev/fuse"];
const MIB: usize = 1 << 20;
const GIB: f64 = (1_u64 << 30) as f64;
const LARGE_BYTES: usize = 512 * MIB;
const COLD_BYTES: usize = 1024 * MIB;
const SMALL_BYTES: usize = 2 << 10;
const SMALL_BLOBS: usize = 2_000;
const RANDOM_READS: u64 = 200_000;
const ROUNDS: usize = 7;
const COLD_ROUNDS: usize = 5;
/// As many as larder-fs uses for one blob, and as much in each request.
const CONNECTIONS: usize = 8;
const RANGE_BYTES: u64 = 8 << 20;

/// Measures everything and prints it.
///
/// # Panics
/// When the mount does not give what was put into it.
pub fn measure() {
    let needs = [&NEEDS[..], &[S3::NEEDS, "tc"]].concat();
    let sandbox = Sandbox::enter(&needs).expect("what the benchmark needs");
    warm(&sandbox);
    cold(&sandbox);
}

fn warm(sandbox: &Sandbox) {
    let storage = Storage::Directory(sandbox.directory("storage"));
    let node = Node::start(sandbox, "warm", &storage, None);
    let large = publish(&node, &random_bytes(LARGE_BYTES));
    let small: Vec<_> =
        (0..SMALL_BLOBS).map(|_| publish(&node, &random_bytes(SMALL_BYTES))).collect();
    let cache = sandbox.path("warm-cache");
    let both = |digest: &Digest| {
        let blob = Entry::Blob(digest.clone()).path();
        (cache.join(&blob), node.directory().join(blob))
    };
    let (native, mounted) = both(&large);
    println!("warm, natively · through the mount (median of {ROUNDS} pairs)");
    compare("sequential 1 MiB, GiB/s", &native, &mounted, |path| {
        LARGE_BYTES as f64 / GIB / time(|| read_sequentially(path))
    });
    compare("random 4 KiB, k/s", &native, &mounted, |path| {
        RANDOM_READS as f64 / 1e3 / time(|| read_randomly(path))
    });
    compare("mmap, GiB/s", &native, &mounted, |path| {
        LARGE_BYTES as f64 / GIB / time(|| read_mapped(path))
    });
    let (native, mounted): (Vec<_>, Vec<_>) = small.iter().map(both).unzip();
    let per_blob = |work: fn(&Path)| {
        move |paths: &Vec<PathBuf>| {
            paths.len() as f64 / 1e3 / time(|| paths.iter().for_each(|path| work(path)))
        }
    };
    compare("open + read + close of 2 KiB, k/s", &native, &mounted, per_blob(open_and_read));
    compare(
        "stat, k/s",
        &native,
        &mounted,
        per_blob(|path| {
            fs::metadata(path).expect("a file");
        }),
    );
}

fn cold(sandbox: &Sandbox) {
    let s3 = S3::start(sandbox);
    let storage = s3.storage();
    let mut node = Node::start(sandbox, "cold", &storage, None);
    let digest = publish(&node, &random_bytes(COLD_BYTES));
    node.stop_fs();
    let section = storage.section();
    let backend = store::open(section.trim_start_matches("storage: ")).expect("a storage");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hex = digest.hex();
    let key = Key::from(format!("cache/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let (ours, server) = (std::process::id(), s3.id());

    // On loopback both processors are busy with the server and the network, and what a blob costs
    // to be hashed and written shows; behind a link of a few Gbit/s it has to disappear.
    for link in [None, Some("4gbit")] {
        limit_link(link);
        println!("cold, {CONNECTIONS} ranged GETs at a time · through the mount, link {link:?}");
        let mut ratios = Vec::new();
        for _ in 0..COLD_ROUNDS {
            let raw = measure_cold(&[ours, server], || runtime.block_on(fetch(&backend, &key)));
            let cache = sandbox.path("cold-cache");
            let emptied = fs::remove_dir_all(&cache).and_then(|()| fs::create_dir(&cache));
            emptied.expect("an empty cache");
            node.start_fs();
            let path = node.directory().join(Entry::Blob(digest.clone()).path());
            let processes = [ours, server, node.fs_id()];
            let mounted = measure_cold(&processes, || read_sequentially(&path));
            node.stop_fs();
            let ratio = mounted.rate / raw.rate;
            println!("  {raw} · {mounted}   ratio {ratio:.3}");
            ratios.push(ratio);
        }
        println!("{:<36} ratio {:.3}", "cold read of 1 GiB", median(ratios));
    }
}

/// What one cold read came to, with all that had a part in it.
struct Cold {
    /// In GiB/s.
    rate: f64,
    /// In CPU-s/GiB.
    cost: f64,
    /// How many processors were busy with it.
    busy: f64,
}

impl fmt::Display for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, cost, busy } = self;
        write!(f, "{rate:.2} GiB/s, {cost:.2} CPU-s/GiB on {busy:.2} processors")
    }
}

fn measure_cold(processes: &[u32], read: impl FnOnce()) -> Cold {
    let gib = COLD_BYTES as f64 / GIB;
    let before = meter::cpu(processes);
    let seconds = time(read);
    let cpu = (meter::cpu(processes) - before).as_secs_f64();
    Cold { rate: gib / seconds, cost: cpu / gib, busy: cpu / seconds }
}

/// Makes the loopback of this network namespace as slow as a link: tc-tbf(8).
fn limit_link(rate: Option<&str>) {
    let Some(rate) = rate else { return };
    let mut tc = Command::new("tc");
    tc.args(["qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate]);
    tc.args(["burst", "1mb", "latency", "50ms"]);
    run(tc, Duration::from_secs(10)).expect("a slower link");
}

/// What the server gives without us, in as many requests at a time.
async fn fetch(backend: &Backend, key: &Key) {
    let starts = (0..COLD_BYTES as u64).step_by(RANGE_BYTES as usize);
    let gets = stream::iter(starts).map(|start| {
        let range = start..(start + RANGE_BYTES).min(COLD_BYTES as u64);
        async move { backend.objects.get_range(key, range).await.map(|bytes| bytes.len()) }
    });
    let lengths = gets.buffer_unordered(CONNECTIONS).try_collect::<Vec<_>>().await;
    assert_eq!(lengths.expect("ranges").into_iter().sum::<usize>(), COLD_BYTES);
}

fn publish(node: &Node<'_>, content: &[u8]) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, content);
    let id = StagingId::of_blob("bench", &digest).expect("a name");
    let staged = node.directory().join(Entry::Staged(id).path());
    let published = fs::write(&staged, content).and_then(|()| {
        fs::rename(&staged, node.directory().join(Entry::Blob(digest.clone()).path()))
    });
    published.expect("a published blob");
    digest
}

/// Runs `measure` on both in turn, after a warm-up of each, and prints the ratio.
fn compare<T>(what: &str, native: &T, mounted: &T, measure: impl Fn(&T) -> f64) {
    measure(native);
    measure(mounted);
    let pairs: Vec<_> = (0..ROUNDS).map(|_| (measure(native), measure(mounted))).collect();
    let ratios = pairs.iter().map(|(native, mounted)| mounted / native).collect();
    let (native, mounted): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (native, mounted) = (median(native), median(mounted));
    println!("{what:<36} {native:>8.2} · {mounted:>8.2}   ratio {:.3}", median(ratios));
}

fn time(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

fn read_sequentially(path: &Path) {
    let (file, mut buffer) = (File::open(path).expect("a file"), vec![0; MIB]);
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset).expect("content") {
            0 => return,
            read => offset += read as u64,
        }
    }
}

fn read_randomly(path: &Path) {
    let (file, mut buffer) = (File::open(path).expect("a file"), vec![0; 4 << 10]);
    let blocks = (LARGE_BYTES / buffer.len()) as u64;
    // A linear congruential generator (Knuth, MMIX): the same places each time.
    let mut state = 1_u64;
    for _ in 0..RANDOM_READS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = (state >> 33) % blocks * buffer.len() as u64;
        file.read_exact_at(&mut buffer, offset).expect("content");
    }
}

fn read_mapped(path: &Path) {
    let file = File::open(path).expect("a file");
    let descriptor = file.as_raw_fd();
    // SAFETY: a new mapping, at an address that the kernel chooses, of a file that nobody truncates.
    let start = unsafe {
        libc::mmap(ptr::null_mut(), LARGE_BYTES, libc::PROT_READ, libc::MAP_SHARED, descriptor, 0)
    };
    assert_ne!(start, libc::MAP_FAILED, "a mapping");
    // SAFETY: mapped just now, with this length, and readable.
    let words = unsafe { std::slice::from_raw_parts(start.cast::<u64>(), LARGE_BYTES / 8) };
    black_box(words.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)));
    // SAFETY: the mapping made above, which nothing refers to any more.
    unsafe { libc::munmap(start, LARGE_BYTES) };
}

fn open_and_read(path: &Path) {
    let mut buffer = [0; SMALL_BYTES];
    File::open(path).expect("a file").read_exact_at(&mut buffer, 0).expect("content");
    black_box(buffer);
}
