//! [`Image::check`]: whether every chunk and endpoint of an image is in exactly one place.
//!
//! No list is followed further than its slab has entries, all lists of a kind together, so a check
//! ends soon on any bytes.

use super::Image;
use crate::demux::home;
use crate::image::{ChunkSlot, NONE, SlabsRef, UdpState, chunk_state, kind, table};
use crate::tcp::TcpState;
use crate::types::{WaiterSet, has_bit, set_bit};
use core::fmt;

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

impl Image<'_> {
    /// Looks for anything wrong and calls `report` for each problem. No call: the image is sound,
    /// that is, every chunk and endpoint is in exactly one place.
    pub fn check(&self, report: &mut dyn FnMut(Problem)) {
        self.check_free_chunks(report);
        self.check_receive_queues(report);
        self.check_transmit_lists(report);
        self.check_free_endpoints(report);
        self.check_demux(report);
        self.check_slots(report);
        self.check_connections(report);
        self.check_notices(report);
        self.check_watchers(report);
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
        for (index, udp) in self.udp() {
            let member =
                |slot: &ChunkSlot| slot.state == chunk_state::QUEUED && slot.owner == index;
            let (length, last) = self.walk_chunks(place, udp.queue_head, sum, &member, report);
            if length != udp.queued || last != udp.queue_tail {
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
                |slot: &ChunkSlot| chunk_state::is_sending(slot.state) && slot.owner == index;
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
        let listed = |slot: &&ChunkSlot| chunk_state::is_sending(slot.state) && slot.owner != NONE;
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
        let chunks = self.slabs.chunks;
        let most = chunks.len().saturating_sub(before as usize);
        let behind = |index, _| match chunks.get(index as usize) {
            None => Err(ProblemKind::BadIndex),
            Some(slot) if !member(slot) => Err(ProblemKind::Foreign),
            Some(slot) => Ok(slot.next),
        };
        walk(place, first, most, &behind, report)
    }

    /// What the UDP endpoints have.
    fn udp(&self) -> impl Iterator<Item = (u32, &UdpState)> {
        let udp = self.live().filter(|(_, it)| it.kind == kind::UDP);
        udp.filter_map(|(index, _)| Some((index, self.slabs.udp.get(index as usize)?)))
    }

    /// Whether a TCP endpoint is a listener or has a connection.
    fn is_open(&self, index: u32) -> bool {
        self.slabs
            .tcbs
            .get(index as usize)
            .is_some_and(|tcb| tcb.state() != TcpState::Closed)
    }

    /// Every endpoint that is not live is on the free list, once.
    fn check_free_endpoints(&self, report: &mut dyn FnMut(Problem)) {
        let place = "free endpoints";
        let slots = self.slabs.endpoints;
        let behind = |index, _| match slots.get(index as usize) {
            None => Err(ProblemKind::BadIndex),
            Some(endpoint) if endpoint.kind != kind::FREE => Err(ProblemKind::Foreign),
            Some(endpoint) => Ok(endpoint.next),
        };
        let first = self.slabs.head.free_endpoint;
        let length = walk(place, first, slots.len(), &behind, report).0;
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
            head, ports, flows, ..
        } = self.slabs;
        let mut expected = [0u32; 3];
        for (index, endpoint) in self.live() {
            let (mut which, bucket) = home(head.seed, ports, flows, endpoint);
            if endpoint.kind == kind::TCP && !self.is_open(index) {
                which = table::NONE;
            }
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
            let members = self.walk_chains(place, which, buckets, report);
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

    /// Follows the chains of a table and says how many endpoints are in them.
    fn walk_chains(
        &self,
        place: &'static str,
        which: u8,
        buckets: &[u32],
        report: &mut dyn FnMut(Problem),
    ) -> u32 {
        let endpoints = self.slabs.endpoints;
        let mut members = 0u32;
        for (bucket, first) in (0u32..).zip(buckets) {
            let behind = |index, previous| match endpoints.get(index as usize) {
                None => Err(ProblemKind::BadIndex),
                Some(e) if !e.is_live() || e.table != which || e.bucket != bucket => {
                    Err(ProblemKind::Foreign)
                }
                Some(e) if e.previous != previous => Err(ProblemKind::Demux),
                Some(e) => Ok(e.next),
            };
            let most = endpoints.len().saturating_sub(members as usize);
            let length = walk(place, *first, most, &behind, report).0;
            members = members.saturating_add(length);
        }
        members
    }

    fn check_held(&self, processes: [u64; 2], report: &mut dyn FnMut(Problem)) {
        let mut dead = |place, index| {
            report(Problem {
                kind: ProblemKind::DeadSlot,
                place,
                index,
            });
        };
        if self.slabs.head.live_processes != processes {
            dead("process", 0);
        }
        for (process, index) in self.slabs.all_held() {
            let endpoint = self.slabs.endpoints.get(index as usize);
            if !has_bit(&processes, process) || !endpoint.is_some_and(|endpoint| endpoint.is_live())
            {
                dead("held", index);
            }
        }
    }

    /// Waiters name slots in use; who holds something is there, and what is held.
    fn check_slots(&self, report: &mut dyn FnMut(Problem)) {
        let head = self.slabs.head;
        let mut processes = [0u64; 2];
        for process in self.processes() {
            set_bit(&mut processes, process.id.0, true);
        }
        let mut waiters = WaiterSet::default();
        for (waiter, _) in self.waiters() {
            waiters.insert(waiter);
        }
        let inside = |part: [u64; 2], all: [u64; 2]| {
            let ([a, b], [c, d]) = (part, all);
            a & !c == 0 && b & !d == 0
        };
        self.check_held(processes, report);
        for (index, endpoint) in self.live() {
            if self.slabs.holders(index) == [0, 0] && endpoint.kind == kind::UDP {
                report(Problem {
                    kind: ProblemKind::NoHolder,
                    place: "endpoint",
                    index,
                });
            }
            if !inside(endpoint.waiters, waiters.0) {
                report(Problem {
                    kind: ProblemKind::DeadSlot,
                    place: "endpoint",
                    index,
                });
            }
        }
        for (index, watcher) in (0u32..).zip(&head.watchers) {
            let process = u8::try_from(watcher.process).unwrap_or(u8::MAX);
            let dead = !has_bit(&processes, process) || !inside(watcher.waiters, waiters.0);
            if watcher.live != 0 && dead {
                report(Problem {
                    kind: ProblemKind::DeadSlot,
                    place: "watcher",
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

impl Image<'_> {
    /// Every endpoint on a ready list names that watcher and is live, every link points back, and
    /// the counts agree; an endpoint without a watcher is on no list.
    fn check_watchers(&self, report: &mut dyn FnMut(Problem)) {
        let place = "ready list";
        let mut listed = 0u32;
        for (index, watcher) in (0u32..).zip(&self.slabs.head.watchers) {
            if watcher.live == 0 {
                continue;
            }
            let (length, last) = self.walk_ready(index, watcher.head, report);
            let endpoints = self
                .live()
                .filter(|(_, endpoint)| endpoint.watcher == index.wrapping_add(1))
                .count();
            if length != watcher.count
                || last != watcher.tail
                || endpoints != watcher.endpoints as usize
            {
                report(Problem {
                    kind: ProblemKind::Count,
                    place,
                    index,
                });
            }
            listed = listed.saturating_add(length);
        }
        let all = self.slabs.ready.iter().filter(|link| link.is_listed());
        if all.count() != listed as usize {
            report(Problem {
                kind: ProblemKind::Foreign,
                place,
                index: listed,
            });
        }
    }

    /// Walks one ready list: its length as far as it is sound, and its last member.
    fn walk_ready(&self, watcher: u32, first: u32, report: &mut dyn FnMut(Problem)) -> (u32, u32) {
        let (endpoints, links) = (self.slabs.endpoints, self.slabs.ready);
        let behind = |index, last| {
            let both = endpoints.get(index as usize).zip(links.get(index as usize));
            match both {
                None => Err(ProblemKind::BadIndex),
                Some((endpoint, link))
                    if !endpoint.is_live()
                        || endpoint.watcher != watcher.wrapping_add(1)
                        || link.previous != last
                        || !link.is_listed() =>
                {
                    Err(ProblemKind::Foreign)
                }
                Some((_, link)) => Ok(link.next),
            }
        };
        walk("ready list", first, links.len(), &behind, report)
    }
}

/// Walks a list of at most so many entries: its length as far as it is sound, and its last entry.
/// `behind` says what comes behind an entry, of which it is given the one before, too.
pub(super) fn walk(
    place: &'static str,
    first: u32,
    most: usize,
    behind: &dyn Fn(u32, u32) -> Result<u32, ProblemKind>,
    report: &mut dyn FnMut(Problem),
) -> (u32, u32) {
    let (mut length, mut last, mut index) = (0u32, NONE, first);
    while index != NONE {
        let next = if length as usize >= most {
            Err(ProblemKind::Cycle)
        } else {
            behind(index, last)
        };
        match next {
            Ok(next) => (last, index) = (index, next),
            Err(kind) => {
                report(Problem { kind, place, index });
                break;
            }
        }
        length = length.saturating_add(1);
    }
    (length, last)
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
