//! Congestion control: how many segments a connection may have in flight, and how fast.
//!
//! [`Congestion`] is plain data in the image; the engine tells it what happened and obeys `cwnd`.
//! Units are Linux's: windows in segments, times in microseconds.
//!
//! Who moves `cwnd` when: outside a recovery [`Congestion::on_ack`] does. [`Congestion::on_loss`]
//! and [`Congestion::on_ecn`] begin a recovery: from there the engine moves it down by PRR (RFC
//! 9937), unless [`Congestion::owns_window`] says that the algorithm wants it for itself, until
//! [`Congestion::on_recovered`]. [`Congestion::on_rto`] sets it to 1, and it grows from there by
//! `on_ack`; `on_recovered` ends that episode as well.

mod bbr;
mod cubic;
mod hystart;
mod reno;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute_mut, transmute_ref};

/// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
pub const CUBIC: u8 = 0;
/// Reno (RFC 5681).
pub const RENO: u8 = 1;
/// BBR, version 1, with pacing.
pub const BBR: u8 = 2;

/// Names of the algorithms as `TCP_CONGESTION` (tcp(7)) takes them, by number.
const NAMES: [&str; 3] = ["cubic", "reno", "bbr"];

/// `ssthresh` before the first loss.
pub const NO_THRESHOLD: u32 = u32::MAX;
/// Smallest `ssthresh` (RFC 5681 section 3.1).
const SSTHRESH_MIN: u32 = 2;
/// Largest `cwnd`: a scaled window in segments of 1 byte cannot be larger.
const CWND_MAX: u32 = 1 << 30;

/// Name of an algorithm; an unknown number works as CUBIC.
#[must_use]
pub fn name(algorithm: u8) -> &'static str {
    NAMES
        .get(usize::from(algorithm))
        .copied()
        .unwrap_or(NAMES[0])
}

/// Number of the algorithm with this name.
#[must_use]
pub fn by_name(name: &[u8]) -> Option<u8> {
    NAMES
        .iter()
        .position(|known| known.as_bytes() == name)
        .map(|index| index as u8)
}

/// Where a connection is between a loss and the end of its repair.
mod phase {
    pub(super) const OPEN: u8 = 0;
    /// Fast recovery, or the window reduction after an ECN mark.
    pub(super) const RECOVERY: u8 = 1;
    /// After a retransmission timeout.
    pub(super) const LOSS: u8 = 2;
}

/// Congestion control of one connection.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub struct Congestion {
    /// `cwnd` before the last reduction, for undoing it.
    pub prior_cwnd: u32,
    /// `ssthresh` before the last reduction.
    pub prior_ssthresh: u32,
    /// Part of a segment by which `cwnd` has grown already; the unit is the algorithm's.
    fraction: u32,
    /// Congestion window, segments; at least 1.
    pub cwnd: u32,
    /// Slow start threshold, segments; [`NO_THRESHOLD`] before the first loss.
    pub ssthresh: u32,
    /// Initial window, segments.
    initial_window: u16,
    /// [`CUBIC`], [`RENO`] or [`BBR`].
    pub algorithm: u8,
    /// See [`phase`].
    phase: u8,
    /// State of the algorithm.
    private: [u64; 12],
}

const _: () = assert!(size_of::<Congestion>() <= 128);

