//! Bodies of fuzz targets. A cargo-fuzz target calls one of them; the tests replay a corpus and
//! random inputs through them.

pub mod connections;

use super::common::*;
use bypass_stack::inspect::Image;
use bypass_stack::wire::{TxChecksum, icmp, tcp};
use bypass_stack::*;
use zerocopy::IntoBytes;

/// The input is one frame, behind one byte of flags. Must not panic, and leaves a sound image.
pub fn fuzz_frame(data: &[u8]) {
    let Some((flags, frame)) = data.split_first() else {
        return;
    };
    let frame = &frame[..frame.len().min(1790)];
    let mut rig = Rig::new(CAPS);
    rig.open(at("[::]:5000"), None);
    rig.open(at("198.18.0.1:5000"), Some(at("198.18.0.2:6000")));
    rig.frame_with(frame, flags >> 2, known(flags & 1 != 0));
    // Where a length or offset lies outside the chunk, that is noticed too.
    let (mut stack, packets) = rig.both();
    let chunk = stack.take_chunk().unwrap();
    let frame = RxFrame {
        chunk,
        offset: u32::from_le_bytes([0, *flags, frame.len() as u8, 0]),
        len: u32::MAX - u32::from(*flags),
        queue_pair: *flags,
        checksum: RxChecksum::Unknown,
        timestamp_ns: 0,
    };
    stack.handle_frame(packets, frame, NOW);
    rig.check();
}

/// The input is an ICMP error as a raw socket gives it, of either family; its checksum is made
/// right, so that what is behind it is read. What it quotes is told a stack, whatever it is.
pub fn fuzz_icmp(data: &[u8]) {
    let mut right = data.to_vec();
    let header = data.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    if let Some([high, low]) = right.get_mut(header..).and_then(|rest| rest.get_mut(2..4)) {
        (*high, *low) = (0, 0);
        let sum = plain_sum(&[&right[header..]]).to_be_bytes();
        right[header + 2..header + 4].copy_from_slice(&sum);
    }
    let mut rig = Rig::new(CAPS);
    rig.open(at("198.18.0.1:5000"), None);
    for bytes in [data, &right] {
        for error in [icmp::parse_v4(bytes), icmp::parse_v6(bytes)]
            .into_iter()
            .flatten()
        {
            assert!(bytes.len() > 8 + 20, "it quotes a packet with ports");
            let (mut stack, packets) = rig.both();
            assert!(
                !stack.tcp_icmp(packets, &error, NOW),
                "nobody has a connection"
            );
        }
    }
    rig.check();
}

/// The input is one TCP frame, behind one byte of flags. Must not panic; a segment that is found
/// lies inside the frame, and written again it is found again.
pub fn fuzz_segment(data: &[u8]) {
    let Some((flags, frame)) = data.split_first() else {
        return;
    };
    let mut frame = frame.to_vec();
    if flags & 1 != 0 {
        // Or hardly any input would come behind the checksum.
        fix_tcp(&mut frame);
    }
    let Ok(found) = tcp::parse(&frame, &[0; 6], known(flags & 2 != 0)) else {
        return;
    };
    assert!(tcp::is_tcp(&frame));
    let start = usize::from(found.payload_offset);
    let payload = &frame[start..start + usize::from(found.payload_len)];
    assert!(found.options.sack_blocks().len() == usize::from(found.options.sack_count));
    assert!(found.options.window_scale.unwrap_or(0) <= 14);
    assert!(found.options.mss != Some(0));
    let headers = tcp::Headers {
        source_mac: found.source_mac,
        destination_mac: MAC,
        source: found.source,
        destination: found.destination,
        source_port: found.source_port,
        destination_port: found.destination_port,
        seq: found.seq,
        ack: found.ack,
        flags: found.flags,
        window: found.window,
        urgent: found.urgent,
        tos: found.tos,
        ttl: found.ttl,
        ipv4_id: 1,
        options: found.options,
        checksum: TxChecksum::Whole,
    };
    let len = tcp::headers_len(found.source.is_v4(), &found.options);
    let mut again = vec![0; len];
    again.extend(payload);
    tcp::emit(&mut again, &headers);
    let mut expected = found;
    expected.payload_offset = len as u16;
    assert_eq!(tcp::parse(&again, &MAC, RxChecksum::Unknown), Ok(expected));
}

