//! `scripts/bench`: what the programs cost, side by side with others, in one run.
//!
//! Figures of one run are compared with each other and with nothing else: machines differ, and
//! one machine differs from minute to minute. So servers are measured in turn, several rounds.

mod fs;
mod load;
mod meter;
mod ocean;
mod pull;
mod serve;
mod servers;

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        Some("fs") => fs::measure(),
        Some("serve") => serve::run(),
        Some("pull") => pull::run(),
        _ => {
            eprintln!("usage: scripts/bench fs | serve | pull");
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}
