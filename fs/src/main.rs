//! `larder-fs`: mounts a shared container image storage as a local, content-addressed directory.

mod mount;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

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
        /// Where to mount: an empty directory.
        mountpoint: PathBuf,
    },
}

fn main() -> ExitCode {
    let Arguments { command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { larder_config::EXIT_CODE } else { 0 });
        }
    };
    match command {
        Command::Mount { config, allow_other, mountpoint } => {
            mount::run(&config, &mountpoint, allow_other)
        }
    }
}
