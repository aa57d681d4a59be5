//! The stacks: one per user, each an image, a packet memory, a control-plane table and the XSKs
//! of the interfaces that it owns.
//!
//! The daemon joins each stack as any program does, with every queue mapped: it posts the first
//! chunks, and a recovery after a dead lock owner needs the rings to know which chunks they hold.
//! Its mappings keep nothing alive that its descriptors do not keep anyway; both go when the
//! stack is dropped.
//!
//! A stack's lock is in memory that its programs can write, and one of them may be stopped while
//! it holds the lock. So the daemon never waits for it longer than [`PATIENCE`], or
//! [`PROGRAM_PATIENCE`]; what could not be done then is refused or done at the next sweep.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bypass_backends::QueuePair;
use bypass_backends::af_xdp::{self, FlowTable};
use bypass_backends::relay;
use bypass_proto::policy::{Backend, DaemonPolicy};
use bypass_runtime::attachment::{AttachError, Attachment, Locked};
use bypass_runtime::clock;
use bypass_runtime::flows::Flows;
use bypass_runtime::image::{Image, ImageError, copy_head, copy_stack};
use bypass_runtime::lock::Owners;
use bypass_runtime::packets::Packets;
use bypass_runtime::queues;
use bypass_runtime::wake::Ringer;
use bypass_stack::{Capacities, PROCESSES, QUEUE_PAIRS, QueuePairInfo, inspect};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::deputy::{Alarm, Look};
use super::memory::Squeeze;
use super::nics;
use super::process;
use super::published::{Belongs, Published};
use super::sockopt;
use crate::source::rtnetlink::LinkInfo;

/// How long the daemon waits for a stack's lock. Programs hold it for microseconds, unless they are
/// preempted.
const PATIENCE: Duration = Duration::from_millis(10);
/// Endpoints whose connections are led another way under one lock.
const REROUTED: u32 = 1024;
/// After it has waited in vain, it only looks for this long, so that the requests of a stuck
/// stack's programs cost nobody else's time.
const RESENTMENT: Duration = Duration::from_millis(200);
/// How long the lock is waited for when a program cannot go on without it: some turns of a busy
/// processor.
const PROGRAM_PATIENCE: Duration = Duration::from_millis(50);
/// After it has waited that long for what a program only may need, it only looks for this long.
const LONG_RESENTMENT: Duration = Duration::from_secs(1);
/// After a look for dead processes that has freed no place, the next one waits for this long.
const NEXT_LOOK: Duration = Duration::from_secs(1);
/// Chunk sizes: the usual one, and the one for larger MTUs.
const CHUNK_SIZES: [u32; 2] = [2048, 4096];
/// An MTU above this needs the larger chunks.
const LARGE_MTU: u32 = 1700;
/// Entries of each ring, at least and at most.
const RING_ENTRIES: (u32, u32) = (64, 2048);
/// How long it waits for the lock when it would run the stack for its programs.
const PUMP_PATIENCE: Duration = Duration::from_millis(1);
/// Pumps in a row: enough to empty a ring.
const PUMPS: usize = 8;

/// The lock was not to be had in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

/// Where a stack comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// This daemon has made it.
    Made,
    /// It was taken over from a daemon that is gone.
    Adopted,
}

/// One queue pair of a stack.
#[derive(Debug)]
pub(super) struct Queue {
    /// Interface index.
    pub ifindex: u32,
    /// Queue of the interface.
    pub queue: u32,
    /// The XSK, or of a relay's port the stack's end of the bell.
    pub fd: OwnedFd,
    /// The rings of a relay's port.
    pub rings: Option<OwnedFd>,
    /// What drives it.
    pub backend: Backend,
}

impl Queue {
    fn map(&self, chunk_size: u32, ring_entries: u32) -> Result<Box<dyn QueuePair>, Errno> {
        let fd = self.fd.try_clone().map_err(|_| Errno::MFILE)?;
        let rings = self.rings.as_ref().map(AsFd::as_fd);
        queues::map(fd, rings, chunk_size, ring_entries)
    }

    /// Whether the driver uses the packet memory itself.
    pub(super) fn is_zero_copy(&self) -> bool {
        match &self.rings {
            Some(rings) => relay::is_in_place(rings.as_fd()),
            None => af_xdp::is_zero_copy(self.fd.as_fd()),
        }
    }
}

