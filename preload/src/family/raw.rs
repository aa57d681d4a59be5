//! libc's `syscall()`: programs that go around the named functions (libuv, jemalloc, glibc users).
//!
//! Valid before any constructor and inside malloc's own start (jemalloc reads files by this way): a
//! number or descriptor that is not ours becomes the system call itself, two instructions away,
//! without libc's function, whose resolution could allocate.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: passes raw arguments to the named call they stand for"
)]

use std::arch::asm;
use std::ffi::{c_int, c_uint};

use libc::{loff_t, off_t, size_t};
use rustix::io::Errno;

use super::{epoll, fd, io, ioctl, poll, process, recv, select, send, socket, uring};
use crate::errno::{Answer, from_c, set};
use crate::fdtable;

/// The system call itself, with libc's convention for errors.
///
/// # Safety
/// Whatever the system call demands.
#[inline(always)]
unsafe fn direct(number: size_t, arguments: [size_t; 6]) -> size_t {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise; the kernel changes rax, rcx, r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise; the kernel changes x0 only.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number, inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f, options(nostack)
        );
    }
    if (-4095..0).contains(&result) {
        set(Errno::from_raw_os_error(-result as i32));
        return size_t::MAX;
    }
    result as size_t
}

/// sendmsg as the system call itself, at which no thread is cancelled.
///
/// # Safety
/// `message` describes buffers that the caller may read.
pub unsafe fn sendmsg(fd: c_int, message: &libc::msghdr, flags: c_int) -> Answer {
    let message = std::ptr::from_ref(message) as size_t;
    let number = libc::SYS_sendmsg as size_t;
    // SAFETY: the caller's promise.
    from_c(unsafe { direct(number, [fd as size_t, message, flags as size_t, 0, 0, 0]) } as isize)
}

/// splice as the system call itself, at which no thread is cancelled.
///
/// # Safety
/// As splice(2): the offsets are null or the caller's.
pub unsafe fn splice(
    (input, input_offset): (c_int, *mut loff_t),
    (out, out_offset): (c_int, *mut loff_t),
    len: size_t,
    flags: c_uint,
) -> isize {
    let (from, to) = (input_offset as size_t, out_offset as size_t);
    let arguments = [
        input as size_t,
        from,
        out as size_t,
        to,
        len,
        flags as size_t,
    ];
    // SAFETY: the caller's promise.
    unsafe { direct(libc::SYS_splice as size_t, arguments) as isize }
}

/// Calls whose first argument is a descriptor, and that concern us only if it is ours.
fn is_by_descriptor(number: libc::c_long) -> bool {
    matches!(
        number,
        libc::SYS_read
            | libc::SYS_write
            | libc::SYS_readv
            | libc::SYS_writev
            | libc::SYS_preadv2
            | libc::SYS_pwritev2
            | libc::SYS_close
            | libc::SYS_recvmmsg
            | libc::SYS_sendmmsg
            | libc::SYS_recvmsg
            | libc::SYS_sendmsg
            | libc::SYS_recvfrom
            | libc::SYS_sendto
            | libc::SYS_bind
            | libc::SYS_connect
            | libc::SYS_listen
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_getsockname
            | libc::SYS_getpeername
            | libc::SYS_getsockopt
            | libc::SYS_sendfile
            | libc::SYS_shutdown
            | libc::SYS_setsockopt
            | libc::SYS_dup
            | libc::SYS_fcntl
            | libc::SYS_ioctl
            | libc::SYS_epoll_ctl
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
    )
}

/// The first version of clone3's argument (include/uapi/linux/sched.h: struct clone_args).
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Whether a clone is a fork: the child has memory of its own and returns on the caller's stack.
fn is_fork(flags: u64, stack: u64) -> bool {
    flags & libc::CLONE_VM as u64 == 0 && stack == 0
}

/// Sign-extends a C int's result as `syscall` returns it.
fn int(value: c_int) -> size_t {
    value as isize as size_t
}

