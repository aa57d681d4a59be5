//! BBR version 1 (Cardwell and others, CACM 60(2), 2017;
//! draft-cardwell-iccrg-bbr-congestion-control): a model of the path, its bandwidth and its
//! round-trip time, instead of losses.
//!
//! Bandwidth is the largest delivery rate of the last ten rounds, the round-trip time the least of
//! the last ten seconds. Sending is paced at the bandwidth times a gain, the window is their
//! product times a gain, with room for acknowledgments that come in bursts. Congestion marks are
//! ignored. There is no detection of policers.

use super::{AckSample, CWND_MAX, Congestion, grown, phase};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits behind the point of a rate in segments a microsecond.
const RATE: u32 = 24;
/// Bits behind the point of a gain.
const GAIN: u32 = 8;
/// Gain 1.
const ONE: u32 = 1 << GAIN;
/// 2/ln 2: fills the pipe by doubling the rate each round.
const HIGH_GAIN: u32 = 739;
/// Its inverse: drains what that queued.
const DRAIN_GAIN: u32 = 88;
/// Pacing gains of a cycle of rounds: probe, drain, cruise.
const CYCLE: [u32; 8] = [320, 192, ONE, ONE, ONE, ONE, ONE, ONE];
/// Window gain while cruising.
const CRUISE_GAIN: u32 = 2 * ONE;
/// Rounds that the bandwidth is remembered.
const RATE_ROUNDS: u32 = 10;
/// Time that the least round-trip time is remembered.
const MIN_RTT_US: u64 = 10_000_000;
/// Time with a small window to measure it again.
const PROBE_RTT_US: u64 = 200_000;
/// The small window, and the smallest outside recovery.
const CWND_MIN: u32 = 4;
/// Rounds without 25 % more bandwidth after which the pipe is full.
const FULL_ROUNDS: u8 = 3;
/// Rounds that a burst of acknowledgments is remembered, twice.
const BURST_ROUNDS: u8 = 5;
/// Longest burst of acknowledgments that the window makes room for.
const BURST_US: u64 = 100_000;
/// Largest count of segments in one span of bursts.
const BURST_SEGMENTS: u32 = 0xf_ffff;
/// Round-trip time for pacing before the first sample.
const NOMINAL_RTT_US: u32 = 1000;

mod mode {
    /// Searching for the bandwidth.
    pub(super) const STARTUP: u8 = 0;
    /// Emptying the queue that the search made.
    pub(super) const DRAIN: u8 = 1;
    /// Cruising, with probes.
    pub(super) const PROBE_BW: u8 = 2;
    /// Measuring the round-trip time.
    pub(super) const PROBE_RTT: u8 = 3;
}

/// State of the algorithm.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Bbr {
    /// When the least round-trip time was measured.
    min_rtt_at_us: u64,
    /// When PROBE_RTT may end; 0 = the window is not small yet.
    probe_until_us: u64,
    /// When the phase of the cycle began.
    cycle_at_us: u64,
    /// When the span of bursts began.
    burst_at_us: u64,
    /// The three best rates, best first, each younger than the one before.
    rates: [Rate; 3],
    /// Least round-trip time; `u32::MAX` = unknown.
    min_rtt_us: u32,
    /// Rounds so far.
    round: u32,
    /// Rate when it last grew by 25 %.
    full_rate: u32,
    /// Window to go back to after a recovery or PROBE_RTT.
    prior_cwnd: u32,
    /// Segments by which bursts were ahead of the bandwidth, this and the last period.
    bursts: [u32; 2],
    /// Segments acknowledged in the span of bursts.
    burst_acked: u32,
    /// Rate of sending, gain included; 0 = nothing measured.
    pace: u32,
    mode: u8,
    /// Index into [`CYCLE`].
    cycle: u8,
    /// Rounds without growth of the rate, at most [`FULL_ROUNDS`].
    full_rounds: u8,
    /// Rounds of the current period of bursts.
    burst_rounds: u8,
    /// Index of the current period.
    burst_index: u8,
    /// In PROBE_RTT, rounds it must still last; after it, rounds whose samples are too low.
    low_rounds: u8,
    /// Rounds of packet conservation that are left.
    conserve_rounds: u8,
    /// Whether sending resumed after a pause and nothing was delivered since.
    restarted: u8,
}

