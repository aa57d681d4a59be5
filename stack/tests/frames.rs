//! Every way a frame can end: delivered as the bytes say, or dropped for exactly one reason.

mod common;

use bypass_stack::{DropReason, FrameOutcome, Memory as _, RxChecksum, RxFrame};
use common::*;

const LOCAL: &str = "198.18.0.1:5000";
const REMOTE: &str = "198.18.0.2:6000";
const LOCAL6: &str = "[2001:db8::1]:5000";
const REMOTE6: &str = "[2001:db8::2]:6000";

fn good() -> Vec<u8> {
    datagram(at(REMOTE), at(LOCAL), b"hello")
}

fn good6() -> Vec<u8> {
    datagram(at(REMOTE6), at(LOCAL6), b"hello6")
}

/// The outcome of a frame for a stack with an endpoint on port 5000 of both families.
fn outcome(frame: &[u8]) -> FrameOutcome {
    let mut rig = Rig::new(CAPS);
    rig.open(at("[::]:5000"), None);
    let outcome = rig.frame(frame);
    rig.check();
    outcome
}

#[track_caller]
fn dropped(frame: &[u8], reason: DropReason) {
    assert_eq!(
        outcome(frame),
        FrameOutcome::Dropped(reason),
        "{}",
        reason.sentence()
    );
}

/// A good frame with bytes changed at a place, IPv4 header checksum right.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    fix_ipv4(&mut frame);
    frame
}

fn changed6(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good6();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn good_datagrams_are_delivered_with_all_their_facts() {
    for (from, to, frame) in [(REMOTE, LOCAL, good()), (REMOTE6, LOCAL6, good6())] {
        let mut rig = Rig::new(CAPS);
        let id = rig.open(at("[::]:5000"), None);
        assert_eq!(rig.frame(&frame), FrameOutcome::Delivered(id));
        let (bytes, found) = rig.pop(id).unwrap();
        assert!(bytes.starts_with(b"hello"));
        assert_eq!((found.remote, found.local), (at(from), at(to).ip));
        assert_eq!((found.tos, found.ttl, found.queue_pair), (0x10, 63, 0));
        assert_eq!((found.timestamp_ns, found.drops), (77, 0));
        rig.check();
    }
}

/// A device, or who writes into its ring, says where a frame lies: it may not lie in the chunk.
#[test]
fn a_frame_longer_than_its_chunk_is_dropped() {
    let size = CAPS.chunk_size;
    let whole = datagram(at(REMOTE), at(LOCAL), &vec![7; size as usize - 42]);
    let cases = [
        (0, size, true),
        (0, size + 1, false),
        (256, size - 256 + 1, false),
        (size, 1, false),
        (u32::MAX, size, false),
        (0, u32::MAX, false),
    ];
    for (offset, len, is_whole) in cases {
        let mut rig = Rig::new(CAPS);
        let id = rig.open(at(LOCAL), None);
        let (mut stack, packets) = rig.both();
        let free = stack.free_chunks();
        let chunk = stack.take_chunk().unwrap();
        packets.chunk_mut(chunk).copy_from_slice(&whole);
        let frame = RxFrame {
            chunk,
            offset,
            len,
            queue_pair: 0,
            checksum: RxChecksum::Unknown,
            timestamp_ns: 0,
        };
        let outcome = stack.handle_frame(packets, frame, NOW);
        if is_whole {
            assert_eq!(outcome, FrameOutcome::Delivered(id));
        } else {
            let expected = FrameOutcome::Dropped(DropReason::Truncated);
            assert_eq!(outcome, expected, "{len} bytes from {offset}");
            assert_eq!(stack.free_chunks(), free);
        }
        rig.check();
    }
}

#[test]
fn padding_behind_the_datagram_is_ignored() {
    for mut frame in [good(), good6()] {
        frame.extend([0xee; 20]);
        assert!(matches!(outcome(&frame), FrameOutcome::Delivered(_)));
    }
}

#[test]
fn udp_length_below_the_ip_payload_is_trimmed() {
    let mut frame = datagram(at(REMOTE), at(LOCAL), b"hell");
    frame.extend(b"more");
    let total = u16::from_be_bytes([frame[16], frame[17]]) + 4;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    fix_ipv4(&mut frame);
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at("0.0.0.0:5000"), None);
    assert_eq!(rig.frame(&frame), FrameOutcome::Delivered(id));
    assert_eq!(rig.pop(id).unwrap().0, b"hell");
}

