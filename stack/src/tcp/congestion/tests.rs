//! The algorithms against their formulas in floating point, and on a simulated path.

use super::*;
use std::collections::VecDeque;
use std::vec::Vec;
use zerocopy::IntoBytes;

/// An acknowledgment of one segment by a sender that uses its whole window.
fn ack(now_us: u64, rtt_us: u32) -> AckSample {
    AckSample {
        now_us,
        acked: 1,
        delivered: 1,
        rtt_us: Some(rtt_us),
        srtt_us: rtt_us,
        min_rtt_us: rtt_us,
        cwnd_limited: true,
        ..AckSample::default()
    }
}

/// Acknowledges a window segment by segment over a round-trip time: the time behind it.
fn round(cc: &mut Congestion, now_us: u64, rtt_us: u32) -> u64 {
    let segments = cc.cwnd;
    for n in 0..segments {
        let at = now_us + u64::from(rtt_us) * u64::from(n + 1) / u64::from(segments);
        cc.on_ack(&AckSample {
            round_start: n == 0,
            ..ack(at, rtt_us)
        });
    }
    now_us + u64::from(rtt_us)
}

/// A connection in congestion avoidance after a loss at this window.
fn after_loss(algorithm: u8, window: u32) -> Congestion {
    let mut cc = Congestion::new(algorithm, window);
    cc.on_loss(0, window);
    cc.on_recovered();
    cc
}

#[test]
fn names_are_the_kernels() {
    for (number, text) in [(CUBIC, "cubic"), (RENO, "reno"), (BBR, "bbr")] {
        assert_eq!(name(number), text);
        assert_eq!(by_name(text.as_bytes()), Some(number));
        assert_eq!(Congestion::new(number, 10).algorithm, number);
    }
    assert_eq!(name(77), "cubic");
    assert_eq!(by_name(b"vegas"), None);
}

#[test]
fn slow_start_doubles_each_round_and_stops_at_the_threshold() {
    for algorithm in [RENO, CUBIC] {
        let mut cc = Congestion::new(algorithm, 10);
        assert!(cc.in_slow_start());
        let mut now = 0;
        for cwnd in [20, 40, 80, 160] {
            now = round(&mut cc, now, 50_000);
            assert_eq!(cc.cwnd, cwnd, "{}", name(algorithm));
        }
        // What one acknowledgment of many has beyond the threshold counts as avoidance.
        cc.ssthresh = 170;
        let many = AckSample {
            acked: 40,
            delivered: 40,
            ..ack(now, 50_000)
        };
        cc.on_ack(&many);
        assert_eq!(cc.cwnd, 170, "{}", name(algorithm));
        assert!(!cc.in_slow_start());
    }
}

#[test]
fn a_window_that_is_not_the_limit_does_not_grow() {
    for algorithm in [RENO, CUBIC] {
        let mut cc = Congestion::new(algorithm, 10);
        let unlimited = AckSample {
            cwnd_limited: false,
            ..ack(1, 1000)
        };
        (0..100).for_each(|_| cc.on_ack(&unlimited));
        assert_eq!(cc.cwnd, 10);
        // Nor in fast recovery, where PRR has it, nor by acknowledgments that do not go forward.
        let recovery = AckSample {
            in_recovery: true,
            ..ack(1, 1000)
        };
        (0..100).for_each(|_| cc.on_ack(&recovery));
        let duplicate = AckSample {
            acked: 0,
            ..ack(1, 1000)
        };
        (0..100).for_each(|_| cc.on_ack(&duplicate));
        assert_eq!(cc.cwnd, 10);
        // A jump over what was delivered before is one delivery.
        cc.on_ack(&AckSample {
            acked: 50,
            ..ack(1, 1000)
        });
        assert_eq!(cc.cwnd, 11);
    }
}

