//! Filters: which packets are led to which stack.
//!
//! A *filter* is what a program asked for, for one socket: a local address and port, perhaps a
//! remote one. It becomes *entries*: one flow on one interface each. A socket bound to any address
//! has an entry for every address of the host on every interface that serves it, so that packets
//! that are only passing through, broadcasts and multicasts stay with the kernel. Entries are
//! decided anew whenever links, addresses or static filters change ([`wanted`]).
//!
//! Several sockets may have one address (SO_REUSEPORT, SO_REUSEADDR): their entries are one entry
//! of the interface's map, which is removed with the last of them. The stack picks the socket.
//!
//! TCP is different in that the stack enters its connections itself, in its flow table. Its filter
//! is a *grant*: the local address and port for which that counts, and of a listening socket also
//! the connections that others begin. A listener that is given back while connections that it has
//! accepted live is *closing*: nothing begins any more, and the grant goes with the last of them.
//!
//! A *static filter* is an administrator's, see [`super::statics`].

use std::collections::HashMap;
use std::sync::Arc;

use bypass_backends::af_xdp::FilterCounters;
use bypass_stack::cplane::Address;
use bypass_stack::{EndpointId, IpAddress, SocketAddress};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Place;

use super::foreign::Foreign;
use super::statics::Statics;

/// IPPROTO_TCP.
pub(super) const TCP: u8 = 6;
/// Up to so many entries on an interface, a socket bound to any address is served on all of the
/// host's addresses there; above, on those of the interface itself.
const FOREIGN_ADDRESSES: usize = 64;

/// The bit that no id has: the stack marks its ports with it.
const RESERVED: u32 = 1 << 31;

/// What an entry of an interface's map does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FlowKind {
    /// Leads datagrams, or TCP segments that begin connections.
    Packets,
    /// Lets the stack claim TCP flows.
    Grant,
}

/// Packets of one flow, or with `remote` unspecified all datagrams to a local address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// Where they are sent to; a specific address.
    pub local: SocketAddress,
    /// Where they come from; unspecified = from anywhere.
    pub remote: SocketAddress,
    /// IP protocol number.
    pub protocol: u8,
    /// What the entry does.
    pub kind: FlowKind,
}

/// What a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// Local address; unspecified = all.
    pub local: SocketAddress,
    /// Remote address if connected, else unspecified.
    pub remote: SocketAddress,
    /// IP protocol number.
    pub protocol: u8,
    /// Whether IPv4 packets are taken.
    pub v4: bool,
    /// Whether IPv6 packets are taken.
    pub v6: bool,
    /// Only on this interface; 0 = all.
    pub ifindex: u32,
    /// Whether it takes what others begin: not a TCP socket that only connects.
    pub listens: bool,
}

