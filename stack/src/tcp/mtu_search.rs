//! The search for the path's MTU where no ICMP message tells it (RFC 4821 as Linux has it:
//! net.ipv4.tcp_mtu_probing, net/ipv4/tcp_timer.c:tcp_mtu_probing, net/ipv4/tcp_output.c:
//! tcp_mtu_probe).
//!
//! ```text
//!  timeouts in a row ─► segments of tcp_base_mss, then half, then half of that
//!  a full window, nothing lost ─► one longer segment, half way to the most that may pass
//!      acknowledged ─► segments of that size      lost ─► it is the most, and no congestion
//! ```
//!
//! Sizes are of payloads. A probe is made of the bytes of several segments, so that its loss costs
//! a retransmission and no data of its own.

use super::connection::{Connection, millis};
use super::output::copy_between;
use super::pool::mark;
use super::seq::before;
use super::tcb::{Tcb, ca, search};
use crate::counters::Counter;
use crate::image::NONE;
use crate::types::{Instant, Memory};

/// Repeating for so long is suspicious, milliseconds: what tcp_retries1's three steps take when the
/// first is 200 ms (net/ipv4/tcp_timer.c:retransmits_timed_out).
const SUSPICIOUS_MS: u32 = 3000;
/// Segments that a window must hold, so that the loss of a probe is told by duplicate ACKs.
const LEAST_WINDOW: u32 = 11;
/// Least payload of a segment (Linux: tcp_min_snd_mss).
const LEAST_MSS: u32 = 48;

impl Tcb {
    /// The largest payload that is believed to pass.
    pub(super) fn searched_mss(&self) -> u16 {
        if self.mtu_search == search::OFF {
            u16::MAX
        } else {
            self.search_low
        }
    }
}

