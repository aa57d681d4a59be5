//! Descriptors that leave this process by SCM_RIGHTS.
//!
//! The receiver may be any program, so what is passed must be a plain kernel socket: an accelerated
//! one goes to the kernel before it is sent. A listener is one in any case; its steering ends,
//! until a receiver has its endpoint too.

#![expect(unsafe_code, reason = "UNSAFETY: walks the caller's control buffer")]

use bypass_proto::reason::FallThrough;
use libc::{SCM_RIGHTS, SOL_SOCKET, msghdr};

use crate::address::is_nowhere;
use crate::fdtable::{self, Entry};
use crate::{decide, report, tcp};

/// Hands over accelerated sockets that this message carries.
///
/// # Safety
/// `message` is null or the caller's message.
#[inline]
pub unsafe fn about_to_pass(message: *const msghdr) {
    // SAFETY: the caller's promise.
    unsafe { each_passed(message, hand_over) };
}

/// Takes part in the listeners that a received message carries.
///
/// # Safety
/// `message` is the caller's message as the kernel has filled it in.
#[inline]
pub unsafe fn received(message: *const msghdr) {
    // SAFETY: the caller's promise.
    unsafe { each_passed(message, tcp::heir::received) };
}

/// # Safety
/// `message` is null or the caller's message.
#[inline]
unsafe fn each_passed(message: *const msghdr, each: fn(i32)) {
    if is_nowhere(message) {
        return;
    }
    // SAFETY: the caller's message.
    let message = unsafe { &*message };
    if message.msg_controllen != 0 && !is_nowhere(message.msg_control) {
        // SAFETY: as above.
        unsafe { look(message, each) };
    }
}

/// # Safety
/// The control buffer is readable.
#[cold]
unsafe fn look(message: &msghdr, each: fn(i32)) {
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR stay inside the buffer.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: a header inside the buffer.
        let (level, kind, length) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len,
            )
        };
        if level == SOL_SOCKET && kind == SCM_RIGHTS {
            // SAFETY: the data of this header.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<i32>();
            let count = length.saturating_sub(size_of::<libc::cmsghdr>()) / size_of::<i32>();
            for index in 0..count {
                // SAFETY: `index` is below the count of descriptors.
                each(unsafe { data.add(index).read_unaligned() });
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
}

fn hand_over(fd: i32) {
    match fdtable::get(fd) {
        Entry::Udp(endpoint) => {
            decide::release_all(endpoint);
            report::refused(fd, FallThrough::Passed);
        }
        Entry::Listener(endpoint) => {
            // It goes on here: what its queue holds is accepted, and then the kernel's queue.
            tcp::heir::lend(endpoint, true);
        }
        Entry::Tcp(endpoint) => {
            tcp::handover::hand_over(fd, endpoint, FallThrough::Passed);
        }
        Entry::Guest => {
            if let Entry::Tcp(endpoint) = tcp::guest::stays(fd, FallThrough::Passed) {
                tcp::handover::hand_over(fd, endpoint, FallThrough::Passed);
            }
        }
        Entry::Candidate | Entry::Bound | Entry::TcpCandidate => {
            fdtable::set(fd, Entry::Other);
            report::refused(fd, FallThrough::Passed);
        }
        _ => {}
    }
}
