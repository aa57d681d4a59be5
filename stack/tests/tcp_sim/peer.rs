//! A connection between our stack and another engine, over a bad wire: one connects to the other,
//! both send, both streams must arrive whole and in order, both must close, and nothing is left in
//! our image.

use super::super::common::*;
use super::host::{Host, PORT, address, tcp_open};
use super::plan::Plan;
use super::wire::{Flight, Wire};
use super::{SECOND, monitor, seeded};
use bypass_stack::wire::tcp::{self, flags};
use bypass_stack::*;

/// Bytes of an Ethernet header; the peers get and give bare packets.
const ETHERNET: usize = 14;
/// The port of whoever connects.
pub const CLIENT: u16 = 40_001;
/// How often the programs look when nothing arrives.
const LOOK_NS: u64 = 50_000_000;
/// How long a look takes to come after an arrival.
const WAKE_NS: u64 = 20_000;

/// Another engine with one socket, at [`address`]`(1, plan.ipv6)`. Times are nanoseconds of the
/// simulation and never go back.
pub trait Peer {
    /// One that waits for time `plan.start_ns`, with an MTU of `plan.mtu[1]`.
    fn new(plan: &Plan, random: &mut Random) -> Self;

    /// Takes out of a plan what this engine cannot stand.
    fn suit(_: &mut Plan) {}

    /// Waits for a connection on a port.
    fn listen(&mut self, port: u16);

    /// Begins to connect, from [`CLIENT`].
    fn connect(&mut self, to: SocketAddress);

    /// An IP packet arrives.
    fn receive(&mut self, packet: Vec<u8>, now: u64);

    /// Does what is due.
    fn poll(&mut self, now: u64);

    /// When it wants to be polled.
    fn next_at(&mut self, now: u64) -> Option<u64>;

    /// An IP packet with a TCP segment that leaves.
    fn sent(&mut self) -> Option<Vec<u8>>;

    /// The program writes: bytes taken.
    fn write(&mut self, bytes: &[u8]) -> usize;

    /// The program reads: bytes given, none at the end of the stream.
    fn read(&mut self, into: &mut [u8]) -> Option<usize>;

    /// The program has no more to write; whether the socket could be told.
    fn shut_down(&mut self) -> bool;

    /// Whether its end of the connection is closed or in TIME_WAIT.
    fn is_over(&mut self) -> bool;
}

/// What one program has done. Side 0 is ours, side 1 the peer's.
#[derive(Debug, Default)]
struct Progress {
    to_send: u64,
    sent: u64,
    received: u64,
    shut: bool,
    saw_end: bool,
}

/// The byte of a stream at a place.
fn byte(side: usize, at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (24 + side)) as u8
}

/// Our stack, another one, and the wire between them.
#[derive(Debug)]
pub struct Encounter<P> {
    seed: u64,
    plan: Plan,
    random: Random,
    pub host: Host,
    peer: P,
    wire: Wire,
    ours: Option<EndpointId>,
    is_closed: bool,
    sides: [Progress; 2],
    now: u64,
    look_at: u64,
    looks: u64,
    /// Sequence number of the peer's SYN.
    iss: u32,
    /// The peer's FIN stands before its last byte.
    ends_early: bool,
    /// Prints every frame.
    loud: bool,
}

impl<P: Peer> Encounter<P> {
    pub fn by_seed(seed: u64) -> Self {
        let mut random = seeded(seed ^ 0x5301);
        let mut plan = Plan::draw(&mut random);
        plan.partial = false;
        plan.mark = 0;
        // Peers give up earlier than we do, or repair each loss after a timeout.
        plan.loss = plan.loss.min(5);
        plan.queue_frames = plan.queue_frames.max(16);
        plan.ipv6 = random.chance(50);
        plan.mtu = [[1500, 1280, 1400][random.below(3) as usize]; 2];
        P::suit(&mut plan);
        let host = Host::new(0, &plan, random.next());
        let peer = P::new(&plan, &mut random);
        let mut size = || match random.below(4) {
            0 => 0,
            1 => random.below(2_000),
            _ => random.below(60_000),
        };
        let sides = [size(), size()].map(|to_send| Progress {
            to_send,
            ..Progress::default()
        });
        let mut this = Self {
            seed,
            wire: Wire::new(&plan),
            now: plan.start_ns,
            look_at: plan.start_ns,
            looks: 0,
            iss: 0,
            ends_early: false,
            loud: std::env::var_os("BYPASS_FRAMES").is_some(),
            plan,
            random,
            host,
            peer,
            ours: None,
            is_closed: false,
            sides,
        };
        this.begin();
        this
    }

