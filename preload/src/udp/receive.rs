//! Receiving: the endpoint's queue first, the shadow when it is empty, then waiting.
//!
//! What the stack cannot carry arrives at the shadow: fragments, datagrams from loopback and other
//! interfaces, ICMP errors, and what came before acceleration began. So an empty queue asks the
//! kernel once, and a queue that is never empty does so every [`SHADOW_EVERY`] calls.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: writes into the buffers that a msghdr names"
)]

use std::sync::atomic::{AtomicU32, Ordering};

use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_runtime::packets::Packets;
use bypass_stack::{Datagram, EndpointId, Family, Instant, Memory, QueuePairInfo, event};
use libc::{
    MSG_CTRUNC, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITFORONE, c_int,
    iovec, mmsghdr, msghdr, timespec,
};
use rustix::io::Errno;

use crate::context::Joined;
use crate::errno::{Answer, from_c};
use crate::shadow::flags;
use crate::wait::call::Call;
use crate::wait::{self, Woken};
use crate::{address, context, fdtable, symbols};

use super::cmsg::Writer;

/// Receives served by the stack between two looks at a shadow.
const SHADOW_EVERY: u32 = 256;
static SERVED: AtomicU32 = AtomicU32::new(0);

/// The original recvmsg on the shadow.
///
/// # Safety
/// `message` describes buffers that the caller may write.
unsafe fn from_kernel(fd: c_int, message: &mut msghdr, flags: c_int) -> Answer {
    // SAFETY: the caller's promise.
    from_c(unsafe { symbols::recvmsg::original()(fd, message, flags) })
}

/// What one look at the endpoint's queue brought.
enum Look {
    Got(usize),
    Empty {
        nonblocking: bool,
        timeout_ms: u32,
        shut: bool,
    },
    /// The caller's buffers are not usable.
    Failed(Errno),
    /// The endpoint is not ours any more: the call belongs to the kernel.
    Gone,
}

/// Takes one datagram from the queue, pumping the stack when the queue is empty.
///
/// # Safety
/// `message` describes buffers that the caller may write.
unsafe fn look(
    locked: &mut Locked<'_>,
    endpoint: EndpointId,
    message: &mut msghdr,
    call_flags: c_int,
    pump: bool,
) -> Look {
    for round in 0..2 {
        match locked.stack().udp_front(endpoint) {
            Err(_) => return Look::Gone,
            Ok(Some(datagram)) => {
                // SAFETY: the caller's promise.
                if let Some((errno, lost)) = unsafe { unusable(message) } {
                    if lost && call_flags & MSG_PEEK == 0 {
                        let _ = locked.stack().udp_pop(endpoint);
                    }
                    return Look::Failed(errno);
                }
                // SAFETY: the caller's promise.
                let size = unsafe { deliver(locked, endpoint, &datagram, message, call_flags) };
                return Look::Got(size);
            }
            Ok(None) if round == 0 && pump => {
                locked.pump(clock::now());
            }
            Ok(None) => break,
        }
    }
    match locked.stack().udp_options(endpoint) {
        Ok(options) => Look::Empty {
            nonblocking: options.shim_flags & flags::NONBLOCKING != 0,
            timeout_ms: options.rcvtimeo_ms,
            shut: options.shim_flags & flags::SHUT_READ != 0,
        },
        Err(_) => Look::Gone,
    }
}

/// recvmsg on an accelerated socket.
///
/// # Safety
/// `message` describes buffers that the caller may write.
pub unsafe fn one(
    fd: c_int,
    endpoint: EndpointId,
    message: &mut msghdr,
    call_flags: c_int,
) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { receive(fd, endpoint, message, call_flags, None) }
}

