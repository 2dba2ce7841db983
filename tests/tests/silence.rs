//! A storage that answers nothing: a server that takes connections, and an export whose calls wait.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use larder_layout::{Algorithm, Digest, Entry};
use larder_tests::{Mount, S3, Sandbox, Storage, bin, random_bytes, run, until};

/// What needs no storage.
const AT_ONCE: Duration = Duration::from_secs(2);
/// "others give EIO or ETIMEDOUT in bounded time": a request's own deadline is 20 s.
const BOUND: Duration = Duration::from_secs(45);
/// A storage that counts as down is asked again every 15 s at the least.
const BACK_WITHIN: Duration = Duration::from_secs(40);
/// How long files may stay open after SIGTERM is 10 s.
const ENDS_WITHIN: Duration = Duration::from_secs(14);
/// A wrong storage is told within 10 s.
const TOLD_WITHIN: Duration = Duration::from_secs(12);
const LARGE_BYTES: usize = 20 << 20;
const STUCK: usize = 20;

fn publish(mount: &Mount<'_>, content: &[u8]) -> PathBuf {
    Entry::Blob(mount.call(|mount| larder_tests::publish(mount, content)).unwrap()).path()
}

/// A program that reads a file of the mount, and waits for it.
fn stuck(path: &Path) -> Child {
    let mut cat = Command::new("cat");
    let cat = cat.arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let cat = cat.spawn().unwrap();
    let call = format!("/proc/{}/syscall", cat.id());
    until("a program that waits for the mount", AT_ONCE, || {
        // The number of the call that it is in.
        let call = fs::read_to_string(&call).ok()?;
        let number: i64 = call.split(' ').next()?.parse().ok()?;
        [libc::SYS_openat, libc::SYS_read].contains(&number).then_some(())
    });
    cat
}

fn interrupt(mut program: Child, signal: i32) {
    let id = libc::pid_t::try_from(program.id()).unwrap();
    // SAFETY: kill touches no memory. The process is our child, and not waited for yet.
    assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    until("the end of a program that was interrupted", AT_ONCE, || program.try_wait().unwrap());
}

fn assert_fails(mount: &Mount<'_>, path: &Path, limit: Duration) {
    let outcome = mount.call_within(limit, |mount| fs::read(mount.join(path)));
    let errno = outcome.expect_err("the storage is away").raw_os_error();
    assert!(matches!(errno, Some(libc::EIO | libc::ETIMEDOUT)), "{errno:?}");
}

// "6. Nothing hangs: every wait has a deadline."
// "5. A blob in the local cache is served while the shared storage is down."
// And "the interrupt (Ctrl-C on a stuck `cat`) works; `df`, `stat` and `ls` of cached names work".

