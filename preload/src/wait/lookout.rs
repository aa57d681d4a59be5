//! Whether a sleeper watches the queues itself, or leaves that to others.
//!
//! A frame makes a queue readable for every sleeper of the stack, and one of them has use for it. A
//! thread that waits for a quiet socket beside a busy one (a listener's beside the workers') would
//! be woken by each of their frames. After some such wakes it sleeps with its bell only: whoever
//! takes the frames in rings it. When nobody does, it is back at the queues after some
//! milliseconds, or the daemon takes them in (docs/adr/0008).

use std::cell::Cell;

/// What a thread has found out by waking.
#[derive(Clone, Copy, Debug)]
struct Habit {
    /// Wakes in a row that were for others, who had taken the frames in.
    vain: u32,
}

impl Habit {
    /// Such wakes that mean nothing yet.
    const PATIENCE: u32 = 3;
    /// First sleep without the queues, and how often it doubles.
    const SHORTEST_NS: u64 = 2_000_000;
    const DOUBLINGS: u32 = 5;

    /// How long the next sleep may last without the queues; `None` = it watches them.
    fn rests_ns(self) -> Option<u64> {
        let over = self.vain.checked_sub(Self::PATIENCE)?;
        Some(Self::SHORTEST_NS << over.min(Self::DOUBLINGS))
    }

    /// Learns whether a wake was for others only.
    fn learn(&mut self, in_vain: bool) {
        self.vain = if in_vain {
            self.vain.saturating_add(1)
        } else {
            0
        };
    }
}

thread_local! {
    static HABIT: Cell<Habit> = const { Cell::new(Habit { vain: 0 }) };
}

/// How long this thread's next sleep may last without the queues, nanoseconds; `None` = it watches
/// them.
pub fn rests_ns() -> Option<u64> {
    HABIT.get().rests_ns()
}

/// Learns from a wake: whether this thread has something now, and whether others took frames in
/// while it slept.
pub fn learn(ready: bool, attended: bool) {
    let mut habit = HABIT.get();
    habit.learn(attended && !ready);
    HABIT.set(habit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wakes_for_others_rests_until_they_are_gone() {
        let mut habit = Habit { vain: 0 };
        for _ in 0..Habit::PATIENCE {
            assert_eq!(habit.rests_ns(), None);
            habit.learn(true);
        }
        assert_eq!(habit.rests_ns(), Some(Habit::SHORTEST_NS));
        (0..100).for_each(|_| habit.learn(true));
        assert_eq!(habit.rests_ns(), Some(64_000_000));
        habit.learn(false);
        assert_eq!(habit.rests_ns(), None);
    }
}
