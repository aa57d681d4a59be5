//! The one question to the control plane: how does a datagram to this address leave the host?

use super::{Address, Link, Neighbour, Route, Table, neighbour_state, route_type};
use crate::types::{IpAddress, QUEUE_PAIR_HAIRPIN, SocketAddress};
use core::fmt;

/// Largest packet to another endpoint of the same stack; segments are bounded by the chunk.
const HAIRPIN_MTU: u16 = u16::MAX;

/// How a frame reaches its next hop. Valid while the table's generation is `generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Queue pair to send on.
    pub queue_pair: u8,
    /// The neighbour's state, a [`neighbour_state`]; see [`NextHop::is_confirmed`].
    pub neighbour_state: u8,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Interface index.
    pub ifindex: u32,
    /// Source address if the socket is bound to any.
    pub source: IpAddress,
    /// Our MAC address.
    pub source_mac: [u8; 6],
    /// The next hop's MAC address.
    pub mac: [u8; 6],
    /// The table's generation.
    pub generation: u32,
}

impl NextHop {
    /// To an address of this host that another endpoint of the same stack serves.
    #[must_use]
    pub fn hairpin(to: IpAddress) -> Self {
        Self {
            queue_pair: QUEUE_PAIR_HAIRPIN,
            neighbour_state: neighbour_state::CONFIRMED,
            mtu: HAIRPIN_MTU,
            ifindex: 0,
            source: to,
            source_mac: [0; 6],
            mac: [0; 6],
            generation: 0,
        }
    }

    /// Whether the neighbour needs no confirmation. If not, the caller should let the kernel send
    /// one datagram per second or so: that makes the kernel probe the neighbour and learn of
    /// a changed MAC address, as it would if all traffic went through it.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.neighbour_state & neighbour_state::CONFIRMED != 0
    }
}

/// The answer of [`lookup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Through a queue pair of the stack.
    Via(NextHop),
    /// To an address of this host.
    Local,
    /// Only the kernel can send it.
    Kernel(CplaneReason),
}