/// A rate and the round in which it was measured.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
struct Rate {
    round: u32,
    value: u32,
}

impl Bbr {
    pub(super) fn start(&mut self) {
        self.min_rtt_us = u32::MAX;
    }

    /// Sending resumes after a pause: at the bandwidth, without probing.
    pub(super) fn on_idle(&mut self) {
        self.restarted = 1;
        self.burst_acked = 0;
        if self.mode == mode::PROBE_BW {
            self.pace = self.rate();
        }
    }

    /// Bytes a second for segments of `mss` bytes, 1 % below the model.
    pub(super) fn pacing_rate(&self, cwnd: u32, mss: u32, srtt_us: u32) -> u64 {
        let pace = match self.pace {
            0 => first_pace(cwnd, srtt_us),
            pace => pace,
        };
        let bytes = u64::from(pace).saturating_mul(u64::from(mss));
        let bytes = u128::from(bytes).wrapping_mul(990_000) >> RATE;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
    }

    /// The bandwidth.
    fn rate(&self) -> u32 {
        self.rates[0].value
    }

    fn is_full(&self) -> bool {
        self.full_rounds >= FULL_ROUNDS
    }

    fn pacing_gain(&self) -> u32 {
        match self.mode {
            mode::STARTUP => HIGH_GAIN,
            mode::DRAIN => DRAIN_GAIN,
            mode::PROBE_BW => CYCLE.get(usize::from(self.cycle)).copied().unwrap_or(ONE),
            _ => ONE,
        }
    }

    fn cwnd_gain(&self) -> u32 {
        match self.mode {
            mode::STARTUP | mode::DRAIN => HIGH_GAIN,
            mode::PROBE_BW => CRUISE_GAIN,
            _ => ONE,
        }
    }

    /// Takes the rate of a sample in. A sample that the application held down counts only if it is
    /// higher than what is known.
    fn update_rate(&mut self, sample: &AckSample) {
        if sample.round_start {
            self.round = self.round.wrapping_add(1);
            self.conserve_rounds = self.conserve_rounds.saturating_sub(1);
            self.low_rounds = self.low_rounds.saturating_sub(1);
        }
        let value = (u64::from(sample.rate_delivered) << RATE)
            .checked_div(sample.interval_us)
            .unwrap_or(0)
            .min(u64::from(u32::MAX)) as u32;
        let low = sample.app_limited || self.mode == mode::PROBE_RTT || self.low_rounds > 0;
        if sample.interval_us == 0 || (low && value < self.rate()) {
            return;
        }
        self.remember(Rate {
            round: self.round,
            value,
        });
    }

    /// The best of a sliding window, from the best, the best younger than it, and the best younger
    /// than that (Nichols).
    fn remember(&mut self, new: Rate) {
        let age = |rate: Rate| new.round.wrapping_sub(rate.round);
        let [best, second, third] = &mut self.rates;
        if new.value >= best.value || age(*third) > RATE_ROUNDS {
            self.rates = [new; 3];
            return;
        }
        if new.value >= second.value {
            (*second, *third) = (new, new);
        } else if new.value >= third.value {
            *third = new;
        }
        if age(*best) > RATE_ROUNDS {
            (*best, *second, *third) = (*second, *third, new);
            if age(*best) > RATE_ROUNDS {
                (*best, *second) = (*second, *third);
            }
        } else if second.round == best.round && age(*best) > RATE_ROUNDS / 4 {
            // Nothing younger was better for a while: the newest is the best younger one.
            (*second, *third) = (new, new);
        } else if third.round == second.round && age(*best) > RATE_ROUNDS / 2 {
            *third = new;
        }
    }

