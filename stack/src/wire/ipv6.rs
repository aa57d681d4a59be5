//! IPv6 (RFC 8200) header of 40 bytes in front of UDP, without extension headers.

use super::{Datagram, Headers, TxChecksum, checksum::Sum, ethernet, ipv4, udp};
use crate::counters::DropReason;
use crate::stack::RxChecksum;
use crate::types::IpAddress;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref,
};

/// Bytes of the header.
pub const HEADER: usize = 40;
/// Bytes of Ethernet, IPv6 and UDP headers.
pub const ALL: usize = ethernet::HEADER + HEADER + udp::HEADER;

/// Ethernet, IPv6 and UDP headers.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    ethernet: ethernet::Layout,
    version_class_flow: U32,
    payload_length: U16,
    next_header: u8,
    hop_limit: u8,
    source: IpAddress,
    destination: IpAddress,
    udp: udp::Layout,
}

/// Finds the UDP datagram of a frame whose EtherType is IPv6.
#[inline]
pub fn parse(frame: &[u8], known: RxChecksum) -> Result<Datagram, DropReason> {
    let Some(bytes) = frame.first_chunk::<ALL>() else {
        return Err(too_short(frame));
    };
    let h: &Layout = transmute_ref!(bytes);
    let first = h.version_class_flow.get();
    if first >> 28 != 6 {
        return Err(DropReason::IpVersion);
    }
    let len = h.payload_length.get();
    if usize::from(len) < udp::HEADER
        || usize::from(len) > frame.len().wrapping_sub(ethernet::HEADER + HEADER)
    {
        return Err(DropReason::IpLength);
    }
    if h.next_header != ipv4::UDP {
        return Err(next_header_reason(h.next_header));
    }
    if h.hop_limit == 0 {
        return Err(DropReason::IpTtl);
    }
    check_addresses(&h.source, &h.destination)?;

    let pseudo = Sum::new().bytes(&bytes[22..54]);
    let payload_len = udp::check(frame, ALL, &h.udp, len, pseudo, known, false)?;
    Ok(Datagram {
        source: h.source,
        destination: h.destination,
        source_port: h.udp.source_port.get(),
        destination_port: h.udp.destination_port.get(),
        tos: (first >> 20) as u8,
        ttl: h.hop_limit,
        payload_offset: ALL as u16,
        payload_len,
    })
}

/// Why a frame that cannot hold its headers is refused.
#[cold]
pub(super) fn too_short(frame: &[u8]) -> DropReason {
    match frame.get(ethernet::HEADER) {
        Some(first) if first >> 4 != 6 => DropReason::IpVersion,
        _ => DropReason::Truncated,
    }
}

/// Why a next header other than the one looked for is refused. The numbers are IANA's extension
/// header types.
#[cold]
pub(super) fn next_header_reason(next: u8) -> DropReason {
    match next {
        44 => DropReason::Fragment,
        0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254 => DropReason::ExtensionHeader,
        _ => DropReason::Protocol,
    }
}

/// Refuses addresses that no unicast datagram on a wire has. A v4-mapped address on the wire would
/// be taken for IPv4 above, so it is refused too (RFC 4942 section 2.2).
#[inline]
pub(super) fn check_addresses(
    source: &IpAddress,
    destination: &IpAddress,
) -> Result<(), DropReason> {
    let bad = |ip: &IpAddress| {
        let (high, low) = ip.words();
        ip.0[0] == 0xff || (high == 0 && (low == 0 || ip.is_loopback() || ip.is_v4()))
    };
    if bad(source) {
        return Err(DropReason::MartianSource);
    }
    if bad(destination) {
        return Err(DropReason::MartianDestination);
    }
    Ok(())
}

/// How much of the checksum is written: one that is absent is not allowed here (RFC 8200).
#[inline]
fn whole_at_least(headers: &Headers) -> TxChecksum {
    match headers.checksum {
        TxChecksum::Off => TxChecksum::Whole,
        checksum => checksum,
    }
}

/// Writes Ethernet, IPv6 and UDP headers into the first [`ALL`] bytes of a frame whose payload is
/// in place. The flow label is zero. The caller has checked that the length fits 16 bits; a frame
/// too short is left alone.
#[inline]
pub fn emit(frame: &mut [u8], headers: &Headers) {
    let Some((bytes, payload)) = frame.split_first_chunk_mut::<ALL>() else {
        return;
    };
    let udp_len = (payload.len() as u16).wrapping_add(udp::HEADER as u16);
    let pseudo = Sum::new()
        .bytes(&headers.source.0)
        .bytes(&headers.destination.0);
    let h: &mut Layout = transmute_mut!(bytes);
    *h = Layout {
        ethernet: ethernet::header(headers.destination_mac, headers.source_mac, ethernet::IPV6),
        version_class_flow: (6 << 28 | u32::from(headers.tos) << 20).into(),
        payload_length: udp_len.into(),
        next_header: ipv4::UDP,
        hop_limit: headers.ttl,
        source: headers.source,
        destination: headers.destination,
        udp: udp::emit(payload, headers, udp_len, pseudo, whole_at_least(headers)),
    };
}
