//! TCP (RFC 9293) behind Ethernet and IPv4 or IPv6: a frame becomes a [`Segment`], [`Headers`] are
//! written in front of a payload.
//!
//! Accepted is what Linux accepts: an IP header as for UDP, a unicast destination, a data offset of
//! 5 words or more that lies inside the packet, a right checksum. The four reserved bits are
//! ignored; which flags go together is the engine's business.

mod fast_open;
mod options;
mod plain;

pub use fast_open::FastOpen;
pub use options::{Options, SackBlock, Timestamps, options_len};
pub(crate) use plain::{Fields, PLAIN, Plain};

use super::{TxChecksum, checksum::Sum, ethernet, ipv4, ipv6};
use crate::counters::DropReason;
use crate::stack::RxChecksum;
use crate::types::IpAddress;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref,
};

/// Bytes of the header without options.
pub const HEADER: usize = 20;
/// Most bytes of options that the data offset can express.
pub const MAX_OPTIONS: usize = 40;
/// Protocol number of TCP.
pub const TCP: u8 = 6;

/// Bytes of Ethernet and IPv4 headers.
const OUTER_V4: usize = ethernet::HEADER + ipv4::HEADER;
/// Bytes of Ethernet and IPv6 headers.
const OUTER_V6: usize = ethernet::HEADER + ipv6::HEADER;
/// The DF bit in the word of flags and fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;

/// Control bits (RFC 9293 section 3.1, RFC 3168, RFC 9768).
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u16 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u16 = 2;
    /// Reset the connection.
    pub const RST: u16 = 4;
    /// Push.
    pub const PSH: u16 = 8;
    /// The acknowledgment field is significant.
    pub const ACK: u16 = 16;
    /// The urgent pointer is significant.
    pub const URG: u16 = 32;
    /// ECN echo.
    pub const ECE: u16 = 64;
    /// Congestion window reduced.
    pub const CWR: u16 = 128;
    /// Accurate ECN (the former NS bit).
    pub const AE: u16 = 256;
    /// Every control bit.
    pub(super) const ALL: u16 = 511;
}

/// A TCP segment found in a frame. Numbers are in host order, the window is not scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub source: IpAddress,
    /// Receiver.
    pub destination: IpAddress,
    /// Sender's port; 0 is allowed.
    pub source_port: u16,
    /// Receiver's port; not 0.
    pub destination_port: u16,
    /// MAC address that the frame came from.
    pub source_mac: [u8; 6],
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Control bits, see [`flags`].
    pub flags: u16,
    /// Window as sent.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// TOS or traffic class byte.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes from the start of the frame to the payload.
    pub payload_offset: u16,
    /// Bytes of payload.
    pub payload_len: u16,
    /// Options.
    pub options: Options,
}

/// What to write in front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Sender's MAC address.
    pub source_mac: [u8; 6],
    /// Next hop's MAC address.
    pub destination_mac: [u8; 6],
    /// Sender; both addresses are of one family.
    pub source: IpAddress,
    /// Receiver.
    pub destination: IpAddress,
    /// Sender's port, host order.
    pub source_port: u16,
    /// Receiver's port, host order.
    pub destination_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Control bits, see [`flags`].
    pub flags: u16,
    /// Window as it goes on the wire.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// TOS or traffic class byte.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification.
    pub ipv4_id: u16,
    /// Options.
    pub options: Options,
    /// The checksum; never [`TxChecksum::Off`].
    pub checksum: TxChecksum,
}

/// The TCP header without options.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    source_port: U16,
    destination_port: U16,
    seq: U32,
    ack: U32,
    offset_and_flags: U16,
    window: U16,
    checksum: U16,
    urgent: U16,
}

/// Ethernet and IPv4 headers.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct OuterV4 {
    ethernet: ethernet::Layout,
    version_and_length: u8,
    tos: u8,
    total_length: U16,
    id: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

/// Ethernet and IPv6 headers.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct OuterV6 {
    ethernet: ethernet::Layout,
    version_class_flow: U32,
    payload_length: U16,
    next_header: u8,
    hop_limit: u8,
    source: IpAddress,
    destination: IpAddress,
}

