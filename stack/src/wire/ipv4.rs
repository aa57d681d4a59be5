//! IPv4 (RFC 791) header of 20 bytes in front of UDP.
//!
//! Accepted: version 4, no options, no fragment, right header checksum, TTL above zero, total
//! length inside the frame (padding behind it is ignored), addresses that can be ends of a
//! unicast datagram.

use super::{Datagram, Headers, checksum::Sum, ethernet, udp};
use crate::counters::DropReason;
use crate::types::IpAddress;

/// Bytes of the header without options.
pub const HEADER: usize = 20;
/// Bytes of Ethernet, IPv4 and UDP headers.
pub const ALL: usize = ethernet::HEADER + HEADER + udp::HEADER;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Finds the UDP datagram of a frame whose EtherType is IPv4.
#[inline]
pub fn parse(frame: &[u8], partial: bool) -> Result<Datagram, DropReason> {
    let Some(h) = frame.first_chunk::<ALL>() else {
        return Err(too_short(frame));
    };
    let total = u16::from_be_bytes([h[16], h[17]]);
    if h[14] != 0x45 {
        return Err(version_reason(h[14]));
    }
    if usize::from(total) < HEADER + udp::HEADER
        || usize::from(total) > frame.len().wrapping_sub(ethernet::HEADER)
    {
        return Err(DropReason::IpLength);
    }
    let sum = Sum::new()
        .word([h[14], h[15], h[16], h[17], h[18], h[19], h[20], h[21]])
        .word([h[22], h[23], h[24], h[25], h[26], h[27], h[28], h[29]])
        .word([h[30], h[31], h[32], h[33], 0, 0, 0, 0]);
    if sum.fold() != 0xffff {
        return Err(DropReason::IpChecksum);
    }
    // MF, or an offset; the reserved bit and DF do not matter.
    if u16::from_be_bytes([h[20], h[21]]) & 0x3fff != 0 {
        return Err(DropReason::Fragment);
    }
    if h[22] == 0 {
        return Err(DropReason::IpTtl);
    }
    if h[23] != UDP {
        return Err(DropReason::Protocol);
    }
    check_addresses([h[26], h[27], h[28], h[29]], [h[30], h[31], h[32], h[33]])?;

    let pseudo = Sum::new().word([h[26], h[27], h[28], h[29], h[30], h[31], h[32], h[33]]);
    let header = [h[34], h[35], h[36], h[37], h[38], h[39], h[40], h[41]];
    let ip_payload = total.wrapping_sub(HEADER as u16);
    let found = udp::check(
        frame,
        ALL - udp::HEADER,
        header,
        ip_payload,
        pseudo,
        partial,
        true,
    )?;
    Ok(Datagram {
        source: IpAddress::mapped([h[26], h[27], h[28], h[29]]),
        destination: IpAddress::mapped([h[30], h[31], h[32], h[33]]),
        source_port: found.source_port,
        destination_port: found.destination_port,
        tos: h[15],
        ttl: h[22],
        payload_offset: ALL as u16,
        payload_len: found.payload_len,
    })
}

/// Why a frame that cannot hold IPv4 and UDP headers is refused.
#[cold]
fn too_short(frame: &[u8]) -> DropReason {
    match frame.get(ethernet::HEADER) {
        Some(first) if first >> 4 != 4 => DropReason::IpVersion,
        _ => DropReason::Truncated,
    }
}

/// Why the first byte of the header is refused.
#[cold]
fn version_reason(first: u8) -> DropReason {
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
fn check_addresses(source: [u8; 4], destination: [u8; 4]) -> Result<(), DropReason> {
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
    let payload_len = frame.len().saturating_sub(ALL) as u16;
    let Some((h, payload)) = frame.split_first_chunk_mut::<ALL>() else {
        return;
    };
    let udp_len = payload_len.wrapping_add(udp::HEADER as u16);
    let total = udp_len.wrapping_add(HEADER as u16);
    let (Some(source), Some(destination)) = (
        headers.source.0.last_chunk::<4>(),
        headers.destination.0.last_chunk::<4>(),
    ) else {
        return;
    };
    let (eth, rest) = h.split_at_mut(ethernet::HEADER);
    let (ip, transport) = rest.split_at_mut(HEADER);
    if let Ok(eth) = eth.try_into() {
        ethernet::emit(
            eth,
            &headers.destination_mac,
            &headers.source_mac,
            ethernet::IPV4,
        );
    }
    let [total_high, total_low] = total.to_be_bytes();
    let [id_high, id_low] = headers.ipv4_id.to_be_bytes();
    let flags = if headers.dont_fragment { 0x40 } else { 0 };
    let [s0, s1, s2, s3] = *source;
    let [d0, d1, d2, d3] = *destination;
    let mut header = [
        0x45,
        headers.tos,
        total_high,
        total_low,
        id_high,
        id_low,
        flags,
        0,
        headers.ttl,
        UDP,
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    let sum = !Sum::new().bytes(&header).fold();
    [header[10], header[11]] = sum.to_be_bytes();
    ip.copy_from_slice(&header);
    let pseudo = Sum::new().word([s0, s1, s2, s3, d0, d1, d2, d3]);
    udp::emit(
        transport,
        payload,
        headers,
        udp_len,
        pseudo,
        headers.checksum_off,
    );
}
