//! UDP endpoints: receive queue and its limits, send, hairpin, sharing, connect.

mod common;

use bypass_stack::inspect::Image;
use bypass_stack::*;
use common::*;
use zerocopy::IntoBytes;

const LOCAL: &str = "198.18.0.1:5000";
const REMOTE: &str = "198.18.0.2:6000";

fn send(
    rig: &mut Rig,
    id: EndpointId,
    to: SocketAddress,
    via: &NextHop,
    payload: &[u8],
) -> Result<(), SendError> {
    let (mut stack, packets) = rig.both();
    stack.udp_send(packets, id, to, via, payload.len(), |into| {
        into.copy_from_slice(payload)
    })
}

#[test]
fn datagrams_come_out_in_order_and_free_their_chunks() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    for payload in [b"one", b"two"] {
        let outcome = rig.frame(&datagram(at(REMOTE), at(LOCAL), payload));
        assert_eq!(outcome, FrameOutcome::Delivered(id));
    }
    let status = rig.stack().udp_status(id).unwrap();
    assert_eq!(
        (status.queued, status.arrivals, status.queued_bytes),
        (2, 2, 2 * 832)
    );
    assert_eq!(rig.stack().free_chunks(), CAPS.chunks - 2);
    assert_eq!(rig.pop(id).unwrap().0, b"one");
    assert_eq!(rig.pop(id).unwrap().0, b"two");
    assert!(rig.pop(id).is_none());
    let status = rig.stack().udp_status(id).unwrap();
    assert_eq!(
        (status.queued, status.arrivals, status.queued_bytes),
        (0, 2, 0)
    );
    assert_eq!(rig.stack().free_chunks(), CAPS.chunks);
    rig.check();
}

#[test]
fn receive_buffer_limits_and_drops_are_told_with_the_next_datagram() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    rig.stack().udp_options(id).unwrap().rcvbuf_bytes = 2 * 832;
    let frame = datagram(at(REMOTE), at(LOCAL), &[7; 40]);
    assert_eq!(rig.frame(&frame), FrameOutcome::Delivered(id));
    assert_eq!(rig.frame(&frame), FrameOutcome::Delivered(id));
    assert_eq!(
        rig.frame(&frame),
        FrameOutcome::Dropped(DropReason::BufferFull)
    );
    assert_eq!(rig.stack().udp_status(id).unwrap().drops, 1);
    assert_eq!(rig.stack().counters().dropped(DropReason::BufferFull), 1);
    assert_eq!(rig.pop(id).unwrap().1.drops, 0);
    assert_eq!(rig.frame(&frame), FrameOutcome::Delivered(id));
    assert_eq!(rig.pop(id).unwrap().1.drops, 0);
    assert_eq!(rig.pop(id).unwrap().1.drops, 1);
    rig.check();
}

#[test]
fn an_empty_queue_takes_one_datagram_however_small_the_buffer() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    rig.stack().udp_options(id).unwrap().rcvbuf_bytes = 0;
    let frame = datagram(at(REMOTE), at(LOCAL), &[7; 1000]);
    assert_eq!(rig.frame(&frame), FrameOutcome::Delivered(id));
    assert_eq!(
        rig.frame(&frame),
        FrameOutcome::Dropped(DropReason::BufferFull)
    );
}

#[test]
fn one_endpoint_holds_at_most_a_quarter_of_the_chunks() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let frame = datagram(at(REMOTE), at(LOCAL), b"");
    for _ in 0..CAPS.chunks / 4 {
        assert_eq!(rig.frame(&frame), FrameOutcome::Delivered(id));
    }
    assert_eq!(
        rig.frame(&frame),
        FrameOutcome::Dropped(DropReason::ChunkShare)
    );
    rig.check();
}

