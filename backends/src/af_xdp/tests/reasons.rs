//! Each counter of the steering program, by frames that are made by hand and sent by an XSK.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::bed::{Bed, CHUNK, FAR, FAR6, NEAR, NEAR6, Queue, run};
use super::frame::{TCP, UDP, ethernet, ipv4, ipv6, tcp, udp};
use crate::af_xdp::{
    COUNTERS, FilterKey, Flow, FlowTable, Listener, Mode, Nic, NicConfig, longest_frame,
};
use crate::api::{QueuePair as _, Transmit};

const PORT: u16 = 7000;
const V4: u16 = 0x0800;
const V6: u16 = 0x86dd;
/// Not the near interface's: the destination MAC does not matter.
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 99];
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What the kernels send of their own counts as one of these.
pub(super) const CHAT: [&str; 3] = ["icmp", "group", "not-ip"];

pub(super) struct Wire {
    pub(super) near: Nic,
    pub(super) queue: Queue,
    sender: Queue,
}

impl Wire {
    pub(super) fn new(bed: &Bed) -> Self {
        let near = bed.nic(Mode::Native);
        let queue = Queue::open(&near, 0, 0);
        let far = bed.far(|| {
            let nic = Nic::open(NicConfig {
                ifindex: bed.far_index,
                mode: Mode::Native,
                chunk_size: CHUNK,
            });
            let nic = nic.unwrap();
            Queue::open(&nic, 0, 0)
        });
        Self {
            near,
            queue,
            sender: far,
        }
    }

    /// Sends a frame; the counters that moved, and the frame if it came to the queue.
    pub(super) fn send(&mut self, bytes: &[u8]) -> (Vec<&'static str>, Option<Vec<u8>>) {
        let before = self.near.counters();
        self.sender.packets.write(800, bytes);
        let frame = Transmit {
            chunk: 800,
            offset: 0,
            len: bytes.len() as u32,
            stamp: 0,
        };
        assert_eq!(self.sender.pair.submit(&[frame]), 1);
        self.sender.pair.ring_doorbell().unwrap();
        // Each frame moves a counter.
        let end = Instant::now() + Duration::from_secs(5);
        while self.near.counters() == before && Instant::now() < end {
            std::thread::yield_now();
        }
        let frame = self.queue.frames(1, Duration::from_millis(50)).pop();
        let after = self.near.counters();
        let moved = COUNTERS
            .iter()
            .zip(before.iter().zip(&after))
            .filter(|(_, (before, after))| before != after)
            .map(|((name, _), _)| *name)
            .collect();
        let mut done = [0; 4];
        assert_eq!(self.sender.pair.complete(&mut done), 1);
        assert_eq!(done[0], 800);
        (moved, frame)
    }
}

pub(super) fn v4(payload: &[u8]) -> Vec<u8> {
    ethernet(OTHER, FROM, V4, payload)
}

pub(super) fn v6(payload: &[u8]) -> Vec<u8> {
    ethernet(OTHER, FROM, V6, payload)
}

/// A datagram whose frame has so many bytes.
fn of_length(frame: u32) -> Vec<u8> {
    let payload = vec![7; frame as usize - 14 - 20 - 8];
    let request = udp((FAR.into(), 5000), (NEAR.into(), PORT), &payload);
    v4(&ipv4(FAR, NEAR, UDP, 0, &[], &request))
}

