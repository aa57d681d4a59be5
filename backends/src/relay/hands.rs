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