#[test]
fn sent_frames_are_what_the_test_builds_by_hand() {
    for (local, to, any) in [
        (LOCAL, REMOTE, "0.0.0.0:5000"),
        ("[2001:db8::1]:5000", "[2001:db8::2]:6000", "[::]:5000"),
    ] {
        for bound in [local, any] {
            let mut rig = Rig::new(CAPS);
            let id = rig.open(at(bound), None);
            if bound == any {
                rig.stack().udp_family(id, Family::Dual).unwrap();
            }
            let options = UdpOptions {
                tos: 0x10,
                ttl: 63,
                ..UdpOptions::new()
            };
            *rig.stack().udp_options(id).unwrap() = UdpOptions {
                traffic_class: 0x10,
                hop_limit: 63,
                ..options
            };
            for len in [0, 1, 2, 17, 64, 1000, 1452] {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                send(&mut rig, id, at(to), &via(local), &payload).unwrap();
                let sent = rig.sent(0).unwrap();
                // The same datagram, but with MAC addresses and id as the stack sets them.
                let mut expected = datagram(at(local), at(to), &payload);
                expected[..12].copy_from_slice(&[PEER_MAC, MAC].concat());
                if expected[12] == 8 {
                    expected[18..20].copy_from_slice(&sent[18..20]);
                    fix_ipv4(&mut expected);
                }
                assert_eq!(sent, expected, "{bound} {len}");
            }
            rig.check();
        }
    }
}

#[test]
fn where_checksums_are_completed_the_rest_of_them_is_left_out() {
    for (local, to, field) in [
        (LOCAL, REMOTE, 40),
        ("[2001:db8::1]:5000", "[2001:db8::2]:6000", 60),
    ] {
        let mut rig = Rig::new(CAPS);
        let id = rig.open(at(local), None);
        send(&mut rig, id, at(to), &via(local), b"hello").unwrap();
        let whole = rig.sent(0).unwrap();
        rig.stack().queue_pairs_mut()[0].flags |= QueuePairInfo::COMPLETES_CHECKSUMS;
        send(&mut rig, id, at(to), &via(local), b"hello").unwrap();
        let partial = rig.sent(0).unwrap();
        let mut expected = whole;
        if field == 40 {
            expected[18..20].copy_from_slice(&partial[18..20]);
            fix_ipv4(&mut expected);
        }
        let pseudo = if field == 40 {
            plain_sum(&[&expected[26..34], &[0, 17, 0, 13]])
        } else {
            plain_sum(&[&expected[22..54], &[0, 17, 0, 13]])
        };
        expected[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        assert_eq!(partial, expected);
        // One that the program does not want stays out.
        rig.stack()
            .udp_options(id)
            .unwrap()
            .set(UdpOptions::CHECKSUM_OFF, true);
        send(&mut rig, id, at(to), &via(local), b"hello").unwrap();
        let off = rig.sent(0).unwrap();
        let is_absent = off[field..field + 2] == [0, 0];
        assert_eq!(is_absent, field == 40);
        rig.check();
    }
}

#[test]
fn send_options_act_on_the_header() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    send(&mut rig, id, at(REMOTE), &via(LOCAL), b"x").unwrap();
    let first = rig.sent(0).unwrap();
    assert_eq!((first[15], first[22], first[20] & 0x40), (0, 64, 0x40));
    let (mut stack, _) = rig.both();
    let options = stack.udp_options(id).unwrap();
    options.set(UdpOptions::CHECKSUM_OFF, true);
    options.set(UdpOptions::DONT_FRAGMENT, false);
    send(&mut rig, id, at(REMOTE), &via(LOCAL), b"x").unwrap();
    let second = rig.sent(0).unwrap();
    assert_eq!(second[20] & 0x40, 0);
    assert_eq!(second[40..42], [0, 0]);
    assert_ne!(first[18..20], second[18..20], "another id");
}

