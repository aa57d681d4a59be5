//! A world of two hosts with TCP stacks and programs, a bad wire between them, virtual time and
//! one seed that decides everything.
//!
//! [`host::Host`] is a stack with its rings, [`wire::Wire`] carries frames and breaks them,
//! [`program::Pair`] is a connection with the programs at its ends, [`monitor::Monitor`] watches
//! what is on the wire.

#![allow(dead_code, reason = "every test file uses another part of it")]
#![allow(
    clippy::allow_attributes,
    reason = "an expectation would fail in some test files"
)]

pub mod host;
pub mod monitor;
pub mod peer;
pub mod plan;
pub mod program;
pub mod trouble;
pub mod wire;

use super::common::*;
use bypass_stack::wire::tcp;
use host::Host;
use monitor::Monitor;
use plan::Plan;
use program::{Kind, Pair, Side, State};
use trouble::Trouble;
use wire::{Flight, Wire};

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// FNV-1a over everything that happens.
#[derive(Debug)]
pub struct Trace(u64);

impl Trace {
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// The world.
#[derive(Debug)]
pub struct World {
    pub random: Random,
    pub plan: Plan,
    pub hosts: [Host; 2],
    pub wire: Wire,
    pub monitor: Monitor,
    pub pairs: Vec<Pair>,
    /// What happens besides, by time, the next one last.
    pub troubles: Vec<(u64, Trouble)>,
    pub now: u64,
    pub trace: Trace,
    pub events: u64,
    /// Hosts on which something happened in the last step.
    stirred: [bool; 2],
    /// Prints every frame.
    loud: bool,
    /// Events since time last went on.
    still: u64,
    /// Virtual time at which everything must be over.
    pub limit: u64,
}

/// Mixes a seed so that neighbours have nothing in common.
pub fn seeded(seed: u64) -> Random {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..4 {
        random.next();
    }
    random
}

impl World {
    /// A world by a plan, without connections.
    pub fn new(seed: u64, plan: Plan) -> Self {
        let mut random = seeded(seed ^ 0x5eed);
        let hosts = [0, 1].map(|number| Host::new(number, &plan, random.next()));
        Self {
            now: plan.start_ns,
            limit: plan.start_ns + 7200 * SECOND,
            wire: Wire::new(&plan),
            monitor: Monitor::new(plan.fast, plan.partial),
            pairs: Vec::new(),
            troubles: Vec::new(),
            trace: Trace(0xcbf2_9ce4_8422_2325),
            events: 0,
            still: 0,
            stirred: [true; 2],
            loud: std::env::var_os("BYPASS_FRAMES").is_some(),
            random,
            hosts,
            plan,
        }
    }

    /// A world by a seed, with connections.
    pub fn by_seed(seed: u64) -> Self {
        let mut random = seeded(seed);
        let mut plan = Plan::draw(&mut random);
        // Not drawn, so that a seed stays the world that it was.
        plan.defaults.mtu_probing = [0, 0, 1, 2][seed as usize % 4];
        let pairs = 1 + random.below(5);
        let mut world = Self::new(seed, plan);
        for _ in 0..pairs {
            let number = world.pairs.len();
            let pair = Pair::draw(number as u16, &world.plan, world.now, &mut random);
            world.pairs.push(pair);
            // Not of crossing ones: a time wait would keep one side from connecting.
            if random.chance(15) && world.pairs[number].kind != Kind::Crossing {
                let again = Pair::draw_after(number, &world, &mut random);
                world.pairs.push(again);
            }
        }
        world.troubles = Trouble::draw(&world, &mut random);
        world
    }

    /// Runs until every connection is over and forgotten: the trace.
    pub fn run(&mut self) -> u64 {
        while !self.is_over() {
            self.step();
        }
        self.finish();
        self.trace.0
    }

    /// Runs until this time, or until nothing is left to do.
    pub fn run_until(&mut self, end: u64) {
        while self.next_event().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = self.now.max(end);
    }

    /// Whether the programs are done, the wire is empty and no timer runs.
    fn is_over(&mut self) -> bool {
        let programs = self.pairs.iter().all(Pair::is_over);
        if programs {
            self.troubles.retain(|(_, trouble)| trouble.is_an_end());
        }
        programs
            && self.troubles.is_empty()
            && self.wire.is_empty()
            && self.hosts.iter_mut().all(Host::is_quiet)
    }

