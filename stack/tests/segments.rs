//! TCP segments in frames made by hand: what is found in them, why they are refused, and the bytes
//! that are written.

mod common;

use bypass_stack::wire::TxChecksum;
use bypass_stack::wire::tcp::{self, Headers, Options, SackBlock, Segment, Timestamps, flags};
use bypass_stack::{DropReason, RxChecksum};
use common::*;

const LOCAL: &str = "198.18.0.1:5000";
const REMOTE: &str = "198.18.0.2:6000";
const LOCAL6: &str = "[2001:db8::1]:5000";
const REMOTE6: &str = "[2001:db8::2]:6000";

/// NOP, NOP, timestamps 0x01020304 and 0x05060708.
const STAMPS: [u8; 12] = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
const STAMPS_VALUE: Timestamps = Timestamps {
    value: 0x0102_0304,
    echo: 0x0506_0708,
};

fn fields() -> TcpFields<'static> {
    TcpFields {
        seq: 0x8123_4567,
        ack: 0xfedc_ba98,
        flags: flags::ACK | flags::PSH,
        window: 0xabcd,
        urgent: 0x0102,
        options: &STAMPS,
        payload: b"hello",
    }
}

fn good() -> Vec<u8> {
    tcp_frame(at(REMOTE), at(LOCAL), &fields())
}

fn good6() -> Vec<u8> {
    tcp_frame(at(REMOTE6), at(LOCAL6), &fields())
}

fn parse(frame: &[u8]) -> Result<Segment, DropReason> {
    tcp::parse(frame, &MAC, RxChecksum::Unknown)
}

#[track_caller]
fn dropped(frame: &[u8], reason: DropReason) {
    assert_eq!(parse(frame), Err(reason), "{}", reason.sentence());
}

/// A good frame with bytes changed at a place, both checksums right.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    fix_ipv4(&mut frame);
    fix_tcp(&mut frame);
    frame
}

fn changed6(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good6();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    fix_tcp(&mut frame);
    frame
}

/// The options found in a segment with these flags.
fn options(flags: u16, bytes: &[u8]) -> Options {
    let fields = TcpFields {
        flags,
        options: bytes,
        ..fields()
    };
    let found = parse(&tcp_frame(at(REMOTE), at(LOCAL), &fields)).unwrap();
    assert_eq!(usize::from(found.payload_offset), 54 + bytes.len());
    assert_eq!(found.payload_len, 5);
    found.options
}

#[test]
fn good_segments_are_found_with_all_their_facts() {
    for (from, to, frame, offset) in [(REMOTE, LOCAL, good(), 66), (REMOTE6, LOCAL6, good6(), 86)] {
        assert!(tcp::is_tcp(&frame));
        let found = parse(&frame).unwrap();
        let expected = Segment {
            source: at(from).ip,
            destination: at(to).ip,
            source_port: 6000,
            destination_port: 5000,
            source_mac: PEER_MAC,
            seq: 0x8123_4567,
            ack: 0xfedc_ba98,
            flags: flags::ACK | flags::PSH,
            window: 0xabcd,
            urgent: 0x0102,
            tos: 0x10,
            ttl: 63,
            payload_offset: offset,
            payload_len: 5,
            options: Options {
                timestamps: Some(STAMPS_VALUE),
                ..Options::default()
            },
        };
        assert_eq!(found, expected);
        // Padding behind the packet is not payload; the MAC address of nobody is anybody's.
        let padded = [&frame[..], &[9; 7]].concat();
        assert_eq!(
            tcp::parse(&padded, &[0; 6], RxChecksum::Unknown),
            Ok(expected)
        );
    }
}

#[test]
fn every_flag_and_no_reserved_bit_is_found() {
    for bit in 0..12 {
        let fields = TcpFields {
            flags: 1 << bit,
            ..fields()
        };
        let found = parse(&tcp_frame(at(REMOTE), at(LOCAL), &fields)).unwrap();
        assert_eq!(found.flags, if bit < 9 { 1 << bit } else { 0 });
    }
    let names = [
        flags::FIN,
        flags::SYN,
        flags::RST,
        flags::PSH,
        flags::ACK,
        flags::URG,
        flags::ECE,
        flags::CWR,
        flags::AE,
    ];
    for (bit, flag) in names.into_iter().enumerate() {
        assert_eq!(flag, 1 << bit);
    }
}