#[test]
fn what_cannot_be_sent_is_refused_and_costs_no_chunk() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let hop = via(LOCAL);
    let too_big = vec![0; 1473];
    assert_eq!(
        send(&mut rig, id, at(REMOTE), &hop, &too_big),
        Err(SendError::TooBig)
    );
    assert_eq!(send(&mut rig, id, at(REMOTE), &hop, &too_big[1..]), Ok(()));
    let jumbo = NextHop { mtu: 9000, ..hop };
    let beyond_chunk = vec![0; 2048 - 63];
    assert_eq!(
        send(&mut rig, id, at(REMOTE), &jumbo, &beyond_chunk),
        Err(SendError::TooBig)
    );
    assert_eq!(
        send(&mut rig, id, at(REMOTE), &jumbo, &beyond_chunk[1..]),
        Ok(())
    );
    let huge = vec![0; 70000];
    assert_eq!(
        send(&mut rig, id, at(REMOTE), &jumbo, &huge),
        Err(SendError::TooBig)
    );
    assert_eq!(
        send(&mut rig, id, at("[2001:db8::1]:1"), &hop, b""),
        Err(SendError::Address)
    );
    assert_eq!(
        send(&mut rig, id, at("198.18.0.2:0"), &hop, b""),
        Err(SendError::Address)
    );
    let no_queue = NextHop {
        queue_pair: 32,
        ..hop
    };
    assert_eq!(
        send(&mut rig, id, at(REMOTE), &no_queue, b""),
        Err(SendError::Address)
    );
    assert_eq!(rig.stack().free_chunks(), CAPS.chunks - 2);
    rig.check();
}

#[test]
fn transmit_list_is_first_in_first_out_and_takes_back() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    for byte in 0..3u8 {
        send(&mut rig, id, at(REMOTE), &via(LOCAL), &[byte]).unwrap();
    }
    let mut stack = rig.stack();
    assert!(stack.has_transmit(0) && !stack.has_transmit(1));
    let first = stack.poll_transmit(0).unwrap();
    let second = stack.poll_transmit(0).unwrap();
    stack.untransmit(0, second);
    stack.untransmit(0, first);
    assert_eq!(stack.queue_pairs()[0].tx_packets, 0);
    rig.check();
    for byte in 0..3u8 {
        assert_eq!(*rig.sent(0).unwrap().last().unwrap(), byte);
    }
    assert!(!rig.stack().has_transmit(0));
    assert_eq!(rig.stack().free_chunks(), CAPS.chunks);
}

#[test]
fn sending_without_chunks_says_so() {
    let mut rig = Rig::new(Capacities { chunks: 1, ..CAPS });
    let id = rig.open(at(LOCAL), None);
    send(&mut rig, id, at(REMOTE), &via(LOCAL), b"1").unwrap();
    assert_eq!(
        send(&mut rig, id, at(REMOTE), &via(LOCAL), b"2"),
        Err(SendError::NoChunk)
    );
    rig.sent(0).unwrap();
    send(&mut rig, id, at(REMOTE), &via(LOCAL), b"3").unwrap();
}

#[test]
fn wrong_releases_are_counted_and_ignored() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    let mut stack = rig.stack();
    let queued = stack.udp_front(id).unwrap().unwrap().chunk;
    stack.release_chunk(queued);
    stack.release_chunk(ChunkId::NONE);
    let chunk = stack.take_chunk().unwrap();
    stack.release_chunk(chunk);
    stack.release_chunk(chunk);
    assert_eq!(stack.counters().get(Counter::BadChunk), 2);
    assert_eq!(stack.counters().get(Counter::DoubleRelease), 1);
    rig.check();
    assert_eq!(rig.pop(id).unwrap().0, b"x");
}

