//! Ethernet II header: destination, source, EtherType; 14 bytes.

use crate::counters::DropReason;

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

/// Writes a header.
#[inline]
pub fn emit(into: &mut [u8; HEADER], destination: &[u8; 6], source: &[u8; 6], ether_type: u16) {
    let (to, rest) = into.split_at_mut(6);
    let (from, kind) = rest.split_at_mut(6);
    to.copy_from_slice(destination);
    from.copy_from_slice(source);
    kind.copy_from_slice(&ether_type.to_be_bytes());
}
