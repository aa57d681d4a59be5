//! A stack that this process takes part in: image, packet memory and queue pairs, joined.
//!
//! [`Attachment::lock`] gives the one view through which everything happens; dropping it gives
//! the lock back, then rings doorbells and wakes sleepers, so that no system call is made under
//! the lock on the data path.
//!
//! ```text
//!   queue pair --receive--> handle_frame --> endpoint queues --> recv (copy) --> release
//!   queue pair <--fill----- take_chunk
//!   queue pair <--submit--- poll_transmit <-- udp_send (copy)
//!   queue pair --complete-> release_chunk
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the state behind the stack lock, here only"
)]

use std::cell::UnsafeCell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use bypass_backends::af_xdp::Unforked;
use bypass_backends::{QueuePair, Received, Transmit};
use bypass_stack::{
    ChunkId, DropReason, EndpointId, FrameOutcome, Instant, LayoutError, Memory,
    QUEUE_PAIR_HAIRPIN, QueuePairInfo, RxChecksum, RxFrame, Stack, WaiterId, WaiterSet,
};
use rustix::io::Errno;

use crate::clock;
use crate::flows::Flows;
use crate::image::{Image, ImageError};
use crate::lock::{self, LockError, Owners, Taken};
use crate::packets::Packets;
use crate::wake::Ringer;

/// Most queue pairs of one stack.
pub const MAX_QUEUE_PAIRS: usize = 32;
/// Frames taken from one queue at a time.
const BATCH: usize = 64;
/// Batches taken from one queue in one pump, so that a flood cannot keep a caller for ever.
const BATCHES_PER_PUMP: usize = 4;
/// Free descriptors of a fill ring that make a refill worth its cost.
const REFILL: u32 = BATCH as u32;
/// Most batches moved into or out of one ring at a time: more than a ring has. (Its cursors are in
/// memory that other programs write, and need not end by themselves.)
const BATCHES_PER_RING: usize = 64;
/// For how long locked sections in a row hold back what they send: longer, and both ends would take
/// turns instead of working at the same time.
const HELD_NS: u64 = 50_000;
/// The same, when the section stands between two writes that should leave together.
const LONGEST_HELD_NS: u64 = 3 * HELD_NS;
/// Most rounds of sending what had found no room.
const SENDING_ROUNDS: u32 = 64;
/// Most rounds in which endpoints of the stack answer each other under one lock.
const HAIRPIN_ROUNDS: usize = 16;
/// How long the lock is waited for between two of them. Whoever has it for longer sends what is
/// left when he gives it back.
const SENDING_PATIENCE: Duration = Duration::from_millis(10);

/// Why a stack cannot be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The image is not usable.
    Image(ImageError),
    /// The stack in it is not usable.
    Layout(LayoutError),
    /// The kernel refused a call.
    System(Errno),
}

impl From<ImageError> for AttachError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<Errno> for AttachError {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

/// What the lock guards in this process.
struct State {
    stack: Stack<'static>,
    packets: Packets,
    flows: Flows,
    queues: [Option<Mapped>; MAX_QUEUE_PAIRS],
    count: usize,
    /// Since when sections hold back what they send, nanoseconds; 0 = the last one has sent.
    held_since: u64,
}

/// A queue pair as this process has mapped it.
struct Mapped {
    pair: Box<dyn QueuePair>,
    /// [`QueuePairInfo::generation`] of the queue pair that it is.
    generation: u32,
}

/// What is mapped under `index`, if it is still the queue pair that the stack has there.
fn current<'a>(
    stack: &Stack<'_>,
    index: usize,
    slot: &'a mut Option<Mapped>,
) -> Option<&'a mut dyn QueuePair> {
    let mapped = slot.as_mut()?;
    is_current(stack, index, mapped.generation).then_some(&mut *mapped.pair)
}

fn is_current(stack: &Stack<'_>, index: usize, generation: u32) -> bool {
    let info = stack.queue_pairs().get(index);
    info.is_some_and(|info| info.is_live() && info.generation == generation)
}

