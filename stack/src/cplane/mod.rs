//! The control plane as plain data: links, addresses, routes and neighbours of one network
//! namespace, mirrored from the kernel by the daemon and read by every program of it.
//!
//! The daemon fills a [`Table`] with the builder functions and publishes it under a sequence
//! lock; readers call [`lookup`] and may cache the answer as long as [`Table::generation`] stays.
//! A reader may see a half-written table: any bit pattern is valid, every walk is bounded, and
//! the sequence lock tells it to throw the answer away.
//!
//! The kernel stays the authority. Whatever the table cannot express (policy rules, multipath,
//! more entries than fit) makes the answer "ask the kernel", never a wrong route.

mod lookup;
#[cfg(test)]
mod tests;

pub use lookup::{CplaneReason, Lookup, NextHop, flow_hash, lookup, unresolved};

use crate::demux::fold;
use crate::types::IpAddress;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Links of a table.
pub const LINKS: usize = 64;
/// Addresses of a table.
pub const ADDRESSES: usize = 256;
/// Routes of a table.
pub const ROUTES: usize = 1024;
/// Places for neighbours, a power of two.
pub const NEIGHBOURS: usize = 2048;
/// Places that a neighbour may be away from its hash.
const PROBES: usize = 32;

/// Neighbour states, numbered as in the kernel (NUD_*), named as in RFC 4861 section 7.3.2.
pub mod neighbour_state {
    /// Resolution is under way.
    pub const INCOMPLETE: u8 = 0x01;
    /// Known to be reachable.
    pub const REACHABLE: u8 = 0x02;
    /// Known, not lately confirmed.
    pub const STALE: u8 = 0x04;
    /// Used while stale; about to be probed.
    pub const DELAY: u8 = 0x08;
    /// Being probed.
    pub const PROBE: u8 = 0x10;
    /// Resolution failed.
    pub const FAILED: u8 = 0x20;
    /// The link needs no resolution.
    pub const NOARP: u8 = 0x40;
    /// Set by hand.
    pub const PERMANENT: u8 = 0x80;
    /// States in which the MAC address may be used.
    pub const USABLE: u8 = REACHABLE | STALE | DELAY | PROBE | NOARP | PERMANENT;
    /// States that need no confirmation by the kernel.
    pub const CONFIRMED: u8 = REACHABLE | NOARP | PERMANENT;
}

/// Route types, numbered as in the kernel (RTN_*).
pub mod route_type {
    /// A gateway or a directly connected network.
    pub const UNICAST: u8 = 1;
    /// An address of this host.
    pub const LOCAL: u8 = 2;
    /// A broadcast address.
    pub const BROADCAST: u8 = 3;
    /// Multicast.
    pub const MULTICAST: u8 = 5;
}

/// A network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Link {
    /// Interface index; 0 = unused entry.
    pub ifindex: u32,
    /// Bits: [`Link::UP`], [`Link::RUNNING`], [`Link::LOOPBACK`].
    pub flags: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u16,
    /// First queue pair of the stack that drives it. Which one that is depends on the reader's
    /// stack; see [`Table::set_queue_pairs`].
    pub first_queue_pair: u8,
    /// Count of queue pairs; 0 = no backend.
    pub queue_pairs: u8,
    /// Zero.
    pub reserved: u16,
}

impl Link {
    /// IFF_UP.
    pub const UP: u32 = 1;
    /// IFF_LOOPBACK.
    pub const LOOPBACK: u32 = 8;
    /// IFF_RUNNING.
    pub const RUNNING: u32 = 0x40;
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Address {
    /// The address.
    pub ip: IpAddress,
    /// Interface index.
    pub ifindex: u32,
    /// Prefix length in bits of 128 (IPv4: 96 + n).
    pub prefix_len: u8,
    /// 1 = may not be chosen as a source (tentative, deprecated, secondary).
    pub not_a_source: u8,
    /// Zero.
    pub reserved: u16,
}

impl Address {
    /// An IPv4 address with a prefix length of 0 to 32.
    #[must_use]
    pub fn v4(octets: [u8; 4], prefix_len: u8, ifindex: u32) -> Self {
        Self::new(IpAddress::mapped(octets), v4_prefix(prefix_len), ifindex)
    }

    /// An IPv6 address with a prefix length of 0 to 128.
    #[must_use]
    pub fn v6(octets: [u8; 16], prefix_len: u8, ifindex: u32) -> Self {
        Self::new(IpAddress(octets), prefix_len, ifindex)
    }