#[test]
fn what_the_nic_lost_is_the_only_receivers_drop() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let other = rig.open(at("198.18.0.1:5001"), None);
    rig.stack().note_missed(0, 2);
    assert_eq!(rig.stack().udp_status(id).unwrap().drops, 0);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"first"));
    rig.stack().note_missed(0, 7);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"second"));
    assert_eq!(rig.pop(id).unwrap().1.drops, 0);
    assert_eq!(rig.pop(id).unwrap().1.drops, 5);
    rig.frame(&datagram(at(REMOTE), at("198.18.0.1:5001"), b"other"));
    rig.stack().note_missed(0, 8);
    assert_eq!(rig.stack().udp_status(id).unwrap().drops, 5);
    assert_eq!(rig.stack().udp_status(other).unwrap().drops, 0);
    assert_eq!(rig.stack().queue_pairs()[0].rx_missed, 8);
    // The kernel's number wraps at 2^32; a queue that does not exist changes nothing.
    rig.stack().note_missed(255, 9);
    rig.check();
}

#[test]
fn frames_in_chunks_that_were_not_posted_are_refused() {
    let mut rig = Rig::new(CAPS);
    rig.open(at(LOCAL), None);
    let (mut stack, packets) = rig.both();
    for chunk in [ChunkId(0), ChunkId(64), ChunkId::NONE] {
        let frame = RxFrame {
            chunk,
            offset: 0,
            len: 60,
            queue_pair: 0,
            checksum: RxChecksum::Unknown,
            timestamp_ns: 0,
        };
        let outcome = stack.handle_frame(packets, frame, NOW);
        assert_eq!(outcome, FrameOutcome::Dropped(DropReason::BadChunk));
    }
    rig.check();
}

#[test]
fn connected_beats_bound_beats_any_and_takes_only_its_remote() {
    let mut rig = Rig::new(CAPS);
    let any = rig.open(at("0.0.0.0:5000"), None);
    let bound = rig.open(at(LOCAL), None);
    let connected = rig.open(at(LOCAL), Some(at(REMOTE)));
    let to = |rig: &mut Rig, local, remote| rig.stack().udp_lookup(at(local), at(remote));
    assert_eq!(to(&mut rig, LOCAL, REMOTE), Some(connected));
    assert_eq!(to(&mut rig, LOCAL, "198.18.0.2:6001"), Some(bound));
    assert_eq!(to(&mut rig, LOCAL, "198.18.0.3:6000"), Some(bound));
    assert_eq!(to(&mut rig, "198.18.0.9:5000", REMOTE), Some(any));
    assert_eq!(to(&mut rig, "198.18.0.9:5001", REMOTE), None);
    // Dissolving the association makes it an ordinary one, the youngest of its address.
    rig.stack().udp_rebind(connected, at(LOCAL), None).unwrap();
    assert_eq!(to(&mut rig, LOCAL, "198.18.0.2:6001"), Some(connected));
    rig.stack()
        .udp_rebind(connected, at(LOCAL), Some(at("198.18.0.7:1")))
        .unwrap();
    assert_eq!(to(&mut rig, LOCAL, REMOTE), Some(bound));
    rig.check();
}

#[test]
fn families_take_what_linux_gives_them() {
    let mut rig = Rig::new(CAPS);
    let process = rig.process;
    let open = |rig: &mut Rig, family| {
        let open = UdpOpen {
            family,
            ..udp_open(process, at("[::]:5000"), None)
        };
        rig.stack().udp_open(&open).unwrap()
    };
    let dual = open(&mut rig, Family::Dual);
    let to = |rig: &mut Rig, local, remote| rig.stack().udp_lookup(at(local), at(remote));
    let (local6, remote6) = ("[2001:db8::1]:5000", "[2001:db8::2]:1");
    assert_eq!(to(&mut rig, LOCAL, REMOTE), Some(dual));
    assert_eq!(to(&mut rig, local6, remote6), Some(dual));
    let v6 = open(&mut rig, Family::V6);
    assert_eq!(to(&mut rig, LOCAL, REMOTE), Some(dual));
    assert_eq!(to(&mut rig, local6, remote6), Some(v6));
    let v4 = open(&mut rig, Family::V4);
    let _younger_dual = open(&mut rig, Family::Dual);
    assert_eq!(
        to(&mut rig, LOCAL, REMOTE),
        Some(v4),
        "AF_INET scores above dual"
    );
    rig.check();
}

