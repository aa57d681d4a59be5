//! What a world is like: the wire's faults and the hosts' settings.

use super::super::common::Random;
use super::SECOND;
use bypass_stack::TcpDefaults;

/// A plan. Percentages are of frames.
#[derive(Debug, Clone)]
pub struct Plan {
    pub loss: u64,
    /// The same in thousandths, besides.
    pub rare_loss: u64,
    pub duplicate: u64,
    pub corrupt: u64,
    /// Congestion marks on frames that can carry them.
    pub mark: u64,
    /// One way, and what is added at random (which reorders).
    pub delay_ns: u64,
    pub jitter_ns: u64,
    /// Bytes a second; 0 = no limit.
    pub rate: u64,
    /// Frames that wait for the link at most.
    pub queue_frames: usize,
    /// Frames in the TX ring, and chunks in the fill ring.
    pub ring_frames: usize,
    pub fill: usize,
    /// Longer frames vanish on the way, and nobody says so.
    pub swallowed_above: usize,
    pub partial: bool,
    pub chunks: u32,
    pub endpoints: u32,
    pub mtu: [u16; 2],
    pub ipv6: bool,
    pub defaults: TcpDefaults,
    pub backlog: u32,
    pub start_ns: u64,
    /// How far behind the last one's the clock of whoever takes frames in may be.
    pub clock_behind_ns: u64,
    /// Programs write with their connect (TCP Fast Open).
    pub fast: bool,
}

impl Plan {
    /// A good wire, 100 µs long, and usual hosts.
    pub fn good() -> Self {
        Self {
            loss: 0,
            rare_loss: 0,
            duplicate: 0,
            corrupt: 0,
            mark: 0,
            delay_ns: 50_000,
            jitter_ns: 0,
            rate: 0,
            queue_frames: usize::MAX,
            ring_frames: 64,
            fill: 64,
            swallowed_above: usize::MAX,
            partial: false,
            chunks: 1024,
            endpoints: 16,
            mtu: [1500; 2],
            ipv6: false,
            defaults: TcpDefaults::new(),
            backlog: 16,
            start_ns: SECOND,
            clock_behind_ns: 0,
            fast: false,
        }
    }

    /// Any of the worlds that a seed can make.
    pub fn draw(random: &mut Random) -> Self {
        let mut plan = Self::good();
        let some = |random: &mut Random, bound| {
            if random.chance(50) {
                random.below(bound)
            } else {
                0
            }
        };
        plan.loss = some(random, 13);
        plan.duplicate = some(random, 15);
        plan.corrupt = some(random, 6);
        plan.delay_ns =
            [1_000, 50_000, 2_000_000, 20_000_000, 100_000_000][random.below(5) as usize];
        plan.jitter_ns = some(random, 1 + plan.delay_ns * 2);
        if random.chance(30) {
            plan.rate = [100_000, 1_000_000, 20_000_000][random.below(3) as usize];
            plan.queue_frames = 4 + random.below(60) as usize;
        }
        plan.ring_frames = 1 + random.below(32) as usize;
        plan.fill = 4 + random.below(28) as usize;
        plan.partial = plan.corrupt == 0 && random.chance(30);
        plan.chunks = [96, 256, 1024][random.below(3) as usize];
        if random.chance(30) {
            plan.mtu[random.below(2) as usize] = [576, 1280, 1400][random.below(3) as usize];
        }
        plan.ipv6 = random.chance(40);
        if plan.ipv6 {
            plan.mtu = plan.mtu.map(|mtu| mtu.max(1280));
        }
        let defaults = &mut plan.defaults;
        defaults.timestamps = u8::from(random.chance(80));
        defaults.sack = u8::from(random.chance(85));
        defaults.window_scaling = u8::from(random.chance(85));
        if defaults.sack == 0 || defaults.timestamps == 0 {
            // Lost ACKs make the timeouts of Linux and ours grow without bound there.
            plan.loss = plan.loss.min(5);
            plan.corrupt = plan.corrupt.min(2);
            plan.partial &= plan.corrupt == 0;
        }
        let defaults = &mut plan.defaults;
        if random.chance(30) {
            defaults.ecn = 1;
            plan.mark = some(random, 20);
        }
        plan.backlog = [1, 4, 64][random.below(3) as usize];
        plan.start_ns = match random.below(4) {
            0 => SECOND,
            // 32 bits of microseconds, or of milliseconds, are over soon.
            1 => (1u64 << 32) * 1_000 - random.below(3 * SECOND),
            2 => (1u64 << 32) * 1_000_000 - random.below(3 * SECOND),
            _ => SECOND + random.below(1 << 50),
        };
        plan
    }

    /// Whether a dozen losses in a row are to be expected somewhere, be it for want of memory: a
    /// host's chunks, half of them its NIC's, are fewer than its connections.
    pub fn is_very_bad(&self) -> bool {
        self.loss + self.corrupt >= 8 || self.chunks < self.endpoints
    }

    /// Whether the wire can lose a frame.
    pub fn loses(&self) -> bool {
        self.loss > 0 || self.corrupt > 0 || self.queue_frames != usize::MAX || self.chunks < 256
    }
}