#[test]
fn reno_is_additive_up_and_half_down() {
    let mut cc = after_loss(RENO, 100);
    assert_eq!((cc.cwnd, cc.ssthresh), (50, 50));
    let mut now = 0;
    for up in 1..=40 {
        // Equation 2 of RFC 5681, in its byte counting form: one segment a window.
        now = round(&mut cc, now, 100_000);
        assert_eq!(cc.cwnd, 50 + up);
    }
    for (window, half) in [(90, 45), (7, 3), (3, 2), (2, 2), (1, 2)] {
        assert_eq!(after_loss(RENO, window).cwnd, half);
    }
    // An acknowledgment of ten windows.
    let mut cc = after_loss(RENO, 20);
    cc.on_ack(&AckSample {
        acked: 100,
        delivered: 100,
        ..ack(now, 100_000)
    });
    assert_eq!(cc.cwnd, 20);
}

/// CUBIC after a reduction, by the formulas of RFC 9438 sections 4.2 to 4.7.
struct Formula {
    cwnd: f64,
    w_max: f64,
    w_est: f64,
    cwnd_prior: f64,
    k: f64,
}

impl Formula {
    const BETA: f64 = 0.7;
    const C: f64 = 0.4;

    fn after_loss(cwnd: f64, w_max: f64) -> Self {
        let reduced = (cwnd * Self::BETA).floor();
        let w_max = if cwnd < w_max {
            cwnd * (1.0 + Self::BETA) / 2.0
        } else {
            cwnd
        };
        let (w_max, k) = if w_max > reduced {
            (w_max, ((w_max - reduced) / Self::C).cbrt())
        } else {
            (reduced, 0.0)
        };
        Self {
            cwnd: reduced,
            w_max,
            w_est: reduced,
            cwnd_prior: cwnd,
            k,
        }
    }

    fn w_cubic(&self, t: f64) -> f64 {
        Self::C * (t - self.k).powi(3) + self.w_max
    }

    fn on_ack(&mut self, t: f64, rtt: f64) {
        let alpha = if self.w_est < self.cwnd_prior {
            3.0 * (1.0 - Self::BETA) / (1.0 + Self::BETA)
        } else {
            1.0
        };
        self.w_est += alpha / self.cwnd;
        if self.w_cubic(t) < self.w_est {
            self.cwnd = self.cwnd.max(self.w_est);
            return;
        }
        let target = self.w_cubic(t + rtt).clamp(self.cwnd, 1.5 * self.cwnd);
        self.cwnd += (target - self.cwnd) / self.cwnd;
    }
}

/// Runs an epoch of CUBIC and the formula beside it; they stay within 1 % and a segment.
fn follow(cc: &mut Congestion, formula: &mut Formula, rtt_us: u32, seconds: f64) {
    let rtt = f64::from(rtt_us) / 1e6;
    // The epoch begins at the first acknowledgment.
    let begin = 1_000_000u64;
    let mut now = begin;
    while ((now - begin) as f64) < seconds * 1e6 {
        let segments = cc.cwnd;
        for n in 0..segments {
            let at = now + u64::from(rtt_us) * u64::from(n) / u64::from(segments);
            cc.on_ack(&ack(at, rtt_us));
            formula.on_ack((at - begin) as f64 / 1e6, rtt);
        }
        now += u64::from(rtt_us);
        let difference = (f64::from(cc.cwnd) - formula.cwnd).abs();
        assert!(
            difference <= 1.5 + formula.cwnd * 0.01,
            "after {} s: {} instead of {}",
            (now - begin) as f64 / 1e6,
            cc.cwnd,
            formula.cwnd
        );
    }
}

#[test]
fn cubic_follows_the_formula() {
    // Small windows and times are Reno's region, large ones concave, then convex.
    for (window, rtt_us, seconds) in [
        (10, 1_000, 5.0),
        (100, 1_000, 2.0),
        (100, 100_000, 12.0),
        (1000, 40_000, 14.0),
        (1000, 200_000, 20.0),
        (20_000, 100_000, 30.0),
    ] {
        let mut cc = after_loss(CUBIC, window);
        let mut formula = Formula::after_loss(f64::from(window), 0.0);
        assert_eq!(cc.cwnd, formula.cwnd as u32);
        follow(&mut cc, &mut formula, rtt_us, seconds);
    }
}

