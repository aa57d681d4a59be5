//! Minisockets: connections that need little state. A *request* is a SYN that was answered and not
//! yet confirmed (SYN_RECEIVED of a passive open); a *time wait* is what is left of a connection
//! that was closed (RFC 9293 section 3.6.1); one that has *left* keeps answers to the last segments
//! of a connection away that another TCP has now.
//!
//! They are found by their whole 4-tuple through one hash table, after the connections.

use super::input::length;
use super::seq::{after, before};
use super::tcb::{Hop, NEVER};
use super::wheel::MINI;
use crate::counters::Counter;
use crate::demux::flow_hash;
use crate::image::NONE;
use crate::stack::Stack;
use crate::types::{Instant, IpAddress, SocketAddress};
use crate::wire::tcp::Segment;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Kinds of [`Mini`].
pub(crate) mod kind {
    pub(crate) const FREE: u8 = 0;
    pub(crate) const REQUEST: u8 = 1;
    pub(crate) const TIME_WAIT: u8 = 2;
    /// The connection has moved; its segments are dropped.
    pub(crate) const LEFT: u8 = 3;
}

/// One minisocket.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Mini {
    pub(crate) local_ip: IpAddress,
    pub(crate) remote_ip: IpAddress,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) kind: u8,
    /// TCP flags that were negotiated: low bits of [`super::tcb::flag`].
    pub(crate) negotiated: u8,
    pub(crate) rcv_wscale: u8,
    pub(crate) snd_wscale: u8,
    /// Chain of the bucket, or of the free list.
    pub(crate) next: u32,
    pub(crate) previous: u32,
    pub(crate) bucket: u32,
    pub(crate) timer_next: u32,
    pub(crate) timer_previous: u32,
    pub(crate) listener: u32,
    pub(crate) listener_generation: u32,
    pub(crate) rcv_nxt: u32,
    pub(crate) snd_nxt: u32,
    pub(crate) rcv_wnd: u32,
    pub(crate) ts_recent: u32,
    pub(crate) ts_offset: u32,
    pub(crate) ts_recent_ms: u32,
    pub(crate) synack_us: u32,
    pub(crate) peer_mss: u16,
    pub(crate) retransmits: u8,
    /// The final ACK has come, the accept queue was full or data was awaited.
    pub(crate) acked: u8,
    /// When it last answered a segment from outside the window, milliseconds; 0 = never.
    pub(crate) answered_ms: u32,
    pub(crate) timer_tick: u64,
    pub(crate) deadline: u64,
    pub(crate) born: u64,
    pub(crate) hop: Hop,
    pub(crate) tos: u8,
    /// SYN-ACK timeouts; fewer are retransmissions when TCP_DEFER_ACCEPT awaits data.
    pub(crate) timeouts: u8,
    pub(crate) reserved: [u8; 6],
}

impl Mini {
    pub(crate) fn local(&self) -> SocketAddress {
        SocketAddress::new(self.local_ip, self.local_port)
    }

    pub(crate) fn remote(&self) -> SocketAddress {
        SocketAddress::new(self.remote_ip, self.remote_port)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        u32::from(self.negotiated) & flag != 0
    }
}

/// Whether a segment has something of the window that begins there
/// (net/ipv4/tcp_minisocks.c:tcp_in_window).
pub(super) fn is_in_window(segment: &Segment, next: u32, window: u32) -> bool {
    let end = segment.seq.wrapping_add(length(segment));
    let limit = next.wrapping_add(window);
    segment.seq == next
        || after(end, next) && before(segment.seq, limit)
        || segment.seq == limit && end == limit
}

