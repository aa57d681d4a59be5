//! What netlink knows of an interface: the XDP program that is attached, the VLAN that it is and
//! the addresses of its virtual functions (rtnetlink, nested attributes IFLA_XDP, IFLA_LINKINFO and
//! IFLA_VFINFO_LIST of RTM_GETLINK), and what its driver can do with XDP (generic netlink, family
//! `netdev`, kernel 6.3 and newer).
//!
//! One request, one answer, each on a socket of its own; linux/if_link.h and linux/netdev.h have
//! the numbers.

use rustix::io::Errno;
use rustix::net::netlink::GENERIC;

use super::{ask, attribute, attributes, find, half, payload, word};

/// Bytes of `struct ifinfomsg`.
const LINK: usize = 16;
/// Bytes of `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;
const RTM_GETLINK: u16 = 18;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_VF_MAC: u16 = 1;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// Where XDP programs are attached to an interface: `XDP_ATTACHED_…` of linux/if_link.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Nowhere.
    Nothing,
    /// In the driver.
    Native,
    /// Behind the driver.
    Generic,
    /// In the NIC itself, or at several places.
    Other,
}

/// What a driver's XDP can do: `NETDEV_XDP_ACT_…` of linux/netdev.h. With none of it the kernel's
/// generic path serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// Programs run in the driver, and can lead frames to AF_XDP.
    #[must_use]
    pub fn is_native(self) -> bool {
        const BASIC: u64 = 1;
        const REDIRECT: u64 = 2;
        self.0 & (BASIC | REDIRECT) == BASIC | REDIRECT
    }

    /// AF_XDP works without copying.
    #[must_use]
    pub fn is_zero_copy(self) -> bool {
        const XSK_ZEROCOPY: u64 = 8;
        self.0 & XSK_ZEROCOPY != 0
    }
}

/// Asks where a program is attached.
///
/// # Errors
/// `ENODEV` when there is no such interface; `EBADMSG` for an answer that is none.
pub fn attached(ifindex: u32) -> Result<Attached, Errno> {
    let mut link = [0; LINK];
    link[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = ask(None, RTM_GETLINK, &link)?;
    Ok(attached_of(payload(&answer)?))
}

/// What a link's message says of [`attached`].
#[must_use]
pub fn attached_of(message: &[u8]) -> Attached {
    let mode = message
        .get(LINK..)
        .and_then(|attributes| find(attributes, IFLA_XDP))
        .and_then(|xdp| find(xdp, IFLA_XDP_ATTACHED))
        .and_then(<[u8]>::first);
    match mode {
        None | Some(0) => Attached::Nothing,
        Some(1) => Attached::Native,
        Some(2) => Attached::Generic,
        Some(_) => Attached::Other,
    }
}

/// What a VLAN interface is: an interface and a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanLink {
    /// Index of the interface below.
    pub below: u32,
    /// VLAN id, 1 to 4094; 0 = priority only.
    pub id: u16,
    /// Ethernet type of the tag: 0x8100, or 0x88a8 of 802.1ad.
    pub tag: u16,
    /// Its own MTU in bytes.
    pub mtu: u32,
}

/// Asks what a VLAN interface is; `None` when it is no such interface.
///
/// # Errors
/// `ENODEV` when there is no such interface; `EBADMSG` for an answer that is none.
pub fn vlan(ifindex: u32) -> Result<Option<VlanLink>, Errno> {
    let mut link = [0; LINK];
    link[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = ask(None, RTM_GETLINK, &link)?;
    Ok(vlan_of(payload(&answer)?))
}

/// What a link's message says of [`vlan`].
#[must_use]
pub fn vlan_of(message: &[u8]) -> Option<VlanLink> {
    let attributes = message.get(LINK..)?;
    let info = find(attributes, IFLA_LINKINFO)?;
    if !find(info, IFLA_INFO_KIND)?.starts_with(b"vlan\0") {
        return None;
    }
    let data = find(info, IFLA_INFO_DATA)?;
    Some(VlanLink {
        below: word(find(attributes, IFLA_LINK)?, 0)?,
        id: half(find(data, IFLA_VLAN_ID)?, 0)?,
        tag: u16::from_be(half(find(data, IFLA_VLAN_PROTOCOL)?, 0)?),
        mtu: word(find(attributes, IFLA_MTU)?, 0)?,
    })
}

/// Asks for the MAC address that a physical function (an interface) has for one of its virtual
/// ones; `None` when it has none for it, as some drivers before the administrator gives one.
///
/// # Errors
/// `ENODEV` when there is no such interface; `EBADMSG` for an answer that is none.
pub fn function_mac(ifindex: u32, function: u32) -> Result<Option<[u8; 6]>, Errno> {
    /// RTEXT_FILTER_VF and RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
    const FUNCTIONS: u32 = 1 | 8;
    let mut link = vec![0; LINK];
    link[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    link.extend(attribute(IFLA_EXT_MASK, &FUNCTIONS.to_ne_bytes()));
    let answer = ask(None, RTM_GETLINK, &link)?;
    Ok(function_mac_of(payload(&answer)?, function))
}

/// What a link's message says of [`function_mac`].
#[must_use]
pub fn function_mac_of(message: &[u8], function: u32) -> Option<[u8; 6]> {
    let functions = find(message.get(LINK..)?, IFLA_VFINFO_LIST)?;
    // `struct ifla_vf_mac`: the number, then the address.
    let mut macs = attributes(functions).filter_map(|(_, info)| find(info, IFLA_VF_MAC));
    let mac = macs.find(|mac| word(mac, 0) == Some(function))?;
    let mac = *mac.get(4..)?.first_chunk()?;
    (mac != [0; 6]).then_some(mac)
}

/// Asks what the driver of an interface can do.
///
/// # Errors
/// `ENOENT` on kernels before 6.3, `ENODEV` when there is no such interface.
pub fn xdp_features(ifindex: u32) -> Result<XdpFeatures, Errno> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, c"netdev".to_bytes_with_nul());
    let family = ask_generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    let family = family_of(payload(&family)?).ok_or(Errno::BADMSG)?;
    let index = attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let device = ask_generic(family, NETDEV_CMD_DEV_GET, &index)?;
    features_of(payload(&device)?).ok_or(Errno::BADMSG)
}

