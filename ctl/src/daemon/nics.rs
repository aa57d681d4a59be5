//! Interfaces that the daemon has opened: XDP program attached, one XSK per queue; or the port of a
//! device of the configuration, whose relay takes the place of both.
//!
//! An interface is opened when the first filter needs it, for one stack, and then belongs to that
//! stack until it is closed: all of its queues feed one packet memory. It is closed when its
//! stack ends or when the interface disappears; both ways its filter entries go first, so that no
//! moment exists in which packets are led to a queue that nobody reads.
//!
//! Which interfaces are fit at all is said here too ([`unfit`]), in sentences, because
//! `bypassctl` prints them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bypass_backends::af_xdp::{
    self, COUNTERS, FilterCounters, FilterKey, Listener, Mode, Nic, NicConfig, NicError,
    PacketMemory, Target,
};
use bypass_backends::relay::{CardFilter, InCard, Link, Offloads, RelayNic};
use bypass_proto::policy::{Backend, DaemonPolicy, Policy};
use bypass_runtime::packets::Packets;
use bypass_stack::{IpAddress, QueuePairInfo, SocketAddress};
use rustix::io::Errno;

use super::filters::{Flow, FlowKind};
use super::port::{Asked, Port};
use super::stacks::{self, Queue, StackEntry};
use crate::source::rtnetlink::LinkInfo;

/// After a failure an interface is left alone for this long, after more of them for longer: an
/// attempt may take a second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// What a frame has beside the MTU: Ethernet header, one VLAN tag.
const FRAME_OVERHEAD: u32 = 14 + 4;
/// Slot of the owning stack in the program's map of XSKs. An interface has one owner at a time.
const SLOT: u32 = 0;
/// Kinds of virtual interfaces that cannot be served, or whose traffic is seen elsewhere.
const UNFIT_KINDS: [&str; 14] = [
    "bridge", "vlan", "bond", "team", "macvlan", "macvtap", "ipvlan", "ipvtap", "vrf", "dummy",
    "ifb", "vxlan", "geneve", "hsr",
];

/// What an interface is driven by.
#[derive(Debug)]
enum Driver {
    AfXdp(Box<Nic>),
    Relayed(Port),
}

/// One opened interface.
#[derive(Debug)]
pub(super) struct OpenNic {
    driver: Driver,
    /// User whose stack owns it.
    pub owner: u32,
    /// First queue pair of that stack which is a queue of this interface.
    pub first_queue_pair: u8,
    /// How many there are.
    pub queue_pairs: u8,
    /// Why frames of some queue are copied, where the configuration says that they are not to be.
    pub copies: Option<String>,
    /// Why the stack has no queue for itself, where the configuration says that it is to; or what
    /// does not come to the one that it has.
    pub shared: Option<String>,
}

impl OpenNic {
    /// What drives it.
    pub(super) fn backend(&self) -> Backend {
        match &self.driver {
            Driver::AfXdp(_) => Backend::AfXdp,
            Driver::Relayed(port) => port.backend(),
        }
    }

