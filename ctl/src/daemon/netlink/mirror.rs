//! The daemon's copy of the kernel's control plane.
//!
//! One socket is subscribed to every change; before anything else is read, so that nothing is
//! missed. Neighbours follow each message, for they change often. Everything else is small and
//! full of special cases (routes that vanish with a link are not announced, replaced and appended
//! routes look alike), so a message is only the occasion to read the whole again with dump
//! requests on a second socket. Lost messages (ENOBUFS) are such an occasion too.
//!
//! After a dump the next one waits for [`PAUSE`], or [`PAUSE_FACTOR`] times as long as the dump
//! took,
//! so that a host with many routes that change all the time keeps its processor.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bypass_backends::netlink;
use bypass_stack::IpAddress;
use bypass_stack::cplane::{self, Address, Link, NEIGHBOURS, Neighbour, ROUTES, Route, Table};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
    sockopt,
};
use zerocopy::FromZeros;

use crate::daemon::counters::{Counter, Counters};
use crate::source::rtnetlink::{self, LinkInfo, RouteInfo, kind};

/// Least time between two dumps.
const PAUSE: Duration = Duration::from_millis(20);
/// Share of the time that dumps may take: one in this many.
const PAUSE_FACTOR: u32 = 20;
/// How long the kernel may take to answer a dump.
const PATIENCE: Duration = Duration::from_secs(2);
/// Attempts at a dump that changes meanwhile.
const ATTEMPTS: u32 = 4;
/// Receive buffer of the subscribed socket in bytes.
const EVENT_BUFFER: usize = 1 << 20;
/// Messages read in one go before others have their turn.
const BATCH: u32 = 256;
/// Bytes of one datagram (a dump's are at most this long).
const DATAGRAM: usize = 64 * 1024;
/// MAC addresses that are remembered: twice as many as the table has neighbours.
const MACS: usize = 2 * NEIGHBOURS;
/// LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, as the
/// kernel numbers multicast groups from 1.
const GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// The mirror. Links and addresses are also what filters are decided with.
pub(in crate::daemon) struct Mirror {
    events: OwnedFd,
    requests: OwnedFd,
    sequence: u32,
    links: BTreeMap<u32, LinkInfo>,
    addresses: Vec<Address>,
    table: Box<Table>,
    /// Something changed that only a dump can tell.
    stale: bool,
    /// Neighbours were lost and must be read again.
    neighbours_stale: bool,
    /// No dump before this.
    not_before: Instant,
    /// The same without the least pause.
    affordable: Instant,
    /// The last MAC address of each neighbour, whatever its state.
    macs: BTreeMap<(IpAddress, u32), [u8; 6]>,
    /// What changed since [`Mirror::take_changes`].
    changes: Changes,
    buffer: Vec<u8>,
}

/// What changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Changes {
    /// The table that programs read.
    pub table: bool,
    /// Links or addresses, which decide about filters.
    pub interfaces: bool,
    /// The way to somewhere: a link, a route, the MAC address of a known neighbour.
    pub paths: bool,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror")
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