/// What an acknowledgment says.
#[derive(Clone, Copy, Debug, Default)]
pub struct AckSample {
    /// Now, any monotonic clock.
    pub now_us: u64,
    /// Segments newly acknowledged cumulatively.
    pub acked: u32,
    /// Segments newly delivered: acknowledged or SACKed for the first time.
    pub delivered: u32,
    /// Segments in flight before the acknowledgment.
    pub in_flight_before: u32,
    /// Segments in flight after it.
    pub in_flight: u32,
    /// Round-trip time that it measures.
    pub rtt_us: Option<u32>,
    /// Least round-trip time of the connection so far; 0 = unknown.
    pub min_rtt_us: u32,
    /// Smoothed round-trip time; 0 = unknown.
    pub srtt_us: u32,
    /// Whether the window was full when the segments left: only then it grows (RFC 7661).
    pub cwnd_limited: bool,
    /// Whether it acknowledges data sent after the last round began: a round trip has gone by.
    pub round_start: bool,
    /// Segments delivered on the connection in all.
    pub delivered_total: u64,
    /// Time over which the rate was sampled; 0 = no sample.
    pub interval_us: u64,
    /// Segments delivered in that time.
    pub rate_delivered: u32,
    /// Whether the sender had nothing to send in that time.
    pub app_limited: bool,
    /// Segments newly taken for lost.
    pub lost: u32,
    /// Whether the engine is in fast recovery, where PRR moves the window.
    pub in_recovery: bool,
    /// Whether the peer echoes a congestion mark.
    pub ece: bool,
}

impl AckSample {
    /// Segments by which a window may grow: what was delivered, if the acknowledgment went forward.
    /// (A cumulative jump over what was SACKed before is no reason for a burst.)
    fn growth(&self) -> u32 {
        if self.acked > 0 { self.delivered } else { 0 }
    }
}

/// Adds to a window.
fn grown(cwnd: u32, by: u32) -> u32 {
    cwnd.saturating_add(by).min(CWND_MAX)
}

impl Congestion {
    /// A new connection's, with an initial window in segments (RFC 6928: 10).
    #[must_use]
    pub fn new(algorithm: u8, initial_window: u32) -> Self {
        let mut new = Self {
            cwnd: initial_window.max(1),
            ssthresh: NO_THRESHOLD,
            prior_cwnd: 0,
            prior_ssthresh: NO_THRESHOLD,
            fraction: 0,
            initial_window: initial_window.clamp(1, u32::from(u16::MAX)) as u16,
            algorithm: CUBIC,
            phase: phase::OPEN,
            private: [0; 12],
        };
        new.set_algorithm(algorithm);
        new
    }

    /// Changes the algorithm of a connection (`TCP_CONGESTION`); window and threshold stay.
    pub fn set_algorithm(&mut self, algorithm: u8) {
        self.algorithm = algorithm;
        self.fraction = 0;
        self.private = [0; 12];
        match algorithm {
            RENO => {}
            BBR => self.bbr().start(),
            _ => self.cubic().start(),
        }
    }

    fn cubic(&mut self) -> &mut cubic::Cubic {
        transmute_mut!(&mut self.private)
    }

    fn bbr(&mut self) -> &mut bbr::Bbr {
        transmute_mut!(&mut self.private)
    }

    /// Whether the algorithm moves the window in fast recovery too, instead of PRR.
    #[must_use]
    pub fn owns_window(&self) -> bool {
        self.algorithm == BBR
    }

    /// Whether the window grows exponentially.
    #[must_use]
    pub fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// An acknowledgment came: slow start, congestion avoidance, or the model of BBR.
    pub fn on_ack(&mut self, sample: &AckSample) {
        if self.algorithm == BBR {
            return self.bbr_on_ack(sample);
        }
        if self.phase != phase::LOSS && sample.in_recovery {
            return;
        }
        if self.algorithm == RENO {
            self.reno_on_ack(sample);
        } else {
            self.cubic_on_ack(sample);
        }
        self.cwnd = self.cwnd.clamp(1, CWND_MAX);
    }

    /// Slow start by `acked` segments: what is left over beyond the threshold.
    fn slow_start(&mut self, acked: u32) -> u32 {
        let room = self.ssthresh.saturating_sub(self.cwnd);
        let taken = acked.min(room);
        self.cwnd = grown(self.cwnd, taken);
        acked.saturating_sub(taken)
    }

    /// Fast recovery begins, with `in_flight` segments outstanding: the threshold goes down; PRR
    /// then moves the window.
    pub fn on_loss(&mut self, _now_us: u64, in_flight: u32) {
        self.save();
        let was = core::mem::replace(&mut self.phase, phase::RECOVERY);
        match self.algorithm {
            BBR => self.bbr_on_loss(in_flight, was != phase::OPEN),
            RENO => self.ssthresh = self.reno_threshold(),
            _ => self.ssthresh = self.cubic_reduce(),
        }
    }