#[test]
fn cubic_is_back_at_the_old_window_after_k() {
    // K = ∛(0.3·W/C): ∛75 = 4.217 s for 100 segments.
    let mut cc = after_loss(CUBIC, 100);
    let mut now = 0;
    while now < 4_217_000 {
        now = round(&mut cc, now, 100_000);
    }
    assert!((98..=101).contains(&cc.cwnd), "{}", cc.cwnd);
}

#[test]
fn cubic_converges_fast_when_a_loss_comes_below_the_old_window() {
    let mut cc = after_loss(CUBIC, 100);
    cc.on_loss(0, 70);
    cc.on_recovered();
    assert_eq!(cc.cwnd, 49);
    let mut formula = Formula::after_loss(70.0, 100.0);
    assert!((formula.w_max - 59.5).abs() < 1e-9);
    follow(&mut cc, &mut formula, 100_000, 8.0);
}

#[test]
fn cubic_starts_its_own_epoch_after_a_timeout() {
    let mut cc = Congestion::new(CUBIC, 100);
    cc.on_rto(0, 100);
    assert_eq!((cc.cwnd, cc.ssthresh), (1, 70));
    while cc.in_slow_start() {
        cc.on_ack(&ack(1_000_000, 100_000));
    }
    cc.on_recovered();
    assert_eq!(cc.cwnd, 70);
    // K = 0 and W_max = cwnd: convex at once.
    let mut formula = Formula {
        cwnd: 70.0,
        w_max: 70.0,
        w_est: 70.0,
        cwnd_prior: 100.0,
        k: 0.0,
    };
    follow(&mut cc, &mut formula, 100_000, 6.0);
}

#[test]
fn the_time_of_cubic_stands_still_while_the_application_is_the_limit() {
    let mut busy = after_loss(CUBIC, 100);
    let mut paused = busy;
    let mut now = 0;
    for _ in 0..20 {
        now = round(&mut busy, now, 100_000);
    }
    let mut now = 0;
    for n in 0..20 {
        now = round(&mut paused, now, 100_000);
        if n == 10 {
            // A minute of small requests, then ten seconds of nothing.
            for _ in 0..600 {
                now += 100_000;
                paused.on_ack(&AckSample {
                    cwnd_limited: false,
                    ..ack(now, 100_000)
                });
            }
            now += 10_000_000;
        }
    }
    assert!(paused.cwnd.abs_diff(busy.cwnd) <= 1, "{busy:?} {paused:?}");
}

#[test]
fn cube_and_its_inverse_are_the_real_ones() {
    let c = 0.4;
    for window in [0.001, 0.5, 1.0, 30.0, 1e3, 1e5, 1e8] {
        let fixed = (window * 2f64.powi(32)) as u64;
        let seconds = cubic::inverse(fixed) as f64 / 2f64.powi(20);
        let exact = (window / c).cbrt();
        assert!(
            (seconds - exact).abs() < 2e-6,
            "{window}: {seconds} {exact}"
        );
        let back = cubic::cubed(cubic::inverse(fixed)) as f64 / 2f64.powi(32);
        let slope = 3.0 * c * exact * exact;
        assert!(
            (back - window).abs() <= slope * 2e-6 + 1e-8,
            "{window} {back}"
        );
    }
}

