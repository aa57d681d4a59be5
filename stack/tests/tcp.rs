//! TCP between two stacks over a wire of fixed delay, in virtual time.

mod common;

use bypass_stack::cplane::{Link, Neighbour, NextHop, Route, Table, neighbour_state};
use bypass_stack::wire::icmp::{IcmpError, Trouble};
use bypass_stack::wire::tcp;
use bypass_stack::wire::tcp::TCP;
use bypass_stack::*;
use common::{MAC, Packets, Rig, at, receive_at};
use std::collections::VecDeque;
use zerocopy::FromZeros;

const CAPS: Capacities = Capacities {
    endpoints: 64,
    chunks: 1024,
    chunk_size: 2048,
};
/// One way, nanoseconds.
const DELAY: u64 = 50_000;
const MS: u64 = 1_000_000;

/// Two stacks and the frames on their way.
struct Pair {
    rigs: [Rig; 2],
    wire: VecDeque<(u64, usize, Vec<u8>)>,
    now: u64,
    /// Says whether the nth frame is lost.
    lose: Box<dyn FnMut(usize) -> bool>,
    sent: usize,
}

impl Pair {
    fn new() -> Self {
        Self {
            rigs: [Rig::new(CAPS), Rig::new(CAPS)],
            wire: VecDeque::new(),
            now: 1_000 * MS,
            lose: Box::new(|_| false),
            sent: 0,
        }
    }