    /// Remembers what [`Congestion::undo`] restores.
    fn save(&mut self) {
        self.prior_cwnd = self.cwnd;
        self.prior_ssthresh = self.ssthresh;
    }

    /// Everything lost is repaired, or the reduction after a mark has lasted a round trip.
    pub fn on_recovered(&mut self) {
        let was = core::mem::replace(&mut self.phase, phase::OPEN);
        if self.algorithm == BBR {
            self.bbr_on_recovered();
        } else if was == phase::RECOVERY {
            self.cwnd = self.ssthresh.clamp(1, CWND_MAX);
            self.fraction = 0;
        }
    }

    /// A retransmission timeout. The threshold goes down once
    /// for all timeouts until [`Congestion::on_recovered`] (RFC 5681 section 3.1).
    pub fn on_rto(&mut self, _now_us: u64, _in_flight: u32) {
        let was = core::mem::replace(&mut self.phase, phase::LOSS);
        if was == phase::OPEN {
            self.save();
        }
        match self.algorithm {
            BBR => self.bbr_on_rto(was != phase::OPEN),
            RENO if was == phase::OPEN => self.ssthresh = self.reno_threshold(),
            RENO => {}
            _ if was == phase::OPEN => {
                self.ssthresh = self.cubic_reduce();
                self.cubic().on_rto();
            }
            _ => self.cubic().on_rto(),
        }
        self.cwnd = 1;
        self.fraction = 0;
    }

    /// The last reduction was for nothing (RFC 3522, 4015, 5682): the window as before it, if it
    /// is not larger already. [`Congestion::on_recovered`] must not follow.
    pub fn undo(&mut self) {
        self.phase = phase::OPEN;
        self.cwnd = self.cwnd.max(self.prior_cwnd).clamp(1, CWND_MAX);
        self.ssthresh = self.ssthresh.max(self.prior_ssthresh);
        match self.algorithm {
            BBR => self.bbr_undo(),
            RENO => {}
            _ => self.cubic().undo(),
        }
    }

    /// The first segment after `idle_us` without one, which is more than `rto_us`: the window is
    /// halved for every timeout of it, down to the initial one (RFC 5681 section 4.1, RFC 2861).
    pub fn on_idle(&mut self, rto_us: u32, idle_us: u64) {
        if self.algorithm == BBR {
            return self.bbr().on_idle();
        }
        let rto_us = u64::from(rto_us.max(1));
        let least = u32::from(self.initial_window).min(self.cwnd);
        let halvings = idle_us.saturating_sub(1).checked_div(rto_us).unwrap_or(0);
        let halvings = halvings.min(31) as u32;
        if halvings == 0 {
            return;
        }
        if self.phase == phase::OPEN && self.ssthresh != NO_THRESHOLD {
            let three_quarters = (self.cwnd >> 1).saturating_add(self.cwnd >> 2);
            self.ssthresh = self.ssthresh.max(three_quarters);
        }
        self.cwnd = self.cwnd.wrapping_shr(halvings).max(least).max(1);
        self.fraction = 0;
    }

    /// The peer echoes a congestion mark, the first in this window (RFC 3168 section 6.1.2). As
    /// [`Congestion::on_loss`], though nothing is to be repaired.
    pub fn on_ecn(&mut self, now_us: u64, in_flight: u32) {
        if self.algorithm != BBR {
            self.on_loss(now_us, in_flight);
        }
    }

    /// Bytes a second at which to send segments of `mss` bytes; none = as the window allows.
    #[must_use]
    pub fn pacing_rate(&self, mss: u32, srtt_us: u32) -> Option<u64> {
        if self.algorithm != BBR {
            return None;
        }
        let bbr: &bbr::Bbr = transmute_ref!(&self.private);
        Some(bbr.pacing_rate(self.cwnd, mss, srtt_us))
    }
}

#[cfg(test)]
mod tests;
