//! UDP (RFC 768): 8-byte header, checksum over pseudo-header, header and payload.
//!
//! A UDP length below the IP payload is allowed, the rest is padding; Linux trims it as well.

use super::{Headers, TxChecksum, checksum::Sum, ipv4};
use crate::counters::DropReason;
use crate::stack::RxChecksum;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const HEADER: usize = 8;

/// The header.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Layout {
    pub(super) source_port: U16,
    pub(super) destination_port: U16,
    pub(super) length: U16,
    pub(super) checksum: U16,
}

/// Checks a UDP header whose payload is at `at` of the frame, and its checksum: bytes of payload.
/// `pseudo` is the sum of the two addresses; the IP payload is inside the frame.
#[inline]
pub(super) fn check(
    frame: &[u8],
    at: usize,
    header: &Layout,
    ip_payload: u16,
    pseudo: Sum,
    known: RxChecksum,
    is_v4: bool,
) -> Result<u16, DropReason> {
    let len = header.length.get();
    if usize::from(len) < HEADER || len > ip_payload {
        return Err(DropReason::UdpLength);
    }
    if header.destination_port.get() == 0 {
        return Err(DropReason::ZeroPort);
    }
    let start = at.wrapping_sub(HEADER);
    let Some(bytes) = frame.get(start..start.wrapping_add(usize::from(len))) else {
        return Err(DropReason::UdpLength);
    };
    let field = header.checksum.get();
    let pseudo = pseudo.field(u16::from(ipv4::UDP)).field(len);
    if field == 0 {
        if !is_v4 {
            return Err(DropReason::ChecksumMissing);
        }
        return Ok(len.wrapping_sub(HEADER as u16));
    }
    let is_known = match known {
        RxChecksum::Unknown => false,
        RxChecksum::Partial => field == pseudo.fold(),
        // Where the two lengths differ, cards do not agree which one counts.
        RxChecksum::Good => len == ip_payload,
    };
    if !is_known && pseudo.bytes(bytes).fold() != 0xffff {
        return Err(DropReason::ChecksumBad);
    }
    Ok(len.wrapping_sub(HEADER as u16))
}

/// The UDP header for a payload. `pseudo` is the sum of the two addresses.
#[inline]
pub(super) fn emit(
    payload: &[u8],
    headers: &Headers,
    len: u16,
    pseudo: Sum,
    checksum: TxChecksum,
) -> Layout {
    let pseudo = pseudo.field(u16::from(ipv4::UDP)).field(len);
    let sum = match checksum {
        TxChecksum::Off => 0,
        TxChecksum::Pseudo => pseudo.fold(),
        TxChecksum::Whole => {
            let sum = pseudo
                .field(headers.source_port)
                .field(headers.destination_port)
                .field(len)
                .bytes(payload);
            // Zero means "no checksum" on the wire; its equal in one's complement is sent instead.
            match !sum.fold() {
                0 => 0xffff,
                sum => sum,
            }
        }
    };
    Layout {
        source_port: headers.source_port.into(),
        destination_port: headers.destination_port.into(),
        length: len.into(),
        checksum: sum.into(),
    }
}
