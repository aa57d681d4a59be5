//! A queue pair over plain memory: two of them are the ends of a wire, for tests.
//!
//! ```text
//!   end 0                           SimLink                            end 1
//!   TX ring ──ring_doorbell──► ( time, order ) ──advance──► a chunk of the fill ring ──► RX ring
//!       └─► completion ring     loss, delay, reorder,        (none there: dropped)
//!                               duplicate, corrupt
//! ```
//!
//! Time is the caller's: frames arrive in [`SimLink::advance`], or at the doorbell when there is
//! no delay. All chance comes from one seeded generator, so equal seeds and equal calls give equal
//! runs. Copies of a [`SimQueuePair`] are the same end, as the mappings of two processes are.
//!
//! What is absent: rates. A frame takes the same time whatever its length.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::{QueueError, QueuePair, Received, Transmit};

/// What happens to frames on their way. Probabilities in 1/1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A frame vanishes.
    pub loss: u16,
    /// A frame arrives twice.
    pub duplicate: u16,
    /// A frame overtakes the one before it.
    pub reorder: u16,
    /// One bit of a frame flips.
    pub corrupt: u16,
    /// Nanoseconds that every frame takes.
    pub delay_ns: u64,
    /// Up to so many nanoseconds more, each as likely.
    pub jitter_ns: u64,
    /// Longest frame in bytes; longer ones vanish. 0 = no limit.
    pub longest: u32,
    /// Most frames on the way in one direction; further ones vanish. 0 = no limit.
    pub in_flight: u32,
}

/// What became of frames, both directions together.
///
/// `sent + duplicated == delivered + lost + unposted + frames on the way`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Given to the wire.
    pub sent: u64,
    /// Second copies.
    pub duplicated: u64,
    /// Vanished: by loss, or beyond a limit.
    pub lost: u64,
    /// Thrown away because the receiver had posted no chunk.
    pub unposted: u64,
    /// Arrived in an RX ring.
    pub delivered: u64,
}

/// Packet memory that both the test and the wire can reach.
pub type SharedMemory = Arc<Mutex<Vec<u8>>>;

/// Sizes of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Entries of each ring.
    pub entries: u32,
    /// Bytes that are left free before a received frame.
    pub headroom: u32,
}

/// The four rings of one end.
#[derive(Debug)]
struct End {
    memory: SharedMemory,
    shape: Shape,
    fill: VecDeque<u32>,
    rx: VecDeque<Received>,
    tx: VecDeque<Transmit>,
    completion: VecDeque<u32>,
}

impl End {
    fn room(&self, used: usize) -> usize {
        (self.shape.entries as usize).saturating_sub(used)
    }

    /// Copies a frame into a posted chunk; says whether there was one.
    fn deliver(&mut self, frame: &[u8]) -> bool {
        if self.room(self.rx.len()) == 0 {
            return false;
        }
        let Some(chunk) = self.fill.pop_front() else {
            return false;
        };
        let Shape {
            chunk_size,
            headroom,
            ..
        } = self.shape;
        let most = chunk_size.saturating_sub(headroom) as usize;
        let frame = frame.get(..most).unwrap_or(frame);
        let start = chunk as usize * chunk_size as usize + headroom as usize;
        if let Some(place) = held(&self.memory).get_mut(start..start + frame.len()) {
            place.copy_from_slice(frame);
        }
        self.rx.push_back(Received {
            chunk,
            offset: headroom,
            len: frame.len() as u32,
        });
        true
    }

    /// Takes the next frame out of the TX ring, if its chunk can be given back.
    fn take(&mut self) -> Option<Vec<u8>> {
        if self.room(self.completion.len()) == 0 {
            return None;
        }
        let Transmit { chunk, offset, len } = self.tx.pop_front()?;
        self.completion.push_back(chunk);
        let start = chunk as usize * self.shape.chunk_size as usize + offset as usize;
        let memory = held(&self.memory);
        let bytes = memory.get(start..start + len as usize);
        Some(bytes.unwrap_or_default().to_vec())
    }
}

#[derive(Debug)]
struct Wire {
    ends: [End; 2],
    /// Frames on the way to each end, by time of arrival and order of sending.
    toward: [BTreeMap<(u64, u64), Vec<u8>>; 2],
    now: u64,
    order: u64,
    faults: Faults,
    state: u64,
    statistics: Statistics,
}