    fn with<T>(
        &mut self,
        side: usize,
        act: impl FnOnce(&mut Stack<'_>, &mut Packets, Instant) -> T,
    ) -> T {
        let now = Instant(self.now);
        let (mut stack, packets) = self.rigs[side].both();
        let result = act(&mut stack, packets, now);
        stack.flush(packets, now);
        self.collect(side);
        result
    }

    fn collect(&mut self, side: usize) {
        while let Some(frame) = self.rigs[side].sent(0) {
            let nth = self.sent;
            self.sent += 1;
            if !(self.lose)(nth) {
                self.wire.push_back((self.now + DELAY, 1 - side, frame));
            }
        }
        let mut stack = self.rigs[side].stack();
        while stack.take_flow_change().is_some() {}
        while stack.take_ended().is_some() {}
    }

    /// Goes to the next thing that happens; `false` when nothing will before `until`.
    fn step(&mut self, until: u64) -> bool {
        let frame = self.wire.front().map(|frame| frame.0);
        let timers: Vec<_> = self
            .rigs
            .iter_mut()
            .filter_map(|rig| rig.stack().next_deadline().map(|at| at.0))
            .collect();
        let next = frame.into_iter().chain(timers).min();
        let Some(next) = next.filter(|&next| next <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        while self
            .wire
            .front()
            .is_some_and(|(due, _, _)| *due <= self.now)
        {
            let (_, side, bytes) = self.wire.pop_front().unwrap();
            self.deliver(side, &bytes);
        }
        for side in 0..2 {
            self.with(side, |stack, packets, now| stack.run_timers(packets, now));
        }
        true
    }

    fn deliver(&mut self, side: usize, bytes: &[u8]) {
        let (mut stack, packets) = self.rigs[side].both();
        receive_at(&mut stack, packets, bytes, Instant(self.now)).unwrap();
        stack.flush(packets, Instant(self.now));
        self.collect(side);
    }

    fn run(&mut self, span: u64) {
        let until = self.now + span;
        while self.step(until) {}
    }

    fn listen(&mut self, backlog: u32) -> EndpointId {
        let open = open(self.rigs[1].process, "198.18.0.2:80");
        self.with(1, |stack, _, _| stack.tcp_listen(&open, backlog).unwrap())
    }

    fn connect(&mut self, port: u16) -> EndpointId {
        let open = open(self.rigs[0].process, &format!("198.18.0.1:{port}"));
        let via = common::via("198.18.0.1:0");
        self.with(0, |stack, packets, now| {
            stack
                .tcp_connect(packets, &open, at("198.18.0.2:80"), &via, now)
                .unwrap()
        })
    }

    fn accept(&mut self, listener: EndpointId) -> Option<EndpointId> {
        let process = self.rigs[1].process;
        self.with(1, |stack, _, _| {
            stack.tcp_accept(listener, process, 7).unwrap()
        })
    }

    fn established(&mut self) -> (EndpointId, EndpointId, EndpointId) {
        let listener = self.listen(16);
        let client = self.connect(40_000);
        self.run(10 * MS);
        let server = self.accept(listener).expect("accepted");
        (client, server, listener)
    }

    fn send(&mut self, side: usize, id: EndpointId, bytes: &[u8]) -> Result<usize, TcpError> {
        let mut done = 0;
        self.with(side, |stack, packets, now| {
            stack.tcp_send(
                packets,
                id,
                bytes.len(),
                false,
                &mut |piece| {
                    piece.copy_from_slice(&bytes[done..done + piece.len()]);
                    done += piece.len();
                },
                now,
            )
        })
    }

    /// Without a flush.
    fn send_later(&mut self, side: usize, id: EndpointId, bytes: &[u8]) {
        let now = Instant(self.now);
        let (mut stack, packets) = self.rigs[side].both();
        let mut rest = bytes;
        let fill = &mut |piece: &mut [u8]| {
            let (first, behind) = rest.split_at(piece.len());
            piece.copy_from_slice(first);
            rest = behind;
        };
        let sent = stack.tcp_send_later(packets, id, bytes.len(), fill, now);
        assert_eq!(sent, Ok(bytes.len()));
        self.collect(side);
    }

    fn recv(&mut self, side: usize, id: EndpointId) -> Vec<u8> {
        self.with(side, |stack, packets, now| {
            let mut got = Vec::new();
            while let Some(span) = stack.tcp_front(id, got.len()).unwrap() {
                let start = span.offset as usize;
                got.extend_from_slice(&packets.chunk(span.chunk)[start..start + span.len as usize]);
                let walked = stack.tcp_front(id, got.len()).unwrap();
                assert_eq!(stack.tcp_behind(id, &span, got.len()).unwrap(), walked);
            }
            stack.tcp_consume(id, got.len(), now).unwrap();
            got
        })
    }

    fn status(&mut self, side: usize, id: EndpointId) -> TcpStatus {
        self.rigs[side].stack().tcp_status(id).unwrap()
    }

    fn close(&mut self, side: usize, id: EndpointId) {
        let process = self.rigs[side].process;
        self.with(side, |stack, packets, now| {
            stack.tcp_close(packets, id, process, now)
        });
    }

    /// Sends `total` bytes from the client and reads them at the server; virtual time it took.
    fn transfer(&mut self, from: EndpointId, to: EndpointId, total: usize) -> u64 {
        let start = self.now;
        let data: Vec<u8> = (0..total).map(|at| (at * 31 % 251) as u8).collect();
        let (mut sent, mut got) = (0, Vec::new());
        while got.len() < total {
            while sent < total {
                match self.send(0, from, &data[sent..(sent + 16_384).min(total)]) {
                    Ok(count) => sent += count,
                    Err(TcpError::WouldBlock) => break,
                    Err(error) => panic!("{error:?} after {sent}"),
                }
            }
            let more = self.step(self.now + 200_000 * MS);
            got.extend(self.recv(1, to));
            assert!(
                more || got.len() == total,
                "stuck at {} of {total}",
                got.len()
            );
        }
        assert!(got == data, "bytes differ");
        self.now - start
    }
}

fn open(process: ProcessId, local: &str) -> TcpOpen {
    TcpOpen {
        family: Family::V4,
        local: at(local),
        process,
        options: TcpOptions::new(),
        shadow_cookie: 1,
        ifindex: 0,
    }
}

/// Frames of the rigs carry the same MAC address for both sides' own queue pair; the reply goes to
/// the sender's address, which the receiver checks.
fn pair() -> Pair {
    let mut pair = Pair::new();
    for rig in &mut pair.rigs {
        for info in rig.stack().queue_pairs_mut() {
            info.mac = [0; 6];
        }
    }
    assert_ne!(MAC, [0; 6]);
    pair
}

#[test]
fn a_handshake_makes_both_ends_established() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    assert_eq!(pair.status(0, client).state, TcpState::Established);
    assert_eq!(pair.status(1, server).state, TcpState::Established);
    assert_eq!(pair.status(1, server).remote, at("198.18.0.1:40000"));
}

#[test]
fn bytes_arrive_and_the_close_is_orderly() {
    let mut pair = pair();
    let (client, server, listener) = pair.established();
    assert_eq!(pair.send(0, client, b"question"), Ok(8));
    pair.run(MS);
    assert_eq!(pair.recv(1, server), b"question");
    assert_eq!(pair.send(1, server, b"answer"), Ok(6));
    pair.run(MS);
    assert_eq!(pair.recv(0, client), b"answer");
    pair.close(0, client);
    pair.run(MS);
    assert!(pair.status(1, server).eof);
    assert_eq!(pair.status(1, server).state, TcpState::CloseWait);
    pair.close(1, server);
    pair.run(MS);
    assert!(!pair.rigs[0].stack().is_live(client));
    assert!(!pair.rigs[1].stack().is_live(server));
    pair.close(1, listener);
    assert!(!pair.rigs[1].stack().is_live(listener));
    pair.run(70_000 * MS);
    for rig in &mut pair.rigs {
        assert_eq!(rig.stack().next_deadline(), None);
        assert_eq!(rig.stack().free_chunks(), CAPS.chunks);
        rig.check();
    }
}

/// Whose lock's owner died has lost the books of its connections: nobody waits for it in vain.
#[test]
fn a_recovery_resets_connections_at_both_ends() {
    let mut pair = pair();
    let (idle, _, listener) = pair.established();
    // What it was sent is lost, so that the reset comes from beyond what it has.
    let behind = pair.connect(40_001);
    pair.run(MS);
    let server = pair.accept(listener).expect("accepted");
    pair.lose = Box::new(|_| true);
    assert_eq!(pair.send(1, server, b"answer"), Ok(6));
    pair.lose = Box::new(|_| false);
    let unaccepted = pair.connect(40_002);
    pair.run(MS);
    // The SYN-ACK has come to it; its answer is lost.
    let half = pair.connect(40_003);
    pair.step(pair.now + DELAY);
    pair.lose = Box::new(|_| true);
    pair.step(pair.now + DELAY);
    pair.lose = Box::new(|_| false);
    let clients = [idle, behind, unaccepted, half];
    for client in clients {
        assert_eq!(pair.status(0, client).state, TcpState::Established);
    }
    // Here the SYN-ACK itself is lost: it tries again.
    let begun = pair.connect(40_004);
    pair.lose = Box::new(|_| true);
    pair.step(pair.now + DELAY);
    pair.lose = Box::new(|_| false);

    pair.rigs[1].recover(&[]);
    pair.collect(1);
    pair.run(10 * MS);
    for client in clients {
        let status = pair.status(0, client);
        assert_eq!((status.state, status.error), (TcpState::Closed, 104));
    }
    pair.run(2_000 * MS);
    assert_eq!(pair.status(0, begun).state, TcpState::Established);
    pair.rigs[1].check();
}

/// A SYN is answered only if there will be a place for its connection: the peer tries again.
#[test]
fn a_full_stack_answers_no_syn() {
    let mut pair = pair();
    let small = Capacities {
        endpoints: 8,
        ..CAPS
    };
    pair.rigs[1] = Rig::new(small);
    pair.rigs[1].stack().queue_pairs_mut()[0].mac = [0; 6];
    let listener = pair.listen(64);
    assert_eq!(pair.rigs[1].stack().free_endpoints(), 7);
    let clients: Vec<_> = (0..10).map(|n| pair.connect(40_000 + n)).collect();
    pair.run(10 * MS);
    let state = |pair: &mut Pair, nth: usize| pair.status(0, clients[nth]).state;
    for nth in 0..10 {
        let wanted = [TcpState::Established, TcpState::SynSent][usize::from(nth >= 7)];
        assert_eq!(state(&mut pair, nth), wanted, "{nth}");
    }
    let server = pair.accept(listener).expect("accepted");
    pair.with(1, |stack, packets, now| {
        stack.tcp_abort(packets, server, now);
    });
    pair.close(1, server);
    pair.run(2_000 * MS);
    let later = (7..10).filter(|&nth| state(&mut pair, nth) == TcpState::Established);
    assert_eq!(later.count(), 1);
    pair.rigs[1].check();
}

/// What was on its way to a connection that has moved to the kernel is not answered.
#[test]
fn late_segments_of_a_moved_connection_are_dropped() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    assert_eq!(pair.send(0, client, b"late"), Ok(4));
    pair.with(1, |stack, _, now| stack.tcp_leave(server, now).unwrap());
    let sent = pair.sent;
    pair.run(MS);
    let stack = pair.rigs[1].stack();
    assert_eq!(stack.counters().get(Counter::TcpHandedOver), 1);
    assert_eq!(stack.counters().dropped(DropReason::TcpLeft), 1);
    assert_eq!(pair.sent, sent, "an answer");
}

