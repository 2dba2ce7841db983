//! `scripts/bench`: what the programs cost, side by side with others, in one run.
//!
//! Figures of one run are compared with each other and with nothing else: machines differ, and
//! one machine differs from minute to minute. So servers are measured in turn, several rounds.

mod fs;

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        Some("fs") => fs::run(),
        _ => {
            eprintln!("usage: scripts/bench fs");
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}