impl Mirror {
    /// Subscribes to the network namespace of the calling thread and reads everything.
    ///
    /// # Errors
    /// What the kernel answers to the sockets or to the first dump.
    pub(in crate::daemon) fn open(counters: &mut Counters) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let events = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        // Without CAP_NET_ADMIN the default size stays; a lost message costs a dump.
        let _ = sockopt::set_socket_recv_buffer_size_force(&events, EVENT_BUFFER);
        bind(&events, &SocketAddrNetlink::new(0, GROUPS))?;
        let requests = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        bind(&requests, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&requests, sockopt::Timeout::Recv, Some(PATIENCE))?;
        let mut mirror = Self {
            events,
            requests,
            sequence: 0,
            links: BTreeMap::new(),
            addresses: Vec::new(),
            table: Box::new(Table::new_zeroed()),
            stale: true,
            neighbours_stale: true,
            not_before: Instant::now(),
            affordable: Instant::now(),
            macs: BTreeMap::new(),
            changes: Changes::default(),
            buffer: vec![0; DATAGRAM],
        };
        mirror.refresh(counters)?;
        Ok(mirror)
    }

    /// The links, by interface index.
    pub(in crate::daemon) fn links(&self) -> impl Iterator<Item = &LinkInfo> {
        self.links.values()
    }

    /// One link.
    pub(in crate::daemon) fn link(&self, ifindex: u32) -> Option<&LinkInfo> {
        self.links.get(&ifindex)
    }

    /// The addresses of this host.
    pub(in crate::daemon) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The table as programs should see it, but for the queue pairs.
    pub(in crate::daemon) fn table(&self) -> &Table {
        &self.table
    }

    /// What changed since the last call.
    pub(in crate::daemon) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Reads the neighbours again soon: not every change of their state is announced.
    pub(in crate::daemon) fn doubt_neighbours(&mut self) {
        self.neighbours_stale = true;
    }

    /// Has the kernel find out the MAC address of the next hop to `to`. The answer is an event, or
    /// there is none: what fails here, fails for the kernel's own packets too.
    pub(in crate::daemon) fn resolve(&mut self, to: IpAddress, ifindex: u32) {
        let unknown = cplane::unresolved(&self.table, to, IpAddress::UNSPECIFIED, ifindex);
        if let Some((target, ifindex)) = unknown {
            self.sequence = self.sequence.wrapping_add(1);
            let bytes = rtnetlink::use_request(target, ifindex, self.sequence);
            let kernel = SocketAddrNetlink::new(0, 0);
            let _ = sendto(&self.requests, &bytes, SendFlags::DONTWAIT, &kernel);
        }
    }

    /// When [`Mirror::refresh_if_due`] wants to be called; `None` = not before the next message.
    pub(in crate::daemon) fn due(&self) -> Option<Instant> {
        let is_stale = self.stale || self.neighbours_stale;
        is_stale.then_some(self.not_before)
    }

    /// Reads what the kernel has announced.
    pub(in crate::daemon) fn read_events(&mut self, counters: &mut Counters) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..BATCH {
            match recv(&self.events, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => {
                    let bytes = buffer.get(..bytes).unwrap_or_default();
                    for message in netlink::messages(bytes) {
                        counters.add(Counter::NetlinkMessages);
                        self.on_event(&message);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => {
                    counters.add(Counter::NetlinkOverruns);
                    self.stale = true;
                    self.neighbours_stale = true;
                }
                Err(_) => break,
            }
        }
        self.buffer = buffer;
    }

    fn on_event(&mut self, message: &netlink::Message<'_>) {
        match message.kind {
            kind::NEW_NEIGHBOUR => self.on_neighbour(message.body, false),
            kind::DEL_NEIGHBOUR => self.on_neighbour(message.body, true),
            kind::NEW_LINK
            | kind::DEL_LINK
            | kind::NEW_ADDRESS
            | kind::DEL_ADDRESS
            | kind::NEW_ROUTE
            | kind::DEL_ROUTE
            | kind::NEW_RULE
            | kind::DEL_RULE => {
                self.stale = true;
            }
            _ => {}
        }
    }

    fn on_neighbour(&mut self, body: &[u8], gone: bool) {
        let Some(info) = rtnetlink::parse_neighbour(body) else {
            return;
        };
        if gone {
            self.table.remove_neighbour(&info.ip, info.ifindex);
        } else {
            let known = self.table.neighbour(&info.ip, info.ifindex);
            if known.is_some_and(|known| known.mac == info.mac && known.state == info.state) {
                return;
            }
            if self.macs.len() >= MACS {
                self.macs.clear();
            }
            let before = self.macs.insert((info.ip, info.ifindex), info.mac);
            self.changes.paths |= before.is_some_and(|before| before != info.mac);
            self.table.insert_neighbour(&Neighbour {
                ip: info.ip,
                ifindex: info.ifindex,
                mac: info.mac,
                state: info.state,
                reserved: 0,
                spare: 0,
                updated_ns: bypass_runtime::clock::now().0,
            });
        }
        self.changes.table = true;
    }

    /// Dumps again if something changed and the pause is over.
    pub(in crate::daemon) fn refresh_if_due(&mut self, counters: &mut Counters) {
        if self.due().is_some_and(|due| due <= Instant::now()) && self.refresh(counters).is_err() {
            counters.add(Counter::NetlinkFailures);
            self.table.policy_rules = 1;
            self.table.bump();
            self.changes.table = true;
        }
    }

    /// Reads what was announced and, if that needs a dump, dumps without [`PAUSE`] (but not more
    /// often than the share of time allows): somebody waits for the answer.
    pub(in crate::daemon) fn refresh_now(&mut self, counters: &mut Counters) {
        self.read_events(counters);
        self.not_before = self.not_before.min(self.affordable);
        self.refresh_if_due(counters);
    }

    fn refresh(&mut self, counters: &mut Counters) -> Result<(), Errno> {
        counters.add(Counter::NetlinkDumps);
        let stale = std::mem::take(&mut self.stale);
        let neighbours_stale = std::mem::take(&mut self.neighbours_stale);
        let begun = Instant::now();
        let result = self.dump_all(stale, neighbours_stale);
        if result.is_err() {
            self.stale |= stale;
            self.neighbours_stale |= neighbours_stale;
        }
        let (now, pause) = (Instant::now(), begun.elapsed() * PAUSE_FACTOR);
        self.affordable = now + pause;
        self.not_before = now + pause.max(PAUSE);
        result
    }

    fn dump_all(&mut self, stale: bool, neighbours_stale: bool) -> Result<(), Errno> {
        if stale {
            let links = self.dump(kind::GET_LINK, kind::NEW_LINK, LinkInfo::parse)?;
            let addresses = self.dump(
                kind::GET_ADDRESS,
                kind::NEW_ADDRESS,
                rtnetlink::parse_address,
            )?;
            let routes = self.dump(kind::GET_ROUTE, kind::NEW_ROUTE, rtnetlink::parse_route)?;
            let rules = self.dump(kind::GET_RULE, kind::NEW_RULE, parse_rule)?;
            let links = links.into_iter().map(|link| (link.ifindex, link)).collect();
            if links != self.links || addresses != self.addresses {
                self.changes.interfaces = true;
            }
            self.links = links;
            self.addresses = addresses;
            self.fill_table(&routes, &rules);
            self.changes.paths = true;
        }
        if neighbours_stale {
            let neighbours = self.dump(kind::GET_NEIGHBOUR, kind::NEW_NEIGHBOUR, |body| {
                Some(body.to_vec())
            })?;
            self.table.neighbours.zero();
            for body in neighbours {
                self.on_neighbour(&body, false);
            }
            self.table.bump();
        }
        self.changes.table = true;
        Ok(())
    }

    /// Asks for everything of one kind, again when it changed meanwhile.
    fn dump<T>(
        &mut self,
        request: u16,
        answer: u16,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.dump_once(request, answer, &parse)? {
                return Ok(found);
            }
        }
        // It changes faster than we can read. The next message, which is on its way, brings the
        // next attempt.
        self.stale = true;
        Err(Errno::AGAIN)
    }

    /// `None` when the dump was not consistent.
    fn dump_once<T>(
        &mut self,
        request: u16,
        answer: u16,
        parse: &impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = rtnetlink::dump_request(request, self.sequence);
        sendto(
            &self.requests,
            &bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        let (mut found, mut consistent) = (Vec::new(), true);
        loop {
            let bytes = match recv(&self.requests, &mut self.buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?.0,
            };
            let bytes = self.buffer.get(..bytes).unwrap_or_default();
            for message in netlink::messages(bytes) {
                if message.sequence != self.sequence {
                    continue; // The rest of a dump that was given up.
                }
                consistent &= message.flags & rtnetlink::DUMP_INTERRUPTED == 0;
                match message.kind {
                    netlink::DONE => return Ok(consistent.then_some(found)),
                    netlink::ERROR => return message.result().and(Err(Errno::BADMSG)),
                    kind if kind == answer => found.extend(parse(message.body)),
                    _ => {}
                }
            }
        }
    }

    /// Writes links, addresses, routes and flags into the table.
    fn fill_table(&mut self, routes: &[RouteInfo], rules: &[u8]) {
        let table = &mut *self.table;
        table.clear_routes();
        for link in self.links.values() {
            table.insert_link(&Link {
                ifindex: link.ifindex,
                flags: link.flags,
                mac: link.mac,
                mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
                first_queue_pair: 0,
                queue_pairs: 0,
                reserved: 0,
            });
        }
        for address in &self.addresses {
            table.insert_address(address);
        }
        let used = routes
            .iter()
            .filter(|route| matches!(route, RouteInfo::Use(_)))
            .count();
        if used > ROUTES {
            table.overflow = 1;
            return;
        }
        let mut inexpressible = false;
        for route in routes {
            match route {
                RouteInfo::Use(route) => {
                    table.insert_route(&with_siblings(route, routes));
                }
                RouteInfo::Inexpressible => inexpressible = true,
                RouteInfo::Skip => {}
            }
        }
        if inexpressible || !are_default_rules(rules) {
            table.policy_rules = 1;
        }
    }
}