/// What comes here of a connection that the kernel has is not answered with a reset.
#[test]
fn segments_of_a_connection_of_the_kernels_are_dropped() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    let (local, remote) = pair.with(1, |stack, _, now| {
        let record = stack.tcp_record(server, now).unwrap();
        stack.tcp_leave(server, now).unwrap();
        (record.local(), record.remote())
    });
    // Longer than the leaving is remembered.
    pair.run(3_000 * MS);
    let is_kept = pair.with(1, |stack, _, now| stack.tcp_keep_out(local, remote, now));
    assert!(is_kept);
    assert!(!pair.rigs[1].stack().has_flow(local, remote));
    assert_eq!(pair.send(0, client, b"more"), Ok(4));
    let sent = pair.sent;
    pair.run(MS);
    let stack = pair.rigs[1].stack();
    assert_eq!(stack.counters().dropped(DropReason::TcpLeft), 1);
    assert_eq!(pair.sent, sent, "an answer");
}

/// A SYN-ACK that cannot get through: the request is forgotten, if the message knows its number.
#[test]
fn a_request_without_a_way_is_forgotten() {
    let mut pair = pair();
    let listener = pair.listen(4);
    pair.connect(5000);
    let soon = pair.now + MS;
    pair.step(soon);
    let (_, _, frame) = pair.wire.pop_back().expect("a SYN-ACK, which is lost");
    let synack = tcp::parse(&frame, &[0; 6], RxChecksum::Unknown).expect("a segment");
    let local = SocketAddress::new(synack.source, synack.source_port);
    let remote = SocketAddress::new(synack.destination, synack.destination_port);
    for (seq, lives) in [(synack.seq.wrapping_add(1), true), (synack.seq, false)] {
        let trouble = Trouble::Unreachable {
            errno: 113,
            no_route: true,
            ends_request: true,
        };
        let told = IcmpError {
            local,
            remote,
            protocol: TCP,
            seq,
            trouble,
        };
        let known = pair.with(1, |stack, packets, now| stack.tcp_icmp(packets, &told, now));
        assert!(known);
        assert_eq!(pair.rigs[1].stack().has_flow(local, remote), lives);
    }
    pair.close(1, listener);
    pair.rigs[1].check();
}

