//! Whichever way a segment or a write takes, the short one or the long one, the stack is the same
//! afterwards: two servers get the same frames, one as they are, the other with the timestamps
//! option where Linux does not put it, which only the long way reads. So with their writes.

mod common;

use bypass_stack::*;
use common::{CAPS, MAC, Random, Rig, at, receive_at, via};

/// Bytes of Ethernet, IPv4 and TCP headers.
const HEADERS: usize = 54;
/// NOP, NOP, timestamps of 10 bytes.
const USUAL: [u8; 4] = [1, 1, 8, 10];
/// Bytes of a full segment: of 1500, 40 are headers and 12 timestamps.
const MSS: usize = 1448;

/// The segment with the NOPs behind the timestamps; the checksum does not change by that.
fn turned(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let only_timestamps = frame[46] >> 4 == 8;
    if only_timestamps && frame[HEADERS..].starts_with(&USUAL) {
        frame[HEADERS..HEADERS + 12].rotate_left(2);
    }
    frame
}

/// Gives a stack a frame, if it has a chunk for it.
fn give(rig: &mut Rig, bytes: &[u8], now: Instant) {
    let (mut stack, packets) = rig.both();
    let _ = receive_at(&mut stack, packets, bytes, now);
}

/// A client, and two servers that live through the same.
struct Trio {
    client: Rig,
    servers: [Rig; 2],
    connection: EndpointId,
    accepted: EndpointId,
    now: u64,
    random: Random,
    loss_percent: u64,
    /// The first server's writes that took the short way: those of less than a full segment, and
    /// those of one.
    short_writes: [usize; 2],
}

impl Trio {
    fn new(seed: u64, loss_percent: u64) -> Self {
        let caps = Capacities {
            chunks: 256,
            ..CAPS
        };
        let mut client = Rig::new(caps);
        let mut servers = [Rig::new(caps), Rig::new(caps)];
        let mut options = TcpOptions::new();
        options.set(TcpOptions::NODELAY, seed.is_multiple_of(3));
        let open = |process, at| TcpOpen {
            family: Family::V4,
            local: at,
            process,
            options,
            shadow_cookie: 0,
            ifindex: 0,
        };
        let [listener, same] = servers.each_mut().map(|server| {
            let open = open(server.process, at("198.18.0.2:80"));
            server.stack().tcp_listen(&open, 8).unwrap()
        });
        assert_eq!(listener, same);
        let open = open(client.process, at("198.18.0.1:40000"));
        let hop = NextHop {
            mac: MAC,
            ..via("198.18.0.1:0")
        };
        let (mut stack, packets) = client.both();
        let remote = at("198.18.0.2:80");
        let now = Instant(1_000_000_000);
        let connection = stack.tcp_connect(packets, &open, remote, &hop, now);
        let mut trio = Self {
            client,
            servers,
            connection: connection.unwrap(),
            accepted: EndpointId::NONE,
            now: now.0,
            random: Random(seed),
            loss_percent: 0,
            short_writes: [0; 2],
        };
        trio.exchange();
        for server in &mut trio.servers {
            let process = server.process;
            let accepted = server.stack().tcp_accept(listener, process, 0).unwrap();
            trio.accepted = accepted.unwrap();
        }
        trio.loss_percent = loss_percent;
        trio
    }