#[test]
fn reductions_and_their_undoing() {
    for (algorithm, reduced) in [(RENO, 50), (CUBIC, 70)] {
        let mut cc = Congestion::new(algorithm, 100);
        cc.on_loss(5, 100);
        assert_eq!((cc.cwnd, cc.ssthresh), (100, reduced), "PRR moves it");
        assert_eq!((cc.prior_cwnd, cc.prior_ssthresh), (100, NO_THRESHOLD));
        // A timeout in the same window does not reduce again.
        cc.on_rto(6, 100);
        assert_eq!((cc.cwnd, cc.ssthresh), (1, reduced));
        cc.on_rto(7, 1);
        assert_eq!((cc.cwnd, cc.ssthresh), (1, reduced));
        cc.undo();
        assert_eq!((cc.cwnd, cc.ssthresh), (100, NO_THRESHOLD));
        // After a timeout the window grows by acknowledgments, and is not set at the end.
        cc.on_rto(8, 100);
        cc.on_ack(&ack(9, 1000));
        assert_eq!(cc.cwnd, 2);
        cc.on_recovered();
        assert_eq!((cc.cwnd, cc.ssthresh), (2, reduced));
        // A mark is answered like a loss.
        let mut cc = Congestion::new(algorithm, 100);
        cc.on_ecn(9, 100);
        cc.on_recovered();
        assert_eq!((cc.cwnd, cc.ssthresh), (reduced, reduced));
    }
}

#[test]
fn cubic_goes_on_after_an_undone_reduction() {
    let mut cc = after_loss(CUBIC, 100);
    let mut now = 0;
    for _ in 0..30 {
        now = round(&mut cc, now, 100_000);
    }
    let mut undone = cc;
    undone.on_loss(now, 90);
    undone.undo();
    for _ in 0..30 {
        let at = now;
        now = round(&mut cc, at, 100_000);
        round(&mut undone, at, 100_000);
        assert!(undone.cwnd.abs_diff(cc.cwnd) <= 1, "{cc:?} {undone:?}");
    }
}

#[test]
fn an_idle_window_decays_to_the_initial_one() {
    for algorithm in [RENO, CUBIC] {
        let mut cc = Congestion::new(algorithm, 10);
        cc.cwnd = 100;
        cc.ssthresh = 40;
        cc.on_idle(200_000, 200_000);
        assert_eq!(cc.cwnd, 100, "not longer than a timeout");
        cc.on_idle(200_000, 500_000);
        assert_eq!((cc.cwnd, cc.ssthresh), (25, 75));
        cc.on_idle(200_000, u64::MAX);
        assert_eq!((cc.cwnd, cc.ssthresh), (10, 75));
        cc.cwnd = 4;
        cc.on_idle(200_000, 900_000);
        assert_eq!(cc.cwnd, 4);
        let mut fresh = Congestion::new(algorithm, 10);
        fresh.on_idle(0, 1000);
        assert_eq!((fresh.cwnd, fresh.ssthresh), (10, NO_THRESHOLD));
    }
}

/// A round of the initial slow start with this round-trip time in all of it.
fn hystart_round(cc: &mut Congestion, now: &mut u64, rtt_us: u32) {
    *now = round(cc, *now, rtt_us);
}

#[test]
fn hystart_slows_down_when_times_rise_and_leaves_after_five_rounds() {
    let mut cc = Congestion::new(CUBIC, 10);
    let mut now = 0;
    for _ in 0..3 {
        hystart_round(&mut cc, &mut now, 40_000);
    }
    assert_eq!(cc.cwnd, 80);
    // An eighth of 40 ms is 5 ms. 4.9 ms more is nothing.
    hystart_round(&mut cc, &mut now, 44_900);
    assert_eq!(cc.cwnd, 160);
    // From the eighth sample on, the growth is a quarter.
    hystart_round(&mut cc, &mut now, 50_600);
    assert_eq!(cc.cwnd, 160 + 7 + 153 / 4);
    assert!(cc.in_slow_start());
    let mut expected = cc.cwnd;
    for _ in 0..4 {
        hystart_round(&mut cc, &mut now, 50_600);
        expected += expected / 4;
        assert!(cc.cwnd.abs_diff(expected) <= 1, "{} {expected}", cc.cwnd);
        expected = cc.cwnd;
    }
    assert_eq!(cc.ssthresh, NO_THRESHOLD);
    hystart_round(&mut cc, &mut now, 50_600);
    assert!(!cc.in_slow_start());
    assert!(cc.ssthresh.abs_diff(expected) <= 1);
}

