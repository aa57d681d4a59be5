//! send, sendto, sendmsg, sendmmsg.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become one msghdr"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::mem::zeroed;

use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use rustix::io::Errno;

use crate::address::is_nowhere;
use crate::errno::{to_c, to_int};
use crate::fdtable::{self, Entry};
use crate::{decide, passing, symbols, udp};

pub unsafe fn send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::send::original()(fd, buffer, len, flags) };
    }
    // SAFETY: send is sendto without an address.
    unsafe { sendto(fd, buffer, len, flags, std::ptr::null(), 0) }
}

pub unsafe fn sendto(
    fd: c_int,
    buffer: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe {
            symbols::sendto::original()(fd, buffer, len, flags, address, address_len)
        };
    }
    let Entry::Udp(endpoint) = decide::ready(fd) else {
        // SAFETY: the caller's arguments.
        let sent =
            unsafe { symbols::sendto::original()(fd, buffer, len, flags, address, address_len) };
        decide::after_first_send(fd, sent);
        return sent;
    };
    if address_len as usize > size_of::<libc::sockaddr_storage>() {
        // sendto refuses what sendmsg would cut.
        // SAFETY: the caller's arguments.
        return unsafe {
            symbols::sendto::original()(fd, buffer, len, flags, address, address_len)
        };
    }
    let mut vector = iovec {
        iov_base: buffer.cast_mut(),
        iov_len: len,
    };
    // SAFETY: plain data; all zero is a value.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_name = address.cast_mut().cast();
    message.msg_namelen = address_len;
    // SAFETY: `message` describes the caller's own buffers.
    to_c(unsafe { udp::send::one(fd, endpoint, &message, flags) })
}

pub unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's message.
        unsafe { passing::about_to_pass(message) };
        // SAFETY: the caller's arguments.
        return unsafe { symbols::sendmsg::original()(fd, message, flags) };
    }
    let Entry::Udp(endpoint) = decide::ready(fd) else {
        // SAFETY: the caller's arguments.
        let sent = unsafe { symbols::sendmsg::original()(fd, message, flags) };
        decide::after_first_send(fd, sent);
        return sent;
    };
    if is_nowhere(message) {
        return to_c(Err(Errno::FAULT));
    }
    // SAFETY: the caller's message, which describes its own buffers.
    to_c(unsafe { udp::send::one(fd, endpoint, &*message, flags) })
}

pub unsafe fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    let Entry::Udp(endpoint) = decide::ready(fd) else {
        // SAFETY: the caller's arguments.
        let sent = unsafe { symbols::sendmmsg::original()(fd, messages, count, flags) };
        decide::after_first_send(fd, sent as ssize_t);
        return sent;
    };
    if count == 0 {
        return 0;
    }
    if is_nowhere(messages) {
        return to_int(Err(Errno::FAULT));
    }
    // The kernel cuts the count to UIO_MAXIOV.
    let count = count.min(1024) as usize;
    // SAFETY: the caller's array of `count` messages.
    let messages = unsafe { std::slice::from_raw_parts_mut(messages, count) };
    // SAFETY: the messages describe the caller's own buffers.
    to_int(unsafe { udp::send::many(fd, endpoint, messages, flags) })
}
