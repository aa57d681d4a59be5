//! What the tests share: an image and packet memory in vectors, and frames made by hand.

#![allow(dead_code, reason = "every test file uses another part of it")]
#![allow(
    clippy::allow_attributes,
    reason = "an expectation would fail in some test files"
)]

use bypass_stack::inspect::Image;
use bypass_stack::*;
use zerocopy::IntoBytes;

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const NOW: Instant = Instant(1);

/// Packet memory in a vector.
#[derive(Debug, Clone)]
pub struct Packets {
    pub bytes: Vec<u8>,
    pub size: usize,
    /// How many segments and writes have taken TCP's short way.
    pub short_ways: usize,
}

impl Packets {
    pub fn new(caps: &Capacities) -> Self {
        let size = caps.chunk_size as usize;
        Self {
            bytes: vec![0; size * caps.chunks as usize],
            size,
            short_ways: 0,
        }
    }
}

impl Memory for Packets {
    fn chunk_size(&self) -> usize {
        self.size
    }

    fn chunk(&self, id: ChunkId) -> &[u8] {
        let start = (id.0 as usize).saturating_mul(self.size);
        self.bytes.get(start..start + self.size).unwrap_or(&[])
    }

    fn chunk_mut(&mut self, id: ChunkId) -> &mut [u8] {
        let start = (id.0 as usize).saturating_mul(self.size);
        self.bytes
            .get_mut(start..start + self.size)
            .unwrap_or(&mut [])
    }

    fn note_short_way(&mut self) {
        self.short_ways += 1;
    }
}

/// Zeroed, aligned bytes for an image.
pub fn image_words(caps: &Capacities) -> Vec<u64> {
    vec![0; image_bytes(caps) / 8]
}

/// A stack with one live queue pair, and one process.
#[derive(Debug)]
pub struct Rig {
    pub words: Vec<u64>,
    pub packets: Packets,
    pub process: ProcessId,
}

pub const CAPS: Capacities = Capacities {
    endpoints: 16,
    chunks: 64,
    chunk_size: 2048,
};

impl Rig {
    pub fn new(caps: Capacities) -> Self {
        let mut words = image_words(&caps);
        let mut stack = Stack::create(words.as_mut_bytes(), caps, 0x1234_5678_9abc_def1).unwrap();
        let process = stack.add_process(100, 1, 0).unwrap();
        for (queue_pair, info) in stack.queue_pairs_mut().iter_mut().take(2).enumerate() {
            info.ifindex = 3 + queue_pair as u32;
            info.mac = MAC;
            info.mtu = 1500;
            info.flags = QueuePairInfo::LIVE;
        }
        stack.bump_queue_pairs();
        Self {
            words,
            packets: Packets::new(&caps),
            process,
        }
    }

    pub fn stack(&mut self) -> Stack<'_> {
        Stack::attach(self.words.as_mut_bytes()).unwrap()
    }

    /// The stack and the packet memory, to use together.
    pub fn both(&mut self) -> (Stack<'_>, &mut Packets) {
        (
            Stack::attach(self.words.as_mut_bytes()).unwrap(),
            &mut self.packets,
        )
    }

    /// Somebody died with the lock; these chunks are in rings.
    pub fn recover(&mut self, in_rings: &[ChunkId]) {
        let (mut stack, packets) = self.both();
        stack.recover(packets, &mut |each| {
            in_rings.iter().for_each(|chunk| each(*chunk))
        });
    }

    /// Opens an endpoint with the default options.
    pub fn open(&mut self, local: SocketAddress, remote: Option<SocketAddress>) -> EndpointId {
        let open = udp_open(self.process, local, remote);
        self.stack().udp_open(&open).unwrap()
    }

    /// Gives the stack a frame in a fresh chunk.
    pub fn frame(&mut self, bytes: &[u8]) -> FrameOutcome {
        self.frame_with(bytes, 0, RxChecksum::Unknown)
    }

    pub fn frame_with(
        &mut self,
        bytes: &[u8],
        queue_pair: u8,
        checksum: RxChecksum,
    ) -> FrameOutcome {
        let (mut stack, packets) = self.both();
        receive(&mut stack, packets, bytes, queue_pair, checksum)
    }

    /// The first frame to send, as bytes; its chunk is released.
    pub fn sent(&mut self, queue_pair: u8) -> Option<Vec<u8>> {
        let (mut stack, packets) = self.both();
        let transmit = stack.poll_transmit(queue_pair)?;
        let chunk = packets.chunk(transmit.chunk);
        let bytes =
            chunk[transmit.offset as usize..(transmit.offset + transmit.len) as usize].to_vec();
        stack.release_chunk(transmit.chunk);
        Some(bytes)
    }

    /// Takes the payload at the head of an endpoint's queue.
    pub fn pop(&mut self, id: EndpointId) -> Option<(Vec<u8>, Datagram)> {
        let (mut stack, packets) = self.both();
        let found = stack.udp_front(id).unwrap()?;
        let chunk = packets.chunk(found.chunk);
        let bytes = chunk[found.offset as usize..(found.offset + found.len) as usize].to_vec();
        stack.udp_pop(id).unwrap();
        Some((bytes, found))
    }

    /// Panics if the image has a problem.
    pub fn check(&self) {
        let problems = problems(self.words.as_bytes());
        assert!(problems.is_empty(), "{problems:?}");
    }
}

