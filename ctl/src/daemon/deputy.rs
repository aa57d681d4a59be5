//! Running stacks for programs that do not: that compute, sleep elsewhere or are stopped while
//! frames or timers are due, or frames wait for room to be sent.
//!
//! ```text
//!   idle --a queue has frames--> looking --nobody has pumped at two looks in a row--> pump --+
//!    ^                            | ^ ^-- somebody has: later, at most WATCHING -+           |
//!    +-- nothing in the queues ---+ +--------------------------------------------------------+
//! ```
//!
//! Two looks, because a processor that was away for a while (a virtual machine's) comes back with
//! both us and the program due, and we run first: what lies in the ring then would be moved to a
//! socket that keeps less than the ring, and the rest lost, a moment before the program takes all.
//!
//! While a stack is idle its queues are in the epoll set, each for one event; while it is looked at
//! they are not, so that the frames of a program that does its own work wake nobody here. Frames
//! that are taken in go to their sockets' queues, as far as those have room, and what does not fit
//! is counted there, as the kernel would.
//!
//! An idle stack with a timer has an alarm besides, a little behind the timer: a program that waits
//! in one of our calls has run it by then. The sweep once a second gives one to a stack whose
//! programs have armed a timer since without getting a frame.

use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::event::epoll::EventFlags;

use super::counters::Counter;
use super::server::{Server, Token};
use super::stacks::{Busy, StackEntry};

/// How long a program may leave frames in a queue.
const GRACE: Duration = Duration::from_millis(2);
/// Longest pause between two looks at a stack whose programs do their own work: each costs a
/// program that waits on the same processor some 20 us, so looks must be rare against the round
/// trips of a ping-pong (1 in 300 here) or they are its 99th percentile.
const WATCHING: Duration = Duration::from_millis(16);
/// Frames that may come between two looks: half of what a ring holds.
const BETWEEN: u32 = 1024;
/// Pause between two pumps while nobody else pumps.
const PUMPING: Duration = Duration::from_millis(1);
/// Pauses after a pump are at least so many times as long as it took: no stack gets more than a
/// quarter of the daemon's time.
const SHARE: u32 = 3;
/// Longest pause when the lock is not to be had.
const STUCK: Duration = Duration::from_millis(128);
/// How long a program that was found late has to run before its frames are taken in for it: much
/// longer than a wake-up, short against the time in which the second half of a ring fills.
const SECOND_LOOK: Duration = Duration::from_micros(500);
/// Looks that find the queues empty, until they are left to the epoll set again.
const QUIET_LOOKS: u32 = 2;

/// Alarms are at most so far off: the sweep's time.
const ALARM: Duration = Duration::from_secs(1);

/// The next look at what is due in an idle stack without a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alarm {
    at: Instant,
    /// Pause after it, if it then finds the same due.
    pause: Duration,
}

impl Alarm {
    /// Behind what is due in `left`, and not before `pause`.
    fn behind(left: Duration, pause: Duration) -> Self {
        let wait = left.saturating_add(GRACE).min(ALARM).max(pause);
        Self {
            at: Instant::now() + wait,
            pause,
        }
    }
}

/// The next look at a stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    at: Instant,
    pause: Duration,
    /// [`StackEntry::pumps`] at the last look.
    pumps: u32,
    /// [`StackEntry::frames`] at the last look.
    frames: u32,
    /// Looks in a row at which no frame had come since the look before.
    quiet: u32,
    /// Whether frames were left lying at the last look too.
    is_late: bool,
}

impl Look {
    /// The first one.
    fn first(stack: &StackEntry) -> Self {
        Self {
            at: Instant::now() + GRACE,
            pause: GRACE,
            pumps: stack.pumps(),
            frames: stack.frames(),
            quiet: 0,
            is_late: false,
        }
    }

    /// The pause after one in which the programs took `came` frames: twice as long, if no more than
    /// [`BETWEEN`] come in it at that rate.
    fn pause_for(self, came: u32) -> Duration {
        let fills = self.pause * BETWEEN / came.max(1);
        (self.pause * 2).min(fills).clamp(GRACE, WATCHING)
    }

    fn again(self, pause: Duration) -> Self {
        Self {
            at: Instant::now() + pause,
            pause,
            ..self
        }
    }