    /// The descriptor that programs keep for it: the one that keeps the program attached, or the
    /// rings.
    pub(super) fn link(&self) -> Option<BorrowedFd<'_>> {
        match &self.driver {
            Driver::AfXdp(nic) => Some(nic.link()),
            Driver::Relayed(port) => port.rings(),
        }
    }

    /// The queues of the interface that are to be open.
    pub(super) fn queues(&self) -> Range<u32> {
        match &self.driver {
            Driver::AfXdp(nic) => nic.queues(),
            Driver::Relayed(_) => 0..1,
        }
    }

    /// Makes a queue the stack's alone, where the card can; before any is open.
    fn take_queue(&mut self) {
        if let Driver::AfXdp(nic) = &mut self.driver {
            let refused = nic.take_queue().err();
            let told = |why| format!("all queues are served: {why}");
            self.shared = refused.map(told);
        }
    }

    /// Takes over such a queue when the stack has it: it is one only, and not the first. Of how
    /// many filters the card has no rule and takes none.
    pub(super) fn take_over_queue(&mut self, queues: &[QueuePairInfo]) -> usize {
        let ifindex = self.ifindex();
        let its = |info: &&QueuePairInfo| info.is_live() && info.ifindex == ifindex;
        let its: Vec<u32> = queues.iter().filter(its).map(|it| it.queue_id).collect();
        let (Driver::AfXdp(nic), [queue]) = (&mut self.driver, &*its) else {
            return 0;
        };
        if *queue == 0 {
            return 0;
        }
        let refused = nic.take_over_queue(*queue);
        let told = || format!("queue {queue} gets nothing of {refused} filters: no rules for them");
        self.shared = (refused > 0).then(told);
        refused
    }

    /// Says of an interface taken over what it has not of what the configuration asks for. Only the
    /// daemon that has opened it knew why; what still shows is told. `copied` is a queue whose
    /// frames are copied.
    pub(super) fn tell_again(&mut self, policy: &Policy, name: &str, copied: Option<(u32, u32)>) {
        const SINCE: &str = "since before this daemon";
        let Driver::AfXdp(nic) = &self.driver else {
            return;
        };
        if let Some((queue, chunk_size)) = copied.filter(|_| policy.zero_copy(name)) {
            self.copies = Some(match stacks::fits_drivers(chunk_size) {
                true => format!("frames of queue {queue} are copied: {SINCE}"),
                false => small_chunks(chunk_size),
            });
        }
        if policy.own_queue(name) && nic.rules().is_none() {
            let why = nic.why_no_queue();
            let why = why.as_deref().unwrap_or(SINCE);
            self.shared = Some(format!("all queues are served: {why}"));
        }
    }

    /// The rules that lead to such a queue.
    pub(super) fn rules(&self) -> Option<Vec<InCard>> {
        let Driver::AfXdp(nic) = &self.driver else {
            return None;
        };
        let queue = nic.queues().start;
        let told = |(rule, place): (af_xdp::Rule, u32)| InCard {
            filter: rule,
            queue,
            cookie: [place.cast_signed(), 0],
        };
        Some(nic.rules()?.into_iter().map(told).collect())
    }

    /// Who matches the frames of a filter, which the card has or not, and its physical function has
    /// or not: they, or software and why.
    pub(super) fn matched_by(&self, is_in_card: bool, is_in_physical: bool) -> String {
        let why = match &self.driver {
            Driver::AfXdp(_) if is_in_card => return "hardware".to_owned(),
            Driver::AfXdp(nic) if nic.rules().is_some() => "the card has no rule for it",
            Driver::AfXdp(_) => self.shared.as_deref().unwrap_or("the XDP program"),
            Driver::Relayed(port) => return port.matched_by(is_in_card, is_in_physical),
        };
        format!("software: {why}")
    }

    /// Why no rules at a physical function lead to its port, where the configuration says that they
    /// are to.
    pub(super) fn unled(&self) -> Option<&str> {
        match &self.driver {
            Driver::Relayed(port) => port.unled(),
            Driver::AfXdp(_) => None,
        }
    }

    /// Leaves what the card has to the next daemon: programs go on.
    pub(super) fn leave_behind(&self) {
        if let Driver::AfXdp(nic) = &self.driver {
            nic.leave_behind();
        }
    }

    /// How frames come: of AF_XDP whether the program runs in the driver, of DPDK the driver.
    pub(super) fn mode(&self) -> &str {
        match &self.driver {
            Driver::AfXdp(nic) if nic.mode == Mode::Native => "native",
            Driver::AfXdp(_) => "generic",
            Driver::Relayed(port) => &port.nic.driver,
        }
    }

    /// Whether the program runs in the driver.
    pub(super) fn is_native(&self) -> bool {
        matches!(&self.driver, Driver::AfXdp(nic) if nic.mode == Mode::Native)
    }

    /// What its queue pairs are: flags of [`QueuePairInfo`].
    pub(super) fn flags(&self) -> u32 {
        let is = |condition, flag| if condition { flag } else { 0 };
        is(self.is_native(), QueuePairInfo::NATIVE)
            | is(
                self.has_partial_checksums(),
                QueuePairInfo::PARTIAL_CHECKSUMS,
            )
            | self.port().map_or(0, Port::flags)
    }

    /// What the other end must be set to, or what one should know of the device, if anything.
    pub(super) fn condition(&self) -> Option<&'static str> {
        match &self.driver {
            Driver::AfXdp(nic) => nic.condition(),
            Driver::Relayed(port) => port.condition(),
        }
    }

    /// Opens one queue over the packet memory and makes frames that filters match come to it. EBUSY
    /// when somebody else has it, or did until a moment ago.
    pub(super) fn open_queue(
        &mut self,
        ifindex: u32,
        queue: u32,
        stack: &Packets,
        sizes: Sizes<'_>,
    ) -> Result<Queue, NicError> {
        let Sizes {
            chunk_size,
            ring_entries,
            ..
        } = sizes;
        match &mut self.driver {
            Driver::AfXdp(nic) => {
                let (address, bytes) = stack.range();
                let memory = PacketMemory {
                    address,
                    bytes,
                    chunk_size,
                };
                let at_once = Duration::ZERO;
                let opened = nic.open_queue_within(queue, &memory, ring_entries, SLOT, at_once)?;
                if let Some(errno) = opened.refused {
                    self.copies.get_or_insert_with(|| copies(queue, errno));
                }
                Ok(Queue {
                    ifindex,
                    queue,
                    fd: opened.fd,
                    rings: None,
                    backend: Backend::AfXdp,
                })
            }
            Driver::Relayed(port) => port.open_queue(ifindex, queue, sizes),
        }
    }

    /// Leads packets of this flow to the owner's queues.
    pub(super) fn add_filter(&self, flow: &Flow) -> Result<(), NicError> {
        match &self.driver {
            Driver::AfXdp(nic) => nic.add_filter(key(flow), SLOT),
            Driver::Relayed(port) => port.add_filter(key(flow)),
        }
    }

    fn target(&self, key: FilterKey) -> Option<Target> {
        match &self.driver {
            Driver::AfXdp(nic) => nic.target(key),
            Driver::Relayed(port) => port.nic.filters.target(&key),
        }
    }

    fn filters(&self) -> Vec<FilterKey> {
        match &self.driver {
            Driver::AfXdp(nic) => nic.filters(),
            Driver::Relayed(port) => port.nic.filters.keys(),
        }
    }

    fn remove(&self, key: FilterKey) {
        match &self.driver {
            Driver::AfXdp(nic) => nic.remove_filter(key),
            Driver::Relayed(port) => port.remove_filter(key),
        }
    }

    /// Whether the interface has an entry for a flow.
    pub(super) fn has_filter(&self, flow: &Flow) -> bool {
        self.target(key(flow)).is_some()
    }

    /// The grants of the interface.
    pub(super) fn grants(&self) -> Vec<Flow> {
        let flows = self.filters().into_iter().filter_map(|key| flow(&key));
        flows.filter(|flow| flow.kind == FlowKind::Grant).collect()
    }

    /// Asks the card for its own filters; `None` where a program steers.
    pub(super) fn ask_card(&self) -> Option<Asked<'_>> {
        self.port()?.ask_card()
    }

    /// Removes every entry that `is_wanted` does not want. Those of other kinds than the daemon
    /// writes go too.
    pub(super) fn retain_filters(&self, is_wanted: impl Fn(&Flow) -> bool) {
        for known in self.filters() {
            if !flow(&known).is_some_and(|flow| is_wanted(&flow)) {
                self.remove(known);
            }
        }
    }

    /// Makes these flows, and no others, exceptions that stay with the kernel.
    pub(super) fn keep_in_kernel(&self, kept: &[Flow]) {
        for known in self.filters() {
            let target = self.target(known);
            let is_exception = target.is_some_and(|target| target.most == 0);
            if is_exception && !flow(&known).is_some_and(|flow| kept.contains(&flow)) {
                self.remove(known);
            }
        }
        for flow in kept {
            // A full map leaves the flow to the entry of the socket.
            let _ = match &self.driver {
                Driver::AfXdp(nic) => nic.keep_in_kernel(key(flow)).is_ok(),
                Driver::Relayed(port) => port.nic.filters.add(&key(flow), 0).is_ok(),
            };
        }
    }

    /// Leaves them to the kernel again. A flow that is not there is no matter.
    pub(super) fn remove_filter(&self, flow: &Flow) {
        self.remove(key(flow));
    }

    /// What its steering program has counted; a relay's is the port's.
    pub(super) fn counted(&self) -> Option<impl Iterator<Item = (String, u64)> + use<>> {
        let Driver::AfXdp(nic) = &self.driver else {
            return None;
        };
        let names = COUNTERS.iter().map(|(name, _)| (*name).to_owned());
        Some(names.zip(nic.counters()))
    }

    /// What came by a flow since its entry was written.
    pub(super) fn filter_counters(&self, flow: &Flow) -> FilterCounters {
        let target = self.target(key(flow)).unwrap_or_default();
        FilterCounters {
            packets: target.packets,
            bytes: target.bytes,
        }
    }

    /// Has frames pass to the kernel in place of the queues.
    pub(super) fn close_queues(&self) {
        match &self.driver {
            Driver::AfXdp(nic) => {
                for queue in nic.queues() {
                    nic.close_queue(queue, SLOT);
                }
            }
            Driver::Relayed(port) => port.link.detach(),
        }
    }

    /// What its port does with checksums.
    pub(super) fn offloads(&self) -> Offloads {
        self.port()
            .map_or_else(Offloads::default, |port| port.nic.offloads)
    }

    /// The port that it is, of a device.
    fn port(&self) -> Option<&Port> {
        match &self.driver {
            Driver::Relayed(port) => Some(port),
            Driver::AfXdp(_) => None,
        }
    }

    /// Whether frames from the other end come with partial checksums.
    pub(super) fn has_partial_checksums(&self) -> bool {
        matches!(&self.driver, Driver::AfXdp(nic) if nic.interface.is_local_only())
    }
}