/// What is known where checksums may be partial, and where not.
pub fn known(partial: bool) -> RxChecksum {
    if partial {
        RxChecksum::Partial
    } else {
        RxChecksum::Unknown
    }
}

/// Gives a stack a frame in a fresh chunk.
pub fn receive(
    stack: &mut Stack<'_>,
    packets: &mut Packets,
    bytes: &[u8],
    queue_pair: u8,
    checksum: RxChecksum,
) -> FrameOutcome {
    give(stack, packets, bytes, (queue_pair, checksum), NOW).unwrap()
}

/// The same on queue pair 0 at any time; `None` when there is no chunk for it.
pub fn receive_at(
    stack: &mut Stack<'_>,
    packets: &mut Packets,
    bytes: &[u8],
    now: Instant,
) -> Option<FrameOutcome> {
    give(stack, packets, bytes, (0, RxChecksum::Unknown), now)
}

fn give(
    stack: &mut Stack<'_>,
    packets: &mut Packets,
    bytes: &[u8],
    (queue_pair, checksum): (u8, RxChecksum),
    now: Instant,
) -> Option<FrameOutcome> {
    let chunk = stack.take_chunk()?;
    let offset = 256usize.min(packets.size - bytes.len());
    packets.chunk_mut(chunk)[offset..offset + bytes.len()].copy_from_slice(bytes);
    let frame = RxFrame {
        chunk,
        offset: offset as u32,
        len: bytes.len() as u32,
        queue_pair,
        checksum,
        timestamp_ns: 77,
    };
    Some(stack.handle_frame(packets, frame, now))
}

/// Problems of an image, as text.
pub fn problems(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    Image::attach(bytes)
        .unwrap()
        .check(&mut |problem| found.push(problem.to_string()));
    found
}

pub fn udp_open(
    process: ProcessId,
    local: SocketAddress,
    remote: Option<SocketAddress>,
) -> UdpOpen {
    let family = if local.ip.is_v4() {
        Family::V4
    } else {
        Family::Dual
    };
    UdpOpen {
        family,
        local,
        remote,
        process,
        options: UdpOptions::new(),
        shadow_cookie: 9,
        ifindex: 0,
    }
}

/// An IPv4 socket address from text.
pub fn at(text: &str) -> SocketAddress {
    let parsed: std::net::SocketAddr = text.parse().unwrap();
    SocketAddress::new(parsed.ip().into(), parsed.port())
}

/// The next hop to the peer on queue pair 0.
pub fn via(source: &str) -> NextHop {
    NextHop {
        queue_pair: 0,
        neighbour_state: cplane::neighbour_state::REACHABLE,
        mtu: 1500,
        ifindex: 3,
        source: at(source).ip,
        source_mac: MAC,
        mac: PEER_MAC,
        generation: 1,
    }
}

