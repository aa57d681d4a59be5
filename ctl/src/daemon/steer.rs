//! Steering: opening interfaces, and bringing the entries of filters in line with what is wanted.
//!
//! One function does the work, [`Server::reconcile`]: it computes the entries that a filter should
//! have now, removes those that it should not, opens interfaces where needed and adds what is
//! missing. It runs when a filter is added and whenever links, addresses or static filters change.

use std::collections::BTreeSet;

use bypass_backends::af_xdp::{FilterCounters, NicError};
use bypass_proto::control::Refusal;
use rustix::io::Errno;

use super::counters::Counter;
use super::filters::{Entry, Filter, Flow, FlowKind, MapChange, TCP};
use super::nics::{self, OpenNic, Sizes};
use super::opening::{Opening, Pending};
use super::requests::Refused;
use super::server::Server;
use super::statics::Asker;

/// What kept flows out of [`Server::wanted`], or wanted ones out of the maps.
#[derive(Clone, Copy, Debug, Default)]
struct Obstacles {
    /// A static filter.
    kept: bool,
    /// Another stack or program.
    taken: bool,
    /// A card that takes no more, or a table without room for another entry.
    full: bool,
    /// The operating system.
    errno: Option<Errno>,
}

impl Obstacles {
    /// Notes why an interface could not be opened. EBUSY and EEXIST: another program has it.
    fn failed(&mut self, errno: Option<Errno>) {
        self.taken |= matches!(errno, Some(Errno::BUSY | Errno::EXIST));
        self.errno = match errno {
            Some(Errno::INPROGRESS) => errno,
            _ => self.errno.or(errno),
        };
    }

    fn refused(self) -> Refused {
        let refusal = if self.errno == Some(Errno::INPROGRESS) {
            return Refused::not_yet();
        } else if self.full {
            Refusal::Limit
        } else if self.taken {
            Refusal::QueueBusy
        } else if self.errno == Some(Errno::AGAIN) {
            Refusal::System
        } else if self.kept {
            Refusal::Conflict
        } else {
            Refusal::NoInterface
        };
        let detail = self
            .errno
            .map_or(0, |errno| errno.raw_os_error().unsigned_abs());
        Refused { refusal, detail }
    }
}

impl Server {
    /// Puts a new filter in place; how many interfaces serve it. A filter that none serves is
    /// refused and forgotten.
    pub(super) fn place_filter(&mut self, filter: Filter) -> Result<u32, Refused> {
        let id = filter.id;
        self.filters.insert(filter);
        let mut refused = self.reconcile(id);
        let is_full = refused.refusal == Refusal::Limit;
        if self.interfaces_of(id) == 0 && refused != Refused::not_yet() && !is_full {
            // The address may be newer than what we know.
            self.mirror.refresh_now(&mut self.counters);
            self.follow_mirror();
            refused = self.reconcile(id);
        }
        let count = self.interfaces_of(id);
        if count == 0 {
            self.remove_filter(id);
            return Err(refused);
        }
        self.publish();
        Ok(count)
    }

    fn interfaces_of(&self, id: u32) -> u32 {
        let entries = self
            .filters
            .get(id)
            .map(|filter| filter.entries)
            .unwrap_or_default();
        let interfaces: BTreeSet<u32> = entries.iter().map(|entry| entry.ifindex).collect();
        interfaces.len() as u32
    }

    /// Ends a filter: at once, or a listener's when the connections that it has accepted are gone.
    /// That may be said twice: by a sweep and by whoever let go of the listener.
    pub(super) fn retire_filter(&mut self, id: u32) {
        match self.filters.get(id) {
            Some(filter) if filter.is_closing() => {}
            Some(filter) if filter.wish.listens && self.has_flows(&filter) => {
                self.filters.set_closing(id);
                self.reconcile(id);
            }
            _ => self.remove_filter(id),
        }
    }

    /// Whether the stack has TCP flows of the filter's address.
    pub(super) fn has_flows(&self, filter: &Filter) -> bool {
        filter.wish.protocol == TCP
            && self.stacks.get(filter.uid).is_some_and(|stack| {
                let mut flows = stack.flows.iter();
                flows.any(|flow| filter.wish.grants(flow.local))
            })
    }

