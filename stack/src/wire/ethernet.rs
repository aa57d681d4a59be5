//! Ethernet II header: destination, source, EtherType; 14 bytes.

use crate::counters::DropReason;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const HEADER: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (802.1ad).
pub const VLAN_SERVICE: u16 = 0x88a8;

/// The EtherType of a header.
#[inline]
#[must_use]
pub fn ether_type(header: &[u8; HEADER]) -> u16 {
    u16::from_be_bytes([header[12], header[13]])
}

/// Checks that the frame is for this MAC address or a group. A NIC in promiscuous mode delivers
/// other hosts' frames too, which the kernel drops as we do.
#[inline]
pub fn check_destination(header: &[u8; HEADER], mac: &[u8; 6]) -> Result<(), DropReason> {
    let [a, b, c, d, e, f, ..] = *header;
    if [a, b, c, d, e, f] == *mac || a & 1 != 0 || *mac == [0; 6] {
        Ok(())
    } else {
        Err(DropReason::OtherHost)
    }
}

/// The header.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Layout {
    destination: [u8; 6],
    source: [u8; 6],
    ether_type: U16,
}

/// A header.
#[inline]
pub(super) fn header(destination: [u8; 6], source: [u8; 6], ether_type: u16) -> Layout {
    Layout {
        destination,
        source,
        ether_type: ether_type.into(),
    }
}