    /// Measures by how much acknowledgments run ahead of the bandwidth.
    fn update_bursts(&mut self, cwnd: u32, sample: &AckSample) {
        if sample.delivered == 0 || sample.interval_us == 0 {
            return;
        }
        if sample.round_start {
            self.burst_rounds = self.burst_rounds.saturating_add(1);
            if self.burst_rounds >= BURST_ROUNDS {
                self.burst_rounds = 0;
                self.burst_index = (self.burst_index ^ 1) & 1;
                self.set_burst(0);
            }
        }
        let span_us = sample.now_us.saturating_sub(self.burst_at_us);
        let mut expected = segments(self.rate(), span_us);
        let total = self.burst_acked.saturating_add(sample.delivered);
        if self.burst_acked <= expected || total >= BURST_SEGMENTS {
            self.burst_acked = 0;
            self.burst_at_us = sample.now_us;
            expected = 0;
        }
        self.burst_acked = self
            .burst_acked
            .saturating_add(sample.delivered)
            .min(BURST_SEGMENTS);
        let ahead = self.burst_acked.saturating_sub(expected).min(cwnd);
        let known = self.bursts.get(usize::from(self.burst_index & 1));
        if known.is_some_and(|known| ahead > *known) {
            self.set_burst(ahead);
        }
    }

    fn set_burst(&mut self, segments: u32) {
        if let Some(burst) = self.bursts.get_mut(usize::from(self.burst_index & 1)) {
            *burst = segments;
        }
    }

    /// Goes on in the cycle of gains when its phase has done its work.
    fn update_cycle(&mut self, sample: &AckSample, initial: u32) {
        if self.mode != mode::PROBE_BW {
            return;
        }
        let lasted_us = sample.now_us.saturating_sub(self.cycle_at_us);
        let long = lasted_us > u64::from(self.min_rtt_us);
        let gain = self.pacing_gain();
        let done = if gain > ONE {
            // Until the queue that it makes is there, or is too much.
            long && (sample.in_recovery || sample.in_flight_before >= self.inflight(gain, initial))
        } else if gain < ONE {
            long || sample.in_flight_before <= self.inflight(ONE, initial)
        } else {
            long
        };
        if done {
            self.cycle = self.cycle.wrapping_add(1) & 7;
            self.cycle_at_us = sample.now_us;
        }
    }

    /// Has the rate stopped growing?
    fn check_full(&mut self, sample: &AckSample) {
        if self.is_full() || !sample.round_start || sample.app_limited {
            return;
        }
        let wanted = u64::from(self.full_rate).saturating_mul(5) / 4;
        if u64::from(self.rate()) >= wanted {
            self.full_rate = self.rate();
            self.full_rounds = 0;
        } else {
            self.full_rounds = self.full_rounds.saturating_add(1);
        }
    }

    /// From STARTUP to DRAIN when the pipe is full, from there to PROBE_BW when the queue is gone.
    fn check_drain(&mut self, sample: &AckSample, initial: u32, ssthresh: &mut u32) {
        if self.mode == mode::STARTUP && self.is_full() {
            self.mode = mode::DRAIN;
            *ssthresh = self.inflight(ONE, initial);
        }
        if self.mode == mode::DRAIN && sample.in_flight <= self.inflight(ONE, initial) {
            self.cruise(sample.now_us);
        }
    }

    /// Begins PROBE_BW in any phase but the draining one; which, depends on the clock, so that
    /// flows do not probe together.
    fn cruise(&mut self, now_us: u64) {
        let pick = now_us.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let phase = (pick % 7) as u8;
        self.mode = mode::PROBE_BW;
        self.cycle = if phase == 0 {
            0
        } else {
            phase.saturating_add(1)
        };
        self.cycle_at_us = now_us;
    }

