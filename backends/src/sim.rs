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

mod transit;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::{QueueError, QueuePair, Received, Transmit};

pub use transit::{Faults, Statistics, Transit};

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
            is_checksum_good: false,
        });
        true
    }

    /// Takes the next frame out of the TX ring, if its chunk can be given back.
    fn take(&mut self) -> Option<Vec<u8>> {
        if self.room(self.completion.len()) == 0 {
            return None;
        }
        let Transmit {
            chunk, offset, len, ..
        } = self.tx.pop_front()?;
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
    transit: Transit,
    now: u64,
}

impl Wire {
    /// Sends what is in the TX ring of an end.
    fn transmit(&mut self, from: usize) {
        while let Some(frame) = self.ends[from].take() {
            self.transit.carry(1 - from, frame, self.now);
        }
        if self.transit.is_immediate() {
            self.arrive();
        }
    }

    /// Frames whose time has come.
    fn arrive(&mut self) {
        let ends = &mut self.ends;
        let mut deliver = |to: usize, frame: &[u8]| ends[to].deliver(frame);
        self.transit.arrive(self.now, &mut deliver);
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
            transit: Transit::new(faults, seed),
            now: 0,
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
        held(&self.0).transit.next_arrival()
    }

    /// Frames on the way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        held(&self.0).transit.in_flight()
    }

    /// Changes what happens to frames that are sent from now on.
    pub fn set_faults(&self, faults: Faults) {
        held(&self.0).transit.set_faults(faults);
    }

    /// What became of frames so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        held(&self.0).transit.statistics()
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

/// Copies what fits from the front of a ring; returns how many.
fn look<T: Copy>(ring: &VecDeque<T>, into: &mut [T]) -> usize {
    for (to, item) in into.iter_mut().zip(ring) {
        *to = *item;
    }
    into.len().min(ring.len())
}

impl QueuePair for SimQueuePair {
    fn receive(&mut self, into: &mut [Received]) -> usize {
        self.with(|end| look(&end.rx, into))
    }

    fn received(&mut self, count: usize) {
        self.with(|end| drop(end.rx.drain(..count)));
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
        self.with(|end| {
            let count = look(&end.completion, into);
            end.completion.drain(..count);
            count
        })
    }

    fn tx_pending(&self) -> bool {
        self.with(|end| !end.tx.is_empty())
    }

    fn needs_doorbell(&self) -> bool {
        self.tx_pending()
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
