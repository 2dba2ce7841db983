//! What processes have used, from proc(5), and what is said of several rounds.

use std::{fs, time::Duration};

/// `USER_HZ`, which is 100 on every Linux there is.
const TICK: Duration = Duration::from_millis(10);

/// The processor time that the processes have used, with their ended threads.
///
/// # Panics
/// When one of them is gone.
pub fn cpu(processes: &[u32]) -> Duration {
    processes.iter().map(|process| TICK * ticks(*process)).sum()
}

fn ticks(process: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("a process that runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    // utime and stime are the 14th and 15th field; the first two are cut off.
    let fields = fields.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u32>().expect("a number of ticks")).sum()
}

/// Lets [`peak_bytes`] begin anew.
///
/// # Panics
/// When one of them is gone.
pub fn reset_peak(processes: &[u32]) {
    for process in processes {
        fs::write(format!("/proc/{process}/clear_refs"), "5").expect("a process that runs");
    }
}

/// The most resident memory that the processes had at a time since it was reset.
///
/// # Panics
/// When one of them is gone.
pub fn peak_bytes(processes: &[u32]) -> u64 {
    let peak = |process| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.expect("a size in kB") * 1024
    };
    processes.iter().map(peak).sum()
}

/// The figure in the middle.
///
/// # Panics
/// When there is none.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The process and all that it has started.
///
/// # Panics
/// When it is gone.
pub fn with_children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = fs::read_to_string(path).expect("a process that runs");
    let children = children.split_whitespace().map(|child| child.parse().expect("a number"));
    [process].into_iter().chain(children).collect()
}
