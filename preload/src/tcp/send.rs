//! Sending on a connection (net/ipv4/tcp.c:tcp_sendmsg_locked), and files into it.
//!
//! Bytes are copied once, from the caller's vectors into the chunks that stay until they are
//! acknowledged.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads the buffers that a msghdr names; libc's originals"
)]

use std::ffi::c_int;
use std::mem::MaybeUninit;

use bypass_stack::{EndpointId, TcpError, TcpOptions, event};
use libc::{
    MSG_DONTWAIT, MSG_EOR, MSG_FASTOPEN, MSG_MORE, MSG_NOSIGNAL, MSG_OOB, iovec, msghdr, off_t,
    size_t,
};
use rustix::io::Errno;

use super::notices::Sending;
use super::{burst, fast_open, guest, with_stack};
use crate::address::{self, is_nowhere, is_unreachable};
use crate::errno::{Answer, from_c};
use crate::symbols;
use crate::udp::send::Gather;
use crate::wait::call::Call;
use crate::wait::{self, Woken};

/// Bytes of a file that are read at a time.
const PIECE: usize = 32 * 1024;
/// Most bytes of one call (MAX_RW_COUNT of linux/fs.h).
const MOST: usize = 0x7fff_f000;

/// sendmsg on a connection.
///
/// # Errors
/// As the kernel's.
///
/// # Safety
/// `message` describes buffers that the caller may read.
pub unsafe fn one(fd: c_int, endpoint: EndpointId, message: &msghdr, flags: c_int) -> Answer {
    // SAFETY: the caller's promise.
    let (total, mut gather, stamps) = unsafe { judged(message) }?;
    let fill = &mut |to: &mut [u8]| gather.copy(to);
    if flags & MSG_FASTOPEN != 0 {
        // SAFETY: the name was judged.
        let address = unsafe { address::read(message.msg_name.cast(), message.msg_namelen) };
        fast_open::on_connection(fd, endpoint, address, flags)?;
    }
    told((fd, endpoint), total, flags & !MSG_FASTOPEN, stamps, fill)
}

/// What a message has to send: how many bytes, from where, and the time stamps it asks for.
///
/// # Errors
/// As the kernel's.
///
/// # Safety
/// `message` describes buffers that the caller may read.
pub(super) unsafe fn judged(message: &msghdr) -> Result<(usize, Gather<'_>, Option<u32>), Errno> {
    if message.msg_iovlen > 1024 {
        return Err(Errno::MSGSIZE);
    }
    if message.msg_namelen > 0 && !message.msg_name.is_null() && is_nowhere(message.msg_name) {
        return Err(Errno::FAULT);
    }
    let vectors: &[iovec] = if message.msg_iovlen == 0 {
        &[]
    } else if is_nowhere(message.msg_iov) {
        return Err(Errno::FAULT);
    } else {
        // SAFETY: the caller's array of `msg_iovlen` vectors.
        unsafe { std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen) }
    };
    if vectors.iter().any(is_unreachable) {
        return Err(Errno::FAULT);
    }
    let mut stamps = None;
    if message.msg_controllen != 0 {
        // SAFETY: the caller's promise.
        stamps = unsafe { super::control::judge(message) }?;
    }
    let total = vectors
        .iter()
        .fold(0_usize, |sum, vector| sum.saturating_add(vector.iov_len))
        .min(MOST);
    Ok((total, Gather::new(vectors), stamps))
}

/// Sends `total` bytes that `fill` gives.
///
/// # Errors
/// As the kernel's.
pub fn stream(
    fd: c_int,
    endpoint: EndpointId,
    total: usize,
    flags: c_int,
    fill: &mut dyn FnMut(&mut [u8]),
) -> Answer {
    told((fd, endpoint), total, flags, None, fill)
}

/// The same, and the error queue tells of it what the socket asks for, or `stamps`.
fn told(
    (fd, endpoint): (c_int, EndpointId),
    total: usize,
    flags: c_int,
    stamps: Option<u32>,
    fill: &mut dyn FnMut(&mut [u8]),
) -> Answer {
    let mut sending = if total > 0 {
        Sending::begins(endpoint, flags, stamps)?
    } else {
        Sending::default()
    };
    let answer = bytes((fd, endpoint), total, flags, &mut sending, fill);
    if answer.is_ok_and(|sent| sent > 0) {
        sending.ends(endpoint);
    }
    answer
}

