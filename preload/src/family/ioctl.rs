//! ioctl: FIONBIO and FIONREAD are ours to answer, all else is the shadow's.

#![expect(unsafe_code, reason = "UNSAFETY: reads and writes the caller's int")]

use std::ffi::{c_int, c_ulong};

use libc::size_t;

use crate::fdtable::{self, Entry};
use crate::{context, decide, shadow, symbols};

pub unsafe fn ioctl(fd: c_int, request: c_ulong, argument: size_t) -> c_int {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::ioctl::original()(fd, request, argument) };
    }
    // SAFETY: the caller's arguments. The kernel answers first: it validates the pointer.
    let result = unsafe { symbols::ioctl::original()(fd, request, argument) };
    if result != 0 {
        return result;
    }
    match request {
        libc::FIONREAD => {
            // SAFETY: the kernel has just written this int.
            unsafe { waiting_bytes(fd, argument as *mut c_int) };
        }
        libc::FIONBIO => nonblocking_changed(fd),
        _ => {}
    }
    result
}

/// The size of the next datagram: the stack's when it has one, else what the kernel wrote.
///
/// # Safety
/// `to` is writable.
unsafe fn waiting_bytes(fd: c_int, to: *mut c_int) {
    if let Entry::Udp(endpoint) = decide::ready(fd)
        && let Some(joined) = context::joined()
        && let Ok(mut locked) = joined.attachment.lock()
    {
        if matches!(locked.stack().udp_front(endpoint), Ok(None)) {
            locked.pump(bypass_runtime::clock::now());
        }
        if let Ok(Some(datagram)) = locked.stack().udp_front(endpoint) {
            // SAFETY: the caller's promise.
            unsafe { to.write(datagram.len as c_int) };
        }
    }
}

/// Follows O_NONBLOCK after a change of the open file description.
pub fn nonblocking_changed(fd: c_int) {
    if let Entry::Udp(endpoint) = fdtable::get(fd)
        && let Some(joined) = context::joined()
    {
        let now = shadow::is_nonblocking(fd);
        if let Ok(mut locked) = joined.attachment.lock()
            && let Ok(options) = locked.stack().udp_options(endpoint)
        {
            if now {
                options.shim_flags |= shadow::flags::NONBLOCKING;
            } else {
                options.shim_flags &= !shadow::flags::NONBLOCKING;
            }
        }
    }
}
