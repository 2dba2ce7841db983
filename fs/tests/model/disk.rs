//! A local disk that fails at its n-th call.
//!
//! The functions of the C library that the standard library calls are defined here anew, for this
//! program alone: they count and fail calls on files below one directory, and are system calls
//! otherwise.

use std::{
    ffi::{CStr, OsStr, c_char, c_int, c_long, c_void},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use libc::{AT_FDCWD, mode_t, off64_t, size_t, ssize_t, timespec};

/// What is wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this errno, and has done nothing.
    Error(c_int),
    /// It fails with EIO, but has done what it was to do.
    DoneAndError,
    /// It reads or writes half of what it was asked to.
    Short,
    /// It is done late, when everything that need not wait for it has gone on.
    Stall,
}

/// How long a call stalls: it is this thread's time, and not the nodes', that stands still.
const STALL: Duration = Duration::from_millis(20);

/// Spoils one call on a file below `directory`, after so many that are well. Dropped, all are well.
pub struct Plan(#[expect(dead_code, reason = "there is one disk, and one plan for it")] Turn);

type Turn = MutexGuard<'static, ()>;

struct State {
    directory: PathBuf,
    calls_before: u32,
    fault: Fault,
    has_failed: bool,
}

static TURN: Mutex<()> = Mutex::new(());
static STATE: Mutex<Option<State>> = Mutex::new(None);
/// Whether the state has to be looked at.
static IS_PLANNED: AtomicBool = AtomicBool::new(false);

impl Plan {
    pub fn new(directory: &Path, calls_before: u32, fault: Fault) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = directory.to_owned();
        *state() = Some(State { directory, calls_before, fault, has_failed: false });
        IS_PLANNED.store(true, Ordering::SeqCst);
        Self(turn)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        IS_PLANNED.store(false, Ordering::SeqCst);
        *state() = None;
    }
}

/// Whether a call has failed as it was planned.
pub fn has_failed() -> bool {
    state().as_ref().is_some_and(|state| state.has_failed)
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which file a call is about.
#[derive(Clone, Copy)]
enum Subject {
    Path(*const c_char),
    File(c_int),
    At(c_int, *const c_char),
}

impl Subject {
    fn path(self) -> Option<PathBuf> {
        match self {
            Self::Path(path) => {
                // SAFETY: whoever calls open(2) and the like gives a string that ends with NUL.
                let path = unsafe { CStr::from_ptr(path) };
                Some(OsStr::from_bytes(path.to_bytes()).into())
            }
            Self::At(AT_FDCWD, path) => Self::Path(path).path(),
            Self::At(directory, path) => {
                Some(Self::File(directory).path()?.join(Self::Path(path).path()?))
            }
            Self::File(file) => std::fs::read_link(format!("/proc/self/fd/{file}")).ok(),
        }
    }
}

/// Counts a call, and tells what is wrong with it.
fn fault(subject: Subject, moves_content: bool) -> Option<Fault> {
    if !IS_PLANNED.load(Ordering::SeqCst) {
        return None;
    }
    let path = subject.path()?;
    let mut state = state();
    let plan = state.as_mut()?;
    let is_spared = plan.fault == Fault::Short && !moves_content;
    if plan.has_failed || is_spared || !path.starts_with(&plan.directory) {
        return None;
    }
    if plan.calls_before > 0 {
        plan.calls_before -= 1;
        return None;
    }
    plan.has_failed = true;
    Some(plan.fault)
}

fn fail(errno: c_int) -> c_long {
    // SAFETY: the address is that of this thread's errno.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// A call that moves `size` bytes.
fn transfer(file: c_int, size: size_t, call: impl Fn(size_t) -> c_long) -> ssize_t {
    let outcome = match fault(Subject::File(file), true) {
        None => call(size),
        Some(Fault::Short) => call(size.div_ceil(2)),
        Some(Fault::Stall) => {
            thread::sleep(STALL);
            call(size)
        }
        Some(Fault::Error(errno)) => fail(errno),
        Some(Fault::DoneAndError) => {
            call(size);
            fail(libc::EIO)
        }
    };
    outcome as ssize_t
}

/// Any other call.
fn change(subject: Subject, call: impl Fn() -> c_long) -> c_int {
    let outcome = match fault(subject, false) {
        None | Some(Fault::Short) => call(),
        Some(Fault::Stall) => {
            thread::sleep(STALL);
            call()
        }
        Some(Fault::Error(errno)) => fail(errno),
        Some(Fault::DoneAndError) => {
            // A file that was opened stays open, and nobody is told of it.
            call();
            fail(libc::EIO)
        }
    };
    outcome as c_int
}

/// Defines a function of the C library as a system call that may fail.
macro_rules! define {
    ($(fn $name:ident($($argument:ident: $type:ty),*) = $subject:expr, $($call:expr),+;)*) => {
        $(#[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $type),*) -> c_int {
            // SAFETY: the arguments are those of the system call, and checked by the kernel.
            change($subject, || unsafe { libc::syscall($($call),+) })
        })*
    };
}

define! {
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) =
        Subject::Path(path), libc::SYS_openat, AT_FDCWD, path, flags, mode;
    fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) =
        Subject::At(at, path), libc::SYS_openat, at, path, flags, mode;
    fn rename(from: *const c_char, to: *const c_char) =
        Subject::Path(from), libc::SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0;
    fn unlink(path: *const c_char) =
        Subject::Path(path), libc::SYS_unlinkat, AT_FDCWD, path, 0;
    fn rmdir(path: *const c_char) =
        Subject::Path(path), libc::SYS_unlinkat, AT_FDCWD, path, libc::AT_REMOVEDIR;
    fn unlinkat(at: c_int, path: *const c_char, flags: c_int) =
        Subject::At(at, path), libc::SYS_unlinkat, at, path, flags;
    fn mkdir(path: *const c_char, mode: mode_t) =
        Subject::Path(path), libc::SYS_mkdirat, AT_FDCWD, path, mode;
    fn fsync(file: c_int) = Subject::File(file), libc::SYS_fsync, file;
    fn fdatasync(file: c_int) = Subject::File(file), libc::SYS_fdatasync, file;
    fn ftruncate64(file: c_int, size: off64_t) =
        Subject::File(file), libc::SYS_ftruncate, file, size;
    fn fchmod(file: c_int, mode: mode_t) = Subject::File(file), libc::SYS_fchmod, file, mode;
    fn futimens(file: c_int, times: *const timespec) =
        Subject::File(file), libc::SYS_utimensat, file, std::ptr::null::<c_char>(), times, 0;
}