impl Connection<'_> {
    /// Segments have tcp_base_mss bytes from here on, until longer ones have passed.
    pub(super) fn begin_mtu_search(&mut self, now: Instant) {
        let most = self.path_mss();
        let base = self.pool.head.tcp_defaults.base_mss.max(LEAST_MSS);
        self.tcb.mtu_search = search::ON;
        self.tcb.search_low = base.min(u32::from(most)) as u16;
        self.tcb.search_high = most;
        self.tcb.search_ms = millis(now);
    }

    /// The retransmission timer has fired: when it has done so for long, perhaps the path swallows
    /// long segments.
    pub(super) fn suspect_mtu(&mut self, now: Instant) {
        let defaults = self.pool.head.tcp_defaults;
        let repeating = millis(now).wrapping_sub(self.tcb.retrans_stamp);
        let repeats = self.tcb.retransmits > 0 && self.tcb.retrans_stamp != 0;
        let suspicious = repeats && repeating >= SUSPICIOUS_MS;
        if defaults.mtu_probing == 0 || !suspicious {
            return;
        }
        if self.tcb.mtu_search == search::OFF {
            self.begin_mtu_search(now);
        } else {
            let floor = defaults.mtu_probe_floor.max(LEAST_MSS);
            let half = u32::from(self.tcb.search_low / 2);
            let least = half.min(defaults.base_mss).max(floor);
            self.tcb.search_low = least.min(u32::from(u16::MAX)) as u16;
        }
        let mss = self.current_mss();
        if mss < self.tcb.mss {
            self.tcb.mss = mss;
            self.pool.count(Counter::TcpBlackHoles);
        }
    }

    /// Data waits: perhaps it is time for a probe.
    #[cold]
    pub(super) fn search_mtu(&mut self, memory: &mut impl Memory, now: Instant) {
        let Some(size) = self.next_probe(now) else {
            return;
        };
        if !self.may_probe_mtu(size) || !self.join_unsent(memory, size) {
            return;
        }
        let seq = self.tcb.snd_nxt;
        // It leaves as any segment of this size would.
        let mss = core::mem::replace(&mut self.tcb.mss, size);
        let sent = self.send_next(memory, now, false);
        self.tcb.mss = mss;
        if sent {
            self.tcb.mtu_search = search::PROBING;
            self.tcb.search_probe = u32::from(size);
            self.tcb.search_seq = seq;
            self.pool.count(Counter::TcpMtuProbes);
        }
    }

    /// When the probe has arrived, segments are as long from here on, and fewer of them in flight.
    #[cold]
    pub(super) fn take_mtu_answer(&mut self) {
        let end = self.tcb.search_seq.wrapping_add(self.tcb.search_probe);
        if before(self.tcb.snd_una, end) {
            return;
        }
        let size = self.tcb.search_probe;
        let cwnd = u64::from(self.tcb.congestion.cwnd).saturating_mul(u64::from(self.tcb.mss));
        let cwnd = cwnd.checked_div(u64::from(size)).unwrap_or(1);
        self.tcb.congestion.cwnd = cwnd.clamp(1, u64::from(u32::MAX)) as u32;
        self.tcb.search_low = size.min(u32::from(u16::MAX)) as u16;
        self.tcb.mtu_search = search::ON;
        self.tcb.mss = self.current_mss();
    }

    /// The payload to try next; `None` when the search is near enough, until it begins anew.
    fn next_probe(&mut self, now: Instant) -> Option<u16> {
        let defaults = self.pool.head.tcp_defaults;
        let (low, high) = (
            self.tcb.search_low,
            self.tcb.search_high.min(self.path_mss()),
        );
        if u32::from(high.saturating_sub(low)) >= defaults.probe_threshold.max(1) {
            return Some(low.midpoint(high));
        }
        let searched_ms = millis(now).wrapping_sub(self.tcb.search_ms);
        if u64::from(searched_ms) >= u64::from(defaults.probe_interval_s).saturating_mul(1000) {
            let mss = self.tcb.mss;
            self.begin_mtu_search(now);
            self.tcb.search_low = mss;
        }
        None
    }

    /// Whether the loss of a probe would be told, and window and data are enough for it and for the
    /// segments behind it that tell.
    fn may_probe_mtu(&self, size: u16) -> bool {
        let behind = u32::from(self.tcb.reordering).saturating_add(1);
        let needed = behind
            .saturating_mul(u32::from(self.tcb.mss))
            .saturating_add(u32::from(size));
        let room = super::seq::distance(self.tcb.snd_nxt, self.tcb.send_window_end());
        self.tcb.ca_state == ca::OPEN
            && self.tcb.sacked_out == 0
            && self.tcb.congestion.cwnd >= LEAST_WINDOW
            && self.tcb.in_flight().saturating_add(2) <= self.tcb.congestion.cwnd
            && self.tcb.unsent_bytes() >= needed
            && !before(self.tcb.send_window_end(), self.tcb.snd_nxt)
            && room >= needed
    }

    /// Fills the first unsent segment up to `size` bytes with those of the next; `false` when they
    /// are too few or too many for a chunk.
    fn join_unsent(&mut self, memory: &mut impl Memory, size: u16) -> bool {
        let chunk = self.tcb.unsent;
        for _ in 0..self.pool.chunks.len() {
            let Some(&slot) = self.segment(chunk) else {
                return false;
            };
            let end = usize::from(slot.offset).saturating_add(usize::from(slot.len));
            let missing = size.saturating_sub(slot.len);
            if missing == 0 || slot.has(mark::END) {
                return missing == 0;
            }
            let fits = usize::from(slot.offset).saturating_add(usize::from(size));
            let next = self.segment(slot.next).copied();
            let Some(from) = next.filter(|_| fits <= memory.chunk_size()) else {
                return false;
            };
            let take = missing.min(from.len);
            if take == from.len && from.has(mark::FIN | mark::END) {
                return false;
            }
            copy_between(
                memory,
                (slot.next, usize::from(from.offset)),
                (chunk, end),
                usize::from(take),
            );
            if let Some(slot) = self.segment_mut(chunk) {
                slot.len = slot.len.saturating_add(take);
                slot.marks &= !mark::PUSH;
            }
            if let Some(next) = self.segment_mut(slot.next) {
                next.seq = next.seq.wrapping_add(u32::from(take));
                next.offset = next.offset.saturating_add(take);
                next.len = next.len.saturating_sub(take);
            }
            if take == from.len {
                self.drop_second_unsent(chunk, slot.next, from.next);
            }
        }
        false
    }

    /// Frees the segment behind the first unsent one: its bytes have gone there.
    fn drop_second_unsent(&mut self, first: u32, second: u32, third: u32) {
        if let Some(slot) = self.segment_mut(second) {
            slot.owner = NONE;
        }
        self.pool.drop_retained(second);
        self.tcb.queued_chunks = self.tcb.queued_chunks.saturating_sub(1);
        if let Some(slot) = self.segment_mut(first) {
            slot.next = third;
        }
        if self.tcb.queue_tail == second {
            self.tcb.queue_tail = first;
        }
    }

    /// Whether the first segment in flight is a probe that is lost: then the path takes none so
    /// long.
    pub(super) fn has_lost_mtu_probe(&mut self) -> bool {
        let lost = self.tcb.mtu_search == search::PROBING
            && self.tcb.snd_una == self.tcb.search_seq
            && self
                .segment(self.tcb.queue_head)
                .is_some_and(|slot| slot.has(mark::LOST));
        if lost {
            self.tcb.mtu_search = search::ON;
            self.tcb.search_high = self.tcb.search_probe.saturating_sub(1) as u16;
            self.pool.count(Counter::TcpMtuProbesLost);
        }
        lost
    }

    /// Something is sent again: what becomes of a probe in flight says nothing any more.
    pub(super) fn drop_mtu_probe(&mut self) {
        if self.tcb.mtu_search == search::PROBING {
            self.tcb.mtu_search = search::ON;
        }
    }
}