/// One stack.
#[derive(Debug)]
pub(super) struct StackEntry {
    /// Its user.
    pub uid: u32,
    /// Identity of the image, for names.
    pub id: u64,
    /// Inode of the image, by which a process that maps it is found.
    pub inode: u64,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Entries of each ring of its queue pairs.
    pub ring_entries: u32,
    /// Where it comes from.
    pub origin: Origin,
    /// What it has room for.
    pub capacities: Capacities,
    /// Whether programs of it live in another pid namespace than the daemon.
    pub has_foreign_pids: bool,
    /// Queue pairs by index; `None` = closed.
    queues: Vec<Option<Queue>>,
    image: OwnedFd,
    packets: OwnedFd,
    /// Its control-plane table.
    pub cplane: Published,
    /// Its TCP flows.
    pub flows: Flows,
    flows_fd: OwnedFd,
    attachment: Attachment,
    /// The next look at whether its programs run it themselves; `None` while it is idle.
    pub look: Option<Look>,
    /// When an idle one is looked at for what is due without a frame.
    pub alarm: Option<Alarm>,
    /// Ways have changed that its connections have not heard of.
    pub unrouted: bool,
    /// Whether it has few endpoints left: new connections are led to the kernel's listeners.
    pub is_crowded: bool,
    /// While its packet memory is short: what was seen of that.
    pub squeeze: Option<Squeeze>,
    /// Since when no process takes part in it.
    pub deserted: Option<Instant>,
    /// Until when the lock is not waited for.
    busy_until: Cell<Option<Instant>>,
    /// Until when it is not waited for by [`Self::is_to_be_had`].
    kept_until: Cell<Option<Instant>>,
    /// Until when nobody looks for places of dead processes.
    full_until: Cell<Option<Instant>>,
}

/// What a stack is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// The stack's state.
    pub image: OwnedFd,
    /// Its chunks.
    pub packets: OwnedFd,
    /// Its control-plane table.
    pub cplane: Published,
    /// Its TCP flows.
    pub flows: OwnedFd,
}

/// Makes a flow table for stacks of this policy. An endpoint may leave a second flow behind, in
/// TIME_WAIT.
///
/// # Errors
/// `EPERM` without CAP_BPF, `ENOMEM`.
pub(super) fn make_flows(policy: &DaemonPolicy) -> Result<OwnedFd, Errno> {
    FlowTable::create(policy.endpoints.saturating_mul(2), random()?)
}

/// Chunk size for a host with these links.
pub(super) fn chunk_size<'a>(
    mut links: impl Iterator<Item = &'a LinkInfo>,
    is_zero_copy: impl Fn(&LinkInfo) -> bool,
) -> u32 {
    let [usual, large] = CHUNK_SIZES;
    let is_large = links.any(|link| link.mtu > LARGE_MTU || is_zero_copy(link));
    if is_large { large } else { usual }
}

/// Whether drivers may have chunks of this size as their own buffers. Some (igb, igc) count what
/// is left beside the headroom in whole KiB, and take a longer frame apart.
pub(super) fn fits_drivers(chunk_size: u32) -> bool {
    const FRAME: u32 = 2048;
    af_xdp::longest_frame(chunk_size) >= FRAME
}

/// Ring entries such that the fill rings of `queues` queues take at most half of the chunks.
pub(super) fn ring_entries(chunks: u32, queues: u32) -> u32 {
    let share = (chunks / 2 / queues.max(1)).max(1);
    let power = 1 << share.ilog2();
    power.clamp(RING_ENTRIES.0, RING_ENTRIES.1)
}

impl StackEntry {
    /// Makes a stack for a user, in the network namespace with this cookie.
    ///
    /// # Errors
    /// errno of what the kernel refused.
    pub(super) fn make(
        uid: u32,
        namespace: u64,
        policy: &DaemonPolicy,
        chunk_size: u32,
        ring_entries: u32,
    ) -> Result<Self, Errno> {
        let capacities = Capacities {
            endpoints: policy.endpoints,
            chunks: policy.chunks,
            chunk_size,
        };
        let id = random()?;
        let (image, _) = Image::create(capacities, id).map_err(errno_of_image)?;
        let (packets, _) = Packets::create(policy.chunks, chunk_size)?;
        // Only root can give a file away, so a later daemon sees by its owner whose stack it is.
        let owner = Some(rustix::fs::Uid::from_raw(uid));
        rustix::fs::fchown(&image, owner, None)?;
        rustix::fs::fchown(&packets, owner, None)?;
        let belongs = Belongs {
            namespace,
            image: process::inode(&image),
            packets: process::inode(&packets),
        };
        let parts = Parts {
            image,
            packets,
            cplane: Published::make(belongs)?,
            flows: make_flows(policy)?,
        };
        Self::join(uid, parts, ring_entries, Origin::Made)
    }