#[test]
fn ip_reasons() {
    dropped(&good()[..13], DropReason::Truncated);
    dropped(&good()[..33], DropReason::Truncated);
    dropped(&good6()[..53], DropReason::Truncated);
    dropped(&changed(0, &[2, 0, 0, 0, 0, 9]), DropReason::OtherHost);
    dropped(&changed(12, &[0x81, 0]), DropReason::Vlan);
    dropped(&changed(12, &[8, 6]), DropReason::EtherType);
    dropped(&changed(14, &[0x65]), DropReason::IpVersion);
    dropped(&changed(14, &[0x44]), DropReason::IpHeaderLength);
    dropped(&changed(14, &[0x46]), DropReason::IpOptions);
    dropped(&changed(16, &[0, 39]), DropReason::IpLength);
    dropped(&changed(16, &[0, 58]), DropReason::IpLength);
    dropped(&changed(20, &[0x20, 0]), DropReason::Fragment);
    dropped(&changed(20, &[0, 1]), DropReason::Fragment);
    dropped(&changed(22, &[0]), DropReason::IpTtl);
    dropped(&changed(23, &[17]), DropReason::Protocol);
    dropped(&changed(26, &[127]), DropReason::MartianSource);
    dropped(&changed(30, &[224]), DropReason::MartianDestination);
    let mut frame = good();
    frame[24] ^= 1;
    dropped(&frame, DropReason::IpChecksum);
    dropped(&changed6(14, &[0x45]), DropReason::IpVersion);
    dropped(&changed6(18, &[0, 19]), DropReason::IpLength);
    dropped(&changed6(18, &[0, 38]), DropReason::IpLength);
    dropped(&changed6(20, &[44]), DropReason::Fragment);
    dropped(&changed6(20, &[60]), DropReason::ExtensionHeader);
    dropped(&changed6(20, &[17]), DropReason::Protocol);
    dropped(&changed6(21, &[0]), DropReason::IpTtl);
    dropped(&changed6(22, &[0xff]), DropReason::MartianSource);
    dropped(&changed6(38, &[0xff, 2]), DropReason::MartianDestination);
}

#[test]
fn tcp_reasons() {
    // A data offset of 4 words, and one of 10 in a segment of 37 bytes.
    dropped(&changed(46, &[0x40]), DropReason::TcpHeader);
    dropped(&changed(46, &[0xa0]), DropReason::TcpHeader);
    dropped(&changed6(66, &[0x40]), DropReason::TcpHeader);
    assert!(
        parse(&changed(46, &[0x90])).is_ok(),
        "options up to the end"
    );
    dropped(&changed(36, &[0, 0]), DropReason::ZeroPort);
    assert!(parse(&changed(34, &[0, 0])).is_ok(), "source port 0");
    dropped(&changed(0, &[0xff; 6]), DropReason::NotUnicast);
    dropped(&changed(0, &[0x33, 0x33]), DropReason::NotUnicast);
    dropped(&changed(30, &[255; 4]), DropReason::NotUnicast);
}

