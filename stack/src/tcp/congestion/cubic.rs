//! CUBIC (RFC 9438): β = 0.7, C = 0.4, fast convergence, Reno-friendly region; slow start with
//! HyStart++.
//!
//! Windows are fixed point with 32 bits behind the point, times in the cubic function are in units
//! of 2⁻²⁰ s. The time since an epoch began advances only while the window is the limit, and by at
//! most a round-trip time an acknowledgment: idle and application-limited spans are not part of it
//! (section 5.8).

use super::hystart::{Advice, GROWTH_DIVISOR, Hystart};
use super::{AckSample, CWND_MAX, Congestion, NO_THRESHOLD, SSTHRESH_MIN, grown};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits behind the point of a window.
const POINT: u32 = 32;
/// Bits behind the point of a second.
const SECOND: u32 = 20;
/// α of section 4.3, 3(1−β)/(1+β) = 9/17, as a window.
const ALPHA: u64 = (9 << POINT) / 17;
/// Time that an acknowledgment without a known round-trip time stands for at most.
const GAP_MAX_US: u64 = 1_000_000;

/// State of the algorithm. `w_max`, `k` and `w_est` have the RFC's names.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Cubic {
    hystart: Hystart,
    /// Window before the last reduction, less when converging fast.
    w_max: u64,
    /// Time from the start of the epoch to `w_max`.
    k: u64,
    /// Window of a Reno sender since the epoch began.
    w_est: u64,
    /// Time in the epoch, microseconds.
    elapsed_us: u64,
    /// When it was advanced; 0 = no epoch yet.
    last_us: u64,
    /// What [`Cubic::undo`] restores.
    prior: [u64; 4],
    /// `cwnd` before the last reduction, segments; 0 = none yet.
    cwnd_prior: u32,
    /// Whether an epoch was on before the last reduction.
    was_running: u32,
}

impl Cubic {
    pub(super) fn start(&mut self) {
        self.hystart.start();
    }

    /// A timeout: the next epoch starts at the window of its own (section 4.8).
    pub(super) fn on_rto(&mut self) {
        self.w_max = 0;
        self.last_us = 0;
    }

    /// The last reduction was for nothing (section 4.9).
    pub(super) fn undo(&mut self) {
        let [w_max, k, w_est, elapsed_us] = self.prior;
        *self = Self {
            w_max,
            k,
            w_est,
            elapsed_us,
            // The next acknowledgment adds at most a round-trip time.
            last_us: u64::from(self.was_running != 0),
            ..*self
        };
    }

    /// Begins an epoch of congestion avoidance with this window.
    fn begin(&mut self, cwnd: u64, now_us: u64) {
        self.last_us = now_us.max(1);
        self.elapsed_us = 0;
        self.w_est = cwnd;
        if self.w_max > cwnd {
            self.k = inverse(self.w_max.wrapping_sub(cwnd));
        } else {
            self.k = 0;
            self.w_max = cwnd;
        }
    }

    /// Lets the epoch's time go on.
    fn advance(&mut self, sample: &AckSample) {
        let most = match sample.srtt_us {
            0 => GAP_MAX_US,
            srtt_us => u64::from(srtt_us),
        };
        if sample.cwnd_limited {
            let gap = sample.now_us.saturating_sub(self.last_us).min(most);
            self.elapsed_us = self.elapsed_us.saturating_add(gap);
        }
        self.last_us = sample.now_us.max(1);
    }

    /// W_cubic of section 4.2, this long after the epoch began.
    fn window_at(&self, at_us: u64) -> u64 {
        let t = ticks(at_us);
        if t < self.k {
            self.w_max.saturating_sub(cubed(self.k.wrapping_sub(t)))
        } else {
            self.w_max.saturating_add(cubed(t.wrapping_sub(self.k)))
        }
    }

    /// Growth for `acked` segments at this window, both whole: the new window, fixed point.
    fn avoid(&mut self, cwnd: u64, acked: u32, srtt_us: u32) -> u64 {
        let segments = (cwnd >> POINT).max(1);
        let acked = u64::from(acked).min(segments);
        let share = |window: u64| {
            window
                .checked_div(segments)
                .unwrap_or(0)
                .saturating_mul(acked)
        };
        let alpha = if self.w_est < u64::from(self.cwnd_prior) << POINT {
            ALPHA
        } else {
            1 << POINT
        };
        self.w_est = self.w_est.saturating_add(share(alpha));
        if self.window_at(self.elapsed_us) < self.w_est {
            return cwnd.max(self.w_est);
        }
        let soon = self.elapsed_us.saturating_add(u64::from(srtt_us));
        let most = cwnd.saturating_add(cwnd >> 1);
        let target = self.window_at(soon).clamp(cwnd, most);
        cwnd.saturating_add(share(target.wrapping_sub(cwnd)))
    }
}

