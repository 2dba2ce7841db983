//! Signals for who waits for an answer.
//!
//! The kernel tells of them by FUSE_INTERRUPT, which the library answers by itself, with ENOSYS. A
//! program that waits for us can then be ended by nothing, not even SIGKILL, so we look for
//! ourselves whether a signal waits for it: proc_pid_status(5).

use std::{fs, time::Duration};

/// How often it is looked, for requests that wait at least this long.
const INTERVAL: Duration = Duration::from_millis(100);

/// Returns when a signal that is not blocked waits for the thread with this number. A thread that
/// cannot be seen, as in another PID namespace, is never interrupted.
pub async fn interrupted(thread: u32) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if has_signal(thread) == Some(true) {
            return;
        }
    }
}

fn has_signal(thread: u32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
    };
    let waiting = mask("SigPnd")? | mask("ShdPnd")?;
    let held_back = mask("SigBlk")? | mask("SigIgn")?;
    Some(waiting & !held_back != 0)
}
