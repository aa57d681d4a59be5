//! Two netlink dumps: links with their XDP programs, and nftables rules.
//!
//! Messages are 16 bytes of header, a fixed part, attributes (length, type, value, padded to 4).
//! What is too short ends the reading, what is unknown is skipped: rtnetlink(7), nfnetlink.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
    socket_with, sockopt,
};

const HEADER: usize = 16;
/// `RTM_NEWLINK`, `RTM_GETLINK`.
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
/// Subsystem nftables, `NFT_MSG_NEWRULE` and `NFT_MSG_GETRULE`.
const NEW_RULE: u16 = 10 << 8 | 6;
const GET_RULE: u16 = 10 << 8 | 7;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `MAX_ERRNO` of linux/err.h.
const LARGEST_ERRNO: i32 = 4095;

/// A link, as far as the doctor asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) ifindex: u32,
    /// "veth", "bridge", …; empty for hardware.
    pub(super) kind: String,
    /// `ARPHRD_*`: 1 = Ethernet, 772 = loopback.
    pub(super) device_type: u16,
    pub(super) up: bool,
    /// Is a port of a bridge, bond or the like.
    pub(super) has_master: bool,
    pub(super) mtu: u32,
    /// Program attached and how.
    pub(super) xdp: Option<Xdp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Xdp {
    /// "native", "generic", "offloaded", "several".
    pub(super) mode: &'static str,
    pub(super) program: u32,
}

/// Every link of this network namespace.
pub(super) fn links() -> Result<Vec<Link>, Errno> {
    let mut links = Vec::new();
    // struct ifinfomsg is 16 bytes.
    dump(None, GET_LINK, 16, |kind, body| {
        if kind == NEW_LINK {
            links.extend(link(body));
        }
    })?;
    Ok(links)
}

/// Count of nftables rules by table.
pub(super) fn nft_rules() -> Result<BTreeMap<String, usize>, Errno> {
    let mut tables = BTreeMap::new();
    // struct nfgenmsg is 4 bytes.
    dump(Some(netlink::NETFILTER), GET_RULE, 4, |kind, body| {
        if kind == NEW_RULE
            && let Some(table) = table_of(body)
        {
            *tables.entry(table).or_default() += 1;
        }
    })?;
    Ok(tables)
}

/// The table of an nftables rule.
pub(super) fn table_of(rule: &[u8]) -> Option<String> {
    /// `NFTA_RULE_TABLE`.
    const TABLE: u16 = 1;
    inside(rule.get(4..)?, TABLE).map(text)
}

fn dump(
    protocol: Option<Protocol>,
    kind: u16,
    fixed: usize,
    mut each: impl FnMut(u16, &[u8]),
) -> Result<(), Errno> {
    /// `NLM_F_REQUEST | NLM_F_DUMP`.
    const FLAGS: u16 = 0x301;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    let patience = Some(std::time::Duration::from_secs(2));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience)?;
    let mut request = Vec::with_capacity(HEADER + fixed);
    request.extend_from_slice(&((HEADER + fixed) as u32).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&FLAGS.to_ne_bytes());
    request.resize(HEADER + fixed, 0);
    send(&socket, &request, SendFlags::empty())?;
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 256 * 1024];
    loop {
        let ((bytes, _), _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(end) = read(bytes, &mut each) {
            return end;
        }
    }
}

/// Reads one datagram of a dump; how the dump ends, if it ends there.
pub(super) fn read(bytes: &[u8], each: &mut impl FnMut(u16, &[u8])) -> Option<Result<(), Errno>> {
    for (kind, body) in messages(bytes) {
        let code = number(body, 0).map_or(0, u32::cast_signed).wrapping_neg();
        match kind {
            ERROR | DONE if code > 0 => {
                return Some(Err(Errno::from_raw_os_error(code.min(LARGEST_ERRNO))));
            }
            ERROR | DONE => return Some(Ok(())),
            _ => each(kind, body),
        }
    }
    None
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = number(bytes, 0)? as usize;
        let kind = number(bytes, 4)? as u16;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = number(bytes, 0)?;
        let (length, kind) = if cfg!(target_endian = "little") {
            (head & 0xffff, head >> 16)
        } else {
            (head >> 16, head & 0xffff)
        };
        let value = bytes.get(4..length as usize)?;
        bytes = bytes
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
        // The two highest bits are flags.
        Some((kind as u16 & 0x3fff, value))
    })
}

/// A link of an `RTM_NEWLINK` message.
pub(super) fn link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        device_type: u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?),
        ifindex: number(body, 4)?,
        up: number(body, 8)? & 1 != 0,
        ..Link::default()
    };
    for (attribute, value) in attributes(body.get(16..)?) {
        match attribute {
            3 => link.name = text(value),
            4 => link.mtu = number(value, 0).unwrap_or(0),
            10 => link.has_master = number(value, 0).unwrap_or(0) != 0,
            18 => link.kind = inside(value, 1).map(text).unwrap_or_default(),
            43 => link.xdp = xdp(value),
            _ => {}
        }
    }
    Some(link)
}

/// `IFLA_XDP`: 2 = how it is attached, 4 = the program's id.
fn xdp(value: &[u8]) -> Option<Xdp> {
    let mode = match inside(value, 2)?.first()? {
        1 => "native",
        2 => "generic",
        3 => "offloaded",
        4 => "several",
        _ => return None,
    };
    let program = inside(value, 4).and_then(|id| number(id, 0)).unwrap_or(0);
    Some(Xdp { mode, program })
}

fn inside(value: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(value)
        .find(|(attribute, _)| *attribute == wanted)
        .map(|(_, value)| value)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_link_is_found() {
        let links = links().expect("every namespace has it");
        let lo = links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!((lo.device_type, lo.xdp), (772, None));
        assert!(lo.mtu > 0);
    }
}
