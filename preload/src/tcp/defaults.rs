//! The host's `net.ipv4.tcp_*` settings, told to the stack when a call needs them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bypass_runtime::{clock, tcp_settings};

use super::with_stack;

/// What was read is believed for so long: a program that connects often does not pay for it.
const FRESH_NS: u64 = 1_000_000_000;
static READ_AT: AtomicU64 = AtomicU64::new(0);
/// tcp_notsent_lowat, bytes.
static NOTSENT_LOWAT: AtomicU32 = AtomicU32::new(u32::MAX);

/// Tells the stack the settings as they are now, unless they were read less than a second ago.
pub fn follow() {
    let now = clock::now().0;
    let last = READ_AT.load(Ordering::Relaxed);
    if last != 0 && now.wrapping_sub(last) < FRESH_NS {
        return;
    }
    READ_AT.store(now.max(1), Ordering::Relaxed);
    let before = with_stack(|_, locked, _| *locked.stack().tcp_defaults());
    let Some(mut settings) = before else {
        return;
    };
    tcp_settings::read(&mut settings);
    if let Some(value) = tcp_settings::notsent_lowat() {
        NOTSENT_LOWAT.store(value, Ordering::Relaxed);
    }
    if Some(settings) != before {
        with_stack(|_, locked, _| *locked.stack().tcp_defaults_mut() = settings);
    }
}

/// TCP_NOTSENT_LOWAT of a socket that has not set it, bytes.
pub fn notsent_lowat() -> u32 {
    NOTSENT_LOWAT.load(Ordering::Relaxed)
}