/// What a queue is opened with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes<'a> {
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Entries of each ring.
    pub ring_entries: u32,
    /// The packet memory itself.
    pub packets: BorrowedFd<'a>,
}

/// Why an interface could not be opened, and when.
#[derive(Clone, Debug)]
struct Failure {
    at: Instant,
    pause: Duration,
    reason: String,
    /// The verifier's log, if it was that.
    log: Option<String>,
    errno: Errno,
}

/// The opened interfaces, by interface index.
#[derive(Debug, Default)]
pub(super) struct Nics {
    open: BTreeMap<u32, OpenNic>,
    failures: BTreeMap<u32, Failure>,
}

impl Nics {
    /// The opened interface.
    pub(super) fn get(&self, ifindex: u32) -> Option<&OpenNic> {
        self.open.get(&ifindex)
    }

    /// All opened interfaces in index order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &OpenNic)> {
        self.open.iter().map(|(ifindex, nic)| (*ifindex, nic))
    }

    /// The interfaces that belong to a stack.
    pub(super) fn of_owner(&self, owner: u32) -> impl Iterator<Item = (u32, &OpenNic)> {
        self.iter().filter(move |(_, nic)| nic.owner == owner)
    }

    /// Notes an interface whose queues are open.
    pub(super) fn insert(&mut self, ifindex: u32, open: OpenNic) {
        self.failures.remove(&ifindex);
        self.open.insert(ifindex, open);
    }

    /// Forgets an interface; its program is detached when no process holds the link any more.
    pub(super) fn remove(&mut self, ifindex: u32) -> Option<OpenNic> {
        self.open.remove(&ifindex)
    }

    /// Notes that an interface cannot be opened now.
    pub(super) fn note_failure(&mut self, ifindex: u32, error: &NicError) {
        let before = self.failures.get(&ifindex);
        let pause = before.map_or(RETRY.0, |before| (before.pause * 2).min(RETRY.1));
        let failure = Failure {
            at: Instant::now(),
            pause,
            reason: error.summary(),
            log: error.log().map(str::to_owned),
            errno: error.errno,
        };
        self.failures.insert(ifindex, failure);
    }

    /// errno of the last failure.
    pub(super) fn errno(&self, ifindex: u32) -> Option<Errno> {
        self.failures.get(&ifindex).map(|failure| failure.errno)
    }

    /// Whether the last attempt failed so lately that another is not worth its time.
    pub(super) fn failed_lately(&self, ifindex: u32) -> bool {
        self.failures
            .get(&ifindex)
            .is_some_and(|failure| failure.at.elapsed() < failure.pause)
    }

    /// Why the last attempt failed.
    pub(super) fn failure(&self, ifindex: u32) -> Option<&str> {
        self.failures
            .get(&ifindex)
            .map(|failure| failure.reason.as_str())
    }

    /// The verifier's log of the last attempt.
    pub(super) fn failure_log(&self, ifindex: u32) -> Option<&str> {
        self.failures.get(&ifindex)?.log.as_deref()
    }

    /// Forgets the failures of interfaces that are gone.
    pub(super) fn retain_failures(&mut self, exists: impl Fn(u32) -> bool) {
        self.failures.retain(|ifindex, _| exists(*ifindex));
    }
}

