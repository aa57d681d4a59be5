//! Requests and responses over TCP between two stacks, over nothing but memory.
//!
//! For instruction counts: `valgrind --tool=callgrind target/release/examples/stack_tcp 100000`.
//! No time is taken here; the clock is virtual: 20 us per exchange, and less for more than a
//! thousand connections, so that each of them is asked every 20 ms at the latest. Its timers have
//! the same to do then, however many there are.
//!
//! Arguments: count of requests; bytes of request and response (default 32); count of connections
//! that take turns (default 1).

use bypass_stack::{
    Capacities, ChunkId, EndpointId, Family, Instant, IpAddress, Memory, NextHop, ProcessId,
    RxChecksum, RxFrame, SocketAddress, Stack, TcpOpen, TcpOptions, image_bytes,
};
use zerocopy::IntoBytes;

struct Packets(Vec<u8>);

const CHUNK: usize = 2048;
/// Connections of one port of the server.
const PORTS: usize = 60_000;
/// Nanoseconds between two exchanges, and the most between two of one connection.
const PACE_NS: u64 = 20_000;
const TURN_NS: u64 = 20_000_000;

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

struct Side<'a> {
    stack: Stack<'a>,
    packets: Packets,
    process: ProcessId,
}

impl<'a> Side<'a> {
    fn new(image: &'a mut [u64], caps: Capacities) -> Self {
        let mut stack = Stack::create(image.as_mut_bytes(), caps, 0x5eed).expect("image");
        let process = stack.add_process(1, 1, 0).expect("process");
        for info in stack.queue_pairs_mut() {
            info.mtu = 1500;
        }
        Self {
            stack,
            packets: Packets(vec![0; CHUNK * caps.chunks as usize]),
            process,
        }
    }

    fn open(&self, ip: IpAddress, port: u16) -> TcpOpen {
        let mut options = TcpOptions::new();
        options.set(TcpOptions::NODELAY, true);
        TcpOpen {
            family: Family::V4,
            local: SocketAddress::new(ip, port),
            process: self.process,
            options,
            shadow_cookie: 0,
            ifindex: 0,
        }
    }

    #[inline(never)]
    fn send(&mut self, id: EndpointId, payload: &[u8], now: Instant) {
        let mut rest = payload;
        let mut fill = |into: &mut [u8]| {
            let (piece, behind) = rest.split_at(into.len());
            into.copy_from_slice(piece);
            rest = behind;
        };
        let (stack, packets) = (&mut self.stack, &mut self.packets);
        let sent = stack.tcp_send(packets, id, payload.len(), false, &mut fill, now);
        assert_eq!(sent, Ok(payload.len()));
    }

    #[inline(never)]
    fn receive(&mut self, id: EndpointId, into: &mut [u8], now: Instant) -> usize {
        let mut got = 0;
        let mut next = self.stack.tcp_front(id, got);
        while let Ok(Some(span)) = next {
            let (from, len) = (span.offset as usize, span.len as usize);
            let chunk = self.packets.chunk(span.chunk);
            into[got..got + len].copy_from_slice(&chunk[from..from + len]);
            got += len;
            next = self.stack.tcp_behind(id, &span, got);
        }
        self.stack.tcp_consume(id, got, now).expect("live");
        got
    }
}

/// Carries what one side sends to the other.
#[inline(never)]
fn carry(from: &mut Side<'_>, to: &mut Side<'_>, now: Instant) -> usize {
    let mut frames = 0;
    while let Some(sent) = from.stack.poll_transmit(0) {
        let chunk = to.stack.take_chunk().expect("chunk");
        let start = sent.offset as usize;
        let bytes = &from.packets.chunk(sent.chunk)[start..start + sent.len as usize];
        to.packets.chunk_mut(chunk)[..bytes.len()].copy_from_slice(bytes);
        from.stack.release_chunk(sent.chunk);
        let frame = RxFrame {
            chunk,
            offset: 0,
            len: sent.len,
            queue_pair: 0,
            checksum: RxChecksum::Unknown,
            timestamp_ns: 1,
        };
        to.stack.handle_frame(&mut to.packets, frame, now);
        frames += 1;
    }
    frames
}

