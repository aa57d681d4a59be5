//! SO_REUSEPORT groups: flows are spread, and few of them move when a member comes or goes.

mod common;

use bypass_stack::wire::tcp::flags;
use bypass_stack::*;
use common::{Rig, TcpFields, at, receive_at, tcp_frame, udp_open};

const CAPS: Capacities = Capacities {
    endpoints: 64,
    chunks: 64,
    chunk_size: 2048,
};
const LOCAL: &str = "198.18.0.1:80";
const FLOWS: u32 = 2000;
const MEMBERS: usize = 4;

/// A peer's address.
fn peer(flow: u32) -> SocketAddress {
    let [_, _, high, low] = flow.to_be_bytes();
    SocketAddress::new(IpAddress::from_v4([198, 19, high, low]), 4000)
}

/// How members of a group are made and ended, and who has a flow.
struct Kind {
    join: fn(&mut Rig) -> EndpointId,
    leave: fn(&mut Rig, EndpointId),
    taker: fn(&mut Rig, &[EndpointId], u32) -> EndpointId,
}

const UDP: Kind = Kind {
    join: |rig| {
        let mut open = udp_open(rig.process, at(LOCAL), None);
        open.options.set(UdpOptions::REUSE_PORT, true);
        rig.stack().udp_open(&open).unwrap()
    },
    leave: |rig, member| {
        let process = rig.process;
        assert!(rig.stack().unhold(member, process));
    },
    taker: |rig, _, flow| rig.stack().udp_lookup(at(LOCAL), peer(flow)).unwrap(),
};

const TCP: Kind = Kind {
    join: |rig| {
        let mut options = TcpOptions::new();
        options.set(TcpOptions::REUSE_PORT, true);
        let open = TcpOpen {
            family: Family::V4,
            local: at(LOCAL),
            process: rig.process,
            options,
            shadow_cookie: 0,
            ifindex: 0,
        };
        rig.stack().tcp_listen(&open, 16).unwrap()
    },
    leave: |rig, member| {
        let process = rig.process;
        let (mut stack, packets) = rig.both();
        assert!(stack.tcp_close(packets, member, process, NOW));
    },
    taker: |rig, members, flow| {
        let answered = syn(rig, flow);
        acknowledge(rig, flow, answered);
        let (listener, connection) = accepted(rig, members);
        end(rig, connection);
        listener
    },
};

const NOW: Instant = Instant(1_000_000_000);

/// One segment from a peer; the number of what is answered.
fn segment(rig: &mut Rig, flow: u32, fields: &TcpFields<'_>) -> Option<u32> {
    let bytes = tcp_frame(peer(flow), at(LOCAL), fields);
    let (mut stack, packets) = rig.both();
    receive_at(&mut stack, packets, &bytes, NOW).expect("a chunk");
    stack.flush(packets, NOW);
    sent(rig)
}

/// Takes what leaves; the number of the last segment.
fn sent(rig: &mut Rig) -> Option<u32> {
    let mut number = None;
    while let Some(frame) = rig.sent(0) {
        number = Some(u32::from_be_bytes(frame[38..42].try_into().unwrap()));
    }
    while rig.stack().take_flow_change().is_some() {}
    number
}

/// A SYN; the number of the SYN-ACK.
fn syn(rig: &mut Rig, flow: u32) -> u32 {
    let fields = TcpFields {
        seq: 1000,
        flags: flags::SYN,
        window: 65535,
        ..TcpFields::default()
    };
    segment(rig, flow, &fields).expect("a SYN-ACK")
}

/// The third segment of a handshake.
fn acknowledge(rig: &mut Rig, flow: u32, number: u32) {
    let fields = TcpFields {
        seq: 1001,
        ack: number.wrapping_add(1),
        flags: flags::ACK,
        window: 65535,
        ..TcpFields::default()
    };
    segment(rig, flow, &fields);
}

/// The connection that waits to be accepted, and at which listener.
fn accepted(rig: &mut Rig, members: &[EndpointId]) -> (EndpointId, EndpointId) {
    let process = rig.process;
    let mut stack = rig.stack();
    let mut found = members.iter().filter_map(|&member| {
        let connection = stack.tcp_accept(member, process, 0).unwrap()?;
        Some((member, connection))
    });
    found.next().expect("a connection")
}

/// Resets a connection.
fn end(rig: &mut Rig, connection: EndpointId) {
    let process = rig.process;
    let (mut stack, packets) = rig.both();
    stack.tcp_abort(packets, connection, NOW);
    stack.tcp_close(packets, connection, process, NOW);
    stack.flush(packets, NOW);
    sent(rig);
}

/// Members by flow.
fn takers(rig: &mut Rig, kind: &Kind, members: &[EndpointId]) -> Vec<EndpointId> {
    let all = 0..FLOWS;
    all.map(|flow| (kind.taker)(rig, members, flow)).collect()
}

fn flows_of(takers: &[EndpointId], member: EndpointId) -> usize {
    takers.iter().filter(|&&taker| taker == member).count()
}

/// Between half and one and a half times of what it is on the average: ten standard deviations.
fn is_a_share(flows: usize, members: usize) -> bool {
    let average = FLOWS as usize / members;
    (average / 2..average * 3 / 2).contains(&flows)
}

fn shares(kind: &Kind) {
    let mut rig = Rig::new(CAPS);
    let mut members: Vec<_> = (0..MEMBERS).map(|_| (kind.join)(&mut rig)).collect();
    let before = takers(&mut rig, kind, &members);
    for &member in &members {
        assert!(is_a_share(flows_of(&before, member), MEMBERS), "{before:?}");
    }

    let comer = (kind.join)(&mut rig);
    members.push(comer);
    let now = takers(&mut rig, kind, &members);
    let has_moved = |(old, new): (&EndpointId, &EndpointId)| old != new;
    let moved: Vec<_> = before
        .iter()
        .zip(&now)
        .filter(|it| has_moved(*it))
        .collect();
    assert!(is_a_share(moved.len(), MEMBERS + 1), "{}", moved.len());
    assert!(moved.iter().all(|it| *it.1 == comer));

    let leaver = members.remove(1);
    (kind.leave)(&mut rig, leaver);
    let after = takers(&mut rig, kind, &members);
    for (old, new) in now.iter().zip(&after) {
        assert!(old == new || *old == leaver);
    }
    for &member in &members {
        let gained = flows_of(&after, member) - flows_of(&now, member);
        let all = flows_of(&now, leaver);
        assert!((all / 8..all / 2).contains(&gained), "{gained} of {all}");
    }
    rig.check();
}

#[test]
fn datagrams_stay_with_their_members() {
    shares(&UDP);
}

#[test]
fn connections_go_to_the_listeners_that_stay() {
    shares(&TCP);
}

/// What has begun with one listener ends with it, whoever joins.
#[test]
fn a_handshake_stays_with_its_listener() {
    let mut rig = Rig::new(CAPS);
    let first = (TCP.join)(&mut rig);
    for flow in 0..10 {
        let answered = syn(&mut rig, flow);
        let others: Vec<_> = (0..MEMBERS).map(|_| (TCP.join)(&mut rig)).collect();
        acknowledge(&mut rig, flow, answered);
        let (listener, connection) = accepted(&mut rig, &[&[first], &others[..]].concat());
        assert_eq!(listener, first);
        for other in others {
            (TCP.leave)(&mut rig, other);
        }
        let process = rig.process;
        assert!(rig.stack().tcp_status(connection).is_ok());
        end(&mut rig, connection);
        assert_eq!(rig.stack().tcp_accept(first, process, 0), Ok(None));
    }
    rig.check();
}