    /// Joins a stack whose parts exist.
    ///
    /// # Errors
    /// errno of what the kernel refused; `EINVAL` when they are no stack.
    pub(super) fn join(
        uid: u32,
        parts: Parts,
        ring_entries: u32,
        origin: Origin,
    ) -> Result<Self, Errno> {
        let Parts {
            image,
            packets,
            cplane,
            flows: flows_fd,
        } = parts;
        let flows = Flows::map(&flows_fd)?;
        let capacities = stated_capacities(&image)?;
        let chunk_size = capacities.chunk_size;
        let mapped = Image::map(&image).map_err(errno_of_image)?;
        let id = mapped.id();
        let memory = Packets::map(&packets, chunk_size)?;
        if memory.range().1 < capacities.chunks as usize * chunk_size as usize {
            return Err(Errno::INVAL);
        }
        let attachment = Attachment::new(mapped, memory, Flows::map(&flows_fd)?, Ringer::new()?)
            .map_err(|error| match error {
                AttachError::Image(error) => errno_of_image(error),
                AttachError::Layout(_) => Errno::INVAL,
                AttachError::System(errno) => errno,
            })?;
        Ok(Self {
            uid,
            id,
            inode: process::inode(&image),
            chunk_size,
            ring_entries,
            origin,
            capacities,
            has_foreign_pids: false,
            queues: Vec::new(),
            image,
            packets,
            cplane,
            flows,
            flows_fd,
            attachment,
            look: None,
            alarm: None,
            unrouted: false,
            is_crowded: false,
            squeeze: None,
            deserted: None,
            busy_until: Cell::new(None),
            kept_until: Cell::new(None),
            full_until: Cell::new(None),
        })
    }

