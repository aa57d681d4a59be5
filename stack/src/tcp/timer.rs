//! What happens when a connection's timers fire (RFC 6298, RFC 8985, RFC 9293 section 3.8).

use super::connection::{Connection, elapsed, millis};
use super::options::TcpOptions;
use super::rtt::MAX_RTO_US;
use super::tcb::{NEVER, TcpState, flag, pending};
use crate::counters::Counter;
use crate::image::NONE;
use crate::stack::Stack;
use crate::types::{Instant, Memory};

/// When a probe that found no memory is tried again (Linux: TCP_RESOURCE_PROBE_INTERVAL).
const RESOURCE_NS: u64 = 500_000_000;

impl Stack<'_> {
    /// A connection's entry of the wheel has come round.
    pub(crate) fn serve_connection(&mut self, memory: &mut impl Memory, index: u32, now: Instant) {
        if let Some(mut connection) = self.connection(index) {
            connection.fire(memory, now);
            self.settle(index, now);
        }
    }
}

/// What so many retries take when the first timeout is this long and each is twice the one before,
/// milliseconds (RFC 1122 section 4.2.3.5 as Linux reads it: tcp_model_timeout).
fn modelled_ms(retries: u8, first_us: u32) -> u64 {
    let mut total_us = 0_u64;
    let mut step = u64::from(first_us);
    for _ in 0..=retries {
        total_us = total_us.saturating_add(step);
        step = step.saturating_mul(2).min(u64::from(MAX_RTO_US));
    }
    total_us / 1000
}

