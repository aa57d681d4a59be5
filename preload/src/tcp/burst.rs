//! Bursts: a program that was told of several ready sockets serves one after the other and comes
//! back to ask for more. What it sends meanwhile need not ring a doorbell each time, nor leave
//! before what it writes next.
//!
//! ```text
//!   epoll_wait -> 5 events    begins
//!   recv, send, recv, send    goes on, while the calls follow each other closely
//!   epoll_wait                ends: everything leaves, with one doorbell
//! ```
//!
//! A program that computes between its calls is in no burst: its answers leave at once. It is found
//! out by the first pause, and what was held back then has waited for its end (or for the daemon);
//! so the thread's next bursts are none either, unless it had only lost its processor.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: asks the kernel about the calling thread"
)]

use std::cell::Cell;

use bypass_runtime::clock;
use bypass_stack::Instant;

/// Longest pause between two calls of a burst.
const PAUSE_NS: u64 = 50_000;
/// Bursts that a thread does without after one with a pause.
const PENANCE: u32 = 16;

thread_local! {
    /// When this thread's burst had its last call, nanoseconds; 0 = it is in none.
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// Bursts that it still does without.
    static WITHOUT: Cell<u32> = const { Cell::new(0) };
    /// How often it had lost its processor at its last pause.
    static PREEMPTED: Cell<i64> = const { Cell::new(0) };
}

/// So many accelerated sockets are reported ready.
pub fn begins(ready: usize, now: Instant) {
    if ready <= 1 {
        return;
    }
    match WITHOUT.get() {
        0 => LAST.set(now.0),
        left => WITHOUT.set(left - 1),
    }
}

/// The thread asks for more, or waits for one socket.
pub fn ends() {
    LAST.set(0);
}

/// Whether a call now is one of a burst.
#[must_use]
pub fn goes_on(now: Instant) -> bool {
    let last = LAST.get();
    if last == 0 {
        return false;
    }
    let close = now.0.saturating_sub(last) <= PAUSE_NS;
    LAST.set(if close { now.0 } else { 0 });
    if !close {
        let preempted = preemptions();
        if PREEMPTED.replace(preempted) == preempted {
            WITHOUT.set(PENANCE);
        }
    }
    close
}

/// A call of a burst is over: the doorbell that it may have rung is no pause of the program's.
pub fn called() {
    if LAST.get() != 0 {
        LAST.set(clock::now().0);
    }
}

/// How often this thread has lost its processor to another.
fn preemptions() -> i64 {
    // SAFETY: plain integers; all zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is writable.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_in_one(after_ns: u64) -> bool {
        goes_on(Instant(LAST.get().max(1) + after_ns))
    }

    #[test]
    fn one_that_paused_is_not_trusted_for_a_while() {
        loop {
            PREEMPTED.set(preemptions());
            begins(2, clock::now());
            assert!(is_in_one(1000) && is_in_one(PAUSE_NS));
            assert!(!is_in_one(PAUSE_NS + 1));
            // Else the test itself has lost its processor, which is forgiven.
            if WITHOUT.get() > 0 {
                break;
            }
        }
        for _ in 0..PENANCE {
            begins(2, clock::now());
            assert!(!is_in_one(0));
        }
        begins(1, clock::now());
        assert!(!is_in_one(0));
        begins(2, clock::now());
        assert!(is_in_one(0));
        ends();
        assert!(!is_in_one(0));
    }
}