#[expect(
    clippy::too_many_lines,
    reason = "a table: each system call, and the function that it is"
)]
pub unsafe fn syscall(
    number: size_t,
    a: size_t,
    b: size_t,
    c: size_t,
    d: size_t,
    e: size_t,
    f: size_t,
) -> size_t {
    let fd = a as c_int;
    if is_by_descriptor(number as libc::c_long) && fdtable::falls_through(fd) {
        // SAFETY: the caller's own system call.
        return unsafe { direct(number, [a, b, c, d, e, f]) };
    }
    // SAFETY: (all arms) the arguments are those of the named system call, as the caller gave
    // them; the named function takes the same ones in C types.
    unsafe {
        match number as libc::c_long {
            libc::SYS_read => return io::read(fd, b as _, c) as size_t,
            libc::SYS_write => return io::write(fd, b as _, c) as size_t,
            libc::SYS_readv => return io::readv(fd, b as _, c as c_int) as size_t,
            libc::SYS_writev => return io::writev(fd, b as _, c as c_int) as size_t,
            // Number 4 is the upper half of the offset where a register has only 32 bits.
            libc::SYS_preadv2 => {
                return io::preadv2(fd, b as _, c as c_int, d as off_t, f as c_int) as size_t;
            }
            libc::SYS_pwritev2 => {
                return io::pwritev2(fd, b as _, c as c_int, d as off_t, f as c_int) as size_t;
            }
            libc::SYS_close => return int(fd::close(fd)),
            libc::SYS_close_range => {
                return int(fd::close_range(a as c_uint, b as c_uint, c as c_int));
            }
            libc::SYS_recvmmsg => {
                return int(recv::recvmmsg(fd, b as _, c as c_uint, d as c_int, e as _));
            }
            libc::SYS_sendmmsg => {
                return int(send::sendmmsg(fd, b as _, c as c_uint, d as c_int));
            }
            libc::SYS_recvmsg => return recv::recvmsg(fd, b as _, c as c_int) as size_t,
            libc::SYS_sendmsg => return send::sendmsg(fd, b as _, c as c_int) as size_t,
            libc::SYS_recvfrom => {
                return recv::recvfrom(fd, b as _, c, d as c_int, e as _, f as _) as size_t;
            }
            libc::SYS_sendto => {
                return send::sendto(fd, b as _, c, d as c_int, e as _, f as _) as size_t;
            }
            libc::SYS_socket => return int(socket::socket(fd, b as c_int, c as c_int)),
            libc::SYS_bind => return int(socket::bind(fd, b as _, c as _)),
            libc::SYS_connect => return int(socket::connect(fd, b as _, c as _)),
            libc::SYS_accept => return int(socket::accept(fd, b as _, c as _)),
            libc::SYS_accept4 => return int(socket::accept4(fd, b as _, c as _, d as c_int)),
            libc::SYS_listen => return int(socket::listen(fd, b as c_int)),
            libc::SYS_getsockname => return int(socket::getsockname(fd, b as _, c as _)),
            libc::SYS_getpeername => return int(socket::getpeername(fd, b as _, c as _)),
            libc::SYS_getsockopt => {
                return int(socket::getsockopt(
                    fd, b as c_int, c as c_int, d as _, e as _,
                ));
            }
            libc::SYS_sendfile => {
                return io::sendfile(fd, b as c_int, c as _, d) as size_t;
            }
            libc::SYS_splice => {
                return io::splice(fd, b as _, c as c_int, d as _, e, f as c_uint) as size_t;
            }
            libc::SYS_shutdown => return int(socket::shutdown(fd, b as c_int)),
            libc::SYS_setsockopt => {
                return int(socket::setsockopt(
                    fd, b as c_int, c as c_int, d as _, e as _,
                ));
            }
            libc::SYS_dup => return int(fd::dup(fd)),
            libc::SYS_dup3 => return int(fd::dup3(fd, b as c_int, c as c_int)),
            libc::SYS_fcntl => return int(fd::fcntl(fd, b as c_int, c)),
            libc::SYS_ioctl => return int(ioctl::ioctl(fd, b as _, c)),
            libc::SYS_ppoll => return int(poll::ppoll(a as _, b as _, c as _, d as _)),
            libc::SYS_pselect6 => {
                // The sixth argument is a pointer to {mask, size}.
                let mask = (f as *const size_t).as_ref().map_or(0, |mask| *mask);
                return int(select::pselect(
                    fd, b as _, c as _, d as _, e as _, mask as _,
                ));
            }
            libc::SYS_socketpair => {
                return int(socket::socketpair(fd, b as c_int, c as c_int, d as _));
            }
            libc::SYS_epoll_pwait2 => {
                return int(epoll::epoll_pwait2(fd, b as _, c as c_int, d as _, e as _));
            }
            libc::SYS_epoll_create1 => return int(epoll::epoll_create1(fd)),
            libc::SYS_epoll_ctl => {
                return int(epoll::epoll_ctl(fd, b as c_int, c as c_int, d as _));
            }
            libc::SYS_epoll_pwait => {
                return int(epoll::epoll_pwait(
                    fd, b as _, c as c_int, d as c_int, e as _,
                ));
            }
            libc::SYS_io_uring_setup => {
                if uring::is_refused() {
                    set(Errno::NOSYS);
                    return size_t::MAX;
                }
                let ring = direct(number, [a, b, c, d, e, f]);
                if ring != size_t::MAX {
                    uring::made();
                }
                return ring;
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll => return int(poll::poll(a as _, b as _, c as c_int)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_select => return int(select::select(fd, b as _, c as _, d as _, e as _)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => return int(fd::dup2(fd, b as c_int)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_create => return int(epoll::epoll_create(fd)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait => {
                return int(epoll::epoll_wait(fd, b as _, c as c_int, d as c_int));
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_fork => return process::fork() as isize as size_t,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_vfork => return process::vfork() as isize as size_t,
            libc::SYS_clone if is_fork(a as u64, b as u64) => {
                return process::cloned(|| direct(number, [a, b, c, d, e, f]));
            }
            libc::SYS_clone3
                if (a as *const CloneArgs).as_ref().is_some_and(|how| {
                    b >= size_of::<CloneArgs>() && is_fork(how.flags, how.stack)
                }) =>
            {
                return process::cloned(|| direct(number, [a, b, c, d, e, f]));
            }
            libc::SYS_execve => return int(process::execve(a as _, b as _, c as _)),
            libc::SYS_execveat => {
                return int(process::execveat(fd, b as _, c as _, d as _, e as c_int));
            }
            _ => {}
        }
        direct(number, [a, b, c, d, e, f])
    }
}
