//! Child processes that cannot outlive their test, and waits that cannot last for ever.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::Sandbox;

const POLL: Duration = Duration::from_millis(10);
const LOG_TAIL_LINES: usize = 40;
const LOG_LINE_CHARS: usize = 400;
/// How long a program may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a command failed: its command line, exit status and output.
#[derive(Clone, Debug)]
pub struct Failure(pub String);

/// Polls `condition` until it gives a value.
///
/// # Panics
/// When `timeout` has passed, saying `what` was waited for.
pub fn until<T>(what: &str, timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain for: {what}");
        thread::sleep(POLL);
    }
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// [`Failure`] when it exits with an error or is still running after `timeout`.
pub fn run(mut command: Command, timeout: Duration) -> Result<String, Failure> {
    let mut stdout = tempfile::tempfile().expect("a temporary file for the output");
    let mut stderr = tempfile::tempfile().expect("a temporary file for the errors");
    command.stdin(Stdio::null()).stdout(share(&stdout)).stderr(share(&stderr));
    tie_to_test(&mut command);
    let mut child = command.spawn().map_err(|e| Failure(format!("{command:?}: {e}")))?;

    let status = wait(&mut child, timeout);
    if status.is_none() {
        kill_group(&mut child);
    }
    let output = read_all(&mut stdout);
    if status.is_some_and(|status| status.success()) {
        return Ok(output);
    }
    let ending = status.map_or_else(|| format!("killed after {timeout:?}"), |s| s.to_string());
    let errors = read_all(&mut stderr);
    Err(Failure(format!("{command:?}: {ending}\n{output}{errors}")))
}

/// A daemon. Its output goes to a log file, whose end is printed when the test fails.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its log is `<name>.log` in the sandbox, continued when there is one.
    pub fn start(sandbox: &Sandbox, name: &str, mut command: Command) -> Self {
        let log = sandbox.path(&format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(share(&file)).stderr(file);
        tie_to_test(&mut command);
        let child = command.spawn().unwrap_or_else(|e| panic!("{name} did not start: {e}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Polls `condition` until it gives a value, while the program runs.
    ///
    /// # Panics
    /// When the program ends or 60 s have passed.
    pub fn wait_until<T>(&mut self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        until(&format!("{}: {what}", self.name), Duration::from_secs(60), || {
            let value = condition();
            let ended = if value.is_none() { self.status() } else { None };
            assert!(ended.is_none(), "{} ended ({ended:?}) before: {what}", self.name);
            value
        })
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or nothing while it runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the status of a child")
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: libc::c_int) {
        signal_group(&self.child, signal);
    }

    /// Asks it to end with SIGTERM, and kills what does not.
    pub fn stop(&mut self) {
        signal_group(&self.child, libc::SIGTERM);
        if wait(&mut self.child, STOP_TIMEOUT).is_none() {
            eprintln!("{} did not end within {STOP_TIMEOUT:?} of SIGTERM: killed", self.name);
        }
        self.kill();
    }

    /// Kills it and its process group with SIGKILL.
    pub fn kill(&mut self) {
        kill_group(&mut self.child);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("---- the end of the log of {}:", self.name);
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(LOG_TAIL_LINES);
            for line in log.lines().skip(skipped) {
                eprintln!("{}", line.chars().take(LOG_LINE_CHARS).collect::<String>());
            }
        }
    }
}

/// Puts the command into a process group of its own and has the kernel kill it when the thread
/// that starts it ends, which the thread of a test does even when it is killed.
fn tie_to_test(command: &mut Command) {
    command.process_group(0);
    // SAFETY: prctl is async-signal-safe, and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        let status = child.try_wait().expect("the status of a child");
        if status.is_some() || Instant::now() > deadline {
            return status;
        }
        thread::sleep(POLL);
    }
}

fn kill_group(child: &mut Child) {
    signal_group(child, libc::SIGKILL);
    if wait(child, STOP_TIMEOUT).is_none() {
        eprintln!("process {} is stuck in the kernel and was left behind", child.id());
    }
}

fn signal_group(child: &Child, signal: libc::c_int) {
    let group = libc::pid_t::try_from(child.id()).expect("a process id");
    // SAFETY: kill touches no memory. A group that is gone is an error that changes nothing.
    unsafe { libc::kill(-group, signal) };
}

fn share(file: &File) -> File {
    file.try_clone().expect("a second descriptor")
}

fn read_all(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("the output of a command");
    String::from_utf8_lossy(&bytes).into_owned()
}
