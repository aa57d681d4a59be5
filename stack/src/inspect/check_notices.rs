//! [`Image::check`] of error queues: every place of their slabs that was ever taken is free again
//! or somebody's.

use super::Image;
use super::check::{Problem, ProblemKind, walk};
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
        let behind = |index, _| {
            let slot = slots.get(index as usize).ok_or(ProblemKind::BadIndex)?;
            Ok(slot.next)
        };
        let most = slots.len().saturating_sub(before as usize);
        walk("error queue", first, most, &behind, report)
    }
}

/// So many places of a slab are somebody's; the others that were ever taken are free.
fn check_places<T: Place>(
    place: &'static str,
    (places, slab): (&Places, &[T]),
    owned: u32,
    report: &mut dyn FnMut(Problem),
) {
    let behind = |index, _| {
        let entry = slab.get(index as usize).ok_or(ProblemKind::BadIndex)?;
        Ok(entry.next())
    };
    // Whatever it says of itself, a slab has no more than it has.
    let most = slab.len().min(places.used as usize);
    let free = walk(place, places.free, most, &behind, report).0;
    if free.saturating_add(owned) != places.used {
        report(Problem {
            kind: ProblemKind::Count,
            place,
            index: free,
        });
    }
}