    /// Frames go to and fro until there are none; some are lost.
    fn exchange(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(frame) = self.client.sent(0) {
                quiet = false;
                if self.random.chance(self.loss_percent) {
                    continue;
                }
                let [one, other] = &mut self.servers;
                give(one, &frame, Instant(self.now));
                give(other, &turned(&frame), Instant(self.now));
            }
            self.both(|stack, packets, now| stack.flush(packets, now));
            loop {
                let [one, other] = self.servers.each_mut().map(|server| server.sent(0));
                assert_eq!(one, other);
                let Some(frame) = one else { break };
                quiet = false;
                if self.random.chance(self.loss_percent) {
                    continue;
                }
                give(&mut self.client, &frame, Instant(self.now));
                let (mut stack, packets) = self.client.both();
                stack.flush(packets, Instant(self.now));
            }
            self.compare();
            if quiet {
                return;
            }
        }
    }

    /// Does the same at both servers.
    fn both(&mut self, mut what: impl FnMut(&mut Stack<'_>, &mut common::Packets, Instant)) {
        for server in &mut self.servers {
            let (mut stack, packets) = server.both();
            what(&mut stack, packets, Instant(self.now));
        }
    }

    /// How many segments and writes have taken the short way at each server.
    fn short_ways(&self) -> [usize; 2] {
        self.servers
            .each_ref()
            .map(|server| server.packets.short_ways)
    }

    fn compare(&self) {
        let [one, other] = &self.servers;
        if let Some(place) = (0..one.words.len()).find(|&at| one.words[at] != other.words[at]) {
            panic!("byte {} of the images differs", place * 8);
        }
    }

    /// The servers' program writes; the other server's must not be the short way: a mark of unsent
    /// bytes that is never reached keeps it away.
    fn write(&mut self, len: usize) {
        let (id, now) = (self.accepted, Instant(self.now));
        for (server, lowat) in self.servers.iter_mut().zip([u32::MAX, u32::MAX - 1]) {
            let (mut stack, packets) = server.both();
            let mut fill = |into: &mut [u8]| into.fill(9);
            // Of more it would see where the segments end.
            if len <= MSS {
                stack.tcp_options(id).unwrap().notsent_lowat = lowat;
            }
            let before = packets.short_ways;
            let sent = stack.tcp_send(packets, id, len, false, &mut fill, now);
            let is_short = packets.short_ways > before;
            self.short_writes[usize::from(len == MSS)] += usize::from(is_short);
            assert!(!is_short || sent == Ok(len) && lowat == u32::MAX && len <= MSS);
            stack.tcp_options(id).unwrap().notsent_lowat = u32::MAX;
        }
    }

    /// One call of the program on either side, or time goes by.
    fn step(&mut self) {
        let len = match self.random.below(8) {
            0 => MSS - 1 + self.random.below(3) as usize,
            _ => 1 + self.random.below(3000) as usize,
        };
        let id = self.accepted;
        match self.random.below(8) {
            0..3 => {
                let (mut stack, packets) = self.client.both();
                let mut fill = |into: &mut [u8]| into.fill(7);
                let now = Instant(self.now);
                let _ = stack.tcp_send(packets, self.connection, len, false, &mut fill, now);
            }
            3..5 => self.write(len),
            5 => {
                self.both(|stack, _, now| {
                    let most = stack.tcp_readable(id).unwrap();
                    stack.tcp_consume(id, len.min(most), now).unwrap();
                });
                let mut stack = self.client.stack();
                let most = stack.tcp_readable(self.connection).unwrap();
                let now = Instant(self.now);
                stack.tcp_consume(self.connection, most, now).unwrap();
            }
            _ => {
                self.now += 1 + self.random.below(30_000_000);
                self.both(|stack, packets, now| stack.run_timers(packets, now));
                let (mut stack, packets) = self.client.both();
                stack.run_timers(packets, Instant(self.now));
            }
        }
        self.now += self.random.below(50_000);
        self.exchange();
    }
}

#[test]
fn the_short_way_and_the_long_one_lead_to_the_same_image() {
    for seed in 1..=8 {
        let loss_percent = if seed % 2 == 0 { 0 } else { 3 };
        let mut trio = Trio::new(seed, loss_percent);
        for _ in 0..500 {
            trio.step();
        }
        let bytes = trio.servers[0]
            .stack()
            .tcp_info(trio.accepted, Instant(trio.now));
        let info = bytes.unwrap();
        assert!(info.data_segs_in > 60 && info.data_segs_out > 60);
        assert_eq!(info.snd_mss as usize, MSS);
        let ([short, long], [small, full]) = (trio.short_ways(), trio.short_writes);
        assert!(short - small - full > 60 && small > 15 && full > 0);
        assert_eq!(long, 0, "the other server's way was the short one");
    }
}
