//! The one list of hooked functions.
//!
//! It makes the exported symbols, the resolution of the originals ([`resolve_all`]), the list that
//! the ABI test compares with `nm -D` ([`NAMES`]) and `docs/compat.md`. Each entry is a libc name
//! with its C signature and the function of ours that serves it. In each module of this list
//! `original()` is libc's own function (or the next library's in the preload order).
//!
//! Functions that C declares variadic have a fixed arity here: on x86-64 and aarch64 Linux the
//! first variadic integer arguments travel in the same registers, and the last one is passed on
//! untouched when the command takes none. The `execl` forms, which have no last one, are naked.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C symbols; each body only passes its arguments on"
)]
#![expect(
    missing_docs,
    reason = "each module is one libc function; see its man page"
)]
#![expect(non_snake_case, reason = "modules are named as C names the functions")]

use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    FILE, c_char, c_int, c_uint, c_ulong, c_void, epoll_event, fd_set, iovec, loff_t, mmsghdr,
    msghdr, nfds_t, off_t, pid_t, pollfd, posix_spawn_file_actions_t, posix_spawnattr_t, sigset_t,
    size_t, sockaddr, socklen_t, ssize_t, termios, timespec, timeval, winsize,
};

use crate::family;

macro_rules! hooks {
    ($( fn $name:ident ( $($arg:ident : $type:ty),* $(,)? ) -> $ret:ty => $body:path; )+) => {
        $(
            pub mod $name {
                use super::*;
                redhook::hook! {
                    unsafe fn $name ( $($arg : $type),* ) -> $ret => hook {
                        // SAFETY: the arguments are the caller's, passed on as they came.
                        unsafe { $body($($arg),*) }
                    }
                }
                /// Where libc's own function is; until it has been looked up, [`first`].
                static REAL: AtomicPtr<()> = AtomicPtr::new(first as *const () as *mut ());

                /// Looks libc's function up, at a call before [`resolve_all`].
                unsafe extern "C" fn first($($arg: $type),*) -> $ret {
                    // SAFETY: the arguments are the caller's, passed on as they came.
                    unsafe { resolve()($($arg),*) }
                }

                /// Looks libc's function up.
                #[cold]
                pub fn resolve() -> unsafe extern "C" fn($($type),*) -> $ret {
                    let found = redhook::real!($name);
                    REAL.store(found as *mut (), Ordering::Release);
                    found
                }

                /// libc's own function: one load, so that falling through is a jump.
                #[inline]
                pub fn original() -> unsafe extern "C" fn($($type),*) -> $ret {
                    // SAFETY: `REAL` only ever holds functions of this type.
                    unsafe { std::mem::transmute(REAL.load(Ordering::Acquire)) }
                }
            }
        )+

        /// Every hooked name.
        pub const NAMES: &[&str] = &[ $( stringify!($name) ),+ ];

        /// Resolves the original of every name that this libc has.
        pub fn resolve_all() {
            $( if present(concat!(stringify!($name), "\0")) { let _ = $name::resolve(); } )+
        }
    };
}

/// Whether the next libraries define the symbol (redhook panics when they do not).
pub fn present(name_with_nul: &str) -> bool {
    // SAFETY: the string ends with NUL; dlsym only reads it.
    !unsafe { libc::dlsym(libc::RTLD_NEXT, name_with_nul.as_ptr().cast()) }.is_null()
}