impl Connection<'_> {
    /// Does what is due.
    fn fire(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.delayed_ack_at <= now.0 {
            self.tcb.delayed_ack_at = NEVER;
            if self.tcb.has(flag::ACK_OWED) {
                self.pool.count(Counter::TcpDelayedAcks);
                self.tcb.clear(flag::PINGPONG);
                self.tcb.set(flag::ACK_NOW);
            }
            if self.tcb.has(flag::STARVED) && self.window_has_opened() {
                self.pool.count(Counter::TcpStarvedOpened);
                self.tcb.clear(flag::STARVED);
                self.tcb.set(flag::ACK_NOW);
            }
        }
        if self.tcb.retransmit_at <= now.0 {
            self.tcb.retransmit_at = NEVER;
            let what = core::mem::replace(&mut self.tcb.pending, pending::NONE);
            self.fire_retransmit(memory, what, now);
        }
        if self.tcb.paced_at <= now.0 {
            self.tcb.paced_at = NEVER;
            self.retransmit_lost(memory, now);
            self.output(memory, now, false);
        }
        if self.tcb.keepalive_at <= now.0 {
            self.tcb.keepalive_at = NEVER;
            self.fire_keepalive(memory, now);
        }
    }

    fn fire_retransmit(&mut self, memory: &mut impl Memory, what: u8, now: Instant) {
        match (self.tcb.state(), what) {
            (_, pending::SYN_ACK) => self.fire_syn_ack(memory, now),
            (TcpState::SynSent | TcpState::SynReceived, _) => self.fire_syn(memory, now),
            (_, pending::PROBE) => self.fire_probe(memory, now),
            (_, pending::TLP) => self.fire_tail_probe(memory, now),
            (_, pending::REORDER) => self.fire_reorder(memory, now),
            (_, pending::RTO) if self.tcb.packets_out > 0 => {
                let is_over = self.has_given_up(now);
                self.suspect_timeout(self.tcb.retransmits, is_over, now);
                if is_over {
                    self.time_out();
                } else {
                    self.suspect_mtu(now);
                    self.fire_rto(memory, now);
                }
            }
            _ => {}
        }
    }

    /// A SYN or SYN-ACK was not answered: again, at first in even steps (Linux:
    /// tcp_syn_linear_timeouts), then in doubling ones.
    fn fire_syn(&mut self, memory: &mut impl Memory, now: Instant) {
        let defaults = self.pool.head.tcp_defaults;
        let doubling = match self.tcb.options.syn_count {
            0 => defaults.syn_retries,
            set => set,
        };
        let most = doubling.saturating_add(defaults.syn_linear_timeouts);
        let limit_ms = match self.tcb.options.user_timeout_ms {
            0 if self.tcb.syn_retries == 0 => u64::MAX,
            0 => modelled_ms(doubling, super::rtt::INITIAL_RTO_US),
            user => u64::from(user),
        };
        let late = now.0.saturating_sub(self.tcb.stuck_since) / 1_000_000 >= limit_ms;
        let is_over = self.tcb.syn_retries >= most || late;
        self.suspect_timeout(self.tcb.syn_retries, is_over, now);
        if is_over {
            self.time_out();
            return;
        }
        self.tcb.syn_retries = self.tcb.syn_retries.saturating_add(1);
        self.tcb.total_retrans = self.tcb.total_retrans.wrapping_add(1);
        if self.tcb.syn_retries > defaults.syn_linear_timeouts {
            self.tcb.backoff = self.tcb.backoff.saturating_add(1);
        }
        self.pool.count(Counter::TcpRetransmits);
        if self.tcb.state() == TcpState::SynSent {
            // Perhaps something on the path drops SYNs with ECN bits (RFC 3168 section 6.1.1.1).
            self.tcb.clear(flag::ECN);
        }
        self.send_syn(memory, None, now);
        self.arm_rto(now);
    }

    /// tcp_retries2, or tcp_orphan_retries when nobody waits.
    fn retries(&self) -> u8 {
        let defaults = &self.pool.head.tcp_defaults;
        let orphan = match defaults.orphan_retries {
            0 => 8,
            set => set,
        };
        if self.tcb.has(flag::ORPHAN) {
            defaults.retries2.min(orphan)
        } else {
            defaults.retries2
        }
    }

    /// Whether the peer has been silent for too long: tcp_retries2's time, or TCP_USER_TIMEOUT.
    fn has_given_up(&self, now: Instant) -> bool {
        if self.tcb.retransmits == 0 {
            // It is asked once at least, however long the timeout was.
            return false;
        }
        let stuck_ms = now.0.saturating_sub(self.tcb.stuck_since) / 1_000_000;
        if self.tcb.snd_wnd == 0 && self.is_answered(now) {
            return false;
        }
        let user = self.tcb.options.user_timeout_ms;
        if user != 0 {
            return stuck_ms >= u64::from(user);
        }
        stuck_ms >= modelled_ms(self.retries(), super::rtt::MIN_RTO_US)
    }

    /// The peer has taken its window back and drops what comes, but lives: what is sent again is a
    /// probe (net/ipv4/tcp_timer.c:tcp_rtx_probe0_timed_out).
    fn is_answered(&self, now: Instant) -> bool {
        let silent_ms = elapsed(millis(now), self.tcb.last_received_ms);
        self.tcb.options.user_timeout_ms == 0 && silent_ms <= 2 * (MAX_RTO_US / 1000)
    }

    /// The probe timer: a corked segment leaves, or a closed window is asked again (RFC 9293
    /// section 3.8.6.1).
    fn fire_probe(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.has(flag::NO_SPACE) && self.tcb.packets_out == 0 {
            self.look_for_room(now);
        }
        if self.tcb.has(flag::FIN_DUE) {
            self.output(memory, now, true);
        }
        if self.tcb.unsent == NONE || self.tcb.packets_out > 0 {
            return;
        }
        if self.tcb.snd_wnd > 0 {
            let before_nxt = self.tcb.snd_nxt;
            self.cut_at_window(memory);
            self.output(memory, now, true);
            if self.tcb.snd_nxt != before_nxt {
                return;
            }
        }
        let user = u64::from(self.tcb.options.user_timeout_ms).saturating_mul(1_000_000);
        let over = if user != 0 {
            now.0.saturating_sub(self.tcb.stuck_since) >= user
        } else {
            self.tcb.probes_out >= self.retries()
        };
        if over {
            self.time_out();
            return;
        }
        let mut wait = RESOURCE_NS;
        // The peer owes no answer to what has not left. Nobody waits for an orphan, which holds
        // memory: its end does not wait either.
        if self.send_probe(memory, now) || self.tcb.has(flag::ORPHAN) {
            self.pool.count(Counter::TcpWindowProbes);
            self.tcb.probes_out = self.tcb.probes_out.saturating_add(1);
            self.tcb.backoff = self.tcb.backoff.saturating_add(1).min(20);
            wait = u64::from(self.tcb.backed_off_rto()).saturating_mul(1000);
        }
        self.tcb.pending = pending::PROBE;
        self.tcb.retransmit_at = now.0.saturating_add(wait);
    }

    /// Tells a program whose write found no room that there is some now, or waits on.
    pub(crate) fn look_for_room(&mut self, now: Instant) {
        self.grow_send_buffer();
        if self.is_writable() {
            self.tcb.clear(flag::NO_SPACE);
            self.writable_edge();
        } else if self.tcb.unsent == NONE {
            self.wait_for_room(now);
        }
    }

    /// Arms the keepalive timer from the last sign of life.
    pub(crate) fn arm_keepalive(&mut self, now: Instant) {
        let idle = u64::from(self.tcb.options.keep_idle_s).saturating_mul(1_000_000_000);
        let wait = idle.saturating_sub(self.silent_ns(now)).max(1);
        self.tcb.keepalive_at = now.0.saturating_add(wait);
    }

    /// How long the peer has sent nothing, to the millisecond.
    fn silent_ns(&self, now: Instant) -> u64 {
        let silent_ms = elapsed(millis(now), self.tcb.last_received_ms)
            .min(elapsed(millis(now), self.tcb.last_data_ms));
        u64::from(silent_ms).saturating_mul(1_000_000)
    }

    /// Keepalive (RFC 9293 section 3.8.4), or the end of FIN_WAIT_2.
    fn fire_keepalive(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.has(flag::ORPHAN) {
            if self.tcb.state() == TcpState::FinWait2 {
                self.finish(0);
            }
            return;
        }
        let alive = matches!(
            self.tcb.state(),
            TcpState::Established | TcpState::CloseWait | TcpState::FinWait1 | TcpState::FinWait2
        );
        if !self.tcb.options.has(TcpOptions::KEEPALIVE) || !alive {
            return;
        }
        let second = 1_000_000_000_u64;
        let interval = u64::from(self.tcb.options.keep_interval_s).saturating_mul(second);
        if self.tcb.packets_out > 0 || self.tcb.unsent != NONE {
            // Data in flight is a better probe.
            self.tcb.keepalive_at = now.0.saturating_add(interval);
            return;
        }
        let idle = u64::from(self.tcb.options.keep_idle_s).saturating_mul(second);
        let silent = self.silent_ns(now);
        if silent < idle {
            self.tcb.probes_out = 0;
            self.arm_keepalive(now);
            return;
        }
        let user = u64::from(self.tcb.options.user_timeout_ms).saturating_mul(1_000_000);
        let over = if user != 0 {
            silent >= user && self.tcb.probes_out > 0
        } else {
            self.tcb.probes_out >= self.tcb.options.keep_count
        };
        if over {
            self.send_reset(memory, now);
            self.time_out();
            return;
        }
        let mut wait = RESOURCE_NS;
        if self.send_probe(memory, now) {
            self.pool.count(Counter::TcpKeepalives);
            self.tcb.probes_out = self.tcb.probes_out.saturating_add(1);
            wait = interval;
        }
        self.tcb.keepalive_at = now.0.saturating_add(wait);
    }
}
