//! Pacing: segments leave at a rate, not in bursts.
//!
//! The rate is that of the congestion control, if it has one (BBR), and at most
//! SO_MAX_PACING_RATE. `Tcb::pace_at` is when what has left would have left at that rate (the
//! earliest departure time of net/ipv4/tcp_output.c:tcp_update_skb_after_send): before it nothing
//! leaves, and a timer wakes the connection. A clock that is late is made up for by [`CREDIT_NS`].

use super::connection::Connection;
use super::options::TcpOptions;
use super::tcb::Tcb;
use crate::types::Instant;

/// How much later than its time a segment may leave without slowing the flow: two ticks of the
/// wheel.
const CREDIT_NS: u64 = 2 << 20;

impl Tcb {
    /// Bytes of payload per second that may leave; `None` = as many as the window allows.
    pub(crate) fn pacing_rate(&self) -> Option<u64> {
        let mss = u32::from(self.mss);
        let control = self.congestion.pacing_rate(mss, self.srtt_us());
        match self.options.max_pacing_rate {
            TcpOptions::UNPACED => control,
            most => Some(control.unwrap_or(u64::MAX).min(most).max(1)),
        }
    }

    /// What TCP_INFO calls the pacing rate of a connection that is not paced: twice the window in a
    /// round-trip time while it may double, 1.2 times later (tcp_pacing_ss_ratio,
    /// tcp_pacing_ca_ratio).
    pub(crate) fn nominal_rate(&self) -> u64 {
        let cwnd = self.congestion.cwnd;
        let per_million = if cwnd < self.congestion.ssthresh / 2 {
            2_000_000
        } else {
            1_200_000
        };
        let window = u64::from(cwnd).saturating_mul(u64::from(self.mss));
        window
            .saturating_mul(per_million)
            .checked_div(u64::from(self.srtt_us()))
            .unwrap_or(u64::MAX)
    }
}

impl Connection<'_> {
    /// Whether the next segment has to wait; the timer is armed then.
    pub(crate) fn must_pause(&mut self, now: Instant) -> bool {
        if self.tcb.pace_at <= now.0 {
            return false;
        }
        self.tcb.paced_at = self.tcb.pace_at;
        true
    }

    /// Notes that `len` bytes of payload have left.
    pub(crate) fn pace(&mut self, len: u16, now: Instant) {
        let Some(rate) = self.tcb.pacing_rate() else {
            return;
        };
        let takes = u64::from(len)
            .saturating_mul(1_000_000_000)
            .checked_div(rate)
            .unwrap_or(0);
        let from = self.tcb.pace_at.max(now.0.saturating_sub(CREDIT_NS));
        self.tcb.pace_at = from.saturating_add(takes);
    }
}
