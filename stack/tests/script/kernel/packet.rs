//! Packets of the TUN device, which have no Ethernet header, and ICMP errors about them.

use crate::common::{MAC, PEER_MAC, plain_sum};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
const TCP: u8 = 6;

/// A TCP packet as a frame from us to the peer; none for anything else, such as multicast of IPv6.
pub fn frame_of(packet: &[u8]) -> Option<Vec<u8>> {
    let (is_v4, protocol) = match packet.first()? >> 4 {
        4 => (true, *packet.get(9)?),
        _ => (false, *packet.get(6)?),
    };
    if protocol != TCP {
        return None;
    }
    let ether_type: [u8; 2] = if is_v4 { [8, 0] } else { [0x86, 0xdd] };
    Some([&PEER_MAC[..], &MAC, &ether_type, packet].concat())
}

/// The packet of a frame.
pub fn packet_of(frame: &[u8]) -> &[u8] {
    &frame[ETHERNET..]
}

/// An ICMP error of the peer's host, or of a router with its address: type, code, the word behind
/// the checksum, and the packet it complains about.
pub fn icmp(kind: u8, code: u8, word: u32, about: &[u8]) -> Vec<u8> {
    let is_v4 = about[0] >> 4 == 4;
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(&about[..about.len().min(48 + 8)]);
    let len = message.len() as u16;
    if is_v4 {
        let sum = !plain_sum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend((20 + len).to_be_bytes());
        ip.extend([0, 9, 0, 0, 64, 1, 0, 0]);
        ip.extend(&about[16..20]);
        ip.extend(&about[12..16]);
        let sum = !plain_sum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        return [ip, message].concat();
    }
    let (from, to) = (&about[24..40], &about[8..24]);
    let pseudo = [from, to, &[0, 0], &len.to_be_bytes(), &[0, 0, 0, 58]].concat();
    let sum = !plain_sum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(len.to_be_bytes());
    ip.extend([58, 64]);
    ip.extend(from);
    ip.extend(to);
    [ip, message].concat()
}
