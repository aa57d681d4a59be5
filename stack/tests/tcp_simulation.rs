//! Two TCP stacks and a bad wire between them: loss, duplication, reordering, corruption, marks,
//! delay, a slow link, small rings and little packet memory; programs that connect, send, read
//! slowly, half-close, close and reset. One seed decides everything, also which faults are on; it
//! is printed when a run fails, and `BYPASS_SEED=n cargo test -p bypass-stack --test
//! tcp_simulation` repeats it. `BYPASS_SEEDS=n` runs that many.
//!
//! Held after every step: both images are sound. Held for every frame: it is inside the window and
//! the segment size that the peer has told, acknowledges only what has come, and takes back no
//! window. Held for every byte read: it is the one that was sent there. At the end, within bounded
//! virtual time: streams whose programs ended in order are whole, every chunk is free, nothing is
//! left; and the same seed gives the same trace.

mod common;
mod tcp_sim;

use bypass_stack::{Counter, TcpDefaults};
use tcp_sim::plan::Plan;
use tcp_sim::program::{Pair, Side};
use tcp_sim::{SECOND, World};

/// Prints the seed if the test panics before it is disarmed.
struct Announce(u64);

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {0}: BYPASS_SEED={0} cargo test -p bypass-stack --test tcp_simulation seeds",
                self.0
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeds() {
    let seeds = match number("BYPASS_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("BYPASS_SEEDS").unwrap_or(70),
    };
    for seed in seeds {
        let _announce = Announce(seed);
        let mut world = World::by_seed(seed);
        let trace = world.run();
        if std::env::var_os("BYPASS_VERBOSE").is_some() {
            eprintln!("seed {seed}: {} events, {:?}", world.events, world.plan);
        }
        if seed % 8 == 0 {
            let again = World::by_seed(seed).run();
            assert_eq!(trace, again, "the same seed gives the same trace");
        }
    }
}

#[test]
fn a_good_wire_needs_no_retransmission_and_little_time() {
    let mut world = World::new(1, Plan::good());
    let sides = [Side::plain(3_000_000), Side::plain(3_000_000)];
    let pair = Pair::new(0, &world.plan, world.now, sides);
    world.pairs.push(pair);
    let start = world.now;
    world.run_until(start + 10 * SECOND);
    for side in 0..2 {
        let side = world.side(0, side);
        assert!(side.saw_end, "{side:?}");
        // 100 µs a round trip, windows that double: far below a second.
        assert!(side.closed_at - start < SECOND / 2, "{}", side.closed_at);
    }
    for host in &world.hosts {
        for counter in [
            Counter::TcpRetransmits,
            Counter::TcpTimeouts,
            Counter::TcpTailProbes,
            Counter::TcpOutOfOrder,
        ] {
            assert_eq!(host.counter(counter), 0, "{}", counter.sentence());
        }
    }
    world.run();
}

/// What a queue had no room for is sent again once, in either half of the 32 bits of microseconds.
#[test]
fn what_is_lost_is_sent_again_once_at_any_time() {
    for start_us in [1_000_000, 3 << 30] {
        let mut plan = Plan::good();
        plan.start_ns = start_us * 1_000;
        plan.delay_ns = 10_000_000;
        plan.rate = 2_500_000;
        plan.queue_frames = 40;
        plan.fill = 256;
        let mut world = World::new(1, plan);
        let sides = [Side::plain(1_000_000), Side::plain(0)];
        let pair = Pair::new(0, &world.plan, world.now, sides);
        world.pairs.push(pair);
        world.run();
        let lost = world.wire.overflowed;
        assert!(lost > 20, "{lost}");
        let [again, twice] = [Counter::TcpRetransmits, Counter::TcpDsackReceived]
            .map(|counter| world.hosts[0].counter(counter));
        assert_eq!((again, twice), (lost, 0), "from {start_us} us on");
    }
}

