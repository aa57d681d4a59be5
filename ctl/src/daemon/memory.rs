//! Relieving a stack whose packet memory is short: connections that keep their chunks, because a
//! program or a peer does not read, go to the kernel, which has memory of its own for them.
//!
//! ```text
//!   enough --short--> first look: what connections hold
//!      ^                   | a sweep later, still not enough
//!      |                   v
//!      +---- enough ---- next look: those that have kept much since go, [`MOST`] at most --+
//!                          ^-----------------------------------------------------------------+
//! ```
//!
//! Who is busy gives back as much as it takes, and stays. What has gone does not come back for
//! that, so that nothing goes to and fro; and who cannot go is let alone after some tries, until
//! there was enough.

use std::cmp::Reverse;
use std::collections::HashMap;

use bypass_proto::reason::FallThrough;
use bypass_runtime::attachment::Locked;
use bypass_stack::{EndpointId, Hold};

use super::counters::Counter;
use super::server::Server;
use super::stacks::{Busy, StackEntry};

/// Connections that go at one look.
const MOST: usize = 64;
/// Looks at which a connection is chosen, until it is left where it is.
const TRIES: u32 = 5;
/// Chunks of which a connection is not kept for the sake of the others.
const FEWEST: u32 = 4;

/// What was seen of a stack since its memory has become short.
#[derive(Debug, Default)]
pub(super) struct Squeeze {
    /// What connections held at the last look, by their indices.
    holds: Vec<Hold>,
    /// How often connections were chosen. (The lock may have been too busy for their move.)
    chosen: HashMap<EndpointId, u32>,
}

impl Squeeze {
    /// Looks once more: which connections are to go, those first that keep the most. All that are
    /// slow: what one gives up, another one that is slow would take.
    fn look(&mut self, holds: Vec<Hold>) -> Vec<EndpointId> {
        let index = |it: &Hold| it.endpoint.index;
        let tries = |hold: &Hold| self.chosen.get(&hold.endpoint).copied().unwrap_or(0);
        let slow = holds.iter().filter(|hold| tries(hold) < TRIES);
        let slow = slow.filter_map(|hold| {
            let at = self.holds.binary_search_by_key(&index(hold), index).ok()?;
            let chunks = hold.slow_chunks(self.holds.get(at)?);
            (chunks >= FEWEST).then_some((chunks, hold.endpoint))
        });
        let mut slow: Vec<_> = slow.collect();
        slow.sort_unstable_by_key(|&(chunks, endpoint)| (Reverse(chunks), endpoint.index));
        let slow = slow.into_iter().take(MOST);
        let all: Vec<EndpointId> = slow.map(|(_, endpoint)| endpoint).collect();
        self.holds = holds;
        let holds = |endpoint: &EndpointId| self.holds.binary_search_by_key(&endpoint.index, index);
        self.chosen.retain(|endpoint, _| holds(endpoint).is_ok());
        for endpoint in &all {
            *self.chosen.entry(*endpoint).or_default() += 1;
        }
        all
    }
}

impl StackEntry {
    /// Looks at the memory; which connections are to go to the kernel.
    fn note_memory(&mut self) -> Vec<EndpointId> {
        let is_squeezed = self.squeeze.is_some();
        let look = |locked: &mut Locked<'_>| {
            let stack = locked.stack();
            let shortage = stack.shortage();
            let goes_on = is_squeezed && shortage.excess > 0;
            (shortage.is_short || goes_on).then(|| stack.holds().collect())
        };
        match self.lock().map(|mut locked| look(&mut locked)) {
            Ok(Some(holds)) => self.squeeze.get_or_insert_default().look(holds),
            Ok(None) => {
                self.squeeze = None;
                Vec::new()
            }
            Err(Busy) => Vec::new(),
        }
    }
}

impl Server {
    /// Hands connections that keep a stack's memory to the kernel while that is short. A part of
    /// the sweep.
    pub(super) fn relieve(&mut self, uid: u32) {
        let chosen = self.stacks.get_mut(uid).map(StackEntry::note_memory);
        let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) else {
            return;
        };
        let members = self.known_members(uid);
        let all = (&*chosen, chosen.len() as u32);
        let moved = self.move_all(uid, all, &members, FallThrough::Memory);
        self.counters
            .add_many(Counter::ConnectionsRelieved, u64::from(moved));
    }
}

#[cfg(test)]
mod tests {
    use bypass_stack::Kept;

    use super::*;

    fn hold(index: u32, chunks: u32, from: u32) -> Hold {
        let bytes = chunks * 1000;
        Hold {
            endpoint: EndpointId {
                index,
                generation: 1,
            },
            receive: Kept {
                chunks,
                bytes,
                from,
            },
            send: Kept::default(),
        }
    }

    fn chosen(squeeze: &mut Squeeze, holds: &[Hold]) -> Vec<u32> {
        let chosen = squeeze.look(holds.to_vec());
        chosen.iter().map(|endpoint| endpoint.index).collect()
    }

    #[test]
    fn those_that_kept_most_go_first_and_are_tried_some_times() {
        let mut squeeze = Squeeze::default();
        let all = [hold(1, 5, 0), hold(3, 50, 0), hold(4, 40, 0), hold(6, 2, 0)];
        assert!(chosen(&mut squeeze, &all).is_empty());
        // One has read all that it had, and has got more; one is new.
        let next = [all[0], all[1], hold(4, 40, 40_000), hold(5, 90, 0), all[3]];
        assert_eq!(chosen(&mut squeeze, &next), [3, 1]);
        for _ in 1..TRIES {
            assert_eq!(chosen(&mut squeeze, &next), [5, 3, 4, 1]);
        }
        assert_eq!(chosen(&mut squeeze, &next), [5, 4]);
        assert!(chosen(&mut squeeze, &next).is_empty());
    }

    #[test]
    fn no_more_go_at_one_look_than_is_said() {
        let mut squeeze = Squeeze::default();
        let all: Vec<Hold> = (0..200).map(|index| hold(index, 9, 0)).collect();
        assert!(squeeze.look(all.clone()).is_empty());
        let turns = all.len() * TRIES as usize;
        let counts: Vec<usize> = (0..20).map(|_| squeeze.look(all.clone()).len()).collect();
        assert_eq!(counts.iter().max(), Some(&MOST));
        assert_eq!(counts.iter().sum::<usize>(), turns);
    }
}
