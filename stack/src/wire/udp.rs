//! UDP (RFC 768): 8-byte header, checksum over pseudo-header, header and payload.
//!
//! A UDP length below the IP payload is allowed, the rest is padding; Linux trims it as well.

use super::{Headers, checksum::Sum, ipv4};
use crate::counters::DropReason;

/// Bytes of the header.
pub const HEADER: usize = 8;

/// What [`check`] finds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload_len: u16,
}

/// Checks the UDP header at `at` of a frame, and its checksum. `pseudo` is the sum of the two
/// addresses; the length of the IP payload is inside the frame.
#[inline]
pub(crate) fn check(
    frame: &[u8],
    at: usize,
    header: [u8; HEADER],
    ip_payload: u16,
    pseudo: Sum,
    partial: bool,
    is_v4: bool,
) -> Result<Found, DropReason> {
    let [s0, s1, d0, d1, l0, l1, c0, c1] = header;
    let len = u16::from_be_bytes([l0, l1]);
    let destination_port = u16::from_be_bytes([d0, d1]);
    if usize::from(len) < HEADER || len > ip_payload {
        return Err(DropReason::UdpLength);
    }
    if destination_port == 0 {
        return Err(DropReason::ZeroPort);
    }
    let Some(bytes) = frame.get(at..at.wrapping_add(usize::from(len))) else {
        return Err(DropReason::UdpLength);
    };
    let field = u16::from_be_bytes([c0, c1]);
    let pseudo = pseudo.field(u16::from(ipv4::UDP)).field(len);
    if field == 0 {
        if !is_v4 {
            return Err(DropReason::ChecksumMissing);
        }
    } else if !(partial && field == pseudo.fold()) && pseudo.bytes(bytes).fold() != 0xffff {
        return Err(DropReason::ChecksumBad);
    }
    Ok(Found {
        source_port: u16::from_be_bytes([s0, s1]),
        destination_port,
        payload_len: len.wrapping_sub(HEADER as u16),
    })
}

/// Writes a UDP header in front of a payload. `pseudo` is the sum of the two addresses.
#[inline]
pub(crate) fn emit(
    into: &mut [u8],
    payload: &[u8],
    headers: &Headers,
    len: u16,
    pseudo: Sum,
    checksum_off: bool,
) {
    let sum = if checksum_off {
        0
    } else {
        let sum = pseudo
            .field(u16::from(ipv4::UDP))
            .field(len)
            .field(headers.source_port)
            .field(headers.destination_port)
            .field(len)
            .bytes(payload);
        // Zero means "no checksum" on the wire; its equal in one's complement is sent instead.
        match !sum.fold() {
            0 => 0xffff,
            sum => sum,
        }
    };
    let [s0, s1] = headers.source_port.to_be_bytes();
    let [d0, d1] = headers.destination_port.to_be_bytes();
    let [l0, l1] = len.to_be_bytes();
    let [c0, c1] = sum.to_be_bytes();
    into.copy_from_slice(&[s0, s1, d0, d1, l0, l1, c0, c1]);
}
