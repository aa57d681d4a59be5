//! Our stack and smoltcp, another engine by other people, over a bad wire: each connects to the
//! other, both send, both streams must arrive whole and in order, both must close, and nothing is
//! left in our image. One seed decides everything: `BYPASS_SEED=n` repeats one, `BYPASS_SEEDS=n`
//! runs so many.

mod common;
mod tcp_sim;

use bypass_stack::*;
use common::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp as theirs;
use smoltcp::time::Instant as TheirInstant;
use smoltcp::wire::{HardwareAddress, IpAddress as TheirAddress, IpCidr};
use std::collections::VecDeque;
use tcp_sim::host::{Host, PORT, address, tcp_open};
use tcp_sim::plan::Plan;
use tcp_sim::wire::{Flight, Wire};
use tcp_sim::{SECOND, seeded};

/// Bytes of an Ethernet header; smoltcp gets and gives bare packets.
const ETHERNET: usize = 14;
/// The port of whoever connects.
const CLIENT: u16 = 40_001;
/// How often the programs look when nothing arrives.
const LOOK_NS: u64 = 50_000_000;
/// How long a look takes to come after an arrival.
const WAKE_NS: u64 = 20_000;

/// smoltcp's NIC.
#[derive(Debug)]
struct Nic {
    mtu: usize,
    arrived: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Arrived(Vec<u8>);

#[derive(Debug)]
struct Leaves<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Leaves<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaves<'a>;

