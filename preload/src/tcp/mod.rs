//! TCP on accelerated sockets: listen, accept, connect, receive, send, shut down, close.
//!
//! A *listener's* shadow listens too and serves what comes by other interfaces; `accept` takes from
//! both. A *connection's* shadow is a kernel socket without a connection: it gives the descriptor
//! its number and keeps options; everything that moves is the endpoint's, until the connection is
//! handed over: then the shadow becomes it.

pub mod accept;
pub mod burst;
pub mod changed;
pub mod close;
pub mod connect;
pub mod control;
pub mod defaults;
pub mod fast_open;
pub mod foreign;
pub mod guest;
pub mod handover;
pub mod heir;
pub mod info;
pub mod inherited;
pub mod listen;
pub mod name;
pub mod notices;
pub mod options;
pub mod ports;
pub mod receive;
pub mod send;
pub mod urgent;

use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_stack::{EndpointId, Instant, TcpOptions};

use crate::context::{self, Joined};
use crate::wait;
use crate::{config, decide};

/// Bits of `TcpOptions::shim_flags`.
pub mod flags {
    /// connect has been called and its end not been told to the program yet.
    pub const CONNECTING: u32 = 1;
}

/// Whether TCP is accelerated at all (it is, but for BYPASS_TCP=0).
pub fn is_on() -> bool {
    config::get().options.tcp
}

/// Runs `change` on the locked stack; `None` in a signal handler that interrupted the lock's owner.
/// In a burst what is to be sent waits for its next call.
pub fn with_stack<T>(
    change: impl FnOnce(&'static Joined, &mut Locked<'_>, Instant) -> T,
) -> Option<T> {
    in_burst(true, change)
}

/// The same for a call with which a program turns to another socket: what it has sent on the last
/// one is complete.
pub fn with_next<T>(
    change: impl FnOnce(&'static Joined, &mut Locked<'_>, Instant) -> T,
) -> Option<T> {
    in_burst(false, change)
}

/// The locked stack, for a call that sends nothing itself: in a burst what others have sent waits
/// on.
pub fn lock(joined: &Joined) -> Option<Locked<'_>> {
    lock_in_burst(joined, true).map(|(locked, _)| locked)
}

fn lock_in_burst(joined: &Joined, between: bool) -> Option<(Locked<'_>, Instant)> {
    let mut locked = joined.attachment.lock().ok()?;
    let now = clock::now();
    if burst::goes_on(now) {
        locked.hold_back(now, between);
    }
    Some((locked, now))
}

fn in_burst<T>(
    between: bool,
    change: impl FnOnce(&'static Joined, &mut Locked<'_>, Instant) -> T,
) -> Option<T> {
    let joined = context::joined()?;
    let (mut locked, now) = lock_in_burst(joined, between)?;
    let result = change(joined, &mut locked, now);
    let rings = !locked.holds_back();
    drop(locked);
    if rings {
        burst::called();
    }
    Some(result)
}

/// The options of an endpoint, as they are now.
pub fn options_of(locked: &mut Locked<'_>, endpoint: EndpointId) -> Option<TcpOptions> {
    locked.stack().tcp_options(endpoint).ok().copied()
}

/// Maps queue pairs that have come since the last look. Not under the lock.
pub fn refresh(joined: &'static Joined, generation: u32) {
    if joined.is_stale(generation) {
        joined.refresh();
    }
}

/// A deadline `timeout_ms` from now; 0 = never.
pub fn deadline(timeout_ms: u32) -> Option<Instant> {
    (timeout_ms != 0).then(|| {
        let span = u64::from(timeout_ms).saturating_mul(1_000_000);
        Instant(clock::now().0.saturating_add(span))
    })
}

/// Gives the filters of connections that have ended back to the daemon.
pub fn return_filters() {
    loop {
        let ended = with_stack(|_, locked, _| {
            let mut filters = [0_u32; 32];
            let mut count = 0;
            while count < filters.len()
                && let Some(ended) = locked.stack().take_ended()
            {
                filters[count] = ended.filter;
                count += 1;
            }
            (filters, count)
        });
        let Some((filters, count)) = ended else {
            return;
        };
        for &filter in &filters[..count] {
            decide::remove_filter(filter);
        }
        if count < filters.len() {
            return;
        }
    }
}

/// Whether an interrupted call with this timeout goes on (signal(7): never with a timeout).
pub fn restarts(timeout_ms: u32) -> bool {
    timeout_ms == 0 && wait::signals::all_restart()
}
