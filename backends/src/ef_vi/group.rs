//! The VIs of a port: one, or a set of them.
//!
//! ```text
//!                        ┌── VI 0 ── events ──┐
//!   filter ──► the set ──┼── VI 1 ── events ──┼──► looked at in turn; one descriptor for all
//!   (hash of the flow)   └── VI 2 ── events ──┘
//!   frame to send ── hash of its flow ──► always the same VI: frames of a flow keep their order
//! ```
//!
//! They live and die together: when one is dead, all are made again.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: filters by the library; frames of others"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::domain::{Domain, Handle, Set};
use super::filter::specify;
use super::layout::Layout;
use super::library::{Ciul, Cookie};
use super::queue::Queue;
use super::reason::CiulError;
use crate::relay::{CardFilter, Departure};

/// What is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// VLAN of all frames.
    pub(super) vlan: Option<u16>,
    /// Whether the card is to stamp received frames.
    pub(super) stamps: bool,
    /// Whether it is to tell when frames have left, too.
    pub(super) departures: bool,
    /// How many VIs; more than one are a set.
    pub(super) queues: u32,
}

/// The VIs of a port. Its fields are dropped in this order.
#[derive(Debug)]
pub(super) struct Group {
    /// At least one.
    queues: Vec<Queue>,
    set: Option<Set>,
    domain: Domain,
    /// Readable when one of several VIs is.
    any: Option<OwnedFd>,
    vlan: Option<u16>,
    /// Which VI is looked at next.
    next: usize,
}

impl Group {
    /// Makes the VIs of an interface, with their RX rings filled. Nothing is led to them yet.
    ///
    /// # Errors
    /// Which call has failed.
    pub(super) fn open(
        ciul: &Arc<Ciul>,
        layout: Layout,
        interface: &str,
        plan: Plan,
    ) -> Result<Self, CiulError> {
        let mut domain = Domain::of(Handle::open(ciul)?, interface)?;
        let is_set = plan.queues > 1;
        let set = is_set.then(|| Set::of(&mut domain, plan.queues));
        let mut set = set.transpose()?;
        let mut queues = Vec::new();
        for number in 0..plan.queues.max(1) {
            // The domain's handle has no events of its own: it is the first VI's too.
            let handle = match number {
                0 => Arc::clone(&domain.handle),
                _ => Handle::open(ciul)?,
            };
            let opened = Queue::open(&mut domain, set.as_mut(), handle, layout, plan)?;
            queues.push(opened);
        }
        let failed = |errno| CiulError {
            call: "epoll_create",
            errno,
        };
        let any = is_set.then(|| any_of(&queues).map_err(failed));
        Ok(Self {
            any: any.transpose()?,
            queues,
            set,
            domain,
            vlan: plan.vlan,
            next: 0,
        })
    }

    /// How many VIs there are.
    pub(super) fn count(&self) -> usize {
        self.queues.len()
    }