#[test]
fn every_flipped_bit_behind_the_ethernet_header_is_noticed() {
    for (frame, free) in [(good(), vec![]), (good6(), vec![14, 15, 16, 17, 21])] {
        for bit in 14 * 8..frame.len() * 8 {
            if free.contains(&(bit / 8)) {
                continue;
            }
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 0x80 >> (bit % 8);
            assert!(parse(&flipped).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_checksum_that_the_card_found_right_is_not_looked_at() {
    for (mut frame, field) in [(good(), 50), (good6(), 70)] {
        frame[field] ^= 1;
        dropped(&frame, DropReason::ChecksumBad);
        assert!(tcp::parse(&frame, &MAC, RxChecksum::Good).is_ok());
    }
    let mut frame = good();
    frame[24] ^= 1;
    let found = tcp::parse(&frame, &MAC, RxChecksum::Good);
    assert_eq!(found, Err(DropReason::IpChecksum));
}

#[test]
fn partial_checksums_are_accepted_only_where_announced() {
    for (mut frame, field) in [(good(), 50), (good6(), 70)] {
        let sum = if field == 50 {
            plain_sum(&[&frame[26..34], &[0, 6, 0, 37]])
        } else {
            plain_sum(&[&frame[22..54], &[0, 6, 0, 37]])
        };
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        dropped(&frame, DropReason::ChecksumBad);
        assert!(tcp::parse(&frame, &MAC, RxChecksum::Partial).is_ok());
        frame[field] ^= 1;
        assert_eq!(
            tcp::parse(&frame, &MAC, RxChecksum::Partial),
            Err(DropReason::ChecksumBad)
        );
    }
    // Complete ones stay right where partial ones are announced.
    assert!(tcp::parse(&good(), &MAC, RxChecksum::Partial).is_ok());
}

#[test]
fn only_tcp_looks_like_tcp() {
    assert!(!tcp::is_tcp(&datagram(at(REMOTE), at(LOCAL), b"")));
    assert!(!tcp::is_tcp(&datagram(at(REMOTE6), at(LOCAL6), b"")));
    assert!(!tcp::is_tcp(&good()[..23]));
    assert!(!tcp::is_tcp(&changed(12, &[0x81, 0])));
}

#[test]
fn options_of_a_syn() {
    let linux = [
        2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7,
    ];
    let all = Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some(STAMPS_VALUE),
        ..Options::default()
    };
    assert_eq!(options(flags::SYN, &linux), all);
    // BSD's order, with NOPs elsewhere and an end before the padding.
    let bsd = [
        2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 4, 2, 0, 0,
    ];
    assert_eq!(options(flags::SYN, &bsd), all);
    // Elsewhere only timestamps count.
    let later = Options {
        timestamps: Some(STAMPS_VALUE),
        ..Options::default()
    };
    assert_eq!(options(flags::ACK, &linux), later);
    assert_eq!(options(flags::SYN, &STAMPS), later);
    assert_eq!(options(flags::ACK, &[]), Options::default());
}

#[test]
fn values_that_cannot_be() {
    let found = options(flags::SYN, &[2, 4, 0, 0, 1, 3, 3, 15]);
    assert_eq!(found.mss, None);
    assert_eq!(found.window_scale, Some(14));
    // The last of equal options counts.
    let found = options(flags::SYN, &[2, 4, 0, 9, 2, 4, 0, 8]);
    assert_eq!(found.mss, Some(8));
}

#[test]
fn malformed_options_end_the_reading() {
    let with_mss = Some(1460);
    for (bytes, mss) in [
        // Wrong lengths are skipped over.
        (&[2, 3, 5, 2, 4, 5, 180, 0][..], with_mss),
        (
            &[3, 2, 8, 4, 1, 1, 4, 4, 9, 9, 2, 4, 5, 180, 0, 0],
            with_mss,
        ),
        // Unknown kinds too.
        (&[77, 4, 2, 2, 2, 4, 5, 180], with_mss),
        (&[254, 6, 0xf9, 0x89, 1, 1, 2, 4, 5, 180, 0, 0], with_mss),
        // Length 0 or 1, no length, or behind the end: nothing more is read.
        (&[77, 0, 1, 1, 2, 4, 5, 180], None),
        (&[77, 1, 1, 1, 2, 4, 5, 180], None),
        (&[2, 4, 5, 180, 1, 1, 1, 8], with_mss),
        (&[1, 1, 1, 77, 6, 4, 5, 180], None),
        (&[1, 2, 4, 5], None),
        // End of options.
        (&[0, 1, 1, 1, 2, 4, 5, 180], None),
    ] {
        let found = options(flags::SYN, bytes);
        assert_eq!(found, Options { mss, ..found }, "{bytes:?}");
        assert_eq!(found.timestamps, None, "{bytes:?}");
        assert_eq!(found.window_scale, None, "{bytes:?}");
        assert!(!found.sack_permitted, "{bytes:?}");
    }
}

#[test]
fn sack_blocks() {
    let block = |n: u32| SackBlock {
        left: n << 24 | 1,
        right: n << 24 | 2,
    };
    for count in 1..=4u8 {
        let mut bytes = vec![1, 1, 5, 2 + 8 * count];
        for n in 1..=count {
            bytes.extend([n, 0, 0, 1, n, 0, 0, 2]);
        }
        let found = options(flags::ACK, &bytes);
        let expected: Vec<_> = (1..=u32::from(count)).map(block).collect();
        assert_eq!(found.sack_blocks(), expected);
        // A length that is no number of blocks: no blocks.
        bytes[3] -= 1;
        assert_eq!(options(flags::ACK, &bytes), Options::default());
    }
    // Three blocks behind timestamps.
    let mut bytes = STAMPS.to_vec();
    bytes.extend([1, 1, 5, 26]);
    for n in 1..=3u8 {
        bytes.extend([n, 0, 0, 1, n, 0, 0, 2]);
    }
    let found = options(flags::ACK, &bytes);
    assert_eq!(found.sack_blocks(), [block(1), block(2), block(3)]);
    assert_eq!(found.timestamps, Some(STAMPS_VALUE));
}

/// Headers that say what [`fields`] says, in the same direction.
fn headers(from: &str, to: &str, options: Options) -> Headers {
    let fields = fields();
    Headers {
        source_mac: PEER_MAC,
        destination_mac: MAC,
        source: at(from).ip,
        destination: at(to).ip,
        source_port: at(from).port,
        destination_port: at(to).port,
        seq: fields.seq,
        ack: fields.ack,
        flags: fields.flags,
        window: fields.window,
        urgent: fields.urgent,
        tos: 0x10,
        ttl: 63,
        ipv4_id: 7,
        options,
        checksum: TxChecksum::Whole,
    }
}

/// Writes a frame with these options, and compares it with one made by hand whose options are
/// `bytes`.
#[track_caller]
fn written(flags: u16, options: Options, bytes: &[u8]) {
    for (from, to) in [(REMOTE, LOCAL), (REMOTE6, LOCAL6)] {
        for payload in [&b""[..], b"x", b"hello", &[0xee; 1448]] {
            let headers = Headers {
                flags,
                ..headers(from, to, options)
            };
            let is_v4 = headers.source.is_v4();
            let mut frame = vec![0x55; tcp::headers_len(is_v4, &options)];
            frame.extend(payload);
            tcp::emit(&mut frame, &headers);
            let expected = TcpFields {
                flags,
                options: bytes,
                payload,
                ..fields()
            };
            let mut expected = tcp_frame(at(from), at(to), &expected);
            if !is_v4 {
                expected[14..16].copy_from_slice(&[0x61, 0]);
            }
            assert_eq!(frame, expected);
        }
    }
    assert_eq!(tcp::options_len(&options), bytes.len());
}

#[test]
fn the_bytes_that_are_written() {
    let stamps = Some(STAMPS_VALUE);
    let none = Options::default();
    written(flags::ACK, none, &[]);
    let plain = Options {
        timestamps: stamps,
        ..none
    };
    written(flags::ACK | flags::PSH | flags::AE, plain, &STAMPS);
    let syn = Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: stamps,
        ..none
    };
    let bytes = [
        2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7,
    ];
    written(flags::SYN, syn, &bytes);
    let no_stamps = Options {
        timestamps: None,
        ..syn
    };
    let bytes = [2, 4, 5, 180, 1, 1, 4, 2, 1, 3, 3, 7];
    written(flags::SYN | flags::ACK, no_stamps, &bytes);
    let no_sack = Options {
        sack_permitted: false,
        window_scale: None,
        ..syn
    };
    written(
        flags::SYN,
        no_sack,
        &[&[2, 4, 5, 180], &STAMPS[..]].concat(),
    );
}

#[test]
fn as_many_sack_blocks_are_written_as_fit() {
    let mut sack = [SackBlock::default(); 4];
    let mut bytes = Vec::new();
    for (n, block) in sack.iter_mut().enumerate() {
        (block.left, block.right) = (n as u32, 10 + n as u32);
        bytes.extend([0, 0, 0, n as u8, 0, 0, 0, 10 + n as u8]);
    }
    let four = Options {
        sack,
        sack_count: 4,
        ..Options::default()
    };
    written(flags::ACK, four, &[&[1, 1, 5, 34], &bytes[..]].concat());
    let with_stamps = Options {
        timestamps: Some(STAMPS_VALUE),
        ..four
    };
    let expected = [&STAMPS[..], &[1, 1, 5, 26], &bytes[..24]].concat();
    written(flags::ACK, with_stamps, &expected);
    // A count that lies is cut.
    let lies = Options {
        sack_count: 200,
        ..four
    };
    written(flags::ACK, lies, &[&[1, 1, 5, 34], &bytes[..]].concat());
}

#[test]
fn a_frame_too_short_for_its_headers_is_left_alone() {
    let options = Options {
        timestamps: Some(STAMPS_VALUE),
        ..Options::default()
    };
    for (from, to) in [(REMOTE, LOCAL), (REMOTE6, LOCAL6)] {
        let headers = headers(from, to, options);
        let len = tcp::headers_len(headers.source.is_v4(), &options);
        for short in 0..len {
            let mut frame = vec![0x55; short];
            tcp::emit(&mut frame, &headers);
            assert!(frame.iter().all(|byte| *byte == 0x55));
        }
    }
}