    fn next_event(&mut self) -> Option<u64> {
        let sides = self.pairs.iter().filter_map(Pair::next_at).min();
        let hosts = self.hosts.iter_mut().filter_map(Host::next_at).min();
        let trouble = self.troubles.last().map(|(at, _)| *at);
        [sides, hosts, trouble, self.wire.next_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Goes to the next moment at which something happens, and lets it happen.
    pub fn step(&mut self) {
        let Some(at) = self.next_event() else {
            panic!("nothing will ever happen again: {:#?}", self.describe());
        };
        self.still = if at > self.now { 0 } else { self.still + 1 };
        self.now = self.now.max(at);
        self.events += 1;
        assert!(
            self.still < 10_000,
            "time stands still: {:#?}",
            self.describe()
        );
        assert!(self.now < self.limit, "too late: {:#?}", self.describe());
        let before = core::mem::take(&mut self.stirred);
        while self.troubles.last().is_some_and(|(at, _)| *at <= self.now) {
            let (_, trouble) = self.troubles.pop().unwrap();
            self.happens(trouble);
        }
        self.deliver();
        for host in 0..2 {
            self.hosts[host].complete(self.now);
            self.stirred[host] |= self.hosts[host].run_timers(self.now);
            self.accept(host);
        }
        // Readiness can have changed only where something happened now, or by the calls before.
        let look = [0, 1].map(|host| before[host] || self.stirred[host]);
        for pair in 0..self.pairs.len() {
            for side in 0..2 {
                let host = self.pairs[pair].host_of(side);
                if look[host] || self.pairs[pair].sides[side].is_due(self.now) {
                    self.stirred[host] |= self.run_program(pair, side);
                }
            }
        }
        for host in 0..2 {
            self.pump(host);
        }
        self.follow();
        let every = match self.plan.chunks {
            0..=300 => 3,
            301..=2000 => 17,
            _ => 97,
        };
        if self.events.is_multiple_of(every) {
            self.check();
        }
    }

    /// Connections whose predecessor is over begin.
    fn follow(&mut self) {
        for number in 0..self.pairs.len() {
            let Some(before) = self.pairs[number].after else {
                continue;
            };
            let [client, server] = &self.pairs[before].sides;
            if client.state == State::Closed && server.state == State::Closed {
                let wait = self.random.below(3 * SECOND);
                self.pairs[number].begin(self.now + wait);
            } else if self.pairs[before].is_over() {
                self.pairs[number].cancel();
            }
        }
    }

    /// Frames that are due arrive.
    fn deliver(&mut self) {
        while let Some(flight) = self.wire.take(self.now) {
            let Flight { to, bytes, .. } = &flight;
            let host = &mut self.hosts[*to];
            let behind = match self.plan.clock_behind_ns {
                0 => 0,
                most => self.random.below(most),
            };
            let now = self.now - behind;
            let Some(outcome) = host.receive(bytes, self.plan.partial, now) else {
                self.say("  finds no chunk", bytes, "");
                continue;
            };
            self.stirred[*to] = true;
            self.monitor.delivered(&flight, self.plan.partial);
            self.say("  reaches", bytes, &format!("{outcome:?}"));
            self.trace.add(format!("{outcome:?}").as_bytes());
        }
    }

    /// Prints a frame, if anybody wants to see it.
    fn say(&self, what: &str, frame: &[u8], more: &str) {
        if !self.loud {
            return;
        }
        let line = match tcp::parse(frame, &[0; 6], known(self.plan.partial)) {
            Ok(segment) => monitor::line(&segment),
            Err(reason) => reason.to_string(),
        };
        let at = self.now - self.plan.start_ns;
        eprintln!("{:12.6} {what} {line} {more}", at as f64 / 1e9);
    }

    /// Flush, transmit list to ring, ring to wire.
    fn pump(&mut self, host: usize) {
        let now = self.now;
        for bytes in self.hosts[host].transmit(now, &mut self.random) {
            self.trace.add(&bytes);
            self.say("leaves", &bytes, "");
            if !self.is_for_a_host(&bytes) {
                continue; // To a stranger, who does not exist.
            }
            let incarnation = self.monitor.sent(&bytes, now);
            self.wire.send(
                Flight {
                    due: now,
                    to: 1 - host,
                    bytes,
                    incarnation,
                },
                &mut self.random,
            );
        }
    }

    /// Whether a frame is for one of the hosts.
    fn is_for_a_host(&self, frame: &[u8]) -> bool {
        tcp::parse(frame, &[0; 6], known(self.plan.partial))
            .is_ok_and(|segment| self.hosts.iter().any(|host| host.ip == segment.destination))
    }

    /// Programs take the connections that wait.
    fn accept(&mut self, host: usize) {
        while let Some((id, status)) = self.hosts[host].accept(self.now) {
            let found = self.pairs.iter_mut().find(|pair| pair.awaits(&status));
            let pair = found.expect("somebody has connected");
            pair.accepted(id, &mut self.hosts[host], self.now);
        }
    }

    fn run_program(&mut self, pair: usize, side: usize) -> bool {
        let pair = &mut self.pairs[pair];
        let host = &mut self.hosts[pair.host_of(side)];
        pair.run(side, host, self.now, &mut self.random)
    }

    /// Both images are sound.
    pub fn check(&self) {
        for host in &self.hosts {
            host.rig.check();
        }
    }

    /// Everything is gone, and every outcome is the right one.
    fn finish(&mut self) {
        self.check();
        for host in &mut self.hosts {
            host.finish(self.now);
        }
        for pair in &self.pairs {
            pair.check_outcome(&self.plan);
        }
    }

    /// What is going on, for a failure's message.
    pub fn describe(&mut self) -> Vec<String> {
        let mut lines = vec![format!("{} s: {:?}", self.now / SECOND, self.plan)];
        for pair in 0..self.pairs.len() {
            for side in 0..2 {
                let host = &mut self.hosts[self.pairs[pair].host_of(side)];
                lines.push(self.pairs[pair].describe(side, host, self.now));
            }
        }
        for host in &mut self.hosts {
            lines.push(host.describe());
        }
        lines
    }

    /// A connection leaves one of its hosts with its bytes and comes back there; whether it did.
    pub fn relocate(&mut self, pair: usize, side: usize) -> bool {
        let host = self.pairs[pair].host_of(side);
        let moved = self.pairs[pair].relocate(side, &mut self.hosts[host], self.now);
        self.stirred[host] = true;
        moved
    }

    /// The program's end of a connection.
    pub fn side(&self, pair: usize, side: usize) -> &Side {
        &self.pairs[pair].sides[side]
    }
}