/// recvmsg with a deadline besides SO_RCVTIMEO.
///
/// # Safety
/// `message` describes buffers that the caller may write.
unsafe fn receive(
    fd: c_int,
    endpoint: EndpointId,
    message: &mut msghdr,
    call_flags: c_int,
    until: Option<Instant>,
) -> Answer {
    let Some(joined) = context::joined() else {
        // SAFETY: the caller's promise.
        return unsafe { from_kernel(fd, message, call_flags) };
    };
    if call_flags & (MSG_ERRQUEUE | MSG_OOB) != 0 {
        // SAFETY: the caller's promise. The error queue is the shadow's.
        return unsafe { from_kernel(fd, message, call_flags) };
    }
    if SERVED
        .fetch_add(1, Ordering::Relaxed)
        .is_multiple_of(SHADOW_EVERY)
        && !context::rests(endpoint)
    {
        // SAFETY: the caller's promise.
        match unsafe { from_kernel(fd, message, call_flags | MSG_DONTWAIT) } {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    // SAFETY: the caller's promise.
    unsafe { receive_from_queue(joined, (fd, endpoint), message, call_flags, until) }
}

/// Waits for a datagram that the stack has, or the shadow.
///
/// # Safety
/// `message` describes buffers that the caller may write.
unsafe fn receive_from_queue(
    joined: &Joined,
    (fd, endpoint): (c_int, EndpointId),
    message: &mut msghdr,
    call_flags: c_int,
    until: Option<Instant>,
) -> Answer {
    let mut deadline = None;
    let mut call = Call::default();
    loop {
        let Ok(mut locked) = joined.attachment.lock() else {
            // A signal handler that interrupted the stack's owner: the kernel answers.
            // SAFETY: the caller's promise.
            return unsafe { from_kernel(fd, message, call_flags | MSG_DONTWAIT) };
        };
        // SAFETY: the caller's promise.
        let looked = unsafe { look(&mut locked, endpoint, message, call_flags, true) };
        let stale = joined.is_stale(locked.stack().queue_pairs_generation());
        drop(locked);
        if stale {
            joined.refresh();
        }
        let (nonblocking, timeout_ms, shut) = match looked {
            Look::Got(size) => return Ok(size as isize),
            Look::Failed(errno) => return Err(errno),
            Look::Gone => {
                fdtable::replace(fd, fdtable::Entry::Udp(endpoint), fdtable::Entry::Other);
                // SAFETY: the caller's promise.
                return unsafe { from_kernel(fd, message, call_flags) };
            }
            Look::Empty {
                nonblocking,
                timeout_ms,
                shut,
            } => (nonblocking, timeout_ms, shut),
        };
        // Another thread may have closed it since: the number is none of ours then.
        if fdtable::leads_to(fd, endpoint) {
            // SAFETY: the caller's promise.
            match unsafe { from_kernel(fd, message, call_flags | MSG_DONTWAIT) } {
                Err(Errno::AGAIN) => {}
                answer => return answer,
            }
        }
        if shut {
            message.msg_namelen = 0;
            message.msg_controllen = 0;
            message.msg_flags = 0;
            return Ok(0);
        }
        if nonblocking || call_flags & MSG_DONTWAIT != 0 {
            return Err(Errno::AGAIN);
        }
        if deadline.is_none() {
            deadline = earlier(until, timeout_ms);
        }
        match wait::block::until(fd, endpoint, event::IN, true, (deadline, &mut call)) {
            Woken::Ready => {}
            Woken::TimedOut => return Err(Errno::AGAIN),
            // A receive with a timeout is never restarted (signal(7)).
            Woken::Interrupted if timeout_ms == 0 && wait::signals::all_restart() => {}
            Woken::Interrupted => return Err(Errno::INTR),
        }
    }
}

/// The earlier of a deadline and a timeout from now; `None` = never.
fn earlier(until: Option<Instant>, timeout_ms: u32) -> Option<Instant> {
    let timeout = (timeout_ms != 0).then(|| {
        Instant(
            clock::now()
                .0
                .saturating_add(u64::from(timeout_ms) * 1_000_000),
        )
    });
    match (until, timeout) {
        (Some(one), Some(two)) => Some(if one.0 < two.0 { one } else { two }),
        (one, two) => one.or(two),
    }
}

/// recvmmsg on an accelerated socket.
///
/// # Safety
/// The messages describe buffers that the caller may write.
pub unsafe fn many(
    fd: c_int,
    endpoint: EndpointId,
    messages: &mut [mmsghdr],
    call_flags: c_int,
    timeout: Option<&mut timespec>,
) -> Answer {
    let start = clock::now();
    let until = match &timeout {
        None => None,
        Some(time) if time.tv_sec < 0 || !(0..1_000_000_000).contains(&time.tv_nsec) => {
            return Err(Errno::INVAL);
        }
        Some(time) => {
            Some(Instant(start.0.saturating_add(
                time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
            )))
        }
    };
    let mut done = 0;
    let mut flags = call_flags & !MSG_WAITFORONE;
    while done < messages.len() {
        let message = &mut messages[done];
        // The first message waits as long as the call says; the kernel looks at the timeout only
        // after each datagram.
        // SAFETY: the caller's promise.
        match unsafe { receive(fd, endpoint, &mut message.msg_hdr, flags, None) } {
            Ok(size) => message.msg_len = size as u32,
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
        done += 1;
        // SAFETY: the caller's promise.
        done += unsafe { drain(endpoint, &mut messages[done..], flags) };
        if call_flags & MSG_WAITFORONE != 0 {
            flags |= MSG_DONTWAIT;
        }
        if until.is_some_and(|until| clock::now().0 >= until.0) {
            break;
        }
    }
    if let (Some(time), Some(until)) = (timeout, until) {
        let left = until.0.saturating_sub(clock::now().0);
        time.tv_sec = (left / 1_000_000_000) as i64;
        time.tv_nsec = (left % 1_000_000_000) as i64;
    }
    Ok(done as isize)
}

/// Takes what the queue holds, many datagrams under one lock.
///
/// # Safety
/// The messages describe buffers that the caller may write.
unsafe fn drain(endpoint: EndpointId, messages: &mut [mmsghdr], call_flags: c_int) -> usize {
    let Some(joined) = context::joined() else {
        return 0;
    };
    if messages.is_empty() || call_flags & MSG_PEEK != 0 {
        return 0;
    }
    let Ok(mut locked) = joined.attachment.lock() else {
        return 0;
    };
    for (done, message) in messages.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        match unsafe {
            look(
                &mut locked,
                endpoint,
                &mut message.msg_hdr,
                call_flags,
                true,
            )
        } {
            Look::Got(size) => message.msg_len = size as u32,
            Look::Empty { .. } | Look::Gone | Look::Failed(_) => return done,
        }
    }
    messages.len()
}

/// Why the kernel would refuse to write there, and whether it finds out so late that the datagram
/// is lost; `None` = it would write.
///
/// # Safety
/// The vector array is readable.
unsafe fn unusable(message: &msghdr) -> Option<(Errno, bool)> {
    if message.msg_iovlen > 1024 {
        return Some((Errno::MSGSIZE, false));
    }
    if message.msg_iovlen != 0 && address::is_nowhere(message.msg_iov) {
        return Some((Errno::FAULT, false));
    }
    for index in 0..message.msg_iovlen {
        // SAFETY: `index` is below the array's length.
        let vector = unsafe { message.msg_iov.add(index).read() };
        if address::is_unreachable(&vector) {
            return Some((Errno::FAULT, !address::is_kernels(vector.iov_base)));
        }
    }
    if message.msg_name.is_null() {
        None
    } else if message.msg_namelen.cast_signed() < 0 {
        Some((Errno::INVAL, true))
    } else {
        address::is_nowhere(message.msg_name).then_some((Errno::FAULT, true))
    }
}

/// Copies one datagram to where the message wants it, with UDP_GRO also those behind it that belong
/// to it, and takes them off the queue; returns what the call returns.
///
/// # Safety
/// `message` describes buffers that the caller may write.
unsafe fn deliver(
    locked: &mut Locked<'_>,
    endpoint: EndpointId,
    datagram: &Datagram,
    message: &mut msghdr,
    call_flags: c_int,
) -> usize {
    let (stack, packets) = locked.parts();
    let (family, port) = match stack.udp_status(endpoint) {
        Ok(status) => (status.family, status.local.port),
        Err(_) => return 0,
    };
    let shim_flags = stack
        .udp_options(endpoint)
        .map_or(0, |options| options.shim_flags);
    // SAFETY: the caller's promise.
    let mut scatter = unsafe { Scatter::new(message.msg_iov, message.msg_iovlen) };
    let mut copied = scatter.copy(payload(packets, datagram));
    let len = datagram.len as usize;
    message.msg_flags = if copied < len { MSG_TRUNC } else { 0 };
    let mut joined = None;
    if call_flags & MSG_PEEK == 0 {
        let _ = stack.udp_pop(endpoint);
        if shim_flags & flags::GRO != 0 && copied == len {
            let mut train = Train::new(datagram, scatter.room());
            while let Ok(Some(next)) = stack.udp_front(endpoint)
                && train.takes(&next)
            {
                copied += scatter.copy(payload(packets, &next));
                joined = Some(datagram.len);
                let _ = stack.udp_pop(endpoint);
            }
        }
    }
    if message.msg_name.is_null() {
        message.msg_namelen = 0;
    } else {
        // SAFETY: the caller's buffer of `msg_namelen` bytes.
        unsafe {
            address::write(
                datagram.remote,
                family,
                message.msg_name.cast(),
                &raw mut message.msg_namelen,
            );
        }
    }
    // SAFETY: the caller's control buffer.
    unsafe {
        control(
            datagram,
            (family, port),
            shim_flags,
            message,
            (stack.queue_pairs(), packets, joined),
        )
    };
    if call_flags & MSG_TRUNC != 0 {
        copied.max(len)
    } else {
        copied
    }
}

/// A datagram's bytes.
fn payload<'a>(packets: &'a Packets, datagram: &Datagram) -> &'a [u8] {
    packets
        .chunk(datagram.chunk)
        .get(datagram.offset as usize..)
        .and_then(|rest| rest.get(..datagram.len as usize))
        .unwrap_or_default()
}

