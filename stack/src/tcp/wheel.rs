//! Timers: a wheel of slots of about one millisecond, through which connections and minisockets
//! are chained by index.
//!
//! Lazy: an entry that is filed earlier than its deadline stays; when its slot comes it is filed
//! again. So the usual change, a deadline that moves out, touches no list. A deadline beyond the
//! wheel's second is filed in its last slot and comes round again.

use super::flow::CHANGES;
use super::seq::before;
use super::tcb::{NEVER, Tcb};
use crate::counters::Counter;
use crate::image::NONE;
use crate::stack::Stack;
use crate::types::{Instant, Memory};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Slots of the wheel.
const SLOTS: u64 = 1024;
/// A slot is 2^20 ns long.
const TICK_SHIFT: u32 = 20;
/// Bit of an entry's number that says: a minisocket.
pub(crate) const MINI: u32 = 1 << 31;
/// Flow changes after which timers wait for the next call: the ring has room for as many from
/// frames.
const CHANGES_AT_ONCE: u32 = CHANGES as u32 / 2;

/// The wheel.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Wheel {
    heads: [u32; SLOTS as usize],
    /// A bit per slot that has entries.
    occupied: [u64; (SLOTS / 64) as usize],
    /// Last tick that was served.
    tick: u64,
    filed: u64,
}

impl Wheel {
    pub(crate) fn reset(&mut self) {
        self.heads.fill(NONE);
        self.occupied.fill(0);
        self.tick = 0;
        self.filed = 0;
    }

    fn mark(&mut self, slot: usize, on: bool) {
        if let Some(word) = self.occupied.get_mut(slot / 64) {
            let bit = 1_u64 << (slot % 64);
            if on {
                *word |= bit;
            } else {
                *word &= !bit;
            }
        }
    }

    /// The first tick after the one served last whose slot has entries.
    fn first_marked(&self) -> Option<u64> {
        let first = self.tick.wrapping_add(1);
        let start = (first % SLOTS) as usize;
        let words = self.occupied.len();
        // The word in which the search begins comes twice: its upper bits first, then the lower.
        for step in 0..=words {
            let index = (start / 64).wrapping_add(step).checked_rem(words)?;
            let upper = u64::MAX << (start % 64);
            let kept = match step {
                0 => upper,
                _ if step == words => !upper,
                _ => u64::MAX,
            };
            let word = self.occupied.get(index).copied().unwrap_or(0) & kept;
            if word != 0 {
                let slot = (index as u64)
                    .wrapping_mul(64)
                    .wrapping_add(word.trailing_zeros().into());
                let ahead = slot.wrapping_sub(first) % SLOTS;
                return Some(first.wrapping_add(ahead));
            }
        }
        None
    }

    fn is_marked(&self, slot: usize) -> bool {
        self.occupied
            .get(slot / 64)
            .is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }
}

/// The links of an entry.
struct Links<'a> {
    next: &'a mut u32,
    previous: &'a mut u32,
    tick: &'a mut u64,
}

impl Tcb {
    /// Whether the wheel will serve it in time for a deadline as it is filed now.
    pub(crate) fn is_filed_for(&self, deadline: u64) -> bool {
        let in_time = self.timer_tick <= (deadline >> TICK_SHIFT).wrapping_add(1);
        deadline == NEVER || self.timer_tick != NEVER && in_time
    }
}

