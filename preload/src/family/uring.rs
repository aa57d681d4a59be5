//! io_uring: a ring works on the shadows, where an accelerated socket has nothing. So a program has
//! rings or accelerated sockets, and `BYPASS_IO_URING` says which.
//!
//! liburing makes its system calls by itself, so its own functions are hooked. Where a ring has
//! been made, the process leaves: its connections are handed over, its UDP sockets and listeners
//! become the kernel's with what they have not read, and new sockets stay there. Only connections
//! that wait to be accepted are lost when nobody else has the listener: no call puts them into the
//! kernel's queue (ADR 11). `syscall(SYS_io_uring_setup)` is refused, where the process has joined
//! a stack: who makes rings in this way mostly has epoll to go back to.
//!
//! Rings that nobody tells of (a static liburing, system calls by hand) are not seen.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: looks functions of liburing up and calls them"
)]

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use bypass_proto::options::Rings;
use bypass_proto::reason::FallThrough;
use libc::size_t;

use crate::fdtable::{self, Entry};
use crate::{config, context, decide, report, tcp};

/// Whether this process, or one that has forked it, has made a ring. Never taken back: what has
/// been told of a ring that is closed again is nothing.
static MADE: AtomicBool = AtomicBool::new(false);

/// Names of the library, for a program that has it by dlopen: then it is not among the libraries
/// that are searched after this one.
const LIBRARIES: [&CStr; 3] = [c"liburing.so.2", c"liburing-ffi.so.2", c"liburing.so.1"];

/// Why new sockets stay with the kernel, if they do.
pub fn keeps_out() -> Option<FallThrough> {
    MADE.load(Ordering::Acquire).then_some(FallThrough::IoUring)
}

/// Whether a system call that makes a ring is refused with ENOSYS.
pub fn is_refused() -> bool {
    match config::get().options.io_uring {
        Rings::Auto => context::joined().is_some(),
        Rings::Refuse => true,
        Rings::Kernel | Rings::Ignore => false,
    }
}

/// A ring has been made: sockets and rings belong together from here on, in the kernel.
pub fn made() {
    if config::get().options.io_uring != Rings::Ignore {
        leave();
    }
}

pub unsafe fn queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int {
    type Function = unsafe extern "C" fn(c_uint, *mut c_void, c_uint) -> c_int;
    // SAFETY: the function has this type (liburing.h); the arguments are the caller's.
    make(c"io_uring_queue_init", |found| unsafe {
        std::mem::transmute::<*mut c_void, Function>(found)(entries, ring, flags)
    })
}

pub unsafe fn queue_init_params(
    entries: c_uint,
    ring: *mut c_void,
    parameters: *mut c_void,
) -> c_int {
    type Function = unsafe extern "C" fn(c_uint, *mut c_void, *mut c_void) -> c_int;
    // SAFETY: as above.
    make(c"io_uring_queue_init_params", |found| unsafe {
        std::mem::transmute::<*mut c_void, Function>(found)(entries, ring, parameters)
    })
}

pub unsafe fn queue_init_mem(
    entries: c_uint,
    ring: *mut c_void,
    parameters: *mut c_void,
    memory: *mut c_void,
    len: size_t,
) -> c_int {
    type Function =
        unsafe extern "C" fn(c_uint, *mut c_void, *mut c_void, *mut c_void, size_t) -> c_int;
    // SAFETY: as above.
    make(c"io_uring_queue_init_mem", |found| unsafe {
        let function = std::mem::transmute::<*mut c_void, Function>(found);
        function(entries, ring, parameters, memory, len)
    })
}

pub unsafe fn setup(entries: c_uint, parameters: *mut c_void) -> c_int {
    type Function = unsafe extern "C" fn(c_uint, *mut c_void) -> c_int;
    // SAFETY: as above.
    make(c"io_uring_setup", |found| unsafe {
        std::mem::transmute::<*mut c_void, Function>(found)(entries, parameters)
    })
}

/// Calls liburing's own function; its answer, or -ENOSYS where rings are refused or nobody has it.
fn make(name: &CStr, call: impl FnOnce(*mut c_void) -> c_int) -> c_int {
    let refused = config::get().options.io_uring == Rings::Refuse;
    let Some(found) = find(name).filter(|_| !refused) else {
        return -libc::ENOSYS;
    };
    let ring = call(found);
    if ring >= 0 {
        made();
    }
    ring
}

/// The library's function of this name.
fn find(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: strings that end with NUL; a library that is there already is not loaded by this.
    let looked_up = |library| unsafe { libc::dlsym(library, name.as_ptr()) };
    let next = looked_up(libc::RTLD_NEXT);
    if !next.is_null() {
        return Some(next);
    }
    LIBRARIES.into_iter().find_map(|library| {
        // SAFETY: as above.
        let library =
            unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        let found = (!library.is_null()).then(|| looked_up(library))?;
        (!found.is_null()).then_some(found)
    })
}

/// Everything accelerated that this process has becomes the kernel's, and so does what is new.
fn leave() {
    MADE.store(true, Ordering::Release);
    let all: Vec<c_int> = fdtable::entries(0, u32::MAX - 1)
        .map(|(fd, _)| fd)
        .collect();
    for fd in all {
        let_go(fd);
    }
}

fn let_go(fd: c_int) {
    match fdtable::look(fd) {
        Entry::Udp(endpoint) => decide::release_all(endpoint),
        Entry::Listener(endpoint) => {
            // Others who have it accept from the kernel's queue too, after what they have in ours.
            tcp::heir::lend(endpoint, true);
            tcp::listen::give_up(fd, endpoint);
        }
        Entry::Tcp(endpoint) => {
            tcp::handover::hand_over(fd, endpoint, FallThrough::IoUring);
            return;
        }
        Entry::Guest => {
            if let Entry::Tcp(endpoint) = tcp::guest::stays(fd, FallThrough::IoUring) {
                tcp::handover::hand_over(fd, endpoint, FallThrough::IoUring);
            }
            return;
        }
        Entry::Candidate | Entry::Bound | Entry::TcpCandidate | Entry::Heir => {
            fdtable::set(fd, Entry::Other);
        }
        _ => return,
    }
    report::refused(fd, FallThrough::IoUring);
}
