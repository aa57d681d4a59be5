//! The chunks that the port has: neither the stack nor one of its rings.
//!
//! What the rings name may be anything: a chunk is handed out when it is one and the port does not
//! have it yet, so that it is with the card once at most.

use std::sync::atomic::Ordering;

use super::memory::Memory;
use super::rings::{MOST_CHUNKS, Shown};

/// Which chunks those are.
#[derive(Debug)]
pub(super) struct Hands {
    /// 64 chunks a word; what is beyond there is no chunk.
    words: Vec<u64>,
    chunks: u32,
    /// How many of them are on their way out.
    pub(super) sending: usize,
}

impl Hands {
    /// Those of a port that has none of this memory.
    pub(super) fn new(memory: &Memory) -> Self {
        let chunks = memory.chunks().min(MOST_CHUNKS);
        Self {
            words: vec![0; chunks.div_ceil(64) as usize],
            chunks,
            sending: 0,
        }
    }

    /// Hands a chunk to the port; whether it may be.
    #[inline]
    pub(super) fn take(&mut self, chunk: u32, shown: &Shown) -> bool {
        let at = chunk as usize / 64;
        let bit = 1 << (chunk % 64);
        match self.words.get_mut(at) {
            Some(word) if chunk < self.chunks && *word & bit == 0 => {
                *word |= bit;
                show(shown, at, *word);
                true
            }
            _ => false,
        }
    }

    /// The port has it no more: it is in a ring again.
    #[inline]
    pub(super) fn give(&mut self, chunk: u32, shown: &Shown) {
        let at = chunk as usize / 64;
        if let Some(word) = self.words.get_mut(at) {
            *word &= !(1 << (chunk % 64));
            show(shown, at, *word);
        }
    }
}

/// Tells whoever recovers the stack.
#[inline]
fn show(shown: &Shown, at: usize, word: u64) {
    if let Some(place) = shown.words().get(at) {
        place.store(word, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, SealFlags};

    use super::super::rings::{Pair, Rings, is_in_place};
    use super::super::{RelayQueuePair, memory::Memory};
    use super::*;
    use crate::api::QueuePair;

    const CHUNK: u32 = 4096;

    fn memory(chunks: u64) -> Memory {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("packets", flags).unwrap();
        rustix::fs::ftruncate(&memory, u64::from(CHUNK) * chunks).unwrap();
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
        Memory::map(memory.as_fd(), CHUNK).unwrap()
    }

    #[test]
    fn a_chunk_is_the_ports_once_and_whoever_recovers_the_stack_sees_it() {
        let pair = Pair::create(8, true, true).unwrap();
        let rings = Rings::map(pair.rings.as_fd(), 8).unwrap();
        let queue = RelayQueuePair::map(pair.stack, pair.rings.as_fd(), 8).unwrap();
        let shown = rings.shown.as_ref().unwrap();
        let mut hands = Hands::new(&memory(100));
        let seen = || {
            let mut seen = Vec::new();
            queue.in_rings(&mut |chunk| seen.push(chunk));
            seen
        };
        assert!(hands.take(99, shown) && hands.take(3, shown));
        assert!(!hands.take(3, shown), "it has that one");
        for none in [100, 127, 128, u32::MAX] {
            assert!(!hands.take(none, shown), "{none} is no chunk");
        }
        assert_eq!(seen(), [3, 99]);
        // What others write there is not believed.
        shown.words()[0].store(u64::MAX, Ordering::Relaxed);
        assert!(hands.take(4, shown));
        hands.give(3, shown);
        assert_eq!(seen(), [4, 99]);
        assert!(hands.take(3, shown));
    }

    #[test]
    fn rings_say_whether_frames_stay_in_chunks() {
        let pair = Pair::create(8, false, true).unwrap();
        let rings = Rings::map(pair.rings.as_fd(), 8).unwrap();
        assert!(!is_in_place(pair.rings.as_fd()));
        rings.say_in_place();
        assert!(is_in_place(pair.rings.as_fd()));
        for departs in [false, true] {
            let plain = Pair::create(8, departs, false).unwrap();
            let rings = Rings::map(plain.rings.as_fd(), 8).unwrap();
            assert!(rings.shown.is_none() && rings.departures.is_some() == departs);
        }
    }
}
