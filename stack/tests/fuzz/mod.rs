//! Bodies of fuzz targets. A cargo-fuzz target calls one of them; the tests replay a corpus and
//! random inputs through them.

use super::common::*;
use bypass_stack::inspect::Image;
use bypass_stack::wire::tcp;
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
    rig.frame_with(frame, flags >> 2, flags & 1 != 0);
    // Where a length or offset lies outside the chunk, that is noticed too.
    let (mut stack, packets) = rig.both();
    let chunk = stack.take_chunk().unwrap();
    let frame = RxFrame {
        chunk,
        offset: u32::from_le_bytes([0, *flags, frame.len() as u8, 0]),
        len: u32::MAX - u32::from(*flags),
        queue_pair: *flags,
        partial_checksums: false,
        timestamp_ns: 0,
    };
    stack.handle_frame(packets, frame, NOW);
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
    let Ok(found) = tcp::parse(&frame, &[0; 6], flags & 2 != 0) else {
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
    };
    let len = tcp::headers_len(found.source.is_v4(), &found.options);
    let mut again = vec![0; len];
    again.extend(payload);
    tcp::emit(&mut again, &headers);
    let mut expected = found;
    expected.payload_offset = len as u16;
    assert_eq!(tcp::parse(&again, &MAC, false), Ok(expected));
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
    exercise(bytes, &mut rig.packets, &ids);
    if let Ok(mut stack) = Stack::attach(bytes) {
        stack.recover(&mut |each| {
            each(ChunkId(3));
            each(ChunkId::NONE);
        });
    }
    check_recovered(bytes);
    exercise(bytes, &mut rig.packets, &ids);
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
                partial_checksums: true,
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
