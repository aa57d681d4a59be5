//! IPv6 (RFC 8200) header of 40 bytes in front of UDP, without extension headers.

use super::{Datagram, Headers, checksum::Sum, ethernet, ipv4, udp};
use crate::counters::DropReason;
use crate::types::IpAddress;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned, transmute_ref};

/// Bytes of the header.
pub const HEADER: usize = 40;
/// Bytes of Ethernet, IPv6 and UDP headers.
pub const ALL: usize = ethernet::HEADER + HEADER + udp::HEADER;

/// Ethernet, IPv6 and UDP headers.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    ethernet: [u8; ethernet::HEADER],
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
pub fn parse(frame: &[u8], partial: bool) -> Result<Datagram, DropReason> {
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
    let payload_len = udp::check(frame, ALL, &h.udp, len, pseudo, partial, false)?;
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

/// Why a frame that cannot hold IPv6 and UDP headers is refused.
#[cold]
fn too_short(frame: &[u8]) -> DropReason {
    match frame.get(ethernet::HEADER) {
        Some(first) if first >> 4 != 6 => DropReason::IpVersion,
        _ => DropReason::Truncated,
    }
}

/// Why a next header other than UDP is refused. The numbers are IANA's extension header types.
#[cold]
fn next_header_reason(next: u8) -> DropReason {
    match next {
        44 => DropReason::Fragment,
        0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254 => DropReason::ExtensionHeader,
        _ => DropReason::Protocol,
    }
}

/// Refuses addresses that no unicast datagram on a wire has. A v4-mapped address on the wire would
/// be taken for IPv4 above, so it is refused too (RFC 4942 section 2.2).
#[inline]
fn check_addresses(source: &IpAddress, destination: &IpAddress) -> Result<(), DropReason> {
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

/// Writes Ethernet, IPv6 and UDP headers into the first [`ALL`] bytes of a frame whose payload is
/// in place. The flow label is zero. The caller has checked that the length fits 16 bits.
#[inline]
pub fn emit(frame: &mut [u8], headers: &Headers) {
    let payload_len = frame.len().saturating_sub(ALL) as u16;
    let Some((h, payload)) = frame.split_first_chunk_mut::<ALL>() else {
        return;
    };
    let udp_len = payload_len.wrapping_add(udp::HEADER as u16);
    let (eth, rest) = h.split_at_mut(ethernet::HEADER);
    let (ip, transport) = rest.split_at_mut(HEADER);
    if let Ok(eth) = eth.try_into() {
        ethernet::emit(
            eth,
            &headers.destination_mac,
            &headers.source_mac,
            ethernet::IPV6,
        );
    }
    let (fixed, addresses) = ip.split_at_mut(8);
    let [len_high, len_low] = udp_len.to_be_bytes();
    let first = 0x60 | headers.tos >> 4;
    fixed.copy_from_slice(&[
        first,
        headers.tos << 4,
        0,
        0,
        len_high,
        len_low,
        ipv4::UDP,
        headers.ttl,
    ]);
    let (source, destination) = addresses.split_at_mut(16);
    source.copy_from_slice(&headers.source.0);
    destination.copy_from_slice(&headers.destination.0);
    let pseudo = Sum::new().bytes(addresses);
    udp::emit(transport, payload, headers, udp_len, pseudo, false);
}
