//! `larder-fs`: mounts a shared container image storage as a local, content-addressed directory.

mod mount;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use larder_config::{Config, EXIT_CODE};
use larder_fs::check;

/// Mounts a shared container image storage as a local, content-addressed directory.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mounts the storage, in the foreground. `umount`, SIGTERM and SIGINT end it.
    Mount {
        /// Distribution's configuration file; `storage:` and `cache:` are for this program.
        #[arg(long)]
        config: PathBuf,
        /// Lets other users than the one who mounts look into the mount.
        #[arg(long)]
        allow_other: bool,
        /// Mounts a storage that is not read-after-write consistent. Replicas will disagree.
        #[arg(long)]
        allow_inconsistent_storage: bool,
        /// Where to mount: an empty directory.
        mountpoint: PathBuf,
    },
    /// Tries the storage out before it goes live, through two clients. It exits with 1 when a check fails.
    Check {
        /// The configuration file, as for `mount`.
        #[arg(long)]
        config: PathBuf,
        /// Prints one JSON object in place of a table.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let Arguments { command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { EXIT_CODE } else { 0 });
        }
    };
    match command {
        Command::Mount { config, allow_other, allow_inconsistent_storage, mountpoint } => {
            share_arenas();
            let options = mount::Options { allow_other, allow_inconsistent_storage };
            load(&config, |config| mount::run(&config, &mountpoint, &options))
        }
        Command::Check { config, json } => load(&config, |config| run_check(&config, json)),
    }
}

/// The C library gives each thread memory of its own, and each keeps what it has freed. The threads that
/// carry parts of blobs for a moment kept 400 MB so, after three blobs.
fn share_arenas() {
    // SAFETY: it sets a number, before there is another thread. Should it fail, all is as before.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

fn load(path: &Path, run: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::load(path, std::env::vars_os()) {
        Ok(config) => run(config),
        Err(mistakes) => {
            eprintln!("larder-fs: {mistakes}");
            ExitCode::from(EXIT_CODE)
        }
    }
}

fn run_check(config: &Config, json: bool) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("larder-fs: {e}");
            return ExitCode::FAILURE;
        }
    };
    let is_well = runtime.block_on(check::print(&config.storage, json));
    // A call into a dead export never comes back, and must not keep the process.
    runtime.shutdown_background();
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