    fn receive(&mut self, _: TheirInstant) -> Option<(Arrived, Leaves<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Leaves(&mut self.sent)))
    }

    fn transmit(&mut self, _: TheirInstant) -> Option<Leaves<'_>> {
        Some(Leaves(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

fn their_address(address: IpAddress) -> TheirAddress {
    match address.to_v4() {
        Some(v4) => TheirAddress::from(std::net::Ipv4Addr::from(v4)),
        None => TheirAddress::from(std::net::Ipv6Addr::from(address.0)),
    }
}

/// smoltcp with one socket.
struct Peer {
    nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Peer {
    fn new(plan: &Plan, random: &mut Random) -> Self {
        let mut nic = Nic {
            mtu: usize::from(plan.mtu[1]),
            arrived: VecDeque::new(),
            sent: VecDeque::new(),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random.next();
        let now = their_time(plan.start_ns);
        let mut interface = Interface::new(config, &mut nic, now);
        let address = their_address(address(1, plan.ipv6));
        interface.update_ip_addrs(|list| list.push(IpCidr::new(address, 24)).unwrap());
        let mut buffer = || {
            let size = [2_000, 20_000, 65_535, 200_000][random.below(4) as usize];
            theirs::SocketBuffer::new(vec![0; size])
        };
        let socket = theirs::Socket::new(buffer(), buffer());
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self {
            nic,
            interface,
            sockets,
            handle,
        }
    }

    fn socket(&mut self) -> &mut theirs::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn poll(&mut self, now: u64) {
        let now = their_time(now);
        self.interface.poll(now, &mut self.nic, &mut self.sockets);
    }

    /// When it wants to be polled.
    fn next_at(&mut self, now: u64) -> Option<u64> {
        let delay = self.interface.poll_delay(their_time(now), &self.sockets)?;
        // Its clock has microseconds: not earlier, or time would stand still.
        Some(now + delay.total_micros().max(1) * 1000)
    }
}

fn their_time(now: u64) -> TheirInstant {
    TheirInstant::from_micros((now / 1000) as i64)
}

/// What one program has done. Side 0 is ours, side 1 theirs.
#[derive(Debug, Default)]
struct Progress {
    to_send: u64,
    sent: u64,
    received: u64,
    shut: bool,
    saw_end: bool,
}

fn byte(side: usize, at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (24 + side)) as u8
}

/// A connection between the two.
struct World {
    seed: u64,
    plan: Plan,
    random: Random,
    host: Host,
    peer: Peer,
    wire: Wire,
    ours: Option<EndpointId>,
    is_closed: bool,
    sides: [Progress; 2],
    now: u64,
    look_at: u64,
    looks: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = seeded(seed ^ 0x5301);
        let mut plan = Plan::draw(&mut random);
        plan.partial = false;
        plan.mark = 0;
        plan.loss = plan.loss.min(5);
        // It has no timestamps, and repairs each loss after a timeout.
        plan.queue_frames = plan.queue_frames.max(16);
        plan.ipv6 = random.chance(50);
        plan.mtu = [[1500, 1280, 1400][random.below(3) as usize]; 2];
        let host = Host::new(0, &plan, random.next());
        let peer = Peer::new(&plan, &mut random);
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
            self.peer.socket().listen(PORT).unwrap();
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
            let remote = (their_address(here), PORT);
            let Peer {
                interface,
                sockets,
                handle,
                ..
            } = &mut self.peer;
            let socket = sockets.get_mut::<theirs::Socket<'_>>(*handle);
            socket.connect(interface.context(), remote, CLIENT).unwrap();
        }
    }

    fn run(&mut self) {
        let limit = self.now + 7200 * SECOND;
        while !self.is_over() {
            self.step();
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
    }

    fn is_over(&mut self) -> bool {
        let ended = matches!(
            self.peer.socket().state(),
            theirs::State::Closed | theirs::State::TimeWait
        );
        let done = self.sides.iter().all(|side| side.saw_end && side.shut);
        done && self.is_closed && ended && self.wire.is_empty() && self.host.is_quiet()
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
            if flight.to == 0 {
                self.host.receive(&flight.bytes, false, now);
            } else {
                let packet = flight.bytes[ETHERNET..].to_vec();
                self.peer.nic.arrived.push_back(packet);
            }
        }
        self.host.complete(now);
        self.host.run_timers(now);
        self.peer.poll(now);
        if self.ours.is_none() {
            self.ours = self.host.accept(now).map(|(id, _)| id);
        }
        if now >= self.look_at {
            self.look_at = now + LOOK_NS;
            self.run_ours();
            self.run_theirs();
            self.peer.poll(now);
            self.looks += 1;
            if self.looks.is_multiple_of(16) {
                self.host.rig.check();
            }
        }
        for bytes in self.host.transmit(now, &mut self.random) {
            self.send(1, bytes);
        }
        while let Some(packet) = self.peer.nic.sent.pop_front() {
            let hop = self.host.hop();
            let kind: [u8; 2] = if packet[0] >> 4 == 4 {
                [8, 0]
            } else {
                [0x86, 0xdd]
            };
            let frame = [&hop.source_mac[..], &hop.mac, &kind, &packet].concat();
            self.send(0, frame);
        }
    }

    fn send(&mut self, to: usize, bytes: Vec<u8>) {
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

    /// Their program.
    fn run_theirs(&mut self) {
        let seed = self.seed;
        let socket = self
            .peer
            .sockets
            .get_mut::<theirs::Socket<'_>>(self.peer.handle);
        let side = &mut self.sides[1];
        while side.sent < side.to_send && socket.can_send() {
            let most = (side.to_send - side.sent).min(4096);
            let piece: Vec<_> = (side.sent..side.sent + most)
                .map(|at| byte(1, at))
                .collect();
            let taken = socket.send_slice(&piece).unwrap();
            side.sent += taken as u64;
            if taken == 0 {
                break;
            }
        }
        let mut bytes = [0; 4096];
        loop {
            match socket.recv_slice(&mut bytes) {
                Ok(0) | Err(theirs::RecvError::InvalidState) => break,
                Ok(count) => {
                    for found in &bytes[..count] {
                        assert_eq!(*found, byte(0, side.received), "seed {seed}");
                        side.received += 1;
                    }
                }
                Err(theirs::RecvError::Finished) => {
                    side.saw_end = true;
                    break;
                }
            }
        }
        if side.sent == side.to_send && !side.shut && socket.may_send() {
            socket.close();
            side.shut = true;
        }
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

#[test]
fn seeds() {
    let seeds = match number("BYPASS_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("BYPASS_SEEDS").unwrap_or(60),
    };
    let many = seeds.clone().count() >= 60;
    let seen = [
        Counter::TcpRetransmits,
        Counter::TcpOutOfOrder,
        Counter::TcpPassiveOpens,
        Counter::TcpActiveOpens,
    ];
    let mut counts = [0; 4];
    for seed in seeds {
        let mut world = World::new(seed);
        world.run();
        for (count, counter) in counts.iter_mut().zip(seen) {
            *count += world.host.counter(counter);
        }
    }
    assert!(
        !many || counts.iter().all(|count| *count > 10),
        "{counts:?}"
    );
}