    /// Takes a filter away: its entries first.
    pub(super) fn remove_filter(&mut self, id: u32) {
        if let Some(filter) = self.filters.remove(id) {
            for entry in &filter.entries {
                self.remove_entry(entry);
            }
        }
    }

    fn remove_entry(&self, entry: &Entry) {
        if self.filters.unshare(entry.ifindex, entry.flow) == MapChange::Needed
            && let Some(nic) = self.nics.get(entry.ifindex)
        {
            nic.remove_filter(&entry.flow);
        }
    }

    /// [`Server::reconcile`] for every filter.
    pub(super) fn reconcile_all(&mut self) {
        self.keep_flows();
        for id in self.filters.ids(|_| true) {
            self.reconcile(id);
        }
    }

    /// Writes the flows that static filters keep in the kernel into the interfaces' maps, where
    /// they go before the less exact entries of sockets, and removes those that none keeps any
    /// more.
    pub(super) fn keep_flows(&self) {
        let statics = || self.filters.statics.iter().filter(|it| it.keeps_flow());
        for (ifindex, nic) in self.nics.iter() {
            let kept = statics().flat_map(|it| it.wish.flows(ifindex, self.mirror.addresses()));
            nic.keep_in_kernel(&kept.collect::<Vec<Flow>>());
        }
    }

    /// Brings one filter's entries in line; why there are not more of them, if there are none.
    pub(super) fn reconcile(&mut self, id: u32) -> Refused {
        let Some(filter) = self.filters.get(id) else {
            return Refusal::NoInterface.into();
        };
        let (wanted, mut obstacles) = self.wanted(&filter);
        let is_wanted = |entry: &Entry| wanted.contains(&(entry.ifindex, entry.flow));
        let (mut entries, gone): (Vec<Entry>, Vec<Entry>) =
            filter.entries.iter().partition(|entry| is_wanted(entry));
        for entry in &gone {
            self.remove_entry(entry);
        }
        for (ifindex, flow) in wanted {
            if entries
                .iter()
                .any(|entry| (entry.ifindex, entry.flow) == (ifindex, flow))
            {
                continue;
            }
            if !filter.may_grow {
                continue;
            }
            if let Err(errno) = self.open_interface(ifindex, filter.uid) {
                obstacles.failed(errno);
                continue;
            }
            match self.add_entry(ifindex, &flow) {
                Ok(before) => entries.push(Entry {
                    ifindex,
                    flow,
                    before,
                }),
                Err(Errno::NOSPC | Errno::TOOBIG) => obstacles.full = true,
                Err(errno) => obstacles.failed(Some(errno)),
            }
        }
        self.filters.set_entries(id, entries);
        obstacles.refused()
    }

    /// Writes one entry; what it had counted before. `ENOSPC` when the card takes no more, `E2BIG`
    /// when a table is full, or why else it could not be written.
    pub(super) fn add_entry(&mut self, ifindex: u32, flow: &Flow) -> Result<FilterCounters, Errno> {
        let nic = self.nics.get(ifindex).ok_or(Errno::NODEV)?;
        if self.filters.share(ifindex, *flow) == MapChange::Shared {
            return Ok(nic.filter_counters(flow));
        }
        // An adopted interface has it already; writing it again would start its counters anew.
        let entered = match nic.has_filter(flow) {
            true => Ok(()),
            false => nic.add_filter(flow).map_err(|why| why.errno),
        };
        if let Err(errno) = entered {
            self.filters.unshare(ifindex, *flow);
            self.counters.add(Counter::FilterFailures);
            return Err(errno);
        }
        Ok(nic.filter_counters(flow))
    }