#[test]
fn a_storage_that_answers_nothing() {
    let Some(sandbox) = Sandbox::enter(&[&Mount::NEEDS[..], &[S3::NEEDS]].concat()) else { return };
    let s3 = S3::start(&sandbox);
    let start = |name: &str| Mount::start(&sandbox, name, &s3.storage(), "size: 256MiB");
    let (mount, other) = (start("node"), start("other"));
    let contents = [random_bytes(3_000), random_bytes(LARGE_BYTES)];
    let cached = contents.each_ref().map(|content| publish(&mount, content));
    let absent = [random_bytes(2_000), random_bytes(LARGE_BYTES)];
    let absent = absent.each_ref().map(|content| publish(&other, content));
    // The kernel knows them, and larder-fs has nothing of them.
    for path in &absent {
        mount.call(|mount| fs::metadata(mount.join(path)).unwrap());
    }

    s3.freeze();
    let waiting: Vec<_> =
        (0..STUCK).map(|n| stuck(&mount.directory().join(&absent[n % 2]))).collect();
    for (path, content) in cached.iter().zip(&contents) {
        let read = mount.call_within(AT_ONCE, |mount| fs::read(mount.join(path)));
        assert!(read.unwrap() == *content, "a cached blob is served");
        for (program, argument) in [("stat", "--format=%s"), ("ls", "-l"), ("df", "-k")] {
            let mut command = Command::new(program);
            command.arg(argument).arg(mount.directory().join(path));
            run(command, AT_ONCE).unwrap_or_else(|e| panic!("{program}: {e:?}"));
        }
    }
    for (number, program) in waiting.into_iter().enumerate() {
        interrupt(program, if number % 2 == 0 { libc::SIGINT } else { libc::SIGKILL });
    }

    let begun = Instant::now();
    assert_fails(&mount, &absent[0], BOUND);
    assert_fails(&mount, &absent[1], BOUND);
    let missing = Entry::Blob(Digest::of(Algorithm::Sha256, b"nobody has it")).path();
    assert_fails(&mount, &missing, BOUND);
    eprintln!("three blobs failed in {:?}", begun.elapsed());
    until("a storage that counts as down", BOUND * 2, || {
        let begun = Instant::now();
        assert_fails(&mount, &missing, BOUND);
        (begun.elapsed() < Duration::from_secs(1)).then_some(())
    });

    s3.thaw();
    for path in &absent {
        let read = || mount.call_within(BOUND, |mount| fs::read(mount.join(path))).ok();
        let content = until("a storage that is back", BACK_WITHIN, read);
        let digest = Digest::of(Algorithm::Sha256, &content);
        assert!(path.ends_with(digest.hex()));
    }

    // And it ends when it is told to, whoever waits for it.
    let absent = publish(&other, &random_bytes(1_000));
    s3.freeze();
    let waiting = stuck(&mount.directory().join(absent));
    let begun = Instant::now();
    mount.stop();
    assert!(begun.elapsed() < ENDS_WITHIN, "it took {:?} to end", begun.elapsed());
    interrupt(waiting, libc::SIGKILL);
    s3.thaw();
}

/// What an NFS export is whose server is away: every call waits for as long as it is.
#[test]
fn a_directory_that_answers_nothing_when_it_is_mounted() {
    let Some(sandbox) = Sandbox::enter(&Mount::NEEDS) else { return };
    let (storage, link) = (sandbox.directory("storage"), sandbox.path("export"));
    let name_it = |directory: &Path| {
        let _ = fs::remove_file(&link);
        symlink(directory, &link).unwrap();
    };
    name_it(&storage);
    let export = Storage::Directory(link.clone());
    let node = Mount::start(&sandbox, "node", &export, "size: 256MiB");
    let contents = [random_bytes(3_000), random_bytes(LARGE_BYTES)];
    let cached = contents.each_ref().map(|content| publish(&node, content));
    node.stop();

    let away = Storage::Directory(sandbox.directory("away"));
    let away = Mount::start(&sandbox, "away", &away, "size: 256MiB");
    away.freeze();
    name_it(away.directory());
    let mut check = Command::new(bin("larder-fs"));
    check.args(["check", "--config"]).arg(sandbox.path("node.yml"));
    let told = run(check, TOLD_WITHIN).expect_err("no storage").0;
    assert!(told.contains("storage.filesystem.rootdirectory: no answer"), "{told}");
    let begun = Instant::now();
    node.restart();
    assert!(begun.elapsed() < TOLD_WITHIN, "it took {:?} to mount", begun.elapsed());
    let told = node.log();
    assert!(told.contains("mounting without the shared storage, which does not answer"), "{told}");
    for (path, content) in cached.iter().zip(&contents) {
        let read = node.call_within(AT_ONCE, |mount| fs::read(mount.join(path)));
        assert!(read.unwrap() == *content, "a cached blob is served");
    }
    let missing = Entry::Blob(Digest::of(Algorithm::Sha256, b"nobody has it")).path();
    assert_fails(&node, &missing, BOUND);

    name_it(&storage);
    away.thaw();
    let is_missing = |mount: &Path| fs::metadata(mount.join(&missing)).map_err(|e| e.kind());
    until("a storage that is back", BACK_WITHIN, || {
        let outcome = node.call_within(BOUND, is_missing);
        (outcome.err() == Some(ErrorKind::NotFound)).then_some(())
    });
    publish(&node, &random_bytes(1_000));
}
