//! A network interface opened for AF_XDP: the attached steering program, its queues and filters.
//!
//! The link descriptor is the lease: when the last copy of it is closed the program is detached.
//! Clients keep copies, so the daemon's death detaches nothing.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::error::{self, NicError, failed};
use super::flow_table::{FlowTable, Geometry};
use super::netdev::{self, Interface};
use super::ntuple::Ntuple;
use super::own_queue::{self, OwnQueue, Rule};
use super::program::{self, COUNTERS, Flow, Grant, Listener, Maps, Target};
use super::umem::{PacketMemory, longest_frame};
use super::xsk::OpenedQueue;
use super::{bpf, xsk};
use crate::netlink::{self, Attached};

/// Queues of one slot in the `xsks` map.
pub const QUEUES_PER_SLOT: u32 = 64;
/// Entries of each ring of a queue.
pub const RING_ENTRIES: u32 = 2048;

/// IPPROTO_TCP.
const TCP: u32 = 6;
/// `XDP_FLAGS_SKB_MODE`.
const SKB_MODE: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
const DRV_MODE: u32 = 1 << 2;
/// Slots of the `xsks` map, each with [`QUEUES_PER_SLOT`] queues.
pub const SLOTS: u32 = 16;

/// How the program is, or is to be, attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Native where the driver can, else generic (only asked for, never the answer).
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic receive path: every driver, slower.
    Generic,
}

/// What to open.
#[derive(Clone, Copy, Debug)]
pub struct NicConfig {
    /// Interface index.
    pub ifindex: u32,
    /// How to attach.
    pub mode: Mode,
    /// Size of the chunks of the stacks that are to get its frames, in bytes.
    pub chunk_size: u32,
}

/// A filter of the steering program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilterKey {
    /// Datagrams to a local address, or any; TCP connections that begin there.
    Listener(Listener),
    /// An exact flow. Not TCP.
    Flow(Flow),
    /// TCP flows of a local address, as far as the slot's stack claims them in its flow table.
    Grant(Listener),
}

/// What a filter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterCounters {
    /// Frames redirected.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An interface with the steering program attached.
#[derive(Debug)]
pub struct Nic {
    /// Facts about the interface.
    pub interface: Interface,
    /// How the program is attached.
    pub mode: Mode,
    /// RX queues, each of which is to be opened.
    pub queue_count: u32,
    chunk_size: u32,
    zero_copy: bool,
    /// Before the link: what it has written goes while the program is attached.
    own: Option<OwnQueue>,
    link: OwnedFd,
    maps: Maps,
    tables: [Option<Geometry>; SLOTS as usize],
}

impl Nic {
    /// Loads the program and attaches it: in the driver if that can, else in the generic path.
    ///
    /// # Errors
    /// With the step that failed; `EBUSY` or `EEXIST` when another XDP program is attached,
    /// `ERANGE` when the MTU is too large for the driver.
    pub fn open(config: NicConfig) -> Result<Self, NicError> {
        let before =
            netdev::interface(config.ifindex).map_err(failed("asking for the interface"))?;
        let (program, maps) = program::load()?;
        let attach = |mode| {
            let flags = if mode == Mode::Generic {
                SKB_MODE
            } else {
                DRV_MODE
            };
            bpf::attach_xdp(program.as_fd(), config.ifindex, flags)
        };
        let (mode, answer) = match config.mode {
            Mode::Auto => match attach(Mode::Native) {
                // No XDP in the driver, or not with the interface's present settings.
                Err(Errno::OPNOTSUPP | Errno::INVAL) => (Mode::Generic, attach(Mode::Generic)),
                answer => (Mode::Native, answer),
            },
            mode => (mode, attach(mode)),
        };
        let link = answer.map_err(|errno| error::attach(&before.name, before.mtu, errno))?;
        // Attaching may change the number of queues (virtio_net).
        let interface = netdev::interface(config.ifindex).unwrap_or(before);
        let queue_count = interface.queues;
        Ok(Self {
            interface,
            mode,
            queue_count,
            chunk_size: config.chunk_size,
            zero_copy: false,
            own: None,
            link,
            maps,
            tables: [None; SLOTS as usize],
        })
    }

