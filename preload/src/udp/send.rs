//! Sending: through the stack where it has a route and a neighbour, else through the shadow.
//!
//! The kernel is one step away: whatever the stack cannot send (no resolved neighbour yet, another
//! interface, larger than the MTU, broadcast, multicast, rare flags and ancillary data) is the
//! original sendmsg on the shadow, which resolves, fragments, refuses with the right errno.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads the buffers that a msghdr names"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use bypass_proto::policy::Backend;
use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_stack::cplane::{self, Lookup};
use bypass_stack::{EndpointId, Hairpin, IpAddress, NextHop, SendError, SocketAddress, UdpOptions};
use libc::{MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, c_int, iovec, mmsghdr, msghdr};
use rustix::io::Errno;

use crate::address::{self, Given};
use crate::context::Joined;
use crate::errno::{Answer, from_c};
use crate::shadow::{self, flags};
use crate::{config, context, fdtable, symbols};

use super::asked::{self, Asked};
use super::gso::{self, Run, Sent};
use super::route;

/// Flags that change nothing for a datagram that never blocks.
const HARMLESS: c_int = MSG_DONTWAIT | MSG_NOSIGNAL;
/// Largest UDP payload over IPv4.
pub(super) const LARGEST: usize = 65_507;
/// Bytes of IP and UDP headers.
const V4_HEADERS: usize = 28;
const V6_HEADERS: usize = 48;
/// Most segments of one UDP_SEGMENT send (UDP_MAX_SEGMENTS of linux/udp.h).
const MAX_SEGMENTS: usize = 128;
/// How often a connected socket asks its shadow for a pending ICMP error.
const ERROR_CHECK_NS: u64 = 10_000;
/// How often one datagram goes by the kernel while a neighbour is not confirmed, so that the
/// kernel probes it again.
const CONFIRM_NS: u64 = 1_000_000_000;

/// Why a datagram goes by the kernel.
struct ByKernel;

/// The original sendmsg on the shadow.
///
/// # Safety
/// `message` describes buffers that the caller may read.
unsafe fn by_kernel(fd: c_int, message: &msghdr, flags: c_int) -> Answer {
    // SAFETY: the caller's promise.
    from_c(unsafe { symbols::sendmsg::original()(fd, message, flags) })
}