impl Wish {
    /// Addresses that the wish covers on an interface, of the host's addresses.
    fn locals(&self, ifindex: u32, addresses: &[Address]) -> Vec<IpAddress> {
        let takes = |address: &&Address| {
            let ip = address.ip;
            let family = if ip.is_v4() { self.v4 } else { self.v6 };
            let is_here = address.ifindex == ifindex;
            family && !ip.is_loopback() && (is_here || !ip.is_link_local_v6())
        };
        if !self.local.ip.is_unspecified() {
            let is_owned = addresses
                .iter()
                .any(|address| address.ip == self.local.ip && address.ifindex == ifindex);
            return if is_owned {
                vec![self.local.ip]
            } else {
                Vec::new()
            };
        }
        let mut all: Vec<IpAddress> = addresses
            .iter()
            .filter(takes)
            .map(|address| address.ip)
            .collect();
        if all.len() > FOREIGN_ADDRESSES {
            let own = addresses
                .iter()
                .filter(|address| address.ifindex == ifindex);
            all = own.filter(takes).map(|address| address.ip).collect();
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The flows that the wish means on an interface.
    pub(super) fn flows(&self, ifindex: u32, addresses: &[Address]) -> Vec<Flow> {
        if self.ifindex != 0 && self.ifindex != ifindex {
            return Vec::new();
        }
        // The grant first: a connection that begins needs it.
        let kinds = [
            (FlowKind::Grant, self.protocol == TCP),
            (FlowKind::Packets, self.listens),
        ];
        let mut flows = Vec::new();
        for ip in self.locals(ifindex, addresses) {
            let kinds = kinds.iter().filter(|(_, has_it)| *has_it);
            flows.extend(kinds.map(|(kind, _)| Flow {
                local: SocketAddress::new(ip, self.local.port),
                remote: self.remote,
                protocol: self.protocol,
                kind: *kind,
            }));
        }
        flows
    }

    /// Whether connections of this local address are granted by it.
    pub(super) fn grants(&self, local: SocketAddress) -> bool {
        self.protocol == TCP
            && self.local.port == local.port
            && (self.local.ip.is_unspecified() || self.local.ip == local.ip)
    }

    /// Whether a flow on an interface is inside this wish (as that of a static filter).
    pub(super) fn covers(&self, ifindex: u32, flow: &Flow) -> bool {
        let any = SocketAddress::UNSPECIFIED;
        (self.ifindex == 0 || self.ifindex == ifindex)
            && self.protocol == flow.protocol
            && self.local.port == flow.local.port
            && (self.local.ip.is_unspecified() || self.local.ip == flow.local.ip)
            && (self.remote == any || self.remote == flow.remote)
            && if flow.local.ip.is_v4() {
                self.v4
            } else {
                self.v6
            }
    }
}

/// One flow of a filter on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Interface index.
    pub ifindex: u32,
    /// The flow.
    pub flow: Flow,
    /// What the map had counted when the entry was added.
    pub before: FilterCounters,
}

/// A program's filter.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// Its id, never zero.
    pub id: u32,
    /// User of the stack that it leads to.
    pub uid: u32,
    /// Process that asked.
    pub pid: u32,
    /// Its name, as static filters know it.
    pub program: String,
    /// Endpoint that it feeds, with which it ends.
    pub endpoint: EndpointId,
    /// What was asked for.
    pub wish: Wish,
    /// What is in place.
    pub entries: Vec<Entry>,
    /// Whether its endpoint rests ([`bypass_stack::Stack::rest`]): nothing new is led to it.
    pub rests: bool,
    /// Whether its socket was passed to a program that has not said yet that it has the endpoint
    /// too: nothing new is led to it.
    pub is_lent: bool,
    /// Whether it is for a port that the stack keeps (`super::ports`), of no endpoint's own.
    pub is_port: bool,
    /// Whether entries may be added later. Not for a filter whose wish is only the program's word.
    pub may_grow: bool,
    /// The socket that was the proof, kept for TCP: the port stays taken while the stack finishes
    /// connections whose sockets are closed.
    pub proof: Option<Arc<Foreign>>,
    /// SO_COOKIE of the socket that was the proof, for UDP of a user who is not root: without that
    /// socket the filter goes, whatever the stack's image says, which is the user's word. (A copy
    /// of it would keep the port from being bound again.)
    pub socket: Option<u64>,
    /// Whether the last sweep did not find that socket.
    pub is_missed: bool,
}

impl Filter {
    /// Whether this is a grant that lives only for the connections that are left.
    pub(super) fn is_closing(&self) -> bool {
        self.endpoint == EndpointId::NONE && !self.is_port
    }

    /// Whether it is for one TCP connection, which goes on after its program.
    pub(super) fn is_of_connection(&self) -> bool {
        self.wish.protocol == TCP && !self.wish.listens
    }
}

/// What a map entry of an interface has to do after a change of its references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapChange {
    /// It must be written, or removed.
    Needed,
    /// Others share it.
    Shared,
}

/// All filters: by id, and how many share each flow.
#[derive(Debug, Default)]
pub(super) struct Filters {
    by_id: DashMap<u32, Filter>,
    shares: DashMap<(u32, Flow), u32>,
    /// The administrator's.
    pub statics: Statics,
    per_process: HashMap<u32, u32>,
    last_id: u32,
}

impl Filters {
    /// An id that is not in use.
    pub(super) fn new_id(&mut self) -> u32 {
        loop {
            self.last_id = (self.last_id.wrapping_add(1) & !RESERVED).max(1);
            let id = self.last_id;
            if !self.by_id.contains_key(&id) && !self.statics.iter().any(|known| known.id == id) {
                return id;
            }
        }
    }