impl Stack<'_> {
    fn mini_bucket(&self, local: &SocketAddress, remote: &SocketAddress) -> u32 {
        let hash = flow_hash(self.head.seed, remote, local.port) as u32;
        hash & (self.mini_buckets.len() as u32).wrapping_sub(1)
    }

    /// The minisocket of a 4-tuple.
    pub(crate) fn find_mini(&self, local: &SocketAddress, remote: &SocketAddress) -> Option<u32> {
        if self.head.live_minis == 0 {
            return None;
        }
        let bucket = self.mini_bucket(local, remote);
        let mut index = self.mini_buckets.get(bucket as usize).copied()?;
        for _ in 0..self.minis.len() {
            let mini = self.minis.get(index as usize)?;
            if mini.kind != kind::FREE && mini.local() == *local && mini.remote() == *remote {
                return Some(index);
            }
            index = mini.next;
        }
        None
    }

    /// A fresh minisocket in the table; `None` when the slab is full.
    pub(crate) fn add_mini(
        &mut self,
        kind: u8,
        local: SocketAddress,
        remote: SocketAddress,
        now: Instant,
    ) -> Option<u32> {
        if self.head.free_mini == NONE && !self.begin_mini() {
            self.evict_time_wait();
        }
        let index = self.head.free_mini;
        let bucket = self.mini_bucket(&local, &remote);
        let first = self.mini_buckets.get(bucket as usize).copied()?;
        let mini = self.minis.get_mut(index as usize)?;
        if mini.kind != kind::FREE {
            self.head.free_mini = NONE;
            self.count(Counter::CorruptList);
            return None;
        }
        self.head.free_mini = mini.next;
        mini.zero();
        mini.kind = kind;
        mini.local_ip = local.ip;
        mini.local_port = local.port;
        mini.remote_ip = remote.ip;
        mini.remote_port = remote.port;
        mini.next = first;
        mini.previous = NONE;
        mini.bucket = bucket;
        mini.timer_next = NONE;
        mini.timer_previous = NONE;
        mini.timer_tick = NEVER;
        mini.deadline = NEVER;
        mini.born = now.0;
        mini.listener = NONE;
        if let Some(neighbour) = self.minis.get_mut(first as usize) {
            neighbour.previous = index;
        }
        if let Some(head) = self.mini_buckets.get_mut(bucket as usize) {
            *head = index;
        }
        self.head.live_minis = self.head.live_minis.saturating_add(1);
        if let Some(count) = self.minis_of(kind) {
            *count = count.saturating_add(1);
        }
        Some(index)
    }

    /// Puts a minisocket that was never used on the free list; `false` when all were. (Memory that
    /// nobody has touched is none.)
    fn begin_mini(&mut self) -> bool {
        let index = self.head.used_minis;
        let Some(mini) = self.minis.get_mut(index as usize) else {
            return false;
        };
        mini.zero();
        mini.next = NONE;
        self.head.used_minis = index.wrapping_add(1);
        self.head.free_mini = index;
        true
    }

    /// How many there are of a kind that is counted.
    fn minis_of(&mut self, kind: u8) -> Option<&mut u32> {
        match kind {
            kind::REQUEST => Some(&mut self.head.requests),
            kind::TIME_WAIT => Some(&mut self.head.time_waits),
            _ => None,
        }
    }

    /// Ends a time wait before its time, to make room (Linux ends new ones at tcp_max_tw_buckets):
    /// the next one that the hand of a clock meets, which is about the oldest.
    fn evict_time_wait(&mut self) {
        if self.head.time_waits == 0 {
            return;
        }
        let count = self.minis.len() as u32;
        for _ in 0..count {
            let hand = self.head.mini_hand;
            self.head.mini_hand = hand.wrapping_add(1);
            let index = hand.checked_rem(count).unwrap_or(0);
            if self
                .minis
                .get(index as usize)
                .is_some_and(|mini| mini.kind == kind::TIME_WAIT)
            {
                self.count(Counter::TcpTimeWaitFull);
                self.end_time_wait(index);
                return;
            }
        }
    }

    /// Takes a minisocket out of table and wheel.
    pub(crate) fn remove_mini(&mut self, index: u32) {
        self.disarm(index | MINI);
        let Some(mini) = self.minis.get_mut(index as usize) else {
            return;
        };
        if mini.kind == kind::FREE {
            return;
        }
        let (which, was_young, next, previous, bucket) = (
            mini.kind,
            mini.timeouts == 0,
            mini.next,
            mini.previous,
            mini.bucket,
        );
        let (listener, generation) = (mini.listener, mini.listener_generation);
        mini.kind = kind::FREE;
        mini.next = self.head.free_mini;
        self.head.free_mini = index;
        self.head.live_minis = self.head.live_minis.saturating_sub(1);
        if let Some(after) = self.minis.get_mut(next as usize) {
            after.previous = previous;
        }
        if let Some(before) = self.minis.get_mut(previous as usize) {
            before.next = next;
        } else if let Some(head) = self.mini_buckets.get_mut(bucket as usize) {
            *head = next;
        }
        if let Some(count) = self.minis_of(which) {
            *count = count.saturating_sub(1);
        }
        if which != kind::REQUEST {
            return;
        }
        if self
            .endpoints
            .get(listener as usize)
            .is_some_and(|endpoint| endpoint.generation == generation)
        {
            self.request_ended(listener, was_young);
        }
        self.note_less_crowd();
    }

    /// Takes every request of a listener away, without a word to the peers.
    pub(crate) fn remove_requests(&mut self, listener: u32, generation: u32) {
        for index in 0..self.head.used_minis {
            let Some(mini) = self.minis.get(index as usize) else {
                return;
            };
            if mini.kind == kind::REQUEST
                && mini.listener == listener
                && mini.listener_generation == generation
            {
                let (local, remote) = (mini.local(), mini.remote());
                self.remove_mini(index);
                self.flow_ended(local, remote);
            }
        }
    }
}