#[test]
fn hystart_takes_a_short_rise_for_noise() {
    let mut cc = Congestion::new(CUBIC, 10);
    let mut now = 0;
    for rtt_us in [40_000, 40_000, 60_000] {
        hystart_round(&mut cc, &mut now, rtt_us);
    }
    let slow = cc.cwnd;
    assert!(slow < 80, "{slow}");
    hystart_round(&mut cc, &mut now, 41_000);
    let before = cc.cwnd;
    hystart_round(&mut cc, &mut now, 41_000);
    assert_eq!(cc.cwnd, 2 * before);
}

#[test]
fn hystart_bounds_the_rise_that_counts() {
    for (base_us, rise_us, noticed) in [
        (1_000, 3_999, false),
        (1_000, 4_000, true),
        (400_000, 15_999, false),
        (400_000, 16_000, true),
    ] {
        let mut cc = Congestion::new(CUBIC, 16);
        let mut now = 0;
        hystart_round(&mut cc, &mut now, base_us);
        hystart_round(&mut cc, &mut now, base_us);
        hystart_round(&mut cc, &mut now, base_us + rise_us);
        assert_eq!(cc.cwnd < 128, noticed, "{base_us} {rise_us}");
    }
    // Only the initial slow start: after a loss the standard one.
    let mut cc = Congestion::new(CUBIC, 16);
    cc.ssthresh = 1000;
    let mut now = 0;
    for rtt_us in [10_000, 10_000, 90_000] {
        hystart_round(&mut cc, &mut now, rtt_us);
    }
    assert_eq!(cc.cwnd, 128);
}

/// A path with one bottleneck: a queue of `buffer` segments in front of a link, and a delay.
struct Path {
    /// Segments a second.
    rate: f64,
    rtt_us: u64,
    buffer: usize,
}

/// A segment on its way.
struct Sent {
    at_us: u64,
    /// When it was sent, what had been delivered and when, and when the first of those in flight
    /// had been sent: for the rate sample (draft-cheng-iccrg-delivery-rate-estimation).
    delivered: u64,
    delivered_at_us: u64,
    first_at_us: u64,
    /// When its acknowledgment arrives; none = lost.
    ack_us: Option<u64>,
}

/// A sender with endless data on a path.
struct Sender {
    cc: Congestion,
    path: Path,
    now_us: u64,
    next_send_us: f64,
    link_free_us: f64,
    flying: VecDeque<Sent>,
    delivered: u64,
    delivered_at_us: u64,
    first_at_us: u64,
    round_ends: u64,
    recovery_ends: Option<u64>,
    sent: u64,
    losses: u64,
    min_rtt_us: u32,
    srtt_us: u32,
    /// Windows at each acknowledgment, with its time.
    trace: Vec<(u64, u32)>,
}

impl Sender {
    fn new(algorithm: u8, path: Path) -> Self {
        Self {
            cc: Congestion::new(algorithm, 10),
            path,
            now_us: 50_000_000,
            next_send_us: 0.0,
            link_free_us: 0.0,
            flying: VecDeque::new(),
            delivered: 0,
            delivered_at_us: 0,
            first_at_us: 0,
            round_ends: 0,
            recovery_ends: None,
            sent: 0,
            losses: 0,
            min_rtt_us: u32::MAX,
            srtt_us: 0,
            trace: Vec::new(),
        }
    }

    fn queue(&self) -> f64 {
        (self.link_free_us - self.now_us as f64).max(0.0) * self.path.rate / 1e6
    }

    fn send(&mut self) {
        if self.flying.is_empty() {
            (self.first_at_us, self.delivered_at_us) = (self.now_us, self.now_us);
        }
        let lost = self.queue() >= self.path.buffer as f64;
        let ack_us = (!lost).then(|| {
            self.link_free_us = self.link_free_us.max(self.now_us as f64) + 1e6 / self.path.rate;
            self.link_free_us as u64 + self.path.rtt_us
        });
        self.flying.push_back(Sent {
            at_us: self.now_us,
            delivered: self.delivered,
            delivered_at_us: self.delivered_at_us,
            first_at_us: self.first_at_us,
            ack_us,
        });
        self.sent += 1;
        self.losses += u64::from(lost);
    }

