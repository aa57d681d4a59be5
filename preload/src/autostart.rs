//! Starting the daemon when none answers and this process may.
//!
//! The daemon must not be a child that the program could see, by SIGCHLD or by wait(): a child that
//! `clone` makes without exit signal starts it. That one must not exec, for an exec gives a process
//! the usual exit signal again, so `bypassctl` is its child; it detaches itself before it answers.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: clone and execve of bypassctl, dladdr"
)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bypass_proto::reason::FallThrough;
use bypass_runtime::control::Control;
use rustix::thread::CpuSet;

use crate::symbols;
use crate::wait::signals::Held;

/// How long a started daemon may take until it answers.
const PATIENCE: Duration = Duration::from_secs(3);
/// Stack of the short-lived child.
const CHILD_STACK: usize = 64 * 1024;
/// Exit code of a program that could not be started, as shells have it.
const FAILED: c_int = 127;

/// Path of libbypass.so as it is loaded.
pub fn library_path() -> Option<PathBuf> {
    // SAFETY: plain data; all zero is a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let address = library_path as *const c_void;
    // SAFETY: the address is one of ours, `info` is writable.
    if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gives a string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())))
}

fn tool_path() -> Option<PathBuf> {
    let library = library_path()?;
    let folder = library.parent()?;
    [
        folder.join("bypassctl"),
        folder.join("../bin/bypassctl"),
        PathBuf::from("/usr/bin/bypassctl"),
    ]
    .into_iter()
    .find(|path| rustix::fs::access(path.as_path(), rustix::fs::Access::EXEC_OK).is_ok())
}

struct Exec {
    null: Option<std::os::fd::OwnedFd>,
    path: CString,
    argv: [*const libc::c_char; 4],
    envp: [*const libc::c_char; 2],
    /// Top of the stack of `bypassctl` until it has begun.
    stack: *mut c_void,
}

/// The child without exit signal: the exit code of `bypassctl`. Signals are held back.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: the parent waits (CLONE_VFORK) and keeps the structure alive.
    let top = unsafe { (*argument.cast::<Exec>()).stack };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `grandchild` uses only the structure; its stack outlives it, as we are suspended.
    let pid = unsafe { clone(grandchild, top, flags, argument) };
    let mut status = 0;
    // SAFETY: waits for this very child.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    match waited {
        _ if pid < 0 => FAILED,
        _ if waited == pid && libc::WIFEXITED(status) => libc::WEXITSTATUS(status),
        // A program that ignores SIGCHLD hears only that it has ended: whether a daemon answers is
        // seen next.
        -1 => 0,
        _ => FAILED,
    }
}

/// libc's `clone` for a child that shares our memory.
///
/// # Safety
/// As there.
unsafe fn clone(
    function: extern "C" fn(*mut c_void) -> c_int,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
) -> c_int {
    let none = std::ptr::null_mut();
    // SAFETY: the caller's promise.
    unsafe { symbols::clone::original()(Some(function), stack, flags, argument, none, none, none) }
}

extern "C" fn grandchild(argument: *mut c_void) -> c_int {
    // SAFETY: the parent waits (CLONE_VFORK) and keeps the structure alive.
    let exec = unsafe { &*argument.cast::<Exec>() };
    // The program's streams are not the daemon's. (This child has a descriptor table of its own.)
    if let Some(null) = &exec.null {
        let _ = rustix::stdio::dup2_stdin(null);
        let _ = rustix::stdio::dup2_stdout(null);
        let _ = rustix::stdio::dup2_stderr(null);
    }
    open_mask();
    reset_scheduling();
    // SAFETY: all strings end with NUL, both arrays with a null pointer.
    unsafe {
        symbols::execve::original()(exec.path.as_ptr(), exec.argv.as_ptr(), exec.envp.as_ptr());
    }
    // SAFETY: ends this child without running the program's exit handlers.
    unsafe { libc::_exit(FAILED) }
}

/// Runs `bypassctl daemon --exit-when-idle` and waits until it answers.
///
/// # Errors
/// [`FallThrough::NoDaemon`].
pub fn start_daemon() -> Result<(), FallThrough> {
    let path = tool_path().ok_or(FallThrough::NoDaemon)?;
    let path = c_string(&path)?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let mut stacks = [(); 2].map(|()| vec![0_u8; CHILD_STACK]);
    let [outer, inner] = stacks.each_mut().map(|stack| top_of(stack));
    let exec = Exec {
        null: null.ok(),
        argv: [
            path.as_ptr(),
            c"daemon".as_ptr(),
            c"--exit-when-idle".as_ptr(),
            std::ptr::null(),
        ],
        envp: [
            c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(),
            std::ptr::null(),
        ],
        path,
        stack: inner,
    };
    // No exit signal: the program's SIGCHLD handler and wait() never see this child. The child
    // runs on its own stack in our memory, while we are suspended; no handler of the program may
    // run there.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK;
    let argument = (&raw const exec).cast_mut().cast::<c_void>();
    let mut held = Held::default();
    held.hold();
    // SAFETY: `child` uses only `exec`, the stack is large enough and outlives the call.
    let pid = unsafe { clone(child, outer, flags, argument) };
    drop(held);
    if pid < 0 {
        return Err(FallThrough::NoDaemon);
    }
    let mut status = 0;
    // It has ended, as `bypassctl` had, when the daemon answers or when there can be none.
    // SAFETY: waits for this very child; __WCLONE takes those without exit signal.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WCLONE) };
    /// Exit code of a daemon that found another one serving already.
    const ANOTHER_SERVES: i32 = 3;
    let code = libc::WEXITSTATUS(status);
    if waited == pid && libc::WIFEXITED(status) && code != 0 && code != ANOTHER_SERVES {
        return Err(FallThrough::NoDaemon);
    }
    wait_until_it_answers()
}

/// One past the end of a stack, aligned down.
fn top_of(stack: &mut [u8]) -> *mut c_void {
    let end = stack.as_mut_ptr_range().end;
    end.wrapping_sub(end as usize % 16).cast()
}

/// `bypassctl` begins with no signal held back.
fn open_mask() {
    // SAFETY: plain data; all zero is the empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// A program that is bound to one processor, or runs in real time, is served by a daemon that is
/// not. What the kernel refuses stays as it is.
fn reset_scheduling() {
    let mut all = CpuSet::new();
    for cpu in 0..CpuSet::MAX_CPU {
        all.set(cpu);
    }
    let _ = rustix::thread::sched_setaffinity(None, &all);
    let _ = rustix::process::setpriority_process(None, 0);
    let usual = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure is ours.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const usual) };
}

fn wait_until_it_answers() -> Result<(), FallThrough> {
    let step = Duration::from_millis(5);
    let mut waited = Duration::ZERO;
    while waited < PATIENCE {
        if Control::connect().is_ok() {
            return Ok(());
        }
        let pause = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: step.as_nanos() as i64,
        };
        let _ = rustix::thread::nanosleep(&pause);
        waited += step;
    }
    Err(FallThrough::NoDaemon)
}

fn c_string(path: &Path) -> Result<CString, FallThrough> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| FallThrough::NoDaemon)
}
