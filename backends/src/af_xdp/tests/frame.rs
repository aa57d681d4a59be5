//! Frames by hand: what goes to the wire, and what came from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const UDP: u8 = 17;
pub(super) const TCP: u8 = 6;

/// Ethernet header.
pub(super) fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// IPv4 header with `options` (a multiple of 4 bytes).
pub(super) fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let total = (header + payload.len()) as u16;
    let mut bytes = vec![0x40 | (header / 4) as u8, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(options);
    let checksum = checksum(0, &bytes);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// IPv6 header.
pub(super) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

/// UDP header with a complete checksum.
pub(super) fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut bytes = [from.1, to.1, length, 0]
        .iter()
        .flat_map(|half| half.to_be_bytes())
        .collect::<Vec<u8>>();
    bytes.extend(payload);
    let sum = checksum(pseudo_header(from.0, to.0, UDP, length), &bytes);
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// TCP header without data; `flags` is the byte of SYN (2), ACK (16) and so on.
pub(super) fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut bytes = [from, to]
        .iter()
        .flat_map(|half| half.to_be_bytes())
        .collect::<Vec<u8>>();
    bytes.extend([0; 8]);
    bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// Sum over the pseudo header, not folded.
pub(super) fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: u16) -> u32 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let addresses = [octets(from), octets(to)].concat();
    sum(u32::from(protocol) + u32::from(length), &addresses)
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
    })
}

/// Sum of 16 bits.
pub(super) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Internet checksum, continuing from `start`.
pub(super) fn checksum(start: u32, bytes: &[u8]) -> u16 {
    !fold(sum(start, bytes))
}

/// Destination port and payload of a UDP frame without options or tags.
pub(super) fn datagram(frame: &[u8]) -> (u16, &[u8]) {
    let header = if frame[12..14] == [0x86, 0xdd] {
        54
    } else {
        34
    };
    let port = u16::from_be_bytes([frame[header + 2], frame[header + 3]]);
    let length = usize::from(u16::from_be_bytes([frame[header + 4], frame[header + 5]]));
    (port, &frame[header + 8..header + length])
}