/// A stack with its memory and queues, mapped into this process.
pub struct Attachment {
    image: Image,
    /// Of the table of flows, when forks leave it out, and what a child does first.
    unforked: Option<(Arc<Unforked>, fn())>,
    state: UnsafeCell<State>,
    ringer: Ringer,
    wait_fds: [AtomicI32; MAX_QUEUE_PAIRS],
    installed: AtomicU32,
    /// Whether a thread of this process holds the lock, whatever the lock word says.
    held: AtomicBool,
}

// SAFETY: `state` is reached only through `lock`, which excludes every other thread of every
// process; everything else in here is atomic or immutable.
unsafe impl Sync for Attachment {}
// SAFETY: nothing in here belongs to a thread.
unsafe impl Send for Attachment {}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Attachment")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl Attachment {
    /// Joins image and packet memory; queue pairs come by [`Self::install`]. Waits for nobody: the
    /// lock is not needed, because all that is read here was written when the image was made.
    ///
    /// # Errors
    /// Each [`AttachError`].
    pub fn new(
        image: Image,
        packets: Packets,
        flows: Flows,
        ringer: Ringer,
    ) -> Result<Self, AttachError> {
        // SAFETY: the view stays beside the image in the same struct, and only its header is
        // looked at before the lock is held: magic, version and capacities, which nobody changes.
        let stack = Stack::attach(unsafe { image.stack_bytes() }).map_err(AttachError::Layout)?;
        let state = State {
            stack,
            packets,
            flows,
            queues: [const { None }; MAX_QUEUE_PAIRS],
            count: 0,
            held_since: 0,
        };
        Ok(Self {
            image,
            unforked: None,
            state: UnsafeCell::new(state),
            ringer,
            wait_fds: [const { AtomicI32::new(-1) }; MAX_QUEUE_PAIRS],
            installed: AtomicU32::new(0),
            held: AtomicBool::new(false),
        })
    }

    /// Leaves the table of flows out of forks. A child maps it again before it takes the lock for
    /// the first time, by whatever call it was made, and calls `begin` before that.
    ///
    /// # Safety
    /// `fd` is what the table was mapped from, and stays open in this process and its children as
    /// long as this does.
    #[must_use]
    pub unsafe fn leaving_flows_out_of_forks(mut self, fd: RawFd, begin: fn()) -> Self {
        // SAFETY: as promised; the table is behind the lock, and `mend` before it.
        let unforked = unsafe { self.state.get_mut().flows.leave_out_of_forks(fd) };
        self.unforked = unforked.ok().map(|unforked| (unforked, begin));
        self
    }

    /// Whether all that the lock guards is mapped, in a forked child too: asked before the lock is
    /// taken.
    ///
    /// # Errors
    /// [`LockError::Unmapped`].
    #[inline]
    pub fn mend(&self) -> Result<(), LockError> {
        let Some((unforked, begin)) = &self.unforked else {
            return Ok(());
        };
        let mended = unforked.mend(|| {
            // The owner's word must not name a thread of the parent.
            lock::forget_thread();
            begin();
        });
        mended.map_err(|_| LockError::Unmapped)
    }

    /// The image's identity: names its wake sockets.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.image.id()
    }

    /// Takes the stack lock, recovering the stack when its owner died inside an update.
    ///
    /// # Errors
    /// [`LockError::Reentered`] for a signal handler that interrupted the owner.
    pub fn lock(&self) -> Result<Locked<'_>, LockError> {
        self.mend()?;
        let taken = lock::lock(self.image.lock_word())?;
        Ok(self.locked(taken))
    }

    /// Takes the stack lock if it is free.
    ///
    /// # Errors
    /// [`LockError::Busy`] or [`LockError::Reentered`].
    pub fn try_lock(&self) -> Result<Locked<'_>, LockError> {
        self.mend()?;
        let taken = lock::try_lock(self.image.lock_word())?;
        Ok(self.locked(taken))
    }

    /// Takes the stack lock within `patience`, whatever its word says: for the daemon, which goes
    /// on without it. A dead owner's lock is taken over and the stack recovered.
    ///
    /// # Errors
    /// [`LockError::Busy`] when the owner lives (or may live, see [`Owners`]) and keeps it;
    /// [`LockError::Reentered`] when this process has it.
    pub fn lock_within(&self, patience: Duration, owners: Owners) -> Result<Locked<'_>, LockError> {
        if self.held.load(Ordering::Relaxed) {
            return Err(LockError::Reentered);
        }
        self.mend()?;
        let taken = lock::lock_within(self.image.lock_word(), patience, owners)?;
        Ok(self.locked(taken))
    }

    /// Changes whenever somebody, in whatever process, pumps the stack.
    #[must_use]
    pub fn pumps(&self) -> u32 {
        self.image.pumps()
    }

    /// Frames that pumps have taken in, in whatever process; wraps.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.image.frames()
    }

    /// Changes whenever connections have come from the kernel; wraps.
    #[must_use]
    #[inline]
    pub fn returned(&self) -> u32 {
        self.image.returned()
    }

    /// When the stack has something to do that no frame brings; `None` = never. See [`Image::due`].
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let due = self.image.due();
        (due != 0).then_some(Instant(due))
    }

    fn locked(&self, taken: Taken) -> Locked<'_> {
        self.held.store(true, Ordering::Relaxed);
        // SAFETY: the lock is held until `Locked` is dropped, so this is the only reference.
        let state = unsafe { &mut *self.state.get() };
        let mut locked = Locked {
            attachment: self,
            state,
            holds_back: false,
        };
        if taken == Taken::Orphaned {
            locked.recover();
        }
        locked
    }

    /// Descriptors to sleep on: one per queue pair that this process has mapped.
    pub fn wait_fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.wait_fds
            .iter()
            .map(|fd| fd.load(Ordering::Acquire))
            .filter(|&fd| fd >= 0)
    }

    /// Changes whenever the set of mapped queue pairs changes.
    #[must_use]
    pub fn installed(&self) -> u32 {
        self.installed.load(Ordering::Acquire)
    }

    /// Gives a waiter one byte. Needed by whoever changes readiness outside a locked section.
    pub fn wake(&self, waiter: WaiterId) {
        self.ringer.wake(self.id(), waiter);
    }

    /// Puts queue pair `index`, as the stack has it now, in place of what was mapped there.
    pub fn install(&self, locked: &mut Locked<'_>, index: usize, pair: Box<dyn QueuePair>) {
        let fd = pair.wait_fd().map_or(-1, |fd| fd.as_raw_fd());
        let State { stack, queues, .. } = &mut *locked.state;
        let (Some(slot), Some(wait), Some(info)) = (
            queues.get_mut(index),
            self.wait_fds.get(index),
            stack.queue_pairs().get(index),
        ) else {
            return;
        };
        let generation = info.generation;
        *slot = Some(Mapped { pair, generation });
        locked.state.count = locked.state.count.max(index + 1);
        wait.store(fd, Ordering::Release);
        self.installed.fetch_add(1, Ordering::Release);
    }

    /// Ends queue pair `index` for everybody: the chunks in its rings are free again, and nobody
    /// uses the rings any more. For the owner of the NIC, when nothing is led to the queue.
    pub fn retire(&self, locked: &mut Locked<'_>, index: usize) {
        let State { stack, queues, .. } = &mut *locked.state;
        let slot = queues.get_mut(index);
        if let Some(pair) = slot.and_then(|slot| current(stack, index, slot)) {
            pair.in_rings(&mut |chunk| stack.release_chunk(ChunkId(chunk)));
        }
        if let Some(info) = stack.queue_pairs_mut().get_mut(index) {
            info.flags &= !QueuePairInfo::LIVE;
        }
        stack.bump_queue_pairs();
        self.uninstall(locked, index);
    }

    /// Unmaps a queue pair that is gone.
    pub fn uninstall(&self, locked: &mut Locked<'_>, index: usize) {
        if let (Some(slot), Some(wait)) =
            (locked.state.queues.get_mut(index), self.wait_fds.get(index))
        {
            wait.store(-1, Ordering::Release);
            *slot = None;
            self.installed.fetch_add(1, Ordering::Release);
        }
    }
}