/// The same, and `sending` has told what it has to tell, unless the send was cut short.
pub(super) fn bytes(
    (fd, endpoint): (c_int, EndpointId),
    total: usize,
    flags: c_int,
    sending: &mut Sending,
    fill: &mut dyn FnMut(&mut [u8]),
) -> Answer {
    burst::sends();
    let mut done = 0;
    let mut deadline = None;
    let mut call = Call::default();
    loop {
        let some = some_bytes(endpoint, (done, total), flags, sending, fill);
        let Some((sent, options)) = some else {
            return partly(done, Errno::AGAIN);
        };
        match sent {
            Ok(count) => done += count,
            Err(TcpError::WouldBlock) => {}
            Err(TcpError::Stale) => return partly(done, Errno::BADF),
            Err(TcpError::Errno(_)) if done > 0 => return Ok(done as isize),
            Err(TcpError::Errno(libc::EINPROGRESS)) => {
                return fast_open::first(fd, endpoint, (total, flags), fill);
            }
            Err(TcpError::Errno(errno)) => return Err(broken(errno, flags)),
        }
        if done >= total {
            return Ok(done as isize);
        }
        let Some(options) = options else {
            return partly(done, Errno::BADF);
        };
        // What has been taken is told, not what acknowledgements that come now would make room for.
        if !waits(&options, flags) {
            return partly(done, Errno::AGAIN);
        }
        if sent.is_ok() {
            continue;
        }
        if deadline.is_none() {
            deadline = super::deadline(options.sndtimeo_ms);
        }
        match wait::block::until(fd, endpoint, event::OUT, false, (deadline, &mut call)) {
            Woken::Ready => {}
            Woken::TimedOut => return partly(done, Errno::AGAIN),
            Woken::Interrupted if done == 0 && super::restarts(options.sndtimeo_ms) => {}
            Woken::Interrupted => return partly(done, Errno::INTR),
        }
    }
}

/// Writes what there is room for, of what is left of `total` bytes: how many, and the options when
/// that is not all. `None`: the stack is not to be had now.
#[inline]
fn some_bytes(
    endpoint: EndpointId,
    (done, total): (usize, usize),
    flags: c_int,
    sending: &mut Sending,
    fill: &mut dyn FnMut(&mut [u8]),
) -> Option<(Result<usize, TcpError>, Option<TcpOptions>)> {
    let more = flags & MSG_MORE != 0;
    let urgent = flags & MSG_OOB != 0;
    let left = total - done;
    with_stack(|_, locked, now| {
        let mut sent = Err(TcpError::WouldBlock);
        // What was sent is told first, the error by the next call.
        if done > 0 && has_error(locked.stack(), endpoint) {
            return (Err(TcpError::Stale), None);
        }
        for round in 0..2 {
            let later = locked.holds_back() && !more;
            let (stack, packets) = locked.parts();
            sent = if later && !urgent {
                stack.tcp_send_later(packets, endpoint, left, fill, now)
            } else if urgent {
                stack.tcp_send_urgent(packets, endpoint, left, fill, now)
            } else {
                stack.tcp_send(packets, endpoint, left, more, fill, now)
            };
            if round == 0 && sent == Err(TcpError::WouldBlock) {
                // Acknowledgements that wait in the queue may make room.
                locked.pump(now);
            } else {
                break;
            }
        }
        if sent != Ok(left) {
            let options = super::options_of(locked, endpoint);
            let is_over = options.is_some_and(|options| !waits(&options, flags));
            if is_over && done + sent.unwrap_or(0) > 0 {
                sending.ends_in(locked, endpoint, now);
            }
            return (sent, options);
        }
        if flags & MSG_EOR != 0 {
            let _ = locked.stack().tcp_end_record(endpoint);
        }
        sending.ends_in(locked, endpoint, now);
        (sent, None)
    })
}

/// Whether a send waits for room.
fn waits(options: &TcpOptions, flags: c_int) -> bool {
    !options.has(TcpOptions::NONBLOCKING) && flags & MSG_DONTWAIT == 0
}

/// Whether an error waits to be told.
fn has_error(stack: &bypass_stack::Stack<'_>, endpoint: EndpointId) -> bool {
    stack
        .tcp_status(endpoint)
        .is_ok_and(|status| status.error != 0)
}