/// Which datagrams UDP_GRO joins into one message, by net/ipv4/udp_offload.c: of one flow, equally
/// long, of which the last may be shorter. Unlike there, no more than the caller has room for.
struct Train {
    first: Datagram,
    /// Bytes that the caller's buffer still has room for.
    room: usize,
    bytes: usize,
    datagrams: u32,
    is_complete: bool,
}

impl Train {
    /// `UDP_GRO_CNT_MAX`.
    const MOST: u32 = 64;
    /// An IPv4 packet with its headers is no longer than 64 KiB.
    const LARGEST: usize = 65_535 - 28;

    fn new(first: &Datagram, room: usize) -> Self {
        Self {
            first: *first,
            room,
            bytes: first.len as usize,
            datagrams: 1,
            is_complete: first.len == 0,
        }
    }

    /// Whether the next datagram of the queue belongs to it; it counts as taken then.
    fn takes(&mut self, next: &Datagram) -> bool {
        let (first, len) = (&self.first, next.len as usize);
        let fits = !self.is_complete
            && (1..=first.len).contains(&next.len)
            && (next.remote, next.local) == (first.remote, first.local)
            && (next.tos, next.ttl) == (first.tos, first.ttl)
            && next.queue_pair == first.queue_pair
            && self.datagrams < Self::MOST
            && len <= self.room
            && self.bytes + len <= Self::LARGEST;
        if fits {
            self.room -= len;
            self.bytes += len;
            self.datagrams += 1;
            self.is_complete = next.len < first.len;
        }
        fits
    }
}