/// The stack, its memory and its queues, held under the lock.
pub struct Locked<'a> {
    attachment: &'a Attachment,
    state: &'a mut State,
    /// What is to be sent waits for the next section.
    holds_back: bool,
}

impl std::fmt::Debug for Locked<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Locked").finish_non_exhaustive()
    }
}

impl Locked<'_> {
    /// The stack.
    pub fn stack(&mut self) -> &mut Stack<'static> {
        &mut self.state.stack
    }

    /// The packet memory, for reading.
    #[must_use]
    pub fn packets(&self) -> &Packets {
        &self.state.packets
    }

    /// Stack and packet memory at once, for calls that copy.
    pub fn parts(&mut self) -> (&mut Stack<'static>, &mut Packets) {
        (&mut self.state.stack, &mut self.state.packets)
    }

    /// Notes that connections have come from the kernel.
    pub fn count_returned(&self) {
        self.attachment.image.count_returned();
    }

    /// The table that steers TCP flows.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.state.flows
    }

    /// The caller is back with another section in a few microseconds: what is to be sent waits for
    /// it, within bounds, and then leaves in fewer segments and with one doorbell. Whoever has the
    /// lock next without saying this sends it, in whatever process.
    ///
    /// `between`: this section may stand between two writes that should leave together.
    pub fn hold_back(&mut self, now: Instant, between: bool) {
        let since = &mut self.state.held_since;
        if *since == 0 {
            *since = now.0;
        }
        let most = if between { LONGEST_HELD_NS } else { HELD_NS };
        self.holds_back = now.0.saturating_sub(*since) <= most;
    }

    /// Whether [`Self::hold_back`] has been granted.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// Whether queue pair `index` is mapped here, as the stack has it now.
    #[must_use]
    pub fn has_queue(&self, index: usize) -> bool {
        let mapped = self.state.queues.get(index).and_then(Option::as_ref);
        mapped.is_some_and(|mapped| is_current(&self.state.stack, index, mapped.generation))
    }

    /// Moves frames: received ones into the stack, free chunks into fill rings, sent chunks back;
    /// runs the timers that are due. What is to be sent leaves when the lock is given back. Returns
    /// how many frames came in.
    pub fn pump(&mut self, now: Instant) -> usize {
        self.pump_with(now, &mut |_, _, _| ())
    }

    /// [`Self::pump`], and gives the segments of connections that have left to `left`, oldest
    /// first: whole frames, as they came.
    pub fn pump_left(&mut self, now: Instant, left: &mut dyn FnMut(&[u8])) -> usize {
        let moved = FrameOutcome::Dropped(DropReason::TcpLeft);
        self.pump_with(now, &mut |packets, frame: RxFrame, outcome| {
            if outcome == moved {
                let end = frame.offset.saturating_add(frame.len) as usize;
                let bytes = packets.chunk(frame.chunk);
                left(bytes.get(frame.offset as usize..end).unwrap_or_default());
            }
        })
    }

    fn pump_with(
        &mut self,
        now: Instant,
        each: &mut impl FnMut(&Packets, RxFrame, FrameOutcome),
    ) -> usize {
        let State {
            stack,
            packets,
            flows,
            queues,
            count,
            ..
        } = &mut *self.state;
        let mut frames = 0;
        for (index, slot) in queues.iter_mut().take(*count).enumerate() {
            let Some(queue) = current(stack, index, slot) else {
                continue;
            };
            frames += receive(stack, packets, queue, (index, now), each);
            queue.departed(&mut |number, at_ns| stack.tcp_left(number, at_ns));
            steer(stack, flows);
            reclaim(stack, queue);
            refill(stack, queue);
            queue.wake_receiver();
        }
        self.attachment.image.count_pump(frames as u32);
        stack.run_timers(packets, now);
        steer(stack, flows);
        frames
    }

    /// Sends what is to be sent, before the lock is given back: for one who keeps it for long. Of
    /// what finds no room the rest leaves when it is given back.
    pub fn send(&mut self) {
        let mut bells = [-1; MAX_QUEUE_PAIRS];
        for _ in 0..SENDING_ROUNDS {
            let (moved, left) = self.transmit();
            let ringing = self.bells(&mut bells);
            ring(bells.get(..ringing).unwrap_or_default());
            if !(moved && left) {
                return;
            }
        }
    }

    /// Whether somebody sleeps until the lock is free.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        lock::is_awaited(self.attachment.image.lock_word())
    }

    /// Whether frames wait to be sent, in the stack or in a TX ring.
    #[must_use]
    pub fn has_unsent(&mut self) -> bool {
        let State {
            stack,
            queues,
            count,
            ..
        } = &mut *self.state;
        let mut queues = queues.iter_mut().take(*count).enumerate();
        queues.any(|(index, slot)| {
            current(stack, index, slot)
                .is_some_and(|queue| queue.tx_pending() || stack.has_transmit(index as u8))
        })
    }

    /// Takes back chunks that the NICs have sent.
    pub fn reclaim(&mut self) {
        let State {
            stack,
            queues,
            count,
            ..
        } = &mut *self.state;
        for (index, slot) in queues.iter_mut().take(*count).enumerate() {
            let Some(queue) = current(stack, index, slot) else {
                continue;
            };
            reclaim(stack, queue);
        }
    }

    /// Moves what the stack wants to send into the TX rings. Sent chunks are taken back first: the
    /// driver sends nothing while the completion ring is full. Says whether frames were moved, and
    /// whether some are left for want of room.
    fn transmit(&mut self) -> (bool, bool) {
        let State {
            stack,
            packets,
            flows,
            queues,
            count,
            held_since,
        } = &mut *self.state;
        *held_since = 0;
        let (mut moved, mut left) = (false, exchange(stack, packets));
        steer(stack, flows);
        // One that is not mapped here (yet) is sent by another process of the stack.
        for (index, slot) in queues.iter_mut().take(*count).enumerate() {
            let Some(queue) = current(stack, index, slot) else {
                continue;
            };
            let number = index as u8;
            if !stack.has_transmit(number) {
                continue;
            }
            reclaim(stack, queue);
            moved |= submit(stack, queue, number) > 0;
            left |= stack.has_transmit(number);
        }
        (moved, left)
    }

    /// Rebuilds the stack after its lock's owner died inside an update.
    #[cold]
    fn recover(&mut self) {
        self.attachment.image.count_recovery();
        let State {
            stack,
            packets,
            queues,
            ..
        } = &mut *self.state;
        let mut live = [false; MAX_QUEUE_PAIRS];
        for (index, (live, slot)) in live.iter_mut().zip(&mut *queues).enumerate() {
            *live = current(stack, index, slot).is_some();
        }
        stack.recover(packets, &mut |each: &mut dyn FnMut(ChunkId)| {
            let mapped = queues.iter().zip(live).filter(|(_, live)| *live);
            for queue in mapped.filter_map(|(slot, _)| slot.as_ref()) {
                queue.pair.in_rings(&mut |chunk| each(ChunkId(chunk)));
            }
        });
    }

    /// The descriptors of queues whose driver has to be told of frames in the TX ring; how many.
    fn bells(&mut self, bells: &mut [RawFd; MAX_QUEUE_PAIRS]) -> usize {
        let State {
            stack,
            queues,
            count,
            ..
        } = &mut *self.state;
        let mut ringing = 0;
        for (index, slot) in queues.iter_mut().take(*count).enumerate() {
            if current(stack, index, slot).is_some_and(|queue| queue.needs_doorbell()) {
                if let Some(info) = stack.queue_pairs_mut().get_mut(index) {
                    info.tx_doorbells = info.tx_doorbells.wrapping_add(1);
                }
                bells[ringing] = self.attachment.wait_fds[index].load(Ordering::Relaxed);
                ringing += 1;
            }
        }
        ringing
    }

    /// Gives the lock back, then rings doorbells and wakes sleepers. Whether there is more to send
    /// for which there is room now.
    fn give_back(&mut self) -> bool {
        let mut bells = [-1; MAX_QUEUE_PAIRS];
        let mut ringing = 0;
        let (mut moved, mut left) = (false, true);
        if !self.holds_back {
            (moved, left) = self.transmit();
            ringing = self.bells(&mut bells);
        }
        let stack = &mut self.state.stack;
        let sleepers: WaiterSet = stack.take_wakeups();
        // What waits for room to be sent is due at once.
        let timer = if left {
            1
        } else {
            stack.next_deadline().map_or(0, |at| at.0)
        };
        self.attachment.image.set_due(timer);
        self.attachment.held.store(false, Ordering::Relaxed);
        lock::unlock(self.attachment.image.lock_word());
        ring(bells.get(..ringing).unwrap_or_default());
        if !sleepers.is_empty() {
            for waiter in sleepers.iter() {
                self.attachment.wake(waiter);
            }
        }
        moved && left
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let word = self.attachment.image.lock_word();
        for _ in 0..SENDING_ROUNDS {
            // The doorbell has made room in the TX ring: send what found none. (Ends when nothing
            // is left, or nothing moves any more.)
            if !self.give_back() {
                return;
            }
            match lock::lock_within(word, SENDING_PATIENCE, Owners::Foreign) {
                Ok(taken) => {
                    self.attachment.held.store(true, Ordering::Relaxed);
                    if taken == Taken::Orphaned {
                        self.recover();
                    }
                }
                Err(_) => return,
            }
        }
        self.give_back();
    }
}