impl OpenNic {
    /// Attaches the program to an interface, as its `[[device]]` says. Nothing is steered and no
    /// queue open yet.
    pub(super) fn attach(
        link: &LinkInfo,
        owner: u32,
        chunk_size: u32,
        policy: &Policy,
    ) -> Result<Self, NicError> {
        let nic = Nic::open(NicConfig {
            ifindex: link.ifindex,
            mode: Mode::Auto,
            chunk_size,
        })?;
        let zero_copy = policy.zero_copy(&link.name);
        let is_possible = stacks::fits_drivers(chunk_size);
        let nic = nic.without_copies(zero_copy && is_possible);
        let mut open = Self::new(Driver::AfXdp(Box::new(nic)), owner);
        open.copies = (zero_copy && !is_possible).then(|| small_chunks(chunk_size));
        if policy.own_queue(&link.name) {
            open.take_queue();
        }
        Ok(open)
    }

    /// Takes the port of a device for a stack; or takes it over with the rings of its open queue.
    pub(super) fn of_port(
        nic: RelayNic,
        link: Arc<Link>,
        stack: &StackEntry,
        rings: Option<OwnedFd>,
    ) -> Self {
        let port = Port::new(nic, link, af_xdp::longest_frame(stack.chunk_size), rings);
        let copies = port.copies(stack.chunk_size).flatten();
        let open = Self::new(Driver::Relayed(port), stack.uid);
        Self { copies, ..open }
    }