    /// Keeps the least round-trip time; measures it anew, with a small window, when it is old.
    fn update_min_rtt(&mut self, sample: &AckSample, cwnd: &mut u32, repairing: bool) {
        let old = self.min_rtt_us != u32::MAX
            && sample.now_us > self.min_rtt_at_us.saturating_add(MIN_RTT_US);
        if let Some(rtt_us) = sample.rtt_us
            && (rtt_us < self.min_rtt_us || old)
        {
            self.min_rtt_us = rtt_us.max(1);
            self.min_rtt_at_us = sample.now_us;
        }
        if old && self.restarted == 0 && self.mode != mode::PROBE_RTT {
            self.keep_cwnd(*cwnd, repairing);
            self.mode = mode::PROBE_RTT;
            self.probe_until_us = 0;
        }
        if self.mode == mode::PROBE_RTT {
            if self.probe_until_us == 0 {
                if sample.in_flight <= CWND_MIN {
                    self.probe_until_us = sample.now_us.saturating_add(PROBE_RTT_US);
                    // The current round and a whole one.
                    self.low_rounds = 2;
                }
            } else if self.low_rounds == 0 && sample.now_us > self.probe_until_us {
                self.end_probe(sample.now_us, cwnd);
            }
        }
        if sample.delivered > 0 {
            self.restarted = 0;
        }
    }

    /// Leaves PROBE_RTT.
    fn end_probe(&mut self, now_us: u64, cwnd: &mut u32) {
        self.min_rtt_at_us = now_us;
        *cwnd = (*cwnd).max(self.prior_cwnd);
        self.low_rounds = 2;
        if self.is_full() {
            self.cruise(now_us);
        } else {
            self.mode = mode::STARTUP;
        }
    }

    /// Remembers the window before something that makes it small.
    fn keep_cwnd(&mut self, cwnd: u32, again: bool) {
        self.prior_cwnd = if again || self.mode == mode::PROBE_RTT {
            self.prior_cwnd.max(cwnd)
        } else {
            cwnd
        };
    }

    /// Sets the rate of sending. Until the pipe is full it does not go down.
    fn update_pace(&mut self, cwnd: u32, sample: &AckSample) {
        if self.pace == 0 && sample.srtt_us != 0 {
            self.pace = first_pace(cwnd, sample.srtt_us);
        }
        let wanted = u64::from(self.rate()).saturating_mul(u64::from(self.pacing_gain())) >> GAIN;
        let wanted = wanted.min(u64::from(u32::MAX)) as u32;
        if wanted != 0 && (self.is_full() || wanted > self.pace) {
            self.pace = wanted;
        }
    }

    /// The window after an acknowledgment.
    fn next_cwnd(&self, cwnd: u32, sample: &AckSample, initial: u32) -> u32 {
        let mut next = cwnd.saturating_sub(sample.lost).max(1);
        if sample.delivered > 0 {
            if self.conserve_rounds > 0 {
                next = next.max(grown(sample.in_flight, sample.delivered));
            } else {
                let target = self
                    .bdp(self.cwnd_gain(), initial)
                    .saturating_add(self.room_for_bursts());
                let target = self.with_quanta(target);
                if self.is_full() {
                    next = grown(next, sample.delivered).min(target);
                } else if next < target || sample.delivered_total < u64::from(initial) {
                    next = grown(next, sample.delivered);
                }
                next = next.max(CWND_MIN);
            }
        }
        if self.mode == mode::PROBE_RTT {
            next = next.min(CWND_MIN);
        }
        next
    }

    /// Bandwidth times least round-trip time times a gain, segments rounded up.
    fn bdp(&self, gain: u32, initial: u32) -> u32 {
        if self.min_rtt_us == u32::MAX {
            return initial;
        }
        let product = u64::from(self.rate())
            .saturating_mul(u64::from(self.min_rtt_us))
            .saturating_mul(u64::from(gain))
            >> GAIN;
        let segments = product.saturating_add((1 << RATE) - 1) >> RATE;
        segments.min(u64::from(CWND_MAX)) as u32
    }

    /// What should be in flight at a gain.
    fn inflight(&self, gain: u32, initial: u32) -> u32 {
        self.with_quanta(self.bdp(gain, initial))
    }