/// Tells the drivers of these queues of frames in their TX rings.
fn ring(bells: &[RawFd]) {
    for &fd in bells.iter().filter(|&&fd| fd >= 0) {
        // SAFETY: the descriptor belongs to a queue pair of this attachment, which stays
        // installed while threads use it; were it closed, the call would fail with EBADF.
        let xsk = unsafe { BorrowedFd::borrow_raw(fd) };
        // What the driver could not take stays in the ring and goes with the next burst.
        let _ = bypass_backends::af_xdp::ring_doorbell(xsk);
    }
}

/// Lets owed acknowledgements be sent, and endpoints of the stack talk to each other, until they
/// have nothing to say. Whether they still have.
fn exchange(stack: &mut Stack<'static>, packets: &mut Packets) -> bool {
    for _ in 0..HAIRPIN_ROUNDS {
        if stack.has_flush() {
            stack.flush(packets, clock::now());
        }
        if !stack.has_transmit(QUEUE_PAIR_HAIRPIN) {
            return false;
        }
        stack.take_hairpin(packets, clock::realtime_ns(), clock::now());
    }
    true
}

/// Carries the stack's changes of its flows, and what it says of its listeners, into the table:
/// before the frames that need them leave, and before the ring of changes is full.
/// A flow whose table places are taken is not led here: the kernel resets it.
fn steer(stack: &mut Stack<'static>, flows: &Flows) {
    while let Some(change) = stack.take_flow_change() {
        if change.begins {
            let _ = flows.insert(change.local, change.remote, EndpointId::NONE);
        } else {
            flows.remove(change.local, change.remote);
        }
    }
    flows.press(stack.pressed());
}

