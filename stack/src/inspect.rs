//! A read-only view of a stack image, for `bypassctl`, the daemon and tests.
//!
//! [`Image::attach`] takes bytes that do not change any more: *copy the image first*, then look.
//! Nothing here panics or loops for long on any bytes; [`Image::check`] says what is wrong with
//! them. A copy taken without the stack's lock may show an update half done, so a tool should
//! look again before it reports a problem.

use crate::counters::{Counter, Counters, DropReason};
use crate::demux::home;
use crate::image::{
    Capacities, ChunkSlot, Endpoint, LayoutError, NONE, QueuePairInfo, SlabsRef, UdpOptions,
    chunk_state, kind, split_ref, stated_capacities, table,
};
use crate::types::{
    ChunkId, EndpointId, Family, Instant, ProcessId, QUEUE_PAIRS, SocketAddress, WaiterId,
    WaiterSet, has_bit,
};
use core::fmt;

/// A view of a copied image.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    slabs: SlabsRef<'a>,
    caps: Capacities,
}

/// One endpoint, as it was when the image was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Its id.
    pub id: EndpointId,
    /// Which packets it takes.
    pub family: Family,
    /// Local address.
    pub local: SocketAddress,
    /// Remote address if connected.
    pub remote: Option<SocketAddress>,
    /// SO_BINDTODEVICE's interface, or 0.
    pub ifindex: u32,
    /// Datagrams queued.
    pub queued: u32,
    /// Bytes charged against the receive buffer.
    pub queued_bytes: u32,
    /// Datagrams ever queued, wrapping at 32 bits.
    pub arrivals: u32,
    /// Datagrams dropped because the endpoint was full.
    pub drops: u32,
    /// Datagrams received since it was opened.
    pub rx_datagrams: u64,
    /// Datagrams sent since it was opened, hairpin included.
    pub tx_datagrams: u64,
    /// The filter that feeds it, 0 = none.
    pub filter: u32,
    /// The shadow socket's cookie.
    pub shadow_cookie: u64,
    /// Options.
    pub options: UdpOptions,
    /// Processes that hold it, a bit per slot.
    pub holders: [u64; 2],
    /// Waiters parked on it.
    pub waiters: WaiterSet,
}

impl EndpointView {
    /// Whether a process holds the endpoint.
    #[must_use]
    pub fn is_held_by(&self, process: ProcessId) -> bool {
        has_bit(&self.holders, process.0)
    }
}

/// One process of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessView {
    /// Its slot.
    pub id: ProcessId,
    /// Process id, as the daemon sees it; 0 = a fork under way.
    pub pid: u32,
    /// Start time from /proc/PID/stat.
    pub start_time: u64,
    /// User id.
    pub uid: u32,
    /// How often the slot was given out.
    pub generation: u32,
}

/// Where the chunks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkCounts {
    /// On the free list.
    pub free: u32,
    /// In fill rings, or on their way.
    pub posted: u32,
    /// On receive queues.
    pub queued: u32,
    /// On transmit lists or in TX and completion rings.
    pub sending: u32,
    /// In no known state.
    pub unknown: u32,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// A link or field names an entry that does not exist. `index`: the entry that names it.
    BadIndex,
    /// A list is longer than its slab. `index`: its first entry, queue pair or bucket.
    Cycle,
    /// A list has an entry that belongs elsewhere. `index`: the entry.
    Foreign,
    /// The length of a list contradicts its count. `index`: owner of the list.
    Count,
    /// A chunk is in no list although its state says so, or has an unknown state. `index`: chunks
    /// of that state that are missing.
    ChunkLost,
    /// A live endpoint is not in its demux chain, or a chain's back link is wrong. `index`: the
    /// endpoint.
    Demux,
    /// A live endpoint has no holder. `index`: the endpoint.
    NoHolder,
    /// An endpoint names a process or waiter slot that is not in use. `index`: the endpoint.
    DeadSlot,
}

/// A problem that [`Image::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// In which part of the image: "free chunks", "receive queue", …
    pub place: &'static str,
    /// The entry; see [`ProblemKind`].
    pub index: u32,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ProblemKind::BadIndex => "names an entry that does not exist",
            ProblemKind::Cycle => "never ends",
            ProblemKind::Foreign => "has an entry that belongs elsewhere",
            ProblemKind::Count => "has another length than its count says",
            ProblemKind::ChunkLost => "chunks are in no list",
            ProblemKind::Demux => "is not where demux looks for it",
            ProblemKind::NoHolder => "is held by nobody",
            ProblemKind::DeadSlot => "names a slot that is not in use",
        };
        write!(f, "{} {}: {what}", self.place, self.index)
    }
}

