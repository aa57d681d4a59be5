//! Segmentation offload of the wire: what the kernel would give its device as one packet is one
//! here, and what its device would give it as one reaches the stack as segments.

use std::fs;

use bypass_stack::wire::TxChecksum;
use bypass_stack::wire::tcp::{self, Headers, Segment, emit, flags, headers_len};
use bypass_stack::{RxChecksum, TcpInfo};

use crate::world::{MAC, PEER_MAC};

/// Payload of a piece of a long packet.
const PIECE: usize = 1000;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Flags that only the last segment of a packet has.
const ENDS: u16 = flags::PSH | flags::FIN;

/// Joins segments that leave together.
#[derive(Debug, Default)]
pub struct Bursts {
    /// Segments in the last packet.
    count: u32,
    /// The last of them ends the packet: it has PSH or FIN.
    is_whole: bool,
    /// The ports of the last packet's flow, and the newest sequence number there.
    newest: Option<((u16, u16), u32)>,
    /// So many segments are one packet at most, by the port of the connection's peer.
    most: Vec<(u16, u32)>,
}

/// A packet without Ethernet header.
fn parsed(packet: &[u8]) -> Option<Segment> {
    let kind = if packet.first()? >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    let frame = [&PEER_MAC[..], &MAC, &kind, packet].concat();
    tcp::parse(&frame, &PEER_MAC, RxChecksum::Unknown).ok()
}

fn ports_of(segment: &Segment) -> (u16, u16) {
    (segment.source_port, segment.destination_port)
}

/// `net.ipv4.tcp_min_tso_segs`: so many segments at least are one packet.
fn least() -> u32 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_min_tso_segs").unwrap_or_default();
    text.trim().parse().unwrap_or(2)
}

/// A millisecond's worth of segments, more where the round trip is short, and no more than half the
/// congestion window and half the peer's (net/ipv4/tcp_output.c: tcp_tso_autosize, tcp_cwnd_test,
/// include/net/tcp.h: tcp_bound_to_half_wnd).
fn most(info: &TcpInfo, least: u32) -> u32 {
    let by_window = info.snd_wnd / 2 / info.snd_mss.max(1);
    let half = (info.snd_cwnd / 2).min(by_window).max(1);
    if info.rtt == 0 {
        return half;
    }
    let near = 65_536_u64.checked_shr(info.min_rtt >> 9).unwrap_or(0);
    let bytes = (info.pacing_rate >> 10) + near;
    let segments = bytes / u64::from(info.snd_mss.max(1));
    half.min(least.max(segments as u32))
}

impl Bursts {
    /// Notes how long packets of connections may be, by their peers' ports.
    pub fn note_sizes(&mut self, connections: impl Iterator<Item = (u16, TcpInfo)>) {
        let least = least();
        self.most.clear();
        let most = connections.map(|(port, info)| (port, most(&info, least)));
        self.most.extend(most);
    }

    /// So many segments of this flow are one packet at most.
    fn most(&self, port: u16) -> u32 {
        let found = self.most.iter().find(|most| most.0 == port);
        found.map_or_else(least, |most| most.1)
    }

    /// A packet that is not joined with the last one: new data or not.
    pub fn first(&mut self, packet: &[u8]) {
        self.count = 1;
        let Some(found) = parsed(packet) else { return };
        self.is_whole = found.flags & ENDS != 0;
        let end = found.seq.wrapping_add(u32::from(found.payload_len));
        let begins = found.flags & flags::SYN != 0;
        let old = self.newest.is_some_and(|(ports, newest)| {
            !begins && ports == ports_of(&found) && newest.wrapping_sub(end) < 1 << 30
        });
        if old {
            // A retransmission goes alone.
            self.count = u32::MAX;
        } else {
            self.newest = Some((ports_of(&found), end));
        }
    }

    /// Joins a packet with the last one, if it continues that. The kernel sets PSH on all that are
    /// longer than a segment (net/ipv4/tcp_output.c:__tcp_transmit_skb).
    pub fn join(&mut self, last: &mut Vec<u8>, next: &[u8]) -> bool {
        let (Some(one), Some(two)) = (parsed(last), parsed(next)) else {
            return false;
        };
        let end = one.seq.wrapping_add(u32::from(one.payload_len));
        let fits = one.destination_port == two.destination_port
            && end == two.seq
            && one.ack == two.ack
            && one.window == two.window
            && one.tos == two.tos
            && one.options == two.options
            && (one.flags | two.flags) & !(flags::ACK | flags::PSH | flags::FIN) == 0
            && !self.is_whole
            && one.payload_len >= two.payload_len
            && two.payload_len > 0;
        if !fits || self.count >= self.most(one.destination_port) {
            return false;
        }
        self.count += 1;
        self.is_whole = two.flags & ENDS != 0;
        let end = two.seq.wrapping_add(u32::from(two.payload_len));
        self.newest = Some((ports_of(&one), end));
        let payload = &next[next.len() - usize::from(two.payload_len)..];
        let mut frame = [&[0; ETHERNET][..], last, payload].concat();
        emit(&mut frame, &headers(&one, one.seq, two.flags | flags::PSH));
        *last = frame.split_off(ETHERNET);
        true
    }
}

/// The headers of a segment, with another number and other flags.
fn headers(of: &Segment, seq: u32, flags: u16) -> Headers {
    Headers {
        source_mac: of.source_mac,
        destination_mac: MAC,
        source: of.source,
        destination: of.destination,
        source_port: of.source_port,
        destination_port: of.destination_port,
        seq,
        ack: of.ack,
        flags,
        window: of.window,
        urgent: of.urgent,
        tos: of.tos,
        ttl: of.ttl,
        ipv4_id: 0,
        options: of.options,
        checksum: TxChecksum::Whole,
    }
}

/// The segments of a frame from the peer that is longer than a device's.
#[must_use]
pub fn pieces(frame: Vec<u8>) -> Vec<Vec<u8>> {
    if frame.len() <= 1514 {
        return vec![frame];
    }
    let Ok(found) = tcp::parse(&frame, &MAC, RxChecksum::Unknown) else {
        return vec![frame];
    };
    let start = usize::from(found.payload_offset);
    let payload = &frame[start..start + usize::from(found.payload_len)];
    let mut seq = found.seq;
    let mut pieces = Vec::new();
    for piece in payload.chunks(PIECE) {
        let is_last = pieces.len() + 1 == payload.len().div_ceil(PIECE);
        let kept = if is_last {
            found.flags
        } else {
            found.flags & !ENDS
        };
        let room = headers_len(found.source.is_v4(), &found.options);
        let mut segment = vec![0; room];
        segment.extend_from_slice(piece);
        emit(&mut segment, &headers(&found, seq, kept));
        seq = seq.wrapping_add(piece.len() as u32);
        pieces.push(segment);
    }
    pieces
}
