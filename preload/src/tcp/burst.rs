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
//! A program that computes between its calls is in no burst: its answers leave at once.

use std::cell::Cell;

use bypass_runtime::clock;
use bypass_stack::Instant;

/// Longest pause between two calls of a burst.
const PAUSE_NS: u64 = 50_000;

thread_local! {
    /// When this thread's burst had its last call, nanoseconds; 0 = it is in none.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// So many accelerated sockets were reported ready.
pub fn begins(ready: usize) {
    if ready > 1 {
        LAST.set(clock::now().0);
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
    close
}