    /// Takes over an interface from a link that somebody else keeps, for stacks whose chunks have
    /// the size that it was opened for.
    ///
    /// # Errors
    /// `ENODEV` when the interface is gone, `EINVAL` when the link is not of our program, or of
    /// another version of it.
    pub fn from_link(link: OwnedFd, chunk_size: u32) -> Result<Self, NicError> {
        let (program, ifindex) =
            bpf::link_target(link.as_fd()).map_err(failed("asking for the link's target"))?;
        let interface = netdev::interface(ifindex).map_err(failed("asking for the interface"))?;
        let maps = bpf::maps_of(program).map_err(failed(
            "asking for the program's maps (CAP_SYS_ADMIN is needed)",
        ))?;
        let maps = Maps::from_named(maps).map_err(failed(
            "the link's program is not the steering program of this version",
        ))?;
        let mode = match netlink::attached(ifindex) {
            Ok(Attached::Generic) => Mode::Generic,
            _ => Mode::Native,
        };
        let queue_count = interface.queues;
        Ok(Self {
            interface,
            mode,
            queue_count,
            chunk_size,
            zero_copy: false,
            own: None,
            link,
            maps,
            tables: [None; SLOTS as usize],
        })
    }

    /// Has queues opened without copies, where the driver can: see [`xsk`].
    #[must_use]
    pub fn without_copies(self, zero_copy: bool) -> Self {
        Self { zero_copy, ..self }
    }

    /// Makes the last queue the owner's alone, before any is open: RSS passes it by, and rules in
    /// the card follow the filters.
    ///
    /// # Errors
    /// Why the card cannot, in a sentence: all queues are to be served.
    pub fn take_queue(&mut self) -> Result<(), String> {
        let card = Ntuple::new(&self.interface.name);
        self.own = Some(OwnQueue::take(Box::new(card), self.queue_count)?);
        Ok(())
    }

    /// Takes over such a queue, with the filters that there are; of how many of them the card has
    /// no rule and takes none.
    pub fn take_over_queue(&mut self, queue: u32) -> usize {
        let card = Ntuple::new(&self.interface.name);
        let mut filters = self.filters();
        filters.retain(|filter| self.target(*filter).is_some_and(|target| target.most > 0));
        let (own, refused) = OwnQueue::take_over(Box::new(card), queue, &filters);
        self.own = Some(own);
        refused
    }

    /// Why [`Self::take_queue`] is refused, if that shows without it: of an interface whose queues
    /// are open.
    #[must_use]
    pub fn why_no_queue(&self) -> Option<String> {
        own_queue::refusal(&Ntuple::new(&self.interface.name), self.queue_count)
    }

    /// The queues that are to be opened.
    #[must_use]
    pub fn queues(&self) -> Range<u32> {
        let own = self.own.as_ref().map(|own| own.queue..own.queue + 1);
        own.unwrap_or(0..self.queue_count)
    }

    /// The rules that lead to the owner's queue, with their places in the card; `None` when all
    /// queues are served.
    #[must_use]
    pub fn rules(&self) -> Option<Vec<(Rule, u32)>> {
        self.own.as_ref().map(OwnQueue::rules)
    }

    /// Leaves the card as it is when this is dropped: programs go on.
    pub fn leave_behind(&self) {
        if let Some(own) = &self.own {
            own.leave_behind();
        }
    }

    /// Whether frames may come with a checksum over the pseudo header only, which whoever receives
    /// must accept: the sender is a kernel of this same host.
    #[must_use]
    pub fn has_partial_checksums(&self) -> bool {
        self.interface.is_local_only()
    }

