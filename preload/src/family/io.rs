//! read, write and their relatives; sendfile and splice.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become one msghdr"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::mem::zeroed;

use libc::{iovec, loff_t, msghdr, off_t, size_t, ssize_t};
use rustix::io::Errno;

use crate::address::is_nowhere;
use crate::errno::{set, to_c};
use crate::fdtable::{self, Entry};
use crate::{decide, shadow, symbols, tcp, udp};

pub unsafe fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::read::original()(fd, buffer, len) };
    }
    match identity(fd) {
        Entry::Udp(_) | Entry::Tcp(_) if len == 0 => 0,
        // SAFETY: read on a socket is recv without flags.
        Entry::Udp(_) | Entry::Tcp(_) | Entry::Guest => unsafe {
            super::recv::recv(fd, buffer, len, 0)
        },
        Entry::Private => hidden(),
        // SAFETY: the caller's arguments.
        _ => unsafe { symbols::read::original()(fd, buffer, len) },
    }
}

/// What the number is, asked again of the kernel when we believe it is an accelerated socket.
///
/// A close inside libc (fclose) is not seen, and the number may be a file by now, which is read and
/// written by the calls of this file: its data must never go to the old socket. The calls that only
/// sockets take need no such question, for new sockets are seen. (A connection is asked about
/// nothing: the question would cost more than the call.)
fn identity(fd: c_int) -> Entry {
    match decide::ready(fd) {
        Entry::Udp(_) if !shadow::is_udp(fd) => {
            super::fd::forget(fd);
            Entry::Other
        }
        entry => entry,
    }
}

/// One of our descriptors: to the program the number is closed.
fn hidden() -> ssize_t {
    set(Errno::BADF);
    -1
}

pub unsafe fn read_chk(fd: c_int, buffer: *mut c_void, len: size_t, size: size_t) -> ssize_t {
    if fdtable::falls_through(fd) || len > size {
        // SAFETY: the caller's arguments; libc's own check ends the program on overflow.
        return unsafe { symbols::__read_chk::original()(fd, buffer, len, size) };
    }
    // SAFETY: the length was checked.
    unsafe { read(fd, buffer, len) }
}

pub unsafe fn readv(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t {
    if !fdtable::falls_through(fd)
        // SAFETY: the caller's vectors.
        && let Some(result) = unsafe { read_vectors(fd, vectors, count, 0) }
    {
        return result;
    }
    // SAFETY: the caller's arguments.
    unsafe { symbols::readv::original()(fd, vectors, count) }
}

/// With an offset it is no call for sockets, and the kernel says so.
pub unsafe fn preadv2(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    if !fdtable::falls_through(fd)
        && let Some(flags) = message_flags(offset, flags)
        // SAFETY: the caller's vectors.
        && let Some(result) = unsafe { read_vectors(fd, vectors, count, flags) }
    {
        return result;
    }
    // SAFETY: the caller's arguments.
    unsafe { symbols::preadv2::original()(fd, vectors, count, offset, flags) }
}

/// The flags of a recvmsg or sendmsg that does what preadv2 or pwritev2 does with these; `None`
/// where the kernel refuses: an offset, or a flag that no socket knows.
fn message_flags(offset: off_t, flags: c_int) -> Option<c_int> {
    const OF_FILES: c_int = libc::RWF_HIPRI | libc::RWF_DSYNC | libc::RWF_SYNC | libc::RWF_APPEND;
    let is_known = offset == -1 && flags & !(OF_FILES | libc::RWF_NOWAIT) == 0;
    is_known.then_some(if flags & libc::RWF_NOWAIT == 0 {
        0
    } else {
        libc::MSG_DONTWAIT
    })
}

/// Receives into vectors; `None` when that is not ours.
///
/// # Safety
/// As readv.
unsafe fn read_vectors(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    flags: c_int,
) -> Option<ssize_t> {
    let entry = identity(fd);
    let mut message = message_of(vectors, count)?;
    Some(match entry {
        Entry::Udp(endpoint) => {
            // SAFETY: the vectors are the caller's buffers.
            to_c(unsafe { udp::receive::one(fd, endpoint, &mut message, flags) })
        }
        // SAFETY: the vectors are the caller's.
        Entry::Tcp(_) | Entry::Guest if unsafe { is_empty(&message) } => 0,
        Entry::Tcp(endpoint) => {
            // SAFETY: the vectors are the caller's buffers.
            to_c(unsafe { super::recv::one(fd, (entry, endpoint), &mut message, flags) })
        }
        // SAFETY: the vectors are the caller's buffers.
        Entry::Guest => to_c(unsafe { super::recv::again(fd, &mut message, flags) }),
        _ => return None,
    })
}

pub unsafe fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::write::original()(fd, buffer, len) };
    }
    match identity(fd) {
        // SAFETY: write on a socket is send without flags.
        Entry::Udp(_) | Entry::Tcp(_) | Entry::Guest => unsafe {
            super::send::send(fd, buffer, len, 0)
        },
        Entry::Private => hidden(),
        // SAFETY: the caller's arguments.
        _ => unsafe { symbols::write::original()(fd, buffer, len) },
    }
}

pub unsafe fn writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t {
    if !fdtable::falls_through(fd)
        // SAFETY: the caller's vectors.
        && let Some(result) = unsafe { write_vectors(fd, vectors, count, 0) }
    {
        return result;
    }
    // SAFETY: the caller's arguments.
    unsafe { symbols::writev::original()(fd, vectors, count) }
}