/// The input overwrites bytes of an image in use (three bytes of place, one of value, each), then
/// every call is made on it, before and after a recovery. Must not panic and must end; after
/// the recovery the image is sound.
pub fn fuzz_image(data: &[u8]) {
    let caps = Capacities {
        endpoints: 8,
        chunks: 16,
        chunk_size: 2048,
    };
    let mut rig = Rig::new(caps);
    let ids = [
        rig.open(at("[::]:5000"), None),
        rig.open(at("198.18.0.1:5000"), None),
        rig.open(at("198.18.0.1:5000"), Some(at("198.18.0.2:6000"))),
        rig.open(at("[::]:5001"), None),
    ];
    exercise(rig.words.as_mut_bytes(), &mut rig.packets, &ids);
    exercise_tcp(rig.words.as_mut_bytes(), &mut rig.packets, &ids, 1);
    let bytes = rig.words.as_mut_bytes();
    for change in data.chunks_exact(4) {
        let place = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let len = bytes.len();
        bytes[place % len] = change[3];
    }
    if let Ok(image) = Image::attach(bytes) {
        look(&image);
    }
    let Ok(stack) = Stack::attach(bytes) else {
        return;
    };
    // The sizes may be other valid ones now, if the image is still long enough for them.
    if stack.capacities() != caps {
        return;
    }
    let ids: Vec<_> = (0..9)
        .flat_map(|index| (0..3).map(move |generation| EndpointId { index, generation }))
        .chain(ids)
        .collect();
    exercise_tcp(bytes, &mut rig.packets, &ids, 2);
    exercise(bytes, &mut rig.packets, &ids);
    if let Ok(mut stack) = Stack::attach(bytes) {
        stack.recover(&mut rig.packets, &mut |each| {
            each(ChunkId(3));
            each(ChunkId::NONE);
        });
    }
    check_recovered(bytes);
    exercise(bytes, &mut rig.packets, &ids);
    exercise_tcp(bytes, &mut rig.packets, &ids, 3);
}

/// After a recovery every list is sound, whatever was there.
fn check_recovered(bytes: &mut [u8]) {
    let image = Image::attach(bytes).unwrap();
    image.check(&mut |problem| panic!("{problem:?}"));
    let Ok(mut stack) = Stack::attach(bytes) else {
        return;
    };
    for process in 0..=u8::MAX {
        stack.remove_process(ProcessId(process));
    }
}

/// Reads everything that a view shows.
fn look(image: &Image<'_>) {
    let mut problems = 0u32;
    image.check(&mut |problem| problems += u32::from(!problem.to_string().is_empty()));
    for endpoint in image.endpoints() {
        let _ = format!("{endpoint:?} {}", image.queued(endpoint.id).count());
        assert!(image.endpoint(endpoint.id).is_some());
    }
    let _ = image.processes().count() + image.waiters().count();
    let _ = (
        image.chunks(),
        image.queue_pairs(),
        image.last_frame(),
        image.transmit_count(3),
    );
}

