//! Acknowledgements: what the peer has got, what that says about the network, what is sent again
//! (RFC 9293 section 3.10.7.4, RFC 2018, RFC 5681, RFC 6582, RFC 8985, RFC 9937).

use super::congestion::AckSample;
use super::connection::{Connection, elapsed, micros, millis};
use super::pool::{SegmentSlot, mark};
use super::seq::{after, before, distance};
use super::tcb::{Tcb, USUAL_REORDERING, ca, flag, pending};
use crate::counters::Counter;
use crate::image::NONE;
use crate::types::{Instant, Memory};
use crate::wire::tcp::{Segment, Timestamps, flags};

/// What one ACK has told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Segments newly delivered, by cumulative or selective acknowledgement.
    pub(crate) delivered: u32,
    /// Segments newly acknowledged cumulatively.
    pub(crate) acked: u32,
    /// Segments newly told as received by SACK.
    pub(crate) sacked: u32,
    /// Segments newly believed lost.
    pub(crate) lost: u32,
    /// Bytes newly acknowledged.
    pub(crate) bytes: u32,
    /// Round-trip time of a segment that was sent once.
    pub(crate) rtt_us: Option<u32>,
    /// A segment that had been sent again was acknowledged cumulatively: what waited behind it says
    /// nothing about the round trip (Karn).
    pub(crate) gap_filled: bool,
    /// A segment of the episode that was never sent again was delivered (RFC 5682).
    pub(crate) original: bool,
    /// It echoes a timestamp from before the first retransmission (RFC 3522).
    pub(crate) delayed: bool,
    /// A retransmission of the episode was told as a duplicate.
    pub(crate) dsack_undoes: bool,
    /// F-RTO sends new data to learn more, instead of what may be lost.
    pub(crate) new_data_only: bool,
    /// It echoes a congestion mark.
    pub(crate) ece: bool,
    /// A SACK block told of data that had come twice.
    pub(crate) dsack: bool,
    /// What had been told by SACK before: up to there a segment can be late.
    pub(crate) sacked_before: u32,
    /// The first segment that was told late, behind one that was sent after it.
    pub(crate) late: Option<u32>,
    /// The newest delivered segment, for the rate sample and for rounds.
    pub(crate) newest: Option<SegmentSlot>,
    /// The window of the peer was closed, and is not any more.
    pub(crate) reopened: bool,
    /// The window of the peer has changed, or the segment had data: no duplicate ACK.
    pub(crate) not_duplicate: bool,
}

impl Tcb {
    /// Whether a segment's window is news (net/ipv4/tcp_input.c:tcp_may_update_window).
    #[inline]
    pub(super) fn tells_window(&self, seq: u32, ack: u32, window: u16) -> bool {
        let window = u32::from(window) << u32::from(self.snd_wscale.min(14));
        after(ack, self.snd_una)
            || after(seq, self.snd_wl1)
            || seq == self.snd_wl1 && (window > self.snd_wnd || window == 0)
    }

    /// The peer's window (RFC 9293: the newer segment by (seq, ack) counts); whether it changed.
    /// `snd_una` is still what it was before the segment.
    #[inline]
    pub(super) fn take_window(&mut self, seq: u32, ack: u32, window: u16) -> bool {
        if !self.tells_window(seq, ack, window) {
            return false;
        }
        let window = u32::from(window) << u32::from(self.snd_wscale.min(14));
        self.snd_wl1 = seq;
        if window == self.snd_wnd {
            return false;
        }
        self.snd_wnd = window;
        self.max_window = self.max_window.max(window);
        true
    }
}