impl Wire {
    /// splitmix64: small, seeded, good enough for choosing faults.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn happens(&mut self, per_1024: u16) -> bool {
        self.draw() % 1024 < u64::from(per_1024)
    }

    fn carry(&mut self, to: usize, mut frame: Vec<u8>) {
        let faults = self.faults;
        self.statistics.sent += 1;
        // Drawn always, so that one fault does not shift the chances of the others.
        let lost = self.happens(faults.loss);
        let corrupt = self.happens(faults.corrupt);
        let twice = self.happens(faults.duplicate);
        let overtakes = self.happens(faults.reorder);
        let bit = self.draw() as usize;
        let is_too_long = faults.longest != 0 && frame.len() > faults.longest as usize;
        if lost || is_too_long {
            self.statistics.lost += 1;
            return;
        }
        if corrupt && !frame.is_empty() {
            let bit = bit % (frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        if twice {
            self.statistics.duplicated += 1;
            self.put(to, frame.clone(), false);
        }
        self.put(to, frame, overtakes);
    }

    fn put(&mut self, to: usize, mut frame: Vec<u8>, overtakes: bool) {
        let limit = self.faults.in_flight as usize;
        if limit != 0 && self.toward[to].len() >= limit {
            self.statistics.lost += 1;
            return;
        }
        let jitter = self.draw() % self.faults.jitter_ns.saturating_add(1).max(1);
        let arrival = (self.now + self.faults.delay_ns).saturating_add(jitter);
        self.order += 1;
        if overtakes && let Some(mut last) = self.toward[to].last_entry() {
            std::mem::swap(last.get_mut(), &mut frame);
        }
        self.toward[to].insert((arrival, self.order), frame);
    }

    /// Sends what is in the TX ring of an end.
    fn transmit(&mut self, from: usize) {
        while let Some(frame) = self.ends[from].take() {
            self.carry(1 - from, frame);
        }
        if self.faults.delay_ns == 0 && self.faults.jitter_ns == 0 {
            self.arrive();
        }
    }

    /// Frames whose time has come.
    fn arrive(&mut self) {
        for (end, toward) in self.ends.iter_mut().zip(&mut self.toward) {
            while let Some(first) = toward.first_entry()
                && first.key().0 <= self.now
            {
                let counter = if end.deliver(&first.remove()) {
                    &mut self.statistics.delivered
                } else {
                    &mut self.statistics.unposted
                };
                *counter += 1;
            }
        }
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wire between two ends. Copies are the same wire.
#[derive(Clone, Debug)]
pub struct SimLink(Arc<Mutex<Wire>>);

impl SimLink {
    /// A wire and its two ends, each over its own memory.
    #[must_use]
    pub fn new(
        memories: [SharedMemory; 2],
        shape: Shape,
        faults: Faults,
        seed: u64,
    ) -> (Self, [SimQueuePair; 2]) {
        let wire = Wire {
            ends: memories.map(|memory| End {
                memory,
                shape,
                fill: VecDeque::new(),
                rx: VecDeque::new(),
                tx: VecDeque::new(),
                completion: VecDeque::new(),
            }),
            toward: Default::default(),
            now: 0,
            order: 0,
            faults,
            state: seed,
            statistics: Statistics::default(),
        };
        let wire = Arc::new(Mutex::new(wire));
        let ends = [0, 1].map(|side| SimQueuePair {
            wire: Arc::clone(&wire),
            side,
        });
        (Self(wire), ends)
    }

    /// The wire's time in nanoseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        held(&self.0).now
    }

    /// Lets time pass; frames whose time has come arrive in their order.
    pub fn advance(&self, nanoseconds: u64) {
        let mut wire = held(&self.0);
        wire.now += nanoseconds;
        wire.arrive();
    }

    /// When the next frame arrives; `None` when none is on the way.
    #[must_use]
    pub fn next_arrival(&self) -> Option<u64> {
        let wire = held(&self.0);
        let firsts = wire.toward.iter().filter_map(|way| way.first_key_value());
        firsts.map(|((time, _), _)| *time).min()
    }

    /// Frames on the way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        held(&self.0).toward.iter().map(BTreeMap::len).sum()
    }

    /// Changes what happens to frames that are sent from now on.
    pub fn set_faults(&self, faults: Faults) {
        held(&self.0).faults = faults;
    }

    /// What became of frames so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        held(&self.0).statistics
    }
}

/// One end of a wire. Copies are the same end.
#[derive(Clone, Debug)]
pub struct SimQueuePair {
    wire: Arc<Mutex<Wire>>,
    side: usize,
}

impl SimQueuePair {
    fn with<T>(&self, work: impl FnOnce(&mut End) -> T) -> T {
        work(&mut held(&self.wire).ends[self.side])
    }
}

/// Moves what fits from the front of a ring.
fn drain<T>(ring: &mut VecDeque<T>, into: &mut [T]) -> usize {
    let count = into.len().min(ring.len());
    for (to, item) in into.iter_mut().zip(ring.drain(..count)) {
        *to = item;
    }
    count
}

impl QueuePair for SimQueuePair {
    fn receive(&mut self, into: &mut [Received]) -> usize {
        self.with(|end| drain(&mut end.rx, into))
    }

    fn rx_pending(&self) -> bool {
        self.with(|end| !end.rx.is_empty())
    }

    fn fill_space(&self) -> u32 {
        self.with(|end| end.room(end.fill.len()) as u32)
    }

    fn fill(&mut self, chunks: &[u32]) -> usize {
        self.with(|end| {
            let count = chunks.len().min(end.room(end.fill.len()));
            end.fill.extend(&chunks[..count]);
            count
        })
    }

    fn submit(&mut self, frames: &[Transmit]) -> usize {
        self.with(|end| {
            let count = frames.len().min(end.room(end.tx.len()));
            end.tx.extend(&frames[..count]);
            count
        })
    }

    fn complete(&mut self, into: &mut [u32]) -> usize {
        self.with(|end| drain(&mut end.completion, into))
    }

    fn needs_doorbell(&self) -> bool {
        self.with(|end| !end.tx.is_empty())
    }

    fn ring_doorbell(&self) -> Result<(), QueueError> {
        held(&self.wire).transmit(self.side);
        Ok(())
    }

    fn in_rings(&self, each: &mut dyn FnMut(u32)) {
        self.with(|end| {
            let received = end.rx.iter().map(|frame| frame.chunk);
            let submitted = end.tx.iter().map(|frame| frame.chunk);
            let plain = end.fill.iter().chain(&end.completion).copied();
            received.chain(submitted).chain(plain).for_each(each);
        });
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests;
