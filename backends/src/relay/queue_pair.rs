//! The stack's side of a queue pair of the relay: rings in shared memory and a bell.
//!
//! Two descriptors are all it takes, so an unprivileged program can use what the daemon has
//! opened, and neither DPDK nor anything of it is in the program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::rings::{CHECKSUM_GOOD, Rings, Shown, Slot};
use crate::af_xdp::ring_doorbell;
use crate::api::{QueueError, QueuePair, Received, Transmit};

/// A queue pair of the relay, mapped into this process.
#[derive(Debug)]
pub struct RelayQueuePair {
    rings: Rings,
    bell: OwnedFd,
}

impl RelayQueuePair {
    /// Maps the rings, each of `entries`; `bell` is the stack's end of it. Needs no privilege.
    ///
    /// # Errors
    /// `EINVAL` when they are none, or of another size; else what the kernel answers.
    pub fn map(bell: OwnedFd, rings: BorrowedFd<'_>, entries: u32) -> Result<Self, Errno> {
        let rings = Rings::map(rings, entries)?;
        Ok(Self { rings, bell })
    }

    /// Reads the oldest frames; how many.
    fn look(&mut self, into: &mut [Received]) -> usize {
        let mut slots = into.iter_mut();
        self.rings.rx.look(slots.len(), |frame| {
            if let Some(slot) = slots.next() {
                *slot = Received {
                    chunk: frame.chunk,
                    offset: frame.offset,
                    len: frame.len,
                    is_checksum_good: frame.flags & CHECKSUM_GOOD != 0,
                };
            }
        })
    }

    /// When all frames are taken, takes the datagram that told of them.
    fn silence(&mut self) {
        let is_told = self.rings.rx.filled() == 0 && self.rings.is_rung();
        if is_told && self.take_bell() && self.rings.rx.filled() > 0 {
            // Those came without a datagram: have the relay look after its bell.
            let _ = ring_doorbell(self.bell.as_fd());
        }
    }

    /// Takes the datagram that has rung; whether it was there. (It comes a moment after the word.)
    fn take_bell(&self) -> bool {
        let mut nothing = [0_u8; 1];
        let taken = recv(&self.bell, &mut nothing[..], RecvFlags::DONTWAIT).is_ok();
        if taken {
            self.rings.take_bell();
        }
        taken
    }
}

impl QueuePair for RelayQueuePair {
    fn receive(&mut self, into: &mut [Received]) -> usize {
        self.silence();
        self.look(into)
    }

    fn received(&mut self, count: usize) {
        self.rings.rx.advance(count);
        self.silence();
    }

    fn rx_pending(&self) -> bool {
        self.rings.rx.filled() > 0 || self.rings.is_rung()
    }

    fn missed(&self) -> Option<u32> {
        if self.rings.rx.free() > 0 && self.rings.fill.filled() > 0 {
            return None;
        }
        Some(self.rings.missed())
    }

    fn fill_space(&self) -> u32 {
        self.rings.fill.free()
    }

    fn fill(&mut self, chunks: &[u32]) -> usize {
        self.rings.fill.produce(chunks.iter().copied())
    }

    fn submit(&mut self, frames: &[Transmit]) -> usize {
        self.rings.tx.produce(frames.iter().map(|frame| Slot {
            chunk: frame.chunk,
            offset: frame.offset,
            len: frame.len,
            flags: frame.stamp,
        }))
    }

    fn complete(&mut self, into: &mut [u32]) -> usize {
        let mut slots = into.iter_mut();
        self.rings.completion.consume(slots.len(), |chunk| {
            if let Some(slot) = slots.next() {
                *slot = chunk;
            }
        })
    }

    fn departed(&mut self, each: &mut dyn FnMut(u32, u64)) {
        if let Some(departures) = &mut self.rings.departures {
            departures.consume(usize::MAX, |frame| each(frame.number, frame.at_ns));
        }
    }

    fn tx_pending(&self) -> bool {
        self.rings.tx.filled() > 0
    }

    fn needs_doorbell(&self) -> bool {
        self.tx_pending() && self.rings.must_wake()
    }

    fn ring_doorbell(&self) -> Result<(), QueueError> {
        ring_doorbell(self.bell.as_fd())
    }

    fn in_rings(&self, each: &mut dyn FnMut(u32)) {
        // In the order in which they go: the relay may be at work.
        self.rings.fill.peek(&mut *each);
        self.rings.tx.peek(|frame| each(frame.chunk));
        let hands = self.rings.shown.as_ref().map(Shown::words);
        for (word, at) in hands.unwrap_or_default().iter().zip(0_u32..) {
            let bits = word.load(Ordering::Acquire);
            (0..64)
                .filter(|bit| bits >> bit & 1 != 0)
                .for_each(|bit| each(at * 64 + bit));
        }
        self.rings.completion.peek(&mut *each);
        self.rings.rx.peek(|frame| each(frame.chunk));
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }
}