    /// The first VI, which knows of the card what all know.
    pub(super) fn first(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    /// Number of the first VI among the card's.
    pub(super) fn number(&self) -> u32 {
        self.queues[0].number()
    }

    /// Whether the card stamps received frames.
    pub(super) fn has_stamps(&self) -> bool {
        self.queues[0].has_stamps()
    }

    /// Whether the card tells when frames have left.
    pub(super) fn tells_departures(&self) -> bool {
        self.queues[0].tells_departures()
    }

    /// The departures that were told since the last call.
    pub(super) fn take_departed(&mut self) -> Vec<Departure> {
        let queues = self.queues.iter_mut();
        queues.flat_map(Queue::take_departed).collect()
    }

    /// The VI that is to be looked at now; the next time it is another one's turn.
    pub(super) fn in_turn(&mut self) -> &mut Queue {
        let at = self.next;
        self.next = if at + 1 < self.queues.len() {
            at + 1
        } else {
            0
        };
        &mut self.queues[at]
    }

    /// Bytes of events that each VI has read.
    #[cfg(test)]
    pub(super) fn read(&self) -> Vec<u32> {
        self.queues.iter().map(Queue::current).collect()
    }

    /// Descriptor that is readable when a primed VI has an event.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.any {
            Some(any) => any.as_fd(),
            None => self.queues[0].fd(),
        }
    }

    /// Asks for an interrupt with the next event of each VI that was not seen.
    pub(super) fn prime(&mut self) -> Result<(), CiulError> {
        self.queues.iter_mut().try_for_each(Queue::prime)
    }

    /// How many frames there are buffers for, whichever VI they are to leave by.
    pub(super) fn room(&self) -> usize {
        self.queues.iter().map(Queue::room).min().unwrap_or(0)
    }

    /// Takes a copy of a frame for sending; whether there was room.
    ///
    /// # Safety
    /// - The bytes are mapped. They may change meanwhile: then it is the frame that changes.
    #[inline]
    pub(super) unsafe fn send(&mut self, bytes: *const u8, length: u32) -> bool {
        // SAFETY: the caller's word.
        unsafe { self.queue_for(bytes, length).send(bytes, length) }
    }

    /// The same with the number by which its departure is told.
    ///
    /// # Safety
    /// - As for [`Self::send`].
    pub(super) unsafe fn send_stamped(
        &mut self,
        bytes: *const u8,
        length: u32,
        number: u32,
    ) -> bool {
        // SAFETY: the caller's word.
        unsafe {
            self.queue_for(bytes, length)
                .send_stamped(bytes, length, number)
        }
    }

    /// The VI that a frame leaves by.
    ///
    /// # Safety
    /// - As for [`Self::send`].
    #[inline(always)]
    unsafe fn queue_for(&mut self, bytes: *const u8, length: u32) -> &mut Queue {
        match &mut self.queues[..] {
            [only] => only,
            // SAFETY: the caller's word.
            queues => unsafe { of_flow(queues, bytes, length as usize) },
        }
    }

    /// Tells the card of what was taken.
    pub(super) fn flush(&mut self) {
        self.queues.iter_mut().for_each(Queue::flush);
    }

    /// Leads matching frames to the VIs, and no longer to the kernel.
    pub(super) fn add_filter(&mut self, filter: &CardFilter) -> Result<Cookie, CiulError> {
        let functions = self.domain.handle.ciul.functions;
        let made = specify(filter, self.vlan, &functions);
        let specification = made.map_err(|errno| CiulError {
            call: "ef_filter_spec_set",
            errno: Errno::from_raw_os_error(errno),
        })?;
        let (mut cookie, spec) = (Cookie::default(), &raw const specification);
        if let Some(set) = &mut self.set {
            let (add, fd) = (functions.ef_vi_set_filter_add, set.handle.fd);
            // SAFETY: a set and its handle, a whole specification; a cookie is written.
            let answer = unsafe { add(set.pointer(), fd, spec, &raw mut cookie) };
            CiulError::check("ef_vi_set_filter_add", answer)?;
        } else {
            let (vi, fd) = self.queues[0].vi_and_fd();
            // SAFETY: a VI and its handle, a whole specification; a cookie is written.
            let answer = unsafe { (functions.ef_vi_filter_add)(vi, fd, spec, &raw mut cookie) };
            CiulError::check("ef_vi_filter_add", answer)?;
        }
        Ok(cookie)
    }

    /// Leaves matching frames to the kernel again.
    pub(super) fn remove_filter(&mut self, cookie: &Cookie) {
        let functions = self.domain.handle.ciul.functions;
        let cookie = &raw const *cookie;
        // One that is gone is gone.
        let _ = if let Some(set) = &mut self.set {
            let (remove, fd) = (functions.ef_vi_set_filter_del, set.handle.fd);
            // SAFETY: a set and its handle; a cookie that it has given.
            unsafe { remove(set.pointer(), fd, cookie) }
        } else {
            let (vi, fd) = self.queues[0].vi_and_fd();
            // SAFETY: a VI and its handle; a cookie that it has given.
            unsafe { (functions.ef_vi_filter_del)(vi, fd, cookie) }
        };
    }
}