impl AsFd for Mirror {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// A rule message as its bit; 0x80 for a rule of one's own.
fn parse_rule(body: &[u8]) -> Option<u8> {
    // Rules of multicast routing have families of their own.
    matches!(body.first(), Some(2 | 10)).then(|| rtnetlink::default_rule(body).unwrap_or(0x80))
}

/// Whether the rules are the default ones (a kernel without IPv6 has only those of IPv4).
fn are_default_rules(rules: &[u8]) -> bool {
    let seen = rules.iter().fold(0, |seen, rule| seen | rule);
    let has_v6 = seen & rtnetlink::RULES_V6 != 0;
    seen & 0x80 == 0
        && seen & rtnetlink::RULES_V4 == rtnetlink::RULES_V4
        && (!has_v6 || seen & rtnetlink::RULES_V6 == rtnetlink::RULES_V6)
}

/// An IPv6 route that shares prefix and metric with another is one next hop of several. (IPv4
/// takes the first of such routes, and the table keeps their order. Link-local destinations come
/// with an interface.)
fn with_siblings(route: &Route, routes: &[RouteInfo]) -> Route {
    let mut route = *route;
    let is_sibling = |other: &RouteInfo| {
        matches!(other, RouteInfo::Use(other) if other.dst == route.dst
            && other.prefix_len == route.prefix_len
            && other.metric == route.metric
            && (other.ifindex, other.gateway) != (route.ifindex, route.gateway))
    };
    if !is_v4(&route.dst, route.prefix_len)
        && !route.dst.is_link_local_v6()
        && !route.dst.is_multicast()
        && routes.iter().any(is_sibling)
    {
        route.flags |= Route::MULTIPATH;
    }
    route
}

fn is_v4(dst: &IpAddress, prefix_len: u8) -> bool {
    prefix_len >= 96 && dst.is_v4()
}