/// Takes what a queue has received into the stack; `each` gets the frames and what became of them.
#[inline]
fn receive(
    stack: &mut Stack<'static>,
    packets: &mut Packets,
    queue: &mut dyn QueuePair,
    (index, now): (usize, Instant),
    each: &mut impl FnMut(&Packets, RxFrame, FrameOutcome),
) -> usize {
    if !queue.rx_pending() {
        return 0;
    }
    let mut batch = [Received::default(); BATCH];
    let known = match stack.queue_pairs_mut().get(index) {
        Some(info) if info.flags & QueuePairInfo::PARTIAL_CHECKSUMS != 0 => RxChecksum::Partial,
        _ => RxChecksum::Unknown,
    };
    let timestamp_ns = clock::realtime_ns();
    // A system call under the lock, but only after the ring has overrun.
    let missed = queue.missed();
    let mut total = 0;
    for _ in 0..BATCHES_PER_PUMP {
        let count = queue.receive(&mut batch);
        for frame in batch.iter().take(count) {
            let frame = RxFrame {
                chunk: ChunkId(frame.chunk),
                offset: frame.offset,
                len: frame.len,
                queue_pair: index as u8,
                checksum: if frame.is_checksum_good {
                    RxChecksum::Good
                } else {
                    known
                },
                timestamp_ns,
            };
            let outcome = stack.handle_frame(packets, frame, now);
            each(packets, frame, outcome);
        }
        queue.received(count);
        total += count;
        if count < BATCH {
            break;
        }
        refill(stack, queue);
    }
    // What was lost came after what was in the ring.
    if let Some(missed) = missed {
        stack.note_missed(index as u8, missed);
    }
    total
}

