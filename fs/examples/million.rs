//! What a large cache costs: the time to open it, and the memory that it takes.
//!
//!     cargo run --release -p larder-fs --example million [BLOBS]
//!
//! It writes so many empty files, a million if it is not told, and lets a cache take them in. Then
//! processes of their own open that cache, and print one line each.

use std::{
    env,
    error::Error,
    fs::{self, File},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use larder_config::{Cache as Config, CacheSize};
use larder_fs::cache::Cache;
use larder_layout::{Algorithm, Digest};

/// How long a cache is asked for its blobs while its threads are at work.
const WATCH: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [directory, blobs, case] = &*arguments {
        return measure(Path::new(directory), blobs.parse()?, case);
    }
    let blobs = arguments.first().map_or(Ok(1_000_000), |blobs| blobs.parse())?;
    let directory = tempfile::tempdir()?;
    fill(directory.path(), blobs)?;
    for _ in 0..3 {
        run(directory.path(), blobs, "in memory")?;
    }
    let index = directory.path().join("index");
    // Only what is on disk can be dropped from memory.
    File::open(&index)?.sync_all()?;
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        run(directory.path(), blobs, "on disk")?;
    }
    println!("index: {} bytes a blob on disk", index.metadata()?.len() / blobs as u64);
    Ok(())
}

/// Makes a cache of so many blobs. Nobody opens them, so they may be empty.
fn fill(directory: &Path, blobs: usize) -> Result<(), Box<dyn Error>> {
    let files = directory.join("blobs/sha256");
    fs::create_dir_all(&files)?;
    for number in 0..blobs {
        File::create(files.join(digest(number).hex()))?;
    }
    let begun = Instant::now();
    let cache = Cache::open(&config(directory))?;
    while cache.usage().blobs < blobs {
        thread::sleep(Duration::from_millis(10));
    }
    println!("{blobs} files found and taken in: {} ms", begun.elapsed().as_millis());
    Ok(())
}

fn run(directory: &Path, blobs: usize, case: &str) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(env::current_exe()?);
    let status = command.arg(directory).arg(blobs.to_string()).arg(case).status()?;
    if status.success() { Ok(()) } else { Err("the measurement failed".into()) }
}

fn measure(directory: &Path, blobs: usize, case: &str) -> Result<(), Box<dyn Error>> {
    let before = memory_bytes("VmRSS")?;
    let begun = Instant::now();
    let cache = Cache::open(&config(directory))?;
    let open = begun.elapsed();
    assert_eq!(cache.usage().blobs, blobs);
    let per_blob = |bytes: u64| (bytes - before) / blobs as u64;
    let opened = per_blob(memory_bytes("VmRSS")?);
    // Meanwhile the directory is looked through.
    let (mut longest, mut stats) = (Duration::ZERO, 0_u64);
    while begun.elapsed() < WATCH {
        let asked = Instant::now();
        assert!(cache.facts(&digest(stats as usize % blobs)).is_some());
        longest = longest.max(asked.elapsed());
        stats += 1;
    }
    println!(
        "index {case}: open {} ms, {opened} bytes a blob (at most {}), longest of {stats} stats {} us",
        open.as_millis(),
        per_blob(memory_bytes("VmHWM")?),
        longest.as_micros(),
    );
    Ok(())
}

fn config(directory: &Path) -> Config {
    Config {
        directory: directory.to_owned(),
        size: CacheSize::Bytes(1 << 50),
        min_free: CacheSize::Bytes(0),
        scrub_bytes_per_second: 0,
        ..Config::default()
    }
}

fn digest(number: usize) -> Digest {
    Digest::of(Algorithm::Sha256, &number.to_le_bytes())
}

/// What /proc/self/status says of the process's memory.
fn memory_bytes(field: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no such field")?;
    Ok(kibibytes.trim().parse::<u64>()? * 1024)
}
