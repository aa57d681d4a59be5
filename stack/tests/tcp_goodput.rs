//! What a connection gets through a bottleneck of 20 Mbit/s: a table over loss, round trip and the
//! bottleneck's buffer, in virtual time, so the same figures everywhere. `tcp_goodput.txt` has
//! them; a change of the engine that changes them shows in its diff. `BYPASS_BLESS=1` writes it
//! anew.

mod common;
mod tcp_sim;

use bypass_stack::Counter;
use std::fmt::Write as _;
use tcp_sim::plan::Plan;
use tcp_sim::program::{Pair, Side};
use tcp_sim::{SECOND, World};

/// Bytes a second of the bottleneck, frames with their headers.
const RATE: u64 = 2_500_000;
/// Bytes that one side sends to the other.
const BYTES: u64 = 2_000_000;
/// Bytes of the longest frame.
const FRAME: u64 = 1514;
/// Frames that the shortest buffer takes: more than the products of the shortest round trip.
const LEAST_FRAMES: u64 = 10;

/// Lost frames, in thousandths.
const LOSSES: [u64; 4] = [0, 1, 10, 50];
/// Nanoseconds of a round trip.
const ROUND_TRIPS: [u64; 3] = [100_000, 10_000_000, 100_000_000];
/// Tenths of the bandwidth-delay product that the buffer holds.
const BUFFERS: [u64; 3] = [1, 10, 40];

const TABLE: &str = include_str!("tcp_goodput.txt");
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tcp_goodput.txt");

/// Frames that the bottleneck's buffer holds.
fn frames(round_trip: u64, buffer: u64) -> u64 {
    let held = RATE * round_trip / SECOND * buffer / 10 / FRAME;
    held.max(LEAST_FRAMES)
}

/// One transfer: a line of the table.
fn line(loss: u64, round_trip: u64, buffer: u64) -> String {
    let mut plan = Plan::good();
    plan.rare_loss = loss;
    plan.delay_ns = round_trip / 2;
    plan.rate = RATE;
    plan.queue_frames = frames(round_trip, buffer) as usize;
    plan.chunks = 1536;
    plan.fill = 256;
    let mut world = World::new(1, plan);
    let sides = [Side::plain(BYTES), Side::plain(0)];
    let pair = Pair::new(0, &world.plan, world.now, sides);
    world.pairs.push(pair);
    let start = world.now;
    world.run();
    let sender = &world.hosts[world.pairs[0].host_of(0)];
    let [again, timeouts] =
        [Counter::TcpRetransmits, Counter::TcpTimeouts].map(|counter| sender.counter(counter));
    let took_us = (world.side(0, 1).closed_at - start) / 1000;
    format!(
        "{:4}.{} {:9}.{} {:8}.{} {:11} {again:15} {timeouts:9}",
        loss / 10,
        loss % 10,
        round_trip / 1_000_000,
        round_trip / 100_000 % 10,
        buffer / 10,
        buffer % 10,
        BYTES * 8_000 / took_us,
    )
}

#[test]
fn goodput_is_what_it_was() {
    let mut table =
        String::from("loss % round trip ms buffer BDP goodput kbit/s retransmissions timeouts\n");
    for loss in LOSSES {
        for round_trip in ROUND_TRIPS {
            let mut buffers = BUFFERS.to_vec();
            buffers.dedup_by_key(|buffer| frames(round_trip, *buffer));
            for buffer in buffers {
                writeln!(table, "{}", line(loss, round_trip, buffer)).unwrap();
            }
        }
    }
    if std::env::var_os("BYPASS_BLESS").is_some() {
        std::fs::write(FILE, &table).unwrap();
    } else {
        assert_eq!(table, TABLE, "BYPASS_BLESS=1 writes the new table");
    }
}
