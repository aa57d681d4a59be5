//! More half-open connections than a listener has room for.

mod common;

use bypass_stack::inspect::Image;
use bypass_stack::tcp::pressed_bit;
use bypass_stack::wire::tcp::flags;
use bypass_stack::*;
use common::{Packets, Rig, TcpFields, at, receive_at, tcp_frame};
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
        let process = rig.process;
        let mut stack = rig.stack();
        stack.tcp_defaults_mut().max_syn_backlog = 20_000;
        set(stack.tcp_defaults_mut());
        let listener = listen(&mut stack, process, local());
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

    /// One more listener.
    fn listen(&mut self, to: SocketAddress) -> EndpointId {
        let process = self.rig.process;
        listen(&mut self.rig.stack(), process, to)
    }

    fn close(&mut self, listener: EndpointId) {
        let process = self.rig.process;
        self.step(|stack, packets, now| {
            let _ = stack.tcp_close(packets, listener, process, now);
        });
    }

    fn segment(&mut self, from: SocketAddress, fields: &TcpFields<'_>) -> Vec<Vec<u8>> {
        self.segment_to(local(), from, fields)
    }

    fn segment_to(
        &mut self,
        to: SocketAddress,
        from: SocketAddress,
        fields: &TcpFields<'_>,
    ) -> Vec<Vec<u8>> {
        let bytes = tcp_frame(from, to, fields);
        self.step(|stack, packets, now| {
            receive_at(stack, packets, &bytes, now).expect("a chunk");
        })
    }

    /// A SYN; the number of the SYN-ACK, if it was answered.
    fn syn(&mut self, from: SocketAddress) -> Option<u32> {
        self.syn_to(local(), from)
    }

    fn syn_to(&mut self, to: SocketAddress, from: SocketAddress) -> Option<u32> {
        let fields = TcpFields {
            seq: 1000,
            flags: flags::SYN,
            window: 65535,
            ..TcpFields::default()
        };
        let sent = self.segment_to(to, from, &fields).pop()?;
        let seq = if to.ip.is_v4() { 38 } else { 58 };
        Some(u32::from_be_bytes(sent[seq..seq + 4].try_into().unwrap()))
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
        self.passes(PORT)
    }

    /// Whether a SYN for a port goes to the kernel.
    fn passes(&mut self, port: u16) -> bool {
        self.rig.stack().pressed() & pressed_bit(port) != 0
    }

    fn count(&mut self, counter: Counter) -> u64 {
        self.rig.stack().counters().get(counter)
    }
}

fn listen(stack: &mut Stack<'_>, process: ProcessId, local: SocketAddress) -> EndpointId {
    let family = if local.ip.is_v4() {
        Family::V4
    } else {
        Family::V6
    };
    let open = TcpOpen {
        family,
        local,
        process,
        options: TcpOptions::new(),
        shadow_cookie: 0,
        ifindex: 0,
    };
    stack.tcp_listen(&open, 128).unwrap()
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
    host.close(host.listener);
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
fn several_listeners_share_the_room_and_no_honest_peer_is_lost() {
    let mut host = Host::new(|_| ());
    let ports = [PORT, 81, 443];
    for port in &ports[1..] {
        host.listen(SocketAddress::new(local().ip, *port));
    }
    let room = ENDPOINTS - 3;
    let mut honest = 40_000;
    for number in 0..12_000 {
        let to = SocketAddress::new(local().ip, ports[number as usize % 3]);
        if number % 100 < 3 {
            honest += 1;
            let served = host.passes(to.port) || host.syn_to(to, stranger(honest)).is_some();
            assert!(served, "{number}");
        }
        // What is in the ring already comes to the stack all the same.
        host.syn_to(to, stranger(number));
    }
    assert_eq!(host.requests(), room as usize);
    assert!(ports.iter().all(|&port| host.passes(port)));
    assert_eq!(host.count(Counter::TcpPressed), 1);
    host.rig.check();
    host.run_for(8);
    assert!(!ports.iter().any(|&port| host.passes(port)));
    assert!(host.requests() <= 3 * 64, "{}", host.requests());
    assert_eq!(host.count(Counter::TcpFlowChangesLost), 0);
    host.rig.check();
}

#[test]
fn pressure_of_one_listener_is_not_that_of_another_port() {
    let mut host = Host::new(|defaults| defaults.max_syn_backlog = 100);
    host.listen(at("198.18.0.1:81"));
    for number in 0..90 {
        host.syn(stranger(number));
    }
    assert!(host.passes(PORT) && !host.passes(81));
    // The backlog is longer than the room; the old requests go all the same.
    host.run_for(8);
    assert!(!host.passes(PORT));
    host.rig.check();
}

#[test]
fn a_port_stays_pressed_until_all_of_its_listeners_have_room() {
    let mut host = Host::new(|defaults| defaults.max_syn_backlog = 100);
    let to = at("[2001:db8::1]:80");
    let newer = host.listen(to);
    for number in 1..=80 {
        assert!(
            host.syn_to(to, at(&format!("[2001:db8::1:{number}]:4000")))
                .is_some()
        );
    }
    assert!(host.is_pressed());
    let reset = TcpFields {
        seq: 1001,
        flags: flags::RST,
        ..TcpFields::default()
    };
    // The listener for IPv4 has had one request, and has none.
    host.syn(stranger(0));
    host.segment(stranger(0), &reset);
    assert!(host.is_pressed());
    assert_eq!(host.count(Counter::TcpPressed), 1);
    for number in 0..80 {
        host.syn(stranger(number));
    }
    assert_eq!(host.count(Counter::TcpPressed), 2);
    host.close(newer);
    assert!(host.is_pressed());
    for number in 0..30 {
        assert!(host.is_pressed(), "{number}");
        host.segment(stranger(number), &reset);
    }
    assert!(!host.is_pressed());
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
