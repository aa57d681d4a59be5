//! [`Image::check`] of error queues: every place of their slabs that was ever taken is free again
//! or somebody's.

use super::Image;
use super::check::{Problem, ProblemKind};
use crate::image::NONE;
use crate::tcp::notices::{Place, Places};

impl Image<'_> {
    /// The lists of every connection's error queue are as long as their counts say; queues and
    /// notices that are neither free nor somebody's are lost.
    pub(super) fn check_notices(&self, report: &mut dyn FnMut(Problem)) {
        let place = "error queue";
        let (mut queues, mut notices) = (0u32, 0u32);
        for (index, tcb) in (0u32..).zip(self.slabs.tcbs) {
            if tcb.notices == 0 {
                continue;
            }
            queues = queues.saturating_add(1);
            let number = tcb.notices.wrapping_sub(1);
            let Some(queue) = self.slabs.notice_queues.get(number as usize) else {
                let kind = ProblemKind::BadIndex;
                report(Problem { kind, place, index });
                continue;
            };
            for (head, tail, count) in queue.lists() {
                let (length, last) = self.walk_notices(head, notices, report);
                notices = notices.saturating_add(length);
                if length != u32::from(count) || last != tail {
                    let kind = ProblemKind::Count;
                    report(Problem { kind, place, index });
                }
            }
        }
        let head = self.slabs.head;
        let slab = (&head.notice_queues, self.slabs.notice_queues);
        check_places("error queues", slab, queues, report);
        let slab = (&head.notices, self.slabs.notices);
        check_places("notices", slab, notices, report);
    }

    /// Walks a list of notices: its length as far as it is sound, and its last member. `before` is
    /// how many other lists have.
    fn walk_notices(&self, first: u32, before: u32, report: &mut dyn FnMut(Problem)) -> (u32, u32) {
        let slots = self.slabs.notices;
        let (mut length, mut last, mut next) = (0u32, NONE, first);
        while next != NONE {
            let kind = match slots.get(next as usize) {
                None => ProblemKind::BadIndex,
                Some(_) if length.saturating_add(before) as usize >= slots.len() => {
                    ProblemKind::Cycle
                }
                Some(slot) => {
                    length = length.saturating_add(1);
                    (last, next) = (next, slot.next);
                    continue;
                }
            };
            let place = "error queue";
            report(Problem {
                kind,
                place,
                index: next,
            });
            break;
        }
        (length, last)
    }
}

/// So many places of a slab are somebody's; the others that were ever taken are free.
fn check_places<T: Place>(
    place: &'static str,
    (places, slab): (&Places, &[T]),
    owned: u32,
    report: &mut dyn FnMut(Problem),
) {
    let (mut free, mut next) = (0u32, places.free);
    while next != NONE && free < places.used {
        let Some(entry) = slab.get(next as usize) else {
            break;
        };
        free = free.saturating_add(1);
        next = entry.next();
    }
    if next != NONE || free.saturating_add(owned) != places.used {
        report(Problem {
            kind: ProblemKind::Count,
            place,
            index: free,
        });
    }
}