/// As preadv2.
pub unsafe fn pwritev2(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    if !fdtable::falls_through(fd)
        && let Some(flags) = message_flags(offset, flags)
        // SAFETY: the caller's vectors.
        && let Some(result) = unsafe { write_vectors(fd, vectors, count, flags) }
    {
        return result;
    }
    // SAFETY: the caller's arguments.
    unsafe { symbols::pwritev2::original()(fd, vectors, count, offset, flags) }
}

/// Sends what the vectors hold; `None` when that is not ours.
///
/// # Safety
/// As writev.
unsafe fn write_vectors(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    flags: c_int,
) -> Option<ssize_t> {
    let entry = identity(fd);
    let message = message_of(vectors, count)?;
    Some(match entry {
        // SAFETY: the vectors are the caller's.
        Entry::Udp(_) | Entry::Tcp(_) | Entry::Guest if unsafe { is_empty(&message) } => 0,
        Entry::Udp(endpoint) => {
            // SAFETY: the vectors are the caller's buffers.
            to_c(unsafe { udp::send::one(fd, endpoint, &message, flags) })
        }
        Entry::Tcp(endpoint) => {
            // SAFETY: the vectors are the caller's buffers.
            to_c(unsafe { super::send::one(fd, (entry, endpoint), &message, flags) })
        }
        // SAFETY: the vectors are the caller's buffers.
        Entry::Guest => to_c(unsafe { super::send::again(fd, &message, flags) }),
        _ => return None,
    })
}

/// Whether the vectors hold nothing: writev then sends nothing (fs/read_write.c), unlike write.
///
/// # Safety
/// The vectors are readable.
unsafe fn is_empty(message: &msghdr) -> bool {
    // SAFETY: every index is below the array's length.
    (0..message.msg_iovlen).all(|index| unsafe { (*message.msg_iov.add(index)).iov_len } == 0)
}

/// A message over the vectors, or `None` for arguments that the kernel refuses.
fn message_of(vectors: *const iovec, count: c_int) -> Option<msghdr> {
    if is_nowhere(vectors) || !(0..=1024).contains(&count) {
        return None;
    }
    // SAFETY: plain data; all zero is a value.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = vectors.cast_mut();
    message.msg_iovlen = count as usize;
    Some(message)
}

pub unsafe fn sendfile(out: c_int, input: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    let entry = fdtable::get(out);
    if let Entry::Tcp(endpoint) = entry {
        // SAFETY: the caller's offset.
        let answer = unsafe { tcp::send::file(out, Some(endpoint), input, offset, count) };
        if answer != Err(Errno::BADF) || !tcp::handover::moved(out, endpoint) {
            return to_c(answer);
        }
        // SAFETY: the caller's arguments.
        return unsafe { sendfile(out, input, offset, count) };
    }
    if entry == Entry::Guest {
        // SAFETY: the caller's offset.
        return to_c(unsafe { tcp::send::file(out, None, input, offset, count) });
    }
    // SAFETY: the caller's arguments. To a UDP socket the kernel sends by the shadow, which has
    // the same address: the peer sees no difference.
    unsafe { symbols::sendfile64::original()(out, input, offset, count) }
}

pub unsafe fn splice(
    input: c_int,
    input_offset: *mut loff_t,
    out: c_int,
    out_offset: *mut loff_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    for fd in [out, input] {
        // SAFETY: the caller's arguments.
        let answer = tcp::guest::spliced(fd, flags, || unsafe {
            super::raw::splice((input, input_offset), (out, out_offset), len, flags)
        });
        if let Some(answer) = answer {
            return to_c(answer);
        }
    }
    if let Entry::Tcp(endpoint) = fdtable::get(out) {
        if !input_offset.is_null() {
            return to_c(Err(Errno::SPIPE));
        }
        if !out_offset.is_null() {
            return to_c(Err(Errno::INVAL));
        }
        let answer = tcp::send::from_pipe(out, endpoint, input, len, flags);
        if answer != Err(Errno::BADF) || !tcp::handover::moved(out, endpoint) {
            return to_c(answer);
        }
    }
    if let Entry::Tcp(endpoint) = fdtable::get(input) {
        if !out_offset.is_null() {
            return to_c(Err(Errno::SPIPE));
        }
        if !input_offset.is_null() {
            return to_c(Err(Errno::INVAL));
        }
        let answer = tcp::receive::into_pipe(input, endpoint, out, len, flags);
        if answer != Err(Errno::BADF) || !tcp::handover::moved(input, endpoint) {
            return to_c(answer);
        }
    }
    if !fdtable::falls_through(input) && matches!(identity(input), Entry::Udp(_)) {
        return from_socket(input, out, len);
    }
    // SAFETY: the caller's arguments. Into a UDP socket it is a send by the shadow.
    unsafe { symbols::splice::original()(input, input_offset, out, out_offset, len, flags) }
}

/// splice out of an accelerated socket: one datagram, by way of a buffer.
fn from_socket(input: c_int, out: c_int, len: size_t) -> ssize_t {
    /// No datagram is larger.
    const LARGEST: usize = 65_536;
    let mut buffer = vec![0_u8; len.min(LARGEST)];
    // SAFETY: the buffer is writable for its length.
    let got = unsafe { super::recv::recv(input, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if got <= 0 {
        return got;
    }
    // SAFETY: `got` bytes were received.
    unsafe { symbols::write::original()(out, buffer.as_ptr().cast(), got as size_t) }
}
