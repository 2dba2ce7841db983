//! A machine with a real NFS server and two clients of it: see `nfs-vm.sh`.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    Sandbox,
    machine::{command, executable},
    run,
};

const MKFS_TIMEOUT: Duration = Duration::from_secs(30);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Booting takes 10 s, and the machine has one slow processor.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(280);

/// What a test needs to have the machine.
pub const NEEDS: [&str; 3] = [KERNEL, "mkfs.ext4", "cc"];
const KERNEL: &str = "linux.uml";
/// The kernel loses part of these registers.
const REGISTERS: &str = "export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW";
/// The export, as each of the two clients has mounted it.
pub const CLIENTS: [&str; 2] = ["/mnt/a", "/mnt/b"];
/// The export as the server has it, without NFS.
pub const EXPORT: &str = "/mnt/export";

/// Runs tests of this test's executable, which are ignored outside, in a machine of their own:
/// those whose names contain `filter`, one by one.
///
/// # Panics
/// When one of them fails.
pub fn run_in_machine(sandbox: &Sandbox, version: &str, disk_bytes: u64, filter: &str) {
    let host = sandbox.directory("machine");
    let disk = host.join("disk");
    let size = File::create(&disk).and_then(|file| file.set_len(disk_bytes));
    size.expect("a file for the disk of the server");
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.arg("-qF").arg(&disk);
    run(mkfs, MKFS_TIMEOUT).expect("a filesystem for the server");
    fs::write(host.join("command"), command(filter, REGISTERS))
        .expect("the command of the machine");
    let init = sandbox.file("machine/init", include_str!("nfs-vm.sh"));

    let ended = run(kernel(sandbox, version, &host, &disk, &init), MACHINE_TIMEOUT);
    // A kernel that has halted sometimes does not end; its tests had their say by then.
    print!("{}", ended.unwrap_or_else(|failure| failure.0));
    let status = fs::read_to_string(host.join("status")).unwrap_or_default();
    assert_eq!(status.trim(), "0", "the tests in the machine, NFS {version}");
}

/// Cuts a client off from the server, or connects it again: `down` or `up`. The server's end of its
/// network is where the machine's first process is.
///
/// # Panics
/// Outside of the machine.
pub fn network(client: &str, state: &str) {
    let mut command = Command::new("nsenter");
    command.args(["--net=/proc/1/ns/net", "busybox", "ip", "link", "set"]);
    command.arg(format!("to-{client}")).arg(state);
    run(command, COMMAND_TIMEOUT).expect("a network of the machine");
}

/// A command that runs another one as a client does, on a host of this name.
pub fn in_client(client: &str, host: &str) -> Command {
    let mut command = Command::new("nsenter");
    // As the machine's first process sees it: a sandbox does not.
    command.arg(format!("--net=/proc/1/root/run/netns/{client}"));
    command.args(["unshare", "--uts", "sh", "-c"]);
    command.args(["hostname \"$0\" && exec \"$@\"", host]);
    command
}

/// Mounts the export once more for a client, as version 4.2 with more options.
///
/// # Panics
/// Outside of the machine.
pub fn mount(client: &str, host: &str, options: &str, point: &Path) {
    let server = if client == "a" { "10.99.1.1:/" } else { "10.99.2.1:/" };
    let packages = env::var("NFS_TREE").expect("the packages of the machine");
    let mut command = in_client(client, host);
    command.arg(format!("{packages}/usr/sbin/mount.nfs")).args([server]).arg(point);
    command.args(["-n", "-o", &format!("vers=4.2,{options}")]);
    run(command, COMMAND_TIMEOUT).expect("the export, mounted");
}

fn kernel(sandbox: &Sandbox, version: &str, host: &Path, disk: &Path, init: &Path) -> Command {
    let kernel = executable(KERNEL).expect("the kernel, which the test needs");
    // usr/bin/linux.uml
    let packages = kernel.ancestors().nth(3).expect("the directory of the packages");
    let mut command = sandbox.contained(&kernel);
    let pair = |name: &str, value: &Path| format!("{name}={}", value.display());
    command
        .arg(pair("uml_dir", &host.join("uml")))
        .args(["mem=2G", "con=null", "con0=null,fd:1", "quiet", "loglevel=3"])
        .args(["rootfstype=hostfs", "rootflags=/", "ro", "init=/bin/bash"])
        .arg(pair("ubd0", disk))
        .arg(pair("NFS_TREE", packages))
        .arg(pair("NFS_RUN", host))
        .arg(format!("NFS_VERSION={version}"))
        .arg("--")
        .arg(init)
        // Where it keeps the machine's memory.
        .env("TMPDIR", "/dev/shm")
        .env("LD_PRELOAD", registers(sandbox));
    command
}

/// What a kernel needs that is older than the processor.
fn registers(sandbox: &Sandbox) -> PathBuf {
    let source = sandbox.file("machine/xstate.c", include_str!("nfs-xstate.c"));
    let library = source.with_extension("so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    run(compile, COMMAND_TIMEOUT).expect("a library for the kernel");
    library
}