/// Microseconds as 2⁻²⁰ s, up to 2²⁰ s.
fn ticks(us: u64) -> u64 {
    let us = us.min(1 << (SECOND + 20));
    (us << SECOND) / 1_000_000
}

/// C·t³: the window for a time.
pub(super) fn cubed(t: u64) -> u64 {
    let t = u128::from(t.min(1 << 40));
    // t³ has 3·20 bits behind the point.
    let cube = t.wrapping_mul(t).wrapping_mul(t) >> (3 * SECOND - POINT);
    u64::try_from(cube)
        .unwrap_or(u64::MAX)
        .min(1 << 62)
        .saturating_mul(2)
        / 5
}

/// The time for which C·t³ is this window: ∛(w/C), rounded down.
pub(super) fn inverse(w: u64) -> u64 {
    let cube = (u128::from(w).wrapping_mul(5) >> 1) << (3 * SECOND - POINT);
    // Bit by bit from the top; w < 2⁶², so the root has at most 31 bits.
    let mut root = 0u64;
    for bit in (0..32).rev() {
        let tried = root | 1 << bit;
        let wide = u128::from(tried);
        if wide.wrapping_mul(wide).wrapping_mul(wide) <= cube {
            root = tried;
        }
    }
    root
}

impl Congestion {
    pub(super) fn cubic_on_ack(&mut self, sample: &AckSample) {
        let mut acked = sample.growth();
        if self.in_slow_start() {
            acked = self.cubic_slow_start(sample, acked);
            if self.in_slow_start() {
                return;
            }
        }
        let window = u64::from(self.cwnd) << POINT | u64::from(self.fraction);
        let cubic = self.cubic();
        if cubic.last_us == 0 {
            cubic.begin(window, sample.now_us);
        } else {
            cubic.advance(sample);
        }
        if !sample.cwnd_limited || acked == 0 {
            return;
        }
        let window = cubic
            .avoid(window, acked, sample.srtt_us)
            .min(u64::from(CWND_MAX) << POINT);
        self.cwnd = (window >> POINT) as u32;
        self.fraction = window as u32;
    }

    /// Slow start, the initial one with HyStart++: the segments left over behind it.
    fn cubic_slow_start(&mut self, sample: &AckSample, acked: u32) -> u32 {
        let grow = if sample.cwnd_limited { acked } else { 0 };
        if self.ssthresh != NO_THRESHOLD {
            return self.slow_start(grow);
        }
        let advice = self
            .cubic()
            .hystart
            .on_ack(sample.rtt_us, sample.round_start);
        match advice {
            Advice::Standard => self.slow_start(grow),
            Advice::Conservative => {
                let count = self.fraction.saturating_add(grow);
                self.fraction = count % GROWTH_DIVISOR;
                self.cwnd = grown(self.cwnd, count / GROWTH_DIVISOR);
                0
            }
            Advice::Leave => {
                self.ssthresh = self.cwnd;
                self.fraction = 0;
                grow
            }
        }
    }

    /// A congestion event (section 4.6, 4.7): the threshold after it.
    pub(super) fn cubic_reduce(&mut self) -> u32 {
        let cwnd = self.cwnd;
        self.fraction = 0;
        let window = u64::from(cwnd) << POINT;
        let cubic = self.cubic();
        cubic.was_running = u32::from(cubic.last_us != 0);
        cubic.prior = [cubic.w_max, cubic.k, cubic.w_est, cubic.elapsed_us];
        cubic.w_max = if window < cubic.w_max {
            // Fast convergence: leave room for the newcomer, (1+β)/2 of the window.
            (window / 20).saturating_mul(17)
        } else {
            window
        };
        cubic.cwnd_prior = cwnd;
        cubic.last_us = 0;
        let reduced = (u64::from(cwnd).saturating_mul(7) / 10) as u32;
        reduced.max(SSTHRESH_MIN)
    }
}
