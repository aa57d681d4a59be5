//! Ports for the connections that a stack's programs begin (docs/adr/0017).
//!
//! The daemon binds them itself, any that the kernel has free, so that they are nobody else's; the
//! stack keeps them in its image and uses them again and again. Each has a filter, a grant without
//! an endpoint and of no program in particular. The sweep takes back what nobody has needed for
//! long.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bypass_proto::control::{Refusal, Reply, ReplyKind, Request};
use bypass_runtime::clock;
use bypass_stack::inspect::Image;
use bypass_stack::tcp::ports::PLACES;
use bypass_stack::{EndpointId, IpAddress, PortView, SocketAddress};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::client::Client;
use super::counters::Counter;
use super::filters::{Entry, Filter, Flow, TCP, Wish};
use super::proof;
use super::requests::Refused;
use super::server::Server;
use super::stacks::Busy;
use super::statics::Asker;

/// Ports that are added at once: as many as there are, within these bounds. So a program that
/// connects once costs few, and one that does so all the time soon asks no more.
const AT_ONCE: (usize, usize) = (4, 256);
/// All stacks together have no more than one in so many of the ports that the kernel chooses from.
const SHARE: usize = 8;

impl Server {
    /// Adds ports of an address to the stack of a client; `count` of the reply says how many.
    pub(super) fn add_ports(
        &mut self,
        client: &mut Client,
        request: &Request,
    ) -> Result<Reply, Refused> {
        let uid = self.stack_of(client).ok_or(Refusal::Malformed)?;
        let source = proof::normal(IpAddress(request.local));
        if source.is_unspecified() || source.is_loopback() || source.is_link_local_v6() {
            return Err(Refusal::Malformed.into());
        }
        let known = self.ports_of(uid).len();
        let share = ports_to_choose_from() / SHARE;
        let all = self.filters.ids(|filter| filter.is_port).len();
        let room = (PLACES.saturating_sub(known)).min(share.saturating_sub(all));
        if room == 0 {
            return Err(Refusal::Limit.into());
        }
        let wanted = known.clamp(AT_ONCE.0, AT_ONCE.1).min(room);
        let mut count = 0;
        while (count as usize) < wanted {
            match self.add_port(uid, source) {
                Ok(()) => count += 1,
                Err(refused) if count == 0 => return Err(refused),
                Err(_) => break,
            }
        }
        Ok(Reply {
            count,
            ..Reply::new(ReplyKind::End)
        })
    }

    fn add_port(&mut self, uid: u32, source: IpAddress) -> Result<(), Refused> {
        let (proof, local) = reserve(SocketAddress::new(source, 0))?;
        let id = self.filters.new_id();
        self.place_filter(filter_of(id, uid, local, Some(proof)))?;
        let stack = self.stacks.get(uid).ok_or(Refusal::Malformed)?;
        let added = stack
            .lock()
            .map(|mut locked| locked.stack().port_add(local, id, clock::now()));
        match added {
            Ok(true) => {
                self.counters.add(Counter::FiltersAdded);
                return Ok(());
            }
            Ok(false) | Err(Busy) => self.remove_filter(id),
        }
        Err(Refusal::Limit.into())
    }

    fn ports_of(&self, uid: u32) -> Vec<u32> {
        let is_port = |filter: &Filter| filter.uid == uid && filter.is_port;
        self.filters.ids(is_port)
    }

    /// The ports of a stack that would not be granted any more: their interface is not served, or a
    /// static filter came.
    pub(super) fn lost_ports(&self, uid: u32) -> HashSet<u32> {
        let asker = Asker { uid, program: "" };
        let statics = &self.filters.statics;
        let is_lost = |filter: &Filter| {
            let mut entries = filter.entries.iter();
            filter.entries.is_empty()
                || entries.any(|entry| statics.withhold(entry.ifindex, &entry.flow, &asker))
        };
        self.filters
            .ids(|filter| filter.uid == uid && filter.is_port && is_lost(filter))
            .into_iter()
            .collect()
    }

    /// Takes over the ports of a stack whose daemon is gone: as far as the maps have their grants,
    /// and nobody has bound them meanwhile.
    pub(super) fn adopt_ports(&mut self, uid: u32, view: &Image<'_>) {
        for port in view.local_ports() {
            let filter = self.adopt_port(uid, &port);
            if let Some(stack) = self.stacks.get(uid)
                && let Ok(mut locked) = stack.lock()
            {
                locked.stack().port_adopted(port.place, filter);
            }
        }
    }

    fn adopt_port(&mut self, uid: u32, port: &PortView) -> Option<u32> {
        let (proof, _) = reserve(port.local).ok()?;
        let entries = self.granted(uid, port.local);
        if entries.is_empty() {
            return None;
        }
        let id = if port.filter == 0 || self.filters.get(port.filter).is_some() {
            self.filters.new_id()
        } else {
            port.filter
        };
        self.filters.reserve_ids(id);
        self.filters.insert(Filter {
            entries,
            ..filter_of(id, uid, port.local, Some(proof))
        });
        Some(id)
    }

    /// The grants of a local address that the maps of a stack's interfaces have, as entries.
    fn granted(&mut self, uid: u32, local: SocketAddress) -> Vec<Entry> {
        let wish = wish(local);
        let open = self.nics.of_owner(uid);
        let there: Vec<(u32, Flow)> = open
            .flat_map(|(ifindex, nic)| {
                let flows = wish.flows(ifindex, self.mirror.addresses());
                let there = flows.into_iter().filter(|flow| nic.has_filter(flow));
                there.map(move |flow| (ifindex, flow)).collect::<Vec<_>>()
            })
            .collect();
        let entries = there
            .into_iter()
            .filter_map(|place| self.adopt_entry(place));
        entries.collect()
    }
}

fn wish(local: SocketAddress) -> Wish {
    Wish {
        local,
        remote: SocketAddress::UNSPECIFIED,
        protocol: TCP,
        v4: local.ip.is_v4(),
        v6: !local.ip.is_v4(),
        ifindex: 0,
        listens: false,
    }
}

fn filter_of(id: u32, uid: u32, local: SocketAddress, proof: Option<OwnedFd>) -> Filter {
    Filter {
        id,
        uid,
        pid: 0,
        program: String::new(),
        endpoint: EndpointId::NONE,
        wish: wish(local),
        entries: Vec::new(),
        rests: false,
        is_port: true,
        is_lent: false,
        may_grow: true,
        proof: proof.map(|proof| Arc::new(proof.into())),
        socket: None,
        is_missed: false,
    }
}

/// How many ports the kernel chooses from (`net.ipv4.ip_local_port_range`).
fn ports_to_choose_from() -> usize {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse::<usize>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(low)), Some(Ok(high))) => (high + 1).saturating_sub(low),
        _ => 0,
    }
}

/// Binds a TCP socket that shares its port with nobody; port 0 = any that the kernel has free.
fn reserve(at: SocketAddress) -> Result<(OwnedFd, SocketAddress), Errno> {
    let (domain, address) = match at.ip.to_v4() {
        Some(v4) => (
            AddressFamily::INET,
            SocketAddr::from((Ipv4Addr::from(v4), at.port)),
        ),
        None => (
            AddressFamily::INET6,
            SocketAddr::from((Ipv6Addr::from(at.ip.0), at.port)),
        ),
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(domain, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    if domain == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    let bound = proof::bound_to(&socket).ok_or(Errno::PROTO)?;
    Ok((socket, bound))
}
