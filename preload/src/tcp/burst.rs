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
//! One ready socket is enough when the thread has served the one before with several sends: a web
//! server writes a header, a body and the end of a connection.
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
    /// Sockets that were ready when the thread was last told of any.
    static READY: Cell<usize> = const { Cell::new(0) };
    /// What it has sent since.
    static SENT: Cell<usize> = const { Cell::new(0) };
    /// Whether it had sent more than one thing for each ready socket the time before.
    static IS_WORDY: Cell<bool> = const { Cell::new(false) };
    /// How often it had lost its processor at its last pause.
    static PREEMPTED: Cell<i64> = const { Cell::new(0) };
}

/// So many accelerated sockets are reported ready.
pub fn begins(ready: usize) {
    READY.set(ready);
    if ready == 0 || ready == 1 && !IS_WORDY.get() {
        return;
    }
    match WITHOUT.get() {
        0 => LAST.set(clock::now().0),
        left => WITHOUT.set(left - 1),
    }
}

/// The thread asks for more, or waits for one socket.
pub fn ends() {
    LAST.set(0);
    let ready = READY.replace(0);
    let sent = SENT.replace(0);
    // Who has only accepted, or found too little to answer, says nothing about his answers.
    if ready > 0 && sent > 0 {
        IS_WORDY.set(sent > ready);
    }
}

/// A call that sends: data, or the end of it.
pub fn sends() {
    SENT.set(SENT.get().saturating_add(1));
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
            begins(2);
            assert!(is_in_one(1000) && is_in_one(PAUSE_NS));
            assert!(!is_in_one(PAUSE_NS + 1));
            // Else the test itself has lost its processor, which is forgiven.
            if WITHOUT.get() > 0 {
                break;
            }
        }
        for _ in 0..PENANCE {
            begins(2);
            assert!(!is_in_one(0));
        }
        begins(1);
        assert!(!is_in_one(0));
        begins(2);
        assert!(is_in_one(0));
        ends();
        assert!(!is_in_one(0));
    }

    #[test]
    fn one_socket_is_enough_for_who_sends_several_times() {
        let serve = |sent| {
            begins(1);
            let in_one = is_in_one(0);
            (0..sent).for_each(|_| sends());
            ends();
            in_one
        };
        assert!(!serve(1) && !serve(2));
        assert!(serve(3) && serve(1));
        assert!(!serve(1));
        assert!(!serve(2) && serve(0) && serve(2));
        // What is sent unasked says nothing.
        (0..9).for_each(|_| sends());
        ends();
        assert!(serve(1) && !serve(0));
    }
}
