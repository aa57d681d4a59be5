//! The wire: loss, duplication, corruption, marks, delay, reordering, a slow link with a queue.

use super::super::common::*;
use super::plan::Plan;
use std::collections::BTreeMap;

/// A frame on the wire.
#[derive(Debug, Clone)]
pub struct Flight {
    pub due: u64,
    /// The host that it goes to.
    pub to: usize,
    pub bytes: Vec<u8>,
    /// Of which of the connections that used its addresses it is.
    pub incarnation: u32,
}

/// The wire.
#[derive(Debug)]
pub struct Wire {
    plan: Plan,
    flying: BTreeMap<(u64, u64), Flight>,
    number: u64,
    /// When the link to each host is free.
    free_at: [u64; 2],
    /// Drops every frame to this host.
    pub cut: [bool; 2],
    /// Frames that the link's queue had no room for.
    pub overflowed: u64,
}

impl Wire {
    pub fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.clone(),
            flying: BTreeMap::new(),
            number: 0,
            free_at: [0; 2],
            cut: [false; 2],
            overflowed: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.flying.is_empty()
    }

    pub fn next_at(&self) -> Option<u64> {
        self.flying.keys().next().map(|(due, _)| *due)
    }

    /// The next frame that is due.
    pub fn take(&mut self, now: u64) -> Option<Flight> {
        let entry = self.flying.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// A frame from nowhere arrives.
    pub fn forge(&mut self, flight: Flight) {
        self.number += 1;
        self.flying.insert((flight.due, self.number), flight);
    }

    /// A frame leaves a host, at `flight.due`.
    pub fn send(&mut self, mut flight: Flight, random: &mut Random) {
        let long = flight.bytes.len() > self.plan.swallowed_above;
        if long || self.cut[flight.to] || random.chance(self.plan.loss) {
            return;
        }
        // Without a draw where there is none, so that a seed stays the world that it was.
        if self.plan.rare_loss > 0 && random.below(1000) < self.plan.rare_loss {
            return;
        }
        let mut at = flight.due;
        let scaled = flight.bytes.len() as u64 * 1_000_000_000;
        if let Some(long) = scaled.checked_div(self.plan.rate) {
            let free_at = self.free_at[flight.to].max(at);
            if free_at - at > long * self.plan.queue_frames as u64 {
                self.overflowed += 1;
                return;
            }
            at = free_at + long;
            self.free_at[flight.to] = at;
        }
        if self.plan.partial && random.chance(50) {
            make_partial(&mut flight.bytes);
        }
        if random.chance(self.plan.mark) {
            mark_congestion(&mut flight.bytes);
        }
        for _ in 0..1 + u64::from(random.chance(self.plan.duplicate)) {
            let mut copy = flight.clone();
            if random.chance(self.plan.corrupt) {
                let place = 14 + random.below(copy.bytes.len() as u64 - 14) as usize;
                copy.bytes[place] ^= 1 << random.below(8);
            }
            let extra = random.below(self.plan.jitter_ns + 1);
            copy.due = at + self.plan.delay_ns + extra;
            self.number += 1;
            self.flying.insert((copy.due, self.number), copy);
        }
    }
}

/// Leaves the checksum of a frame to a NIC that never comes, as a veth peer does.
fn make_partial(frame: &mut [u8]) {
    let (start, addresses) = if frame[12] == 8 {
        (34, 26..34)
    } else {
        (54, 22..54)
    };
    let len = ((frame.len() - start) as u16).to_be_bytes();
    let sum = plain_sum(&[&frame[addresses], &[0, 6], &len]);
    frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Sets CE on a frame whose sender can take it (RFC 3168).
fn mark_congestion(frame: &mut [u8]) {
    if frame[12] == 8 {
        if frame[15] & 3 != 0 {
            frame[15] |= 3;
            fix_ipv4(frame);
        }
    } else if frame[15] >> 4 & 3 != 0 {
        frame[15] |= 3 << 4;
    }
}
