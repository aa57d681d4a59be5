//! fork, exec and spawn: the stack goes with a fork, the sockets go to the kernel with an exec, and
//! the library goes into every program that is executed.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C strings and arrays of the caller; fork"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::AsRawFd;

use libc::{pid_t, posix_spawn_file_actions_t, posix_spawnattr_t};

use crate::environment::Environment;
use crate::family::fd;
use crate::{context, errno, process, symbols};

pub unsafe fn fork() -> pid_t {
    // SAFETY: no arguments.
    process::forked(|| unsafe { symbols::fork::original()() })
}

pub unsafe fn vfork() -> pid_t {
    // A vfork child would run our table updates in its parent's memory, and could not return
    // through this frame: it gets memory of its own.
    // SAFETY: no arguments.
    unsafe { fork() }
}

pub unsafe fn bare_fork() -> pid_t {
    // SAFETY: no arguments.
    process::forked(|| unsafe { symbols::_Fork::original()() })
}

/// A clone by number that is a fork; what the system call answers.
pub fn cloned(original: impl FnOnce() -> usize) -> usize {
    // A pid is an int, and so is the -1 of a failure.
    process::forked(|| original() as i32) as isize as usize
}

/// What a child of [`clone`] runs, and with what.
struct Beginning {
    function: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
}

/// The first that such a child does.
extern "C" fn begin(beginning: *mut c_void) -> c_int {
    process::begun();
    // SAFETY: the child's own copy of what `clone` had in its frame.
    let Beginning { function, argument } = unsafe { beginning.cast::<Beginning>().read() };
    function(argument)
}

/// A fork whose child begins with a function, on a stack of its own. (One that shares our memory,
/// or has other thread-local variables, is none.)
pub unsafe fn clone(
    function: Option<extern "C" fn(*mut c_void) -> c_int>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_tid: *mut c_void,
    tls: *mut c_void,
    child_tid: *mut c_void,
) -> c_int {
    let original = symbols::clone::original();
    // SAFETY: the caller's arguments, but for the function and what is passed to it.
    let clone = |function, argument| unsafe {
        original(function, stack, flags, argument, parent_tid, tls, child_tid)
    };
    let Some(begins) = function.filter(|_| flags & (libc::CLONE_VM | libc::CLONE_SETTLS) == 0)
    else {
        return clone(function, argument);
    };
    if context::joined().is_none() {
        // Nothing of ours is to be done in the child, whose stack may be small.
        process::has_come();
        return clone(function, argument);
    }
    let mut beginning = Beginning {
        function: begins,
        argument,
    };
    process::forked(|| clone(Some(begin), (&raw mut beginning).cast()))
}

/// daemon(3), whose fork inside of libc passes us by.
pub unsafe fn daemon(keep_folder: c_int, keep_streams: c_int) -> c_int {
    if context::joined().is_none() {
        // SAFETY: numbers only.
        return unsafe { symbols::daemon::original()(keep_folder, keep_streams) };
    }
    // SAFETY: no arguments; the parent ends without its handlers, as there.
    unsafe {
        match fork() {
            -1 => return -1,
            0 => {}
            _ => libc::_exit(0),
        }
        if libc::setsid() < 0 {
            return -1;
        }
        if keep_folder == 0 {
            libc::chdir(c"/".as_ptr());
        }
    }
    if keep_streams != 0 {
        return 0;
    }
    let flags = rustix::fs::OFlags::RDWR;
    match rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()) {
        Ok(null) => {
            for stream in 0..=2 {
                if null.as_raw_fd() != stream {
                    // SAFETY: numbers only.
                    unsafe { fd::dup2(null.as_raw_fd(), stream) };
                }
            }
            if null.as_raw_fd() <= 2 {
                std::mem::forget(null);
            }
            0
        }
        Err(error) => errno::to_int(Err(error)),
    }
}

/// The environment of this process.
fn environ() -> *const *const c_char {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: libc's own variable; read once.
    unsafe { environ }
}