    /// Takes the stack's lock; a dead owner's is taken over and the stack recovered.
    ///
    /// # Errors
    /// [`Busy`] when its owner lives and keeps it.
    pub(super) fn lock(&self) -> Result<Locked<'_>, Busy> {
        let is_resented = self
            .busy_until
            .get()
            .is_some_and(|until| Instant::now() < until);
        let patience = if is_resented {
            Duration::ZERO
        } else {
            PATIENCE
        };
        let Ok(locked) = self.attachment.lock_within(patience, self.owners()) else {
            if !is_resented {
                self.busy_until.set(Some(Instant::now() + RESENTMENT));
            }
            return Err(Busy);
        };
        self.busy_until.set(None);
        Ok(locked)
    }

    /// The same for a program that waits for it and may hold up others a little.
    ///
    /// # Errors
    /// [`Busy`] when its owner lives and keeps it for long.
    pub(super) fn lock_for_program(&self) -> Result<Locked<'_>, Busy> {
        let taken = self.attachment.lock_within(PROGRAM_PATIENCE, self.owners());
        let locked = taken.map_err(|_| Busy)?;
        self.busy_until.set(None);
        Ok(locked)
    }

    /// Whether the lock is free, or soon, if one of its own programs asks: others do not wait for
    /// it, and nobody does after it has been waited for in vain.
    pub(super) fn is_to_be_had(&self, is_own: bool) -> bool {
        let now = Instant::now();
        let waits = is_own && self.kept_until.get().is_none_or(|until| until <= now);
        let patience = if waits {
            PROGRAM_PATIENCE
        } else {
            Duration::ZERO
        };
        let is_free = self.attachment.lock_within(patience, self.owners()).is_ok();
        if is_free {
            self.busy_until.set(None);
            self.kept_until.set(None);
        } else if waits {
            let now = Instant::now();
            self.busy_until.set(Some(now + RESENTMENT));
            self.kept_until.set(Some(now + LONG_RESENTMENT));
        }
        is_free
    }

    /// Whether all places for processes are taken, by the word of its programs: without the lock,
    /// which they may keep.
    pub(super) fn is_full(&self) -> bool {
        let Ok(head) = self.copy_head() else {
            return false;
        };
        inspect::processes(&head).is_ok_and(|processes| processes.count() >= PROCESSES)
    }

    /// Whether places of the dead are to be looked for: all are taken, and the last look that freed
    /// none is a while ago.
    pub(super) fn lacks_places(&self) -> bool {
        let full_until = self.full_until.get();
        full_until.is_none_or(|until| until <= Instant::now()) && self.is_full()
    }

    /// They have been looked for.
    pub(super) fn note_places(&self) {
        let pause = self.is_full().then(|| Instant::now() + NEXT_LOOK);
        self.full_until.set(pause);
    }

    /// Whether the thread ids of its lock's owners are the daemon's too.
    fn owners(&self) -> Owners {
        if self.has_foreign_pids {
            Owners::Foreign
        } else {
            Owners::Visible
        }
    }

    /// Looks whether it has few endpoints left, or enough again; whether that has changed.
    pub(super) fn note_crowd(&mut self, free: u32) -> bool {
        let (few, enough) = (self.capacities.endpoints / 8, self.capacities.endpoints / 4);
        let is_crowded = free <= few || self.is_crowded && free <= enough;
        std::mem::replace(&mut self.is_crowded, is_crowded) != is_crowded
    }

    /// Changes whenever a program, or the daemon, pumps the stack.
    pub(super) fn pumps(&self) -> u32 {
        self.attachment.pumps()
    }

    /// Frames that pumps have taken in; wraps.
    pub(super) fn frames(&self) -> u32 {
        self.attachment.frames()
    }

    /// How far off its next timer is, or what waits for room to be sent; `None` = there is nothing.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let due = self.attachment.due()?;
        Some(Duration::from_nanos(due.since(clock::now()).0))
    }

    /// Takes in what is in the rings now, and runs the timers; how many frames.
    ///
    /// # Errors
    /// [`Busy`].
    pub(super) fn pump(&self) -> Result<usize, Busy> {
        let mut total = 0;
        for _ in 0..PUMPS {
            let locked = self.attachment.lock_within(PUMP_PATIENCE, self.owners());
            let frames = locked.map_err(|_| Busy)?.pump(clock::now());
            total += frames;
            if frames == 0 {
                break;
            }
        }
        Ok(total)
    }

    /// Whether a queue has frames that nobody has taken yet.
    pub(super) fn is_readable(&self) -> bool {
        let mut fds: Vec<PollFd<'_>> = self
            .open_queues()
            .map(|(_, queue)| PollFd::new(&queue.fd, PollFlags::IN))
            .collect();
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&at_once)).is_ok()
            && fds.iter().any(|fd| fd.revents().contains(PollFlags::IN))
    }

    /// Its open queue pairs with their indexes.
    pub(super) fn open_queues(&self) -> impl Iterator<Item = (u8, &Queue)> {
        let queues = (0..).zip(&self.queues);
        queues.filter_map(|(index, queue)| Some((index, queue.as_ref()?)))
    }

    /// What an attached program gets: image, packet memory, control-plane table, TCP flows.
    pub(super) fn shared(&self) -> [BorrowedFd<'_>; 4] {
        [
            self.image.as_fd(),
            self.packets.as_fd(),
            self.cplane.as_fd(),
            self.flows_fd.as_fd(),
        ]
    }

    /// The packet memory, for a relay.
    pub(super) fn packets_fd(&self) -> BorrowedFd<'_> {
        self.packets.as_fd()
    }

    /// The table of TCP flows, for the steering program.
    pub(super) fn flows_fd(&self) -> BorrowedFd<'_> {
        self.flows_fd.as_fd()
    }

    /// Place and endpoint of every TCP flow.
    pub(super) fn tcp_flows(&self) -> Vec<bypass_runtime::flows::Flow> {
        self.flows.iter().collect()
    }

    /// One descriptor per queue pair in index order; the image stands for a closed one.
    pub(super) fn queue_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let closed = self.image.as_fd();
        self.queues
            .iter()
            .map(move |queue| queue.as_ref().map_or(closed, |queue| queue.fd.as_fd()))
    }

    /// The packet memory, mapped anew for registering it with a queue.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub(super) fn map_packets(&self) -> Result<Packets, Errno> {
        Packets::map(&self.packets, self.chunk_size)
    }

    /// The first of `count` free indexes in a row, or `None` when the stack has no room.
    pub(super) fn room_for(&self, count: usize) -> Option<usize> {
        let is_free = |index: usize| self.queues.get(index).is_none_or(Option::is_none);
        (0..=QUEUE_PAIRS.checked_sub(count)?).find(|first| (*first..first + count).all(is_free))
    }

    /// Puts an interface's queues in place: maps them, posts the first chunks and tells the
    /// programs.
    ///
    /// # Errors
    /// `EAGAIN` when the lock is busy, or errno of a mapping; then nothing has changed.
    pub(super) fn install(
        &mut self,
        first: usize,
        queues: Vec<Queue>,
        link: &LinkInfo,
        flags: u32,
    ) -> Result<(), Errno> {
        let mut mapped = Vec::with_capacity(queues.len());
        for queue in &queues {
            mapped.push(queue.map(self.chunk_size, self.ring_entries)?);
        }
        let mut locked = self.lock().map_err(|Busy| Errno::AGAIN)?;
        for (index, (queue, pair)) in (first..).zip(queues.iter().zip(mapped)) {
            // Without it the queue works, but a later daemon could not tell which it is.
            let _ = sockopt::tag_queue(&queue.fd, index as u8, self.ring_entries);
            if let Some(info) = locked.stack().queue_pairs_mut().get_mut(index) {
                let generation = info.generation.wrapping_add(1);
                let mtu = nics::mtu(link, self.chunk_size);
                *info = queue_pair_info(queue, (link.mac, mtu), flags, generation);
            }
            self.attachment.install(&mut locked, index, pair);
        }
        locked.stack().bump_queue_pairs();
        locked.pump(clock::now());
        drop(locked);
        self.queues
            .resize_with(self.queues.len().max(first + queues.len()), || None);
        for (place, queue) in self.queues.iter_mut().skip(first).zip(queues) {
            *place = Some(queue);
        }
        Ok(())
    }

    /// Puts the queue pairs of an adopted stack in place, as they are in its image.
    ///
    /// # Errors
    /// `EAGAIN` when the lock is busy, or errno of a mapping.
    pub(super) fn install_adopted(&mut self, queues: Vec<Option<Queue>>) -> Result<(), Errno> {
        let mut locked = self.lock_for_program().map_err(|Busy| Errno::AGAIN)?;
        for (index, queue) in queues.iter().enumerate() {
            if let Some(queue) = queue {
                let pair = queue.map(self.chunk_size, self.ring_entries)?;
                self.attachment.install(&mut locked, index, pair);
            }
        }
        drop(locked);
        self.queues = queues;
        Ok(())
    }

    /// Marks queue pairs as closed in the image where that could not be done at the time.
    pub(super) fn settle(&self, locked: &mut Locked<'_>) {
        for index in 0..QUEUE_PAIRS {
            let is_open = self.queues.get(index).is_some_and(Option::is_some);
            let info = locked.stack().queue_pairs().get(index);
            if !is_open && info.is_some_and(QueuePairInfo::is_live) {
                self.attachment.retire(locked, index);
            }
        }
    }

    /// Closes the queue pairs of an interface.
    pub(super) fn close_interface(&mut self, ifindex: u32) {
        let closed: Vec<usize> = (0..)
            .zip(&self.queues)
            .filter(|(_, queue)| queue.as_ref().is_some_and(|queue| queue.ifindex == ifindex))
            .map(|(index, _)| index)
            .collect();
        if let Ok(mut locked) = self.lock() {
            for &index in &closed {
                self.attachment.retire(&mut locked, index);
            }
        }
        for index in closed {
            if let Some(queue) = self.queues.get_mut(index) {
                *queue = None;
            }
        }
    }

    /// Writes a changed MTU or MAC address of a link into its queue pairs. Programs read them where
    /// they are and have nothing to map anew.
    ///
    /// # Errors
    /// [`Busy`].
    pub(super) fn refresh_interface(&self, link: &LinkInfo) -> Result<(), Busy> {
        let mut locked = self.lock()?;
        let mtu = nics::mtu(link, self.chunk_size);
        for (queue, info) in self.queues.iter().zip(locked.stack().queue_pairs_mut()) {
            if queue
                .as_ref()
                .is_some_and(|queue| queue.ifindex == link.ifindex)
            {
                (info.mtu, info.mac) = (mtu, link.mac);
            }
        }
        Ok(())
    }

    /// Leads its connections the ways that the published table says, a slice at a time.
    ///
    /// # Errors
    /// [`Busy`]; some may have been led.
    pub(super) fn reroute(&mut self) -> Result<(), Busy> {
        for first in (0..self.capacities.endpoints).step_by(REROUTED as usize) {
            let mut locked = self.lock()?;
            let (stack, packets) = locked.parts();
            let slice = (first, REROUTED);
            if stack
                .tcp_reroute(packets, self.cplane.table(), slice, clock::now())
                .is_none()
            {
                break;
            }
        }
        self.unrouted = false;
        Ok(())
    }

    /// A copy of the image, for [`bypass_stack::inspect::Image::attach`].
    ///
    /// # Errors
    /// What `pread` answers.
    pub(super) fn copy_image(&self) -> Result<Vec<u8>, Errno> {
        copy_stack(&self.image)
    }

    /// A copy of the image's head.
    ///
    /// # Errors
    /// As [`Self::copy_image`].
    pub(super) fn copy_head(&self) -> Result<Vec<u8>, Errno> {
        copy_head(&self.image)
    }

    /// The queue pairs by index; `None` = closed.
    pub(super) fn queues(&self) -> &[Option<Queue>] {
        &self.queues
    }
}

