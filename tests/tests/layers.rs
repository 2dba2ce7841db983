//! The files inside a layer, beside what GNU tar makes of it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use larder_layout::{Algorithm, Digest};
use larder_tests::{Format, Image, Node, Sandbox, Storage, Upstream, random_bytes, run};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Files of every type, and names that are hard to write down.
const FILES: &str = r#"
set -e
umask 022
mkdir -p usr/bin 'with space/deep' empty etc
printf 'NAME="Larder"\n' >etc/os-release
printf '#!/bin/sh\n' >usr/bin/su
chmod 4755 usr/bin/su
chown 1000:1001 usr/bin/su
ln usr/bin/su usr/bin/sudo
ln -s ../usr/bin etc/bin
ln -s /nowhere/at/all etc/dangling
ln -s "$(printf 'x%.0s' $(seq 150))/y" etc/long-link
mkfifo etc/pipe
mknod etc/null c 1 3
mknod etc/disk b 7 1
: >etc/.wh.removed
mkdir tmp && chmod 1777 tmp
chmod 0000 empty
printf x >"$(printf 'name-with-\377-and-\n-in-it')"
deep=$(printf 'directory-%.0s' $(seq 15))
mkdir -p "$deep/$deep" && printf deep >"$deep/$deep/file"
head -c 3000000 /dev/urandom >data
truncate -s 1M sparse && printf end >>sparse
touch -d '2001-02-03 04:05:06 UTC' etc/os-release
"#;
/// One line for each file, of what both sides have to agree on, and the number of each device.
const LIST: &str = r"
find . -mindepth 1 \( -type d -printf '%P %y %m %U %G %Ts\n' \
    -o -printf '%P %y %m %U %G %s %Ts %n %l\n' \) | sort
find . -type c -o -type b | sort | xargs stat --format '%n %t %T'
find . -type f -print0 | sort -z | xargs -0 sha256sum
";

/// What `script` prints in a directory, which may be one of a mount.
fn sh(directory: &Path, script: &str) -> String {
    let mut command = Command::new("env");
    command.arg("-C").arg(directory).args(["sh", "-ec", script]).env("LC_ALL", "C");
    run(command, TIMEOUT).expect(script)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(content).expect("it is compressed");
    gzip.finish().expect("it is compressed")
}

/// Publishes a blob through the mount, as any program may.
fn publish(sandbox: &Sandbox, node: &Node<'_>, content: &[u8]) -> PathBuf {
    let digest = Digest::of(Algorithm::Sha256, content);
    let file = sandbox.path("blob");
    fs::write(&file, content).expect("a file");
    let publish =
        format!("cat {} >ingest/x; mv ingest/x blobs/sha256/{}", file.display(), digest.hex());
    node.on_mount("sh", &["-ec", &publish]).expect("it is published");
    Path::new("layers/sha256").join(digest.hex())
}

// "What none of its kind does: operators see the cache as a filesystem."

#[test]
fn a_layer_looks_as_gnu_tar_unpacks_it() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &["tar"]].concat()) else { return };
    let storage = Storage::Directory(sandbox.directory("storage"));
    let node = Node::start(&sandbox, "node", &storage, None);
    let source = sandbox.directory("source");
    sh(&source, FILES);
    for (number, (options, compressed)) in [
        ("--format=gnu", "no"),
        ("--format=posix", "gzip"),
        ("--format=gnu --sparse", "zstd"),
        ("--format=posix --transform=s,^\\./,,", "gzip"),
    ]
    .into_iter()
    .enumerate()
    {
        let archive = sandbox.path(&format!("{number}.tar"));
        sh(&source, &format!("tar --create {options} --file {} .", archive.display()));
        let unpacked = sandbox.directory(&format!("unpacked-{number}"));
        sh(&unpacked, &format!("tar --extract --same-permissions --file {}", archive.display()));
        let archive = fs::read(archive).expect("an archive");
        let blob = match compressed {
            "gzip" => gzip(&archive),
            // Two members are one stream.
            "zstd" => {
                let (start, end) = archive.split_at(archive.len() / 2);
                [start, end].map(|half| zstd::encode_all(half, 1).expect("zstd")).concat()
            }
            _ => archive,
        };
        let layer = publish(&sandbox, &node, &blob);
        let seen = sh(&node.directory().join(&layer), LIST);
        assert_eq!(seen, sh(&unpacked, LIST), "{options}, compressed: {compressed}");
    }
    // Of the one kind that is not shown, the log says so.
    let archive = sandbox.path("sparse.tar");
    let create = "tar --create --format=posix --sparse --file";
    sh(&source, &format!("{create} {} data sparse", archive.display()));
    let layer = publish(&sandbox, &node, &fs::read(archive).expect("an archive"));
    assert_eq!(sh(&node.directory().join(&layer), "ls -A"), "data\n");
    assert!(node.fs_log().contains("cannot be shown"));

    let mounts = sh(&source, "cat /proc/self/mounts");
    let mount =
        mounts.lines().find(|line| line.contains(node.directory().to_str().expect("ASCII")));
    let mount = mount.expect("the mount");
    assert!(mount.contains("nodev") && mount.contains("nosuid"), "{mount}");
}

