//! Pushes datagrams into a stack and out of it, over nothing but memory, and prints how many.
//!
//! For instruction counts: `valgrind --tool=callgrind target/release/examples/stack_udp in 100000`
//! (or `out`, or `both`). No time is taken here.
//!
//! Arguments: `in`, `out` or `both`; count of datagrams; payload bytes (default 64); count of other
//! endpoints on the stack (default 0).

use bypass_stack::{
    Capacities, ChunkId, EndpointId, Family, FrameOutcome, Instant, IpAddress, Memory, NextHop,
    RxChecksum, RxFrame, SocketAddress, Stack, UdpOpen, UdpOptions, image_bytes, wire,
};
use zerocopy::IntoBytes;

struct Packets(Vec<u8>);

const CHUNK: usize = 2048;
const BATCH: usize = 32;

impl Memory for Packets {
    fn chunk_size(&self) -> usize {
        CHUNK
    }

    fn chunk(&self, id: ChunkId) -> &[u8] {
        let start = (id.0 as usize).wrapping_mul(CHUNK);
        self.0.get(start..start.wrapping_add(CHUNK)).unwrap_or(&[])
    }

    fn chunk_mut(&mut self, id: ChunkId) -> &mut [u8] {
        let start = (id.0 as usize).wrapping_mul(CHUNK);
        self.0
            .get_mut(start..start.wrapping_add(CHUNK))
            .unwrap_or(&mut [])
    }
}

/// Takes one batch of frames in, as a NIC would have left them in their chunks.
#[inline(never)]
fn receive_batch(stack: &mut Stack<'_>, packets: &mut Packets, chunks: &[ChunkId], len: u32) {
    for chunk in chunks {
        let frame = RxFrame {
            chunk: *chunk,
            offset: 0,
            len,
            queue_pair: 0,
            checksum: RxChecksum::Unknown,
            timestamp_ns: 1,
        };
        let outcome = stack.handle_frame(packets, frame, Instant(1));
        assert!(matches!(outcome, FrameOutcome::Delivered(_)), "{outcome:?}");
    }
}

/// Reads what is queued; gives the bytes' sum as the proof of work.
#[inline(never)]
fn read_batch(stack: &mut Stack<'_>, packets: &Packets, id: EndpointId, into: &mut [u8]) -> u64 {
    let mut sum = 0;
    while let Ok(Some(found)) = stack.udp_front(id) {
        let (from, len) = (found.offset as usize, found.len as usize);
        into[..len].copy_from_slice(&packets.chunk(found.chunk)[from..from + len]);
        sum += len as u64;
        let _ = stack.udp_pop(id);
    }
    sum
}

#[inline(never)]
fn send_batch(
    stack: &mut Stack<'_>,
    packets: &mut Packets,
    id: EndpointId,
    to: SocketAddress,
    via: &NextHop,
    payload: &[u8],
) {
    for _ in 0..BATCH {
        let fill = |into: &mut [u8]| into.copy_from_slice(payload);
        stack
            .udp_send(packets, id, to, via, payload.len(), fill)
            .expect("sent");
    }
}

#[inline(never)]
fn drain(stack: &mut Stack<'_>) -> u64 {
    let mut bytes = 0;
    while let Some(transmit) = stack.poll_transmit(0) {
        bytes += u64::from(transmit.len);
        stack.release_chunk(transmit.chunk);
    }
    bytes
}

#[expect(
    clippy::too_many_lines,
    reason = "a benchmark, from its beginning to its figures"
)]
fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize, otherwise: usize| {
        arguments
            .get(at)
            .and_then(|text| text.parse().ok())
            .unwrap_or(otherwise)
    };
    let what = arguments.get(1).map_or("both", String::as_str);
    let (count, len, others) = (number(2, 100_000), number(3, 64), number(4, 0));

    let caps = Capacities {
        endpoints: (others + 1) as u32,
        chunks: 4 * BATCH as u32,
        chunk_size: CHUNK as u32,
    };
    let mut image = vec![0u64; image_bytes(&caps) / 8];
    let mut stack = Stack::create(image.as_mut_bytes(), caps, 0x5eed).expect("image");
    let mut packets = Packets(vec![0; CHUNK * caps.chunks as usize]);
    let process = stack.add_process(1, 1, 0).expect("process");
    let (us, peer) = (
        IpAddress::from_v4([198, 18, 0, 1]),
        IpAddress::from_v4([198, 18, 0, 2]),
    );
    let open = |stack: &mut Stack<'_>, port| {
        let open = UdpOpen {
            family: Family::V4,
            local: SocketAddress::new(us, port),
            remote: None,
            process,
            options: UdpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        stack.udp_open(&open).expect("endpoint")
    };
    for other in 0..others {
        open(&mut stack, 10_000u16.wrapping_add(other as u16));
    }
    let id = open(&mut stack, 5000);
    let via = NextHop {
        queue_pair: 0,
        neighbour_state: 2,
        mtu: 1500,
        ifindex: 1,
        source: us,
        source_mac: [2; 6],
        mac: [4; 6],
        generation: 1,
    };
    let payload = vec![0x5a; len];
    let mut frame = vec![0; wire::ipv4::ALL + len];
    let headers = wire::Headers {
        source_mac: [4; 6],
        destination_mac: [2; 6],
        source: peer,
        destination: us,
        source_port: 6000,
        destination_port: 5000,
        tos: 0,
        ttl: 64,
        ipv4_id: 1,
        dont_fragment: true,
        checksum: wire::TxChecksum::Whole,
    };
    wire::ipv4::emit(&mut frame, &headers);

    let (mut bytes_in, mut bytes_out) = (0, 0);
    let mut into = vec![0; len];
    for _ in 0..count.div_ceil(BATCH) {
        if what != "out" {
            let mut chunks = [ChunkId::NONE; BATCH];
            for chunk in &mut chunks {
                *chunk = stack.take_chunk().expect("chunk");
                packets.chunk_mut(*chunk)[..frame.len()].copy_from_slice(&frame);
            }
            receive_batch(&mut stack, &mut packets, &chunks, frame.len() as u32);
            bytes_in += read_batch(&mut stack, &packets, id, &mut into);
        }
        if what != "in" {
            let to = SocketAddress::new(peer, 6000);
            send_batch(&mut stack, &mut packets, id, to, &via, &payload);
            bytes_out += drain(&mut stack);
        }
    }
    println!("{what}: {count} datagrams of {len} bytes; {bytes_in} bytes in, {bytes_out} out");
}