/// The peer's MAC address changes: what is sent from then on goes to the new one.
#[test]
fn frames_follow_a_neighbour_that_moves() {
    let mut pair = pair();
    let (client, _, _) = pair.established();
    let moved = [2, 0, 0, 0, 0, 9];
    let mut table = Box::new(Table::new_zeroed());
    table.insert_link(&Link {
        ifindex: 3,
        flags: Link::UP | Link::RUNNING,
        mac: MAC,
        mtu: 1500,
        first_queue_pair: 0,
        queue_pairs: 1,
        reserved: 0,
    });
    table.insert_route(&Route::v4([198, 18, 0, 0], 24, [0; 4], 3));
    table.insert_neighbour(&Neighbour {
        ip: at("198.18.0.2:0").ip,
        ifindex: 3,
        mac: moved,
        state: neighbour_state::REACHABLE,
        reserved: 0,
        spare: 0,
        updated_ns: 0,
    });
    let reroute = |pair: &mut Pair, slice| {
        pair.with(0, |stack, packets, now| {
            stack.tcp_reroute(packets, &table, slice, now)
        })
    };
    assert_eq!(reroute(&mut pair, (0, CAPS.endpoints)), Some(1));
    assert_eq!(reroute(&mut pair, (0, CAPS.endpoints)), Some(0));
    assert_eq!(reroute(&mut pair, (CAPS.endpoints, 1)), None);
    pair.send(0, client, b"hello").unwrap();
    let (_, _, frame) = pair.wire.back().unwrap();
    assert_eq!(frame[..6], moved);
}

