//! HyStart++ (RFC 9406): leaves the initial slow start when round-trip times rise, before the loss.
//!
//! When the least time of a round is an eighth (4 to 16 ms) above the last round's, slow start
//! becomes conservative: a quarter of the growth. If the times fall back it was noise; after five
//! rounds it is over. The limit L on the growth by one acknowledgment is that of a paced sender,
//! infinite, since peers and our own receiver acknowledge many segments at once.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Least and largest rise of the round-trip time that counts.
const RISE_MIN_US: u32 = 4_000;
const RISE_MAX_US: u32 = 16_000;
/// The rise that counts, as a part of the last round's least time.
const RISE_DIVISOR: u32 = 8;
/// Samples a round needs.
const SAMPLES: u8 = 8;
/// How much slower the conservative part grows.
pub(super) const GROWTH_DIVISOR: u32 = 4;
/// Rounds of the conservative part.
const ROUNDS: u8 = 5;
/// No time known.
const UNKNOWN: u32 = u32::MAX;

/// State of the algorithm.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Hystart {
    /// Least round-trip times of the last and the current round.
    last_us: u32,
    current_us: u32,
    /// Least time of the round in which the conservative part began.
    baseline_us: u32,
    /// Samples of the current round, at most [`SAMPLES`].
    samples: u8,
    /// Rounds of the conservative part so far.
    rounds: u8,
    /// Whether it is on.
    conservative: u8,
    reserved: u8,
}

/// What slow start is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Grow as ever.
    Standard,
    /// Grow by a quarter.
    Conservative,
    /// The threshold is here.
    Leave,
}

impl Hystart {
    pub(super) fn start(&mut self) {
        *self = Self {
            last_us: UNKNOWN,
            current_us: UNKNOWN,
            baseline_us: UNKNOWN,
            samples: 0,
            rounds: 0,
            conservative: 0,
            reserved: 0,
        };
    }

    /// An acknowledgment in slow start.
    pub(super) fn on_ack(&mut self, rtt_us: Option<u32>, round_start: bool) -> Advice {
        if round_start {
            self.last_us = self.current_us;
            self.current_us = UNKNOWN;
            self.samples = 0;
            if self.conservative != 0 {
                self.rounds = self.rounds.saturating_add(1);
                if self.rounds >= ROUNDS {
                    return Advice::Leave;
                }
            }
        }
        if let Some(rtt_us) = rtt_us {
            self.current_us = self.current_us.min(rtt_us);
            self.samples = self.samples.saturating_add(1).min(SAMPLES);
            if self.samples >= SAMPLES {
                self.judge();
            }
        }
        if self.conservative == 0 {
            Advice::Standard
        } else {
            Advice::Conservative
        }
    }

    /// A round with enough samples: has the time risen, or was it noise?
    fn judge(&mut self) {
        if self.conservative != 0 {
            if self.current_us < self.baseline_us {
                self.conservative = 0;
                self.baseline_us = UNKNOWN;
            }
        } else if self.last_us != UNKNOWN {
            let rise = (self.last_us / RISE_DIVISOR).clamp(RISE_MIN_US, RISE_MAX_US);
            if self.current_us >= self.last_us.saturating_add(rise) {
                self.conservative = 1;
                self.baseline_us = self.current_us;
                self.rounds = 0;
            }
        }
    }
}
