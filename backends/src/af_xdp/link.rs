//! What rtnetlink says about the XDP program of an interface.
//!
//! One request, one answer, on a socket of its own: RTM_GETLINK for one index, of which the nested
//! attribute IFLA_XDP is read (rtnetlink(7), linux/if_link.h).

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct ifinfomsg`.
const LINK: usize = 16;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
/// Attribute type without the flags in its two highest bits.
const TYPE_MASK: u16 = 0x3fff;

/// Where XDP programs are attached to an interface: `XDP_ATTACHED_…` of linux/if_link.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    Nothing,
    Native,
    Generic,
    /// In the NIC itself, or at several places.
    Other,
}

/// Asks where a program is attached.
///
/// # Errors
/// `ENODEV` when there is no such interface; `EBADMSG` for an answer that is none.
pub(super) fn attached(ifindex: u32) -> Result<Attached, Errno> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is protocol 0.
    )?;
    let mut request = [0_u8; HEADER + LINK];
    request[..4].copy_from_slice(&((HEADER + LINK) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[HEADER + 4..HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &request, SendFlags::empty(), &kernel)?;
    let mut answer = vec![0_u8; 32 * 1024];
    let (count, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    parse(&answer[..count])
}

fn parse(answer: &[u8]) -> Result<Attached, Errno> {
    let length = word(answer, 0).ok_or(Errno::BADMSG)? as usize;
    let message = answer.get(HEADER..length).ok_or(Errno::BADMSG)?;
    match half(answer, 4) {
        Some(RTM_NEWLINK) => {}
        Some(NLMSG_ERROR) => {
            let errno = word(message, 0).ok_or(Errno::BADMSG)?.cast_signed();
            return Err(Errno::from_raw_os_error(-errno));
        }
        _ => return Err(Errno::BADMSG),
    }
    let attributes = message.get(LINK..).ok_or(Errno::BADMSG)?;
    let mode = find(attributes, IFLA_XDP)
        .and_then(|xdp| find(xdp, IFLA_XDP_ATTACHED))
        .and_then(<[u8]>::first);
    Ok(match mode {
        None | Some(0) => Attached::Nothing,
        Some(1) => Attached::Native,
        Some(2) => Attached::Generic,
        Some(_) => Attached::Other,
    })
}

/// The payload of the first attribute of a type.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(half(attributes, 0)?);
        let payload = attributes.get(4..length)?;
        if half(attributes, 2)? & TYPE_MASK == wanted {
            return Some(payload);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(two.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn loopback_has_no_program_and_index_zero_no_interface() {
        assert_eq!(attached(1), Ok(Attached::Nothing));
        assert!(attached(i32::MAX as u32).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
            let _ = find(&bytes, IFLA_XDP);
        }
    }
}