    /// One of the two connects to the other.
    fn begin(&mut self) {
        let (here, there) = (address(0, self.plan.ipv6), address(1, self.plan.ipv6));
        if self.random.chance(50) {
            self.peer.listen(PORT);
            let mut open = tcp_open(self.host.rig.process, SocketAddress::new(here, CLIENT));
            // A peer whose last reset was lost is noticed.
            open.options.set(TcpOptions::KEEPALIVE, true);
            open.options.keep_idle_s = 60;
            let remote = SocketAddress::new(there, PORT);
            let hop = self.host.hop();
            let now = Instant(self.now);
            let (mut stack, packets) = self.host.both();
            let id = stack.tcp_connect(packets, &open, remote, &hop, now);
            self.ours = Some(id.unwrap());
        } else {
            self.peer.connect(SocketAddress::new(here, PORT));
        }
    }

    /// Runs until both are done, and looks whether all is right. `false`: the peer has sent its FIN
    /// before its last byte, which proves nothing of ours. (netstack3 0.1.0 decides that a FIN fits
    /// before it makes the segment shorter for SACK blocks.)
    pub fn run(&mut self) -> bool {
        let limit = self.now + 7200 * SECOND;
        while !self.is_over() {
            self.step();
            if self.ends_early {
                return false;
            }
            assert!(self.now < limit, "too late: {}", self.describe());
        }
        for (side, other) in [(0, 1), (1, 0)] {
            let progress = &self.sides[side];
            assert_eq!(progress.sent, progress.to_send, "{}", self.describe());
            assert_eq!(
                progress.received,
                self.sides[other].to_send,
                "{}",
                self.describe()
            );
        }
        self.host.finish(self.now);
        true
    }

    fn is_over(&mut self) -> bool {
        let done = self.sides.iter().all(|side| side.saw_end && side.shut);
        done && self.is_closed
            && self.peer.is_over()
            && self.wire.is_empty()
            && self.host.is_quiet()
    }

    fn step(&mut self) {
        let next = [
            self.wire.next_at(),
            self.host.next_at(),
            self.peer.next_at(self.now),
            (!self.is_closed || !self.sides[1].shut || !self.sides[1].saw_end)
                .then_some(self.look_at),
        ];
        self.now = next
            .into_iter()
            .flatten()
            .min()
            .expect("an event")
            .max(self.now);
        let now = self.now;
        while let Some(flight) = self.wire.take(now) {
            self.look_at = self.look_at.min(now + WAKE_NS);
            self.say(
                ["theirs arrives", "ours arrives  "][flight.to],
                &flight.bytes,
            );
            if flight.to == 0 {
                self.host.receive(&flight.bytes, false, now);
            } else {
                self.peer.receive(flight.bytes[ETHERNET..].to_vec(), now);
            }
        }
        self.host.complete(now);
        self.host.run_timers(now);
        self.peer.poll(now);
        if self.ours.is_none() {
            self.ours = self.host.accept(now).map(|(id, _)| id);
        }
        if now >= self.look_at {
            self.look();
        }
        self.carry();
    }

    /// Both programs look what they can do.
    fn look(&mut self) {
        self.look_at = self.now + LOOK_NS;
        self.run_ours();
        self.run_theirs();
        self.peer.poll(self.now);
        self.looks += 1;
        if self.looks.is_multiple_of(16) {
            self.host.rig.check();
        }
    }

    /// What both have sent goes onto the wire.
    fn carry(&mut self) {
        for bytes in self.host.transmit(self.now, &mut self.random) {
            self.send(1, bytes);
        }
        while let Some(packet) = self.peer.sent() {
            let hop = self.host.hop();
            let kind: [u8; 2] = if packet[0] >> 4 == 4 {
                [8, 0]
            } else {
                [0x86, 0xdd]
            };
            let frame = [&hop.source_mac[..], &hop.mac, &kind, &packet].concat();
            self.note_end(&frame);
            self.send(0, frame);
        }
    }

    /// Looks whether a FIN of the peer's is where its stream ends.
    fn note_end(&mut self, frame: &[u8]) {
        let Ok(segment) = tcp::parse(frame, &[0; 6], RxChecksum::Unknown) else {
            return;
        };
        if segment.flags & flags::SYN != 0 {
            self.iss = segment.seq;
        }
        if segment.flags & flags::FIN != 0 {
            let end = segment.seq.wrapping_add(u32::from(segment.payload_len));
            let all = end.wrapping_sub(self.iss).wrapping_sub(1);
            self.ends_early |= u64::from(all) < self.sides[1].to_send;
        }
    }

