//! Wire formats: reading and writing Ethernet, IPv4, IPv6, UDP and TCP headers at fixed offsets.
//!
//! In goes a frame, out comes a [`Datagram`] or the one [`DropReason`]; and the other way
//! round, a template of headers in front of a payload that is already in place. `source` and
//! `destination` are used only here; above are local and remote. Only what Linux would accept is
//! accepted (RFC 768, 791, 1122, 8200); IPv4 options, fragments and IPv6 extension headers are the
//! kernel's and never come by a filter. TCP is in [`tcp`].

pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;

use crate::counters::DropReason;
use crate::stack::RxChecksum;
use crate::types::IpAddress;

/// A UDP datagram found in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Sender.
    pub source: IpAddress,
    /// Receiver.
    pub destination: IpAddress,
    /// Sender's port, host order; 0 is allowed.
    pub source_port: u16,
    /// Receiver's port, host order; not 0.
    pub destination_port: u16,
    /// TOS or traffic class byte.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes from the start of the frame to the payload.
    pub payload_offset: u16,
    /// Bytes of payload.
    pub payload_len: u16,
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
    /// TOS or traffic class byte.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification.
    pub ipv4_id: u16,
    /// IPv4 DF bit.
    pub dont_fragment: bool,
    /// The checksum.
    pub checksum: TxChecksum,
}

/// How much of the UDP or TCP checksum is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxChecksum {
    /// All of it.
    #[default]
    Whole,
    /// The sum of the pseudo-header: the card adds the rest.
    Pseudo,
    /// Nothing (UDP over IPv4 only; RFC 8200 forbids it for IPv6).
    Off,
}

/// Finds the UDP datagram of a frame that the interface with this MAC address received. An all
/// zero MAC address is not compared. `known` says whose checksum is not looked at.
#[inline]
pub fn parse(frame: &[u8], mac: &[u8; 6], known: RxChecksum) -> Result<Datagram, DropReason> {
    let header = frame
        .first_chunk::<{ ethernet::HEADER }>()
        .ok_or(DropReason::Truncated)?;
    match ethernet::ether_type(header) {
        ethernet::IPV4 => {
            ethernet::check_destination(header, mac)?;
            ipv4::parse(frame, known)
        }
        ethernet::IPV6 => {
            ethernet::check_destination(header, mac)?;
            ipv6::parse(frame, known)
        }
        ethernet::VLAN | ethernet::VLAN_SERVICE => Err(DropReason::Vlan),
        _ => Err(DropReason::EtherType),
    }
}