/// Lets both sides do what is due until nothing is on its way.
fn quiet(client: &mut Side<'_>, server: &mut Side<'_>, now: Instant) {
    while carry(client, server, now) + carry(server, client, now) > 0 {
        client.stack.flush(&mut client.packets, now);
        server.stack.flush(&mut server.packets, now);
        while client.stack.take_flow_change().is_some() {}
        while server.stack.take_flow_change().is_some() {}
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "a benchmark, from its beginning to its figures"
)]
fn main() {
    let number = |at: usize, otherwise: usize| {
        std::env::args()
            .nth(at)
            .and_then(|text| text.parse().ok())
            .unwrap_or(otherwise)
    };
    let (count, len, connections) = (number(1, 100_000), number(2, 32), number(3, 1));
    let caps = Capacities {
        endpoints: (connections + connections / PORTS) as u32 + 2,
        // A response is kept until the next request acknowledges it.
        chunks: (connections as u32).saturating_mul(2).max(4096),
        chunk_size: CHUNK as u32,
    };
    let (mut one, mut two) = (
        vec![0_u64; image_bytes(&caps) / 8],
        vec![0_u64; image_bytes(&caps) / 8],
    );
    let mut client = Side::new(&mut one, caps);
    let mut server = Side::new(&mut two, caps);
    let (us, them) = (
        IpAddress::from_v4([198, 18, 0, 1]),
        IpAddress::from_v4([198, 18, 0, 2]),
    );
    let listeners: Vec<EndpointId> = (0..=connections / PORTS)
        .map(|nth| {
            let listen = server.open(them, 80 + nth as u16);
            server.stack.tcp_listen(&listen, 65_535).expect("listener")
        })
        .collect();
    let via = NextHop {
        queue_pair: 0,
        neighbour_state: 2,
        mtu: 1500,
        ifindex: 1,
        source: us,
        source_mac: [0; 6],
        mac: [0; 6],
        generation: 1,
    };
    let mut now = Instant(1_000_000_000);
    let mut pairs = Vec::new();
    for nth in 0..connections {
        let open = client.open(us, 1024 + (nth % PORTS) as u16);
        let remote = SocketAddress::new(them, 80 + (nth / PORTS) as u16);
        let id = client
            .stack
            .tcp_connect(&mut client.packets, &open, remote, &via, now)
            .expect("connect");
        quiet(&mut client, &mut server, now);
        let process = server.process;
        let listener = listeners[nth / PORTS];
        let peer = server.stack.tcp_accept(listener, process, 0).expect("live");
        pairs.push((id, peer.expect("accepted")));
    }
    let (request, mut into) = (vec![0x5a; len], vec![0; len]);
    let mut bytes = 0;
    let pace = PACE_NS.min(TURN_NS / connections as u64);
    for nth in 0..count {
        now = Instant(now.0 + pace);
        let (id, peer) = pairs[nth % pairs.len()];
        client.send(id, &request, now);
        carry(&mut client, &mut server, now);
        bytes += server.receive(peer, &mut into, now);
        server.send(peer, &into, now);
        server.stack.flush(&mut server.packets, now);
        carry(&mut server, &mut client, now);
        bytes += client.receive(id, &mut into, now);
        client.stack.flush(&mut client.packets, now);
        client.stack.run_timers(&mut client.packets, now);
        server.stack.run_timers(&mut server.packets, now);
    }
    let more = Capacities {
        endpoints: caps.endpoints + (1 << 20),
        ..caps
    };
    let each = (image_bytes(&more) - image_bytes(&caps)) >> 20;
    println!("{each} bytes of the image per connection");
    println!("{count} requests and responses of {len} bytes, {bytes} bytes received");
}