/// The number of a generic family, by its message.
#[must_use]
pub fn family_of(message: &[u8]) -> Option<u16> {
    half(
        find(message.get(GENERIC_HEADER..)?, CTRL_ATTR_FAMILY_ID)?,
        0,
    )
}

/// What a message of the family `netdev` says of [`xdp_features`].
#[must_use]
pub fn features_of(message: &[u8]) -> Option<XdpFeatures> {
    let features = find(message.get(GENERIC_HEADER..)?, NETDEV_A_DEV_XDP_FEATURES)?;
    Some(XdpFeatures(u64::from_ne_bytes(features.try_into().ok()?)))
}

fn ask_generic(family: u16, command: u8, attributes: &[u8]) -> Result<Vec<u8>, Errno> {
    const VERSION: u8 = 1;
    let body = [&[command, VERSION, 0, 0], attributes].concat();
    ask(Some(GENERIC), family, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index that no interface has.
    const NOBODY: u32 = 0x7fff_fff0;

    #[test]
    fn loopback_has_no_program_and_no_native_xdp() {
        assert_eq!(attached(1), Ok(Attached::Nothing));
        assert_eq!(attached(NOBODY), Err(Errno::NODEV));
        match xdp_features(1) {
            Ok(features) => assert!(!features.is_native() && !features.is_zero_copy()),
            Err(errno) => assert_eq!(errno, Errno::NOENT),
        }
        assert!(xdp_features(NOBODY).is_err());
    }

    #[test]
    fn a_vlan_is_an_interface_and_a_tag() {
        assert_eq!(vlan(1), Ok(None));
        assert_eq!(vlan(NOBODY), Err(Errno::NODEV));
        let message = |name: &[u8]| {
            let data = [
                attribute(IFLA_VLAN_ID, &7_u16.to_ne_bytes()),
                attribute(IFLA_VLAN_PROTOCOL, &0x8100_u16.to_be_bytes()),
            ];
            let info = [
                attribute(IFLA_INFO_KIND, name),
                attribute(IFLA_INFO_DATA, &data.concat()),
            ];
            let link = [
                vec![0; LINK],
                attribute(IFLA_MTU, &1400_u32.to_ne_bytes()),
                attribute(IFLA_LINK, &5_u32.to_ne_bytes()),
                attribute(IFLA_LINKINFO, &info.concat()),
            ];
            link.concat()
        };
        let (below, id, tag, mtu) = (5, 7, 0x8100, 1400);
        let seven = VlanLink {
            below,
            id,
            tag,
            mtu,
        };
        assert_eq!(vlan_of(&message(b"vlan\0")), Some(seven));
        assert_eq!(vlan_of(&message(b"vxlan\0")), None);
        let whole = message(b"vlan\0");
        for length in 0..whole.len() {
            assert_eq!(vlan_of(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_virtual_function_has_the_address_of_its_number() {
        assert_eq!(function_mac(1, 0), Ok(None));
        let info = |number: u32, mac: [u8; 6]| {
            let value = [&number.to_ne_bytes()[..], &mac, &[0; 26]].concat();
            attribute(1, &attribute(IFLA_VF_MAC, &value))
        };
        let mac = [2, 0, 0, 0, 0, 7];
        let list = [info(0, [0; 6]), info(1, mac)].concat();
        let message = [vec![0; LINK], attribute(IFLA_VFINFO_LIST, &list)].concat();
        let found = [0, 1, 2].map(|number| function_mac_of(&message, number));
        assert_eq!(found, [None, Some(mac), None]);
        for length in 0..message.len() {
            assert_eq!(function_mac_of(&message[..length], 1), None, "{length}");
        }
    }
}