/// Ones' complement sum as RFC 1071 writes it, two bytes at a time: the oracle.
pub fn plain_sum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A frame with a UDP datagram from the peer to us, made without the crate's own code.
pub fn datagram(from: SocketAddress, to: SocketAddress, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut udp = Vec::new();
    udp.extend(from.port.to_be_bytes());
    udp.extend(to.port.to_be_bytes());
    udp.extend(len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut frame = [MAC, PEER_MAC].concat();
    if let (Some(source), Some(destination)) = (from.ip.to_v4(), to.ip.to_v4()) {
        let pseudo = [&source[..], &destination, &[0, 17], &len.to_be_bytes()].concat();
        udp_checksum(&mut udp, &pseudo);
        frame.extend([8, 0]);
        let mut ip = vec![0x45, 0x10];
        ip.extend((20 + len).to_be_bytes());
        ip.extend([0, 7, 0x40, 0, 63, 17, 0, 0]);
        ip.extend(source);
        ip.extend(destination);
        let sum = !plain_sum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
    } else {
        let pseudo = [
            &from.ip.0[..],
            &to.ip.0,
            &[0, 0],
            &len.to_be_bytes(),
            &[0, 0, 0, 17],
        ];
        udp_checksum(&mut udp, &pseudo.concat());
        frame.extend([0x86, 0xdd, 0x61, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([17, 63]);
        frame.extend(from.ip.0);
        frame.extend(to.ip.0);
    }
    frame.extend(udp);
    frame
}

fn udp_checksum(udp: &mut [u8], pseudo: &[u8]) {
    let sum = match !plain_sum(&[pseudo, udp]) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// What a hand-made TCP segment says.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpFields<'a> {
    pub seq: u32,
    pub ack: u32,
    pub flags: u16,
    pub window: u16,
    pub urgent: u16,
    /// A multiple of 4 bytes.
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

/// A frame with a TCP segment from the peer to us, made without the crate's own code. TOS is 0x10,
/// TTL 63, the IPv4 identification 7 with DF.
pub fn tcp_frame(from: SocketAddress, to: SocketAddress, fields: &TcpFields<'_>) -> Vec<u8> {
    let len = (20 + fields.options.len() + fields.payload.len()) as u16;
    let offset = (5 + fields.options.len() / 4) as u16;
    let mut tcp = Vec::new();
    tcp.extend(from.port.to_be_bytes());
    tcp.extend(to.port.to_be_bytes());
    tcp.extend(fields.seq.to_be_bytes());
    tcp.extend(fields.ack.to_be_bytes());
    tcp.extend((offset << 12 | fields.flags).to_be_bytes());
    tcp.extend(fields.window.to_be_bytes());
    tcp.extend([0, 0]);
    tcp.extend(fields.urgent.to_be_bytes());
    tcp.extend(fields.options);
    tcp.extend(fields.payload);
    let mut frame = [MAC, PEER_MAC].concat();
    let pseudo = if let (Some(source), Some(destination)) = (from.ip.to_v4(), to.ip.to_v4()) {
        frame.extend([8, 0]);
        let mut ip = vec![0x45, 0x10];
        ip.extend((20 + len).to_be_bytes());
        ip.extend([0, 7, 0x40, 0, 63, 6, 0, 0]);
        ip.extend(source);
        ip.extend(destination);
        let sum = !plain_sum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        [&source[..], &destination, &[0, 6], &len.to_be_bytes()].concat()
    } else {
        frame.extend([0x86, 0xdd, 0x61, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([6, 63]);
        frame.extend(from.ip.0);
        frame.extend(to.ip.0);
        [&from.ip.0[..], &to.ip.0, &[0, 6], &len.to_be_bytes()].concat()
    };
    let sum = !plain_sum(&[&pseudo, &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame.extend(tcp);
    frame
}

/// Makes the checksum of a TCP frame over IPv4 or IPv6 right again, if it is long enough.
pub fn fix_tcp(frame: &mut [u8]) {
    let (start, addresses) = if frame.get(12) == Some(&8) {
        (34, 26..34)
    } else {
        (54, 22..54)
    };
    if frame.len() < start + 20 {
        return;
    }
    frame[start + 16..start + 18].fill(0);
    let len = (frame.len() - start) as u16;
    let sum = !plain_sum(&[
        &frame[addresses],
        &[0, 6],
        &len.to_be_bytes(),
        &frame[start..],
    ]);
    frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Makes the IPv4 header checksum of a frame right again.
pub fn fix_ipv4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = !plain_sum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// xorshift64*: small, seeded, the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