impl Connection<'_> {
    /// Takes the acknowledgement of an acceptable segment. `false`: the segment is to be dropped.
    pub(crate) fn take_ack(
        &mut self,
        memory: &mut impl Memory,
        segment: &Segment,
        now: Instant,
    ) -> bool {
        let ack = segment.ack;
        if after(ack, self.tcb.snd_nxt) {
            // Something never sent (RFC 5961 section 5.2).
            self.challenge(now);
            return false;
        }
        if before(ack, self.tcb.snd_una) {
            // Never older than what the peer can have received (RFC 5961 section 5.2).
            let most = u64::from(self.tcb.max_window).min(self.tcb.bytes_acked) as u32;
            if before(ack, self.tcb.snd_una.wrapping_sub(most)) {
                self.challenge(now);
                return false;
            }
            if segment.options.sack_count > 0 {
                let in_flight = self.tcb.in_flight();
                let mut told = Told::default();
                self.take_sack(segment, &mut told);
                self.react(memory, &mut told, in_flight, false, now);
            }
            return true;
        }
        self.take_timestamp(segment, now);
        let in_flight = self.tcb.in_flight();
        let mut told = Told {
            not_duplicate: segment.payload_len > 0
                || segment.flags & (flags::SYN | flags::FIN) != 0,
            ece: segment.flags & (flags::ECE | flags::SYN) == flags::ECE && self.tcb.has(flag::ECN),
            ..Told::default()
        };
        let window_before = self.tcb.snd_wnd;
        if self.tcb.take_window(segment.seq, ack, segment.window) {
            told.not_duplicate = true;
            told.reopened = window_before == 0;
        }
        told.delayed = self.is_delayed(segment);
        let una_before = self.tcb.snd_una;
        told.sacked_before = if self.tcb.sacked_out > 0 {
            self.tcb.highest_sacked
        } else {
            una_before
        };
        self.take_sack(segment, &mut told);
        if after(ack, una_before) {
            self.take_cumulative(ack, &mut told, now);
        }
        self.tcb.probes_out = 0;
        self.tcb.soft_error = 0;
        self.tcb.last_received_ms = millis(now);
        if self.tcb.packets_out == 0 && told.acked == 0 {
            self.after_probe_answer(now);
        }
        self.sample_round_trip(segment.options.timestamps, &mut told, now);
        let is_duplicate = ack == una_before && !told.not_duplicate && in_flight > 0;
        self.react(memory, &mut told, in_flight, is_duplicate, now);
        if told.reopened && told.acked == 0 && self.tcb.packets_out > 0 {
            // What the peer had no memory for waits for no doubled timeout.
            self.tcb.backoff = 0;
            self.tcb.retransmits = 0;
            self.tcb.stuck_since = now.0;
            self.arm_rto(now);
        }
        true
    }

    /// Whether the ACK is of a copy from before the first retransmission of the episode (RFC 3522,
    /// net/ipv4/tcp_input.c:tcp_packet_delayed).
    fn is_delayed(&self, segment: &Segment) -> bool {
        let Some(timestamps) = segment.options.timestamps else {
            return false;
        };
        self.tcb.has(flag::TIMESTAMPS)
            && self.tcb.retrans_stamp != 0
            && timestamps.echo != 0
            && before(
                timestamps.echo.wrapping_sub(self.tcb.ts_offset),
                self.tcb.retrans_stamp,
            )
    }

    /// Marks what SACK blocks tell.
    fn take_sack(&mut self, segment: &Segment, told: &mut Told) {
        if !self.tcb.has(flag::SACK) || segment.options.sack_count == 0 {
            return;
        }
        let mut blocks = segment.options.sack;
        let count = usize::from(segment.options.sack_count).min(blocks.len());
        let Some([first, rest @ ..]) = blocks.get(..count) else {
            return;
        };
        let inside_second = rest.first().is_some_and(|second| {
            !before(first.left, second.left) && !after(first.right, second.right)
        });
        let is_duplicate = inside_second || !after(first.right, segment.ack);
        if is_duplicate {
            self.take_dsack(first.right, told);
        }
        let blocks = blocks.get_mut(usize::from(is_duplicate)..count);
        let blocks = blocks.unwrap_or_default();
        // In the order of the data: when ACKs were lost the later blocks tell something new too,
        // which is below the first, and no reordering.
        let una = self.tcb.snd_una;
        blocks.sort_unstable_by_key(|block| distance(una, block.left));
        for block in blocks {
            let sane = before(block.left, block.right)
                && !after(block.right, self.tcb.snd_nxt)
                && !before(block.left, self.tcb.snd_una);
            if sane {
                self.mark_sacked(block.left, block.right, told);
            }
        }
        self.note_reordering(told);
    }

    /// The peer has got something twice (RFC 2883).
    fn take_dsack(&mut self, right: u32, told: &mut Told) {
        told.dsack = true;
        self.tcb.dsack_dups = self.tcb.dsack_dups.wrapping_add(1);
        self.pool.count(Counter::TcpDsackReceived);
        let of_episode = self.tcb.undo_marker != 0
            && after(right, self.tcb.undo_marker)
            && !after(right, self.tcb.snd_una);
        if of_episode && self.tcb.undo_retrans > 0 {
            told.dsack_undoes = true;
            self.tcb.undo_retrans = self.tcb.undo_retrans.wrapping_sub(1);
        }
        let of_probe = self.tcb.has(flag::TLP_OUT) && right == self.tcb.tlp_high_seq;
        if of_probe && self.tcb.has(flag::TLP_RETRANSMITTED) {
            // The probe was not needed (RFC 8985 section 7.4.2).
            self.tcb.clear(flag::TLP_OUT);
        } else if self.tcb.has(flag::REORDER_SEEN) {
            self.tcb.set(flag::DSACK_SEEN);
        }
    }

    /// Reordering was mistaken for loss: RACK waits longer, by one step a round trip (RFC 8985
    /// section 6.2 step 4, net/ipv4/tcp_recovery.c:tcp_rack_update_reo_wnd).
    fn widen_reorder_window(&mut self, newest: &SegmentSlot) {
        if !self.tcb.has(flag::DSACK_SEEN) {
            return;
        }
        self.tcb.clear(flag::DSACK_SEEN);
        if !before(newest.delivered, self.tcb.rack_delivered) {
            self.tcb.rack_steps = self.tcb.rack_steps.saturating_add(1);
            self.tcb.rack_delivered = self.tcb.delivered;
            self.tcb.rack_persist = 16;
        }
    }

    /// Marks the segments inside a block.
    fn mark_sacked(&mut self, left: u32, right: u32, told: &mut Told) {
        let mut chunk = self.tcb.queue_head;
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent {
                break;
            }
            let Some(&slot) = self.segment(chunk) else {
                break;
            };
            if !before(slot.seq, right) {
                break;
            }
            let whole = !before(slot.seq, left) && !after(slot.end(), right);
            if whole && !slot.has(mark::SACKED) {
                self.sacked(chunk, slot, told);
            }
            chunk = slot.next;
        }
    }

    fn sacked(&mut self, chunk: u32, slot: SegmentSlot, told: &mut Told) {
        let late = self.tcb.sacked_out > 0 && before(slot.seq, self.tcb.highest_sacked);
        if late && !slot.has(mark::EVER_RETRANSMITTED) {
            told.late.get_or_insert(slot.seq);
        }
        if slot.has(mark::LOST) {
            self.tcb.lost_out = self.tcb.lost_out.saturating_sub(1);
        }
        if slot.has(mark::RETRANSMITTED) {
            self.tcb.retrans_out = self.tcb.retrans_out.saturating_sub(1);
        }
        self.tcb.sacked_out = self.tcb.sacked_out.saturating_add(1);
        if let Some(slot) = self.segment_mut(chunk) {
            slot.marks |= mark::SACKED;
            slot.marks &= !(mark::LOST | mark::RETRANSMITTED);
        }
        if !late {
            self.tcb.highest_sacked = slot.end();
        }
        told.sacked = told.sacked.saturating_add(1);
        self.delivered(&slot, told);
    }

    /// Books of a segment that the peer has got.
    #[inline(always)]
    fn delivered(&mut self, slot: &SegmentSlot, told: &mut Told) {
        told.delivered = told.delivered.saturating_add(1);
        self.tcb.delivered = self.tcb.delivered.wrapping_add(1);
        if !slot.has(mark::EVER_RETRANSMITTED) && !after(slot.end(), self.tcb.high_seq) {
            told.original = true;
        }
        self.advance_rack(slot);
        let newer = told.newest.is_none_or(|newest| {
            let later = slot.sent_us.wrapping_sub(newest.sent_us) as i32;
            later > 0 || later == 0 && after(slot.end(), newest.end())
        });
        if newer {
            told.newest = Some(*slot);
        }
    }

    /// Counts what came late, once for all that one step has told, and remembers how late that was
    /// (net/ipv4/tcp_input.c:tcp_check_sack_reordering).
    #[inline(always)]
    fn note_reordering(&mut self, told: &mut Told) {
        if let Some(seq) = told.late.take() {
            self.saw_reordering(seq);
        }
    }

    #[cold]
    fn saw_reordering(&mut self, seq: u32) {
        self.tcb.set(flag::REORDER_SEEN);
        let end = if self.tcb.sacked_out > 0 {
            self.tcb.highest_sacked
        } else {
            self.tcb.snd_una
        };
        // In segments.
        let extent = distance(seq, end).div_ceil(u32::from(self.tcb.mss).max(1));
        self.tcb.reordering = self.tcb.reordering.max(extent.min(300) as u16);
        self.tcb.reord_seen = self.tcb.reord_seen.wrapping_add(1);
        self.pool.count(Counter::TcpReordering);
    }

    /// Takes acknowledged segments off the send queue.
    #[inline(always)]
    pub(super) fn take_cumulative(&mut self, ack: u32, told: &mut Told, now: Instant) {
        told.bytes = distance(self.tcb.snd_una, ack);
        for _ in 0..self.pool.chunks.len() {
            let chunk = self.tcb.queue_head;
            if chunk == self.tcb.unsent {
                break;
            }
            let Some(&slot) = self.segment(chunk) else {
                break;
            };
            if after(slot.end(), ack) {
                if before(slot.seq, ack) {
                    self.trim(chunk, distance(slot.seq, ack));
                }
                break;
            }
            self.acked(chunk, slot, told);
        }
        self.tcb.snd_una = ack;
        self.note_reordering(told);
        self.tcb.bytes_acked = self.tcb.bytes_acked.wrapping_add(u64::from(told.bytes));
        self.tcb.retransmits = 0;
        self.tcb.stuck_since = now.0;
        if before(self.tcb.snd_up, ack) {
            self.tcb.snd_up = ack;
        }
        // Without SACK the count of duplicate ACKs stands for what was delivered beyond.
        if !self.tcb.has(flag::SACK) {
            let beyond = told.acked.saturating_sub(1);
            self.tcb.sacked_out = self.tcb.sacked_out.saturating_sub(beyond);
            self.tcb.sacked_out = self.tcb.sacked_out.min(self.tcb.packets_out);
        }
    }

    fn trim(&mut self, chunk: u32, bytes: u32) {
        if let Some(slot) = self.segment_mut(chunk) {
            let bytes = bytes.min(u32::from(slot.len)) as u16;
            slot.seq = slot.seq.wrapping_add(u32::from(bytes));
            slot.offset = slot.offset.saturating_add(bytes);
            slot.len = slot.len.saturating_sub(bytes);
        }
    }

    #[inline(always)]
    fn acked(&mut self, chunk: u32, slot: SegmentSlot, told: &mut Told) {
        told.acked = told.acked.saturating_add(1);
        if slot.has(mark::SACKED) {
            self.tcb.sacked_out = self.tcb.sacked_out.saturating_sub(1);
        } else {
            // A hole is filled by a segment that was not sent again: it was only late.
            if self.tcb.sacked_out > 0
                && !slot.has(mark::EVER_RETRANSMITTED)
                && before(slot.seq, told.sacked_before)
                && self.tcb.has(flag::SACK)
            {
                told.late.get_or_insert(slot.seq);
            }
            told.gap_filled |= slot.has(mark::EVER_RETRANSMITTED);
            self.delivered(&slot, told);
        }
        if slot.has(mark::LOST) {
            self.tcb.lost_out = self.tcb.lost_out.saturating_sub(1);
        }
        if slot.has(mark::RETRANSMITTED) {
            self.tcb.retrans_out = self.tcb.retrans_out.saturating_sub(1);
        }
        self.tcb.packets_out = self.tcb.packets_out.saturating_sub(1);
        self.tcb.queue_head = slot.next;
        if slot.next == NONE {
            self.tcb.queue_tail = NONE;
        }
        self.tcb.queued_chunks = self.tcb.queued_chunks.saturating_sub(1);
        if let Some(slot) = self.segment_mut(chunk) {
            slot.owner = NONE;
        }
        self.pool.drop_retained(chunk);
    }

    /// Round-trip time and delivery rate from this ACK.
    #[inline(always)]
    pub(super) fn sample_round_trip(
        &mut self,
        timestamps: Option<Timestamps>,
        told: &mut Told,
        now: Instant,
    ) {
        let now_us = micros(now) as u32;
        let Some(newest) = told.newest else { return };
        let age = elapsed(now_us, newest.sent_us);
        if !newest.has(mark::EVER_RETRANSMITTED) && !told.gap_filled {
            told.rtt_us = Some(age);
        } else if let Some(timestamps) = timestamps
            && self.tcb.has(flag::TIMESTAMPS)
            && timestamps.echo != 0
        {
            // Karn's rule does not bind with timestamps (RFC 7323 section 4.1).
            let sent_ms = timestamps.echo.wrapping_sub(self.tcb.ts_offset);
            let ms = millis(now).wrapping_sub(sent_ms);
            if ms < 1 << 20 && told.bytes > 0 {
                told.rtt_us = Some(ms.saturating_mul(1000).max(1000).max(age.min(1000)));
            }
        }
        if let Some(rtt_us) = told.rtt_us {
            // Only a sample ends the backoff (RFC 6298 section 5.7, Karn).
            self.tcb.backoff = 0;
            self.tcb.sample_rtt(rtt_us, millis(now));
        }
        self.widen_reorder_window(&newest);
        self.sample_rate(&newest, age, now_us);
    }

    /// draft-cheng-iccrg-delivery-rate-estimation section 3.3.
    #[inline(always)]
    fn sample_rate(&mut self, newest: &SegmentSlot, age: u32, now_us: u32) {
        let send_span = elapsed(newest.sent_us, newest.first_sent_us);
        let ack_span = elapsed(now_us, newest.delivered_us);
        self.tcb.rate_interval_us = send_span.max(ack_span).min(u32::MAX / 2);
        self.tcb.rate_delivered = self.tcb.delivered.wrapping_sub(newest.delivered);
        self.tcb.first_sent_us = now_us.wrapping_sub(age);
        self.tcb.delivered_us = now_us;
        if self.tcb.app_limited != 0 && after(self.tcb.delivered, self.tcb.app_limited) {
            self.tcb.app_limited = 0;
        }
    }

    /// Loss detection, congestion state, retransmission and timers after an ACK.
    fn react(
        &mut self,
        memory: &mut impl Memory,
        told: &mut Told,
        in_flight: u32,
        is_duplicate: bool,
        now: Instant,
    ) {
        if self.tcb.is_calm() && !is_duplicate && !told.ece {
            if told.delivered > 0 {
                self.grow_window(told, in_flight, now);
            }
            if told.acked > 0 {
                self.arm_retransmit(now, true);
            }
            return;
        }
        if is_duplicate && !self.tcb.has(flag::SACK) {
            self.tcb.sacked_out = self
                .tcb
                .sacked_out
                .saturating_add(1)
                .min(self.tcb.packets_out.saturating_sub(1).max(1));
            told.delivered = told.delivered.saturating_add(1);
        }
        self.end_tail_probe(told, now);
        let lost_before = self.tcb.lost_out;
        let next = self.detect_losses(told, now);
        told.lost = self.tcb.lost_out.saturating_sub(lost_before);
        self.change_state(told, now);
        if told.ece {
            self.tcb.delivered_ce = self.tcb.delivered_ce.wrapping_add(told.delivered);
            self.take_ece(now);
        }
        let reducing = matches!(self.tcb.ca_state, ca::RECOVERY | ca::CWR);
        if reducing && !self.tcb.congestion.owns_window() {
            self.reduce_window(told);
        } else if told.delivered > 0 {
            self.grow_window(told, in_flight, now);
        }
        if told.acked > 0 || told.sacked > 0 {
            self.arm_retransmit(now, told.acked > 0);
        }
        if let Some(at) = next
            && self.tcb.packets_out > 0
        {
            self.tcb.pending = pending::REORDER;
            self.tcb.retransmit_at = at;
        }
        if told.new_data_only {
            self.output(memory, now, true);
            if after(self.tcb.snd_nxt, self.tcb.high_seq) {
                return;
            }
            // Window or memory let nothing new out: the conventional recovery.
            self.tcb.clear(flag::FRTO);
        }
        self.retransmit_lost(memory, now);
    }

    /// Segments by which the ACK goes forward: where the path changes their order, those that only
    /// SACK has told too (net/ipv4/tcp_input.c:tcp_may_raise_cwnd).
    fn advance(&self, told: &Told) -> u32 {
        if self.tcb.reordering > USUAL_REORDERING {
            told.acked.saturating_add(told.sacked)
        } else {
            told.acked
        }
    }

    #[inline(always)]
    pub(super) fn grow_window(&mut self, told: &Told, in_flight: u32, now: Instant) {
        let newest = told.newest;
        let round_start =
            newest.is_some_and(|newest| !before(newest.delivered, self.tcb.round_delivered));
        if round_start {
            self.tcb.round_delivered = self.tcb.delivered;
        }
        // Faster than the path: segments that were acknowledged together.
        let interval_us = match self.tcb.rate_interval_us {
            short if short < self.tcb.min_rtt_us => 0,
            interval => interval,
        };
        let sample = AckSample {
            now_us: micros(now),
            acked: self.advance(told),
            delivered: told.delivered,
            in_flight_before: in_flight,
            in_flight: self.tcb.in_flight(),
            rtt_us: told.rtt_us,
            min_rtt_us: self.tcb.min_rtt_us,
            srtt_us: self.tcb.srtt_us(),
            cwnd_limited: self.uses_window() || in_flight >= self.tcb.congestion.cwnd,
            round_start,
            delivered_total: u64::from(self.tcb.delivered),
            interval_us: u64::from(interval_us),
            rate_delivered: self.tcb.rate_delivered,
            app_limited: newest.is_some_and(|newest| newest.has(mark::APP_LIMITED)),
            lost: told.lost,
            in_recovery: matches!(self.tcb.ca_state, ca::RECOVERY | ca::LOSS),
            ece: told.ece,
        };
        self.tcb.congestion.on_ack(&sample);
    }

    /// The answer to a window probe: an open window ends probing.
    fn after_probe_answer(&mut self, now: Instant) {
        if self.tcb.pending != pending::PROBE {
            return;
        }
        self.tcb.stuck_since = now.0;
        if self.tcb.snd_wnd > 0 || self.tcb.unsent == NONE {
            self.tcb.backoff = 0;
            self.tcb.pending = pending::NONE;
            self.tcb.retransmit_at = super::tcb::NEVER;
        } else {
            // Still closed: the steps go on doubling (net/ipv4/tcp_input.c:tcp_ack_probe).
            let wait = u64::from(self.tcb.backed_off_rto()).saturating_mul(1000);
            self.tcb.retransmit_at = now.0.saturating_add(wait);
        }
    }
}