    /// What follows from what a look has seen.
    fn verdict(self, seen: Seen) -> Verdict {
        if seen.pumps != self.pumps {
            let came = seen.frames.wrapping_sub(self.frames);
            let is_quiet = came == 0 && !seen.is_readable;
            let quiet = if is_quiet { self.quiet + 1 } else { 0 };
            if quiet == QUIET_LOOKS {
                return Verdict::Idle;
            }
            return Verdict::Again(Self {
                pumps: seen.pumps,
                frames: seen.frames,
                quiet,
                is_late: false,
                ..self.again(self.pause_for(came))
            });
        }
        if !seen.is_readable {
            Verdict::Idle
        } else if self.is_late {
            Verdict::Pump
        } else {
            Verdict::Again(Self {
                at: Instant::now() + SECOND_LOOK,
                is_late: true,
                ..self
            })
        }
    }
}

/// What a look sees.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// [`StackEntry::pumps`].
    pumps: u32,
    /// [`StackEntry::frames`].
    frames: u32,
    /// Whether a queue has frames.
    is_readable: bool,
}

/// What is to be done after a look.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// The queues go back into the epoll set.
    Idle,
    /// Only this look.
    Again(Look),
    /// The frames are to be taken in.
    Pump,
}

impl Server {
    /// Takes the queues of an idle stack, or new ones, into the epoll set.
    pub(super) fn watch_queues(&self, uid: u32) {
        let Some(stack) = self.stacks.get(uid) else {
            return;
        };
        for (index, queue) in stack.open_queues() {
            // Those that are there already are told so, and stay as they are. Without a place in
            // the set nobody deputises; the programs go on all the same.
            let data = Token::Queue(uid, index).data();
            let _ = epoll::add(&self.epoll, &queue.fd, data, WATCHED);
        }
    }

    /// Takes the queues of an interface out of it, which their end would not: programs have copies
    /// of their descriptors.
    pub(super) fn unwatch_queues(&self, stack: &StackEntry, ifindex: u32) {
        for (_, queue) in stack.open_queues() {
            if queue.ifindex == ifindex {
                let _ = epoll::delete(&self.epoll, &queue.fd);
            }
        }
    }

    /// A queue of a stack that was idle has frames, or an error, which ends with the interface.
    pub(super) fn queue_event(&mut self, uid: u32, flags: EventFlags) {
        if let Some(stack) = self.stacks.get_mut(uid)
            && flags.contains(EventFlags::IN)
        {
            let first = Look::first(stack);
            stack.look.get_or_insert(first);
            // A disabled entry would still be called, and lock, for every frame.
            for (_, queue) in stack.open_queues() {
                let _ = epoll::delete(&self.epoll, &queue.fd);
            }
        }
    }

    /// When the next look is due.
    pub(super) fn look_due(&self) -> Option<Instant> {
        self.stacks.iter().filter_map(StackEntry::look_at).min()
    }

    /// Gives idle stacks with something due an alarm, if they have none yet.
    pub(super) fn set_alarms(&mut self) {
        let users: Vec<u32> = self.stacks.iter().map(|stack| stack.uid).collect();
        for uid in users {
            if let Some(stack) = self.stacks.get_mut(uid) {
                stack.set_alarm();
            }
        }
    }

    /// Looks at every stack that is due for it.
    pub(super) fn look_at_stacks(&mut self, now: Instant) {
        let due: Vec<u32> = self
            .stacks
            .iter()
            .filter(|stack| stack.look_at().is_some_and(|at| at <= now))
            .map(|stack| stack.uid)
            .collect();
        for uid in due {
            let Some(stack) = self.stacks.get_mut(uid) else {
                continue;
            };
            let (pumped, has_become_idle) = stack.look_now();
            match pumped {
                Some(Ok(frames)) => {
                    self.counters.add(Counter::StacksPumped);
                    self.counters.add_many(Counter::FramesPumped, frames as u64);
                }
                Some(Err(Busy)) => self.counters.add(Counter::StackLocksBusy),
                None => {}
            }
            if has_become_idle {
                self.watch_queues(uid);
            }
        }
    }
}

/// One event, then none until it is asked for again.
const WATCHED: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);

impl StackEntry {
    /// When it is looked at next.
    fn look_at(&self) -> Option<Instant> {
        match self.look {
            Some(look) => Some(look.at),
            None => self.alarm.map(|alarm| alarm.at),
        }
    }

