//! rtnetlink messages: bytes from the kernel in, plain values out.
//!
//! Five kinds are understood: links, addresses, routes, rules and neighbours, IPv4 and IPv6. A
//! message is a 16-byte header, a fixed part that depends on its type, then attributes
//! (length, type, value, each padded to 4 bytes):
//!
//! ```text
//!   0     4      6       8     12    16
//!   | len | type | flags | seq | pid | fixed part | attribute | attribute | ... |
//! ```
//!
//! Nothing here panics on any bytes: what is too short ends the iteration, what is unknown is
//! skipped. Numbers are in host order except addresses. Reference: rtnetlink(7), and the
//! kernel's include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour,fib_rules}.h.

use bypass_stack::IpAddress;
use bypass_stack::cplane::{Address, Route, route_type};

/// Message types (RTM_*).
pub(in crate::daemon) mod kind {
    /// End of a dump.
    pub(in crate::daemon) const DONE: u16 = 3;
    /// A refusal, or an acknowledgement with error 0.
    pub(in crate::daemon) const ERROR: u16 = 2;
    pub(in crate::daemon) const NEW_LINK: u16 = 16;
    pub(in crate::daemon) const DEL_LINK: u16 = 17;
    pub(in crate::daemon) const GET_LINK: u16 = 18;
    pub(in crate::daemon) const NEW_ADDRESS: u16 = 20;
    pub(in crate::daemon) const DEL_ADDRESS: u16 = 21;
    pub(in crate::daemon) const GET_ADDRESS: u16 = 22;
    pub(in crate::daemon) const NEW_ROUTE: u16 = 24;
    pub(in crate::daemon) const DEL_ROUTE: u16 = 25;
    pub(in crate::daemon) const GET_ROUTE: u16 = 26;
    pub(in crate::daemon) const NEW_NEIGHBOUR: u16 = 28;
    pub(in crate::daemon) const DEL_NEIGHBOUR: u16 = 29;
    pub(in crate::daemon) const GET_NEIGHBOUR: u16 = 30;
    pub(in crate::daemon) const NEW_RULE: u16 = 32;
    pub(in crate::daemon) const DEL_RULE: u16 = 33;
    pub(in crate::daemon) const GET_RULE: u16 = 34;
}

/// NLM_F_DUMP_INTR: the tables changed during a dump, which is therefore not consistent.
pub(in crate::daemon) const DUMP_INTERRUPTED: u16 = 0x10;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER: usize = 16;

/// One message.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct Message<'a> {
    /// A [`kind`] or any other number.
    pub kind: u16,
    /// NLM_F_*.
    pub flags: u16,
    /// Number of the request that it answers.
    pub sequence: u32,
    /// Everything behind the header.
    pub body: &'a [u8],
}

/// The messages of one datagram, as far as they are whole.
pub(in crate::daemon) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A whole request: header and body.
pub(in crate::daemon) fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(body);
    bytes
}

/// A request for everything of one kind ([`kind::GET_LINK`] and so on), all families.
pub(in crate::daemon) fn dump_request(kind: u16, sequence: u32) -> Vec<u8> {
    /// NLM_F_REQUEST | NLM_F_DUMP.
    const FLAGS: u16 = 0x301;
    // The fixed parts differ, and zero means "all" in each; the longest (ifinfomsg) is 16 bytes.
    let fixed = match kind {
        kind::GET_LINK => 16,
        kind::GET_ADDRESS => 8,
        _ => 12,
    };
    request(kind, FLAGS, sequence, &[0; 16][..fixed])
}

