//! Frames on their way between two ends, and what befalls them there.

use std::collections::BTreeMap;

/// What happens to frames on their way. Probabilities in 1/1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A frame vanishes.
    pub loss: u16,
    /// A frame arrives twice.
    pub duplicate: u16,
    /// A frame overtakes the one before it.
    pub reorder: u16,
    /// One bit of a frame flips.
    pub corrupt: u16,
    /// Nanoseconds that every frame takes.
    pub delay_ns: u64,
    /// Up to so many nanoseconds more, each as likely.
    pub jitter_ns: u64,
    /// Bits that a direction carries in a second; a frame waits until those before it have gone.
    /// 0 = no limit.
    pub bits_per_second: u64,
    /// Longest frame in bytes; longer ones vanish. 0 = no limit.
    pub longest: u32,
    /// Most frames on the way in one direction; further ones vanish. 0 = no limit.
    pub in_flight: u32,
}

/// What became of frames, both directions together.
///
/// `sent + duplicated == delivered + lost + unposted + frames on the way`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Given to the wire.
    pub sent: u64,
    /// Second copies.
    pub duplicated: u64,
    /// Vanished: by loss, or beyond a limit.
    pub lost: u64,
    /// Thrown away because the receiver had posted no chunk.
    pub unposted: u64,
    /// Arrived in an RX ring.
    pub delivered: u64,
}

/// splitmix64: small, seeded, good enough for choosing faults.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn happens(&mut self, per_1024: u16) -> bool {
        self.draw() % 1024 < u64::from(per_1024)
    }
}

/// Frames on their way, in both directions. Time is the caller's, chance comes from one seed.
///
/// Each direction has a generator of its own: what befalls its frames depends on how many it has
/// carried, not on how those of the other direction fall between them.
#[derive(Debug)]
pub struct Transit {
    /// Frames on the way to each end, by time of arrival and order of sending.
    toward: [BTreeMap<(u64, u64), Vec<u8>>; 2],
    /// When each direction has carried what it was given.
    free: [u64; 2],
    order: u64,
    faults: Faults,
    /// By the end that the frames go to.
    chances: [Chance; 2],
    statistics: Statistics,
}

impl Transit {
    /// Nothing on the way yet.
    #[must_use]
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self {
            toward: Default::default(),
            free: [0; 2],
            order: 0,
            faults,
            // Far apart: the generator's steps are all of one size.
            chances: [Chance(seed), Chance(!seed.rotate_left(32))],
            statistics: Statistics::default(),
        }
    }

    /// Sends a frame to end `to` (0 or 1) at `now` nanoseconds.
    pub fn carry(&mut self, to: usize, mut frame: Vec<u8>, now: u64) {
        let faults = self.faults;
        self.statistics.sent += 1;
        // Drawn always, so that one fault does not shift the chances of the others.
        let chance = &mut self.chances[to];
        let lost = chance.happens(faults.loss);
        let corrupt = chance.happens(faults.corrupt);
        let twice = chance.happens(faults.duplicate);
        let overtakes = chance.happens(faults.reorder);
        let bit = chance.draw() as usize;
        let jitters = [chance.draw(), chance.draw()];
        let is_too_long = faults.longest != 0 && frame.len() > faults.longest as usize;
        if lost || is_too_long {
            self.statistics.lost += 1;
            return;
        }
        if corrupt && !frame.is_empty() {
            let bit = bit % (frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        if twice {
            self.statistics.duplicated += 1;
            self.put(to, frame.clone(), now, (jitters[1], false));
        }
        self.put(to, frame, now, (jitters[0], overtakes));
    }

    /// `chance`: what its jitter is drawn from, and whether it overtakes.
    fn put(&mut self, to: usize, mut frame: Vec<u8>, now: u64, chance: (u64, bool)) {
        let (jitter, overtakes) = chance;
        let limit = self.faults.in_flight as usize;
        if limit != 0 && self.toward[to].len() >= limit {
            self.statistics.lost += 1;
            return;
        }
        let bits = frame.len() as u64 * 8 * 1_000_000_000;
        let takes = bits.checked_div(self.faults.bits_per_second).unwrap_or(0);
        self.free[to] = self.free[to].max(now) + takes;
        let jitter = jitter % self.faults.jitter_ns.saturating_add(1).max(1);
        let arrival = (self.free[to] + self.faults.delay_ns).saturating_add(jitter);
        self.order += 1;
        if overtakes && let Some(mut last) = self.toward[to].last_entry() {
            std::mem::swap(last.get_mut(), &mut frame);
        }
        self.toward[to].insert((arrival, self.order), frame);
    }

    /// Gives each frame whose time has come to `deliver` with its end; that says whether the end
    /// had room for it.
    pub fn arrive(&mut self, now: u64, deliver: &mut dyn FnMut(usize, &[u8]) -> bool) {
        for (end, toward) in self.toward.iter_mut().enumerate() {
            while let Some(first) = toward.first_entry()
                && first.key().0 <= now
            {
                let counter = if deliver(end, &first.remove()) {
                    &mut self.statistics.delivered
                } else {
                    &mut self.statistics.unposted
                };
                *counter += 1;
            }
        }
    }

    /// When the next frame arrives; `None` when none is on the way.
    #[must_use]
    pub fn next_arrival(&self) -> Option<u64> {
        let firsts = self.toward.iter().filter_map(|way| way.first_key_value());
        firsts.map(|((time, _), _)| *time).min()
    }

    /// Frames on the way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.toward.iter().map(BTreeMap::len).sum()
    }

    /// Whether frames arrive when they are sent.
    #[must_use]
    pub fn is_immediate(&self) -> bool {
        let Faults {
            delay_ns,
            jitter_ns,
            bits_per_second,
            ..
        } = self.faults;
        (delay_ns, jitter_ns, bits_per_second) == (0, 0, 0)
    }

    /// Changes what happens to frames that are sent from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// What became of frames so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }
}
