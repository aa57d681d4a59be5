//! Reno (RFC 5681): one segment a round trip up, half down. Growth counts segments delivered, as
//! RFC 3465 counts bytes, so that delayed acknowledgments do not slow it down.

use super::{AckSample, Congestion, SSTHRESH_MIN, grown};

impl Congestion {
    pub(super) fn reno_on_ack(&mut self, sample: &AckSample) {
        if !sample.cwnd_limited {
            return;
        }
        let mut acked = sample.growth();
        if self.in_slow_start() {
            acked = self.slow_start(acked);
        }
        self.add_one_a_window(acked);
    }

    /// Congestion avoidance: one segment for every window of `acked` segments; `fraction` counts
    /// them.
    fn add_one_a_window(&mut self, acked: u32) {
        if acked == 0 {
            return;
        }
        let window = self.cwnd.max(1);
        let count = self.fraction.saturating_add(acked);
        self.fraction = count.checked_rem(window).unwrap_or(0);
        self.cwnd = grown(self.cwnd, count.checked_div(window).unwrap_or(0));
    }

    /// The threshold after a loss: half of the window. RFC 5681 takes the flight size; a window
    /// that grows only when it is full is the same, and what Linux halves.
    pub(super) fn reno_threshold(&self) -> u32 {
        (self.cwnd >> 1).max(SSTHRESH_MIN)
    }
}