    fn new(driver: Driver, owner: u32) -> Self {
        Self {
            driver,
            owner,
            first_queue_pair: 0,
            queue_pairs: 0,
            copies: None,
            shared: None,
        }
    }

    /// Takes over an attached program from a copy of its link.
    pub(super) fn from_link(
        link: OwnedFd,
        stack: &StackEntry,
        native: bool,
    ) -> Result<Self, NicError> {
        let mut nic = Nic::from_link(link, stack.chunk_size)?;
        nic.set_flow_table(SLOT, stack.flows_fd())?;
        if !native {
            nic.mode = Mode::Generic;
        }
        Ok(Self::new(Driver::AfXdp(Box::new(nic)), stack.uid))
    }

    /// Has TCP flows looked for in the owner's flow table.
    pub(super) fn set_flows(&mut self, table: BorrowedFd<'_>) -> Result<(), NicError> {
        match &mut self.driver {
            Driver::AfXdp(nic) => nic.set_flow_table(SLOT, table),
            Driver::Relayed(port) => port.set_flows(table),
        }
    }

    /// Interface index.
    pub(super) fn ifindex(&self) -> u32 {
        match &self.driver {
            Driver::AfXdp(nic) => nic.interface.ifindex,
            Driver::Relayed(port) => port.nic.ifindex,
        }
    }
}

/// Why the frames of all queues are copied: drivers need larger chunks.
pub(super) fn small_chunks(chunk_size: u32) -> String {
    format!(
        "frames are copied: the stack was made before zero_copy was asked for, with chunks of \
         {chunk_size} bytes"
    )
}

/// Why the frames of a queue are copied all the same.
fn copies(queue: u32, errno: Errno) -> String {
    let why = match errno {
        Errno::OPNOTSUPP => "the driver cannot without, or not in this mode",
        Errno::INVAL => "the driver refuses it for this queue, or as the interface is set",
        _ => "the kernel refuses",
    };
    format!("frames of queue {queue} are copied: {why}: {errno}")
}