    fn new(ip: IpAddress, prefix_len: u8, ifindex: u32) -> Self {
        Self {
            ip,
            ifindex,
            prefix_len,
            not_a_source: 0,
            reserved: 0,
        }
    }
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Route {
    /// Destination prefix.
    pub dst: IpAddress,
    /// Gateway, or unspecified for a directly connected network.
    pub gateway: IpAddress,
    /// Preferred source address, or unspecified.
    pub prefsrc: IpAddress,
    /// Interface index.
    pub ifindex: u32,
    /// Metric: the smallest of equal prefixes wins.
    pub metric: u32,
    /// MTU of the route in bytes, 0 = the link's.
    pub mtu: u32,
    /// Prefix length in bits of 128 (IPv4: 96 + n).
    pub prefix_len: u8,
    /// A [`route_type`] or another RTN_* number.
    pub kind: u8,
    /// Bits: [`Route::MULTIPATH`] and [`Route::UNSUPPORTED`].
    pub flags: u16,
}

impl Route {
    /// The route has several next hops.
    pub const MULTIPATH: u16 = 1;
    /// The route has something that the table does not express (encapsulation, a gateway of
    /// another family, …): only the kernel can use it.
    pub const UNSUPPORTED: u16 = 2;

    /// A unicast IPv4 route; `gateway` 0.0.0.0 for a connected network.
    #[must_use]
    pub fn v4(dst: [u8; 4], prefix_len: u8, gateway: [u8; 4], ifindex: u32) -> Self {
        let dst = IpAddress::mapped(dst);
        Self::new(
            dst,
            v4_prefix(prefix_len),
            IpAddress::from_v4(gateway),
            ifindex,
        )
    }

    /// A unicast IPv6 route; `gateway` `::` for a connected network.
    #[must_use]
    pub fn v6(dst: [u8; 16], prefix_len: u8, gateway: [u8; 16], ifindex: u32) -> Self {
        Self::new(IpAddress(dst), prefix_len, IpAddress(gateway), ifindex)
    }

    fn new(dst: IpAddress, prefix_len: u8, gateway: IpAddress, ifindex: u32) -> Self {
        Self {
            dst,
            gateway,
            prefsrc: IpAddress::UNSPECIFIED,
            ifindex,
            metric: 0,
            mtu: 0,
            prefix_len,
            kind: route_type::UNICAST,
            flags: 0,
        }
    }

    /// Sort key: longest prefix first, then smallest metric.
    fn order(&self) -> (u8, u32) {
        (u8::MAX.wrapping_sub(self.prefix_len), self.metric)
    }

    /// Whether the route is for IPv4 destinations. (An IPv6 prefix that covers the v4-mapped range,
    /// such as the default route, is not.)
    fn is_v4(&self) -> bool {
        self.prefix_len >= 96 && IpAddress::mapped([0; 4]).in_prefix(&self.dst, 96)
    }
}

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Neighbour {
    /// Its address.
    pub ip: IpAddress,
    /// Interface index; 0 = unused entry.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// A [`neighbour_state`]; 0 = removed, the place may be used again.
    pub state: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub spare: u32,
    /// When the state was learnt: nanoseconds of `CLOCK_MONOTONIC`.
    pub updated_ns: u64,
}

/// The whole table, about 160 KiB.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Table {
    /// Changes with every published change.
    pub generation: u32,
    /// 1 = something did not fit: only the kernel knows all routes.
    pub overflow: u32,
    /// 1 = there are policy rules beside the default three: only the kernel can route.
    pub policy_rules: u32,
    /// Addresses in use.
    pub address_count: u32,
    /// Routes in use.
    pub route_count: u32,
    /// Zero.
    pub reserved: [u32; 3],
    /// Links, in no order.
    pub links: [Link; LINKS],
    /// Addresses, in no order.
    pub addresses: [Address; ADDRESSES],
    /// Routes, sorted by [`Table::insert_route`].
    pub routes: [Route; ROUTES],
    /// Neighbours, a hash table with open addressing.
    pub neighbours: [Neighbour; NEIGHBOURS],
}

const _: () = {
    assert!(size_of::<Link>() == 20);
    assert!(size_of::<Address>() == 24);
    assert!(size_of::<Route>() == 64);
    assert!(size_of::<Neighbour>() == 40);
    assert!(NEIGHBOURS.is_power_of_two());
};

/// Length in bits of 128 of an IPv4 prefix.
fn v4_prefix(prefix_len: u8) -> u8 {
    prefix_len.min(32).wrapping_add(96)
}

impl Table {
    /// Empties the table, flags included; the generation goes on.
    pub fn clear(&mut self) {
        let generation = self.generation.wrapping_add(1);
        self.zero();
        self.generation = generation;
    }

    /// Empties links, addresses, routes and flags, but keeps the neighbours.
    pub fn clear_routes(&mut self) {
        self.bump();
        self.overflow = 0;
        self.policy_rules = 0;
        self.address_count = 0;
        self.route_count = 0;
        self.links.zero();
    }

