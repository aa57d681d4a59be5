//! A VLAN of a card: frames that have a tag on the wire, and none for the stack.
//!
//! ```text
//!   wire    to, from, 0x8100, tag, type, packet
//!   stack   to, from, type, packet
//! ```
//!
//! The card's filters know the VLAN, so that nothing of another one comes. What the interface says
//! of priorities (egress-qos-map) is not followed: frames leave with priority 0.

#![expect(unsafe_code, reason = "UNSAFETY: copies frames that others may change")]

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use crate::netlink;

/// Ethernet type of a tag.
const TAG: u16 = 0x8100;
/// Bytes of both addresses of a frame.
pub(super) const ADDRESSES: usize = 12;
/// Bytes of a tag with its type.
pub(super) const BYTES: usize = 4;

/// A VLAN on an interface that is a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vlan {
    /// The card's interface.
    pub(super) card: String,
    /// VLAN id.
    pub(super) id: u16,
    /// MTU of the VLAN's interface in bytes.
    pub(super) mtu: u32,
}

impl Vlan {
    /// The VLAN that an interface of the kernel is; `None` when it is none, or is not there.
    ///
    /// # Errors
    /// A sentence: its tags are of another kind.
    pub(super) fn of(interface: &str) -> Result<Option<Self>, String> {
        let flags = SocketFlags::CLOEXEC;
        let Ok(socket) = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None) else {
            return Ok(None);
        };
        let index = netdevice::name_to_index(&socket, interface);
        let link = index.and_then(netlink::vlan).ok().flatten();
        let Some(link) = link else { return Ok(None) };
        if link.tag != TAG || link.id == 0 {
            let tag = link.tag;
            return Err(format!(
                "{interface}: VLAN {} with tags of type {tag:#06x}: only 802.1Q (0x8100) is served",
                link.id
            ));
        }
        let below = netdevice::index_to_name_inlined(&socket, link.below);
        let card = below.map_err(|errno| format!("{interface}: the interface below: {errno}"))?;
        Ok(Some(Self {
            card: card.as_str().to_owned(),
            id: link.id,
            mtu: link.mtu,
        }))
    }
}

/// The tag of a VLAN, with its type.
fn tag(id: u16) -> [u8; BYTES] {
    let ([one, two], [three, four]) = (TAG.to_be_bytes(), id.to_be_bytes());
    [one, two, three, four]
}

/// Copies a frame with the tag of a VLAN.
///
/// # Safety
/// - The frame's bytes are mapped, at least [`ADDRESSES`]. They may change meanwhile.
/// - There is room for them and [`BYTES`] more at `to`, which is nobody else's.
pub(super) unsafe fn copy_tagged(frame: *const u8, length: usize, id: u16, to: *mut u8) {
    let (tag, rest) = (tag(id), length - ADDRESSES);
    // SAFETY: the caller's word.
    unsafe {
        std::ptr::copy_nonoverlapping(frame, to, ADDRESSES);
        std::ptr::copy_nonoverlapping(tag.as_ptr(), to.add(ADDRESSES), BYTES);
        std::ptr::copy_nonoverlapping(frame.add(ADDRESSES), to.add(ADDRESSES + BYTES), rest);
    }
}

/// Takes the tag off a frame, into `room`; `None` when it is not one of this VLAN.
pub(super) fn untag<'r>(frame: &[u8], id: u16, room: &'r mut Vec<u8>) -> Option<&'r [u8]> {
    /// The id without priority and drop eligibility.
    const ID: u16 = 0xfff;
    let (addresses, rest) = frame.split_first_chunk::<ADDRESSES>()?;
    let (tag, rest) = rest.split_first_chunk::<BYTES>()?;
    let [one, two, three, four] = *tag;
    let is_ours = u16::from_be_bytes([one, two]) == TAG;
    if !is_ours || u16::from_be_bytes([three, four]) & ID != id {
        return None;
    }
    room.clear();
    room.extend_from_slice(addresses);
    room.extend_from_slice(rest);
    Some(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_vlan_has_none() {
        assert_eq!(Vlan::of("lo"), Ok(None));
        assert_eq!(Vlan::of("no-such-if"), Ok(None));
    }

    #[test]
    fn a_tag_comes_off_where_it_is_ours() {
        let mut frame = vec![9; ADDRESSES];
        frame.extend(tag(7));
        frame.extend([8, 0, 1, 2, 3]);
        let mut room = Vec::new();
        let plain = [&[9; ADDRESSES][..], &[8, 0, 1, 2, 3]].concat();
        assert_eq!(untag(&frame, 7, &mut room), Some(&plain[..]));
        assert_eq!(untag(&frame, 8, &mut room), None);
        frame[14] |= 0xe0;
        assert_eq!(
            untag(&frame, 7, &mut room),
            Some(&plain[..]),
            "with a priority"
        );
        for length in 0..16 {
            assert_eq!(untag(&frame[..length], 7, &mut room), None);
        }
        assert_eq!(untag(&plain, 7, &mut room), None);
    }
}
