//! Who holds what: a row of bits per process, a bit per endpoint. A fork copies a row, the end of a
//! process reads one; who holds an endpoint is a look at the rows of the processes that are there.

use crate::image::SlabsRef;
use crate::stack::Stack;
use crate::types::{EndpointId, PROCESSES, ProcessId, set_bit};
use core::ops::Range;

/// Words of all rows of an image with this many endpoints.
pub(crate) const fn words(endpoints: usize) -> usize {
    endpoints.div_ceil(64).saturating_mul(PROCESSES)
}

/// The words of a process's row.
fn row(held: &[u64], process: u8) -> Range<usize> {
    let len = held.len() / PROCESSES;
    let start = len.saturating_mul(process.into());
    start..start.saturating_add(len)
}

/// The word of an endpoint's bit in a process's row, and the bit.
fn place(held: &[u64], process: u8, endpoint: u32) -> (usize, u64) {
    let word = row(held, process)
        .start
        .saturating_add(endpoint as usize / 64);
    (word, 1_u64.wrapping_shl(endpoint % 64))
}

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros() as u8;
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

fn processes([low, high]: [u64; 2]) -> impl Iterator<Item = u8> {
    bits(low).chain(bits(high).map(|bit| bit.wrapping_add(64)))
}

fn holders(held: &[u64], live: [u64; 2], endpoint: u32) -> [u64; 2] {
    let mut found = [0, 0];
    for process in processes(live) {
        let (word, bit) = place(held, process, endpoint);
        let holds = held.get(word).is_some_and(|word| word & bit != 0);
        set_bit(&mut found, process, holds);
    }
    found
}

impl SlabsRef<'_> {
    /// The processes that hold an endpoint, a bit per slot.
    pub(crate) fn holders(&self, endpoint: u32) -> [u64; 2] {
        holders(self.held, self.head.live_processes, endpoint)
    }

    /// Every process and endpoint of which one holds the other.
    pub(crate) fn all_held(&self) -> impl Iterator<Item = (u8, u32)> {
        (0..PROCESSES as u8).flat_map(|process| {
            let row = self.held.get(row(self.held, process)).unwrap_or(&[]);
            (0u32..).zip(row).flat_map(move |(number, word)| {
                let first = number.wrapping_mul(64);
                bits(*word).map(move |bit| (process, first.wrapping_add(bit.into())))
            })
        })
    }
}

impl Stack<'_> {
    pub(crate) fn set_holder(&mut self, endpoint: u32, process: ProcessId, on: bool) {
        let (word, bit) = place(self.held, process.0, endpoint);
        if let Some(word) = self.held.get_mut(word) {
            *word = if on { *word | bit } else { *word & !bit };
        }
    }

    /// The processes that hold an endpoint, a bit per slot.
    pub(crate) fn holders_of(&self, endpoint: u32) -> [u64; 2] {
        holders(self.held, self.head.live_processes, endpoint)
    }

    /// Nobody holds it any more.
    pub(crate) fn clear_holders(&mut self, endpoint: u32) {
        for process in processes(self.holders_of(endpoint)) {
            self.set_holder(endpoint, ProcessId(process), false);
        }
    }

    /// What a process holds; an endpoint that comes or goes meanwhile may be missing.
    pub(crate) fn next_held(&self, process: ProcessId, from: u32) -> Option<EndpointId> {
        let held = self.held.get(row(self.held, process.0))?;
        let mut mask = u64::MAX.wrapping_shl(from % 64);
        for (word, number) in held.iter().zip(0u32..).skip(from as usize / 64) {
            let bit = (word & mask).trailing_zeros();
            mask = u64::MAX;
            if bit < 64 {
                let index = number.wrapping_mul(64).wrapping_add(bit);
                let generation = self.endpoints.get(index as usize)?.generation;
                return Some(EndpointId { index, generation });
            }
        }
        None
    }

    /// The child holds what its parent holds.
    pub(crate) fn copy_held(&mut self, parent: ProcessId, child: ProcessId) {
        let (from, to) = (row(self.held, parent.0), row(self.held, child.0));
        if to.end <= self.held.len() && from.end <= self.held.len() {
            self.held.copy_within(from, to.start);
        }
    }

    /// Nobody holds what does not exist: the last word of a row may have more bits than there are
    /// endpoints. Part of a recovery.
    pub(crate) fn clear_beyond(&mut self) {
        let count = self.endpoints.len();
        let mask = match count % 64 {
            0 => return,
            rest => u64::MAX.wrapping_shl(rest as u32),
        };
        for process in 0..PROCESSES as u8 {
            let last = row(self.held, process).end.wrapping_sub(1);
            if let Some(word) = self.held.get_mut(last) {
                *word &= !mask;
            }
        }
    }

    /// The process holds nothing.
    pub(crate) fn clear_held(&mut self, process: ProcessId) {
        let row = row(self.held, process.0);
        if let Some(row) = self.held.get_mut(row) {
            row.fill(0);
        }
    }
}