    /// An alarm for what is due, if it is idle and has none.
    fn set_alarm(&mut self) {
        if self.look.is_none() && self.alarm.is_none() {
            let left = self.due_in();
            self.alarm = left.map(|left| Alarm::behind(left, Duration::ZERO));
        }
    }

    /// A look that is due: what came of a pump, if it was needed, and whether the queues are to be
    /// watched again.
    fn look_now(&mut self) -> (Option<Result<usize, Busy>>, bool) {
        let Some(look) = self.look else {
            return (self.serve_alarm(), false);
        };
        let (next, pumped) = self.look_again(look);
        self.look = next;
        self.alarm = None;
        self.set_alarm();
        (pumped, next.is_none())
    }

    /// An alarm of an idle stack: what came of a pump, if something is due still.
    fn serve_alarm(&mut self) -> Option<Result<usize, Busy>> {
        let alarm = self.alarm.take()?;
        if self.due_in()? > Duration::ZERO {
            self.set_alarm();
            return None;
        }
        let begun = Instant::now();
        let pumped = self.pump();
        // What cannot be done, be it for a busy lock or a full device, is tried ever less often.
        let left = self.due_in();
        let pause = match left {
            Some(Duration::ZERO) => (alarm.pause * 2).clamp(PUMPING, STUCK),
            _ => Duration::ZERO,
        };
        let pause = pause.max(begun.elapsed() * SHARE);
        self.alarm = left.map(|left| Alarm::behind(left, pause));
        Some(pumped)
    }

    /// One look: when the next one is, if at all, and what came of a pump, if it was needed.
    fn look_again(&self, look: Look) -> (Option<Look>, Option<Result<usize, Busy>>) {
        let seen = Seen {
            pumps: self.pumps(),
            frames: self.frames(),
            is_readable: self.is_readable(),
        };
        match look.verdict(seen) {
            Verdict::Idle => (None, None),
            Verdict::Again(next) => (Some(next), None),
            Verdict::Pump => {
                let begun = Instant::now();
                let pumped = self.pump();
                let pause = match pumped {
                    Ok(_) => PUMPING.max(begun.elapsed() * SHARE),
                    Err(Busy) => (look.pause * 2).clamp(GRACE * 2, STUCK),
                };
                let next = Look {
                    pumps: self.pumps(),
                    frames: self.frames(),
                    quiet: 0,
                    ..look.again(pause)
                };
                (Some(next), Some(pumped))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        Look {
            at: Instant::now(),
            pause: GRACE,
            pumps: 7,
            frames: 100,
            quiet: 0,
            is_late: false,
        }
    }

    fn seen(pumps: u32, frames: u32, is_readable: bool) -> Seen {
        Seen {
            pumps,
            frames,
            is_readable,
        }
    }

    #[test]
    fn a_program_has_time_to_run_before_its_frames_are_taken_in() {
        let Verdict::Again(second) = look().verdict(seen(7, 100, true)) else {
            panic!("one look is not enough to pump");
        };
        assert!(second.at <= Instant::now() + SECOND_LOOK);
        assert!(matches!(second.verdict(seen(7, 100, true)), Verdict::Pump));
        assert!(matches!(second.verdict(seen(7, 100, false)), Verdict::Idle));
        // It was only late: the next time it is given time again.
        let Verdict::Again(next) = second.verdict(seen(8, 900, true)) else {
            panic!("its own work");
        };
        assert!(!next.is_late);
        assert!(matches!(
            next.verdict(seen(8, 900, true)),
            Verdict::Again(_)
        ));
    }

    #[test]
    fn a_stack_that_gets_nothing_goes_back_to_sleep() {
        let Verdict::Again(once) = look().verdict(seen(8, 100, false)) else {
            panic!("one quiet look");
        };
        assert!(matches!(once.verdict(seen(9, 100, false)), Verdict::Idle));
        let Verdict::Again(busy) = once.verdict(seen(9, 101, false)) else {
            panic!("a frame has come");
        };
        assert_eq!(busy.quiet, 0);
    }

    #[test]
    fn looks_are_as_rare_as_the_rate_allows() {
        assert_eq!(look().pause_for(0), GRACE * 2);
        assert_eq!(look().pause_for(BETWEEN * 9), GRACE);
        let rare = Look {
            pause: WATCHING,
            ..look()
        };
        assert_eq!(rare.pause_for(0), WATCHING);
        assert_eq!(rare.pause_for(BETWEEN * 2), WATCHING / 2);
    }
}