/// What an IP header says about the segment behind it.
struct Packet {
    source: IpAddress,
    destination: IpAddress,
    tos: u8,
    ttl: u8,
    /// Sum of the two addresses.
    pseudo: Sum,
    /// Bytes from the start of the frame to the segment.
    start: usize,
    /// Bytes of the segment; they are inside the frame.
    len: u16,
}

/// Whether a frame says that it is TCP over IPv4 without options or over IPv6 without extension
/// headers. Nothing else is checked: it says which parser to ask.
#[inline]
#[must_use]
pub fn is_tcp(frame: &[u8]) -> bool {
    let Some(bytes) = frame.first_chunk::<24>() else {
        return false;
    };
    match u16::from_be_bytes([bytes[12], bytes[13]]) {
        ethernet::IPV4 => bytes[23] == TCP,
        ethernet::IPV6 => bytes[20] == TCP,
        _ => false,
    }
}

/// Bytes of Ethernet, IP and TCP headers with these options.
#[inline]
#[must_use]
pub fn headers_len(is_v4: bool, options: &Options) -> usize {
    let outer = if is_v4 { OUTER_V4 } else { OUTER_V6 };
    outer
        .wrapping_add(HEADER)
        .wrapping_add(options_len(options))
}

/// The options of the segment that [`parse`] has found in this frame.
#[must_use]
pub fn options_of<'a>(frame: &'a [u8], segment: &Segment) -> &'a [u8] {
    let outer = if segment.destination.is_v4() {
        OUTER_V4
    } else {
        OUTER_V6
    };
    let start = outer.wrapping_add(HEADER);
    frame
        .get(start..usize::from(segment.payload_offset))
        .unwrap_or(&[])
}

/// Finds the TCP segment of a frame that the interface with this MAC address received. An all
/// zero MAC address is not compared. `known` says whose checksum is not looked at.
#[inline]
pub fn parse(frame: &[u8], mac: &[u8; 6], known: RxChecksum) -> Result<Segment, DropReason> {
    let header = frame
        .first_chunk::<{ ethernet::HEADER }>()
        .ok_or(DropReason::Truncated)?;
    let packet = match ethernet::ether_type(header) {
        ethernet::IPV4 => {
            ethernet::check_destination(header, mac)?;
            parse_v4(frame)?
        }
        ethernet::IPV6 => {
            ethernet::check_destination(header, mac)?;
            parse_v6(frame)?
        }
        ethernet::VLAN | ethernet::VLAN_SERVICE => return Err(DropReason::Vlan),
        _ => return Err(DropReason::EtherType),
    };
    // RFC 9293 section 3.9.2.3: never an answer to broadcast or multicast.
    if header[0] & 1 != 0 || packet.destination.is_limited_broadcast() {
        return Err(DropReason::NotUnicast);
    }
    let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *header;
    segment(frame, &packet, [a, b, c, d, e, f], known)
}

/// Checks the IPv4 header.
#[inline]
fn parse_v4(frame: &[u8]) -> Result<Packet, DropReason> {
    let Some(bytes) = frame.first_chunk::<OUTER_V4>() else {
        return Err(ipv4::too_short(frame));
    };
    let h: &OuterV4 = transmute_ref!(bytes);
    if h.version_and_length != 0x45 {
        return Err(ipv4::version_reason(h.version_and_length));
    }
    let total = h.total_length.get();
    if usize::from(total) < ipv4::HEADER + HEADER
        || usize::from(total) > frame.len().wrapping_sub(ethernet::HEADER)
    {
        return Err(DropReason::IpLength);
    }
    if Sum::new()
        .bytes(&bytes[ethernet::HEADER..ethernet::HEADER + ipv4::HEADER])
        .fold()
        != 0xffff
    {
        return Err(DropReason::IpChecksum);
    }
    // MF, or an offset; the reserved bit and DF do not matter.
    if h.fragment.get() & 0x3fff != 0 {
        return Err(DropReason::Fragment);
    }
    if h.ttl == 0 {
        return Err(DropReason::IpTtl);
    }
    if h.protocol != TCP {
        return Err(DropReason::Protocol);
    }
    ipv4::check_addresses(h.source, h.destination)?;
    Ok(Packet {
        source: IpAddress::mapped(h.source),
        destination: IpAddress::mapped(h.destination),
        tos: h.tos,
        ttl: h.ttl,
        pseudo: Sum::new().bytes(&bytes[26..34]),
        start: OUTER_V4,
        len: total.wrapping_sub(ipv4::HEADER as u16),
    })
}