/// A request that the kernel use a neighbour, and so find out its MAC address (NTF_USE of
/// linux/neighbour.h).
pub(in crate::daemon) fn use_request(target: IpAddress, ifindex: u32, sequence: u32) -> Vec<u8> {
    /// NLM_F_REQUEST | NLM_F_CREATE.
    const FLAGS: u16 = 0x401;
    const NTF_USE: u8 = 1;
    const NDA_DST: u16 = 1;
    const FIXED: usize = 12;
    let (family, address) = if target.is_v4() {
        (AF_INET, target.0.get(12..).unwrap_or_default())
    } else {
        (AF_INET6, &target.0[..])
    };
    let mut body = Vec::with_capacity(FIXED + 4 + address.len());
    body.extend_from_slice(&[family, 0, 0, 0]);
    body.extend_from_slice(&ifindex.to_ne_bytes());
    body.extend_from_slice(&[0, 0, NTF_USE, 0]);
    body.extend_from_slice(&(4 + address.len() as u16).to_ne_bytes());
    body.extend_from_slice(&NDA_DST.to_ne_bytes());
    body.extend_from_slice(address);
    request(kind::NEW_NEIGHBOUR, FLAGS, sequence, &body)
}

/// The errno of a [`kind::ERROR`] or [`kind::DONE`] message; 0 = none.
pub(in crate::daemon) fn errno(message: &Message<'_>) -> i32 {
    u32_at(message.body, 0).map_or(0, |code| code.cast_signed().wrapping_neg().max(0))
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct LinkInfo {
    pub ifindex: u32,
    pub name: String,
    /// Kind of a virtual interface ("veth", "bridge", …); empty for hardware.
    pub kind: String,
    /// ARPHRD_*: 1 = Ethernet.
    pub device_type: u16,
    /// IFF_*.
    pub flags: u32,
    pub mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
    /// Interface that this one is enslaved to (bridge, bond), or 0.
    pub master: u32,
    /// Receive queues it was made with.
    pub rx_queues: u32,
    /// XDP program attached by whomever: its id, or 0.
    pub xdp_program: u32,
}

impl LinkInfo {
    /// Reads the body of a NEW_LINK or DEL_LINK message.
    pub(in crate::daemon) fn parse(body: &[u8]) -> Option<Self> {
        let mut link = Self {
            device_type: u16_at(body, 2)?,
            ifindex: u32_at(body, 4)?,
            flags: u32_at(body, 8)?,
            ..Self::default()
        };
        for (attribute, value) in attributes(body.get(16..)?) {
            match attribute {
                1 => link.mac = value.try_into().unwrap_or_default(),
                3 => link.name = text(value),
                4 => link.mtu = u32_at(value, 0).unwrap_or(0),
                10 => link.master = u32_at(value, 0).unwrap_or(0),
                18 => link.kind = nested(value, 1).map(text).unwrap_or_default(),
                32 => link.rx_queues = u32_at(value, 0).unwrap_or(0),
                43 => {
                    link.xdp_program = nested(value, 4).and_then(|id| u32_at(id, 0)).unwrap_or(0);
                }
                _ => {}
            }
        }
        (link.ifindex != 0).then_some(link)
    }

    /// IFF_UP.
    pub(in crate::daemon) fn is_up(&self) -> bool {
        self.flags & 1 != 0
    }

    /// IFF_LOOPBACK.
    pub(in crate::daemon) fn is_loopback(&self) -> bool {
        self.flags & 8 != 0
    }
}

/// Reads the body of a NEW_ADDRESS or DEL_ADDRESS message. `None` also for an address that the
/// kernel does not use (duplicate detected).
pub(in crate::daemon) fn parse_address(body: &[u8]) -> Option<Address> {
    const SECONDARY: u32 = 0x01;
    const DAD_FAILED: u32 = 0x08;
    const DEPRECATED: u32 = 0x20;
    const TENTATIVE: u32 = 0x40;
    const SCOPE_HOST: u8 = 254;
    let family = *body.first()?;
    let prefix_len = *body.get(1)?;
    let mut flags = u32::from(*body.get(2)?);
    let scope = *body.get(3)?;
    let ifindex = u32_at(body, 4)?;
    let (mut local, mut remote) = (None, None);
    for (attribute, value) in attributes(body.get(8..)?) {
        match attribute {
            1 => remote = address(family, value),
            2 => local = address(family, value),
            8 => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    if flags & DAD_FAILED != 0 {
        return None;
    }
    let ip = local.or(remote)?;
    // The prefix of a point-to-point address is the peer's.
    let is_peer = local.is_some() && remote.is_some_and(|remote| remote != ip);
    let not_a_source = flags & (SECONDARY | DEPRECATED | TENTATIVE) != 0 || scope == SCOPE_HOST;
    Some(Address {
        ip,
        ifindex,
        prefix_len: if is_peer {
            128
        } else {
            prefix(family, prefix_len)?
        },
        not_a_source: u8::from(not_a_source),
        reserved: 0,
    })
}

/// What a route message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum RouteInfo {
    /// A route of the tables that the default rules ask.
    Use(Route),
    /// A route that changes answers in a way that the table cannot express, so that only the
    /// kernel can route.
    Inexpressible,
    /// A route of no interest: another table, a cached or dead one.
    Skip,
}

/// Reads the body of a NEW_ROUTE message.
pub(in crate::daemon) fn parse_route(body: &[u8]) -> Option<RouteInfo> {
    const CLONED: u32 = 0x200;
    const DEAD: u32 = 0x01;
    const LINK_DOWN: u32 = 0x10;
    let &[
        family,
        dst_len,
        src_len,
        tos,
        table,
        _protocol,
        _scope,
        kind,
    ] = body.first_chunk::<8>()?;
    let flags = u32_at(body, 8)?;
    let mut table = u32::from(table);
    let mut route = Route {
        prefix_len: prefix(family, dst_len)?,
        kind,
        dst: if family == AF_INET {
            IpAddress::mapped([0; 4])
        } else {
            IpAddress::UNSPECIFIED
        },
        ..Route::v6([0; 16], 0, [0; 16], 0)
    };
    for (attribute, value) in attributes(body.get(12..)?) {
        match attribute {
            1 => route.dst = prefix_address(family, value)?,
            4 => route.ifindex = u32_at(value, 0)?,
            5 => route.gateway = address(family, value)?,
            6 => route.metric = u32_at(value, 0)?,
            7 => route.prefsrc = address(family, value)?,
            8 => route.mtu = nested(value, 2).and_then(|mtu| u32_at(mtu, 0)).unwrap_or(0),
            9 => route.flags |= Route::MULTIPATH,
            15 => table = u32_at(value, 0)?,
            // RTA_VIA (gateway of another family), RTA_ENCAP_TYPE, RTA_ENCAP.
            18 | 21 | 22 => route.flags |= Route::UNSUPPORTED,
            _ => {}
        }
    }
    if flags & (CLONED | DEAD | LINK_DOWN) != 0 {
        return Some(RouteInfo::Skip);
    }
    if kind == route_type::UNICAST && route.ifindex == 0 && route.flags == 0 {
        route.flags |= Route::UNSUPPORTED;
    }
    Some(in_table(table, route, tos != 0 || src_len != 0))
}

/// What becomes of a route of this table. `narrow`: it is not for every packet to its prefix.
fn in_table(table: u32, route: Route, narrow: bool) -> RouteInfo {
    const DEFAULT: u32 = 253;
    const MAIN: u32 = 254;
    const LOCAL: u32 = 255;
    match table {
        // The kernel asks this table first whatever the prefix length. Loopback and multicast are
        // refused before any look-up.
        LOCAL if route.prefix_len == 128 || is_refused_anyway(&route) => RouteInfo::Use(route),
        LOCAL | DEFAULT => RouteInfo::Inexpressible,
        MAIN if narrow => RouteInfo::Inexpressible,
        MAIN => RouteInfo::Use(route),
        _ => RouteInfo::Skip,
    }
}

/// Whether every address of the route's prefix is loopback or multicast.
fn is_refused_anyway(route: &Route) -> bool {
    let v4 = route.dst.is_v4() && route.prefix_len >= 104;
    (v4 && route.dst.is_loopback()) || (v4 || route.prefix_len >= 8) && route.dst.is_multicast()
}

/// Whether a rule message is one of the three that every host has; the bit of that rule, or `None`
/// for any other.
pub(in crate::daemon) fn default_rule(body: &[u8]) -> Option<u8> {
    const ACTION_TO_TABLE: u8 = 1;
    let &[family, dst_len, src_len, tos, table, _, _, action] = body.first_chunk::<8>()?;
    let flags = u32_at(body, 8)?;
    let (mut table, mut priority) = (u32::from(table), 0);
    for (attribute, value) in attributes(body.get(12..)?) {
        match attribute {
            6 => priority = u32_at(value, 0)?,
            15 => table = u32_at(value, 0)?,
            // FRA_SUPPRESS_PREFIXLEN with "none", FRA_PROTOCOL, FRA_PAD change nothing.
            14 if u32_at(value, 0) == Some(u32::MAX) => {}
            18 | 21 => {}
            _ => return None,
        }
    }
    if dst_len != 0 || src_len != 0 || tos != 0 || action != ACTION_TO_TABLE || flags & 2 != 0 {
        return None;
    }
    match (family, priority, table) {
        (AF_INET, 0, 255) => Some(1),
        (AF_INET, 32766, 254) => Some(2),
        (AF_INET, 32767, 253) => Some(4),
        (AF_INET6, 0, 255) => Some(8),
        (AF_INET6, 32766, 254) => Some(16),
        _ => None,
    }
}

/// Every bit of [`default_rule`] of IPv4 that routing needs.
pub(in crate::daemon) const RULES_V4: u8 = 1 | 2;
/// The same for IPv6.
pub(in crate::daemon) const RULES_V6: u8 = 8 | 16;

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct NeighbourInfo {
    pub ip: IpAddress,
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// NUD_*.
    pub state: u8,
}

/// Reads the body of a NEW_NEIGHBOUR or DEL_NEIGHBOUR message. `None` also for bridge entries and
/// proxies, which lead nowhere.
pub(in crate::daemon) fn parse_neighbour(body: &[u8]) -> Option<NeighbourInfo> {
    const PROXY: u8 = 0x08;
    let family = *body.first()?;
    let ifindex = u32_at(body, 4)?;
    let state = u16_at(body, 8)?;
    if *body.get(10)? & PROXY != 0 || ifindex == 0 {
        return None;
    }
    let (mut ip, mut mac) = (None, [0; 6]);
    for (attribute, value) in attributes(body.get(12..)?) {
        match attribute {
            1 => ip = address(family, value),
            2 => mac = value.try_into().unwrap_or_default(),
            _ => {}
        }
    }
    Some(NeighbourInfo {
        ip: ip?,
        ifindex,
        mac,
        state: state as u8,
    })
}

/// The attributes of a message, as far as they are whole: type without flag bits, value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((attribute, value))
    })
}

/// The value of one attribute inside another.
fn nested(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(attribute, _)| *attribute == wanted)
        .map(|(_, value)| value)
}

/// An address of the family; "any" becomes all zero.
fn address(family: u8, value: &[u8]) -> Option<IpAddress> {
    match family {
        AF_INET => value.try_into().ok().map(IpAddress::from_v4),
        AF_INET6 => value.try_into().ok().map(IpAddress),
        _ => None,
    }
}

/// The first address of a prefix: 0.0.0.0 stays an IPv4 address.
fn prefix_address(family: u8, value: &[u8]) -> Option<IpAddress> {
    match family {
        AF_INET => value.try_into().ok().map(IpAddress::mapped),
        _ => address(family, value),
    }
}

/// A prefix length in bits of 128.
fn prefix(family: u8, bits: u8) -> Option<u8> {
    match family {
        AF_INET if bits <= 32 => Some(96 + bits),
        AF_INET6 if bits <= 128 => Some(bits),
        _ => None,
    }
}

/// A string that ends with NUL.
fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