/// Makes every call of a stack.
#[expect(clippy::too_many_lines, reason = "a table of calls")]
fn exercise(bytes: &mut [u8], packets: &mut Packets, ids: &[EndpointId]) {
    let Ok(mut stack) = Stack::attach(bytes) else {
        return;
    };
    let (local, remote) = (at("198.18.0.1:5000"), at("198.18.0.2:6000"));
    let process = stack.add_process(1, 1, 1).unwrap_or(ProcessId(3));
    let waiter = stack.add_waiter(process).unwrap_or(WaiterId(200));
    let watcher = stack.add_watcher(process).unwrap_or(WatcherId(130));
    stack.park_watcher(watcher, waiter);
    let mut taken = Vec::new();
    for id in ids {
        stack.hold(*id, process);
        stack.park(*id, waiter);
        if id.index % 3 != 0 {
            stack.unwatch(*id, WatcherId(id.index as u8));
        }
        stack.watch(*id, watcher);
        let _ = stack.readiness(*id);
        let _ = stack.udp_lookup(local, remote);
        if let Some(chunk) = stack.take_chunk() {
            let frame = datagram(remote, local, b"abc");
            if let Some(room) = packets.chunk_mut(chunk).get_mut(..frame.len()) {
                room.copy_from_slice(&frame);
            }
            let frame = RxFrame {
                chunk,
                offset: 0,
                len: frame.len() as u32,
                queue_pair: 0,
                checksum: RxChecksum::Partial,
                timestamp_ns: 1,
            };
            stack.handle_frame(packets, frame, NOW);
        }
        let hop = via("198.18.0.1:1");
        let _ = stack.udp_send(packets, *id, remote, &hop, 9, |into| into.fill(1));
        let _ = stack.udp_hairpin(packets, *id, local.ip, local, 9, |into| into.fill(1), 1);
        let _ = stack.udp_status(*id);
        let _ = stack
            .udp_front(*id)
            .map(|found| found.map(|f| packets.chunk(f.chunk).len()));
        if id.index % 2 == 0 {
            let _ = stack.udp_pop(*id);
            let _ = stack.udp_rebind(*id, local, Some(remote));
        }
        if let Some(transmit) = stack.poll_transmit(0) {
            taken.push(transmit);
        }
        let _ = (stack.holders(*id), stack.is_live(*id), stack.take_wakeups());
        let _ = stack
            .udp_options(*id)
            .map(|options| options.rcvbuf_bytes = 10_000);
    }
    for number in 0..=u8::MAX {
        let ready = stack.ready_count(WatcherId(number)).min(100);
        for _ in 0..ready {
            let taken = stack.take_ready(WatcherId(number));
            if let (Some(id), true) = (taken, number % 2 == 0) {
                stack.return_ready(id, WatcherId(number));
            }
        }
    }
    stack.unpark_watcher(watcher, waiter);
    for (index, transmit) in taken.into_iter().enumerate() {
        if index % 2 == 0 {
            stack.untransmit(0, transmit);
        } else {
            stack.release_chunk(transmit.chunk);
            stack.release_chunk(transmit.chunk);
        }
    }
    if let Some(child) = stack.fork_process(process) {
        stack.remove_process(child);
    }
    if let Ok(id) = stack.udp_open(&udp_open(process, at("[::]:5002"), None)) {
        stack.unpark(id, waiter);
        stack.unhold(id, process);
    }
    stack.remove_waiter(waiter);
    stack.remove_watcher(watcher);
    stack.remove_process(process);
}

/// Makes every TCP call of a stack, with a listener, a connection each way, data in and out of
/// order, and timers. `round` makes the peers' ports new ones.
#[expect(clippy::too_many_lines, reason = "a table of calls")]
fn exercise_tcp(bytes: &mut [u8], packets: &mut Packets, ids: &[EndpointId], round: u16) {
    let Ok(mut stack) = Stack::attach(bytes) else {
        return;
    };
    let process = stack.add_process(2, 1, 1).unwrap_or(ProcessId(4));
    let (local, remote) = (at("198.18.0.1:80"), at("198.18.0.2:9000"));
    let open = TcpOpen {
        family: Family::V4,
        local,
        process,
        options: TcpOptions::new(),
        shadow_cookie: 1,
        ifindex: 0,
    };
    let hop = via("198.18.0.1:1");
    let listener = stack.tcp_listen(&open, 2).unwrap_or(EndpointId::NONE);
    let peer = SocketAddress::new(remote.ip, remote.port + round);
    let client = stack
        .tcp_connect(packets, &open, peer, &hop, NOW)
        .unwrap_or(EndpointId::NONE);
    let mut ours = next_sent(&mut stack, packets).map_or(0, |sent| sent.seq);
    segment(
        &mut stack,
        packets,
        peer,
        (100, ours.wrapping_add(1)),
        18,
        0,
    );
    let peer = SocketAddress::new(remote.ip, remote.port + 100 + round);
    segment(&mut stack, packets, peer, (200, 0), 2, 0);
    while let Some(sent) = next_sent(&mut stack, packets) {
        if sent.destination_port == peer.port {
            ours = sent.seq;
        }
    }
    segment(
        &mut stack,
        packets,
        peer,
        (201, ours.wrapping_add(1)),
        16,
        100,
    );
    let server = stack.tcp_accept(listener, process, 3).ok().flatten();
    let server = server.unwrap_or(EndpointId::NONE);
    let mut all: Vec<_> = ids.iter().copied().step_by(5).collect();
    all.extend([listener, client, server]);
    for (nth, id) in all.iter().enumerate() {
        let now = Instant(nth as u64 * 300_000_000 + u64::from(round) * 7_000_000_000);
        let seq = 301 + 100 * (nth as u32 % 5);
        segment(
            &mut stack,
            packets,
            peer,
            (seq, ours.wrapping_add(1)),
            16,
            100,
        );
        call_all(&mut stack, packets, *id, (process, nth), now);
        stack.run_timers(packets, now);
        stack.flush(packets, now);
        while next_sent(&mut stack, packets).is_some() {}
        while stack.take_flow_change().is_some() {}
        while stack.take_ended().is_some() {}
    }
    segment(
        &mut stack,
        packets,
        peer,
        (301, ours.wrapping_add(1)),
        17,
        0,
    );
    for id in all {
        stack.tcp_close(packets, id, process, NOW);
        while next_sent(&mut stack, packets).is_some() {}
    }
    stack.run_timers(packets, Instant(u64::from(round) * 900_000_000_000));
    stack.remove_process(process);
    stack.flush(packets, NOW);
}