    /// Keeps ids that programs of an adopted stack hold out of use.
    pub(super) fn reserve_ids(&mut self, highest: u32) {
        self.last_id = self.last_id.max(highest);
    }

    /// Adds a filter whose entries are in place.
    pub(super) fn insert(&mut self, filter: Filter) {
        *self.per_process.entry(filter.pid).or_default() += 1;
        self.by_id.insert(filter.id, filter);
    }

    /// Takes a filter out; its entries are still in place.
    pub(super) fn remove(&mut self, id: u32) -> Option<Filter> {
        let (_, filter) = self.by_id.remove(&id)?;
        if let Some(count) = self.per_process.get_mut(&filter.pid) {
            *count -= 1;
            if *count == 0 {
                self.per_process.remove(&filter.pid);
            }
        }
        Some(filter)
    }

    /// A copy of a filter.
    pub(super) fn get(&self, id: u32) -> Option<Filter> {
        self.by_id.get(&id).map(|filter| filter.clone())
    }

    /// Changes what is in place for a filter.
    pub(super) fn set_entries(&self, id: u32, entries: Vec<Entry>) {
        if let Some(mut filter) = self.by_id.get_mut(&id) {
            filter.entries = entries;
        }
    }

    /// Ids of the filters that `which` picks, lowest first.
    pub(super) fn ids(&self, which: impl Fn(&Filter) -> bool) -> Vec<u32> {
        let picked = self.by_id.iter().filter(|filter| which(filter));
        let mut ids: Vec<u32> = picked.map(|filter| filter.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Says whether the endpoint of a filter rests.
    pub(super) fn set_resting(&self, id: u32, on: bool) {
        if let Some(mut filter) = self.by_id.get_mut(&id) {
            filter.rests = on;
        }
    }

    /// Says whether the socket of an endpoint's filters is lent; which filters those are.
    pub(super) fn set_lent(&self, uid: u32, endpoint: EndpointId, on: bool) -> Vec<u32> {
        let ids = self
            .ids(|filter| (filter.uid, filter.endpoint) == (uid, endpoint) && filter.is_lent != on);
        for id in &ids {
            if let Some(mut filter) = self.by_id.get_mut(id) {
                filter.is_lent = on;
            }
        }
        ids
    }

    /// The stack does not keep a port any more: its filter is a closing one, and goes with the last
    /// of its connections.
    pub(super) fn set_not_kept(&self, id: u32) {
        if let Some(mut filter) = self.by_id.get_mut(&id) {
            filter.is_port = false;
        }
    }

    /// Notes whether a sweep has missed the filter's socket.
    pub(super) fn set_missed(&self, id: u32, on: bool) {
        if let Some(mut filter) = self.by_id.get_mut(&id) {
            filter.is_missed = on;
        }
    }

    /// Makes a listener's filter a closing one.
    pub(super) fn set_closing(&self, id: u32) {
        let proof = self.by_id.get_mut(&id).and_then(|mut filter| {
            filter.endpoint = EndpointId::NONE;
            filter.wish.listens = false;
            filter.proof.take()
        });
        // Closed when nothing is locked any more.
        drop(proof);
    }

    /// Whether a stack has filters for TCP.
    pub(super) fn has_tcp(&self, uid: u32) -> bool {
        let mut filters = self.by_id.iter();
        filters.any(|filter| filter.uid == uid && filter.wish.protocol == TCP)
    }

    /// Whether a connection of this local address may be the stack's.
    pub(super) fn grants_tcp(&self, uid: u32, local: SocketAddress) -> bool {
        let mut filters = self.by_id.iter();
        filters.any(|filter| filter.uid == uid && filter.wish.grants(local))
    }

    /// Id and endpoint of every filter of a stack that has one.
    pub(super) fn endpoints(&self, uid: u32) -> Vec<(u32, EndpointId)> {
        let mine = self
            .by_id
            .iter()
            .filter(|filter| filter.uid == uid && filter.endpoint != EndpointId::NONE);
        mine.map(|filter| (filter.id, filter.endpoint)).collect()
    }

    /// How many filters a process has asked for.
    pub(super) fn of_process(&self, pid: u32) -> u32 {
        self.per_process.get(&pid).copied().unwrap_or(0)
    }

    /// How many there are, static ones not counted.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Notes one more filter with this flow.
    pub(super) fn share(&self, ifindex: u32, flow: Flow) -> MapChange {
        match self.shares.entry((ifindex, flow)) {
            Place::Occupied(mut place) => {
                *place.get_mut() += 1;
                MapChange::Shared
            }
            Place::Vacant(place) => {
                place.insert(1);
                MapChange::Needed
            }
        }
    }

    /// Notes one filter less with this flow.
    pub(super) fn unshare(&self, ifindex: u32, flow: Flow) -> MapChange {
        match self.shares.entry((ifindex, flow)) {
            Place::Occupied(mut place) if *place.get() > 1 => {
                *place.get_mut() -= 1;
                MapChange::Shared
            }
            Place::Occupied(place) => {
                place.remove();
                MapChange::Needed
            }
            Place::Vacant(_) => MapChange::Shared,
        }
    }

    /// Whether a filter has this flow.
    pub(super) fn is_shared(&self, ifindex: u32, flow: &Flow) -> bool {
        self.shares.contains_key(&(ifindex, *flow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(local: IpAddress) -> Wish {
        Wish {
            local: SocketAddress::new(local, 53),
            remote: SocketAddress::UNSPECIFIED,
            protocol: 17,
            v4: true,
            v6: true,
            ifindex: 0,
            listens: true,
        }
    }

    fn host() -> Vec<Address> {
        vec![
            Address::v4([127, 0, 0, 1], 8, 1),
            Address::v4([198, 18, 0, 1], 24, 2),
            Address::v6(
                [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                64,
                2,
            ),
            Address::v4([198, 18, 1, 1], 24, 3),
            Address::v6(
                [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
                64,
                3,
            ),
        ]
    }

    #[test]
    fn any_address_means_the_hosts_own_ones() {
        let any = wish(IpAddress::UNSPECIFIED);
        let flows = any.flows(2, &host());
        let locals: Vec<String> = flows.iter().map(|flow| flow.local.ip.to_string()).collect();
        assert_eq!(locals, ["198.18.0.1", "198.18.1.1", "fe80::1"]);
        let v6_only = Wish { v4: false, ..any };
        assert_eq!(v6_only.flows(2, &host()).len(), 1);
        let elsewhere = Wish { ifindex: 3, ..any };
        assert!(elsewhere.flows(2, &host()).is_empty());
    }

    #[test]
    fn tcp_has_grants_and_a_listener_more() {
        let connects = Wish {
            protocol: TCP,
            listens: false,
            ..wish(IpAddress::from_v4([198, 18, 0, 1]))
        };
        let kinds = |wish: Wish| -> Vec<FlowKind> {
            let flows = wish.flows(2, &host());
            flows.iter().map(|flow| flow.kind).collect()
        };
        assert_eq!(kinds(connects), [FlowKind::Grant]);
        let listens = Wish {
            listens: true,
            ..connects
        };
        assert_eq!(kinds(listens), [FlowKind::Grant, FlowKind::Packets]);
        let any = wish(IpAddress::UNSPECIFIED);
        assert!(connects.grants(connects.local) && !any.grants(connects.local));
        assert!(!connects.grants(SocketAddress::new(connects.local.ip, 54)));
    }

    #[test]
    fn one_address_is_served_where_it_is() {
        let one = wish(IpAddress::from_v4([198, 18, 1, 1]));
        assert!(one.flows(2, &host()).is_empty());
        assert_eq!(one.flows(3, &host()).len(), 1);
    }

    #[test]
    fn an_entry_goes_with_its_last_filter() {
        let filters = Filters::default();
        let flow = wish(IpAddress::UNSPECIFIED).flows(2, &host())[0];
        assert_eq!(filters.share(2, flow), MapChange::Needed);
        assert_eq!(filters.share(2, flow), MapChange::Shared);
        assert_eq!(filters.share(3, flow), MapChange::Needed);
        assert_eq!(filters.unshare(2, flow), MapChange::Shared);
        assert_eq!(filters.unshare(2, flow), MapChange::Needed);
        assert_eq!(filters.unshare(2, flow), MapChange::Shared);
    }
}