fn queue_pair_info(
    queue: &Queue,
    (mac, mtu): ([u8; 6], u16),
    flags: u32,
    generation: u32,
) -> QueuePairInfo {
    let copies = match queue.is_zero_copy() {
        true => QueuePairInfo::ZERO_COPY,
        false => 0,
    };
    QueuePairInfo {
        ifindex: queue.ifindex,
        queue_id: queue.queue,
        mac,
        mtu,
        flags: flags | copies | QueuePairInfo::LIVE,
        backend: queue.backend as u8,
        reserved: [0; 3],
        rx_packets: 0,
        rx_bytes: 0,
        tx_packets: 0,
        tx_bytes: 0,
        tx_doorbells: 0,
        generation,
        rx_missed: 0,
    }
}

/// All stacks, by user.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    by_uid: BTreeMap<u32, StackEntry>,
}

impl Stacks {
    /// The stack of a user.
    pub(super) fn get(&self, uid: u32) -> Option<&StackEntry> {
        self.by_uid.get(&uid)
    }

    /// The stack of a user, to change.
    pub(super) fn get_mut(&mut self, uid: u32) -> Option<&mut StackEntry> {
        self.by_uid.get_mut(&uid)
    }

    /// All stacks.
    pub(super) fn iter(&self) -> impl Iterator<Item = &StackEntry> {
        self.by_uid.values()
    }

