//! A machine with filesystems that have fs-verity, and FUSE passthrough: see `verity-vm.sh`.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    Process, Sandbox,
    machine::{command, executable},
    run,
};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// QEMU translates what the machine runs: /dev/kvm is not everywhere, and not everywhere sound.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(280);
const PAGE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;

/// What a test needs to have the machine.
pub const NEEDS: [&str; 8] = [
    KERNEL,
    "qemu-system-x86_64",
    "virtiofsd",
    "mkfs.ext4",
    "mkfs.btrfs",
    "fusermount3",
    "python3",
    "setpriv",
];
const KERNEL: &str = "linux.qemu";
/// The types of its disks.
pub const DISKS: [&str; 2] = ["ext4", "btrfs"];

/// Runs tests of this test's executable, which are ignored outside, in a machine of their own:
/// those whose names contain `filter`, one by one.
///
/// # Panics
/// When one of them fails.
pub fn run_in_machine(sandbox: &Sandbox, filter: &str) {
    let kernel = executable(KERNEL).expect("the kernel, which the test needs");
    let host = sandbox.directory("machine");
    sandbox.file("machine/command", &command(filter, ""));
    let init = sandbox.file("machine/init", include_str!("verity-vm.sh"));
    let socket = host.join("files");
    let mut files = Command::new("virtiofsd");
    files.arg(format!("--socket-path={}", socket.display()));
    files.args(["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"]);
    let mut files = Process::start(sandbox, "virtiofsd", files);
    files.wait_until("its socket", || socket.exists().then_some(()));

    let output = run(qemu(sandbox, &kernel, &socket, &init), MACHINE_TIMEOUT)
        .expect("the machine ends by itself");
    print!("{output}");
    assert!(output.lines().any(|line| line.trim() == "status 0"), "the tests in the machine");
}

fn qemu(sandbox: &Sandbox, kernel: &Path, socket: &Path, init: &Path) -> Command {
    let tree = kernel.parent().expect("the directory of the kernel");
    let parameters = format!(
        "console=ttyS0 quiet loglevel=3 panic=-1 rootfstype=virtiofs root=host ro init=/bin/bash \
         VERITY_MODULES={} VERITY_RUN={} -- {}",
        tree.join("modules").display(),
        sandbox.path("machine").display(),
        init.display(),
    );
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1G", "-machine", "q35"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-serial", "stdio"])
        // The two share the machine's memory.
        .args(["-object", "memory-backend-memfd,id=memory,size=1G,share=on"])
        .args(["-machine", "memory-backend=memory"])
        .arg("-chardev")
        .arg(format!("socket,id=files,path={}", socket.display()))
        .args(["-device", "vhost-user-fs-pci,chardev=files,tag=host"])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", &parameters]);
    qemu
}

/// Has a directory of the sandbox be on one of the disks.
///
/// # Panics
/// Outside of the machine.
pub fn put_on_disk(sandbox: &Sandbox, disk: &str, name: &str) {
    let on_disk = tempfile::tempdir_in(Path::new("/mnt").join(disk));
    let on_disk = on_disk.expect("a directory on a disk of the machine").keep();
    let mut bind = Command::new("mount");
    bind.arg("--bind").arg(on_disk).arg(sandbox.directory(name));
    run(bind, COMMAND_TIMEOUT).expect("the directory, mounted in the sandbox");
}

/// Turns a bit of a page on the disk, beneath its filesystem, wherever the disk has that page. The
/// kernel then has none of its files in memory.
///
/// # Panics
/// When the disk has no such page, or outside of the machine.
pub fn rot(disk: &str, page: &[u8]) {
    assert_eq!(page.len(), PAGE_BYTES, "a whole page");
    run(Command::new("sync"), COMMAND_TIMEOUT).expect("all files on the disks");
    let device = PathBuf::from(format!("/mnt/{disk}.disk"));
    let places = find(&device, page).expect("the disk, to be read");
    assert!(!places.is_empty(), "{disk} does not have the page");
    let device = File::options().write(true).open(device).expect("the disk, to be damaged");
    for place in places {
        device.write_all_at(&[page[0] ^ 1], place).expect("a bit, turned");
    }
    fs::write("/proc/sys/vm/drop_caches", "3").expect("the page cache, emptied");
}

fn find(device: &Path, page: &[u8]) -> io::Result<Vec<u64>> {
    let mut device = File::open(device)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut places, mut start) = (Vec::new(), 0);
    while device.read_exact(&mut chunk).is_ok() {
        let pages = (start..).step_by(PAGE_BYTES).zip(chunk.chunks(PAGE_BYTES));
        places.extend(pages.filter(|(_, found)| *found == page).map(|(place, _)| place));
        start += CHUNK_BYTES as u64;
    }
    Ok(places)
}