    /// Acknowledges the oldest segment that arrived; those before it are lost.
    #[expect(
        clippy::too_many_lines,
        reason = "one acknowledgement, from loss to window"
    )]
    fn acknowledge(&mut self) {
        let before = self.flying.len() as u32;
        let mut lost = false;
        let sent = loop {
            let sent = self.flying.pop_front().unwrap();
            if sent.ack_us.is_some() {
                break sent;
            }
            lost = true;
        };
        let now_us = self.now_us;
        self.delivered += 1;
        self.delivered_at_us = now_us;
        self.first_at_us = sent.at_us;
        let rtt_us = (now_us - sent.at_us) as u32;
        self.min_rtt_us = self.min_rtt_us.min(rtt_us);
        self.srtt_us = match self.srtt_us {
            0 => rtt_us,
            srtt_us => srtt_us - srtt_us / 8 + rtt_us / 8,
        };
        let round_start = sent.delivered >= self.round_ends;
        if round_start {
            self.round_ends = self.delivered;
        }
        let in_flight = self.flying.len() as u32;
        if lost && self.recovery_ends.is_none() {
            self.recovery_ends = Some(self.sent);
            self.cc.on_loss(now_us, in_flight);
            if !self.cc.owns_window() {
                // Instead of PRR: at once.
                self.cc.on_recovered();
            }
        } else if self
            .recovery_ends
            .is_some_and(|end| self.delivered + self.losses >= end)
        {
            self.recovery_ends = None;
            if self.cc.owns_window() {
                self.cc.on_recovered();
            }
        }
        let ack_time = now_us - sent.delivered_at_us;
        let send_time = sent.at_us.saturating_sub(sent.first_at_us);
        self.cc.on_ack(&AckSample {
            now_us,
            acked: 1,
            delivered: 1,
            in_flight_before: before,
            in_flight,
            rtt_us: Some(rtt_us),
            min_rtt_us: self.min_rtt_us,
            srtt_us: self.srtt_us,
            cwnd_limited: true,
            round_start,
            delivered_total: self.delivered,
            interval_us: ack_time.max(send_time),
            rate_delivered: (self.delivered - sent.delivered) as u32,
            app_limited: false,
            lost: 0,
            in_recovery: self.recovery_ends.is_some() && self.cc.owns_window(),
            ece: false,
        });
        self.trace.push((now_us, self.cc.cwnd));
    }

    /// Runs for a time: segments delivered in it.
    fn run(&mut self, span_us: u64) -> u64 {
        let (end, before) = (self.now_us + span_us, self.delivered);
        loop {
            let rate = self.cc.pacing_rate(1000, self.srtt_us);
            let may = (self.flying.len() as u32) < self.cc.cwnd;
            let send_at = match rate {
                _ if !may => u64::MAX,
                None => self.now_us,
                Some(_) => self.now_us.max(self.next_send_us as u64),
            };
            let ack_at = self.flying.iter().find_map(|sent| sent.ack_us);
            let next = send_at.min(ack_at.unwrap_or(u64::MAX));
            if next == u64::MAX {
                // Everything was lost.
                self.flying.clear();
                self.now_us += 200_000;
                self.cc.on_rto(self.now_us, 0);
                continue;
            }
            if next >= end {
                self.now_us = end;
                return self.delivered - before;
            }
            self.now_us = next;
            if ack_at == Some(next) {
                self.acknowledge();
            } else {
                self.send();
                if let Some(rate) = rate {
                    let gap_us = 1000.0 * 1e6 / rate as f64;
                    self.next_send_us = self.next_send_us.max(self.now_us as f64) + gap_us;
                }
            }
        }
    }
}

/// 10,000 segments a second, 40 ms: 400 segments fill it.
fn path(buffer: usize) -> Path {
    Path {
        rate: 10_000.0,
        rtt_us: 40_000,
        buffer,
    }
}