/// What was sent, or the error when nothing was.
fn partly(done: usize, errno: Errno) -> Answer {
    if done > 0 {
        Ok(done as isize)
    } else {
        Err(errno)
    }
}

/// The error of a send; EPIPE comes with a signal (net/core/stream.c:sk_stream_error).
pub(super) fn broken(errno: i32, flags: c_int) -> Errno {
    if errno == libc::EPIPE && flags & MSG_NOSIGNAL == 0 {
        // SAFETY: this thread lives; the signal's number is valid.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGPIPE) };
    }
    Errno::from_raw_os_error(errno)
}

/// Room for a write now; `None` when the endpoint is gone.
pub fn room(endpoint: EndpointId) -> Option<usize> {
    let status = with_stack(|_, locked, now| {
        let mut status = locked.stack().tcp_status(endpoint);
        if status.is_ok_and(|status| status.send_space == 0) {
            locked.pump(now);
            status = locked.stack().tcp_status(endpoint);
        }
        if status.is_ok_and(|status| status.send_space == 0) {
            locked.stack().tcp_wait_for_room(endpoint, now);
        }
        status
    });
    Some(status?.ok()?.send_space as usize)
}

/// sendfile into a connection: the file by way of a buffer, no more at a time than there is room
/// for, so that nothing is read twice and the offset says what was sent. Without an endpoint it is
/// a guest.
///
/// # Errors
/// As the kernel's.
///
/// # Safety
/// `offset` is null or the caller's to read and write.
pub unsafe fn file(
    fd: c_int,
    endpoint: Option<EndpointId>,
    input: c_int,
    offset: *mut off_t,
    count: size_t,
) -> Answer {
    let explicit = !offset.is_null();
    if explicit && is_nowhere(offset) {
        return Err(Errno::FAULT);
    }
    let start = if explicit {
        // SAFETY: the caller's offset.
        unsafe { offset.read_unaligned() }
    } else {
        // SAFETY: plain integers.
        from_c(unsafe { libc::lseek(input, 0, libc::SEEK_CUR) } as isize)
            .map_err(|_| Errno::INVAL)? as off_t
    };
    if start < 0 {
        return Err(Errno::INVAL);
    }
    let mut at = start;
    let answer = pieces(fd, endpoint, input, &mut at, count.min(MOST));
    if explicit {
        // SAFETY: the caller's offset.
        unsafe { offset.write_unaligned(at) };
    } else if at != start {
        // SAFETY: plain integers.
        unsafe { libc::lseek(input, at, libc::SEEK_SET) };
    }
    answer
}

/// Where the file ends; far away for what has no size.
fn size_of_file(fd: c_int) -> off_t {
    // SAFETY: plain integers; all zero is a value.
    let mut told: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `told` is writable.
    let result = unsafe { libc::fstat(fd, &raw mut told) };
    if result == 0 && told.st_mode & libc::S_IFMT == libc::S_IFREG {
        told.st_size
    } else {
        off_t::MAX
    }
}

/// Bytes that one send takes now without waiting, or any number if it may wait; `None` when the
/// endpoint is gone.
fn room_for_one_call(endpoint: EndpointId) -> Option<usize> {
    let space = with_stack(|_, locked, _| {
        let options = super::options_of(locked, endpoint)?;
        let status = locked.stack().tcp_status(endpoint).ok()?;
        let waits = !options.has(TcpOptions::NONBLOCKING);
        Some(if waits { u32::MAX } else { status.send_space })
    });
    match space? {
        Some(0) => room(endpoint),
        space => space.map(|space| space as usize),
    }
}

/// Reads from a file into a buffer; what was read.
fn read_at(input: c_int, buffer: &mut [MaybeUninit<u8>], at: off_t) -> Result<&[u8], Errno> {
    let (into, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the buffer is writable for its length.
    let got = from_c(unsafe { libc::pread(input, into, len, at) })? as usize;
    // SAFETY: the kernel has written so many bytes of it.
    Ok(unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), got.min(len)) })
}