/// A client and a server of the same stack.
#[test]
fn connections_within_a_stack_need_no_wire() {
    let mut pair = pair();
    let listener = pair.listen(16);
    let own = open(pair.rigs[1].process, "198.18.0.2:40000");
    let via = NextHop::hairpin(at("198.18.0.2:80").ip);
    assert!(
        pair.rigs[1]
            .stack()
            .tcp_listens(at("198.18.0.2:80"), own.local)
    );
    assert!(
        !pair.rigs[1]
            .stack()
            .tcp_listens(at("198.18.0.2:81"), own.local)
    );
    let client = pair.with(1, |stack, packets, now| {
        let client = stack.tcp_connect(packets, &own, at("198.18.0.2:80"), &via, now);
        while stack.take_hairpin(packets, 0, now) > 0 {}
        client.unwrap()
    });
    let server = pair.accept(listener).expect("accepted");
    let data: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < data.len() {
        if let Ok(count) = pair.send(1, client, &data[sent..]) {
            sent += count;
        }
        pair.with(1, |stack, packets, now| {
            while stack.take_hairpin(packets, 0, now) > 0 {
                stack.flush(packets, now);
            }
        });
        got.extend(pair.recv(1, server));
        let now = pair.now;
        pair.run(now + MS - pair.now);
    }
    assert!(got == data, "bytes differ");
    pair.close(1, client);
    pair.close(1, server);
    pair.with(1, |stack, packets, now| {
        while stack.take_hairpin(packets, 0, now) > 0 {
            stack.flush(packets, now);
        }
    });
    assert!(!pair.rigs[1].stack().is_live(client) && !pair.rigs[1].stack().is_live(server));
    assert_eq!(pair.sent, 0, "frames on the wire");
    pair.rigs[1].check();
}

#[test]
fn a_megabyte_arrives_over_a_clean_wire() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    let took = pair.transfer(client, server, 1 << 20);
    assert!(took < 200 * MS, "{took}");
    let info = pair.rigs[0]
        .stack()
        .tcp_info(client, Instant(pair.now))
        .unwrap();
    assert_eq!(info.total_retrans, 0);
    for rig in &pair.rigs {
        rig.check();
    }
}

#[test]
fn a_megabyte_arrives_although_frames_are_lost() {
    for period in [7, 13, 50] {
        let mut pair = pair();
        let (client, server, _) = pair.established();
        pair.lose = Box::new(move |nth| nth % period == 3);
        let took = pair.transfer(client, server, 1 << 20);
        let info = pair.rigs[0]
            .stack()
            .tcp_info(client, Instant(pair.now))
            .unwrap();
        assert!(info.total_retrans > 0);
        println!(
            "one in {period} lost: {} ms, {} sent again",
            took / MS,
            info.total_retrans
        );
    }
}

#[test]
fn unread_data_resets_at_close() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    pair.send(0, client, b"never read").unwrap();
    pair.run(MS);
    pair.close(1, server);
    pair.run(MS);
    let status = pair.status(0, client);
    assert_eq!((status.state, status.error), (TcpState::Closed, 104));
}

#[test]
fn a_slow_reader_closes_the_window_and_opens_it_again() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    let data = vec![7_u8; 400_000];
    let mut sent = 0;
    for _ in 0..200 {
        if let Ok(count) = pair.send(0, client, &data[..16_000]) {
            sent += count;
        }
        pair.run(5 * MS);
    }
    pair.run(3_000 * MS);
    let mut got = 0;
    for _ in 0..2000 {
        got += pair.recv(1, server).len();
        if got == sent {
            break;
        }
        pair.run(500 * MS);
    }
    assert_eq!(got, sent);
    assert!(pair.rigs[1].stack().counters().get(Counter::TcpZeroWindows) > 0);
}