#[test]
fn loss_based_senders_fill_a_path_with_a_buffer() {
    for (algorithm, share) in [(CUBIC, 95), (RENO, 90)] {
        let mut sender = Sender::new(algorithm, path(400));
        sender.run(5_000_000);
        let delivered = sender.run(30_000_000);
        assert!(sender.losses > 0);
        assert!(delivered >= 3000 * share, "{} {delivered}", name(algorithm));
    }
}

#[test]
fn hystart_leaves_slow_start_before_the_buffer_overflows() {
    let mut sender = Sender::new(CUBIC, path(5000));
    while sender.cc.in_slow_start() {
        sender.run(10_000);
    }
    assert_eq!(sender.losses, 0);
    // Noticed in the round after the one in which 400 were exceeded, then five times a quarter.
    assert!((800..4000).contains(&sender.cc.cwnd), "{:?}", sender.cc);
    // Where the buffer is too short for that, much less is lost than without it.
    let losses = [CUBIC, RENO].map(|algorithm| {
        let mut sender = Sender::new(algorithm, path(1000));
        while sender.cc.in_slow_start() {
            sender.run(10_000);
        }
        sender.losses
    });
    assert!(losses[0] * 2 < losses[1], "{losses:?}");
}

#[test]
fn gains_are_the_drafts() {
    let high = 2.0 / 2f64.ln();
    let mut cc = Congestion::new(BBR, 10);
    // Before the first sample: the initial window in 1 ms at the high gain, less 1 %.
    let expected = high * 10.0 * 1000.0 * 1e3 * 0.99;
    let rate = cc.pacing_rate(1000, 0).unwrap() as f64;
    assert!((rate / expected - 1.0).abs() < 0.002, "{rate} {expected}");
    let rate = cc.pacing_rate(1000, 20_000).unwrap() as f64;
    assert!((rate * 20.0 / expected - 1.0).abs() < 0.002, "{rate}");
    assert!(cc.owns_window());
    cc.set_algorithm(RENO);
    assert_eq!(cc.pacing_rate(1000, 0), None);
    assert!(!cc.owns_window());
}

#[test]
fn bbr_finds_the_bandwidth_and_keeps_the_queue_short() {
    // A probe of 5/4 just overflows a buffer of a quarter.
    for (buffer, lost_at_most) in [(100, 1200), (400, 0), (100_000, 0)] {
        let mut sender = Sender::new(BBR, path(buffer));
        sender.run(3_000_000);
        let rate = sender.cc.pacing_rate(1000, sender.srtt_us).unwrap() as f64;
        // 10⁷ bytes a second; the gain of the cycle is from 3/4 to 5/4.
        assert!((0.70..1.30).contains(&(rate / 1e7)), "{buffer}: {rate}");
        let losses = sender.losses;
        let mut delivered = 0;
        let mut queue = 0.0f64;
        for _ in 0..600 {
            delivered += sender.run(10_000);
            queue += sender.queue() / 600.0;
        }
        assert!(delivered >= 6 * 9_500, "{buffer}: {delivered}");
        assert!(queue < 60.0, "{buffer}: {queue}");
        assert!(sender.cc.cwnd <= 2 * 400 + 200, "{:?}", sender.cc);
        let losses = sender.losses - losses;
        assert!(losses <= lost_at_most, "{buffer}: {losses}");
    }
}

#[test]
fn bbr_follows_a_bandwidth_that_falls_and_rises() {
    let mut sender = Sender::new(BBR, path(100_000));
    sender.run(3_000_000);
    sender.path.rate = 2_500.0;
    sender.run(4_000_000);
    let rate = sender.cc.pacing_rate(1000, sender.srtt_us).unwrap() as f64;
    assert!((0.70..1.35).contains(&(rate / 2.5e6)), "{rate}");
    sender.path.rate = 10_000.0;
    // By 5/4 a cycle of eight rounds.
    sender.run(6_000_000);
    assert!(sender.run(1_000_000) > 9_000);
}