    /// The entries that a filter of a stack's program should have now.
    fn wanted(&self, filter: &Filter) -> (Vec<(u32, Flow)>, Obstacles) {
        let (wish, uid) = (&filter.wish, filter.uid);
        let asker = Asker {
            uid,
            program: &filter.program,
        };
        let (mut wanted, mut obstacles) = (Vec::new(), Obstacles::default());
        let stack = self.stacks.get(uid);
        let chunk_size = stack.map_or(0, |stack| stack.chunk_size);
        let is_crowded =
            wish.listens && wish.protocol == TCP && stack.is_some_and(|stack| stack.is_crowded);
        let leads_on = !filter.rests && !filter.is_lent && !is_crowded;
        let policy = &self.config.policy.daemon;
        for link in self.mirror.links() {
            let ifindex = link.ifindex;
            // An MTU that rises later is no matter: larger frames pass to the kernel.
            let is_too_big =
                || self.nics.get(ifindex).is_none() && nics::too_big(link, chunk_size).is_some();
            let is_unfit = nics::unfit(link, self.devices.port(ifindex).is_some(), policy)
                .is_some()
                || self.devices.unfit(&link.name).is_some()
                || is_too_big();
            if is_unfit {
                continue;
            }
            let mut flows = wish.flows(ifindex, self.mirror.addresses());
            flows.retain(|flow| flow.kind == FlowKind::Grant || leads_on);
            let before = flows.len();
            let is_old = |flow: &Flow| {
                let mut entries = filter.entries.iter();
                flow.kind == FlowKind::Grant
                    && entries.any(|entry| (entry.ifindex, entry.flow) == (ifindex, *flow))
            };
            let statics = &self.filters.statics;
            flows.retain(|flow| is_old(flow) || !statics.withhold(ifindex, flow, &asker));
            obstacles.kept |= flows.len() != before;
            if flows.is_empty() {
                continue;
            }
            let is_ready = match self.nics.get(ifindex) {
                Some(nic) => {
                    obstacles.taken |= nic.owner != uid;
                    nic.owner == uid
                }
                None if self.nics.failed_lately(ifindex) => {
                    obstacles.failed(self.nics.errno(ifindex));
                    false
                }
                None => link.is_up(),
            };
            if is_ready {
                wanted.extend(flows.into_iter().map(|flow| (ifindex, flow)));
            }
        }
        (wanted, obstacles)
    }

    /// Opens an interface for a stack, unless that is done already.
    fn open_interface(&mut self, ifindex: u32, uid: u32) -> Result<(), Option<Errno>> {
        if let Some(nic) = self.nics.get(ifindex) {
            return if nic.owner == uid {
                Ok(())
            } else {
                Err(Some(Errno::BUSY))
            };
        }
        if self
            .openings
            .owner(ifindex)
            .is_some_and(|owner| owner != uid)
        {
            return Err(Some(Errno::BUSY));
        }
        if self.nics.failed_lately(ifindex) {
            return Err(self.nics.errno(ifindex));
        }
        match self.try_open(ifindex, uid) {
            Ok(nic) => {
                self.counters.add(Counter::InterfacesOpened);
                self.nics.insert(ifindex, nic);
                self.watch_queues(uid);
                self.keep_flows();
                self.unpublished = true;
                Ok(())
            }
            Err(error) if error.errno == Errno::INPROGRESS => Err(Some(error.errno)),
            Err(error) => {
                self.counters.add(Counter::InterfaceFailures);
                // A busy lock says nothing about the interface.
                if error.errno == Errno::AGAIN {
                    self.openings.try_again();
                } else {
                    self.nics.note_failure(ifindex, &error);
                }
                Err(Some(error.errno))
            }
        }
    }

