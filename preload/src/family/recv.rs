//! recv, recvfrom, recvmsg, recvmmsg and their fortified forms.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become one msghdr"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::mem::zeroed;

use bypass_stack::EndpointId;
use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};
use rustix::io::Errno;

use crate::address::{is_nowhere, is_wild};
use crate::errno::{Answer, from_c, to_c, to_int};
use crate::fdtable::{self, Entry};
use crate::udp::receive;
use crate::{decide, passing, symbols, tcp};

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
    let entry = decide::ready(fd);
    let Some(endpoint) = ours(entry) else {
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
    let named = !address.is_null() && !is_nowhere(address_len);
    let mut negative = false;
    if named {
        message.msg_name = address.cast();
        // SAFETY: not null, the caller's to read.
        message.msg_namelen = unsafe { address_len.read() };
        negative = message.msg_namelen.cast_signed() < 0;
    }
    // SAFETY: `message` describes the caller's own buffers.
    let answer = unsafe { one(fd, (entry, endpoint), &mut message, flags) };
    if answer.is_ok() && negative {
        // As the kernel: what was received is lost to a bad length.
        return to_c(Err(Errno::INVAL));
    }
    if answer.is_ok() && named {
        // SAFETY: not null, the caller's to write.
        unsafe { address_len.write(message.msg_namelen) };
    } else if answer.is_ok() && !address.is_null() {
        // As the kernel: what was received is lost to a bad pointer.
        return to_c(Err(Errno::FAULT));
    }
    to_c(answer)
}

pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        let received = unsafe { symbols::recvmsg::original()(fd, message, flags) };
        if received >= 0 {
            // SAFETY: the kernel has filled it in.
            unsafe { passing::received(message) };
        }
        return received;
    }
    let entry = decide::ready(fd);
    let Some(endpoint) = ours(entry) else {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::recvmsg::original()(fd, message, flags) };
    };
    if is_nowhere(message) {
        return to_c(Err(Errno::FAULT));
    }
    // SAFETY: the caller's message.
    let message = unsafe { &mut *message };
    if !message.msg_name.is_null() && message.msg_namelen.cast_signed() < 0 {
        return to_c(Err(Errno::INVAL));
    }
    // SAFETY: it describes the caller's own buffers.
    to_c(unsafe { one(fd, (entry, endpoint), message, flags) })
}

/// The endpoint of a socket of which the receives are ours; of a guest none.
fn ours(entry: Entry) -> Option<EndpointId> {
    match entry {
        Entry::Udp(endpoint) | Entry::Tcp(endpoint) => Some(endpoint),
        Entry::Guest => Some(EndpointId::NONE),
        _ => None,
    }
}

/// One receive on a connection that has moved: by who has it now.
///
/// # Safety
/// As [`one`].
#[cold]
pub unsafe fn again(fd: c_int, message: &mut msghdr, flags: c_int) -> Answer {
    let entry = fdtable::get(fd);
    match ours(entry) {
        // SAFETY: the caller's promise.
        Some(endpoint) => unsafe { one(fd, (entry, endpoint), message, flags) },
        // SAFETY: the caller's promise.
        None => from_c(unsafe { symbols::recvmsg::original()(fd, message, flags) }),
    }
}

/// One receive on an accelerated socket or a guest.
///
/// # Safety
/// `message` describes buffers that the caller may write.
pub(super) unsafe fn one(
    fd: c_int,
    (entry, endpoint): (Entry, EndpointId),
    message: &mut msghdr,
    flags: c_int,
) -> Answer {
    match entry {
        Entry::Tcp(_) => {
            // SAFETY: the caller's promise.
            match unsafe { tcp::receive::one(endpoint, fd, message, flags) } {
                Err(Errno::BADF) if tcp::handover::moved(fd, endpoint) => {
                    // SAFETY: the caller's promise.
                    unsafe { again(fd, message, flags) }
                }
                answer => answer,
            }
        }
        // SAFETY: the caller's promise.
        Entry::Guest => unsafe { tcp::guest::receive(fd, message, flags) },
        // SAFETY: the caller's promise.
        _ => unsafe { receive::one(fd, endpoint, message, flags) },
    }
}

pub unsafe fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let entry = decide::ready(fd);
    let Some(endpoint) = ours(entry) else {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::recvmmsg::original()(fd, messages, count, flags, timeout) };
    };
    if count == 0 {
        return 0;
    }
    if is_nowhere(messages) || is_wild(timeout) {
        return to_int(Err(Errno::FAULT));
    }
    // The kernel cuts the count to UIO_MAXIOV.
    let count = count.min(1024) as usize;
    // SAFETY: the caller's array of `count` messages.
    let messages = unsafe { std::slice::from_raw_parts_mut(messages, count) };
    if !matches!(entry, Entry::Udp(_)) {
        // SAFETY: the messages describe the caller's own buffers.
        return to_int(unsafe { stream_many(fd, (entry, endpoint), messages, flags) });
    }
    // SAFETY: null or the caller's timeout.
    let timeout = unsafe { timeout.as_mut() };
    // SAFETY: the messages describe the caller's own buffers.
    to_int(unsafe { receive::many(fd, endpoint, messages, flags, timeout) })
}

/// recvmmsg on a connection: one receive after the other, the first alone waiting.
///
/// # Safety
/// The messages describe buffers that the caller may write.
unsafe fn stream_many(
    fd: c_int,
    (entry, endpoint): (Entry, EndpointId),
    messages: &mut [mmsghdr],
    flags: c_int,
) -> Answer {
    let mut flags = flags & !libc::MSG_WAITFORONE;
    let mut done = 0;
    for message in messages {
        // SAFETY: the caller's promise.
        match unsafe { one(fd, (entry, endpoint), &mut message.msg_hdr, flags) } {
            Ok(size) => message.msg_len = size as u32,
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
        done += 1;
        flags |= libc::MSG_DONTWAIT;
    }
    Ok(done)
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
