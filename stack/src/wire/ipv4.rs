//! IPv4 (RFC 791) header of 20 bytes in front of UDP.
//!
//! Accepted: version 4, no options, no fragment, right header checksum, TTL above zero, total
//! length inside the frame (padding behind it is ignored), addresses that can be ends of a
//! unicast datagram.

use super::{Datagram, Headers, checksum::Sum, ethernet, udp};
use crate::counters::DropReason;
use crate::stack::RxChecksum;
use crate::types::IpAddress;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref,
};

/// Bytes of the header without options.
pub const HEADER: usize = 20;
/// Bytes of Ethernet, IPv4 and UDP headers.
pub const ALL: usize = ethernet::HEADER + HEADER + udp::HEADER;
/// The DF bit in the word of flags and fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Ethernet, IPv4 and UDP headers.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
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
    udp: udp::Layout,
}

/// Finds the UDP datagram of a frame whose EtherType is IPv4.
#[inline]
pub fn parse(frame: &[u8], known: RxChecksum) -> Result<Datagram, DropReason> {
    let Some(bytes) = frame.first_chunk::<ALL>() else {
        return Err(too_short(frame));
    };
    let h: &Layout = transmute_ref!(bytes);
    if h.version_and_length != 0x45 {
        return Err(version_reason(h.version_and_length));
    }
    // First, so that a segment's header is checked once: by its own parser.
    if h.protocol != UDP {
        return Err(DropReason::Protocol);
    }
    let total = h.total_length.get();
    if usize::from(total) < HEADER + udp::HEADER
        || usize::from(total) > frame.len().wrapping_sub(ethernet::HEADER)
    {
        return Err(DropReason::IpLength);
    }
    if Sum::new()
        .bytes(&bytes[ethernet::HEADER..ethernet::HEADER + HEADER])
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
    check_addresses(h.source, h.destination)?;

    let pseudo = Sum::new().bytes(&bytes[26..34]);
    let ip_payload = total.wrapping_sub(HEADER as u16);
    let payload_len = udp::check(frame, ALL, &h.udp, ip_payload, pseudo, known, true)?;
    Ok(Datagram {
        source: IpAddress::mapped(h.source),
        destination: IpAddress::mapped(h.destination),
        source_port: h.udp.source_port.get(),
        destination_port: h.udp.destination_port.get(),
        tos: h.tos,
        ttl: h.ttl,
        payload_offset: ALL as u16,
        payload_len,
    })
}

/// Why a frame that cannot hold its headers is refused.
#[cold]
pub(super) fn too_short(frame: &[u8]) -> DropReason {
    match frame.get(ethernet::HEADER) {
        Some(first) if first >> 4 != 4 => DropReason::IpVersion,
        _ => DropReason::Truncated,
    }
}

/// Why the first byte of the header is refused.
#[cold]
pub(super) fn version_reason(first: u8) -> DropReason {
    if first >> 4 != 4 {
        DropReason::IpVersion
    } else if first & 15 < 5 {
        DropReason::IpHeaderLength
    } else {
        DropReason::IpOptions
    }
}

/// Refuses addresses that no unicast datagram has (RFC 1122 section 3.2.1.3).
#[inline]
pub(super) fn check_addresses(source: [u8; 4], destination: [u8; 4]) -> Result<(), DropReason> {
    let multicast = |first: u8| first & 0xf0 == 0xe0;
    if matches!(source[0], 0 | 127) || multicast(source[0]) || source == [255; 4] {
        return Err(DropReason::MartianSource);
    }
    if matches!(destination[0], 0 | 127) || multicast(destination[0]) {
        return Err(DropReason::MartianDestination);
    }
    Ok(())
}

/// Writes Ethernet, IPv4 and UDP headers into the first [`ALL`] bytes of a frame whose payload is
/// in place. The caller has checked that the length fits 16 bits; a frame too short is left alone.
#[inline]
pub fn emit(frame: &mut [u8], headers: &Headers) {
    let Some((bytes, payload)) = frame.split_first_chunk_mut::<ALL>() else {
        return;
    };
    let (Some(source), Some(destination)) = (
        headers.source.0.last_chunk::<4>(),
        headers.destination.0.last_chunk::<4>(),
    ) else {
        return;
    };
    let udp_len = (payload.len() as u16).wrapping_add(udp::HEADER as u16);
    let pseudo = Sum::new().bytes(source).bytes(destination);
    let udp = udp::emit(payload, headers, udp_len, pseudo, headers.checksum);
    let h: &mut Layout = transmute_mut!(bytes);
    *h = Layout {
        ethernet: ethernet::header(headers.destination_mac, headers.source_mac, ethernet::IPV4),
        version_and_length: 0x45,
        tos: headers.tos,
        total_length: udp_len.wrapping_add(HEADER as u16).into(),
        id: headers.ipv4_id.into(),
        fragment: if headers.dont_fragment {
            DONT_FRAGMENT
        } else {
            0
        }
        .into(),
        ttl: headers.ttl,
        protocol: UDP,
        checksum: 0.into(),
        source: *source,
        destination: *destination,
        udp,
    };
    let sum = Sum::new()
        .field(u16::from_be_bytes([0x45, headers.tos]))
        .field(h.total_length.get())
        .field(headers.ipv4_id)
        .field(h.fragment.get())
        .field(u16::from_be_bytes([headers.ttl, UDP]))
        .bytes(source)
        .bytes(destination);
    h.checksum = (!sum.fold()).into();
}
