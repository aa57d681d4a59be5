//! What a sender's ancillary data asks for, read from a control buffer of any content.

use std::mem::size_of;

use bypass_stack::IpAddress;
use libc::{IPPROTO_IP, IPPROTO_IPV6, c_int, cmsghdr, in_pktinfo, in6_pktinfo};

pub(super) const HEADER: usize = size_of::<cmsghdr>();

pub(super) const fn aligned(length: usize) -> usize {
    length.next_multiple_of(size_of::<usize>())
}

/// One message of a control buffer.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `cmsg_level`.
    pub level: c_int,
    /// `cmsg_type`.
    pub kind: c_int,
    /// What it carries; `None` when its length lies.
    pub data: Option<&'a [u8]>,
}

/// The messages of a control buffer of any content, up to the first whose length lies.
pub fn messages(buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER>()?;
        let word = |at: usize| {
            let bytes = header.get(at..at + 4).and_then(|it| it.try_into().ok());
            bytes.map_or(0, c_int::from_ne_bytes)
        };
        let length = header
            .first_chunk()
            .map_or(0, |it| usize::from_ne_bytes(*it));
        let data = rest.get(HEADER..length);
        let behind = data.and_then(|_| rest.get(aligned(length)..));
        rest = behind.unwrap_or_default();
        Some(Message {
            level: word(8),
            kind: word(12),
            data,
        })
    })
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
    for message in messages(buffer) {
        match message.data {
            Some(data) => read_one(message.level, message.kind, data, &mut asked),
            None => asked.foreign = true,
        }
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
