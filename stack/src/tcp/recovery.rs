//! Loss recovery: RACK and tail loss probes (RFC 8985), NewReno without SACK (RFC 6582), F-RTO and
//! timestamp undo (RFC 5682, RFC 4015), proportional rate reduction (RFC 9937), retransmission
//! timeouts (RFC 6298).

use super::ack::Told;
use super::connection::{Connection, elapsed, micros, millis};
use super::pool::{SegmentSlot, mark};
use super::seq::{after, before};
use super::tcb::{NEVER, ca, flag, pending};
use crate::counters::Counter;
use crate::image::NONE;
use crate::types::{Instant, Memory};

/// What a tail probe waits beyond two round trips, microseconds (Linux: TCP_TIMEOUT_MIN, two
/// jiffies of 1 ms).
const PROBE_ALLOWANCE_US: u64 = 2000;
/// The same for a lone segment in flight: the peer's delayed ACK (Linux: TCP_RTO_MIN).
const LONE_PROBE_US: u64 = 200_000;
/// What the reordering timer waits at least.
const MIN_REORDER_US: u32 = 1000;

impl Connection<'_> {
    /// RFC 8985 section 6.2 step 2, for every segment delivered: the newest of all, and how long
    /// the last one took.
    #[inline(always)]
    pub(super) fn advance_rack(&mut self, slot: &SegmentSlot) {
        let now_us = micros(Instant(self.pool.head.latest_ns)) as u32;
        let age_us = elapsed(now_us, slot.sent_us);
        if slot.has(mark::EVER_RETRANSMITTED) && age_us < self.tcb.min_rtt_us {
            // The ACK is of an earlier copy.
            return;
        }
        if slot.left_after(self.tcb.rack_sent_us, self.tcb.rack_order) {
            self.tcb.rack_sent_us = slot.sent_us;
            self.tcb.rack_order = slot.order;
        }
        self.tcb.rack_rtt_us = age_us;
    }

    /// RFC 8985 section 6.2 step 4: how late a segment may be.
    fn reorder_window_us(&self) -> u32 {
        let recovering = matches!(self.tcb.ca_state, ca::RECOVERY | ca::LOSS);
        if !self.tcb.has(flag::REORDER_SEEN)
            && (recovering || self.tcb.sacked_out >= u32::from(self.tcb.reordering))
        {
            return 0;
        }
        if self.tcb.min_rtt_us == u32::MAX {
            return MIN_REORDER_US;
        }
        (self.tcb.min_rtt_us / 4)
            .saturating_mul(u32::from(self.tcb.rack_steps))
            .min(self.tcb.srtt_us())
            .max(1)
    }

    /// Marks what must be lost; when to look again for what may be.
    pub(crate) fn detect_losses(&mut self, told: &Told, now: Instant) -> Option<u64> {
        if !self.tcb.has(flag::SACK) {
            self.detect_reno(told);
            return None;
        }
        if self.tcb.sacked_out == 0 && self.tcb.retrans_out == 0 && self.tcb.ca_state == ca::OPEN {
            return None;
        }
        self.detect_rack(now)
    }

    /// RFC 8985 section 6.2 step 5.
    fn detect_rack(&mut self, now: Instant) -> Option<u64> {
        let now_us = micros(now) as u32;
        let window = self.reorder_window_us();
        let mut wait = 0_u32;
        let mut chunk = self.tcb.queue_head;
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent {
                break;
            }
            let Some(&slot) = self.segment(chunk) else {
                break;
            };
            let this = chunk;
            chunk = slot.next;
            let lost_not_resent = slot.has(mark::LOST) && !slot.has(mark::RETRANSMITTED);
            if slot.has(mark::SACKED) || lost_not_resent {
                continue;
            }
            if slot.left_after(self.tcb.rack_sent_us, self.tcb.rack_order)
                || slot.order == self.tcb.rack_order && slot.sent_us == self.tcb.rack_sent_us
            {
                continue;
            }
            let due = self.tcb.rack_rtt_us.saturating_add(window);
            let age = elapsed(now_us, slot.sent_us);
            if age >= due {
                self.lose(this, slot);
            } else {
                wait = wait.max(due.wrapping_sub(age));
            }
        }
        (wait > 0).then(|| {
            now.0
                .saturating_add(u64::from(wait.max(MIN_REORDER_US)).saturating_mul(1000))
        })
    }

    /// Three duplicate ACKs, or a partial one in recovery: the first segment is lost (RFC 6582).
    fn detect_reno(&mut self, told: &Told) {
        let recovering = matches!(self.tcb.ca_state, ca::RECOVERY | ca::LOSS);
        let partial = recovering && told.bytes > 0 && before(self.tcb.snd_una, self.tcb.high_seq);
        // Duplicates of what the last recovery ended with start no new one (RFC 6582 section 3.2).
        let fresh = after(self.tcb.snd_una, self.tcb.high_seq);
        if partial || !recovering && fresh && self.tcb.sacked_out >= u32::from(self.tcb.reordering)
        {
            self.mark_lost(self.tcb.snd_una);
        }
    }

    /// Marks the segment that starts here as lost.
    fn mark_lost(&mut self, seq: u32) {
        let mut chunk = self.tcb.queue_head;
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent {
                return;
            }
            let Some(&slot) = self.segment(chunk) else {
                return;
            };
            if slot.seq == seq && !slot.has(mark::SACKED) {
                self.lose(chunk, slot);
                return;
            }
            if after(slot.seq, seq) {
                return;
            }
            chunk = slot.next;
        }
    }

    pub(crate) fn lose(&mut self, chunk: u32, slot: SegmentSlot) {
        if slot.has(mark::RETRANSMITTED) {
            self.tcb.retrans_out = self.tcb.retrans_out.saturating_sub(1);
        }
        if !slot.has(mark::LOST) {
            self.tcb.lost_out = self.tcb.lost_out.saturating_add(1);
            self.pool.count(Counter::TcpLost);
        }
        if let Some(slot) = self.segment_mut(chunk) {
            slot.marks |= mark::LOST;
            slot.marks &= !mark::RETRANSMITTED;
        }
    }

    /// Marks every segment in flight as lost, after a timeout. When the first one was told as
    /// received, the peer has thrown it away: what it told counts no longer (RFC 2018 section 8).
    pub(super) fn lose_all(&mut self) {
        let mut chunk = self.tcb.queue_head;
        let reneged = self
            .segment(chunk)
            .is_some_and(|slot| slot.has(mark::SACKED));
        if reneged {
            self.pool.count(Counter::TcpReneged);
            self.tcb.sacked_out = 0;
        }
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent {
                break;
            }
            let Some(slot) = self.segment_mut(chunk) else {
                break;
            };
            if reneged {
                slot.marks &= !mark::SACKED;
            }
            let slot = *slot;
            if !slot.has(mark::SACKED) {
                self.lose(chunk, slot);
            }
            chunk = slot.next;
        }
        if !self.tcb.has(flag::SACK) {
            self.tcb.sacked_out = 0;
        }
    }

    /// The congestion state machine (RFC 5681 section 3.2, net/ipv4/tcp_input.c:
    /// tcp_fastretrans_alert).
    pub(crate) fn change_state(&mut self, told: &mut Told, now: Instant) {
        let done = !before(self.tcb.snd_una, self.tcb.high_seq);
        // The next episode begins where this one ends: for a model of the path it is one.
        let goes_on = self.tcb.ca_state == ca::RECOVERY
            && self.tcb.lost_out > 0
            && self.tcb.congestion.owns_window();
        match self.tcb.ca_state {
            ca::RECOVERY => {
                let settled = done || self.tcb.retrans_out == 0 || told.dsack_undoes;
                if settled && self.was_spurious(told) {
                    self.lost_marks_off();
                    self.undo();
                } else if done {
                    self.end_recovery(goes_on);
                }
            }
            ca::LOSS => {
                let original = self.tcb.has(flag::FRTO) && told.original;
                if original || self.was_spurious(told) {
                    self.lost_marks_off();
                    self.undo();
                } else if done {
                    self.tcb.ca_state = ca::OPEN;
                    self.tcb.undo_marker = 0;
                    self.tcb.clear(flag::FRTO);
                    self.tcb.congestion.on_recovered();
                } else if self.tcb.has(flag::FRTO) {
                    self.go_on_with_frto(told);
                }
            }
            ca::CWR if done => self.end_recovery(false),
            _ => {}
        }
        if self.tcb.lost_out > 0 && matches!(self.tcb.ca_state, ca::OPEN | ca::DISORDER | ca::CWR) {
            if self.has_lost_mtu_probe() {
                self.repair_without_blame();
            } else {
                self.enter_recovery(goes_on, now);
            }
        } else if matches!(self.tcb.ca_state, ca::OPEN | ca::DISORDER) {
            self.tcb.ca_state = if self.tcb.sacked_out > 0 {
                ca::DISORDER
            } else {
                ca::OPEN
            };
        }
    }

    fn enter_recovery(&mut self, goes_on: bool, now: Instant) {
        self.pool.count(Counter::TcpRecoveries);
        self.tcb.high_seq = self.tcb.snd_nxt;
        self.tcb.undo_marker = self.tcb.snd_una.max(1);
        self.tcb.undo_retrans = self.tcb.retrans_out;
        self.tcb.retrans_stamp = 0;
        let in_flight = self.tcb.in_flight();
        if self.tcb.ca_state != ca::CWR && !goes_on {
            self.tcb.prior_cwnd = self.tcb.congestion.cwnd;
            self.tcb.congestion.on_loss(micros(now), in_flight);
            self.tcb.prr_delivered = 0;
            self.tcb.prr_out = 0;
        }
        if self.tcb.congestion.owns_window() && !goes_on {
            self.tcb.round_delivered = self.tcb.delivered;
        }
        self.tcb.ca_state = ca::RECOVERY;
    }

    fn end_recovery(&mut self, goes_on: bool) {
        self.tcb.ca_state = ca::OPEN;
        if !goes_on {
            self.tcb.congestion.on_recovered();
        }
        if self.tcb.rack_persist > 0 {
            self.tcb.rack_persist = self.tcb.rack_persist.wrapping_sub(1);
        } else {
            self.tcb.rack_steps = 1;
        }
        if !self.tcb.has(flag::SACK) {
            self.tcb.sacked_out = 0;
        }
    }

    /// RFC 5682 section 3.1 with SACK: the first ACK after the timeout that goes forward lets new
    /// data leave instead of the next segment; whatever then tells of a gap proves the loss.
    fn go_on_with_frto(&mut self, told: &mut Told) {
        if after(self.tcb.snd_nxt, self.tcb.high_seq) {
            // Step 3: a duplicate ACK, by SACK or not, says that the loss was one. Else what is
            // lost goes out again, as ever.
            if told.sacked > 0 || told.bytes == 0 {
                self.tcb.clear(flag::FRTO);
            }
        } else if told.bytes > 0 {
            self.tcb.high_seq = self.tcb.snd_nxt;
            let room = after(self.tcb.send_window_end(), self.tcb.snd_nxt);
            if self.tcb.unsent != NONE && room {
                told.new_data_only = true;
            } else {
                self.tcb.clear(flag::FRTO);
            }
        }
    }

    /// Whether the episode was a mistake: every retransmission was told as a duplicate, or what was
    /// missing came before the first of them.
    fn was_spurious(&self, told: &Told) -> bool {
        let duplicates = told.dsack_undoes && self.tcb.undo_retrans == 0;
        self.tcb.undo_marker != 0 && (duplicates || told.delayed && told.bytes > 0)
    }

    fn undo(&mut self) {
        self.pool.count(Counter::TcpUndone);
        self.tcb.congestion.undo();
        self.tcb.retrans_stamp = 0;
        self.tcb.ca_state = ca::OPEN;
        self.tcb.undo_marker = 0;
        self.tcb.clear(flag::FRTO);
        self.tcb.backoff = 0;
    }

    fn lost_marks_off(&mut self) {
        let mut chunk = self.tcb.queue_head;
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent {
                break;
            }
            let Some(slot) = self.segment_mut(chunk) else {
                break;
            };
            let next = slot.next;
            if slot.has(mark::LOST) && !slot.has(mark::RETRANSMITTED) {
                slot.marks &= !mark::LOST;
                self.tcb.lost_out = self.tcb.lost_out.saturating_sub(1);
            }
            chunk = next;
        }
    }

    /// ECN told of congestion: the window shrinks once a round trip (RFC 3168 section 6.1.2).
    pub(crate) fn take_ece(&mut self, now: Instant) {
        if !matches!(self.tcb.ca_state, ca::OPEN | ca::DISORDER) {
            return;
        }
        self.pool.count(Counter::TcpEcnReductions);
        self.tcb.prior_cwnd = self.tcb.congestion.cwnd;
        let in_flight = self.tcb.in_flight();
        self.tcb.congestion.on_ecn(micros(now), in_flight);
        self.tcb.prr_delivered = 0;
        self.tcb.prr_out = 0;
        self.tcb.high_seq = self.tcb.snd_nxt;
        self.tcb.undo_marker = 0;
        self.tcb.ca_state = ca::CWR;
        self.tcb.set(flag::ECN_SEND_CWR);
    }

    /// RFC 9937 section 6.2.
    pub(crate) fn reduce_window(&mut self, told: &Told) {
        let ssthresh = self.tcb.congestion.ssthresh;
        let in_flight = self.tcb.in_flight();
        if told.delivered == 0 && told.lost == 0 {
            return;
        }
        self.tcb.prr_delivered = self.tcb.prr_delivered.saturating_add(told.delivered);
        let send = if in_flight > ssthresh {
            let dividend = u64::from(ssthresh)
                .saturating_mul(u64::from(self.tcb.prr_delivered))
                .saturating_add(u64::from(self.tcb.prior_cwnd.max(1)).wrapping_sub(1));
            let target = dividend
                .checked_div(u64::from(self.tcb.prior_cwnd))
                .unwrap_or(0);
            target.saturating_sub(u64::from(self.tcb.prr_out)) as u32
        } else {
            let mut most = self
                .tcb
                .prr_delivered
                .saturating_sub(self.tcb.prr_out)
                .max(told.delivered);
            if told.bytes > 0 && told.lost == 0 {
                most = most.saturating_add(1);
            }
            most.min(ssthresh.saturating_sub(in_flight))
        };
        // The first retransmission always leaves.
        let least = u32::from(self.tcb.prr_out == 0);
        self.tcb.congestion.cwnd = in_flight.saturating_add(send.max(least)).max(1);
    }

    /// Sends lost segments again, as far as the window allows.
    pub(crate) fn retransmit_lost(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.lost_out <= self.tcb.retrans_out {
            return;
        }
        let mut chunk = self.tcb.queue_head;
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent || self.tcb.in_flight() >= self.tcb.congestion.cwnd {
                break;
            }
            let Some(&slot) = self.segment(chunk) else {
                break;
            };
            let wanted =
                slot.has(mark::LOST) && !slot.has(mark::SACKED) && !slot.has(mark::RETRANSMITTED);
            if wanted && (self.must_pause(now) || !self.retransmit(memory, chunk, now)) {
                break;
            }
            chunk = self.segment(chunk).map_or(NONE, |slot| slot.next);
        }
        if self.tcb.pending == pending::NONE && self.tcb.packets_out > 0 {
            self.arm_rto(now);
        }
    }

    /// Sends one segment again; whether it left.
    pub(crate) fn retransmit(
        &mut self,
        memory: &mut impl Memory,
        chunk: u32,
        now: Instant,
    ) -> bool {
        let Some(&slot) = self.segment(chunk) else {
            return false;
        };
        if slot.len > self.tcb.mss {
            let mss = self.tcb.mss;
            self.split(memory, chunk, mss);
        }
        if !self.transmit(memory, chunk, now) {
            return false;
        }
        self.drop_mtu_probe();
        let fresh = !slot.has(mark::RETRANSMITTED);
        let mut len = 0;
        if let Some(slot) = self.segment_mut(chunk) {
            slot.marks |= mark::RETRANSMITTED | mark::EVER_RETRANSMITTED;
            slot.retransmits = slot.retransmits.saturating_add(1);
            len = slot.len;
        }
        if fresh {
            self.tcb.retrans_out = self.tcb.retrans_out.saturating_add(1);
        }
        if self.tcb.retrans_stamp == 0 {
            self.tcb.retrans_stamp = millis(now).max(1);
        }
        self.tcb.undo_retrans = self.tcb.undo_retrans.saturating_add(1);
        self.tcb.total_retrans = self.tcb.total_retrans.wrapping_add(1);
        self.pace(len, now);
        self.tcb.bytes_retrans = self.tcb.bytes_retrans.wrapping_add(u64::from(len));
        if matches!(self.tcb.ca_state, ca::RECOVERY | ca::CWR) {
            self.tcb.prr_out = self.tcb.prr_out.saturating_add(1);
        }
        self.pool.count(Counter::TcpRetransmits);
        true
    }

    /// Arms the timer that the data in flight needs: a tail probe when all is well, else the
    /// retransmission timeout. `advanced`: an ACK went forward, so the timeout starts anew.
    #[inline(always)]
    pub(crate) fn arm_retransmit(&mut self, now: Instant, advanced: bool) {
        if self.tcb.packets_out == 0 {
            if !matches!(self.tcb.pending, pending::PROBE | pending::SYN_ACK) {
                self.tcb.pending = pending::NONE;
                self.tcb.retransmit_at = NEVER;
            }
            return;
        }
        if self.wants_tail_probe() {
            self.arm_tail_probe(now, advanced);
        } else if matches!(self.tcb.pending, pending::TLP | pending::REORDER) {
            self.arm_rest_of_rto(now);
        } else if self.tcb.pending != pending::SYN_ACK {
            self.arm_rto(now);
        }
    }

    /// New data has left (RFC 6298 section 5.1: a running timeout is not moved).
    #[inline(always)]
    pub(crate) fn arm_after_send(&mut self, was_idle: bool, now: Instant) {
        let runs = matches!(self.tcb.pending, pending::RTO | pending::REORDER);
        if was_idle && self.wants_tail_probe() {
            // The timeout starts now as well.
            self.arm_tail_probe(now, true);
        } else if was_idle || !runs || self.tcb.pending == pending::RTO && self.wants_tail_probe() {
            self.arm_retransmit(now, false);
        }
    }

    fn wants_tail_probe(&self) -> bool {
        self.tcb.has(flag::SACK)
            && matches!(self.tcb.ca_state, ca::OPEN | ca::CWR)
            && self.tcb.sacked_out == 0
            && self.tcb.srtt8_us != 0
            && !self.tcb.has(flag::TLP_OUT)
    }

    /// RFC 8985 section 7.2 with Linux's allowances; never later than the timeout.
    #[inline(always)]
    fn arm_tail_probe(&mut self, now: Instant, advanced: bool) {
        let allowance = if self.tcb.packets_out == 1 {
            LONE_PROBE_US
        } else {
            PROBE_ALLOWANCE_US
        };
        let wait = u64::from(self.tcb.srtt_us())
            .saturating_mul(2)
            .saturating_add(allowance);
        let rto = if advanced {
            u64::from(self.tcb.backed_off_rto())
        } else {
            self.rest_of_rto_us(now)
        };
        self.tcb.pending = pending::TLP;
        self.tcb.retransmit_at = now.0.saturating_add(wait.min(rto).saturating_mul(1000));
    }

    /// RFC 6298 section 5: the timeout starts now.
    pub(crate) fn arm_rto(&mut self, now: Instant) {
        let rto = u64::from(self.tcb.backed_off_rto());
        self.arm_rto_in(rto, now);
    }

    /// The timeout has been running since the first segment left
    /// (net/ipv4/tcp_input.c:tcp_rearm_rto).
    pub(super) fn arm_rest_of_rto(&mut self, now: Instant) {
        let rest = self.rest_of_rto_us(now);
        self.arm_rto_in(rest, now);
    }

    fn rest_of_rto_us(&self, now: Instant) -> u64 {
        let rto = self.tcb.backed_off_rto();
        let age = self
            .segment(self.tcb.queue_head)
            .map_or(0, |slot| elapsed(micros(now) as u32, slot.sent_us));
        u64::from(rto.saturating_sub(age).max(1))
    }

    /// Not later than TCP_USER_TIMEOUT lets it wait (net/ipv4/tcp_timer.c:
    /// tcp_clamp_rto_to_user_timeout).
    fn arm_rto_in(&mut self, wait_us: u64, now: Instant) {
        let mut wait = wait_us.saturating_mul(1000);
        let user = u64::from(self.tcb.options.user_timeout_ms).saturating_mul(1_000_000);
        if user != 0 && self.tcb.retransmits > 0 {
            let end = self.tcb.stuck_since.saturating_add(user);
            wait = wait.min(end.saturating_sub(now.0).max(1));
        }
        self.tcb.pending = pending::RTO;
        self.tcb.retransmit_at = now.0.saturating_add(wait);
    }

    /// The tail probe's timer has fired (RFC 8985 section 7.3): new data, or the last segment
    /// again.
    pub(crate) fn fire_tail_probe(&mut self, memory: &mut impl Memory, now: Instant) {
        self.pool.count(Counter::TcpTailProbes);
        let before_nxt = self.tcb.snd_nxt;
        let mut sent = true;
        if self.tcb.unsent != NONE {
            // One segment beyond the congestion window is allowed.
            let cwnd = self.tcb.congestion.cwnd;
            self.tcb.congestion.cwnd = self.tcb.in_flight().saturating_add(1);
            self.output(memory, now, true);
            self.tcb.congestion.cwnd = cwnd;
        }
        if self.tcb.snd_nxt == before_nxt {
            let last = self.last_sent_segment();
            sent = self.is_worth_probing(last) && self.retransmit(memory, last, now);
            if sent {
                self.tcb.set(flag::TLP_RETRANSMITTED);
            }
        } else {
            self.tcb.clear(flag::TLP_RETRANSMITTED);
        }
        if sent {
            self.tcb.set(flag::TLP_OUT);
            self.tcb.tlp_high_seq = self.tcb.snd_nxt;
            self.arm_rto(now);
        } else {
            self.arm_rest_of_rto(now);
        }
    }

    /// Whether the peer would take a segment that is sent again: one behind its window is not, when
    /// it has taken the window back; the first one asks how large it is
    /// (net/ipv4/tcp_output.c:__tcp_retransmit_skb).
    fn is_worth_probing(&self, chunk: u32) -> bool {
        let Some(slot) = self.segment(chunk) else {
            return false;
        };
        slot.seq == self.tcb.snd_una || before(slot.seq, self.tcb.send_window_end())
    }

    fn last_sent_segment(&self) -> u32 {
        let (mut last, mut chunk) = (NONE, self.tcb.queue_head);
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent {
                break;
            }
            let Some(slot) = self.segment(chunk) else {
                break;
            };
            last = chunk;
            chunk = slot.next;
        }
        last
    }

    /// RFC 8985 section 7.4: what an ACK tells of the probe. One that just covers it may be of the
    /// original; then a duplicate ACK or a DSACK follows, or one that goes beyond: the probe
    /// repaired a loss.
    pub(crate) fn end_tail_probe(&mut self, told: &Told, now: Instant) {
        if !self.tcb.has(flag::TLP_OUT) || before(self.tcb.snd_una, self.tcb.tlp_high_seq) {
            return;
        }
        let both_came = told.dsack || told.bytes == 0 && told.sacked == 0 && !told.not_duplicate;
        let beyond = after(self.tcb.snd_una, self.tcb.tlp_high_seq);
        if !self.tcb.has(flag::TLP_RETRANSMITTED) || both_came {
            self.tcb.clear(flag::TLP_OUT | flag::TLP_RETRANSMITTED);
        } else if beyond {
            self.tcb.clear(flag::TLP_OUT | flag::TLP_RETRANSMITTED);
            if self.tcb.ca_state == ca::OPEN {
                // The window shrinks as for any loss.
                let in_flight = self.tcb.in_flight();
                self.tcb.congestion.on_loss(micros(now), in_flight);
                self.tcb.congestion.on_recovered();
                self.pool.count(Counter::TcpTailRepairs);
            }
        }
    }

    /// The retransmission timer has fired (RFC 6298 section 5.4, RFC 5681 section 3.1).
    pub(crate) fn fire_rto(&mut self, memory: &mut impl Memory, now: Instant) {
        self.pool.count(Counter::TcpTimeouts);
        let first = self.tcb.ca_state != ca::LOSS;
        if first || before(self.tcb.high_seq, self.tcb.snd_una) {
            self.tcb.undo_marker = self.tcb.snd_una.max(1);
            self.tcb.undo_retrans = 0;
            self.tcb.retrans_stamp = 0;
            let in_flight = self.tcb.in_flight();
            self.tcb.congestion.on_rto(micros(now), in_flight);
        }
        self.tcb.clear(flag::TLP_OUT | flag::TLP_RETRANSMITTED);
        self.lose_all();
        self.tcb.congestion.cwnd = 1;
        self.tcb.ca_state = ca::LOSS;
        self.tcb.high_seq = self.tcb.snd_nxt;
        if first {
            self.tcb.set(flag::FRTO);
        }
        self.tcb.retransmits = self.tcb.retransmits.saturating_add(1);
        let head = self.tcb.queue_head;
        if self.retransmit(memory, head, now) {
            self.tcb.backoff = self.tcb.backoff.saturating_add(1);
        }
        self.arm_rto(now);
    }

    /// The reordering timer has fired (RFC 8985 section 6.3).
    pub(crate) fn fire_reorder(&mut self, memory: &mut impl Memory, now: Instant) {
        let mut told = Told {
            lost: 1,
            ..Told::default()
        };
        let next = self.detect_losses(&told, now);
        self.change_state(&mut told, now);
        if self.tcb.ca_state == ca::RECOVERY {
            self.reduce_window(&told);
        }
        self.tcb.pending = pending::NONE;
        self.retransmit_lost(memory, now);
        self.arm_rest_of_rto(now);
        if let Some(at) = next {
            self.tcb.pending = pending::REORDER;
            self.tcb.retransmit_at = at.min(self.tcb.retransmit_at);
        }
    }
}
