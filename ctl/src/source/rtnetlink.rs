//! rtnetlink messages: bytes from the kernel in, plain values out.
//!
//! Five kinds are understood: links, addresses, routes, rules and neighbours, IPv4 and IPv6. What
//! messages are is in [`bypass_backends::netlink`]; what is unknown is skipped. Reference:
//! rtnetlink(7), and the kernel's
//! include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,fib_rules}.h.

use bypass_backends::netlink::{self, DUMP, REQUEST, attributes, find, half, request, text, word};
use bypass_stack::IpAddress;
use bypass_stack::cplane::{Address, Route, route_type};
use rustix::io::Errno;

/// Message types (RTM_*).
pub mod kind {
    pub const NEW_LINK: u16 = 16;
    pub const DEL_LINK: u16 = 17;
    pub const GET_LINK: u16 = 18;
    pub const NEW_ADDRESS: u16 = 20;
    pub const DEL_ADDRESS: u16 = 21;
    pub const GET_ADDRESS: u16 = 22;
    pub const NEW_ROUTE: u16 = 24;
    pub const DEL_ROUTE: u16 = 25;
    pub const GET_ROUTE: u16 = 26;
    pub const NEW_NEIGHBOUR: u16 = 28;
    pub const DEL_NEIGHBOUR: u16 = 29;
    pub const GET_NEIGHBOUR: u16 = 30;
    pub const NEW_RULE: u16 = 32;
    pub const DEL_RULE: u16 = 33;
    pub const GET_RULE: u16 = 34;
}

/// NLM_F_DUMP_INTR: the tables changed during a dump, which is therefore not consistent.
pub const DUMP_INTERRUPTED: u16 = 0x10;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A request for everything of one kind ([`kind::GET_LINK`] and so on), all families.
pub fn dump_request(kind: u16, sequence: u32) -> Vec<u8> {
    // The fixed parts differ, and zero means "all" in each; the longest (ifinfomsg) is 16 bytes.
    let fixed = match kind {
        kind::GET_LINK => 16,
        kind::GET_ADDRESS => 8,
        _ => 12,
    };
    request(kind, REQUEST | DUMP, sequence, &[0; 16][..fixed])
}

/// A request that the kernel use a neighbour, and so find out its MAC address (NTF_USE of
/// linux/neighbour.h).
pub fn use_request(target: IpAddress, ifindex: u32, sequence: u32) -> Vec<u8> {
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

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkInfo {
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
    /// How it is attached: XDP_ATTACHED_* of linux/if_link.h.
    pub xdp_mode: u8,
}

/// Every link of this network namespace.
///
/// # Errors
/// What the kernel answers.
pub fn links() -> Result<Vec<LinkInfo>, Errno> {
    let mut links = Vec::new();
    netlink::dump(None, kind::GET_LINK, &[0; 16], |message| {
        links.extend(LinkInfo::parse(message.body));
    })?;
    Ok(links)
}

impl LinkInfo {
    /// Reads the body of a NEW_LINK or DEL_LINK message.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut link = Self {
            device_type: half(body, 2)?,
            ifindex: word(body, 4)?,
            flags: word(body, 8)?,
            ..Self::default()
        };
        for (attribute, value) in attributes(body.get(16..)?) {
            match attribute {
                1 => link.mac = value.try_into().unwrap_or_default(),
                3 => link.name = text(value),
                4 => link.mtu = word(value, 0).unwrap_or(0),
                10 => link.master = word(value, 0).unwrap_or(0),
                18 => link.kind = find(value, 1).map(text).unwrap_or_default(),
                32 => link.rx_queues = word(value, 0).unwrap_or(0),
                43 => {
                    link.xdp_mode = find(value, 2)
                        .and_then(|it| it.first().copied())
                        .unwrap_or(0);
                    link.xdp_program = find(value, 4).and_then(|id| word(id, 0)).unwrap_or(0);
                }
                _ => {}
            }
        }
        (link.ifindex != 0).then_some(link)
    }

    /// IFF_UP.
    pub fn is_up(&self) -> bool {
        self.flags & 1 != 0
    }

    /// IFF_LOOPBACK.
    pub fn is_loopback(&self) -> bool {
        self.flags & 8 != 0
    }
}

/// Reads the body of a NEW_ADDRESS or DEL_ADDRESS message. `None` also for an address that the
/// kernel does not use (duplicate detected).
pub fn parse_address(body: &[u8]) -> Option<Address> {
    const SECONDARY: u32 = 0x01;
    const DAD_FAILED: u32 = 0x08;
    const DEPRECATED: u32 = 0x20;
    const TENTATIVE: u32 = 0x40;
    const SCOPE_HOST: u8 = 254;
    let family = *body.first()?;
    let prefix_len = *body.get(1)?;
    let mut flags = u32::from(*body.get(2)?);
    let scope = *body.get(3)?;
    let ifindex = word(body, 4)?;
    let (mut local, mut remote) = (None, None);
    for (attribute, value) in attributes(body.get(8..)?) {
        match attribute {
            1 => remote = address(family, value),
            2 => local = address(family, value),
            8 => flags = word(value, 0)?,
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
pub enum RouteInfo {
    /// A route of the tables that the default rules ask.
    Use(Route),
    /// A route that changes answers in a way that the table cannot express, so that only the
    /// kernel can route.
    Inexpressible,
    /// A route of no interest: another table, a cached or dead one.
    Skip,
}

/// Reads the body of a NEW_ROUTE message.
pub fn parse_route(body: &[u8]) -> Option<RouteInfo> {
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
    let flags = word(body, 8)?;
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
            4 => route.ifindex = word(value, 0)?,
            5 => route.gateway = address(family, value)?,
            6 => route.metric = word(value, 0)?,
            7 => route.prefsrc = address(family, value)?,
            8 => route.mtu = find(value, 2).and_then(|mtu| word(mtu, 0)).unwrap_or(0),
            9 => route.flags |= Route::MULTIPATH,
            15 => table = word(value, 0)?,
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
pub fn default_rule(body: &[u8]) -> Option<u8> {
    const ACTION_TO_TABLE: u8 = 1;
    let &[family, dst_len, src_len, tos, table, _, _, action] = body.first_chunk::<8>()?;
    let flags = word(body, 8)?;
    let (mut table, mut priority) = (u32::from(table), 0);
    for (attribute, value) in attributes(body.get(12..)?) {
        match attribute {
            6 => priority = word(value, 0)?,
            15 => table = word(value, 0)?,
            // FRA_SUPPRESS_PREFIXLEN with "none", FRA_PROTOCOL, FRA_PAD change nothing.
            14 if word(value, 0) == Some(u32::MAX) => {}
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
pub const RULES_V4: u8 = 1 | 2;
/// The same for IPv6.
pub const RULES_V6: u8 = 8 | 16;

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourInfo {
    pub ip: IpAddress,
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// NUD_*.
    pub state: u8,
}

/// Reads the body of a NEW_NEIGHBOUR or DEL_NEIGHBOUR message. `None` also for bridge entries and
/// proxies, which lead nowhere.
pub fn parse_neighbour(body: &[u8]) -> Option<NeighbourInfo> {
    const PROXY: u8 = 0x08;
    let family = *body.first()?;
    let ifindex = word(body, 4)?;
    let state = half(body, 8)?;
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