fn request(port: u16) -> Vec<u8> {
    udp((FAR.into(), 5000), (NEAR.into(), port), b"request")
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of frames")]
fn every_kind_of_frame_has_its_counter() {
    let bed = Bed::new();
    // The longest frames are longer than usual.
    run("ip link set bktn mtu 3000");
    bed.far(|| run("ip link set bktf mtu 3000"));
    let mut wire = Wire::new(&bed);
    for (ip, protocol) in [
        (IpAddr::V4(NEAR), UDP),
        (NEAR6.into(), UDP),
        (NEAR.into(), TCP),
    ] {
        let ip = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let listener = Listener::at(ip, PORT, protocol);
        wire.near
            .add_filter(FilterKey::Listener(listener), 0)
            .unwrap();
    }
    let kept = Flow {
        local: NEAR.to_ipv6_mapped().octets(),
        remote: FAR.to_ipv6_mapped().octets(),
        local_port: PORT,
        remote_port: 5999,
        protocol: UDP.into(),
    };
    wire.near.keep_in_kernel(FilterKey::Flow(kept)).unwrap();
    let empty = Listener::at(NEAR.to_ipv6_mapped().octets(), PORT + 9, UDP);
    wire.near.add_filter(FilterKey::Listener(empty), 1).unwrap();

    let table = FlowTable::create(8, 1).unwrap();
    wire.near.set_flow_table(0, table.as_fd()).unwrap();
    let grant = Listener::at(NEAR.to_ipv6_mapped().octets(), PORT + 1, TCP);
    wire.near.add_filter(FilterKey::Grant(grant), 0).unwrap();
    wire.near.add_filter(FilterKey::Listener(grant), 0).unwrap();
    FlowTable::map(&table).unwrap().mark(!0);

    let request6 = udp((FAR6.into(), 5000), (NEAR6.into(), PORT), b"request");
    let to4 = |protocol, payload: &[u8]| ipv4(FAR, NEAR, protocol, 0, &[], payload);
    let to6 = |next, payload: &[u8]| ipv6(FAR6, NEAR6, next, payload);
    let group4 = Ipv4Addr::new(239, 1, 1, 1);
    let group6: Ipv6Addr = "ff02::1234".parse().unwrap();
    let whole = to4(UDP, &request(PORT));
    let mut tagged = vec![0, 7, 0x08, 0x00];
    tagged.extend(&whole);

    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("redirected", "a datagram", v4(&whole)),
        ("redirected", "an IPv6 datagram", v6(&to6(UDP, &request6))),
        (
            "redirected",
            "as much as a chunk holds",
            of_length(longest_frame(CHUNK)),
        ),
        (
            "too-long",
            "one byte more",
            of_length(longest_frame(CHUNK) + 1),
        ),
        ("redirected", "a SYN", v4(&to4(TCP, &tcp(5000, PORT, 0x02)))),
        (
            "unmatched",
            "a SYN with ACK",
            v4(&to4(TCP, &tcp(5000, PORT, 0x12))),
        ),
        (
            "pressed",
            "a SYN to a pressed port",
            v4(&to4(TCP, &tcp(5000, PORT + 1, 0x02))),
        ),
        (
            "no-flow",
            "a segment to a granted port",
            v4(&to4(TCP, &tcp(5000, PORT + 1, 0x10))),
        ),
        (
            "unmatched",
            "a segment",
            v4(&to4(TCP, &tcp(5000, PORT, 0x10))),
        ),
        (
            "unmatched",
            "another port",
            v4(&to4(UDP, &request(PORT + 1))),
        ),
        (
            "unmatched",
            "another address",
            v4(&ipv4(FAR, FAR, UDP, 0, &[], &request(PORT))),
        ),
        (
            "kept",
            "a flow that is kept",
            v4(&to4(
                UDP,
                &udp((FAR.into(), 5999), (NEAR.into(), PORT), b"kept"),
            )),
        ),
        (
            "empty-slot",
            "no queue in the slot",
            v4(&to4(UDP, &request(PORT + 9))),
        ),
        ("not-ip", "ARP", ethernet(OTHER, FROM, 0x0806, &[0; 28])),
        ("not-ip", "LLDP", ethernet(OTHER, FROM, 0x88cc, &[0; 46])),
        ("not-ip", "IPv4 with another version", {
            let mut bytes = whole.clone();
            bytes[0] = 0x55;
            v4(&bytes)
        }),
        ("vlan", "a tag", ethernet(OTHER, FROM, 0x8100, &tagged)),
        (
            "vlan",
            "a service tag",
            ethernet(OTHER, FROM, 0x88a8, &tagged),
        ),
        ("group", "broadcast", ethernet([0xff; 6], FROM, V4, &whole)),
        (
            "group",
            "IPv4 multicast",
            v4(&ipv4(FAR, group4, UDP, 0, &[], &request(PORT))),
        ),
        (
            "group",
            "IPv6 multicast",
            v6(&ipv6(FAR6, group6, UDP, &request6)),
        ),
        ("truncated", "half an IPv4 header", v4(&whole[..10])),
        (
            "truncated",
            "half an IPv6 header",
            v6(&to6(UDP, &request6)[..30]),
        ),
        ("truncated", "half a UDP header", v4(&whole[..24])),
        (
            "truncated",
            "half a TCP header",
            v4(&to4(TCP, &tcp(5000, PORT, 2)[..12])),
        ),
        (
            "options",
            "IPv4 options",
            v4(&ipv4(FAR, NEAR, UDP, 0, &[1; 4], &request(PORT))),
        ),
        (
            "options",
            "hop-by-hop options",
            v6(&to6(0, &[UDP, 0, 1, 4, 0, 0, 0, 0])),
        ),
        (
            "options",
            "a routing header",
            v6(&to6(43, &[UDP, 0, 0, 0, 0, 0, 0, 0])),
        ),
        (
            "fragment",
            "a first fragment",
            v4(&ipv4(FAR, NEAR, UDP, 0x2000, &[], &request(PORT))),
        ),
        (
            "fragment",
            "a last fragment",
            v4(&ipv4(FAR, NEAR, UDP, 100, &[], &request(PORT))),
        ),
        (
            "fragment",
            "an IPv6 fragment",
            v6(&to6(44, &[UDP, 0, 0, 1, 0, 0, 0, 9])),
        ),
        ("icmp", "ICMP", v4(&to4(1, &[8, 0, 0, 0, 0, 0, 0, 0]))),
        ("icmp", "ICMPv6", v6(&to6(58, &[128, 0, 0, 0, 0, 0, 0, 0]))),
        ("other-protocol", "SCTP", v4(&to4(132, &[0; 12]))),
        ("other-protocol", "ICMPv6 over IPv4", v4(&to4(58, &[0; 8]))),
    ];
    for (counter, name, bytes) in &cases {
        let (moved, frame) = wire.send(bytes);
        assert!(moved.contains(counter), "{name}: {moved:?}");
        // The kernels chat meanwhile (neighbour discovery).
        let is_expected = |moved: &&str| moved == counter || CHAT.contains(moved);
        assert!(moved.iter().all(is_expected), "{name}: {moved:?}");
        let expected = (*counter == "redirected").then_some(bytes);
        assert_eq!(frame.as_ref(), expected, "{name}");
    }
    // Don't-fragment is no fragment.
    let (moved, _) = wire.send(&v4(&ipv4(FAR, NEAR, UDP, 0x4000, &[], &request(PORT))));
    assert!(moved.contains(&"redirected"));
    let untested: Vec<&str> = COUNTERS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !cases.iter().any(|(counter, ..)| counter == name))
        .collect();
    assert!(untested.is_empty(), "{untested:?}");
}