/// Checks the IPv6 header.
#[inline]
fn parse_v6(frame: &[u8]) -> Result<Packet, DropReason> {
    let Some(bytes) = frame.first_chunk::<OUTER_V6>() else {
        return Err(ipv6::too_short(frame));
    };
    let h: &OuterV6 = transmute_ref!(bytes);
    let first = h.version_class_flow.get();
    if first >> 28 != 6 {
        return Err(DropReason::IpVersion);
    }
    let len = h.payload_length.get();
    if usize::from(len) < HEADER || usize::from(len) > frame.len().wrapping_sub(OUTER_V6) {
        return Err(DropReason::IpLength);
    }
    if h.next_header != TCP {
        return Err(ipv6::next_header_reason(h.next_header));
    }
    if h.hop_limit == 0 {
        return Err(DropReason::IpTtl);
    }
    ipv6::check_addresses(&h.source, &h.destination)?;
    Ok(Packet {
        source: h.source,
        destination: h.destination,
        tos: (first >> 20) as u8,
        ttl: h.hop_limit,
        pseudo: Sum::new().bytes(&bytes[22..54]),
        start: OUTER_V6,
        len,
    })
}

/// Checks the TCP header and the checksum.
#[inline]
fn segment(
    frame: &[u8],
    packet: &Packet,
    source_mac: [u8; 6],
    known: RxChecksum,
) -> Result<Segment, DropReason> {
    let end = packet.start.wrapping_add(usize::from(packet.len));
    let bytes = frame.get(packet.start..end).ok_or(DropReason::IpLength)?;
    let (header, behind) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or(DropReason::IpLength)?;
    let h: &Layout = transmute_ref!(header);
    let word = h.offset_and_flags.get();
    let options = usize::from(word >> 12)
        .wrapping_mul(4)
        .checked_sub(HEADER)
        .and_then(|len| behind.get(..len))
        .ok_or(DropReason::TcpHeader)?;
    if h.destination_port.get() == 0 {
        return Err(DropReason::ZeroPort);
    }
    let pseudo = packet
        .pseudo
        .pair(u32::from(TCP) << 16 | u32::from(packet.len));
    let is_known = match known {
        RxChecksum::Unknown => false,
        RxChecksum::Partial => h.checksum.get() == pseudo.fold(),
        RxChecksum::Good => true,
    };
    if !is_known && pseudo.bytes(bytes).fold() != 0xffff {
        return Err(DropReason::ChecksumBad);
    }
    let header_len = HEADER.wrapping_add(options.len()) as u16;
    Ok(Segment {
        source: packet.source,
        destination: packet.destination,
        source_port: h.source_port.get(),
        destination_port: h.destination_port.get(),
        source_mac,
        seq: h.seq.get(),
        ack: h.ack.get(),
        flags: word & flags::ALL,
        window: h.window.get(),
        urgent: h.urgent.get(),
        tos: packet.tos,
        ttl: packet.ttl,
        payload_offset: (packet.start as u16).wrapping_add(header_len),
        payload_len: packet.len.wrapping_sub(header_len),
        options: options::parse(options, word & flags::SYN != 0),
    })
}

/// Writes Ethernet, IP and TCP headers with options into the first [`headers_len`] bytes of a frame
/// whose payload is in place behind them. IPv4 has DF set, the IPv6 flow label is zero. The caller
/// has checked that the length fits 16 bits; a frame too short for the headers is left alone.
#[inline]
pub fn emit(frame: &mut [u8], headers: &Headers) {
    emit_with(frame, headers, 0);
}

/// The same, when the first `more` bytes behind the headers are options as well, which are in
/// place.
#[inline(always)]
pub fn emit_with(frame: &mut [u8], headers: &Headers, more: usize) {
    let options_len = options_len(&headers.options);
    if headers.source.is_v4() {
        if let Some((outer, segment)) = frame.split_first_chunk_mut::<OUTER_V4>()
            && let Some(parts) = Parts::of(segment, options_len)
        {
            let pseudo = emit_v4(transmute_mut!(outer), headers, parts.len);
            emit_segment(parts, headers, (pseudo, more));
        }
    } else if let Some((outer, segment)) = frame.split_first_chunk_mut::<OUTER_V6>()
        && let Some(parts) = Parts::of(segment, options_len)
    {
        let pseudo = emit_v6(transmute_mut!(outer), headers, parts.len);
        emit_segment(parts, headers, (pseudo, more));
    }
}