#[unsafe(no_mangle)]
extern "C" fn read(file: c_int, buffer: *mut c_void, size: size_t) -> ssize_t {
    // SAFETY: the buffer has room for `size` bytes, and the call reads no more.
    transfer(file, size, |size| unsafe { libc::syscall(libc::SYS_read, file, buffer, size) })
}

#[unsafe(no_mangle)]
extern "C" fn write(file: c_int, buffer: *const c_void, size: size_t) -> ssize_t {
    // SAFETY: the buffer has `size` bytes, and the call writes no more.
    transfer(file, size, |size| unsafe { libc::syscall(libc::SYS_write, file, buffer, size) })
}

#[unsafe(no_mangle)]
extern "C" fn pread64(file: c_int, buffer: *mut c_void, size: size_t, at: off64_t) -> ssize_t {
    // SAFETY: as for `read`.
    transfer(file, size, |size| unsafe { libc::syscall(libc::SYS_pread64, file, buffer, size, at) })
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(file: c_int, buffer: *const c_void, size: size_t, at: off64_t) -> ssize_t {
    // SAFETY: as for `write`.
    transfer(file, size, |size| unsafe {
        libc::syscall(libc::SYS_pwrite64, file, buffer, size, at)
    })
}

/// What the other tests stand on: the standard library does call the functions that are defined here.
#[test]
fn each_call_on_the_disk_can_fail() {
    use std::{
        fs::{self, File, OpenOptions, Permissions},
        io::{Read, Write},
        os::unix::fs::{FileExt, PermissionsExt},
        time::SystemTime,
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, b"content").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let calls: [(&str, &dyn Fn() -> std::io::Result<()>); 13] = [
        ("open", &|| File::open(&path).map(drop)),
        ("read", &|| (&file).read(&mut [0]).map(drop)),
        ("write", &|| (&file).write(b"x").map(drop)),
        ("read_at", &|| file.read_at(&mut [0], 0).map(drop)),
        ("write_at", &|| file.write_at(b"x", 0).map(drop)),
        ("set_len", &|| file.set_len(7)),
        ("sync_all", &|| file.sync_all()),
        ("sync_data", &|| file.sync_data()),
        ("set_permissions", &|| file.set_permissions(Permissions::from_mode(0o600))),
        ("set_modified", &|| file.set_modified(SystemTime::now())),
        ("create_dir", &|| fs::create_dir(directory.path().join("directory"))),
        ("rename", &|| fs::rename(&path, directory.path().join("other"))),
        ("remove_file", &|| fs::remove_file(directory.path().join("other"))),
    ];
    for (name, call) in calls {
        let plan = Plan::new(directory.path(), 0, Fault::Error(libc::ENOSPC));
        let errno = call().map_err(|e| e.raw_os_error());
        assert_eq!(errno, Err(Some(libc::ENOSPC)), "{name}");
        assert!(has_failed());
        call().unwrap_or_else(|e| panic!("{name}, the second time: {e}"));
        drop(plan);
    }
    let plan = Plan::new(directory.path(), 0, Fault::Short);
    assert_eq!(file.write_at(b"12345678", 0).unwrap(), 4);
    drop(plan);
}