#[test]
fn bbr_measures_the_round_trip_time_anew_after_ten_seconds() {
    let mut sender = Sender::new(BBR, path(100_000));
    sender.run(9_000_000);
    assert!(sender.trace.iter().all(|(_, cwnd)| *cwnd > 4));
    sender.trace.clear();
    sender.path.rtt_us = 60_000;
    sender.run(3_000_000);
    let small: Vec<u64> = sender
        .trace
        .iter()
        .filter(|(_, cwnd)| *cwnd == 4)
        .map(|(at, _)| *at)
        .collect();
    let lasted = small.last().unwrap() - small.first().unwrap();
    assert!((200_000..600_000).contains(&lasted), "{lasted}");
    // Afterwards it is fast again, with the new time.
    sender.run(500_000);
    assert!(sender.run(1_000_000) > 9_000);
}

#[test]
fn bbr_does_not_mind_random_losses() {
    let mut sender = Sender::new(BBR, path(400));
    sender.run(2_000_000);
    let mut delivered = 0;
    for n in 0..500 {
        delivered += sender.run(10_000);
        if n % 10 == 0
            && let Some(last) = sender.flying.back_mut()
            && last.ack_us.take().is_some()
        {
            sender.losses += 1;
        }
    }
    assert!(delivered > 5 * 9_000, "{delivered}");
}

#[test]
fn bbr_conserves_packets_then_restores_the_window() {
    let mut sender = Sender::new(BBR, path(400));
    sender.run(2_000_000);
    let before = sender.cc.cwnd;
    sender.cc.on_loss(sender.now_us, 300);
    assert_eq!(sender.cc.cwnd, 300);
    sender.cc.on_ack(&AckSample {
        in_flight: 299,
        in_recovery: true,
        ..ack(sender.now_us, 40_000)
    });
    assert_eq!(sender.cc.cwnd, 300);
    sender.cc.on_recovered();
    assert_eq!(sender.cc.cwnd, before);
    sender.cc.on_rto(sender.now_us, 300);
    assert_eq!(sender.cc.cwnd, 1);
    sender.cc.undo();
    assert_eq!(sender.cc.cwnd, before);
    sender.cc.on_ecn(sender.now_us, 300);
    assert_eq!(sender.cc.cwnd, before);
}

/// Any content of the image, any sample: no overflow, no division by zero, a window of at least
/// one segment.
#[test]
fn rubbish_is_survived() {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Often a small or a large value.
        match state % 5 {
            0 => 0,
            1 => u64::MAX,
            2 => state >> 50,
            _ => state,
        }
    };
    for _ in 0..20_000 {
        let mut cc = Congestion::new(0, 10);
        for byte in cc.as_mut_bytes() {
            *byte = next() as u8;
        }
        cc.algorithm = (next() % 4) as u8;
        for _ in 0..8 {
            let sample = AckSample {
                now_us: next(),
                acked: next() as u32,
                delivered: next() as u32,
                in_flight_before: next() as u32,
                in_flight: next() as u32,
                rtt_us: Some(next() as u32),
                min_rtt_us: next() as u32,
                srtt_us: next() as u32,
                cwnd_limited: next() % 2 == 0,
                round_start: next() % 2 == 0,
                delivered_total: next(),
                interval_us: next(),
                rate_delivered: next() as u32,
                app_limited: next() % 2 == 0,
                lost: (next() % 3) as u32,
                in_recovery: next() % 2 == 0,
                ece: next() % 2 == 0,
            };
            match next() % 9 {
                0 => cc.on_loss(next(), next() as u32),
                1 => cc.on_rto(next(), next() as u32),
                2 => cc.on_recovered(),
                3 => cc.undo(),
                4 => cc.on_idle(next() as u32, next()),
                5 => cc.on_ecn(next(), next() as u32),
                _ => cc.on_ack(&sample),
            }
            let _ = cc.pacing_rate(next() as u32, next() as u32);
        }
        cc.on_ack(&ack(1, 1));
        cc.on_recovered();
        assert!(cc.cwnd >= 1 && cc.cwnd <= CWND_MAX);
    }
}