    fn try_open(&mut self, ifindex: u32, uid: u32) -> Result<OpenNic, NicError> {
        let failed = |errno, what: &str| NicError {
            errno,
            what: what.to_owned(),
        };
        let stack = self
            .stacks
            .get_mut(uid)
            .ok_or_else(|| failed(Errno::NOENT, "no stack"))?;
        let link = self
            .mirror
            .link(ifindex)
            .ok_or_else(|| failed(Errno::NODEV, "no interface"))?;
        let not_yet = || failed(Errno::INPROGRESS, "waiting for a queue");
        let mut opening = match self.openings.take(ifindex) {
            Pending::None => Opening::new(match self.devices.port(ifindex) {
                Some((nic, link)) => OpenNic::of_port(nic.clone(), link, stack, None),
                None => OpenNic::attach(link, uid, stack.chunk_size, &self.config.policy)?,
            }),
            Pending::NotNow => return Err(not_yet()),
            Pending::Ready(opening) => *opening,
        };
        opening.nic.set_flows(stack.flows_fd())?;
        let wanted = opening.nic.queues();
        let count = wanted.len();
        let first = stack
            .room_for(count)
            .ok_or_else(|| failed(Errno::NOSPC, "the stack has no room for its queues"))?;
        // Mapped for the registration only: the kernel keeps the pages, not the addresses.
        let packets = stack
            .map_packets()
            .map_err(|errno| failed(errno, "mapping packet memory"))?;
        for queue in wanted.skip(opening.queues.len()) {
            let sizes = Sizes {
                chunk_size: stack.chunk_size,
                ring_entries: stack.ring_entries,
                packets: stack.packets_fd(),
            };
            match opening.nic.open_queue(ifindex, queue, &packets, sizes) {
                Ok(queue) => opening.queues.push(queue),
                Err(error) if error.errno == Errno::BUSY && opening.has_patience() => {
                    self.openings.keep(ifindex, opening.tried());
                    return Err(not_yet());
                }
                Err(error) => return Err(error),
            }
        }
        let Opening {
            mut nic, queues, ..
        } = opening;
        stack
            .install(first, queues, link, nic.flags())
            .map_err(|errno| failed(errno, "mapping its queues"))?;
        nic.first_queue_pair = first as u8;
        nic.queue_pairs = count as u8;
        Ok(nic)
    }

    /// Closes an interface that belongs to a stack: entries, queues, program.
    pub(super) fn close_interface(&mut self, ifindex: u32) {
        for id in self
            .filters
            .ids(|filter| filter.entries.iter().any(|entry| entry.ifindex == ifindex))
        {
            let Some(filter) = self.filters.get(id) else {
                continue;
            };
            let (gone, left): (Vec<Entry>, Vec<Entry>) = filter
                .entries
                .iter()
                .partition(|entry| entry.ifindex == ifindex);
            for entry in &gone {
                self.remove_entry(entry);
            }
            self.filters.set_entries(id, left);
        }
        if let Some(nic) = self.nics.remove(ifindex) {
            nic.close_queues();
            if let Some(stack) = self.stacks.get(nic.owner) {
                self.unwatch_queues(stack, ifindex);
            }
            if let Some(stack) = self.stacks.get_mut(nic.owner) {
                stack.close_interface(ifindex);
            }
            self.counters.add(Counter::InterfacesClosed);
            self.unpublished = true;
        }
    }

    /// Follows what the mirror has learnt: interfaces that are gone or changed, addresses.
    pub(super) fn follow_mirror(&mut self) {
        let changes = self.mirror.take_changes();
        self.unpublished |= changes.table;
        if changes.paths {
            for stack in self.stacks.iter_mut() {
                stack.unrouted = true;
            }
        }
        if !changes.interfaces {
            return;
        }
        let open: Vec<u32> = self.nics.iter().map(|(ifindex, _)| ifindex).collect();
        for ifindex in open {
            match self.mirror.link(ifindex) {
                None => self.close_interface(ifindex),
                Some(link) => {
                    let owner = self
                        .nics
                        .get(ifindex)
                        .and_then(|nic| self.stacks.get(nic.owner));
                    if owner.is_some_and(|stack| stack.refresh_interface(link).is_err()) {
                        self.counters.add(Counter::StackLocksBusy);
                    }
                }
            }
        }
        let mirror = &self.mirror;
        self.nics
            .retain_failures(|ifindex| mirror.link(ifindex).is_some());
        self.reconcile_all();
    }

    /// Writes the control-plane tables if anything in them changed.
    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        for stack in self.stacks.iter_mut() {
            let nics = self.nics.of_owner(stack.uid);
            let most = nics::largest_mtu(stack.chunk_size);
            let written = stack.cplane.publish(self.mirror.table(), |table| {
                for (ifindex, nic) in nics {
                    table.set_queue_pairs(ifindex, nic.first_queue_pair, nic.queue_pairs);
                    table.limit_mtu(ifindex, most);
                }
            });
            self.unpublished |= written.is_err();
        }
    }

    /// Leads connections the ways that have changed.
    pub(super) fn reroute(&mut self) {
        for stack in self.stacks.iter_mut() {
            if stack.unrouted && stack.reroute().is_err() {
                // The next turn of the loop, at the latest the next sweep, tries again.
                self.counters.add(Counter::StackLocksBusy);
            }
        }
    }
}