hooks! {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int => family::socket::socket;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int => family::socket::socketpair;
    fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int => family::socket::bind;
    fn listen(fd: c_int, backlog: c_int) -> c_int => family::socket::listen;
    fn accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int => family::socket::accept;
    fn accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int => family::socket::accept4;
    fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int => family::socket::connect;
    fn __connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int => family::socket::connect;
    fn shutdown(fd: c_int, how: c_int) -> c_int => family::socket::shutdown;
    fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int => family::socket::getsockname;
    fn getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int => family::socket::getpeername;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int => family::socket::getsockopt;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int => family::socket::setsockopt;

    fn recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t => family::recv::recv;
    fn recvfrom(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int, address: *mut sockaddr, address_len: *mut socklen_t) -> ssize_t => family::recv::recvfrom;
    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t => family::recv::recvmsg;
    fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int => family::recv::recvmmsg;
    fn __recv_chk(fd: c_int, buffer: *mut c_void, len: size_t, size: size_t, flags: c_int) -> ssize_t => family::recv::recv_chk;
    fn __recvfrom_chk(fd: c_int, buffer: *mut c_void, len: size_t, size: size_t, flags: c_int, address: *mut sockaddr, address_len: *mut socklen_t) -> ssize_t => family::recv::recvfrom_chk;

    fn send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t => family::send::send;
    fn __send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t => family::send::send;
    fn sendto(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int, address: *const sockaddr, address_len: socklen_t) -> ssize_t => family::send::sendto;
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t => family::send::sendmsg;
    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int => family::send::sendmmsg;
    fn sendfile(out: c_int, input: c_int, offset: *mut off_t, count: size_t) -> ssize_t => family::io::sendfile;
    fn sendfile64(out: c_int, input: c_int, offset: *mut off_t, count: size_t) -> ssize_t => family::io::sendfile;
    fn splice(input: c_int, input_offset: *mut loff_t, out: c_int, out_offset: *mut loff_t, len: size_t, flags: c_uint) -> ssize_t => family::io::splice;

    fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t => family::io::read;
    fn __read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t => family::io::read;
    fn __read_chk(fd: c_int, buffer: *mut c_void, len: size_t, size: size_t) -> ssize_t => family::io::read_chk;
    fn readv(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t => family::io::readv;
    fn preadv2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t => family::io::preadv2;
    fn preadv64v2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t => family::io::preadv2;
    fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t => family::io::write;
    fn __write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t => family::io::write;
    fn writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t => family::io::writev;
    fn pwritev2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t => family::io::pwritev2;
    fn pwritev64v2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t => family::io::pwritev2;

    fn select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int => family::select::select;
    fn __select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int => family::select::select;
    fn pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int => family::select::pselect;
    fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int => family::poll::poll;
    fn __poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int => family::poll::poll;
    fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int => family::poll::ppoll;
    fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int, size: size_t) -> c_int => family::poll::poll_chk;
    fn __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, size: size_t) -> c_int => family::poll::ppoll_chk;

    fn epoll_create(size: c_int) -> c_int => family::epoll::epoll_create;
    fn epoll_create1(flags: c_int) -> c_int => family::epoll::epoll_create1;
    fn epoll_ctl(set: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int => family::epoll::epoll_ctl;
    fn epoll_wait(set: c_int, events: *mut epoll_event, count: c_int, timeout_ms: c_int) -> c_int => family::epoll::epoll_wait;
    fn epoll_pwait(set: c_int, events: *mut epoll_event, count: c_int, timeout_ms: c_int, mask: *const sigset_t) -> c_int => family::epoll::epoll_pwait;
    fn epoll_pwait2(set: c_int, events: *mut epoll_event, count: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int => family::epoll::epoll_pwait2;

    fn close(fd: c_int) -> c_int => family::fd::close;
    fn __close(fd: c_int) -> c_int => family::fd::close;
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int => family::fd::close_range;
    fn closefrom(first: c_int) -> () => family::fd::closefrom;
    fn dup(fd: c_int) -> c_int => family::fd::dup;
    fn dup2(old: c_int, new: c_int) -> c_int => family::fd::dup2;
    fn __dup2(old: c_int, new: c_int) -> c_int => family::fd::dup2;
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int => family::fd::dup3;
    fn fcntl(fd: c_int, command: c_int, argument: size_t) -> c_int => family::fd::fcntl;
    fn fcntl64(fd: c_int, command: c_int, argument: size_t) -> c_int => family::fd::fcntl;
    fn __fcntl(fd: c_int, command: c_int, argument: size_t) -> c_int => family::fd::fcntl;
    fn ioctl(fd: c_int, request: c_ulong, argument: size_t) -> c_int => family::ioctl::ioctl;

    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE => family::stdio::fdopen;
    fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int => family::stdio::vdprintf;
    fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int => family::stdio::vdprintf_chk;

    fn fork() -> pid_t => family::process::fork;
    fn __fork() -> pid_t => family::process::fork;
    fn vfork() -> pid_t => family::process::vfork;
    fn __vfork() -> pid_t => family::process::vfork;
    fn _Fork() -> pid_t => family::process::bare_fork;
    fn clone(function: Option<extern "C" fn(*mut c_void) -> c_int>, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent_tid: *mut c_void, tls: *mut c_void, child_tid: *mut c_void) -> c_int => family::process::clone;
    fn daemon(keep_folder: c_int, keep_streams: c_int) -> c_int => family::process::daemon;
    fn forkpty(master: *mut c_int, name: *mut c_char, settings: *const termios, size: *const winsize) -> pid_t => family::process::forkpty;
    fn login_tty(terminal: c_int) -> c_int => family::process::login_tty;
    fn execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int => family::process::execve;
    fn execv(path: *const c_char, argv: *const *const c_char) -> c_int => family::process::execv;
    fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int => family::process::execvp;
    fn execvpe(file: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int => family::process::execvpe;
    fn fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int => family::process::fexecve;
    fn execveat(folder: c_int, path: *const c_char, argv: *const *const c_char, envp: *const *const c_char, flags: c_int) -> c_int => family::process::execveat;
    fn posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const posix_spawn_file_actions_t, attributes: *const posix_spawnattr_t, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int => family::process::posix_spawn;
    fn posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const posix_spawn_file_actions_t, attributes: *const posix_spawnattr_t, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int => family::process::posix_spawnp;
    fn posix_spawn_file_actions_adddup2(actions: *mut posix_spawn_file_actions_t, fd: c_int, new: c_int) -> c_int => family::process::adddup2;
    fn system(command: *const c_char) -> c_int => family::process::system;
    fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE => family::process::popen;

    fn syscall(number: size_t, a: size_t, b: size_t, c: size_t, d: size_t, e: size_t, f: size_t) -> size_t => family::raw::syscall;

    fn io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int => family::uring::queue_init;
    fn io_uring_queue_init_params(entries: c_uint, ring: *mut c_void, parameters: *mut c_void) -> c_int => family::uring::queue_init_params;
    fn io_uring_queue_init_mem(entries: c_uint, ring: *mut c_void, parameters: *mut c_void, memory: *mut c_void, len: size_t) -> c_int => family::uring::queue_init_mem;
    fn io_uring_setup(entries: c_uint, parameters: *mut c_void) -> c_int => family::uring::setup;
}

/// The functions whose list of arguments has no end that a Rust signature could name: each puts the
/// arguments that came in registers in front of those on the stack, where they make one array with
/// them, and calls `body(path, array)`.
macro_rules! lists {
    ($( fn $name:ident => $body:path; )+) => {
        $(
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name(path: *const c_char) -> c_int {
                #[cfg(target_arch = "x86_64")]
                std::arch::naked_asm!(
                    "pop r10",
                    "push r9",
                    "push r8",
                    "push rcx",
                    "push rdx",
                    "push rsi",
                    "mov rsi, rsp",
                    "push r10",
                    "call {body}",
                    "pop r10",
                    "add rsp, 40",
                    "push r10",
                    "ret",
                    body = sym $body,
                );
                #[cfg(target_arch = "aarch64")]
                std::arch::naked_asm!(
                    "stp x29, x30, [sp, #-80]!",
                    "mov x29, sp",
                    "str x1, [sp, #24]",
                    "stp x2, x3, [sp, #32]",
                    "stp x4, x5, [sp, #48]",
                    "stp x6, x7, [sp, #64]",
                    "add x1, sp, #24",
                    "bl {body}",
                    "ldp x29, x30, [sp], #80",
                    "ret",
                    body = sym $body,
                );
            }
        )+
    };
}

lists! {
    fn execl => family::process::execl;
    fn execlp => family::process::execlp;
    fn execle => family::process::execle;
}