/// A flow as the program's maps name it.
fn key(flow: &Flow) -> FilterKey {
    if flow.remote == SocketAddress::UNSPECIFIED {
        let key = Listener::at(flow.local.ip.0, flow.local.port, flow.protocol);
        return match flow.kind {
            FlowKind::Packets => FilterKey::Listener(key),
            FlowKind::Grant => FilterKey::Grant(key),
        };
    }
    FilterKey::Flow(af_xdp::Flow {
        local: flow.local.ip.0,
        remote: flow.remote.ip.0,
        local_port: flow.local.port,
        remote_port: flow.remote.port,
        protocol: u32::from(flow.protocol),
    })
}

/// What a card leads for a flow.
pub(super) fn of_card(flow: &Flow) -> CardFilter {
    let end = |it: &SocketAddress| (it.ip.0, it.port);
    CardFilter {
        protocol: flow.protocol,
        local: end(&flow.local),
        remote: (flow.remote != SocketAddress::UNSPECIFIED).then(|| end(&flow.remote)),
    }
}

/// The other way; `None` for keys that the daemon does not write.
fn flow(key: &FilterKey) -> Option<Flow> {
    let at = |key: &Listener, kind| {
        (key.any == 0).then_some(Flow {
            local: SocketAddress::new(IpAddress(key.ip), key.port),
            remote: SocketAddress::UNSPECIFIED,
            protocol: key.protocol,
            kind,
        })
    };
    match key {
        FilterKey::Listener(key) => at(key, FlowKind::Packets),
        FilterKey::Grant(key) => at(key, FlowKind::Grant),
        FilterKey::Flow(key) => Some(Flow {
            local: SocketAddress::new(IpAddress(key.local), key.local_port),
            remote: SocketAddress::new(IpAddress(key.remote), key.remote_port),
            protocol: u8::try_from(key.protocol).ok()?,
            kind: FlowKind::Packets,
        }),
    }
}

/// Why an interface gets no backend whatever the stack; `None` = it may be tried. `is_port` = it is
/// that of an open device.
pub(super) fn unfit(link: &LinkInfo, is_port: bool, policy: &DaemonPolicy) -> Option<String> {
    const ETHERNET: u16 = 1;
    if link.is_loopback() {
        return Some("loopback traffic stays in the kernel".to_owned());
    }
    if link.device_type != ETHERNET {
        return Some("it is not an Ethernet interface".to_owned());
    }
    let is_vlan_of_card = is_port && link.kind == "vlan";
    if UNFIT_KINDS.contains(&link.kind.as_str()) && !is_vlan_of_card {
        return Some(format!("interfaces of kind {} are not served", link.kind));
    }
    if link.master != 0 {
        return Some("it is a port of a bridge, bond or VRF, which has its addresses".to_owned());
    }
    if !policy.interfaces.takes(&link.name) {
        return Some("the configuration's [daemon] interfaces exclude it".to_owned());
    }
    None
}

/// The largest MTU whose frames chunks of this size hold, in bytes.
pub(super) fn largest_mtu(chunk_size: u32) -> u16 {
    let most = af_xdp::longest_frame(chunk_size).saturating_sub(FRAME_OVERHEAD);
    u16::try_from(most).unwrap_or(u16::MAX)
}

/// The MTU of an interface for a stack with chunks of this size. What is larger comes and goes by
/// the kernel.
pub(super) fn mtu(link: &LinkInfo, chunk_size: u32) -> u16 {
    let most = largest_mtu(chunk_size);
    u16::try_from(link.mtu).map_or(most, |mtu| mtu.min(most))
}

/// Why an interface is not opened for a stack with chunks of this size; `None` = it may be.
pub(super) fn too_big(link: &LinkInfo, chunk_size: u32) -> Option<String> {
    let most = largest_mtu(chunk_size);
    (link.mtu > u32::from(most)).then(|| {
        format!(
            "its MTU of {} is above {most}, the most that chunks of {chunk_size} bytes hold",
            link.mtu
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_is_served_where_it_is_a_cards() {
        let policy = DaemonPolicy::default();
        let link = |kind: &str| LinkInfo {
            name: "eth1.7".to_owned(),
            kind: kind.to_owned(),
            device_type: 1,
            ..LinkInfo::default()
        };
        assert!(unfit(&link("vlan"), false, &policy).is_some());
        assert_eq!(unfit(&link("vlan"), true, &policy), None);
        assert!(unfit(&link("bond"), true, &policy).is_some());
        assert_eq!(unfit(&link("veth"), false, &policy), None);
    }
}