#[test]
fn a_reader_is_served_while_others_read_nothing() {
    let mut pair = pair();
    let listener = pair.listen(16);
    let mut connections = Vec::new();
    for port in 40_000..40_004 {
        let client = pair.connect(port);
        pair.run(10 * MS);
        let server = pair.accept(listener).expect("accepted");
        let now = Instant(pair.now);
        let (mut stack, packets) = pair.rigs[1].both();
        stack.tcp_options(server).unwrap().rcvbuf_bytes = 4 << 20;
        stack.tcp_options_changed(packets, server, now);
        connections.push((client, server));
    }
    // Three take all that connections may have of the packet memory.
    for _ in 0..50 {
        for &(client, _) in &connections[1..] {
            let _ = pair.send(0, client, &[7; 16_000]);
        }
        pair.run(5 * MS);
    }
    let (client, server) = connections[0];
    let (mut sent, mut got) = (0, 0);
    let end = pair.now + 10_000 * MS;
    while got < 300_000 && pair.now < end {
        sent += pair.send(0, client, &[8; 16_000]).unwrap_or(0);
        pair.run(5 * MS);
        got += pair.recv(1, server).len();
    }
    assert!(got >= 300_000, "{got} of {sent}");
    for &(_, server) in &connections[1..] {
        assert!(pair.status(1, server).readable > 0);
    }
}

#[test]
fn more_time_waits_than_there_is_room_for_stop_nobody() {
    let mut pair = pair();
    let listener = pair.listen(16);
    for nth in 0..300 {
        let client = pair.connect(40_000 + nth);
        pair.run(MS);
        let server = pair.accept(listener).expect("accepted");
        pair.close(1, server);
        pair.run(MS);
        pair.close(0, client);
        pair.run(MS);
    }
    let full = pair.rigs[1]
        .stack()
        .counters()
        .get(Counter::TcpTimeWaitFull);
    assert!(full > 200, "{full}");
    pair.rigs[1].check();
}

#[test]
fn changes_of_flows_that_nobody_takes_are_counted() {
    let mut rig = Rig::new(CAPS);
    let open = open(rig.process, "198.18.0.1:80");
    rig.stack().tcp_listen(&open, 4).unwrap();
    let peer = at("198.18.0.2:9000");
    let frame = |seq, flags| {
        let fields = common::TcpFields {
            seq,
            flags,
            ..common::TcpFields::default()
        };
        common::tcp_frame(peer, at("198.18.0.1:80"), &fields)
    };
    // A flow begins with each SYN and ends with each RST.
    for _ in 0..300 {
        rig.frame(&frame(1, 2));
        rig.frame(&frame(2, 4));
        assert!(rig.sent(0).is_some());
    }
    let mut stack = rig.stack();
    let mut taken = 0;
    while stack.take_flow_change().is_some() {
        taken += 1;
    }
    assert_eq!(taken, 512);
    assert_eq!(stack.counters().get(Counter::TcpFlowChangesLost), 600 - 512);
}

#[test]
fn what_is_written_for_later_shares_a_segment_with_its_ack() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    pair.send(0, client, b"question").unwrap();
    pair.run(MS);
    assert_eq!(pair.recv(1, server), b"question");
    let before = pair.sent;
    pair.send_later(1, server, b"head");
    pair.send_later(1, server, b"body");
    assert_eq!(pair.sent, before);
    pair.with(1, |stack, _, _| assert!(stack.has_flush()));
    assert_eq!(pair.sent, before + 1);
    pair.run(MS);
    assert_eq!(pair.recv(0, client), b"headbody");
    assert_eq!(pair.status(0, client).unacked, 0);
}

#[test]
fn what_is_written_for_later_leaves_before_the_reset() {
    let mut pair = pair();
    let (client, server, _) = pair.established();
    pair.send(0, client, b"unread").unwrap();
    pair.run(MS);
    pair.send_later(1, server, b"sorry");
    let process = pair.rigs[1].process;
    pair.with(1, |stack, packets, now| {
        stack.tcp_close(packets, server, process, now)
    });
    let info = |pair: &mut Pair| {
        let now = Instant(pair.now);
        pair.rigs[0].stack().tcp_info(client, now).unwrap()
    };
    pair.run(DELAY);
    assert_eq!(info(&mut pair).bytes_received, 5);
    assert_eq!(pair.status(0, client).error, 104);
}
