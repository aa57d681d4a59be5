//! Spinning: looking again and again before going to sleep, where that has paid.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: poll through libc, the signal mask of the wait"
)]

use std::cell::Cell;

use bypass_runtime::clock;
use bypass_stack::Instant;
use libc::{pollfd, sigset_t};

use super::{Interest, signals};
use crate::context::Joined;
use crate::symbols;

/// What a thread has found by spinning. It costs nothing where answers come soon; where they do not
/// come in time, or cannot because the program that makes them waits for this processor, it stops.
#[derive(Clone, Copy, Debug)]
struct Habit {
    /// Spins in vain since the last that found something.
    misses: u32,
    /// Waits that begin with sleep before the next attempt.
    rest: u32,
}

impl Habit {
    /// Misses in a row that mean nothing yet.
    const PATIENCE: u32 = 4;
    /// Most waits without an attempt, as a power of two: with 100 µs of spinning in every 257th
    /// wait of 101 µs or more, at most 1 in 250 of a processor's time is lost.
    const LONGEST: u32 = 8;

    const fn new() -> Self {
        Self { misses: 0, rest: 0 }
    }

    /// Whether this wait begins with spinning.
    fn wants(&mut self) -> bool {
        let wants = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        wants
    }

    /// Learns whether spinning found something.
    fn learn(&mut self, found: bool) {
        if found {
            *self = Self::new();
            return;
        }
        self.misses = self.misses.saturating_add(1);
        if let Some(over) = self.misses.checked_sub(Self::PATIENCE) {
            self.rest = 1 << over.min(Self::LONGEST);
        }
    }
}

thread_local! {
    static HABIT: Cell<Habit> = const { Cell::new(Habit::new()) };
}

/// Looks again and again for at most `nanoseconds`, unless this thread has done so in vain too
/// often; whether the interest became ready.
pub fn spin(
    joined: &Joined,
    interest: &mut Interest<'_>,
    deadline: Option<Instant>,
    nanoseconds: u64,
    mask: *const sigset_t,
) -> bool {
    let mut habit = HABIT.get();
    if nanoseconds == 0 || !habit.wants() {
        HABIT.set(habit);
        return false;
    }
    let end = clock::now().0.saturating_add(nanoseconds);
    let end = deadline.map_or(end, |deadline| end.min(deadline.0));
    let found = look_until(joined, interest, end, mask);
    habit.learn(found);
    HABIT.set(habit);
    found
}

/// Looks until something is ready, a signal pends or the time `end` has come.
fn look_until(
    joined: &Joined,
    interest: &mut Interest<'_>,
    end: u64,
    mask: *const sigset_t,
) -> bool {
    /// Looks between two questions to the kernel descriptors.
    const KERNEL_EVERY: u32 = 256;
    let mut looks = 0_u32;
    loop {
        if let Ok(mut locked) = joined.attachment.try_lock() {
            // Not before the lock is ours: the time of one stack goes forwards only.
            locked.pump(clock::now());
            if (interest.ready)(&mut locked) {
                return true;
            }
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(KERNEL_EVERY) {
            if kernel_ready(interest.fds) {
                return true;
            }
            // SAFETY: the mask of the wait.
            if unsafe { signals::pending(mask) } {
                return false;
            }
        }
        if clock::now().0 >= end {
            return false;
        }
        std::hint::spin_loop();
    }
}

/// Whether one of the kernel descriptors is ready now.
fn kernel_ready(fds: &mut [pollfd]) -> bool {
    // SAFETY: the slice is writable for its length; no waiting.
    let ready =
        unsafe { symbols::poll::original()(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) };
    ready > 0
}

#[cfg(test)]
mod tests {
    use super::Habit;

    /// How many of so many waits spin, when spinning always has this outcome.
    fn spins(habit: &mut Habit, waits: u32, found: bool) -> u32 {
        (0..waits)
            .map(|_| {
                let wants = habit.wants();
                if wants {
                    habit.learn(found);
                }
                u32::from(wants)
            })
            .sum()
    }

    #[test]
    fn what_never_pays_ends_and_what_pays_begins_again() {
        let mut habit = Habit::new();
        assert_eq!(spins(&mut habit, 1000, true), 1000);
        assert_eq!(spins(&mut habit, 4, false), 4);
        let of_many = spins(&mut habit, 100_000, false);
        assert!((380..420).contains(&of_many), "{of_many}");
        let again = spins(&mut habit, 1000, true);
        assert!(again >= 1000 - 257, "{again}");
    }
}