/// Takes sent chunks back.
fn reclaim(stack: &mut Stack<'static>, queue: &mut dyn QueuePair) {
    let mut done = [0; BATCH];
    for _ in 0..BATCHES_PER_RING {
        let count = queue.complete(&mut done);
        for &chunk in done.iter().take(count) {
            stack.release_chunk(ChunkId(chunk));
        }
        if count < BATCH {
            return;
        }
    }
}

/// Posts free chunks when the fill ring has room for a batch.
fn refill(stack: &mut Stack<'static>, queue: &mut dyn QueuePair) {
    for _ in 0..BATCHES_PER_RING {
        if queue.fill_space() < REFILL {
            return;
        }
        let mut chunks = [0; BATCH];
        let mut count = 0;
        while count < BATCH {
            let Some(chunk) = stack.take_chunk() else {
                break;
            };
            chunks[count] = chunk.0;
            count += 1;
        }
        let posted = queue.fill(&chunks[..count]);
        for &chunk in &chunks[posted..count] {
            stack.release_chunk(ChunkId(chunk));
        }
        if posted < BATCH {
            return;
        }
    }
}

/// Moves pending frames of one queue pair into its TX ring; returns how many.
fn submit(stack: &mut Stack<'static>, queue: &mut dyn QueuePair, number: u8) -> usize {
    const NOTHING: Transmit = Transmit {
        chunk: 0,
        offset: 0,
        len: 0,
        stamp: 0,
    };
    let mut moved = 0;
    for _ in 0..BATCHES_PER_RING {
        let mut batch = [NOTHING; BATCH];
        let mut count = 0;
        while count < BATCH
            && let Some(frame) = stack.poll_transmit(number)
        {
            batch[count] = Transmit {
                chunk: frame.chunk.0,
                offset: frame.offset,
                len: frame.len,
                stamp: frame.stamp,
            };
            count += 1;
        }
        let taken = queue.submit(&batch[..count]);
        moved += taken;
        for frame in batch[taken..count].iter().rev() {
            let frame = bypass_stack::Transmit {
                chunk: ChunkId(frame.chunk),
                offset: frame.offset,
                len: frame.len,
                stamp: frame.stamp,
            };
            stack.untransmit(number, frame);
        }
        if taken < BATCH {
            break;
        }
    }
    moved
}

/// Keeps descriptors alive that only hold something open (XDP links).
#[derive(Debug, Default)]
pub struct Leases(pub Vec<OwnedFd>);
