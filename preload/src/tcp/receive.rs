//! Receiving on a connection (net/ipv4/tcp.c:tcp_recvmsg_locked).
//!
//! Bytes are copied once, from the chunks in which they arrived to the caller's vectors, as many as
//! there are under one lock.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: writes into the buffers that a msghdr names"
)]

use std::ffi::c_int;

use bypass_runtime::attachment::Locked;
use bypass_runtime::error_queue::stamps_arrivals;
use bypass_stack::{EndpointId, Memory, QueuePairInfo, Span, TcpInput, TcpOptions, TcpState};
use libc::{MSG_DONTWAIT, MSG_ERRQUEUE, MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, iovec, msghdr};
use rustix::io::Errno;

use super::notices::{self, Arrival};
use super::{with_next, with_stack};
use crate::address::{is_nowhere, is_unreachable};
use crate::errno::{Answer, from_c};
use crate::symbols;
use crate::wait::call::Call;
use crate::wait::{self, Woken};

/// The caller's vectors, filled one after the other.
#[derive(Debug)]
pub struct Scatter<'a> {
    vectors: &'a [iovec],
    index: usize,
    offset: usize,
    left: usize,
    /// MSG_TRUNC: bytes are counted, not written.
    discard: bool,
}

impl<'a> Scatter<'a> {
    /// Over the vectors of a message.
    ///
    /// # Errors
    /// `EFAULT`, `EMSGSIZE`.
    ///
    /// # Safety
    /// The vectors are the caller's to write, for as long as this lives.
    pub unsafe fn new(message: &msghdr, discard: bool) -> Result<Self, Errno> {
        let vectors = if message.msg_iovlen == 0 {
            &[][..]
        } else if message.msg_iovlen > 1024 {
            return Err(Errno::MSGSIZE);
        } else if is_nowhere(message.msg_iov) {
            return Err(Errno::FAULT);
        } else {
            // SAFETY: the caller's array.
            unsafe { std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen) }
        };
        if !discard && vectors.iter().any(is_unreachable) {
            return Err(Errno::FAULT);
        }
        let left = vectors
            .iter()
            .fold(0_usize, |sum, vector| sum.saturating_add(vector.iov_len))
            .min(MOST);
        Ok(Self {
            vectors,
            index: 0,
            offset: 0,
            left,
            discard,
        })
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Writes as much of `from` as fits; how much.
    pub fn put(&mut self, from: &[u8]) -> usize {
        let from = &from[..from.len().min(self.left)];
        self.left -= from.len();
        let mut rest = from;
        while !self.discard
            && !rest.is_empty()
            && let Some(vector) = self.vectors.get(self.index)
        {
            let length = rest.len().min(vector.iov_len - self.offset);
            // SAFETY: the caller's buffer of `iov_len` bytes, of which `offset` are filled; packet
            // memory never overlaps it.
            unsafe {
                let to = vector.iov_base.cast::<u8>().add(self.offset);
                std::ptr::copy_nonoverlapping(rest.as_ptr(), to, length);
            }
            rest = &rest[length..];
            self.offset += length;
            if self.offset == vector.iov_len {
                self.index += 1;
                self.offset = 0;
            }
        }
        from.len()
    }
}

/// Most bytes of one call (MAX_RW_COUNT of linux/fs.h).
const MOST: usize = 0x7fff_f000;

/// recvmsg on a connection.
///
/// # Safety
/// `message` describes buffers that the caller may write.
pub unsafe fn one(endpoint: EndpointId, fd: c_int, message: &mut msghdr, flags: c_int) -> Answer {
    if flags & MSG_ERRQUEUE != 0 {
        // SAFETY: the caller's promise.
        return unsafe { notices::receive(endpoint, message, flags) };
    }
    // A peek counts what it would discard, but looks at nothing (tcp(7): MSG_TRUNC).
    let discard = flags & (MSG_TRUNC | MSG_PEEK) == MSG_TRUNC;
    // SAFETY: the caller's promise.
    let mut scatter = unsafe { Scatter::new(message, discard) }?;
    if flags & MSG_OOB != 0 {
        return super::urgent::receive(endpoint, message, &mut scatter, flags);
    }
    let mut beside = (None, None);
    let answer = stream(endpoint, fd, &mut scatter, flags, &mut beside);
    if answer.is_ok() {
        // SAFETY: the caller's promise.
        unsafe { super::control::received(message, beside, flags) };
    }
    answer
}

