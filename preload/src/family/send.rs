//! send, sendto, sendmsg, sendmmsg.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become one msghdr"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::mem::zeroed;

use bypass_stack::EndpointId;
use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use rustix::io::Errno;

use crate::address::is_nowhere;
use crate::errno::{Answer, from_c, to_c, to_int};
use crate::fdtable::{self, Entry};
use crate::{decide, passing, symbols, tcp, udp};

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
    let entry = decide::ready(fd);
    // sendto refuses what sendmsg would cut.
    let is_long = !address.is_null() && address_len as usize > size_of::<libc::sockaddr_storage>();
    let is_ours = is_fast(entry, flags) || ours(entry).is_some();
    if is_long || !is_ours {
        // SAFETY: the caller's arguments.
        let sent =
            unsafe { symbols::sendto::original()(fd, buffer, len, flags, address, address_len) };
        decide::after_first_send(fd, sent);
        return sent;
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
    to_c(unsafe { any(fd, entry, &message, flags) })
}

/// Whether the send connects a TCP socket.
fn is_fast(entry: Entry, flags: c_int) -> bool {
    flags & libc::MSG_FASTOPEN != 0 && entry == Entry::TcpCandidate
}

/// One send on a socket that is accelerated, or may be with this send.
///
/// # Safety
/// `message` describes buffers that the caller may read.
unsafe fn any(fd: c_int, entry: Entry, message: &msghdr, flags: c_int) -> Answer {
    match entry {
        Entry::Udp(endpoint) | Entry::Tcp(endpoint) => {
            // SAFETY: the caller's promise.
            unsafe { one(fd, (entry, endpoint), message, flags) }
        }
        // SAFETY: the caller's promise.
        Entry::Guest => unsafe { tcp::guest::send(fd, message, flags) },
        _ => {
            // SAFETY: the caller's promise.
            let sent = unsafe { tcp::fast_open::connect(fd, message, flags) };
            if let Some(answer) = sent {
                return answer;
            }
            // SAFETY: the caller's promise.
            from_c(unsafe { symbols::sendmsg::original()(fd, message, flags) })
        }
    }
}

/// The endpoint of a socket of which the sends are ours; of a guest none.
#[inline]
fn ours(entry: Entry) -> Option<EndpointId> {
    match entry {
        Entry::Udp(endpoint) | Entry::Tcp(endpoint) => Some(endpoint),
        Entry::Guest => Some(EndpointId::NONE),
        _ => None,
    }
}

/// One send on a connection that has moved: by who has it now.
///
/// # Safety
/// As [`one`].
#[cold]
pub unsafe fn again(fd: c_int, message: &msghdr, flags: c_int) -> Answer {
    let entry = fdtable::get(fd);
    match ours(entry) {
        // SAFETY: the caller's promise.
        Some(endpoint) => unsafe { one(fd, (entry, endpoint), message, flags) },
        // SAFETY: the caller's promise.
        None => from_c(unsafe { symbols::sendmsg::original()(fd, message, flags) }),
    }
}

/// One send on an accelerated socket or a guest.
///
/// # Safety
/// `message` describes buffers that the caller may read.
pub(super) unsafe fn one(
    fd: c_int,
    (entry, endpoint): (Entry, EndpointId),
    message: &msghdr,
    flags: c_int,
) -> Answer {
    match entry {
        Entry::Tcp(_) => {
            // SAFETY: the caller's promise.
            match unsafe { tcp::send::one(fd, endpoint, message, flags) } {
                Err(Errno::BADF) if tcp::handover::moved(fd, endpoint) => {
                    // SAFETY: the caller's promise.
                    unsafe { again(fd, message, flags) }
                }
                answer => answer,
            }
        }
        // SAFETY: the caller's promise.
        Entry::Guest => unsafe { tcp::guest::send(fd, message, flags) },
        // SAFETY: the caller's promise.
        _ => unsafe { udp::send::one(fd, endpoint, message, flags) },
    }
}

pub unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's message.
        unsafe { passing::about_to_pass(message) };
        // SAFETY: the caller's arguments.
        return unsafe { symbols::sendmsg::original()(fd, message, flags) };
    }
    let entry = decide::ready(fd);
    if !is_fast(entry, flags) && ours(entry).is_none() {
        // SAFETY: the caller's arguments.
        let sent = unsafe { symbols::sendmsg::original()(fd, message, flags) };
        decide::after_first_send(fd, sent);
        return sent;
    }
    if is_nowhere(message) {
        return to_c(Err(Errno::FAULT));
    }
    // SAFETY: the caller's message, which describes its own buffers.
    to_c(unsafe { any(fd, entry, &*message, flags) })
}

pub unsafe fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    let entry = decide::ready(fd);
    let Some(endpoint) = ours(entry) else {
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
    if !matches!(entry, Entry::Udp(_)) {
        // SAFETY: the messages describe the caller's own buffers.
        return to_int(unsafe { stream_many(fd, (entry, endpoint), messages, flags) });
    }
    // SAFETY: the messages describe the caller's own buffers.
    to_int(unsafe { udp::send::many(fd, endpoint, messages, flags) })
}

/// sendmmsg on a connection: one send after the other.
///
/// # Safety
/// The messages describe buffers that the caller may read.
unsafe fn stream_many(
    fd: c_int,
    (entry, endpoint): (Entry, EndpointId),
    messages: &mut [mmsghdr],
    flags: c_int,
) -> Answer {
    let mut done = 0;
    for message in messages {
        // SAFETY: the caller's promise.
        match unsafe { one(fd, (entry, endpoint), &message.msg_hdr, flags) } {
            Ok(size) => message.msg_len = size as u32,
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
        done += 1;
    }
    Ok(done)
}