/// Every call on one endpoint.
fn call_all(
    stack: &mut Stack<'_>,
    packets: &mut Packets,
    id: EndpointId,
    (process, nth): (ProcessId, usize),
    now: Instant,
) {
    let _ = (
        stack.tcp_status(id),
        stack.tcp_info(id, now),
        stack.readiness(id),
    );
    let _ = stack.tcp_send(packets, id, 3000, nth % 3 == 0, &mut |p| p.fill(2), now);
    let mut read = 0;
    while let Ok(Some(span)) = stack.tcp_front(id, read) {
        read += (span.len as usize).clamp(1, 4096);
        if read > 100_000 {
            break;
        }
    }
    let _ = stack.tcp_consume(id, read / (1 + nth % 2), now);
    if let Ok(options) = stack.tcp_options(id) {
        options.set(TcpOptions::KEEPALIVE | TcpOptions::NODELAY, nth % 2 == 0);
    }
    stack.tcp_options_changed(packets, id, now);
    stack.tcp_unreachable(id, (113, nth % 2 == 0), None, now);
    let _ = (stack.tcp_readable(id), stack.tcp_take_error(id));
    let _ = stack.tcp_socket_error(id);
    let _ = (stack.tcp_backlog(id, 3), stack.has_flush());
    let _ = (stack.tcp_accept(id, process, 4), stack.next_deadline());
    match nth % 4 {
        0 => drop(stack.tcp_shutdown(packets, id, Shutdown::Write, now)),
        1 => drop(stack.tcp_shutdown(packets, id, Shutdown::Both, now)),
        2 => stack.tcp_abort(packets, id, now),
        _ => {}
    }
}

/// The peer sends a segment with timestamps and one SACK block.
fn segment(
    stack: &mut Stack<'_>,
    packets: &mut Packets,
    peer: SocketAddress,
    (seq, ack): (u32, u32),
    flags: u16,
    len: usize,
) {
    let Some(chunk) = stack.take_chunk() else {
        return;
    };
    let mut options = vec![8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 5, 10];
    options.extend(ack.wrapping_add(10).to_be_bytes());
    options.extend(ack.wrapping_add(1000).to_be_bytes());
    let fields = TcpFields {
        seq,
        ack,
        flags,
        window: 1000,
        urgent: 0,
        options: &options,
        payload: &vec![3; len],
    };
    let frame = tcp_frame(peer, at("198.18.0.1:80"), &fields);
    if let Some(room) = packets.chunk_mut(chunk).get_mut(200..200 + frame.len()) {
        room.copy_from_slice(&frame);
    }
    let frame = RxFrame {
        chunk,
        offset: 200,
        len: frame.len() as u32,
        queue_pair: 0,
        checksum: RxChecksum::Partial,
        timestamp_ns: 1,
    };
    stack.handle_frame(packets, frame, NOW);
}

/// Takes the next frame off the stack.
fn next_sent(stack: &mut Stack<'_>, packets: &Packets) -> Option<tcp::Segment> {
    let sent = stack.poll_transmit(0)?;
    let start = sent.offset as usize;
    let bytes = packets.chunk(sent.chunk);
    let frame = bytes.get(start..start + sent.len as usize).unwrap_or(&[]);
    let found = tcp::parse(frame, &PEER_MAC, RxChecksum::Unknown);
    stack.release_chunk(sent.chunk);
    // One that a corrupted image has spoilt is any other.
    let other = || {
        let fields = TcpFields::default();
        let frame = tcp_frame(at("198.18.0.2:1"), at("198.18.0.1:1"), &fields);
        tcp::parse(&frame, &MAC, RxChecksum::Partial).unwrap()
    };
    Some(found.unwrap_or_else(|_| other()))
}
