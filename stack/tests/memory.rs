//! What an idle connection takes of an image.

mod common;

use bypass_stack::wire::tcp::flags;
use bypass_stack::*;
use common::{Rig, TcpFields, at, receive_at, tcp_frame};
use zerocopy::IntoBytes;

const CONNECTIONS: u32 = 100_000;
const NOW: Instant = Instant(1_000_000_000);
/// Bytes that the kernel gives at a time.
const PAGE: usize = 4096;

/// A listener's stack, and the next number that each peer expects.
struct Host {
    rig: Rig,
    listener: EndpointId,
}

impl Host {
    fn new() -> Self {
        let mut rig = Rig::new(Capacities {
            endpoints: CONNECTIONS + 1,
            chunks: 64,
            chunk_size: 512,
        });
        let open = TcpOpen {
            family: Family::V4,
            local: at("198.18.0.1:80"),
            process: rig.process,
            options: TcpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        let listener = rig.stack().tcp_listen(&open, 128).unwrap();
        Self { rig, listener }
    }

    /// Takes a segment in; the sequence number of the last answer.
    fn segment(&mut self, from: SocketAddress, fields: &TcpFields<'_>) -> Option<u32> {
        let bytes = tcp_frame(from, at("198.18.0.1:80"), fields);
        let (mut stack, packets) = self.rig.both();
        receive_at(&mut stack, packets, &bytes, NOW).expect("a chunk");
        stack.flush(packets, NOW);
        while stack.take_flow_change().is_some() {}
        let mut seq = None;
        while let Some(sent) = stack.poll_transmit(0) {
            let start = sent.chunk.0 as usize * packets.size + sent.offset as usize;
            let number = packets.bytes[start + 38..start + 42].try_into().unwrap();
            seq = Some(u32::from_be_bytes(number));
            stack.release_chunk(sent.chunk);
        }
        seq
    }

    /// A connection that has served a request and waits for the next one.
    fn connect(&mut self, from: SocketAddress) {
        let fields = |seq, ack, flags, payload| TcpFields {
            seq,
            ack,
            flags,
            window: 65_535,
            payload,
            ..TcpFields::default()
        };
        let syn = self.segment(from, &fields(1000, 0, flags::SYN, b""));
        let next = syn.expect("a SYN-ACK").wrapping_add(1);
        self.segment(from, &fields(1001, next, flags::ACK, b""));
        let request = fields(1001, next, flags::ACK | flags::PSH, &[7; 64]);
        self.segment(from, &request);
        let process = self.rig.process;
        let (mut stack, packets) = self.rig.both();
        let accepted = stack.tcp_accept(self.listener, process, 0).unwrap();
        let id = accepted.expect("a connection");
        assert_eq!(stack.tcp_front(id, 0).unwrap().expect("a request").len, 64);
        stack.tcp_consume(id, 64, NOW).unwrap();
        let mut fill = |into: &mut [u8]| into.fill(9);
        let sent = stack.tcp_send(packets, id, 100, false, &mut fill, NOW);
        assert_eq!(sent, Ok(100));
        self.segment(from, &fields(1065, next.wrapping_add(100), flags::ACK, b""));
    }

    /// Bytes of the pages that have anything but zeros.
    fn touched(&self) -> usize {
        let pages = self.rig.words.as_bytes().chunks(PAGE);
        pages
            .filter(|page| page.iter().any(|byte| *byte != 0))
            .count()
            * PAGE
    }
}

/// All of the image counts, with tables, lists, and what belongs to no connection.
#[test]
fn an_idle_connection_takes_a_kibibyte() {
    let mut host = Host::new();
    // Tables and free endpoints.
    let first = host.touched();
    for number in 0..CONNECTIONS {
        let [_, place, high, low] = number.to_be_bytes();
        let ip = IpAddress::from_v4([198, 19, high, low]);
        host.connect(SocketAddress::new(ip, 4000 + u16::from(place)));
    }
    assert_eq!(host.rig.stack().free_endpoints(), 0);
    assert_eq!(host.rig.stack().free_chunks(), 64);
    let each = host.touched() / CONNECTIONS as usize;
    assert!(each <= 1024, "{each} bytes");
    assert!(first / CONNECTIONS as usize <= 192, "{first} bytes");
    // Most of it is state of connections: a page that is not touched is not counted.
    assert!(each >= 512, "{each} bytes");
}