/// The state of the endpoint after one look.
struct Look {
    copied: usize,
    status: TcpInput,
    options: TcpOptions,
    error: i32,
    /// When the last whole stretch of what was copied has come by the host's clock and the NIC's,
    /// nanoseconds since 1970; 0 = not known, or nobody asks.
    arrival: (u64, u64),
    /// An urgent byte ends a splice.
    stops: bool,
}

/// What a receive tells beside the bytes.
type Beside = (Option<Arrival>, Option<u32>);

impl Look {
    /// What TCP_INQ tells: bytes that wait, and one for the FIN, so that the end is read too.
    fn inq(&self) -> Option<u32> {
        let told = self.options.has(TcpOptions::INQ);
        told.then(|| self.status.readable + u32::from(self.status.peer_fin))
    }

    fn arrival(&self) -> Option<Arrival> {
        let asked = self.arrival != (0, 0) && stamps_arrivals(&self.options);
        asked.then_some(Arrival {
            at_ns: self.arrival,
            options: self.options,
        })
    }
}

/// With [`MSG_PEEK`]: for a splice, which ends at an urgent byte. No flag of recv(2).
const MSG_SPLICE: c_int = 0x0800_0000;

fn stream(
    endpoint: EndpointId,
    fd: c_int,
    scatter: &mut Scatter<'_>,
    flags: c_int,
    beside: &mut Beside,
) -> Answer {
    let wanted = scatter.left();
    let mut total = 0;
    let mut deadline = None;
    let mut call = Call::default();
    loop {
        let looked = with_next(|joined, locked, now| {
            let found = take(locked, endpoint, scatter, flags, total, now)?;
            Some((joined, found, locked.stack().queue_pairs_generation()))
        });
        let (joined, look, generation) = match looked {
            None if total > 0 => return Ok(total as isize),
            None => return Err(Errno::AGAIN),
            Some(None) => return gone(total),
            Some(Some(found)) => found,
        };
        super::refresh(joined, generation);
        total += look.copied;
        beside.1 = look.inq();
        beside.0 = look.arrival().or(beside.0);
        let least = if flags & MSG_WAITALL != 0 {
            wanted
        } else {
            (look.options.rcvlowat.max(1) as usize).min(wanted)
        };
        if total >= least && (total > 0 || wanted == 0 && look.status.readable > 0) {
            return Ok(total as isize);
        }
        let dont_wait = look.options.has(TcpOptions::NONBLOCKING) || flags & MSG_DONTWAIT != 0;
        if let Some(answer) = ended(&look, total, dont_wait) {
            return answer;
        }
        if look.stops {
            return Ok(0);
        }
        if deadline.is_none() {
            deadline = super::deadline(look.options.rcvtimeo_ms);
        }
        // With a peek or SO_RCVLOWAT, what is there already is no news.
        match wait::block::more_than(fd, endpoint, look.status.readable, (deadline, &mut call)) {
            Woken::Ready => {}
            _ if total > 0 => return Ok(total as isize),
            Woken::TimedOut => return Err(Errno::AGAIN),
            Woken::Interrupted if super::restarts(look.options.rcvtimeo_ms) => {}
            Woken::Interrupted => return Err(Errno::INTR),
        }
    }
}

/// What is returned when no more comes, or the caller does not wait; `None` = wait.
fn ended(look: &Look, total: usize, dont_wait: bool) -> Option<Answer> {
    if total > 0 {
        let stop = dont_wait || look.error != 0 || look.status.eof;
        return stop.then_some(Ok(total as isize));
    }
    if look.status.state == TcpState::Listen {
        return Some(Err(Errno::NOTCONN));
    }
    if look.error != 0 {
        return Some(Err(Errno::from_raw_os_error(look.error)));
    }
    if look.status.eof || look.status.state == TcpState::Closed {
        return Some(Ok(0));
    }
    dont_wait.then_some(Err(Errno::AGAIN))
}

/// The endpoint does not exist (closed by another thread meanwhile).
fn gone(total: usize) -> Answer {
    if total > 0 {
        Ok(total as isize)
    } else {
        Err(Errno::BADF)
    }
}

