//! What a sender's ancillary data asks for, read from a control buffer of any content.

use std::mem::size_of;

use bypass_stack::IpAddress;
use libc::{IPPROTO_IP, IPPROTO_IPV6, c_int, cmsghdr, in_pktinfo, in6_pktinfo};

pub(crate) const HEADER: usize = size_of::<cmsghdr>();

pub(crate) const fn aligned(length: usize) -> usize {
    length.next_multiple_of(size_of::<usize>())
}

/// What a sender's ancillary data asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Source address (IP_PKTINFO, IPV6_PKTINFO).
    pub source: Option<IpAddress>,
    /// Interface (IP_PKTINFO, IPV6_PKTINFO); 0 = any.
    pub ifindex: u32,
    /// Segment size (UDP_SEGMENT).
    pub gso_size: Option<u16>,
    /// Something that only the kernel provides.
    pub foreign: bool,
}

/// Reads a sender's control buffer. Anything malformed or unknown is the kernel's to judge.
pub fn read(buffer: &[u8]) -> Asked {
    let mut asked = Asked::default();
    let mut rest = buffer;
    while rest.len() >= HEADER {
        let word = |at: usize| {
            rest.get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, c_int::from_ne_bytes)
        };
        let length = rest
            .get(..8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, usize::from_ne_bytes);
        let (level, kind) = (word(8), word(12));
        let Some(data) = rest.get(HEADER..length) else {
            asked.foreign = true;
            return asked;
        };
        read_one(level, kind, data, &mut asked);
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    asked
}

fn read_one(level: c_int, kind: c_int, data: &[u8], asked: &mut Asked) {
    /// `UDP_SEGMENT` of linux/udp.h.
    const UDP_SEGMENT: c_int = 103;
    match (level, kind) {
        (IPPROTO_IP, libc::IP_PKTINFO) if data.len() == size_of::<in_pktinfo>() => {
            asked.ifindex = u32::from_ne_bytes(data[..4].try_into().unwrap_or_default());
            let source: [u8; 4] = data[4..8].try_into().unwrap_or_default();
            if source != [0; 4] {
                asked.source = Some(IpAddress::from_v4(source));
            }
        }
        (IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() == size_of::<in6_pktinfo>() => {
            let source: [u8; 16] = data[..16].try_into().unwrap_or_default();
            asked.ifindex = u32::from_ne_bytes(data[16..20].try_into().unwrap_or_default());
            if source != [0; 16] {
                asked.source = Some(IpAddress(source));
            }
        }
        (libc::SOL_UDP, UDP_SEGMENT) if data.len() == 2 => {
            asked.gso_size = Some(u16::from_ne_bytes([data[0], data[1]]));
        }
        _ => asked.foreign = true,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn garbage_is_the_kernels() {
        assert!(super::read(&[0xff; 40]).foreign);
    }
}