macro_rules! reasons {
    ($($variant:ident $name:literal $sentence:literal,)*) => {
        /// Why only the kernel can send to an address.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum CplaneReason {
            $(#[doc = $sentence] $variant,)*
        }

        impl CplaneReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable name for tools, in kebab-case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence that says why.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

reasons! {
    Overflow "overflow" "The host has more links, addresses or routes than the table holds.",
    PolicyRules "policy-rules" "Policy routing rules are set, which only the kernel evaluates.",
    Unspecified "unspecified" "The destination is the unspecified address, which means loopback.",
    Loopback "loopback" "The destination is a loopback address.",
    Multicast "multicast" "The destination is a multicast address.",
    Broadcast "broadcast" "The destination is a broadcast address.",
    Scope "scope" "The destination is link-local and no interface is given.",
    NoRoute "no-route" "No route leads to the destination.",
    RouteType "route-type" "The route is not unicast (blackhole, unreachable, prohibit, throw, NAT).",
    Multipath "multipath" "The route has several next hops.",
    Unsupported "unsupported" "The route has encapsulation or another property that the table does not express.",
    NoBackend "no-backend" "The route leaves by an interface without a queue pair of ours.",
    LinkDown "link-down" "The interface of the route is down.",
    NoSource "no-source" "The interface of the route has no source address of the destination's family.",
    Family "family" "The socket is bound to an address of another family than the destination.",
    NeighbourMissing "neighbour-missing" "The next hop's MAC address is not known yet.",
    NeighbourUnusable "neighbour-unusable" "The next hop's resolution is under way or has failed.",
}

impl fmt::Display for CplaneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Hash of a flow for [`lookup`]'s `flow_hash`; the same for every datagram of it.
#[must_use]
pub fn flow_hash(local: &SocketAddress, remote: &SocketAddress) -> u32 {
    let ports = u64::from(local.port) << 16 | u64::from(remote.port);
    let (local_high, local_low) = local.ip.words();
    let (high, low) = remote.ip.words();
    let mix = local_low ^ local_high.rotate_left(21) ^ low.rotate_left(7) ^ high.rotate_left(42);
    let hash = (mix ^ ports.rotate_left(13)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
}

/// Finds the way to `to` for a socket bound to `bound` (unspecified = any) and to interface
/// `ifindex` (0 = any). `flow_hash` spreads flows over an interface's queue pairs.
#[must_use]
pub fn lookup(
    table: &Table,
    to: IpAddress,
    bound: IpAddress,
    ifindex: u32,
    flow_hash: u32,
) -> Lookup {
    match route(table, to, bound, ifindex) {
        Ok(None) => Lookup::Local,
        Ok(Some(route)) => match next_hop(table, route, to, bound, flow_hash) {
            Ok(hop) => Lookup::Via(hop),
            Err(reason) => Lookup::Kernel(reason),
        },
        Err(reason) => Lookup::Kernel(reason),
    }
}

/// The next hop to `to` and its interface, when its MAC address is all that is missing; arguments
/// as [`lookup`]'s.
#[must_use]
pub fn unresolved(
    table: &Table,
    to: IpAddress,
    bound: IpAddress,
    ifindex: u32,
) -> Option<(IpAddress, u32)> {
    let route = route(table, to, bound, ifindex).ok()??;
    let target = target(route, to);
    let known = table.neighbour(&target, route.ifindex);
    let is_usable = known.is_some_and(|neighbour| neighbour.state & neighbour_state::USABLE != 0);
    (!is_usable && target.is_v4() == to.is_v4()).then_some((target, route.ifindex))
}

/// Who is to get frames to `to`: the route's gateway, or `to` itself.
fn target(route: &Route, to: IpAddress) -> IpAddress {
    if route.gateway.is_unspecified() {
        to
    } else {
        route.gateway
    }
}

/// The unicast route to an address; `None` if it is this host's.
fn route(
    table: &Table,
    to: IpAddress,
    bound: IpAddress,
    ifindex: u32,
) -> Result<Option<&Route>, CplaneReason> {
    if table.overflow != 0 {
        return Err(CplaneReason::Overflow);
    }
    if table.policy_rules != 0 {
        return Err(CplaneReason::PolicyRules);
    }
    check_destination(to, bound, ifindex)?;
    let is_v4 = to.is_v4();
    for address in table.addresses() {
        if address.ip == to {
            return Ok(None);
        }
        if is_v4 && is_subnet_broadcast(address, &to) {
            return Err(CplaneReason::Broadcast);
        }
    }
    let found = table.routes().find(|route| {
        route.is_v4() == is_v4
            && to.in_prefix(&route.dst, route.prefix_len)
            && (ifindex == 0 || route.ifindex == ifindex)
    });
    let route = found.ok_or(CplaneReason::NoRoute)?;
    match route.kind {
        route_type::LOCAL => return Ok(None),
        route_type::BROADCAST => return Err(CplaneReason::Broadcast),
        route_type::MULTICAST => return Err(CplaneReason::Multicast),
        route_type::UNICAST => {}
        _ => return Err(CplaneReason::RouteType),
    }
    if route.flags & Route::MULTIPATH != 0 {
        return Err(CplaneReason::Multipath);
    }
    if route.flags & Route::UNSUPPORTED != 0 {
        return Err(CplaneReason::Unsupported);
    }
    Ok(Some(route))
}

/// Refuses destinations that never leave by a unicast route.
fn check_destination(to: IpAddress, bound: IpAddress, ifindex: u32) -> Result<(), CplaneReason> {
    if to.is_unspecified() {
        return Err(CplaneReason::Unspecified);
    }
    if to.is_loopback() {
        return Err(CplaneReason::Loopback);
    }
    if to.is_multicast() {
        return Err(CplaneReason::Multicast);
    }
    if to.is_limited_broadcast() {
        return Err(CplaneReason::Broadcast);
    }
    if to.is_link_local_v6() && ifindex == 0 {
        return Err(CplaneReason::Scope);
    }
    if !bound.is_unspecified() && bound.is_v4() != to.is_v4() {
        return Err(CplaneReason::Family);
    }
    Ok(())
}

/// Whether `to` is the broadcast address of the IPv4 network of `address`.
fn is_subnet_broadcast(address: &Address, to: &IpAddress) -> bool {
    // A /31 or /32 has none (RFC 3021); below 96 it is no IPv4 prefix.
    let host_bits = 128u32.saturating_sub(u32::from(address.prefix_len));
    if !(2..=32).contains(&host_bits) || !address.ip.is_v4() {
        return false;
    }
    let host = 1u128.wrapping_shl(host_bits).wrapping_sub(1);
    u128::from_be_bytes(address.ip.0) | host == u128::from_be_bytes(to.0)
}

/// The next hop of a unicast route.
fn next_hop(
    table: &Table,
    route: &Route,
    to: IpAddress,
    bound: IpAddress,
    flow_hash: u32,
) -> Result<NextHop, CplaneReason> {
    let link = table.link(route.ifindex).ok_or(CplaneReason::NoBackend)?;
    if link.flags & Link::LOOPBACK != 0 || link.queue_pairs == 0 {
        return Err(CplaneReason::NoBackend);
    }
    if link.flags & Link::UP == 0 || link.flags & Link::RUNNING == 0 {
        return Err(CplaneReason::LinkDown);
    }
    let target = target(route, to);
    if target.is_v4() != to.is_v4() {
        return Err(CplaneReason::Unsupported);
    }
    let source = if !bound.is_unspecified() {
        bound
    } else if !route.prefsrc.is_unspecified() {
        route.prefsrc
    } else {
        source_address(table, route.ifindex, &target, &to).ok_or(CplaneReason::NoSource)?
    };
    let neighbour: &Neighbour = table
        .neighbour(&target, route.ifindex)
        .ok_or(CplaneReason::NeighbourMissing)?;
    if neighbour.state & neighbour_state::USABLE == 0 {
        return Err(CplaneReason::NeighbourUnusable);
    }
    let spread = u64::from(flow_hash).wrapping_mul(u64::from(link.queue_pairs)) >> 32;
    let route_mtu = u16::try_from(route.mtu)
        .ok()
        .filter(|mtu| *mtu != 0)
        .unwrap_or(u16::MAX);
    Ok(NextHop {
        queue_pair: link.first_queue_pair.wrapping_add(spread as u8),
        neighbour_state: neighbour.state,
        mtu: link.mtu.min(route_mtu),
        ifindex: route.ifindex,
        source,
        source_mac: link.mac,
        mac: neighbour.mac,
        generation: table.generation,
    })
}

/// The source address that an interface offers for a destination: for IPv4 the first in the
/// next hop's network, else the first; for IPv6 same scope, then longest common prefix (RFC 6724
/// section 5, rules 2 and 8).
fn source_address(
    table: &Table,
    ifindex: u32,
    target: &IpAddress,
    to: &IpAddress,
) -> Option<IpAddress> {
    let is_v4 = to.is_v4();
    let mut best: Option<(u32, IpAddress)> = None;
    for address in table.addresses() {
        if address.ifindex != ifindex
            || address.ip.is_v4() != is_v4
            || address.not_a_source != 0
            || (!is_v4 && address.ip.is_link_local_v6() != to.is_link_local_v6())
        {
            continue;
        }
        let score = if is_v4 {
            u32::from(target.in_prefix(&address.ip, address.prefix_len))
        } else {
            let differing = u128::from_be_bytes(address.ip.0) ^ u128::from_be_bytes(to.0);
            differing.leading_zeros()
        };
        if best.is_none_or(|(best_score, _)| score > best_score) {
            best = Some((score, address.ip));
        }
    }
    best.map(|(_, ip)| ip)
}