/// A segment to be written.
struct Parts<'a> {
    header: &'a mut [u8; HEADER],
    options: &'a mut [u8],
    payload: &'a [u8],
    /// Bytes in all.
    len: u16,
}

impl<'a> Parts<'a> {
    #[inline]
    fn of(segment: &'a mut [u8], options_len: usize) -> Option<Self> {
        let len = segment.len() as u16;
        let (header, behind) = segment.split_first_chunk_mut::<HEADER>()?;
        let (options, payload) = behind.split_at_mut_checked(options_len)?;
        Some(Self {
            header,
            options,
            payload,
            len,
        })
    }
}

/// Writes Ethernet and IPv4 headers in front of a segment of `len` bytes: the sum of the two
/// addresses.
#[inline]
fn emit_v4(outer: &mut OuterV4, headers: &Headers, len: u16) -> Sum {
    let source = headers.source.last_four();
    let destination = headers.destination.last_four();
    let addresses = Sum::new().bytes(&source).bytes(&destination);
    let total = len.wrapping_add(ipv4::HEADER as u16);
    let sum = addresses
        .pair(u32::from_be_bytes([0x45, headers.tos, 0, 0]) | u32::from(total))
        .pair(u32::from(headers.ipv4_id) << 16 | u32::from(DONT_FRAGMENT))
        .field(u16::from_be_bytes([headers.ttl, TCP]));
    *outer = OuterV4 {
        ethernet: ethernet::header(headers.destination_mac, headers.source_mac, ethernet::IPV4),
        version_and_length: 0x45,
        tos: headers.tos,
        total_length: total.into(),
        id: headers.ipv4_id.into(),
        fragment: DONT_FRAGMENT.into(),
        ttl: headers.ttl,
        protocol: TCP,
        checksum: (!sum.fold()).into(),
        source,
        destination,
    };
    addresses
}

/// Writes Ethernet and IPv6 headers in front of a segment of `len` bytes: the sum of the two
/// addresses.
#[inline]
fn emit_v6(outer: &mut OuterV6, headers: &Headers, len: u16) -> Sum {
    *outer = OuterV6 {
        ethernet: ethernet::header(headers.destination_mac, headers.source_mac, ethernet::IPV6),
        version_class_flow: (6 << 28 | u32::from(headers.tos) << 20).into(),
        payload_length: len.into(),
        next_header: TCP,
        hop_limit: headers.ttl,
        source: headers.source,
        destination: headers.destination,
    };
    Sum::new()
        .bytes(&headers.source.0)
        .bytes(&headers.destination.0)
}

/// Writes the TCP header and its options in front of the payload, whose first `more` bytes are
/// options too. `pseudo` is the sum of the two addresses.
#[inline]
fn emit_segment(parts: Parts<'_>, headers: &Headers, (pseudo, more): (Sum, usize)) {
    let options = parts.options.len().wrapping_add(more);
    let words = (HEADER.wrapping_add(options) / 4) as u16;
    let offset_and_flags = words << 12 | headers.flags & flags::ALL;
    // The sum is taken from registers: the bytes just written would have to be waited for.
    let pseudo = pseudo.pair(u32::from(TCP) << 16 | u32::from(parts.len));
    let sum = options::emit(parts.options, &headers.options, pseudo)
        .pair(u32::from(headers.source_port) << 16 | u32::from(headers.destination_port))
        .word((u64::from(headers.seq) << 32 | u64::from(headers.ack)).to_be_bytes())
        .pair(u32::from(offset_and_flags) << 16 | u32::from(headers.window))
        .field(headers.urgent);
    let checksum = match headers.checksum {
        TxChecksum::Pseudo => pseudo.fold(),
        TxChecksum::Whole | TxChecksum::Off => !sum.bytes(parts.payload).fold(),
    };
    let h: &mut Layout = transmute_mut!(parts.header);
    *h = Layout {
        source_port: headers.source_port.into(),
        destination_port: headers.destination_port.into(),
        seq: headers.seq.into(),
        ack: headers.ack.into(),
        offset_and_flags: offset_and_flags.into(),
        window: headers.window.into(),
        checksum: checksum.into(),
        urgent: headers.urgent.into(),
    };
}