/// sendmsg on an accelerated socket.
///
/// # Safety
/// `message` describes buffers that the caller may read.
pub unsafe fn one(fd: c_int, endpoint: EndpointId, message: &msghdr, call_flags: c_int) -> Answer {
    if let Some(joined) = context::joined()
        && let Ok(mut locked) = joined.attachment.lock()
    {
        let sent = Sender::new(joined, &mut locked, fd, endpoint, call_flags)
            // SAFETY: the caller's promise.
            .and_then(|mut sender| unsafe { sender.send(&mut locked, message) });
        drop(locked);
        if let Ok(answer) = sent {
            return answer;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { by_kernel(fd, message, call_flags) }
}

/// sendmmsg on an accelerated socket: as many datagrams as the stack takes under one lock, one
/// doorbell for all of them. Runs of equal datagrams the kernel cuts out of one send.
///
/// # Safety
/// The messages describe buffers that the caller may read.
pub unsafe fn many(
    fd: c_int,
    endpoint: EndpointId,
    messages: &mut [mmsghdr],
    call_flags: c_int,
) -> Answer {
    let mut batch = Batch {
        fd,
        endpoint,
        call_flags,
        done: 0,
        singly: 0,
    };
    while batch.done < messages.len() {
        // SAFETY: the caller's promise.
        match unsafe { batch.advance(messages) } {
            Ok(()) => {}
            Err(_) if batch.done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(batch.done as isize)
}

/// A sendmmsg under way.
struct Batch {
    fd: c_int,
    endpoint: EndpointId,
    call_flags: c_int,
    /// Messages that have been sent.
    done: usize,
    /// Messages that are no part of a run.
    singly: usize,
}

/// Who sends what comes after the messages that the stack has sent.
enum Next {
    /// Nobody: that was all.
    Nothing,
    /// The kernel, one message.
    Kernel,
    /// The kernel, a run out of one send.
    Run(Run),
}

impl Batch {
    /// Sends messages until the way changes.
    ///
    /// # Safety
    /// The messages describe buffers that the caller may read.
    unsafe fn advance(&mut self, messages: &mut [mmsghdr]) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        match unsafe { self.by_stack(messages) }? {
            Next::Nothing => {}
            Next::Kernel => {
                let message = &mut messages[self.done];
                // SAFETY: the caller's promise.
                let size = unsafe { by_kernel(self.fd, &message.msg_hdr, self.call_flags) }?;
                message.msg_len = size as u32;
                self.done += 1;
            }
            // SAFETY: the caller's promise.
            Next::Run(run) => unsafe { self.by_gso(run, &mut messages[self.done..]) }?,
        }
        Ok(())
    }

    /// Sends as many messages as the stack takes, under one lock.
    ///
    /// # Safety
    /// As [`Batch::advance`].
    unsafe fn by_stack(&mut self, messages: &mut [mmsghdr]) -> Result<Next, Errno> {
        let Some(joined) = context::joined() else {
            return Ok(Next::Kernel);
        };
        let Ok(mut locked) = joined.attachment.lock() else {
            return Ok(Next::Kernel);
        };
        let sender = Sender::new(joined, &mut locked, self.fd, self.endpoint, self.call_flags);
        let Ok(mut sender) = sender else {
            return Ok(Next::Kernel);
        };
        while let Some(rest) = messages.get_mut(self.done..)
            && !rest.is_empty()
        {
            if self.done >= self.singly
                // SAFETY: the caller's promise.
                && let Some(run) = unsafe { sender.run(&mut locked, rest) }
            {
                return Ok(Next::Run(run));
            }
            // SAFETY: the caller's promise.
            match unsafe { sender.send(&mut locked, &rest[0].msg_hdr) } {
                Ok(answer) => rest[0].msg_len = answer? as u32,
                Err(ByKernel) => return Ok(Next::Kernel),
            }
            self.done += 1;
        }
        Ok(Next::Nothing)
    }

    /// Has the kernel send the run that `messages` begin with.
    ///
    /// # Safety
    /// As [`Batch::advance`].
    unsafe fn by_gso(&mut self, run: Run, messages: &mut [mmsghdr]) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        match unsafe { run.send(self.fd, messages, self.call_flags) } {
            Sent::All => {}
            Sent::Nothing => {
                self.singly = self.done + run.count;
                return Ok(());
            }
            Sent::Failed(errno) => return Err(errno),
        }
        self.done += run.count;
        let mut left = run.total;
        for message in &mut messages[..run.count] {
            message.msg_len = left.min(run.size) as u32;
            left -= left.min(run.size);
        }
        if let Some(joined) = context::joined()
            && let Ok(mut locked) = joined.attachment.lock()
        {
            locked.stack().count_datagrams_by_gso(run.count as u64);
        }
        Ok(())
    }
}

/// What is the same for every datagram that a call sends under one lock.
struct Sender {
    joined: &'static Joined,
    endpoint: EndpointId,
    local: SocketAddress,
    remote: Option<SocketAddress>,
    /// The interface that the socket is bound to; 0 = any.
    ifindex: u32,
    /// Whether the socket takes no IPv4 destinations.
    is_v6_only: bool,
    /// UDP_SEGMENT of the socket; 0 = off.
    segment: u16,
    /// The way of the datagram before.
    way: Option<Way>,
}

/// Where a datagram goes and how it gets there.
struct Way {
    to: SocketAddress,
    bound: IpAddress,
    /// Interface that the caller asks for; 0 = any.
    ifindex: u32,
    /// The next hop; `None`: to another socket of this stack.
    next_hop: Option<NextHop>,
}

impl Sender {
    /// Whether the stack may send for this socket now.
    fn new(
        joined: &'static Joined,
        locked: &mut Locked<'_>,
        fd: c_int,
        endpoint: EndpointId,
        call_flags: c_int,
    ) -> Result<Self, ByKernel> {
        let stack = locked.stack();
        let Ok(status) = stack.udp_status(endpoint) else {
            fdtable::replace(fd, fdtable::Entry::Udp(endpoint), fdtable::Entry::Other);
            return Err(ByKernel);
        };
        let options = stack.udp_options(endpoint).map_err(|_| ByKernel)?;
        if call_flags & MSG_MORE != 0 || options.shim_words[shadow::CORK_WORD] != 0 {
            // The kernel gathers one datagram from several sends: all of them are its.
            options.shim_words[shadow::CORK_WORD] = u32::from(call_flags & MSG_MORE != 0);
            return Err(ByKernel);
        }
        if call_flags & !HARMLESS != 0
            || options.shim_flags & (flags::KERNEL_SENDS | flags::SHUT_WRITE) != 0
            || options.has(UdpOptions::RESTING)
            || status.remote.is_some() && error_pending(fd)?
        {
            return Err(ByKernel);
        }
        Ok(Self {
            joined,
            endpoint,
            local: status.local,
            remote: status.remote,
            ifindex: status.ifindex,
            is_v6_only: status.family == bypass_stack::Family::V6,
            segment: options.shim_words[shadow::GSO_WORD] as u16,
            way: None,
        })
    }

    /// Sends one message through the stack, or says that the kernel must.
    ///
    /// # Safety
    /// `message` describes buffers that the caller may read.
    unsafe fn send(
        &mut self,
        locked: &mut Locked<'_>,
        message: &msghdr,
    ) -> Result<Answer, ByKernel> {
        // SAFETY: the caller's promise.
        let to = unsafe { self.destination(message) }?;
        // SAFETY: the caller's promise.
        let asked = unsafe { ancillary(message) }?;
        // SAFETY: the caller's promise.
        let vectors = unsafe { vectors(message) }?;
        let total: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        if total > LARGEST {
            return Err(ByKernel);
        }
        let mut gather = Gather::new(vectors);
        let bound = asked.source.unwrap_or(self.local.ip);
        let segment = usize::from(asked.gso_size.unwrap_or(self.segment));
        let endpoint = self.endpoint;
        let ifindex = match (asked.ifindex, self.ifindex) {
            (0, own) => own,
            (asked, own) if own == 0 || own == asked => asked,
            // The kernel refuses to leave the socket's interface.
            _ => return Err(ByKernel),
        };
        let way = self.way(locked, to, bound, ifindex)?;
        if segment == 0 || total <= segment {
            way.send(locked, endpoint, total, &mut gather)?;
            return Ok(Ok(total as isize));
        }
        if total.div_ceil(segment) > MAX_SEGMENTS {
            return Ok(Err(Errno::INVAL));
        }
        let mut left = total;
        while left > 0 {
            let length = left.min(segment);
            match way.send(locked, endpoint, length, &mut gather) {
                Ok(()) => left -= length,
                // The kernel would send all segments again; a partly sent train counts as sent, as
                // segments lost in a full queue do.
                Err(ByKernel) if left < total => break,
                Err(ByKernel) => return Err(ByKernel),
            }
        }
        Ok(Ok(total as isize))
    }

    /// Where a message goes, when the stack may send there.
    ///
    /// # Safety
    /// The message's address is the caller's to read.
    #[inline]
    unsafe fn destination(&self, message: &msghdr) -> Result<SocketAddress, ByKernel> {
        // SAFETY: the caller's promise.
        let to = match unsafe { address::read(message.msg_name.cast(), message.msg_namelen) } {
            Given::Inet(to) => to,
            Given::Nothing => self.remote.ok_or(ByKernel)?,
            Given::Foreign => return Err(ByKernel),
        };
        if to.port == 0 || to.ip.is_v4() == self.is_v6_only {
            return Err(ByKernel);
        }
        Ok(to)
    }

    /// The run that the messages begin with, if the kernel sends it faster than the stack: not
    /// where it sends by a relay, which in addition knows no order between the stack's frames and
    /// the kernel's.
    ///
    /// # Safety
    /// The messages describe buffers that the caller may read.
    unsafe fn run(&mut self, locked: &mut Locked<'_>, messages: &[mmsghdr]) -> Option<Run> {
        if messages.len() < gso::FEWEST || self.segment != 0 {
            return None;
        }
        // SAFETY: the caller's promise.
        let to = unsafe { self.destination(&messages[0].msg_hdr) }.ok()?;
        let way = self.way(locked, to, self.local.ip, self.ifindex).ok()?;
        let headers = if to.ip.is_v4() {
            V4_HEADERS
        } else {
            V6_HEADERS
        };
        let next_hop = way.next_hop.as_ref()?;
        let queue_pair = usize::from(next_hop.queue_pair);
        let info = locked.stack().queue_pairs().get(queue_pair)?;
        if Backend::is_relayed(info.backend) {
            return None;
        }
        let largest = usize::from(next_hop.mtu).checked_sub(headers)?;
        // SAFETY: the caller's promise.
        unsafe { Run::find(messages, to, self.remote, largest) }
    }

    /// The way to an address: that of the datagram before if it went there too.
    #[inline]
    fn way(
        &mut self,
        locked: &mut Locked<'_>,
        to: SocketAddress,
        bound: IpAddress,
        ifindex: u32,
    ) -> Result<&Way, ByKernel> {
        let is_same = self
            .way
            .as_ref()
            .is_some_and(|way| way.to == to && way.bound == bound && way.ifindex == ifindex);
        if !is_same {
            self.way = None;
            let next_hop = self.next_hop(locked, to, bound, ifindex)?;
            self.way = Some(Way {
                to,
                bound,
                ifindex,
                next_hop,
            });
        }
        self.way.as_ref().ok_or(ByKernel)
    }

    /// Asks the control plane, and whether its answer can be used by this process.
    fn next_hop(
        &self,
        locked: &mut Locked<'_>,
        to: SocketAddress,
        bound: IpAddress,
        ifindex: u32,
    ) -> Result<Option<NextHop>, ByKernel> {
        let local = SocketAddress::new(bound, self.local.port);
        let hash = cplane::flow_hash(&local, &to);
        let looked = route::lookup(self.joined, to.ip, bound, ifindex, hash);
        let mut next_hop = match looked {
            Lookup::Via(next_hop) => next_hop,
            Lookup::Local if config::get().options.accelerate_local => return Ok(None),
            Lookup::Local => return Err(ByKernel),
            Lookup::Kernel(_) => return Err(ByKernel),
        };
        if !next_hop.is_confirmed() && !may_skip_confirmation() {
            return Err(ByKernel);
        }
        // The table is everybody's; its queue pair numbers are those of the interface's owner.
        let index = usize::from(next_hop.queue_pair);
        let owner = locked
            .stack()
            .queue_pairs()
            .get(index)
            .map_or(0, |info| info.ifindex);
        if owner != next_hop.ifindex || !locked.has_queue(index) {
            return Err(ByKernel);
        }
        if !bound.is_unspecified() {
            next_hop.source = bound;
        }
        Ok(Some(next_hop))
    }
}

impl Way {
    fn send(
        &self,
        locked: &mut Locked<'_>,
        endpoint: EndpointId,
        length: usize,
        gather: &mut Gather<'_>,
    ) -> Result<(), ByKernel> {
        match &self.next_hop {
            Some(next_hop) => self.send_via(locked, endpoint, next_hop, length, gather),
            None => self.hairpin(locked, endpoint, length, gather),
        }
    }

    #[inline]
    fn send_via(
        &self,
        locked: &mut Locked<'_>,
        endpoint: EndpointId,
        next_hop: &NextHop,
        length: usize,
        gather: &mut Gather<'_>,
    ) -> Result<(), ByKernel> {
        let start = (gather.index, gather.offset);
        for attempt in 0..2 {
            let (stack, packets) = locked.parts();
            let fill = |to: &mut [u8]| gather.copy(to);
            match stack.udp_send(packets, endpoint, self.to, next_hop, length, fill) {
                Ok(()) => return Ok(()),
                Err(SendError::NoChunk) if attempt == 0 => {
                    (gather.index, gather.offset) = start;
                    locked.reclaim();
                }
                Err(_) => break,
            }
        }
        (gather.index, gather.offset) = start;
        Err(ByKernel)
    }

    #[inline(never)]
    fn hairpin(
        &self,
        locked: &mut Locked<'_>,
        endpoint: EndpointId,
        length: usize,
        gather: &mut Gather<'_>,
    ) -> Result<(), ByKernel> {
        let source = if self.bound.is_unspecified() {
            self.to.ip
        } else {
            self.bound
        };
        let start = (gather.index, gather.offset);
        let (stack, packets) = locked.parts();
        let sent = stack.udp_hairpin(
            packets,
            endpoint,
            source,
            self.to,
            length,
            |to: &mut [u8]| gather.copy(to),
            clock::realtime_ns(),
        );
        match sent {
            Ok(Hairpin::Delivered | Hairpin::Dropped) => Ok(()),
            Ok(Hairpin::NoEndpoint) | Err(_) => {
                (gather.index, gather.offset) = start;
                Err(ByKernel)
            }
        }
    }
}

/// Whether the neighbour was offered to the kernel recently enough.
fn may_skip_confirmation() -> bool {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = clock::now().0;
    let last = LAST.load(Ordering::Relaxed);
    if now.wrapping_sub(last) < CONFIRM_NS {
        return true;
    }
    LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
        .is_err()
}

/// When each shadow was last asked for errors, by descriptor number.
static ASKED: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// A wait has seen an error on the shadow: the next send asks for it.
pub fn error_seen(fd: c_int) {
    ASKED[fd as usize % ASKED.len()].store(0, Ordering::Relaxed);
}

/// Whether the shadow may hold an ICMP error that this send must report. Asked at intervals: the
/// question is a system call.
fn error_pending(fd: c_int) -> Result<bool, ByKernel> {
    let slot = &ASKED[fd as usize % ASKED.len()];
    let now = clock::now().0;
    if now.wrapping_sub(slot.load(Ordering::Relaxed)) < ERROR_CHECK_NS {
        return Ok(false);
    }
    slot.store(now, Ordering::Relaxed);
    // POLLERR tells without taking the error: the kernel's own send then returns it.
    shadow::has_error(fd).ok_or(ByKernel)
}

/// Reads the control buffer.
///
/// # Safety
/// The control buffer is the caller's to read.
unsafe fn ancillary(message: &msghdr) -> Result<Asked, ByKernel> {
    if message.msg_control.is_null() || message.msg_controllen == 0 {
        return Ok(Asked::default());
    }
    if address::is_nowhere(message.msg_control) {
        return Err(ByKernel);
    }
    // SAFETY: the caller's buffer of `msg_controllen` bytes.
    let buffer = unsafe {
        std::slice::from_raw_parts(message.msg_control.cast::<u8>(), message.msg_controllen)
    };
    let asked = asked::read(buffer);
    if asked.foreign {
        Err(ByKernel)
    } else {
        Ok(asked)
    }
}

/// The vectors, when every one of them can be read.
///
/// # Safety
/// The vector array is the caller's to read.
unsafe fn vectors(message: &msghdr) -> Result<&[iovec], ByKernel> {
    if message.msg_iovlen == 0 {
        return Ok(&[]);
    }
    if address::is_nowhere(message.msg_iov) || message.msg_iovlen > 1024 {
        return Err(ByKernel);
    }
    // SAFETY: the caller's array of `msg_iovlen` vectors.
    let vectors = unsafe { std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen) };
    let broken = |vector: &iovec| address::is_unreachable(vector) || vector.iov_len > LARGEST;
    if vectors.iter().any(broken) {
        Err(ByKernel)
    } else {
        Ok(vectors)
    }
}

/// Reads the vectors one after another.
#[derive(Debug)]
pub struct Gather<'a> {
    vectors: &'a [iovec],
    index: usize,
    offset: usize,
}

impl<'a> Gather<'a> {
    /// From the start of vectors that the caller of a send may read.
    #[must_use]
    pub fn new(vectors: &'a [iovec]) -> Self {
        Self {
            vectors,
            index: 0,
            offset: 0,
        }
    }

    /// Copies the next `to.len()` bytes.
    pub fn copy(&mut self, mut to: &mut [u8]) {
        while !to.is_empty() {
            let Some(vector) = self.vectors.get(self.index) else {
                return;
            };
            let length = to.len().min(vector.iov_len - self.offset);
            let (now, later) = to.split_at_mut(length);
            // SAFETY: the caller's buffer of `iov_len` bytes, of which `offset` are consumed.
            unsafe {
                let from = vector.iov_base.cast::<u8>().add(self.offset);
                std::ptr::copy_nonoverlapping(from, now.as_mut_ptr(), length);
            }
            to = later;
            self.offset += length;
            if self.offset == vector.iov_len {
                self.index += 1;
                self.offset = 0;
            }
        }
    }
}
