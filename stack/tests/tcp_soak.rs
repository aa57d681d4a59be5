//! A soak: worlds one after the other in which everything is short at the same time. Dozens of
//! connections share packet memory for a few, accept queues are small, programs read slowly, reset,
//! die and stop reading, strangers flood the listeners with SYNs, the wire loses frames. At the end
//! of each world every chunk is free again and every endpoint, flow and timer gone
//! ([`tcp_sim::World::run`] holds that), and every program has got its bytes or its error.
//!
//! `BYPASS_SOAK_SECONDS=1800 BYPASS_SOAK_PAIRS=300 cargo test --release -p bypass-stack --test
//! tcp_soak -- --nocapture` runs as long and as wide; `BYPASS_SEED=n` repeats one world.

mod common;
mod tcp_sim;

use bypass_stack::Counter;
use std::time::{Duration, Instant};
use tcp_sim::plan::Plan;
use tcp_sim::program::Pair;
use tcp_sim::trouble::Trouble;
use tcp_sim::{SECOND, World, seeded};

/// Counters that say what the worlds were short of.
const TOLD: [Counter; 7] = [
    Counter::TcpPassiveOpens,
    Counter::TcpListenOverflows,
    Counter::TcpResetsSent,
    Counter::TcpZeroWindows,
    Counter::TcpWindowsTakenBack,
    Counter::TcpStarvedOpened,
    Counter::NoChunk,
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A world that is short of everything.
fn world(seed: u64, pairs: u64) -> World {
    let mut random = seeded(seed);
    let mut plan = Plan::draw(&mut random);
    plan.loss = plan.loss.clamp(1, 5);
    plan.endpoints = (pairs * 4) as u32;
    plan.chunks = [96, 160, 256][random.below(3) as usize];
    plan.backlog = [1, 8][random.below(2) as usize];
    plan.defaults.max_syn_backlog = 16;
    let mut world = World::new(seed, plan);
    for number in 0..pairs {
        let pair = Pair::draw(number as u16, &world.plan, world.now, &mut random);
        world.pairs.push(pair);
    }
    let mut troubles = Trouble::draw(&world, &mut random);
    for _ in 0..random.below(6) {
        let at = world.now + random.below(20 * SECOND);
        troubles.push((at, Trouble::Flood(random.below(2) as usize)));
    }
    troubles.sort_by_key(|(at, _)| core::cmp::Reverse(*at));
    world.troubles = troubles;
    world
}

/// A hundred connections in 96 chunks: keepalive probes that found no memory were counted as
/// unanswered, and a connection that was made was not told to its program for want of memory, so
/// that nobody read and all stood still.
#[test]
fn a_crowded_world_goes_on() {
    world(13, 100).run();
}

#[test]
fn nothing_leaks_when_everything_is_short() {
    let seconds = number("BYPASS_SOAK_SECONDS").unwrap_or(1);
    let pairs = number("BYPASS_SOAK_PAIRS").unwrap_or(16);
    let one = number("BYPASS_SEED");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut sums = [0_u64; TOLD.len()];
    let mut seed = one.unwrap_or(1);
    // At least a few worlds, however slow the machine is: what is counted does not depend on it.
    while seed <= one.unwrap_or(5) || one.is_none() && Instant::now() < end {
        eprintln!("world {seed}");
        let mut world = world(seed, pairs);
        world.run();
        for (sum, counter) in sums.iter_mut().zip(TOLD) {
            *sum += world
                .hosts
                .iter()
                .map(|host| host.counter(counter))
                .sum::<u64>();
        }
        eprintln!(
            "  {} events, {} virtual s; all {} chunks free, no endpoint left",
            world.events,
            (world.now - world.plan.start_ns) / SECOND,
            2 * world.plan.chunks,
        );
        seed += 1;
    }
    for (sum, counter) in sums.iter().zip(TOLD) {
        eprintln!("{:24} {sum}", counter.name());
    }
    if one.is_none() {
        for (sum, counter) in sums.iter().zip(TOLD).take(5) {
            assert!(*sum > 0, "never met: {}", counter.sentence());
        }
    }
}