#[test]
fn device_bound_endpoints_take_their_interface_only() {
    let mut rig = Rig::new(CAPS);
    let open = UdpOpen {
        ifindex: 4,
        ..udp_open(rig.process, at("0.0.0.0:5000"), None)
    };
    let id = rig.stack().udp_open(&open).unwrap();
    let frame = datagram(at(REMOTE), at(LOCAL), b"x");
    let outcome = rig.frame_with(&frame, 0, RxChecksum::Unknown);
    assert_eq!(outcome, FrameOutcome::Dropped(DropReason::NoEndpoint));
    assert_eq!(
        rig.frame_with(&frame, 1, RxChecksum::Unknown),
        FrameOutcome::Delivered(id)
    );
    let plain = rig.open(at("0.0.0.0:5000"), None);
    assert_eq!(
        rig.frame_with(&frame, 1, RxChecksum::Unknown),
        FrameOutcome::Delivered(id)
    );
    assert_eq!(
        rig.frame_with(&frame, 0, RxChecksum::Unknown),
        FrameOutcome::Delivered(plain)
    );
    assert_eq!(rig.pop(id).unwrap().1.queue_pair, 1);
}

#[test]
fn reuse_port_members_share_by_flow() {
    let mut rig = Rig::new(CAPS);
    let options = UdpOptions {
        flags: UdpOptions::REUSE_PORT,
        ..UdpOptions::new()
    };
    let open = UdpOpen {
        options,
        ..udp_open(rig.process, at("0.0.0.0:5000"), None)
    };
    let members: Vec<_> = (0..4)
        .map(|_| rig.stack().udp_open(&open).unwrap())
        .collect();
    let mut share = [0; 4];
    for port in 1..=4000 {
        let remote = SocketAddress::new(at(REMOTE).ip, port);
        let first = rig.stack().udp_lookup(at(LOCAL), remote).unwrap();
        assert_eq!(
            rig.stack().udp_lookup(at(LOCAL), remote),
            Some(first),
            "stable"
        );
        share[members.iter().position(|member| *member == first).unwrap()] += 1;
    }
    assert!(
        share.iter().all(|count| (800..1200).contains(count)),
        "{share:?}"
    );
    // A younger one without the option takes everything.
    let plain = rig.open(at("0.0.0.0:5000"), None);
    assert_eq!(rig.stack().udp_lookup(at(LOCAL), at(REMOTE)), Some(plain));
}

#[test]
fn hairpin_reaches_another_endpoint_without_a_frame() {
    let mut rig = Rig::new(CAPS);
    let from = rig.open(at("0.0.0.0:7000"), None);
    let to = rig.open(at(LOCAL), None);
    let hairpin = |rig: &mut Rig, target: &str| {
        let (mut stack, packets) = rig.both();
        let source = at("198.18.0.1:0").ip;
        let fill = |into: &mut [u8]| into.copy_from_slice(b"self");
        stack.udp_hairpin(packets, from, source, at(target), 4, fill, 5)
    };
    assert_eq!(hairpin(&mut rig, LOCAL), Ok(Hairpin::Delivered));
    let (bytes, found) = rig.pop(to).unwrap();
    assert_eq!(
        (&bytes[..], found.remote),
        (&b"self"[..], at("198.18.0.1:7000"))
    );
    assert_eq!(
        (found.queue_pair, found.timestamp_ns, found.ttl),
        (QUEUE_PAIR_HAIRPIN, 5, 64)
    );
    assert_eq!(hairpin(&mut rig, "198.18.0.1:9"), Ok(Hairpin::NoEndpoint));
    assert_eq!(
        hairpin(&mut rig, "[2001:db8::1]:5000"),
        Err(SendError::Address)
    );
    rig.stack().udp_options(to).unwrap().rcvbuf_bytes = 0;
    assert_eq!(hairpin(&mut rig, LOCAL), Ok(Hairpin::Delivered));
    assert_eq!(hairpin(&mut rig, LOCAL), Ok(Hairpin::Dropped));
    assert_eq!(rig.stack().udp_status(to).unwrap().drops, 1);
    rig.check();
}

