//! recv, recvfrom, recvmsg, recvmmsg and their fortified forms.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become one msghdr"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::mem::zeroed;

use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};
use rustix::io::Errno;

use crate::address::is_nowhere;
use crate::errno::{to_c, to_int};
use crate::fdtable::{self, Entry};
use crate::udp::receive;
use crate::{decide, symbols};

pub unsafe fn recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::recv::original()(fd, buffer, len, flags) };
    }
    // SAFETY: recv is recvfrom without an address.
    unsafe {
        recvfrom(
            fd,
            buffer,
            len,
            flags,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    }
}

pub unsafe fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let Entry::Udp(endpoint) = decide::ready(fd) else {
        // SAFETY: the caller's arguments.
        return unsafe {
            symbols::recvfrom::original()(fd, buffer, len, flags, address, address_len)
        };
    };
    let mut vector = iovec {
        iov_base: buffer,
        iov_len: len,
    };
    // SAFETY: plain data; all zero is a value.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    let named = !address.is_null() && !address_len.is_null();
    if named {
        message.msg_name = address.cast();
        // SAFETY: not null, the caller's to read.
        message.msg_namelen = unsafe { address_len.read() };
    }
    // SAFETY: `message` describes the caller's own buffers.
    let answer = unsafe { receive::one(fd, endpoint, &mut message, flags) };
    if answer.is_ok() && named {
        // SAFETY: not null, the caller's to write.
        unsafe { address_len.write(message.msg_namelen) };
    }
    to_c(answer)
}

pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::recvmsg::original()(fd, message, flags) };
    }
    let Entry::Udp(endpoint) = decide::ready(fd) else {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::recvmsg::original()(fd, message, flags) };
    };
    if is_nowhere(message) {
        return to_c(Err(Errno::FAULT));
    }
    // SAFETY: the caller's message, which describes its own buffers.
    to_c(unsafe { receive::one(fd, endpoint, &mut *message, flags) })
}

pub unsafe fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let Entry::Udp(endpoint) = decide::ready(fd) else {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::recvmmsg::original()(fd, messages, count, flags, timeout) };
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
    // SAFETY: null or the caller's timeout.
    let timeout = unsafe { timeout.as_mut() };
    // SAFETY: the messages describe the caller's own buffers.
    to_int(unsafe { receive::many(fd, endpoint, messages, flags, timeout) })
}

/// What a fortified program does when it would overrun its buffer.
fn overflow() -> ! {
    // SAFETY: ends the program, as libc's own check does.
    unsafe { libc::abort() }
}

pub unsafe fn recv_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    size: size_t,
    flags: c_int,
) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::__recv_chk::original()(fd, buffer, len, size, flags) };
    }
    if len > size {
        overflow();
    }
    // SAFETY: the length was checked.
    unsafe { recv(fd, buffer, len, flags) }
}

pub unsafe fn recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    size: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe {
            symbols::__recvfrom_chk::original()(fd, buffer, len, size, flags, address, address_len)
        };
    }
    if len > size {
        overflow();
    }
    // SAFETY: the length was checked.
    unsafe { recvfrom(fd, buffer, len, flags, address, address_len) }
}
