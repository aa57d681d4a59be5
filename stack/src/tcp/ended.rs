//! Filters whose endpoint is gone: the owner of the steering takes them away.

use super::socket::Ended;
use crate::counters::Counter;
use crate::stack::Stack;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Filters that wait to be taken away at most.
const ENDED: usize = 256;

/// The ring of them.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct EndedFilters {
    filters: [u32; ENDED],
    written: u32,
    taken: u32,
}

impl Stack<'_> {
    pub(crate) fn note_ended(&mut self, filter: u32) {
        let ring = &mut self.head.ended;
        if ring.written.wrapping_sub(ring.taken) as usize >= ENDED {
            self.count(Counter::TcpFlowChangesLost);
            return;
        }
        if let Some(slot) = ring.filters.get_mut(ring.written as usize % ENDED) {
            *slot = filter;
        }
        ring.written = ring.written.wrapping_add(1);
    }

    /// An endpoint that is finished for good after its close: its filter may go.
    pub fn take_ended(&mut self) -> Option<Ended> {
        let ring = &mut self.head.ended;
        if ring.taken == ring.written {
            return None;
        }
        if ring.written.wrapping_sub(ring.taken) as usize > ENDED {
            // Not a count of ours: whoever takes all must come to an end.
            ring.taken = ring.written;
            self.count(Counter::CorruptList);
            return None;
        }
        let filter = ring.filters.get(ring.taken as usize % ENDED).copied()?;
        ring.taken = ring.taken.wrapping_add(1);
        Some(Ended { filter })
    }
}