#[test]
fn every_shorter_frame_is_dropped() {
    for frame in [good(), good6()] {
        for len in 0..frame.len() {
            assert!(
                matches!(outcome(&frame[..len]), FrameOutcome::Dropped(_)),
                "{len}"
            );
        }
    }
    dropped(&good()[..13], DropReason::Truncated);
    dropped(&good()[..20], DropReason::Truncated);
    dropped(&good6()[..61], DropReason::Truncated);
}

#[test]
fn ethernet_reasons() {
    dropped(&changed(0, &[2, 9, 9, 9, 9, 9]), DropReason::OtherHost);
    assert!(matches!(
        outcome(&changed(0, &[0xff; 6])),
        FrameOutcome::Delivered(_)
    ));
    dropped(&changed(12, &[0x81, 0x00]), DropReason::Vlan);
    dropped(&changed(12, &[0x88, 0xa8]), DropReason::Vlan);
    dropped(&changed(12, &[0x08, 0x06]), DropReason::EtherType);
}

#[test]
fn ipv4_reasons() {
    dropped(&changed(14, &[0x65]), DropReason::IpVersion);
    dropped(&changed(14, &[0x44]), DropReason::IpHeaderLength);
    dropped(&changed(14, &[0x46]), DropReason::IpOptions);
    dropped(&changed(16, &[0, 27]), DropReason::IpLength);
    dropped(&changed(16, &[0, 34]), DropReason::IpLength);
    dropped(&changed(16, &[0xff, 0xff]), DropReason::IpLength);
    dropped(&changed(20, &[0x20, 0]), DropReason::Fragment);
    dropped(&changed(20, &[0, 1]), DropReason::Fragment);
    dropped(&changed(22, &[0]), DropReason::IpTtl);
    dropped(&changed(23, &[1]), DropReason::Protocol);
    for source in [[0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        dropped(&changed(26, &source), DropReason::MartianSource);
    }
    for destination in [[0, 0, 0, 0], [127, 0, 0, 1], [239, 1, 1, 1]] {
        dropped(&changed(30, &destination), DropReason::MartianDestination);
    }
    let mut frame = good();
    frame[24] ^= 1;
    dropped(&frame, DropReason::IpChecksum);
}

#[test]
fn ipv6_reasons() {
    dropped(&changed6(14, &[0x45]), DropReason::IpVersion);
    dropped(&changed6(18, &[0, 7]), DropReason::IpLength);
    dropped(&changed6(18, &[0, 15]), DropReason::IpLength);
    dropped(&changed6(20, &[44]), DropReason::Fragment);
    for extension in [0, 43, 60, 51] {
        dropped(&changed6(20, &[extension]), DropReason::ExtensionHeader);
    }
    dropped(&changed6(20, &[58]), DropReason::Protocol);
    dropped(&changed6(21, &[0]), DropReason::IpTtl);
    dropped(&changed6(22, &[0xff]), DropReason::MartianSource);
    dropped(&changed6(22, &[0; 16]), DropReason::MartianSource);
    dropped(&changed6(22, &at(REMOTE).ip.0), DropReason::MartianSource);
    dropped(&changed6(38, &[0xff, 2]), DropReason::MartianDestination);
    dropped(
        &changed6(38, &at("[::1]:1").ip.0),
        DropReason::MartianDestination,
    );
}

#[test]
fn udp_reasons() {
    dropped(&changed(38, &[0, 7]), DropReason::UdpLength);
    dropped(&changed(38, &[0, 14]), DropReason::UdpLength);
    dropped(&changed(36, &[0, 0]), DropReason::ZeroPort);
    dropped(&changed(36, &[0, 1, 0, 13]), DropReason::ChecksumBad);
    dropped(&changed6(60, &[0, 0]), DropReason::ChecksumMissing);
    dropped(
        &datagram(at(REMOTE), at("198.18.0.1:5001"), b""),
        DropReason::NoEndpoint,
    );
    // No checksum is allowed over IPv4, source port 0 too.
    assert!(matches!(
        outcome(&changed(40, &[0, 0])),
        FrameOutcome::Delivered(_)
    ));
    let anonymous = datagram(at("198.18.0.2:0"), at(LOCAL), b"x");
    assert!(matches!(outcome(&anonymous), FrameOutcome::Delivered(_)));
}

#[test]
fn every_flipped_bit_behind_the_ethernet_header_is_noticed() {
    // Except in fields that no checksum covers: the traffic class, flow label and hop limit of
    // IPv6, and the hop limit is checked against zero only.
    for (frame, free) in [(good(), vec![]), (good6(), vec![14, 15, 16, 17, 21])] {
        for bit in 14 * 8..frame.len() * 8 {
            if free.contains(&(bit / 8)) {
                continue;
            }
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 0x80 >> (bit % 8);
            assert!(
                matches!(outcome(&flipped), FrameOutcome::Dropped(_)),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn a_checksum_that_the_card_found_right_is_not_looked_at() {
    for (mut frame, header, checksum) in [(good(), 24, 40), (good6(), 20, 60)] {
        frame[checksum] ^= 1;
        let mut rig = Rig::new(CAPS);
        rig.open(at("[::]:5000"), None);
        let mut outcome = |frame: &[u8], known| rig.frame_with(frame, 0, known);
        let bad = FrameOutcome::Dropped(DropReason::ChecksumBad);
        assert_eq!(outcome(&frame, RxChecksum::Unknown), bad);
        assert!(matches!(
            outcome(&frame, RxChecksum::Good),
            FrameOutcome::Delivered(_)
        ));
        // Cards differ in what the sum of a datagram with bytes behind it is.
        let length = checksum - 2;
        frame[length + 1] -= 1;
        assert_eq!(outcome(&frame, RxChecksum::Good), bad);
        frame[length + 1] += 1;
        // It is of the transport only, and one that is absent cannot be right over IPv6.
        if frame[12] == 8 {
            frame[header] ^= 1;
            let bad = FrameOutcome::Dropped(DropReason::IpChecksum);
            assert_eq!(outcome(&frame, RxChecksum::Good), bad);
        } else {
            frame[checksum..checksum + 2].fill(0);
            let missing = FrameOutcome::Dropped(DropReason::ChecksumMissing);
            assert_eq!(outcome(&frame, RxChecksum::Good), missing);
        }
        rig.check();
    }
}

#[test]
fn partial_checksums_are_accepted_only_where_announced() {
    for mut frame in [good(), good6()] {
        let (checksum, sum) = if frame[12] == 8 {
            (40, plain_sum(&[&frame[26..34], &[0, 17], &frame[38..40]]))
        } else {
            (60, plain_sum(&[&frame[22..54], &[0, 17], &frame[58..60]]))
        };
        frame[checksum..checksum + 2].copy_from_slice(&sum.to_be_bytes());
        let mut rig = Rig::new(CAPS);
        rig.open(at("[::]:5000"), None);
        let outcome = rig.frame_with(&frame, 0, RxChecksum::Unknown);
        assert_eq!(outcome, FrameOutcome::Dropped(DropReason::ChecksumBad));
        assert!(matches!(
            rig.frame_with(&frame, 0, RxChecksum::Partial),
            FrameOutcome::Delivered(_)
        ));
        frame[checksum] ^= 1;
        let outcome = rig.frame_with(&frame, 0, RxChecksum::Partial);
        assert_eq!(outcome, FrameOutcome::Dropped(DropReason::ChecksumBad));
        // Complete ones are good there as well.
        let complete = if checksum == 40 { good() } else { good6() };
        assert!(matches!(
            rig.frame_with(&complete, 0, RxChecksum::Partial),
            FrameOutcome::Delivered(_)
        ));
        rig.check();
    }
}

#[test]
fn every_reason_has_a_sentence_and_a_name_of_its_own() {
    let names: std::collections::HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), DropReason::ALL.len());
    assert!(
        DropReason::ALL
            .iter()
            .all(|reason| reason.sentence().ends_with('.'))
    );
    assert!(
        bypass_stack::Counter::ALL
            .iter()
            .all(|counter| counter.sentence().ends_with('.'))
    );
}
