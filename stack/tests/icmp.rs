//! ICMP errors made by hand: what is found in them. What they do to connections is in the packet
//! scripts, and to a request in tests/tcp.rs.

mod common;

use bypass_stack::wire::icmp::{IcmpError, Trouble, parse_v4, parse_v6};
use bypass_stack::wire::tcp::TCP;
use common::*;

const LOCAL: &str = "198.18.0.1:5000";
const REMOTE: &str = "198.18.0.2:6000";
const LOCAL6: &str = "[2001:db8::1]:5000";
const REMOTE6: &str = "[2001:db8::2]:6000";

/// The packet of a segment of ours with this sequence number.
fn segment(local: &str, remote: &str, seq: u32) -> Vec<u8> {
    let fields = TcpFields {
        seq,
        ..TcpFields::default()
    };
    tcp_frame(at(local), at(remote), &fields)[14..].to_vec()
}

/// An ICMP message: type, code, the word behind the checksum, what is quoted.
fn message(kind: u8, code: u8, word: u32, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(word.to_be_bytes());
    bytes.extend(&quoted[..quoted.len().min(28)]);
    let sum = !plain_sum(&[&bytes]);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The same in an IPv4 packet, as a raw socket gives it.
fn packet(kind: u8, code: u8, word: u32, quoted: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45; 1];
    header.resize(20, 0);
    [header, message(kind, code, word, quoted)].concat()
}

fn message6(kind: u8, code: u8, word: u32) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(word.to_be_bytes());
    bytes.extend(segment(LOCAL6, REMOTE6, 9));
    bytes
}

fn about(local: &str, remote: &str, seq: u32, trouble: Trouble) -> Option<IcmpError> {
    Some(IcmpError {
        local: at(local),
        remote: at(remote),
        protocol: TCP,
        seq,
        trouble,
    })
}

fn unreachable(errno: i32, no_route: bool, ends_request: bool) -> Trouble {
    Trouble::Unreachable {
        errno,
        no_route,
        ends_request,
    }
}

#[test]
fn messages_of_ipv4_stand_for_linux_errors() {
    let quoted = segment(LOCAL, REMOTE, 0x8123_4567);
    for ((kind, code, word), trouble) in [
        ((3, 0, 0), unreachable(101, true, true)),
        ((3, 1, 0), unreachable(113, true, true)),
        ((3, 2, 0), unreachable(92, false, false)),
        ((3, 3, 0), unreachable(111, false, false)),
        ((3, 4, 1300), Trouble::TooBig(1300)),
        ((3, 5, 0), unreachable(95, false, false)),
        ((3, 7, 0), unreachable(112, false, false)),
        ((3, 8, 0), unreachable(64, false, false)),
        ((3, 13, 0), unreachable(113, false, false)),
        ((11, 0, 0), unreachable(113, false, true)),
        ((12, 0, 0), unreachable(71, false, true)),
    ] {
        let found = parse_v4(&packet(kind, code, word, &quoted));
        assert_eq!(found, about(LOCAL, REMOTE, 0x8123_4567, trouble));
    }
}

#[test]
fn messages_of_ipv6_stand_for_linux_errors() {
    for ((kind, code, word), trouble) in [
        ((1, 0, 0), unreachable(101, true, false)),
        ((1, 1, 0), unreachable(13, false, true)),
        ((1, 3, 0), unreachable(113, false, false)),
        ((1, 4, 0), unreachable(111, false, true)),
        ((1, 9, 0), unreachable(71, false, true)),
        ((2, 0, 1280), Trouble::TooBig(1280)),
        ((2, 0, 1 << 20), Trouble::TooBig(u16::MAX)),
        ((3, 0, 0), unreachable(113, false, false)),
        ((4, 0, 0), unreachable(71, false, true)),
    ] {
        let found = parse_v6(&message6(kind, code, word));
        assert_eq!(found, about(LOCAL6, REMOTE6, 9, trouble));
    }
}

#[test]
fn what_is_no_error_of_ours_is_none() {
    let quoted = segment(LOCAL, REMOTE, 1);
    for (kind, code) in [(0, 0), (8, 0), (5, 1), (3, 16)] {
        assert_eq!(parse_v4(&packet(kind, code, 0, &quoted)), None);
    }
    assert_eq!(parse_v6(&message6(128, 0, 0)), None);
    let good = packet(3, 1, 0, &quoted);
    for len in 0..good.len() {
        assert_eq!(parse_v4(&good[..len]), None, "{len} bytes");
    }
    for at in 20..good.len() {
        let mut wrong = good.clone();
        wrong[at] ^= 0x10;
        assert_eq!(parse_v4(&wrong), None, "byte {at}");
    }
    let mut fragment = quoted;
    fragment[7] = 1;
    assert_eq!(parse_v4(&packet(3, 1, 0, &fragment)), None);
    let good = message6(1, 0, 0);
    for len in 0..56 {
        assert_eq!(parse_v6(&good[..len]), None, "{len} bytes");
    }
}