/// Writes over the vectors, one after another.
struct Scatter {
    vectors: *const iovec,
    count: usize,
    index: usize,
    offset: usize,
}

impl Scatter {
    /// # Safety
    /// The vectors are the caller's to write, for as long as this lives.
    unsafe fn new(vectors: *const iovec, count: usize) -> Self {
        Self {
            vectors,
            count,
            index: 0,
            offset: 0,
        }
    }

    /// The vector to write to now.
    fn vector(&self, index: usize) -> Option<iovec> {
        // SAFETY: below the count; readable by the promise of `new`.
        (index < self.count).then(|| unsafe { self.vectors.add(index).read() })
    }

    /// Copies bytes; returns how many fitted.
    fn copy(&mut self, payload: &[u8]) -> usize {
        let mut copied = 0;
        while copied < payload.len()
            && let Some(vector) = self.vector(self.index)
        {
            let rest = &payload[copied..];
            let length = rest.len().min(vector.iov_len - self.offset);
            // SAFETY: the caller's buffer of `iov_len` bytes, of which `offset` are written; packet
            // memory never overlaps it.
            unsafe {
                let to = vector.iov_base.cast::<u8>().add(self.offset);
                std::ptr::copy_nonoverlapping(rest.as_ptr(), to, length);
            }
            copied += length;
            self.offset += length;
            if self.offset == vector.iov_len {
                self.index += 1;
                self.offset = 0;
            }
        }
        copied
    }

    /// Bytes that still fit.
    fn room(&self) -> usize {
        let all = (self.index..self.count).filter_map(|index| self.vector(index));
        all.fold(0_usize, |sum, vector| sum.saturating_add(vector.iov_len)) - self.offset
    }
}

