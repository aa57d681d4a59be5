//! More half-open connections than a listener has room for.

mod common;

use bypass_stack::inspect::Image;
use bypass_stack::tcp::pressed_bit;
use bypass_stack::wire::tcp::flags;
use bypass_stack::*;
use common::{Packets, Rig, TcpFields, at, tcp_frame};
use std::collections::HashMap;
use zerocopy::IntoBytes;

const SECOND: u64 = 1_000_000_000;
const PORT: u16 = 80;
/// Of one image: as many connections could be open.
const ENDPOINTS: u32 = 11_000;
/// What there is room for: the listener is an endpoint too.
const ROOM: u32 = ENDPOINTS - 1;

/// A stack with a listener, and the flows that it has told of.
struct Host {
    rig: Rig,
    listener: EndpointId,
    flows: HashMap<SocketAddress, bool>,
    now: Instant,
}

impl Host {
    fn new(set: impl FnOnce(&mut TcpDefaults)) -> Self {
        let mut rig = Rig::new(Capacities {
            endpoints: ENDPOINTS,
            chunks: 256,
            chunk_size: 512,
        });
        let open = TcpOpen {
            family: Family::V4,
            local: local(),
            process: rig.process,
            options: TcpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        let mut stack = rig.stack();
        stack.tcp_defaults_mut().max_syn_backlog = 20_000;
        set(stack.tcp_defaults_mut());
        let listener = stack.tcp_listen(&open, 128).unwrap();
        Self {
            rig,
            listener,
            flows: HashMap::new(),
            now: Instant(SECOND),
        }
    }

    /// What the stack does, and what it sends then; nothing is kept from the NIC.
    fn step(&mut self, act: impl FnOnce(&mut Stack<'_>, &mut Packets, Instant)) -> Vec<Vec<u8>> {
        let (mut stack, packets) = self.rig.both();
        act(&mut stack, packets, self.now);
        stack.flush(packets, self.now);
        let mut sent = Vec::new();
        while let Some(frame) = stack.poll_transmit(0) {
            let bytes = &packets.bytes[frame.chunk.0 as usize * packets.size..][..packets.size];
            let start = frame.offset as usize;
            sent.push(bytes[start..start + frame.len as usize].to_vec());
            stack.release_chunk(frame.chunk);
        }
        while let Some(change) = stack.take_flow_change() {
            if change.begins {
                self.flows.insert(change.remote, true);
            } else {
                self.flows.remove(&change.remote);
            }
        }
        sent
    }

    fn segment(&mut self, from: SocketAddress, fields: &TcpFields<'_>) -> Vec<Vec<u8>> {
        let bytes = tcp_frame(from, local(), fields);
        self.step(|stack, packets, now| {
            let chunk = stack.take_chunk().unwrap();
            packets.bytes[chunk.0 as usize * packets.size..][..bytes.len()].copy_from_slice(&bytes);
            let frame = RxFrame {
                chunk,
                offset: 0,
                len: bytes.len() as u32,
                queue_pair: 0,
                partial_checksums: false,
                timestamp_ns: 0,
            };
            stack.handle_frame(packets, frame, now);
        })
    }

    /// A SYN; the number of the SYN-ACK, if it was answered.
    fn syn(&mut self, from: SocketAddress) -> Option<u32> {
        let fields = TcpFields {
            seq: 1000,
            flags: flags::SYN,
            window: 65535,
            ..TcpFields::default()
        };
        let sent = self.segment(from, &fields).pop()?;
        Some(u32::from_be_bytes(sent[38..42].try_into().unwrap()))
    }

    fn run_for(&mut self, seconds: u64) {
        let end = self.now.0 + seconds * SECOND;
        while let Some(due) = self.rig.stack().next_deadline().filter(|due| due.0 <= end) {
            self.now = Instant(self.now.0.max(due.0));
            self.step(|stack, packets, now| stack.run_timers(packets, now));
        }
        self.now = Instant(end);
    }

    fn requests(&self) -> usize {
        let image = Image::attach(self.rig.words.as_bytes()).unwrap();
        image.minisockets().count()
    }

    fn is_pressed(&mut self) -> bool {
        self.rig.stack().pressed() & pressed_bit(PORT) != 0
    }

    fn count(&mut self, counter: Counter) -> u64 {
        self.rig.stack().counters().get(counter)
    }
}

fn local() -> SocketAddress {
    at("198.18.0.1:80")
}

fn stranger(number: u32) -> SocketAddress {
    let [_, _, high, low] = number.to_be_bytes();
    SocketAddress::new(IpAddress::from_v4([198, 19, high, low]), 4000)
}

#[test]
fn ten_thousand_strangers_are_remembered_and_no_more_than_there_is_room_for() {
    let mut host = Host::new(|_| ());
    let three_quarters = ROOM - ROOM / 4;
    let mut number_of_first = 0;
    for number in 0..10_000 {
        assert_eq!(host.is_pressed(), number >= three_quarters, "{number}");
        let answered = host.syn(stranger(number)).expect("a SYN-ACK");
        if number == 0 {
            number_of_first = answered;
        }
    }
    assert_eq!((host.requests(), host.flows.len()), (10_000, 10_000));
    for number in 10_000..12_000 {
        assert_eq!(host.syn(stranger(number)).is_some(), number < ROOM);
    }
    assert_eq!(host.requests(), ROOM as usize);
    assert_eq!(host.flows.len(), ROOM as usize);
    assert_eq!(host.count(Counter::TcpPassiveOpens), u64::from(ROOM));
    let refused = u64::from(12_000 - ROOM);
    assert_eq!(host.count(Counter::TcpListenOverflows), refused);
    assert_eq!(host.count(Counter::TcpPressed), 1);
    host.rig.check();

    // One that answers after all is served.
    let last_ack = TcpFields {
        seq: 1001,
        ack: number_of_first.wrapping_add(1),
        flags: flags::ACK,
        window: 65535,
        ..TcpFields::default()
    };
    host.segment(stranger(0), &last_ack);
    let listener = host.listener;
    let status = host.rig.stack().tcp_status(listener).unwrap();
    assert_eq!(status.accept_queue, 1);

    // The others have had three SYN-ACKs after 7 s: all but those for which the backlog is meant.
    host.run_for(6);
    assert!(host.is_pressed());
    host.run_for(2);
    assert!(!host.is_pressed());
    assert!(host.requests() <= 64, "{}", host.requests());
    assert_eq!(host.flows.len(), host.requests() + 1);
    assert!(host.syn(stranger(20_000)).is_some());
    host.run_for(64);
    assert_eq!((host.requests(), host.flows.len()), (0, 1));
    assert_eq!(host.count(Counter::TcpFlowChangesLost), 0);
    host.rig.check();
}

#[test]
fn pressure_ends_with_the_listener_and_with_a_recovery() {
    let mut host = Host::new(|defaults| defaults.max_syn_backlog = 100);
    let flood = |host: &mut Host| {
        for number in 0..200 {
            host.syn(stranger(number));
        }
    };
    flood(&mut host);
    assert!(host.is_pressed());
    host.rig.recover(&[]);
    assert!(!host.is_pressed());
    assert_eq!(host.requests(), 0);
    flood(&mut host);
    assert!(host.is_pressed() && host.requests() == 100);
    let (listener, process) = (host.listener, host.rig.process);
    host.step(|stack, packets, now| {
        let _ = stack.tcp_close(packets, listener, process, now);
    });
    assert!(!host.is_pressed());
    host.rig.check();
}

#[test]
fn without_cookies_there_is_no_pressure() {
    let mut host = Host::new(|defaults| defaults.syncookies = 0);
    for number in 0..1_000 {
        assert_eq!(host.syn(stranger(number)).is_some(), number <= 128);
    }
    assert!(!host.is_pressed());
    assert_eq!(host.requests(), 129);
    // Resets make room.
    let reset = TcpFields {
        seq: 1001,
        flags: flags::RST,
        ..TcpFields::default()
    };
    host.segment(stranger(5), &reset);
    assert!(host.syn(stranger(2_000)).is_some());
    assert!(host.syn(stranger(2_001)).is_none());
    host.rig.check();
}

#[test]
fn requests_that_end_one_a_tick_lose_no_change_of_steering() {
    let mut host = Host::new(|defaults| defaults.synack_retries = 0);
    let tick = 1 << 20;
    for number in 0..600 {
        assert!(host.syn(stranger(number)).is_some());
        host.now = Instant(host.now.0 + tick);
        host.step(|stack, packets, now| stack.run_timers(packets, now));
    }
    assert_eq!(host.flows.len(), 600);
    // All of them are due.
    host.now = Instant(host.now.0 + SECOND);
    let mut calls = 0;
    while host.requests() > 0 {
        host.step(|stack, packets, now| stack.run_timers(packets, now));
        calls += 1;
    }
    assert_eq!(calls, 3);
    assert_eq!(host.flows.len(), 0);
    assert_eq!(host.count(Counter::TcpFlowChangesLost), 0);
    host.rig.check();
}