/// SYNs with data, with cookies and without: whatever is lost or overtaken, each byte comes once.
/// (Without duplicates on the wire: those of a whole short connection would make another, RFC 7413
/// section 6.1.)
#[test]
fn connections_begin_with_data() {
    let client = TcpDefaults::FAST_OPEN_CLIENT | TcpDefaults::FAST_OPEN_SERVER;
    let bare = TcpDefaults::FAST_OPEN_CLIENT_NO_COOKIE | TcpDefaults::FAST_OPEN_SERVER_NO_COOKIE;
    let (mut made, mut failed) = (0, 0);
    for seed in 1..=60 {
        let _announce = Announce(seed);
        let mut plan = Plan::good();
        plan.fast = true;
        plan.loss = [0, 2, 10][seed as usize % 3];
        plan.jitter_ns = 200_000 * (seed % 2);
        plan.ipv6 = seed % 5 == 0;
        plan.defaults.fast_open = client | (bare * (seed as u32 % 2));
        plan.chunks = [1024, 128][usize::from(seed % 7 == 0)];
        let mut world = World::new(seed, plan);
        for number in 0..6 {
            let bytes = [10, 700, 5_000, 60_000][(seed + number) as usize % 4];
            let sides = [Side::plain(bytes), Side::plain(60_000 - bytes)];
            // One after the other: the first brings the cookie.
            let start = world.now + number * SECOND / 2;
            let pair = Pair::new(number as u16, &world.plan, start, sides);
            world.pairs.push(pair);
        }
        world.run();
        let [client, _] = &world.hosts;
        made += client.counter(Counter::TcpFastConnects);
        failed += client.counter(Counter::TcpFastConnectsFailed);
    }
    assert!(made > 200 && failed > 0, "{made} {failed}");
}

#[test]
fn connections_move_under_load() {
    let mut plan = Plan::good();
    plan.chunks = 4096;
    for seed in 1..=4 {
        let _announce = Announce(seed);
        let mut world = World::new(seed, plan.clone());
        let mut sides = [Side::plain(400_000), Side::plain(400_000)];
        // One of them reads late, so that there is something to take along.
        sides[seed as usize % 2].pause(100_000, SECOND / 50);
        let pair = Pair::new(0, &world.plan, world.now, sides);
        world.pairs.push(pair);
        let mut random = tcp_sim::program::random(seed);
        let mut moved = 0;
        let start = world.now;
        while !world.pairs[0].is_over() {
            for _ in 0..random.below(40) {
                world.step();
                if world.pairs[0].is_over() {
                    break;
                }
            }
            moved += u32::from(world.relocate(0, random.below(2) as usize));
        }
        assert!(moved > 20, "{moved}");
        assert!(world.now - start < 5 * SECOND, "{}", world.now - start);
        world.run();
    }
}

/// A router that throws long frames away without a word: with tcp_mtu_probing the connections find
/// out, both directions, and go on with the longest segments that pass.
#[test]
fn long_segments_may_vanish() {
    for (probing, ipv6) in [(1, false), (1, true), (2, false), (2, true)] {
        let mut plan = Plan::good();
        plan.ipv6 = ipv6;
        plan.defaults.mtu_probing = probing;
        plan.swallowed_above = 14 + 1300;
        let mut world = World::new(1, plan);
        let sides = [Side::plain(600_000), Side::plain(300_000)];
        let pair = Pair::new(0, &world.plan, world.now, sides);
        world.pairs.push(pair);
        let start = world.now;
        world.run_until(start + 60 * SECOND);
        for side in 0..2 {
            let side = world.side(0, side);
            assert!(side.saw_end, "{probing} {ipv6}: {side:?}");
        }
        let tried = |counter| {
            world
                .hosts
                .iter()
                .map(|host| host.counter(counter))
                .sum::<u64>()
        };
        assert!(tried(Counter::TcpMtuProbes) > tried(Counter::TcpMtuProbesLost));
        assert!(tried(Counter::TcpMtuProbesLost) > 0);
        assert_eq!(tried(Counter::TcpBlackHoles) > 0, probing == 1);
        world.run();
    }
}

#[test]
fn a_clock_that_is_behind_stops_nothing() {
    for algorithm in 0..3 {
        let mut plan = Plan::good();
        plan.clock_behind_ns = 3_000_000;
        let mut world = World::new(1, plan);
        let mut sides = [Side::plain(1_000_000), Side::plain(1_000_000)];
        for side in &mut sides {
            side.options.congestion = algorithm;
        }
        let pair = Pair::new(0, &world.plan, world.now, sides);
        world.pairs.push(pair);
        let start = world.now;
        world.run_until(start + 10 * SECOND);
        for side in 0..2 {
            let side = world.side(0, side);
            assert!(side.saw_end, "{algorithm}: {side:?}");
            assert!(
                side.closed_at - start < SECOND,
                "{algorithm}: {}",
                side.closed_at
            );
        }
    }
}

#[test]
fn many_connections_at_once() {
    let mut plan = Plan::good();
    plan.endpoints = 512;
    plan.chunks = 4096;
    plan.backlog = 256;
    plan.loss = 2;
    plan.jitter_ns = 300_000;
    let mut world = World::new(3, plan);
    let mut random = tcp_sim::program::random(4);
    for number in 0..120 {
        let pair = Pair::draw(number, &world.plan, world.now, &mut random);
        world.pairs.push(pair);
    }
    world.run();
}
