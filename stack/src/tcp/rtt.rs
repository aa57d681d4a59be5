//! Round-trip time and retransmission timeout (RFC 6298, with Linux's bounds and its bounded
//! deviation; net/ipv4/tcp_input.c:tcp_rtt_estimator).

use super::connection::elapsed;
use super::seq;
use super::tcb::Tcb;

/// First timeout, before any sample.
pub(crate) const INITIAL_RTO_US: u32 = 1_000_000;
/// Least timeout (TCP_RTO_MIN).
pub(crate) const MIN_RTO_US: u32 = 200_000;
/// Greatest timeout (TCP_RTO_MAX).
pub(crate) const MAX_RTO_US: u32 = 120_000_000;
/// How long a minimum counts (tcp_min_rtt_wlen).
const MIN_RTT_WINDOW_MS: u32 = 300_000;

impl Tcb {
    /// Takes a sample of the round-trip time.
    #[inline]
    pub(crate) fn sample_rtt(&mut self, rtt_us: u32, now_ms: u32) {
        let rtt_us = rtt_us.max(1);
        let aged = elapsed(now_ms, self.min_rtt_at_ms) > MIN_RTT_WINDOW_MS;
        if rtt_us <= self.min_rtt_us || aged {
            self.min_rtt_us = rtt_us;
            self.min_rtt_at_ms = now_ms;
        }
        if self.srtt8_us == 0 {
            self.srtt8_us = rtt_us.saturating_mul(8);
            self.mdev4_us = rtt_us.saturating_mul(2);
            self.rttvar_us = self.mdev4_us.max(MIN_RTO_US);
            self.mdev_max_us = self.rttvar_us;
            self.rtt_seq = self.snd_nxt;
        } else {
            self.smooth(rtt_us);
        }
        self.rto_us = self.base_rto();
    }

    fn smooth(&mut self, rtt_us: u32) {
        let mut error = i64::from(rtt_us).wrapping_sub(i64::from(self.srtt8_us >> 3));
        self.srtt8_us = i64::from(self.srtt8_us)
            .wrapping_add(error)
            .clamp(1, i64::from(u32::MAX)) as u32;
        if error < 0 {
            error = error
                .wrapping_neg()
                .wrapping_sub(i64::from(self.mdev4_us >> 2));
            // A shorter time makes the deviation grow only slowly.
            if error > 0 {
                error >>= 3;
            }
        } else {
            error = error.wrapping_sub(i64::from(self.mdev4_us >> 2));
        }
        self.mdev4_us = i64::from(self.mdev4_us)
            .wrapping_add(error)
            .clamp(0, i64::from(u32::MAX)) as u32;
        if self.mdev4_us > self.mdev_max_us {
            self.mdev_max_us = self.mdev4_us;
            self.rttvar_us = self.rttvar_us.max(self.mdev_max_us);
        }
        if seq::after(self.snd_una, self.rtt_seq) {
            if self.mdev_max_us < self.rttvar_us {
                let excess = self.rttvar_us.wrapping_sub(self.mdev_max_us) >> 2;
                self.rttvar_us = self.rttvar_us.wrapping_sub(excess);
            }
            self.rtt_seq = self.snd_nxt;
            self.mdev_max_us = MIN_RTO_US;
        }
    }

    /// The timeout without backoff.
    pub(crate) fn base_rto(&self) -> u32 {
        if self.srtt8_us == 0 {
            return INITIAL_RTO_US;
        }
        (self.srtt8_us >> 3)
            .saturating_add(self.rttvar_us)
            .clamp(MIN_RTO_US, MAX_RTO_US)
    }

    /// The timeout with its exponential backoff.
    pub(crate) fn backed_off_rto(&self) -> u32 {
        let doubled = u64::from(self.rto_us) << u32::from(self.backoff.min(20));
        doubled.min(u64::from(MAX_RTO_US)) as u32
    }

    /// Smoothed round-trip time; 0 = no sample yet.
    pub(crate) fn srtt_us(&self) -> u32 {
        self.srtt8_us >> 3
    }
}