/// Copies what is there, pumping the stack when there is nothing; `None` when the endpoint is gone.
fn take(
    locked: &mut Locked<'_>,
    endpoint: EndpointId,
    scatter: &mut Scatter<'_>,
    flags: c_int,
    before: usize,
    now: bypass_stack::Instant,
) -> Option<Look> {
    let peek = flags & MSG_PEEK != 0;
    let skip = if peek { before } else { 0 };
    if locked.stack().tcp_readable(endpoint).ok()? <= skip {
        locked.pump(now);
    }
    let asked = notices::are_asked();
    let (mut copied, mut arrival) = (0, (0, 0));
    let stops = flags & MSG_SPLICE != 0 && locked.stack().tcp_stops_splice(endpoint).ok()?;
    let mut next = if stops {
        None
    } else {
        locked.stack().tcp_front(endpoint, skip).ok()?
    };
    while scatter.left() > 0
        && let Some(span) = next
    {
        let start = span.offset as usize;
        let bytes = locked
            .packets()
            .chunk(span.chunk)
            .get(start..start + span.len as usize)
            .unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        let (len, put) = (bytes.len(), scatter.put(bytes));
        copied += put;
        if asked && put == len {
            arrival = came(locked, &span);
        }
        next = locked
            .stack()
            .tcp_behind(endpoint, &span, skip + copied)
            .ok()?;
    }
    if copied > 0 && !peek {
        locked.stack().tcp_consume(endpoint, copied, now).ok()?;
    } else if scatter.left() > 0 && !peek {
        locked.stack().tcp_pass_urgent(endpoint, now).ok()?;
    }
    let status = locked.stack().tcp_input(endpoint).ok()?;
    // The pending error is told once, and only when there is nothing else to tell: neither bytes
    // nor the peer's FIN (net/ipv4/tcp.c:tcp_recvmsg_locked, SOCK_DONE).
    let error = if status.peer_fin {
        0
    } else if copied + before == 0 && status.error != 0 {
        locked.stack().tcp_take_error(endpoint)
    } else {
        status.error
    };
    let options = super::options_of(locked, endpoint)?;
    Some(Look {
        copied,
        status,
        options,
        error,
        arrival,
        stops,
    })
}

/// When bytes have come by the host's clock and the NIC's, nanoseconds since 1970; 0 = not known.
fn came(locked: &mut Locked<'_>, span: &Span) -> (u64, u64) {
    let stack = locked.stack();
    let (at_ns, queue_pair) = stack.tcp_arrival(span);
    let pair = stack.queue_pairs().get(usize::from(queue_pair));
    let has_stamp = pair.is_some_and(|info| info.flags & QueuePairInfo::STAMPS != 0);
    let nic_ns = if has_stamp {
        locked.packets().stamp(span.chunk)
    } else {
        0
    };
    (at_ns, nic_ns)
}

/// splice from a connection into a pipe: what the pipe has taken is taken from the connection.
/// SPLICE_F_NONBLOCK is about the pipe; whether the socket blocks is its own flag.
///
/// # Errors
/// As the kernel's.
pub fn into_pipe(fd: c_int, endpoint: EndpointId, pipe: c_int, len: usize, flags: u32) -> Answer {
    /// Bytes at a time.
    const PIECE: usize = 32 * 1024;
    let mut buffer = [0_u8; PIECE];
    let nonblocking = flags & libc::SPLICE_F_NONBLOCK != 0;
    let free = room_in(pipe);
    if free == 0 && nonblocking {
        return Err(Errno::AGAIN);
    }
    let wanted = len.min(PIECE).min(free.max(1));
    let vector = [iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: wanted,
    }];
    let mut scatter = Scatter {
        vectors: &vector,
        index: 0,
        offset: 0,
        left: wanted,
        discard: false,
    };
    let flags = MSG_PEEK | MSG_SPLICE;
    let got = stream(endpoint, fd, &mut scatter, flags, &mut (None, None))? as usize;
    if got == 0 {
        return Ok(0);
    }
    // SAFETY: `got` bytes of the buffer were written.
    let put = from_c(unsafe { symbols::write::original()(pipe, buffer.as_ptr().cast(), got) })?;
    with_stack(|_, locked, now| locked.stack().tcp_consume(endpoint, put as usize, now));
    Ok(put)
}

/// Bytes that a pipe surely takes without blocking.
fn room_in(pipe: c_int) -> usize {
    // SAFETY: F_GETPIPE_SZ takes no argument.
    let size = unsafe { symbols::fcntl::original()(pipe, libc::F_GETPIPE_SZ, 0) };
    let mut used: c_int = 0;
    // SAFETY: the kernel writes one int.
    let asked =
        unsafe { symbols::ioctl::original()(pipe, libc::FIONREAD, (&raw mut used) as usize) };
    if size <= 0 || asked != 0 {
        return usize::MAX;
    }
    // A pipe's last page may be half used.
    usize::try_from(size - used)
        .unwrap_or(0)
        .saturating_sub(4096)
}
