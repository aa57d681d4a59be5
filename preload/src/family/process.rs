//! fork, exec and spawn: the stack goes with a fork, the sockets go to the kernel with an exec, and
//! the library goes into every program that is executed.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C strings and arrays of the caller; fork"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::AsRawFd;

use libc::{pid_t, posix_spawn_file_actions_t, posix_spawnattr_t, termios, winsize};
use rustix::io::Errno;

use crate::environment::Environment;
use crate::family::fd;
use crate::fdtable::{self, Entry};
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

/// A fork whose child begins with a function, on a stack of its own. (One that shares our memory,
/// or has other thread-local variables, is none.) That stack may be small: what is to be done of
/// ours is done on the copy of the caller's.
pub unsafe fn clone(
    function: Option<extern "C" fn(*mut c_void) -> c_int>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_tid: *mut c_void,
    tls: *mut c_void,
    child_tid: *mut c_void,
) -> c_int {
    let shares = flags & (libc::CLONE_VM | libc::CLONE_SETTLS) != 0;
    let Some(begins) = function.filter(|_| !stack.is_null() && !shares) else {
        let original = symbols::clone::original();
        // SAFETY: the caller's arguments.
        return unsafe { original(function, stack, flags, argument, parent_tid, tls, child_tid) };
    };
    let [last, before] = match cfg!(target_arch = "x86_64") {
        true => [tls, child_tid],
        false => [child_tid, tls],
    };
    let call = symbols::syscall::original();
    let (number, flags) = (libc::SYS_clone as usize, flags as u32 as usize);
    let (parent, before, last) = (parent_tid as usize, before as usize, last as usize);
    // SAFETY: a fork, whose child goes on here, on its copy of this stack.
    let pid = process::forked(|| unsafe { call(number, flags, 0, parent, before, last, 0) } as i32);
    if pid == 0 {
        // SAFETY: the caller's promise for this stack, which nobody else has in the child.
        unsafe { run_on(stack, begins, argument) }
    }
    pid
}

/// Calls the function on another stack (from this address down) and ends with its result.
///
/// # Safety
/// The stack is writable, and as large as the function needs.
#[unsafe(naked)]
unsafe extern "C" fn run_on(
    stack: *mut c_void,
    function: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> ! {
    #[cfg(target_arch = "x86_64")]
    std::arch::naked_asm!(
        "and rdi, -16",
        "mov rsp, rdi",
        "mov rdi, rdx",
        "xor ebp, ebp",
        "call rsi",
        "mov edi, eax",
        "mov eax, {exit}",
        "syscall",
        "ud2",
        exit = const libc::SYS_exit,
    );
    #[cfg(target_arch = "aarch64")]
    std::arch::naked_asm!(
        "and x0, x0, -16",
        "mov sp, x0",
        "mov x0, x2",
        "mov x29, xzr",
        "blr x1",
        "mov x8, {exit}",
        "svc 0",
        "brk 1",
        exit = const libc::SYS_exit,
    );
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

/// forkpty(3), whose fork inside of libc passes us by.
pub unsafe fn forkpty(
    master: *mut c_int,
    name: *mut c_char,
    settings: *const termios,
    size: *const winsize,
) -> pid_t {
    let (mut ours, mut terminal) = (-1, -1);
    // SAFETY: the caller's arguments, and numbers; libc only reads through the last two. (openpty
    // is in libc itself since glibc 2.34, the oldest that we load with.)
    unsafe {
        if libc::openpty(&raw mut ours, &raw mut terminal, name, settings, size) != 0 {
            return -1;
        }
        let pid = fork();
        if pid == 0 {
            fd::close(ours);
            if login_tty(terminal) != 0 {
                libc::_exit(1);
            }
            return 0;
        }
        let failure = errno::last();
        fd::close(terminal);
        if pid < 0 {
            fd::close(ours);
            errno::set(failure);
        } else {
            *master = ours;
        }
        pid
    }
}

/// login_tty(3), which changes what the standard streams are. As there, a stream that cannot be
/// changed stays as it is.
pub unsafe fn login_tty(terminal: c_int) -> c_int {
    // SAFETY: numbers only. setsid fails in the leader of a process group, which is no matter.
    unsafe {
        libc::setsid();
        if libc::ioctl(terminal, libc::TIOCSCTTY, 0) != 0 {
            return -1;
        }
        for stream in 0..=2 {
            // While another thread is opening that number (dup(2)); one of ours there stays.
            while fd::dup2(terminal, stream) < 0
                && errno::last() == Errno::BUSY
                && fdtable::look(stream) != Entry::Private
            {}
        }
        if terminal > 2 {
            fd::close(terminal);
        }
    }
    0
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