#[test]
fn what_is_pulled_can_be_looked_into() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let mut upstream = Upstream::start(&sandbox);
    let image = Image::new(Format::Oci);
    upstream.registry().push(&image);
    let storage = Storage::Directory(sandbox.directory("storage"));
    let nodes = ["a", "b"].map(|name| Node::start(&sandbox, name, &storage, Some(&upstream.url())));
    nodes[0].registry().pull(&image, &image.native).expect("the node pulls through");
    larder_tests::scenario::wait_until_cached(&nodes[0], &image, &[&image.native]);
    upstream.stop();
    let top = image.native.layers().last().expect("a layer").digest.hex().to_owned();
    let greeting = format!("layers/sha256/{top}/greeting");
    for node in &nodes {
        // Whoever walks through the mount is not to unpack everything.
        assert_eq!(node.on_mount("find", &["layers", "-mindepth", "2"]).expect("find"), "");
        assert_eq!(node.on_mount("cat", &[&greeting]).expect("cat"), image.greeting);
        let layers = node.on_mount("ls", &["layers/sha256"]).expect("ls");
        assert!(layers.contains(&top), "{layers}");
        // Many at once have it unpacked once, and it takes nothing of the disk twice.
        let all = format!("for n in 1 2 3 4 5 6 7 8; do cat {greeting} & done; wait");
        let said = node.on_mount("sh", &["-c", &all]).expect("cat");
        assert_eq!(said, image.greeting.repeat(8));
    }
}

#[test]
fn what_is_no_layer_or_a_broken_one_says_so_and_nothing_in_one_can_be_changed() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let storage = Storage::Directory(sandbox.directory("storage"));
    let node = Node::start(&sandbox, "node", &storage, None);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 20);
    header.set_mode(0o644);
    let content = random_bytes(1 << 20);
    archive.append_data(&mut header, "file", &*content).expect("a file");
    let whole = gzip(&archive.into_inner().expect("an archive"));

    let refuses = |layer: &Path, script: &str, reason: &str| {
        let script = script.replace("LAYER", layer.to_str().expect("ASCII"));
        let failure = node.on_mount("sh", &["-c", &format!("exec 2>&1; {script}; true")]);
        let said = failure.expect("a script");
        assert!(said.contains(reason), "{script}: {said}");
    };
    for other in [&b"{}"[..], b"", &random_bytes(10_000)] {
        let layer = publish(&sandbox, &node, other);
        refuses(&layer, "ls LAYER/", "Not a directory");
        refuses(&layer, "cat LAYER/file", "Not a directory");
    }
    let cut = publish(&sandbox, &node, &whole[..whole.len() / 2]);
    refuses(&cut, "ls LAYER/", "Input/output error");
    assert!(node.fs_log().contains("cannot be unpacked"), "the log says why");

    let layer = publish(&sandbox, &node, &whole);
    for script in
        ["rm LAYER/file", "echo >LAYER/file", "mkdir LAYER/directory", "mv LAYER/file LAYER/f"]
    {
        refuses(&layer, script, "Operation not permitted");
    }
    refuses(&layer, "cat LAYER/other", "No such file or directory");
    let sum = node.on_mount("sha256sum", &[&format!("{}/file", layer.display())]).expect("a sum");
    assert!(sum.starts_with(Digest::of(Algorithm::Sha256, &content).hex()));
}