pub unsafe fn execve(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> c_int {
    // SAFETY: null or the caller's environment.
    let environment = unsafe { Environment::with_preload(envp) };
    process::about_to_exec();
    // SAFETY: the caller's path and arguments; the environment lives until the call fails.
    unsafe { symbols::execve::original()(path, argv, environment.as_ptr()) }
}

pub unsafe fn execv(path: *const c_char, argv: *const *const c_char) -> c_int {
    // SAFETY: the caller's arguments and the process's environment.
    unsafe { execve(path, argv, environ()) }
}

pub unsafe fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int {
    // SAFETY: the caller's arguments and the process's environment.
    unsafe { execvpe(file, argv, environ()) }
}

pub unsafe fn execvpe(
    file: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> c_int {
    // SAFETY: null or the caller's environment.
    let environment = unsafe { Environment::with_preload(envp) };
    process::about_to_exec();
    // SAFETY: as in `execve`. The search path is the process's own, as libc's is.
    unsafe { symbols::execvpe::original()(file, argv, environment.as_ptr()) }
}

pub unsafe fn fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int {
    // SAFETY: null or the caller's environment.
    let environment = unsafe { Environment::with_preload(envp) };
    process::about_to_exec();
    // SAFETY: as in `execve`.
    unsafe { symbols::fexecve::original()(fd, argv, environment.as_ptr()) }
}

pub unsafe fn execveat(
    folder: c_int,
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: null or the caller's environment.
    let environment = unsafe { Environment::with_preload(envp) };
    process::about_to_exec();
    // SAFETY: as in `execve`.
    unsafe { symbols::execveat::original()(folder, path, argv, environment.as_ptr(), flags) }
}

pub unsafe fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    argv: *const *mut c_char,
    envp: *const *mut c_char,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe {
        let original = symbols::posix_spawn::original();
        spawn(original, pid, path, actions, attributes, argv, envp)
    }
}

pub unsafe fn posix_spawnp(
    pid: *mut pid_t,
    file: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    argv: *const *mut c_char,
    envp: *const *mut c_char,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe {
        let original = symbols::posix_spawnp::original();
        spawn(original, pid, file, actions, attributes, argv, envp)
    }
}

/// libc's `posix_spawn` or `posix_spawnp`.
type Spawn = unsafe extern "C" fn(
    *mut pid_t,
    *const c_char,
    *const posix_spawn_file_actions_t,
    *const posix_spawnattr_t,
    *const *mut c_char,
    *const *mut c_char,
) -> c_int;

/// Either of the two, with the variables of ours in the child's environment.
///
/// # Safety
/// As `posix_spawn`.
unsafe fn spawn(
    original: Spawn,
    pid: *mut pid_t,
    program: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    argv: *const *mut c_char,
    envp: *const *mut c_char,
) -> c_int {
    process::about_to_spawn();
    // SAFETY: null or the caller's environment. The child starts in libc, on the kernel's own
    // descriptors; the shadows it inherits are plain kernel sockets.
    let environment = unsafe { Environment::with_preload(envp.cast()) };
    let envp = environment.as_ptr().cast();
    // SAFETY: the caller's arguments.
    unsafe { original(pid, program, actions, attributes, argv, envp) }
}

pub unsafe fn adddup2(actions: *mut posix_spawn_file_actions_t, fd: c_int, new: c_int) -> c_int {
    // The child will have it, and is no program of ours.
    process::about_to_give(fd);
    // SAFETY: the caller's arguments.
    unsafe { symbols::posix_spawn_file_actions_adddup2::original()(actions, fd, new) }
}

pub unsafe fn system(command: *const c_char) -> c_int {
    process::about_to_spawn();
    // SAFETY: the caller's command.
    unsafe { symbols::system::original()(command) }
}

pub unsafe fn popen(command: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    process::about_to_spawn();
    // SAFETY: the caller's arguments.
    unsafe { symbols::popen::original()(command, mode) }
}

pub unsafe extern "C" fn execl(path: *const c_char, arguments: *const *const c_char) -> c_int {
    // SAFETY: the caller's list ends with a null pointer.
    unsafe { execv(path, arguments) }
}

pub unsafe extern "C" fn execlp(file: *const c_char, arguments: *const *const c_char) -> c_int {
    // SAFETY: the caller's list ends with a null pointer.
    unsafe { execvp(file, arguments) }
}

pub unsafe extern "C" fn execle(path: *const c_char, arguments: *const *const c_char) -> c_int {
    let mut end = arguments;
    // SAFETY: the caller's list ends with a null pointer, which the environment follows.
    unsafe {
        while !end.read().is_null() {
            end = end.add(1);
        }
        execve(path, arguments, end.add(1).read().cast())
    }
}

/// A C string as bytes.
///
/// # Safety
/// `string` ends with NUL.
pub unsafe fn bytes<'a>(string: *const c_char) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_bytes()
}