    /// What the other end must be set to for the way the program is attached; `None` when nothing.
    #[must_use]
    pub fn condition(&self) -> Option<&'static str> {
        let is_generic = self.mode == Mode::Generic;
        if is_generic && self.interface.is_local_only() {
            return Some(
                "generic mode: frames of more than one MTU are dropped; switch them off at the \
                 other end: ethtool -K PEER tso off gso off tx-udp-segmentation off",
            );
        }
        is_generic.then_some(
            "generic mode: frames that the NIC has merged are dropped; switch that off: ethtool \
             -K DEVICE lro off rx-gro-hw off",
        )
    }

    /// The lease on the attachment.
    #[must_use]
    pub fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Opens a queue over packet memory, with rings of `ring_entries` (a power of two), and lets
    /// the filters of `slot` reach it.
    ///
    /// # Errors
    /// `EBUSY` when another process has the queue, `EINVAL` when there is no such queue or slot.
    pub fn open_queue(
        &self,
        queue_id: u32,
        memory: &PacketMemory,
        ring_entries: u32,
        slot: u32,
    ) -> Result<OwnedFd, NicError> {
        let patience = xsk::BIND_PATIENCE;
        let opened = self.open_queue_within(queue_id, memory, ring_entries, slot, patience);
        opened.map(|opened| opened.fd)
    }

    /// [`Self::open_queue`] with a bound on how long it waits for a queue that another process
    /// keeps: the kernel frees one some milliseconds after its owner died.
    ///
    /// # Errors
    /// As [`Self::open_queue`].
    pub fn open_queue_within(
        &self,
        queue_id: u32,
        memory: &PacketMemory,
        ring_entries: u32,
        slot: u32,
        patience: Duration,
    ) -> Result<OpenedQueue, NicError> {
        let index = place(queue_id, slot)?;
        let ifindex = self.interface.ifindex;
        let zero_copy = self.zero_copy;
        let opened = xsk::open(ifindex, queue_id, memory, ring_entries, zero_copy, patience)?;
        let number = opened.fd.as_raw_fd().cast_unsigned();
        self.maps
            .xsks
            .update(&index, &number)
            .map_err(failed("entering the queue in the program's map"))?;
        Ok(opened)
    }

    /// Takes a queue out of the program's map: its frames pass to the kernel.
    pub fn close_queue(&self, queue_id: u32, slot: u32) {
        if let Ok(index) = place(queue_id, slot) {
            // Nothing to remove is no matter.
            let _ = self.maps.xsks.remove(&index);
        }
    }

    /// Lets the program look for TCP flows of `slot` in a stack's table (see
    /// [`FlowTable::create`]). Grants are added after it.
    ///
    /// # Errors
    /// `EINVAL` when it is no flow table, or there is no such slot.
    pub fn set_flow_table(&mut self, slot: u32, table: BorrowedFd<'_>) -> Result<(), NicError> {
        let failed = || failed("entering the flow table in the program's map");
        let known = FlowTable::map(table).map_err(failed())?;
        let place = self.tables.get_mut(slot as usize).ok_or(Errno::INVAL);
        let place = place.map_err(failed())?;
        let number = table.as_raw_fd().cast_unsigned();
        let entered = self.maps.tables.update(&slot, &number);
        entered.map_err(failed())?;
        *place = Some(known.geometry());
        Ok(())
    }

    /// Leads matching frames to the queues of `slot`, but for those that no chunk holds.
    ///
    /// # Errors
    /// `E2BIG` when the map is full, `EINVAL` for a TCP flow or when the slot of a grant has no
    /// flow table.
    pub fn add_filter(&self, filter: FilterKey, slot: u32) -> Result<(), NicError> {
        self.enter(
            filter,
            Target {
                slot,
                most: longest_frame(self.chunk_size),
                ..Target::default()
            },
        )
    }

    /// Keeps matching frames in the kernel, whatever less exact filters say.
    ///
    /// # Errors
    /// `E2BIG` when the map is full.
    pub fn keep_in_kernel(&self, filter: FilterKey) -> Result<(), NicError> {
        self.enter(filter, Target::default())
    }

    fn enter(&self, filter: FilterKey, target: Target) -> Result<(), NicError> {
        match &filter {
            FilterKey::Listener(key) => self.maps.listeners.update(key, &target),
            FilterKey::Flow(key) if key.protocol == TCP => Err(Errno::INVAL),
            FilterKey::Flow(key) => self.maps.flows.update(key, &target),
            FilterKey::Grant(_) if target.most == 0 => Err(Errno::INVAL),
            FilterKey::Grant(key) => self
                .grant(target.slot)
                .and_then(|grant| self.maps.grants.update(key, &grant)),
        }
        .map_err(failed("entering the filter"))?;
        let Some(own) = &self.own else {
            return Ok(());
        };
        if target.most == 0 {
            own.leave(&filter);
            return Ok(());
        }
        own.lead(&filter).map_err(|errno| {
            self.remove_filter(filter);
            let what = "the card takes no rule for it".to_owned();
            NicError { errno, what }
        })
    }

    fn grant(&self, slot: u32) -> Result<Grant, Errno> {
        let known = self.tables.get(slot as usize).copied().flatten();
        let Geometry { mask, seed } = known.ok_or(Errno::INVAL)?;
        Ok(Grant {
            slot,
            mask,
            seed,
            ..Grant::default()
        })
    }

    /// Removes a filter; one that is not there is no error.
    pub fn remove_filter(&self, filter: FilterKey) {
        if let Some(own) = &self.own {
            own.leave(&filter);
        }
        let _ = match &filter {
            FilterKey::Listener(key) => self.maps.listeners.remove(key),
            FilterKey::Flow(key) => self.maps.flows.remove(key),
            FilterKey::Grant(key) => self.maps.grants.remove(key),
        };
    }

    /// What a filter does and has counted.
    #[must_use]
    pub fn target(&self, filter: FilterKey) -> Option<Target> {
        match &filter {
            FilterKey::Listener(key) => self.maps.listeners.find(key),
            FilterKey::Flow(key) => self.maps.flows.find(key),
            FilterKey::Grant(key) => self.maps.grants.find(key).map(|grant| Target {
                slot: grant.slot,
                most: longest_frame(self.chunk_size),
                packets: grant.packets,
                bytes: grant.bytes,
            }),
        }
        .ok()
    }

    /// What a filter has counted.
    #[must_use]
    pub fn filter_counters(&self, filter: FilterKey) -> FilterCounters {
        self.target(filter)
            .map_or_else(FilterCounters::default, |target| FilterCounters {
                packets: target.packets,
                bytes: target.bytes,
            })
    }

    /// Every filter in the program's maps.
    #[must_use]
    pub fn filters(&self) -> Vec<FilterKey> {
        let listeners = self.maps.listeners.keys().into_iter();
        let listeners = listeners.map(FilterKey::Listener);
        let flows = self.maps.flows.keys().into_iter().map(FilterKey::Flow);
        let grants = self.maps.grants.keys().into_iter().map(FilterKey::Grant);
        listeners.chain(flows).chain(grants).collect()
    }

    /// The program's counters, in the order of [`COUNTERS`].
    #[must_use]
    pub fn counters(&self) -> Vec<u64> {
        let cpus = possible_cpus();
        (0..COUNTERS.len() as u32)
            .map(|index| self.maps.counters.sum(index, cpus))
            .collect()
    }
}

/// Where the `xsks` map has a slot's queue.
fn place(queue_id: u32, slot: u32) -> Result<u32, NicError> {
    if queue_id < QUEUES_PER_SLOT && slot < SLOTS {
        return Ok(slot * QUEUES_PER_SLOT + queue_id);
    }
    Err(NicError {
        errno: Errno::INVAL,
        what: format!("queue {queue_id} of slot {slot}: at most {QUEUES_PER_SLOT} of {SLOTS}"),
    })
}

/// Possible CPUs: a per-CPU map has a value for each. `/sys/devices/system/cpu/possible` is "0-7".
fn possible_cpus() -> usize {
    const MOST: usize = 4096;
    let read = || -> Option<usize> {
        let file = rustix::fs::open(
            "/sys/devices/system/cpu/possible",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .ok()?;
        let mut text = [0; 64];
        let count = rustix::io::read(&file, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..count)?).ok()?;
        let last = text
            .trim()
            .rsplit(['-', ','])
            .next()?
            .parse::<usize>()
            .ok()?;
        Some(last + 1)
    };
    read().unwrap_or(MOST).min(MOST)
}