impl Stack<'_> {
    fn timer_links(&mut self, entry: u32) -> Option<Links<'_>> {
        if entry == NONE {
            None
        } else if entry & MINI != 0 {
            let mini = self.minis.get_mut((entry & !MINI) as usize)?;
            Some(Links {
                next: &mut mini.timer_next,
                previous: &mut mini.timer_previous,
                tick: &mut mini.timer_tick,
            })
        } else {
            let tcb = self.tcbs.get_mut(entry as usize)?;
            Some(Links {
                next: &mut tcb.timer_next,
                previous: &mut tcb.timer_previous,
                tick: &mut tcb.timer_tick,
            })
        }
    }

    /// Sees to it that the entry is served at its deadline. Cheap when it is filed early enough.
    pub(crate) fn arm(&mut self, entry: u32, deadline: u64, now: Instant) {
        if deadline == NEVER {
            return;
        }
        let wheel = &mut self.head.wheel;
        if wheel.filed == 0 {
            wheel.tick = now.0 >> TICK_SHIFT;
        }
        let first = wheel.tick.wrapping_add(1);
        let last = wheel.tick.wrapping_add(SLOTS).wrapping_sub(1);
        let tick = (deadline >> TICK_SHIFT).wrapping_add(1).clamp(first, last);
        match self.timer_links(entry) {
            Some(links) if *links.tick != NEVER && *links.tick <= tick => return,
            Some(links) if *links.tick != NEVER => self.disarm(entry),
            Some(_) => {}
            None => return,
        }
        let slot = (tick % SLOTS) as usize;
        let Some(head) = self.head.wheel.heads.get_mut(slot) else {
            return;
        };
        let old = core::mem::replace(head, entry);
        self.head.wheel.mark(slot, true);
        self.head.wheel.filed = self.head.wheel.filed.saturating_add(1);
        if let Some(links) = self.timer_links(old) {
            *links.previous = entry;
        }
        if let Some(links) = self.timer_links(entry) {
            *links.next = old;
            *links.previous = NONE;
            *links.tick = tick;
        }
    }

    /// [`Stack::arm`] for a caller that does not know the time.
    pub(crate) fn arm_soon(&mut self, entry: u32, deadline: u64) {
        let now = Instant(self.head.wheel.tick << TICK_SHIFT);
        self.arm(entry, deadline, now);
    }

    /// Takes an entry off the wheel.
    pub(crate) fn disarm(&mut self, entry: u32) {
        let Some(links) = self.timer_links(entry) else {
            return;
        };
        if *links.tick == NEVER {
            return;
        }
        let slot = (*links.tick % SLOTS) as usize;
        let (next, previous) = (*links.next, *links.previous);
        *links.tick = NEVER;
        *links.next = NONE;
        *links.previous = NONE;
        self.head.wheel.filed = self.head.wheel.filed.saturating_sub(1);
        if let Some(links) = self.timer_links(next) {
            *links.previous = previous;
        }
        if let Some(links) = self.timer_links(previous) {
            *links.next = next;
        } else if let Some(head) = self.head.wheel.heads.get_mut(slot) {
            if *head == entry {
                *head = next;
                if next == NONE {
                    self.head.wheel.mark(slot, false);
                }
            } else {
                self.count(Counter::CorruptList);
            }
        }
    }

    /// The earliest time at which [`Stack::run_timers`] may have something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let wheel = &self.head.wheel;
        if wheel.filed == 0 {
            return None;
        }
        let tick = wheel.first_marked()?;
        Some(Instant(tick << TICK_SHIFT))
    }

    /// Serves every timer that is due; of a crowd as many as the ring of flow changes has room for:
    /// then [`Self::next_deadline`] has passed already.
    pub fn run_timers(&mut self, memory: &mut impl Memory, now: Instant) {
        let now = self.forward(now);
        let due = now.0 >> TICK_SHIFT;
        let wheel = &mut self.head.wheel;
        if due <= wheel.tick {
            return;
        }
        if wheel.filed == 0 {
            wheel.tick = due;
            return;
        }
        let first = wheel.tick.wrapping_add(1);
        let last = due.min(wheel.tick.wrapping_add(SLOTS).wrapping_sub(1));
        let room = self
            .head
            .flow_changes
            .written()
            .wrapping_add(CHANGES_AT_ONCE);
        for tick in first..=last {
            self.head.wheel.tick = tick;
            let slot = (tick % SLOTS) as usize;
            if self.head.wheel.is_marked(slot) {
                self.serve_slot(memory, slot, now, room);
            }
            let is_full = !before(self.head.flow_changes.written(), room);
            if is_full {
                let remains = u64::from(self.head.wheel.is_marked(slot));
                self.head.wheel.tick = tick.wrapping_sub(remains);
                return;
            }
        }
        self.head.wheel.tick = due;
    }

    /// Serves a slot, until the count of flow changes reaches `room`.
    fn serve_slot(&mut self, memory: &mut impl Memory, slot: usize, now: Instant, room: u32) {
        let most = self.tcbs.len().saturating_add(self.minis.len());
        for _ in 0..most {
            let entry = self.head.wheel.heads.get(slot).copied().unwrap_or(NONE);
            if entry == NONE {
                return;
            }
            if self
                .timer_links(entry)
                .is_none_or(|links| *links.tick == NEVER)
            {
                // Not an entry of the wheel: cut the list here.
                if let Some(head) = self.head.wheel.heads.get_mut(slot) {
                    *head = NONE;
                }
                self.head.wheel.mark(slot, false);
                self.count(Counter::CorruptList);
                return;
            }
            self.disarm(entry);
            if entry & MINI != 0 {
                self.serve_mini(memory, entry & !MINI, now);
            } else {
                self.serve_connection(memory, entry, now);
            }
            if !before(self.head.flow_changes.written(), room) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn the_next_slot_is_found_wherever_it_is() {
        for tick in [0, 62, 63, 64, 1000, 1023, 1024, 4_000_000_007] {
            for ahead in [1, 2, 63, 64, 65, 500, 1022, 1023] {
                let mut wheel = Wheel::new_zeroed();
                wheel.tick = tick;
                assert_eq!(wheel.first_marked(), None);
                wheel.mark(((tick + ahead) % SLOTS) as usize, true);
                assert_eq!(wheel.first_marked(), Some(tick + ahead));
                wheel.mark(((tick + 1023) % SLOTS) as usize, true);
                assert_eq!(wheel.first_marked(), Some(tick + ahead));
            }
        }
    }
}