    /// All stacks, to change.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut StackEntry> {
        self.by_uid.values_mut()
    }

    /// The stack whose image has this inode.
    pub(super) fn by_inode(&self, inode: u64) -> Option<&StackEntry> {
        self.iter().find(|stack| stack.inode == inode)
    }

    /// Adds a stack; its user has none.
    pub(super) fn insert(&mut self, stack: StackEntry) {
        self.by_uid.insert(stack.uid, stack);
    }

    /// Drops a stack: queues closed, memory gone when no process maps it.
    pub(super) fn remove(&mut self, uid: u32) -> Option<StackEntry> {
        self.by_uid.remove(&uid)
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }
}

/// The capacities that an image states, checked.
fn stated_capacities(image: impl AsFd) -> Result<Capacities, Errno> {
    let bytes = copy_stack(image)?;
    let image = inspect::Image::attach(&bytes).map_err(|_| Errno::INVAL)?;
    Ok(image.capacities())
}

fn errno_of_image(error: ImageError) -> Errno {
    match error {
        ImageError::System(errno) => errno,
        ImageError::NotAnImage | ImageError::Layout(_) => Errno::INVAL,
    }
}

/// 64 random bits.
fn random() -> Result<u64, Errno> {
    use std::io::Read;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|_| Errno::IO)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_take_at_most_half_of_the_chunks() {
        assert_eq!(ring_entries(16384, 1), 2048);
        assert_eq!(ring_entries(16384, 8), 1024);
        assert_eq!(ring_entries(256, 32), 64);
        assert_eq!(ring_entries(256, 0), 128);
    }

    #[test]
    fn what_drivers_have_as_buffers_holds_a_frame_in_whole_kib() {
        let link = |name: &str| LinkInfo {
            name: name.to_owned(),
            mtu: 1500,
            ..LinkInfo::default()
        };
        let links = [link("eth1"), link("eth2")];
        let size = |asked: &str| chunk_size(links.iter(), |link| link.name == asked);
        assert_eq!((size(""), size("eth2")), (2048, 4096));
        assert!(fits_drivers(size("eth2")) && !fits_drivers(size("")));
    }
}