fn pieces(
    fd: c_int,
    endpoint: Option<EndpointId>,
    input: c_int,
    at: &mut off_t,
    count: usize,
) -> Answer {
    let mut buffer = [MaybeUninit::uninit(); PIECE];
    let mut done = 0;
    while done < count {
        // One byte more than fits, so that a short send tells the stack to report the next room.
        let room = match endpoint.map_or(Some(PIECE), room_for_one_call) {
            Some(room) => room,
            // It has moved: what was sent before counts.
            None if done > 0 => break,
            None => return Err(Errno::BADF),
        };
        let wanted = (count - done).min(PIECE).min(room.saturating_add(1));
        let piece = match read_at(input, &mut buffer[..wanted], *at) {
            Ok([]) => break,
            Ok(piece) => piece,
            Err(_) if done > 0 => break,
            Err(Errno::SPIPE) => return Err(Errno::INVAL),
            Err(errno) => return Err(errno),
        };
        let got = piece.len();
        // The end of the file ends the record, too (fs/splice.c:splice_direct_to_actor).
        let ends = done + got >= count || *at + got as off_t >= size_of_file(input);
        let more = if ends { 0 } else { MSG_MORE };
        let mut rest = piece;
        let mut fill = |to: &mut [u8]| {
            let (first, behind) = rest.split_at(to.len());
            to.copy_from_slice(first);
            rest = behind;
        };
        let sent = match endpoint {
            Some(endpoint) => stream(fd, endpoint, got, more, &mut fill),
            None => guest::send_bytes(fd, piece, more),
        };
        match sent {
            Ok(sent) => {
                done += sent as usize;
                *at += sent as off_t;
                if (sent as usize) < got {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done as isize)
}

/// splice from a pipe into a connection: no more is taken from the pipe than there is room for.
///
/// # Errors
/// As the kernel's.
pub fn from_pipe(fd: c_int, endpoint: EndpointId, pipe: c_int, len: usize, flags: u32) -> Answer {
    let mut buffer = [0_u8; PIECE];
    let looked = with_stack(|_, locked, _| {
        let deferred = locked.stack().tcp_status(endpoint).ok()?.deferred;
        let options = super::options_of(locked, endpoint)?;
        Some((options.has(TcpOptions::NONBLOCKING), deferred))
    });
    let (nonblocking, deferred) = looked.flatten().ok_or(Errno::BADF)?;
    if deferred {
        // The pipe's bytes are not put back: the SYN leaves without them.
        fast_open::first(fd, endpoint, (0, 0), &mut |_| {})?;
    }
    let room = loop {
        let room = room(endpoint).ok_or(Errno::BADF)?;
        if room > 0 || !nonblocking {
            break room;
        }
        no_room(endpoint)?;
    };
    if flags & libc::SPLICE_F_NONBLOCK != 0 && !is_readable(pipe) {
        return Err(Errno::AGAIN);
    }
    let wanted = len.min(PIECE).min(if room == 0 { PIECE } else { room });
    // SAFETY: the buffer is writable for its length.
    let got =
        from_c(unsafe { symbols::read::original()(pipe, buffer.as_mut_ptr().cast(), wanted) })?;
    let more = if flags & libc::SPLICE_F_MORE != 0 {
        MSG_MORE
    } else {
        0
    };
    let got = got as usize;
    let mut given = 0;
    stream(fd, endpoint, got, more, &mut |to| {
        to.copy_from_slice(&buffer[given..given + to.len()]);
        given += to.len();
    })
}

/// What a send that finds no room returns; the stack reports the next room as an edge. Nothing when
/// room has come meanwhile.
fn no_room(endpoint: EndpointId) -> Result<(), Errno> {
    let refused = with_stack(|_, locked, now| {
        let space = locked.stack().tcp_status(endpoint).ok()?.send_space;
        let (stack, packets) = locked.parts();
        let len = usize::from(space == 0);
        Some(stack.tcp_send(packets, endpoint, len, false, &mut |_| {}, now))
    });
    match refused.flatten() {
        Some(Err(TcpError::Errno(errno))) => Err(broken(errno, 0)),
        Some(Err(TcpError::WouldBlock)) => Err(Errno::AGAIN),
        Some(Ok(_)) => Ok(()),
        Some(Err(TcpError::Stale)) | None => Err(Errno::BADF),
    }
}

fn is_readable(fd: c_int) -> bool {
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, no waiting.
    unsafe { symbols::poll::original()(&raw mut entry, 1, 0) > 0 }
}