    /// Room for what is between here and the wire in one go: three times what is sent at once, an
    /// even number, and something to probe with.
    fn with_quanta(&self, cwnd: u32) -> u32 {
        let quantum = match segments(self.pace, 1000) {
            0 if segments(self.pace, 10_000) == 0 => 1,
            few => few.clamp(2, 44),
        };
        let cwnd = cwnd.saturating_add(quantum.saturating_mul(3));
        let cwnd = cwnd.saturating_add(cwnd & 1);
        if self.mode == mode::PROBE_BW && self.cycle == 0 {
            cwnd.saturating_add(2)
        } else {
            cwnd
        }
    }

    fn room_for_bursts(&self) -> u32 {
        if !self.is_full() {
            return 0;
        }
        let [first, second] = self.bursts;
        first.max(second).min(segments(self.rate(), BURST_US))
    }
}

/// Segments at a rate in a time.
fn segments(rate: u32, us: u64) -> u32 {
    let product = u64::from(rate).saturating_mul(us) >> RATE;
    product.min(u64::from(u32::MAX)) as u32
}

/// The rate for a window in a round-trip time, or in 1 ms, at the high gain.
fn first_pace(cwnd: u32, srtt_us: u32) -> u32 {
    let rtt_us = if srtt_us == 0 {
        NOMINAL_RTT_US
    } else {
        srtt_us
    };
    let rate = (u64::from(cwnd) << RATE)
        .checked_div(u64::from(rtt_us))
        .unwrap_or(0)
        .saturating_mul(u64::from(HIGH_GAIN))
        >> GAIN;
    rate.min(u64::from(u32::MAX)) as u32
}

impl Congestion {
    pub(super) fn bbr_on_ack(&mut self, sample: &AckSample) {
        let initial = u32::from(self.initial_window);
        let repairing = self.phase != phase::OPEN;
        let (mut cwnd, mut ssthresh) = (self.cwnd, self.ssthresh);
        let bbr = self.bbr();
        bbr.update_rate(sample);
        bbr.update_bursts(cwnd, sample);
        bbr.update_cycle(sample, initial);
        bbr.check_full(sample);
        bbr.check_drain(sample, initial, &mut ssthresh);
        bbr.update_min_rtt(sample, &mut cwnd, repairing);
        bbr.update_pace(cwnd, sample);
        cwnd = bbr.next_cwnd(cwnd, sample, initial);
        self.cwnd = cwnd.clamp(1, CWND_MAX);
        self.ssthresh = ssthresh;
    }

    /// A loss: for a round, only what was delivered leaves (packet conservation).
    pub(super) fn bbr_on_loss(&mut self, in_flight: u32, again: bool) {
        let cwnd = self.cwnd;
        let bbr = self.bbr();
        bbr.keep_cwnd(cwnd, again);
        // The caller begins a round with the recovery.
        bbr.conserve_rounds = 1;
        self.cwnd = in_flight.clamp(1, CWND_MAX);
    }

    pub(super) fn bbr_on_recovered(&mut self) {
        let bbr = self.bbr();
        bbr.conserve_rounds = 0;
        let prior_cwnd = bbr.prior_cwnd;
        self.cwnd = self.cwnd.max(prior_cwnd).clamp(1, CWND_MAX);
    }

    /// A timeout: the search for the bandwidth, if it is still on, starts from below.
    pub(super) fn bbr_on_rto(&mut self, again: bool) {
        let cwnd = self.cwnd;
        let bbr = self.bbr();
        bbr.keep_cwnd(cwnd, again);
        bbr.full_rate = 0;
        bbr.conserve_rounds = 0;
    }

    pub(super) fn bbr_undo(&mut self) {
        let bbr = self.bbr();
        bbr.full_rate = 0;
        bbr.conserve_rounds = 0;
        if !bbr.is_full() {
            bbr.full_rounds = 0;
        }
    }
}
