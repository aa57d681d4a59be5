//! Whether a sleeper watches the queues itself, or leaves that to others.
//!
//! A frame makes a queue readable for every sleeper of the stack, and one of them has use for it. A
//! thread that waits for a quiet socket beside a busy one (a listener's beside the workers') would
//! be woken by each of their frames. After some such wakes it sleeps with its bell only: whoever
//! takes the frames in rings it. When nobody does, it is back at the queues after some
//! milliseconds, or the daemon takes them in (docs/adr/0008, 0024).

use std::cell::Cell;

use bypass_stack::Instant;

/// What ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A queue was readable.
    Frames,
    /// The time without the queues was over.
    RestOver,
    /// Anything else: the bell, a descriptor of the program, a deadline, a signal.
    Other,
}

/// What the look after it has shown.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// This thread has something to do.
    pub ready: bool,
    /// Frames lay in the queues.
    pub found_frames: bool,
    /// Somebody else has taken frames in during the sleep, or waits for those that lay there.
    pub attended: bool,
}

/// What a thread has found out by waking.
#[derive(Clone, Copy, Debug)]
struct Habit {
    /// Wakes in a row by frames that were not for this thread, with others there to take them in.
    vain: u32,
    /// When the last one was.
    last: Instant,
}

impl Habit {
    /// Such wakes that mean nothing yet.
    const PATIENCE: u32 = 3;
    /// First sleep without the queues, and how often it doubles.
    const SHORTEST_NS: u64 = 2_000_000;
    const DOUBLINGS: u32 = 3;
    /// What was found out longer ago means nothing any more.
    const FRESH_NS: u64 = 100_000_000;

    const fn new() -> Self {
        Self {
            vain: 0,
            last: Instant(0),
        }
    }

    /// How long the next sleep may last without the queues; `None` = it watches them.
    fn rests_ns(self, now: Instant) -> Option<u64> {
        let over = self.vain.checked_sub(Self::PATIENCE)?;
        let is_fresh = now.since(self.last).0 <= Self::FRESH_NS;
        is_fresh.then_some(Self::SHORTEST_NS << over.min(Self::DOUBLINGS))
    }

    /// Learns from a wake. Frames that lay there when a rest was over may have come a moment ago,
    /// or nobody watches: the next sleep does.
    fn learn(&mut self, wake: Wake, look: Look, now: Instant) {
        if look.ready || wake == Wake::RestOver && !look.attended {
            *self = Self::new();
        } else if wake == Wake::RestOver && look.found_frames {
            self.vain = Self::PATIENCE - 1;
        } else if wake != Wake::Other && look.attended {
            self.vain = self.vain.saturating_add(1);
            self.last = now;
        }
    }
}

thread_local! {
    static HABIT: Cell<Habit> = const { Cell::new(Habit::new()) };
}

/// How long this thread's next sleep may last without the queues, nanoseconds; `None` = it watches
/// them.
pub fn rests_ns(now: Instant) -> Option<u64> {
    HABIT.get().rests_ns(now)
}

/// Learns from a wake.
pub fn learn(wake: Wake, look: Look, now: Instant) {
    let mut habit = HABIT.get();
    habit.learn(wake, look, now);
    HABIT.set(habit);
}

/// This thread has something to do, without a sleep.
pub fn has_work() {
    HABIT.set(Habit::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant(1_000_000_000);

    fn learns(habit: &mut Habit, wake: Wake, (ready, found_frames, attended): (bool, bool, bool)) {
        let look = Look {
            ready,
            found_frames,
            attended,
        };
        habit.learn(wake, look, NOW);
    }

    fn resting() -> Habit {
        let mut habit = Habit::new();
        for _ in 0..Habit::PATIENCE {
            assert_eq!(habit.rests_ns(NOW), None);
            learns(&mut habit, Wake::Frames, (false, false, true));
        }
        assert_eq!(habit.rests_ns(NOW), Some(Habit::SHORTEST_NS));
        habit
    }

    #[test]
    fn whoever_wakes_for_others_rests_while_they_are_there() {
        let mut habit = resting();
        (0..100).for_each(|_| learns(&mut habit, Wake::RestOver, (false, false, true)));
        assert_eq!(habit.rests_ns(NOW), Some(16_000_000));
        let later = Instant(NOW.0 + Habit::FRESH_NS + 1);
        assert_eq!(habit.rests_ns(later), None);
    }

    #[test]
    fn what_shows_that_nobody_else_watches_ends_the_rest() {
        for (wake, look) in [
            (Wake::RestOver, (false, true, true)),
            (Wake::RestOver, (false, false, false)),
            (Wake::Other, (true, false, true)),
            (Wake::Frames, (true, true, false)),
        ] {
            let mut habit = resting();
            learns(&mut habit, wake, look);
            assert_eq!(habit.rests_ns(NOW), None, "{wake:?} {look:?}");
        }
    }

    #[test]
    fn other_wakes_mean_nothing() {
        let mut habit = Habit::new();
        for _ in 0..100 {
            learns(&mut habit, Wake::Other, (false, false, true));
            learns(&mut habit, Wake::Frames, (false, true, false));
        }
        assert_eq!(habit.rests_ns(NOW), None);
        let mut habit = resting();
        learns(&mut habit, Wake::Other, (false, false, true));
        assert_eq!(habit.rests_ns(NOW), Some(Habit::SHORTEST_NS));
    }
}