impl<'a> Image<'a> {
    /// Views a copy of an image, which must be aligned to 8 bytes (any `Vec<u64>` is).
    pub fn attach(bytes: &'a [u8]) -> Result<Self, LayoutError> {
        let caps = stated_capacities(bytes)?;
        Ok(Self {
            slabs: split_ref(bytes, &caps)?,
            caps,
        })
    }

    /// What the image has room for.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        self.caps
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters<'a> {
        Counters {
            counters: &self.slabs.head.counters,
            drops: &self.slabs.head.drops,
        }
    }

    /// Value of a counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters().get(counter)
    }

    /// Frames dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.counters().dropped(reason)
    }

    /// The table of queue pairs; look at [`QueuePairInfo::is_live`].
    #[must_use]
    pub fn queue_pairs(&self) -> &'a [QueuePairInfo; QUEUE_PAIRS] {
        &self.slabs.head.queue_pairs
    }

    /// Changes whenever the table of queue pairs changed.
    #[must_use]
    pub fn queue_pairs_generation(&self) -> u32 {
        self.slabs.head.queue_pairs_generation
    }

    /// Frames that wait on a queue pair's transmit list.
    #[must_use]
    pub fn transmit_count(&self, queue_pair: u8) -> u32 {
        self.slabs
            .head
            .transmit
            .get(usize::from(queue_pair))
            .map_or(0, |list| list.count)
    }

    /// When the last frame came.
    #[must_use]
    pub fn last_frame(&self) -> Instant {
        Instant(self.slabs.head.last_frame_ns)
    }

    /// The live endpoints, in index order.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointView> + use<'a> {
        self.live().map(|(index, endpoint)| view(index, endpoint))
    }

    /// The endpoint with this id, if it is live.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<EndpointView> {
        let endpoint = self.slabs.endpoints.get(id.index as usize)?;
        (endpoint.is_live() && endpoint.generation == id.generation)
            .then(|| view(id.index, endpoint))
    }

    /// The processes, in slot order.
    pub fn processes(&self) -> impl Iterator<Item = ProcessView> + use<'a> {
        let slots = self.slabs.head.processes.iter().zip(0u8..);
        slots
            .filter(|(slot, _)| slot.live != 0)
            .map(|(slot, index)| ProcessView {
                id: ProcessId(index),
                pid: slot.pid,
                start_time: slot.start_time,
                uid: slot.uid,
                generation: slot.generation,
            })
    }

    /// The waiters in use, with their process.
    pub fn waiters(&self) -> impl Iterator<Item = (WaiterId, ProcessId)> + use<'a> {
        let slots = self.slabs.head.waiters.iter().zip(0u8..);
        slots
            .filter(|(slot, _)| slot.live != 0)
            .map(|(slot, index)| (WaiterId(index), ProcessId(slot.process as u8)))
    }

    /// Counts the chunks by state.
    #[must_use]
    pub fn chunks(&self) -> ChunkCounts {
        let mut counts = ChunkCounts::default();
        for slot in self.slabs.chunks {
            let count = match slot.state {
                chunk_state::FREE => &mut counts.free,
                chunk_state::POSTED => &mut counts.posted,
                chunk_state::QUEUED => &mut counts.queued,
                chunk_state::SENDING => &mut counts.sending,
                _ => &mut counts.unknown,
            };
            *count = count.saturating_add(1);
        }
        counts
    }

    /// The chunks queued on an endpoint, oldest first, as far as its queue is sound.
    pub fn queued(&self, id: EndpointId) -> impl Iterator<Item = ChunkId> + use<'a> {
        let chunks = self.slabs.chunks;
        let known = self.slabs.endpoints.get(id.index as usize);
        let mut next = known.map_or(NONE, |endpoint| endpoint.queue_head);
        (0..chunks.len()).map_while(move |_| {
            let slot = chunks.get(next as usize)?;
            let here = ChunkId(next);
            next = slot.next;
            (slot.state == chunk_state::QUEUED && slot.owner == id.index).then_some(here)
        })
    }

    fn live(&self) -> impl Iterator<Item = (u32, &'a Endpoint)> + use<'a> {
        (0u32..)
            .zip(self.slabs.endpoints)
            .filter(|(_, endpoint)| endpoint.is_live())
    }

    /// Looks for anything wrong and calls `report` for each problem. No call: the image is sound,
    /// that is, every chunk and endpoint is in exactly one place.
    pub fn check(&self, report: &mut dyn FnMut(Problem)) {
        self.check_free_chunks(report);
        self.check_receive_queues(report);
        self.check_transmit_lists(report);
        self.check_free_endpoints(report);
        self.check_demux(report);
        self.check_slots(report);
        let unknown = self.chunks().unknown;
        if unknown != 0 {
            report(Problem {
                kind: ProblemKind::ChunkLost,
                place: "unknown state",
                index: unknown,
            });
        }
    }

    /// Every free chunk is on the free list, once.
    fn check_free_chunks(&self, report: &mut dyn FnMut(Problem)) {
        let place = "free chunks";
        let head = self.slabs.head;
        let member = |slot: &ChunkSlot| slot.state == chunk_state::FREE;
        let length = self
            .walk_chunks(place, head.free_chunk, 0, &member, report)
            .0;
        if length != head.free_chunks {
            report(Problem {
                kind: ProblemKind::Count,
                place,
                index: length,
            });
        }
        missing(place, self.chunks().free, length, report);
    }

    /// Every queued chunk is on its owner's queue, once, and counts and tails agree.
    fn check_receive_queues(&self, report: &mut dyn FnMut(Problem)) {
        let place = "receive queue";
        let mut sum = 0u32;
        for (index, endpoint) in self.live() {
            let member =
                |slot: &ChunkSlot| slot.state == chunk_state::QUEUED && slot.owner == index;
            let (length, last) = self.walk_chunks(place, endpoint.queue_head, sum, &member, report);
            if length != endpoint.queued || last != endpoint.queue_tail {
                report(Problem {
                    kind: ProblemKind::Count,
                    place,
                    index,
                });
            }
            sum = sum.saturating_add(length);
        }
        missing(place, self.chunks().queued, sum, report);
    }

    /// Every chunk that is owned by a transmit list is on it, once.
    fn check_transmit_lists(&self, report: &mut dyn FnMut(Problem)) {
        let place = "transmit list";
        let mut sum = 0u32;
        for (index, list) in (0u32..).zip(&self.slabs.head.transmit) {
            let member =
                |slot: &ChunkSlot| slot.state == chunk_state::SENDING && slot.owner == index;
            let (length, last) = self.walk_chunks(place, list.head, sum, &member, report);
            if length != list.count || last != list.tail {
                report(Problem {
                    kind: ProblemKind::Count,
                    place,
                    index,
                });
            }
            sum = sum.saturating_add(length);
        }
        let listed = |slot: &&ChunkSlot| slot.state == chunk_state::SENDING && slot.owner != NONE;
        let expected = self.slabs.chunks.iter().filter(listed).count() as u32;
        missing(place, expected, sum, report);
    }

    /// Walks a list of chunks: its length as far as it is sound, and its last member. `before` is
    /// how many chunks other lists of this kind have: together they have no more than there are.
    fn walk_chunks(
        &self,
        place: &'static str,
        first: u32,
        before: u32,
        member: &dyn Fn(&ChunkSlot) -> bool,
        report: &mut dyn FnMut(Problem),
    ) -> (u32, u32) {
        let (mut length, mut last, mut next) = (0u32, NONE, first);
        while next != NONE {
            let kind = match self.slabs.chunks.get(next as usize) {
                None => ProblemKind::BadIndex,
                Some(_) if length.saturating_add(before) as usize >= self.slabs.chunks.len() => {
                    ProblemKind::Cycle
                }
                Some(slot) if !member(slot) => ProblemKind::Foreign,
                Some(slot) => {
                    length = length.saturating_add(1);
                    last = next;
                    next = slot.next;
                    continue;
                }
            };
            report(Problem {
                kind,
                place,
                index: next,
            });
            break;
        }
        (length, last)
    }

    /// Every endpoint that is not live is on the free list, once.
    fn check_free_endpoints(&self, report: &mut dyn FnMut(Problem)) {
        let place = "free endpoints";
        let slots = self.slabs.endpoints;
        let (mut length, mut next) = (0u32, self.slabs.head.free_endpoint);
        while next != NONE {
            let kind = match slots.get(next as usize) {
                None => ProblemKind::BadIndex,
                Some(_) if length as usize >= slots.len() => ProblemKind::Cycle,
                Some(endpoint) if endpoint.kind != kind::FREE => ProblemKind::Foreign,
                Some(endpoint) => {
                    length = length.saturating_add(1);
                    next = endpoint.next;
                    continue;
                }
            };
            report(Problem {
                kind,
                place,
                index: next,
            });
            break;
        }
        let live = self.live().count() as u32;
        if live != self.slabs.head.live_endpoints
            || length.saturating_add(live) as usize != slots.len()
        {
            report(Problem {
                kind: ProblemKind::Count,
                place,
                index: length,
            });
        }
    }

    /// Every live endpoint with a port is in the chain of its bucket, once, linked both ways.
    fn check_demux(&self, report: &mut dyn FnMut(Problem)) {
        let SlabsRef {
            head,
            ports,
            flows,
            endpoints,
            ..
        } = self.slabs;
        let mut expected = [0u32; 3];
        for (index, endpoint) in self.live() {
            let (which, bucket) = home(head.seed, ports, flows, endpoint);
            if endpoint.table != which || which != table::NONE && endpoint.bucket != bucket {
                report(Problem {
                    kind: ProblemKind::Demux,
                    place: "endpoint",
                    index,
                });
            }
            if let Some(count) = expected.get_mut(usize::from(which)) {
                *count = count.saturating_add(1);
            }
        }
        for (place, which, buckets) in [
            ("ports chain", table::PORTS, ports),
            ("flows chain", table::FLOWS, flows),
        ] {
            let mut members = 0u32;
            for (bucket, first) in (0u32..).zip(buckets) {
                let (mut previous, mut next) = (NONE, *first);
                while next != NONE {
                    let kind = match endpoints.get(next as usize) {
                        None => ProblemKind::BadIndex,
                        Some(_) if members as usize >= endpoints.len() => ProblemKind::Cycle,
                        Some(e) if !e.is_live() || e.table != which || e.bucket != bucket => {
                            ProblemKind::Foreign
                        }
                        Some(e) if e.previous != previous => ProblemKind::Demux,
                        Some(e) => {
                            members = members.saturating_add(1);
                            (previous, next) = (next, e.next);
                            continue;
                        }
                    };
                    report(Problem {
                        kind,
                        place,
                        index: next,
                    });
                    break;
                }
            }
            if expected.get(usize::from(which)) != Some(&members) {
                report(Problem {
                    kind: ProblemKind::Count,
                    place,
                    index: members,
                });
            }
            if which == table::FLOWS && head.connected_endpoints != members {
                report(Problem {
                    kind: ProblemKind::Count,
                    place,
                    index: members,
                });
            }
        }
    }

    /// Holders and waiters name slots in use.
    fn check_slots(&self, report: &mut dyn FnMut(Problem)) {
        let head = self.slabs.head;
        let mut processes = [0u64; 2];
        for process in self.processes() {
            crate::types::set_bit(&mut processes, process.id.0, true);
        }
        let mut waiters = WaiterSet::default();
        for (waiter, _) in self.waiters() {
            waiters.insert(waiter);
        }
        let inside = |part: [u64; 2], all: [u64; 2]| {
            let ([a, b], [c, d]) = (part, all);
            a & !c == 0 && b & !d == 0
        };
        for (index, endpoint) in self.live() {
            if endpoint.holders == [0, 0] {
                report(Problem {
                    kind: ProblemKind::NoHolder,
                    place: "endpoint",
                    index,
                });
            }
            if !inside(endpoint.holders, processes) || !inside(endpoint.waiters, waiters.0) {
                report(Problem {
                    kind: ProblemKind::DeadSlot,
                    place: "endpoint",
                    index,
                });
            }
        }
        if !inside(head.wakeups, waiters.0) {
            report(Problem {
                kind: ProblemKind::DeadSlot,
                place: "wake-ups",
                index: 0,
            });
        }
    }
}

/// Reports chunks whose state says that they are in a list, and that are not.
fn missing(place: &'static str, expected: u32, found: u32, report: &mut dyn FnMut(Problem)) {
    if expected != found {
        let index = expected.abs_diff(found);
        report(Problem {
            kind: ProblemKind::ChunkLost,
            place,
            index,
        });
    }
}

/// An endpoint's view.
fn view(index: u32, endpoint: &Endpoint) -> EndpointView {
    let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
    EndpointView {
        id: EndpointId {
            index,
            generation: endpoint.generation,
        },
        family: Family::from_byte(endpoint.family),
        local: SocketAddress::new(endpoint.local_ip, endpoint.local_port),
        remote: (endpoint.connected != 0).then_some(remote),
        ifindex: endpoint.ifindex,
        queued: endpoint.queued,
        queued_bytes: endpoint.queued_bytes,
        arrivals: endpoint.arrivals,
        drops: endpoint.drops,
        rx_datagrams: endpoint.rx_datagrams,
        tx_datagrams: endpoint.tx_datagrams,
        filter: endpoint.filter,
        shadow_cookie: endpoint.shadow_cookie,
        options: endpoint.options,
        holders: endpoint.holders,
        waiters: WaiterSet(endpoint.waiters),
    }
}