    fn send(&mut self, to: usize, bytes: Vec<u8>) {
        self.say(["theirs leaves ", "ours leaves   "][to], &bytes);
        let flight = Flight {
            due: self.now,
            to,
            bytes,
            incarnation: 0,
        };
        self.wire.send(flight, &mut self.random);
    }

    /// Our program: writes, reads and closes.
    fn run_ours(&mut self) {
        let Some(id) = self.ours.filter(|_| !self.is_closed) else {
            return;
        };
        let process = self.host.rig.process;
        let now = Instant(self.now);
        let status = self.host.rig.stack().tcp_status(id).unwrap();
        assert_eq!(status.error, 0, "{}", self.describe());
        let (mut stack, packets) = self.host.both();
        let side = &mut self.sides[0];
        let want = (side.to_send - side.sent) as usize;
        if want > 0 {
            let mut at = side.sent;
            let fill = &mut |piece: &mut [u8]| {
                for place in piece {
                    *place = byte(0, at);
                    at += 1;
                }
            };
            match stack.tcp_send(packets, id, want, false, fill, now) {
                Ok(taken) => side.sent += taken as u64,
                Err(error) => assert_eq!(error, TcpError::WouldBlock),
            }
        }
        while let Some(span) = stack.tcp_front(id, 0).unwrap() {
            let start = span.offset as usize;
            for found in &packets.chunk(span.chunk)[start..start + span.len as usize] {
                assert_eq!(*found, byte(1, side.received), "seed {}", self.seed);
                side.received += 1;
            }
            stack.tcp_consume(id, span.len as usize, now).unwrap();
        }
        side.saw_end |= stack.tcp_status(id).unwrap().peer_fin && status.readable == 0;
        if side.sent == side.to_send && !side.shut && status.state != TcpState::SynSent {
            stack
                .tcp_shutdown(packets, id, Shutdown::Write, now)
                .unwrap();
            side.shut = true;
        }
        if side.shut && side.saw_end {
            stack.tcp_close(packets, id, process, now);
            self.is_closed = true;
        }
    }

    /// The peer's program.
    fn run_theirs(&mut self) {
        let side = &mut self.sides[1];
        while side.sent < side.to_send {
            let most = (side.to_send - side.sent).min(4096);
            let piece: Vec<_> = (side.sent..side.sent + most)
                .map(|at| byte(1, at))
                .collect();
            let taken = self.peer.write(&piece);
            side.sent += taken as u64;
            if taken == 0 {
                break;
            }
        }
        let mut bytes = [0; 4096];
        loop {
            let Some(count) = self.peer.read(&mut bytes) else {
                side.saw_end = true;
                break;
            };
            for found in &bytes[..count] {
                assert_eq!(*found, byte(0, side.received), "seed {}", self.seed);
                side.received += 1;
            }
            if count == 0 {
                break;
            }
        }
        if side.sent == side.to_send && !side.shut {
            side.shut = self.peer.shut_down();
        }
    }

    /// Prints a frame, if anybody wants to see it.
    fn say(&self, what: &str, frame: &[u8]) {
        if !self.loud {
            return;
        }
        let line = match tcp::parse(frame, &[0; 6], RxChecksum::Unknown) {
            Ok(segment) => monitor::line(&segment),
            Err(reason) => reason.to_string(),
        };
        let at = self.now - self.plan.start_ns;
        eprintln!("{:12.6} {what} {line}", at as f64 / 1e9);
    }

    fn describe(&self) -> String {
        format!(
            "seed {}: {} s, {:?} {:?} {}",
            self.seed,
            (self.now - self.plan.start_ns) / SECOND,
            self.sides,
            self.plan,
            self.host.describe()
        )
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// So many encounters, or as `BYPASS_SEED=n` (that one) or `BYPASS_SEEDS=n` (so many) say; 60 of
/// them must have taken the paths that a bad wire makes.
pub fn run_seeds<P: Peer>(usual: u64) {
    let seeds = match number("BYPASS_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("BYPASS_SEEDS").unwrap_or(usual),
    };
    let many = seeds.clone().count() >= 60;
    let seen = [
        Counter::TcpRetransmits,
        Counter::TcpOutOfOrder,
        Counter::TcpPassiveOpens,
        Counter::TcpActiveOpens,
    ];
    let mut counts = [0; 4];
    let (all, mut void) = (seeds.clone().count(), 0);
    for seed in seeds {
        let mut encounter = Encounter::<P>::by_seed(seed);
        void += usize::from(!encounter.run());
        for (count, counter) in counts.iter_mut().zip(seen) {
            *count += encounter.host.counter(counter);
        }
    }
    assert!(!many || void * 20 <= all, "{void} of {all} prove nothing");
    assert!(
        !many || counts.iter().all(|count| *count > 10),
        "{counts:?}"
    );
}
