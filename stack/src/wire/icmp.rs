//! ICMP errors (RFC 792, RFC 4443): about which packet of ours, and what is wrong with it.
//!
//! Absent: everything that is no error (echo, neighbour discovery), redirects, and messages about
//! fragments that are not the first, which do not say whose they are.

use super::checksum::Sum;
use super::{ipv4, ipv6};
use crate::types::{IpAddress, SocketAddress};

/// Bytes of the header of an ICMP error.
const HEADER: usize = 8;

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Sender of the packet that it quotes: us, if it is honest.
    pub local: SocketAddress,
    /// Where that packet was to go.
    pub remote: SocketAddress,
    /// Its protocol.
    pub protocol: u8,
    /// Its sequence number, if it is a TCP segment.
    pub seq: u32,
    /// What is wrong.
    pub trouble: Trouble,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is longer than this path's MTU in bytes, as told; 0 = a router that does not tell.
    TooBig(u16),
    /// It cannot be delivered.
    Unreachable {
        /// Linux's errno for it (net/ipv4/icmp.c:icmp_err_convert, net/ipv6/icmp.c:
        /// icmpv6_err_convert).
        errno: i32,
        /// There is no way to the host now: a timeout says nothing about congestion (RFC 6069).
        no_route: bool,
        /// A request for a connection is forgotten for it (net/ipv4/tcp_ipv4.c:tcp_v4_err, the
        /// `fatal` of net/ipv6/icmp.c:icmpv6_err_convert).
        ends_request: bool,
    },
}

/// Linux's errno values for messages.
mod errno {
    pub(super) const EACCES: i32 = 13;
    pub(super) const ENONET: i32 = 64;
    pub(super) const EPROTO: i32 = 71;
    pub(super) const ENOPROTOOPT: i32 = 92;
    pub(super) const EOPNOTSUPP: i32 = 95;
    pub(super) const ENETUNREACH: i32 = 101;
    pub(super) const ECONNREFUSED: i32 = 111;
    pub(super) const EHOSTDOWN: i32 = 112;
    pub(super) const EHOSTUNREACH: i32 = 113;
}

/// By code of a destination unreachable message of IPv4; code 4 is [`Trouble::TooBig`].
const UNREACHABLE_V4: [i32; 16] = [
    errno::ENETUNREACH,
    errno::EHOSTUNREACH,
    errno::ENOPROTOOPT,
    errno::ECONNREFUSED,
    0,
    errno::EOPNOTSUPP,
    errno::ENETUNREACH,
    errno::EHOSTDOWN,
    errno::ENONET,
    errno::ENETUNREACH,
    errno::EHOSTUNREACH,
    errno::ENETUNREACH,
    errno::EHOSTUNREACH,
    errno::EHOSTUNREACH,
    errno::EHOSTUNREACH,
    errno::EHOSTUNREACH,
];

/// By code of a destination unreachable message of IPv6.
const UNREACHABLE_V6: [i32; 7] = [
    errno::ENETUNREACH,
    errno::EACCES,
    errno::EHOSTUNREACH,
    errno::EHOSTUNREACH,
    errno::ECONNREFUSED,
    errno::EACCES,
    errno::EACCES,
];

/// The ICMP error in an IPv4 packet, if it is one: with its IP header, as a raw socket gives it,
/// before anybody has checked the checksum.
#[must_use]
pub fn parse_v4(packet: &[u8]) -> Option<IcmpError> {
    let (message, _) = behind_ipv4(packet)?;
    if Sum::new().bytes(message).fold() != 0xffff {
        return None;
    }
    let (header, quoted) = message.split_first_chunk::<HEADER>()?;
    let [kind, code, _, _, _, _, high, low] = *header;
    let trouble = match (kind, code) {
        (3, 4) => Trouble::TooBig(u16::from_be_bytes([high, low])),
        (3, _) => Trouble::Unreachable {
            errno: *UNREACHABLE_V4.get(usize::from(code))?,
            no_route: code <= 1,
            ends_request: code <= 1,
        },
        (11, _) => unreachable(errno::EHOSTUNREACH, true),
        (12, _) => unreachable(errno::EPROTO, true),
        _ => return None,
    };
    let (transport, ip) = behind_ipv4(quoted)?;
    let fragment = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]);
    if fragment & 0x1fff != 0 {
        return None;
    }
    let address =
        |at: usize| -> Option<IpAddress> { Some(IpAddress::mapped(*ip.get(at..)?.first_chunk()?)) };
    about(
        (address(12)?, address(16)?),
        *ip.get(9)?,
        transport,
        trouble,
    )
}

/// The ICMP error in an ICMPv6 message, if it is one: without IP header and with a right checksum,
/// as a raw socket gives it.
#[must_use]
pub fn parse_v6(message: &[u8]) -> Option<IcmpError> {
    let (header, quoted) = message.split_first_chunk::<HEADER>()?;
    let [kind, code, _, _, a, b, c, d] = *header;
    let trouble = match kind {
        1 => {
            let known = UNREACHABLE_V6.get(usize::from(code)).copied();
            Trouble::Unreachable {
                errno: known.unwrap_or(errno::EPROTO),
                no_route: code == 0,
                ends_request: !matches!(code, 0 | 2 | 3),
            }
        }
        2 => {
            let mtu = u32::from_be_bytes([a, b, c, d]);
            Trouble::TooBig(u16::try_from(mtu).unwrap_or(u16::MAX))
        }
        3 => unreachable(errno::EHOSTUNREACH, false),
        4 => unreachable(errno::EPROTO, true),
        _ => return None,
    };
    let (ip, transport) = quoted.split_first_chunk::<{ ipv6::HEADER }>()?;
    if ip.first()? >> 4 != 6 {
        return None;
    }
    let address =
        |at: usize| -> Option<IpAddress> { Some(IpAddress(*ip.get(at..)?.first_chunk()?)) };
    about((address(8)?, address(24)?), *ip.get(6)?, transport, trouble)
}

fn unreachable(errno: i32, ends_request: bool) -> Trouble {
    Trouble::Unreachable {
        errno,
        no_route: false,
        ends_request,
    }
}

/// What is behind an IPv4 header, options included, and that header.
fn behind_ipv4(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = *packet.first()?;
    let len = usize::from(first & 15).saturating_mul(4);
    if first >> 4 != 4 || len < ipv4::HEADER {
        return None;
    }
    let (header, rest) = packet.split_at_checked(len)?;
    Some((rest, header))
}

/// An error about a packet between these addresses, of which at least eight bytes are quoted.
fn about(
    (source, destination): (IpAddress, IpAddress),
    protocol: u8,
    transport: &[u8],
    trouble: Trouble,
) -> Option<IcmpError> {
    let [a, b, c, d, e, f, g, h] = *transport.first_chunk::<8>()?;
    Some(IcmpError {
        local: SocketAddress::new(source, u16::from_be_bytes([a, b])),
        remote: SocketAddress::new(destination, u16::from_be_bytes([c, d])),
        protocol,
        seq: u32::from_be_bytes([e, f, g, h]),
        trouble,
    })
}