#[test]
fn stale_ids_are_refused_everywhere() {
    let mut rig = Rig::new(CAPS);
    let process = rig.process;
    let old = rig.open(at(LOCAL), None);
    assert!(rig.stack().unhold(old, process));
    let new = rig.open(at(LOCAL), None);
    assert_eq!((new.index, new.generation), (old.index, old.generation + 1));
    let hop = via(LOCAL);
    assert_eq!(
        send(&mut rig, old, at(REMOTE), &hop, b""),
        Err(SendError::Stale)
    );
    let mut stack = rig.stack();
    assert!(!stack.is_live(old) && stack.is_live(new));
    assert_eq!(stack.udp_front(old), Err(Stale));
    assert_eq!(stack.udp_pop(old), Err(Stale));
    assert_eq!(stack.udp_status(old), Err(Stale));
    assert_eq!(stack.udp_rebind(old, at(LOCAL), None), Err(Stale));
    assert!(stack.udp_options(old).is_err());
    assert!(!stack.unhold(old, process));
    assert_eq!(stack.holders(old), [0, 0]);
    rig.check();
}

#[test]
fn a_full_slab_refuses_and_recovers_after_a_close() {
    let mut rig = Rig::new(Capacities {
        endpoints: 2,
        ..CAPS
    });
    let first = rig.open(at("0.0.0.0:1"), None);
    rig.open(at("0.0.0.0:2"), None);
    let open = udp_open(rig.process, at("0.0.0.0:3"), None);
    assert_eq!(rig.stack().udp_open(&open), Err(OpenError::Full));
    let process = rig.process;
    assert!(rig.stack().unhold(first, process));
    assert!(rig.stack().udp_open(&open).is_ok());
    let stranger = UdpOpen {
        process: ProcessId(77),
        ..open
    };
    assert_eq!(rig.stack().udp_open(&stranger), Err(OpenError::NoProcess));
    rig.check();
}

#[test]
fn an_unbound_endpoint_is_in_no_table_until_it_is_bound() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(SocketAddress::UNSPECIFIED, None);
    rig.check();
    assert_eq!(
        rig.stack()
            .udp_lookup(SocketAddress::UNSPECIFIED, at(REMOTE)),
        None
    );
    rig.stack().udp_rebind(id, at("[::]:5000"), None).unwrap();
    assert_eq!(rig.stack().udp_lookup(at(LOCAL), at(REMOTE)), Some(id));
    rig.check();
}

#[test]
fn every_frame_is_accounted_for() {
    let mut rig = Rig::new(CAPS);
    rig.open(at(LOCAL), None);
    for port in [5000, 5001, 0, 5000] {
        let to = SocketAddress::new(at(LOCAL).ip, port);
        rig.frame(&datagram(at(REMOTE), to, b"x"));
    }
    let image = Image::attach(rig.words.as_bytes()).unwrap();
    let received = image.counter(Counter::DatagramsReceived);
    assert_eq!(
        image.queue_pairs()[0].rx_packets,
        received + image.counters().dropped_in_all()
    );
    assert_eq!(image.endpoints().count(), 1);
    assert_eq!(image.chunks().queued, 2);
    let endpoint = image.endpoints().next().unwrap();
    assert_eq!((endpoint.rx_datagrams, endpoint.local), (2, at(LOCAL)));
    assert_eq!(image.queued(endpoint.id).count(), 2);
}