/// A descriptor that is readable when one of the VIs' is.
fn any_of(queues: &[Queue]) -> Result<OwnedFd, Errno> {
    let any = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for queue in queues {
        epoll::add(&any, queue.fd(), EventData::new_u64(0), EventFlags::IN)?;
    }
    Ok(any)
}

/// Bytes of a frame that may tell its flow: Ethernet, IPv4 with all options, ports.
const HEAD: usize = 14 + 60 + 4;

/// The VI that a frame leaves by.
///
/// # Safety
/// - As many bytes are mapped. They may change meanwhile.
#[inline(never)]
unsafe fn of_flow(queues: &mut [Queue], bytes: *const u8, length: usize) -> &mut Queue {
    let mut head = [0; HEAD];
    // SAFETY: the caller's word; no more than there is room for.
    unsafe { std::ptr::copy_nonoverlapping(bytes, head.as_mut_ptr(), length.min(HEAD)) };
    let at = flow_of(&head) as usize % queues.len();
    &mut queues[at]
}

/// A hash of a frame's addresses, and ports where it has them.
fn flow_of(head: &[u8; HEAD]) -> u32 {
    /// Offset basis and prime of FNV-1a (Fowler, Noll, Vo), 32 bits.
    const FNV: (u32, u32) = (0x811c_9dc5, 0x0100_0193);
    let (addresses, protocol, ports) = match [head[12], head[13]] {
        [0x08, 0x00] => {
            // Fragments but the first have no ports: none of a datagram counts them.
            let is_part = head[20] & 0x3f != 0 || head[21] != 0;
            let ports = 14 + 4 * usize::from(head[14] & 15);
            (26..34, if is_part { 0 } else { head[23] }, ports)
        }
        [0x86, 0xdd] => (22..54, head[20], 54),
        _ => (0..12, 0, 0),
    };
    let ports = if [6, 17].contains(&protocol) {
        ports..ports + 4
    } else {
        0..0
    };
    let told = head[addresses].iter().chain(&head[ports]);
    let hash = told.fold(FNV.0, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(FNV.1)
    });
    // Its low bits are the poorer ones.
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        for (at, bytes) in parts {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    /// Which of four VIs frames leave by that differ in one thing.
    fn spread(of: impl Fn(u8) -> [u8; HEAD]) -> [u32; 4] {
        let mut counts = [0; 4];
        (0..200).for_each(|number| counts[flow_of(&of(number)) as usize % 4] += 1);
        counts
    }

    #[test]
    fn a_flow_is_told_by_addresses_and_ports_only() {
        for (kind, protocol_at, ports, last) in [([8, 0], 23, 34, 33), ([0x86, 0xdd], 20, 54, 53)] {
            for protocol in [6, 17] {
                let base = |more: (usize, u8)| {
                    head(&[
                        (12, &kind),
                        (14, &[0x45]),
                        (protocol_at, &[protocol]),
                        (more.0, &[more.1]),
                    ])
                };
                let even = |counts: [u32; 4]| counts.iter().all(|count| *count > 20);
                assert!(even(spread(|number| base((ports + 3, number)))), "port");
                assert!(even(spread(|number| base((last, number)))), "address");
                // Length, payload.
                for at in [17, ports + 4] {
                    let same = spread(|number| base((at, number)));
                    assert!(same.contains(&200), "{at}: {same:?}");
                }
            }
        }
    }

    #[test]
    fn parts_of_a_datagram_leave_by_one() {
        // More fragments, or an offset: what is where ports would be is data.
        for (at, flags) in [(20, 0x20), (20, 0x01), (21, 0x10)] {
            let part = |number| {
                head(&[
                    (12, &[8, 0, 0x45]),
                    (23, &[17]),
                    (at, &[flags]),
                    (34, &[number; 4]),
                ])
            };
            assert!(spread(part).contains(&200));
        }
        // Whatever a header says of its length is inside.
        for words in 0..16 {
            flow_of(&head(&[(12, &[8, 0, 0x40 | words]), (23, &[6])]));
        }
    }
}