    /// Announces a change made directly in the fields.
    pub fn bump(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Adds a link or changes the one with its `ifindex`. `false`: no room, `overflow` is set.
    pub fn insert_link(&mut self, link: &Link) -> bool {
        self.bump();
        let known = self
            .links
            .iter()
            .position(|other| other.ifindex == link.ifindex);
        let place = known.or_else(|| self.links.iter().position(|other| other.ifindex == 0));
        self.store(place, |table, at| table.links.get_mut(at), link)
    }

    /// Says which queue pairs drive a link; `queue_pairs` 0 = none.
    pub fn set_queue_pairs(&mut self, ifindex: u32, first_queue_pair: u8, queue_pairs: u8) {
        self.bump();
        if let Some(link) = self.links.iter_mut().find(|link| link.ifindex == ifindex) {
            link.first_queue_pair = first_queue_pair;
            link.queue_pairs = queue_pairs;
        }
    }

    /// Makes a link's MTU smaller if it is above `most`, which is what the chunks hold.
    pub fn limit_mtu(&mut self, ifindex: u32, most: u16) {
        self.bump();
        if let Some(link) = self.links.iter_mut().find(|link| link.ifindex == ifindex) {
            link.mtu = link.mtu.min(most);
        }
    }

    /// Removes a link.
    pub fn remove_link(&mut self, ifindex: u32) {
        self.bump();
        for link in self.links.iter_mut().filter(|link| link.ifindex == ifindex) {
            link.zero();
        }
    }

    /// Adds an address. `false`: no room, `overflow` is set.
    pub fn insert_address(&mut self, address: &Address) -> bool {
        self.bump();
        let place = self.address_count as usize;
        let stored = self.store(
            Some(place),
            |table, at| table.addresses.get_mut(at),
            address,
        );
        if stored {
            self.address_count = self.address_count.saturating_add(1);
        }
        stored
    }

    /// Adds a route in its place of the order. `false`: no room, `overflow` is set.
    pub fn insert_route(&mut self, route: &Route) -> bool {
        self.bump();
        let count = (self.route_count as usize).min(ROUTES);
        let Some(used) = self.routes.get_mut(..count.saturating_add(1)) else {
            self.overflow = 1;
            return false;
        };
        let place = used.get(..count).map_or(0, |known| {
            known.partition_point(|other| other.order() <= route.order())
        });
        if let Some(moved) = used.get_mut(place..) {
            moved.rotate_right(1);
            if let Some(first) = moved.first_mut() {
                *first = *route;
            }
        }
        self.route_count = count.saturating_add(1) as u32;
        true
    }

    /// Adds a neighbour or changes the one with its address and interface. `false`: no room; then
    /// the kernel sends to it, and nothing else suffers.
    pub fn insert_neighbour(&mut self, neighbour: &Neighbour) -> bool {
        self.bump();
        let same =
            |other: &Neighbour| other.ip == neighbour.ip && other.ifindex == neighbour.ifindex;
        let mut place = None;
        for at in probes(&neighbour.ip, neighbour.ifindex) {
            let Some(other) = self.neighbours.get(at) else {
                break;
            };
            if other.ifindex != 0 && same(other) {
                place = Some(at);
                break;
            }
            if other.state == 0 && place.is_none() {
                place = Some(at);
            }
            if other.ifindex == 0 {
                break;
            }
        }
        match place.and_then(|at| self.neighbours.get_mut(at)) {
            Some(found) => {
                *found = *neighbour;
                true
            }
            None => false,
        }
    }

    /// Removes a neighbour; its place may be used again.
    pub fn remove_neighbour(&mut self, ip: &IpAddress, ifindex: u32) {
        self.bump();
        for at in probes(ip, ifindex) {
            if let Some(found) = self.neighbours.get_mut(at)
                && found.ip == *ip
                && found.ifindex == ifindex
            {
                found.state = 0;
            }
        }
    }

    /// The neighbour with this address on this interface.
    #[must_use]
    pub fn neighbour(&self, ip: &IpAddress, ifindex: u32) -> Option<&Neighbour> {
        probes(ip, ifindex)
            .map_while(|at| self.neighbours.get(at).filter(|found| found.ifindex != 0))
            .find(|found| found.ip == *ip && found.ifindex == ifindex && found.state != 0)
    }

    /// The link with this index.
    #[must_use]
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links
            .iter()
            .find(|link| link.ifindex == ifindex && ifindex != 0)
    }

    /// The addresses in use.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter().take(self.address_count as usize)
    }

    /// The routes in use, best first.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().take(self.route_count as usize)
    }

    /// Stores an entry at a place, or notes the overflow.
    fn store<T: Copy>(
        &mut self,
        place: Option<usize>,
        at: impl FnOnce(&mut Self, usize) -> Option<&mut T>,
        entry: &T,
    ) -> bool {
        match place.and_then(|place| at(self, place)) {
            Some(found) => {
                *found = *entry;
                true
            }
            None => {
                self.overflow = 1;
                false
            }
        }
    }
}

/// The places where a neighbour may be.
fn probes(ip: &IpAddress, ifindex: u32) -> impl Iterator<Item = usize> + use<> {
    let (high, low) = ip.words();
    // Both halves of the product count: an IPv4 host's octet is the top byte of its word, which
    // one half of a 64-bit product would lose.
    let hash = fold(low ^ u64::from(ifindex), high ^ 0x9e37_79b9_7f4a_7c15) as usize;
    (0..PROBES).map(move |step| hash.wrapping_add(step) & NEIGHBOURS.wrapping_sub(1))
}