/// Writes the ancillary data that the socket's options ask for, in the kernel's order
/// (net/socket.c:sock_recv_cmsgs, then net/ipv4/ip_sockglue.c:ip_cmsg_recv_offset).
///
/// # Safety
/// The control buffer is the caller's to write.
unsafe fn control(
    datagram: &Datagram,
    (family, port): (Family, u16),
    shim_flags: u32,
    message: &mut msghdr,
    (queue_pairs, packets, joined): (&[QueuePairInfo], &Packets, Option<u32>),
) {
    const ANY: u32 = flags::PKTINFO
        | flags::PKTINFO6
        | flags::RECVTOS
        | flags::RECVTTL
        | flags::RECVTCLASS
        | flags::RECVHOPLIMIT
        | flags::TIMESTAMP
        | flags::TIMESTAMPNS
        | flags::STAMPS
        | flags::NIC_STAMPS
        | flags::RXQ_OVFL
        | flags::ORIGDSTADDR;
    if (shim_flags & ANY == 0 && joined.is_none()) || address::is_nowhere(message.msg_control) {
        message.msg_controllen = 0;
        return;
    }
    // SAFETY: the caller's control buffer of `msg_controllen` bytes.
    let buffer = unsafe {
        std::slice::from_raw_parts_mut(message.msg_control.cast::<u8>(), message.msg_controllen)
    };
    let mut writer = Writer::new(buffer);
    let pair = queue_pairs.get(usize::from(datagram.queue_pair));
    let ifindex = pair.map_or(0, |info| info.ifindex);
    let stamps = pair.filter(|info| {
        shim_flags & flags::NIC_STAMPS != 0 && info.flags & QueuePairInfo::STAMPS != 0
    });
    let nic_ns = stamps.map_or(0, |_| packets.stamp(datagram.chunk));
    let beside = (ifindex, nic_ns);
    writer.datagram(datagram, (family, port), shim_flags, beside, joined);
    message.msg_controllen = writer.used();
    if writer.truncated() {
        message.msg_flags |= MSG_CTRUNC;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bypass_stack::{ChunkId, IpAddress, SocketAddress};

    fn datagram(len: u32) -> Datagram {
        Datagram {
            chunk: ChunkId(0),
            offset: 0,
            len,
            remote: SocketAddress::new(IpAddress::from_v4([198, 18, 0, 2]), 7),
            local: IpAddress::from_v4([198, 18, 0, 1]),
            tos: 0,
            ttl: 64,
            queue_pair: 0,
            timestamp_ns: 0,
            drops: 0,
        }
    }

    /// How many of these belong to a train that a datagram of 500 bytes begins.
    fn joined(room: usize, rest: &[Datagram]) -> usize {
        let mut train = Train::new(&datagram(500), room);
        rest.iter().take_while(|next| train.takes(next)).count()
    }

    #[test]
    fn equal_datagrams_of_a_flow_are_joined_and_a_shorter_one_ends_it() {
        let equal = datagram(500);
        assert_eq!(joined(9999, &[equal, equal, datagram(3), equal]), 3);
        assert_eq!(joined(9999, &[datagram(501)]), 0);
        assert_eq!(joined(9999, &[datagram(0)]), 0);
        assert_eq!(joined(999, &[equal, equal]), 1);
        assert_eq!(joined(usize::MAX, &[equal; 100]), 63);
        let other_port = SocketAddress::new(equal.remote.ip, 8);
        let strangers = [
            Datagram {
                remote: other_port,
                ..equal
            },
            Datagram { tos: 1, ..equal },
            Datagram { ttl: 1, ..equal },
            Datagram {
                local: other_port.ip,
                ..equal
            },
        ];
        for stranger in strangers {
            assert_eq!(joined(9999, &[stranger]), 0, "{stranger:?}");
        }
        let mut train = Train::new(&datagram(1472), usize::MAX);
        assert_eq!((0..64).filter(|_| train.takes(&datagram(1472))).count(), 43);
        assert!(!Train::new(&datagram(0), 10).takes(&datagram(0)));
    }

    #[test]
    fn bytes_are_scattered_over_vectors_in_turn() {
        let (mut one, mut two) = ([0_u8; 3], [0_u8; 4]);
        let vector = |bytes: &mut [u8]| iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let vectors = [vector(&mut one), vector(&mut []), vector(&mut two)];
        // SAFETY: the vectors are of the arrays above.
        let mut scatter = unsafe { Scatter::new(vectors.as_ptr(), vectors.len()) };
        assert_eq!((scatter.room(), scatter.copy(b"ab")), (7, 2));
        assert_eq!((scatter.room(), scatter.copy(b"cde")), (5, 3));
        assert_eq!((scatter.room(), scatter.copy(b"fgh")), (2, 2));
        assert_eq!((&one, &two, scatter.room()), (b"abc", b"defg", 0));
    }
}
