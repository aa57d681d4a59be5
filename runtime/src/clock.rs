//! The two clocks: monotonic for the stack, real time for receive timestamps.
//!
//! They are read through the vDSO by rustix, not by libc's function, which other libraries replace
//! (libfaketime): the times in a stack are shared by processes. Valgrind takes the vDSO away and
//! leaves its address in /proc/self/auxv, where rustix would look; under it libc's function is
//! used.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: two calls of libc, which take numbers"
)]

use std::sync::atomic::{AtomicU8, Ordering};

use bypass_stack::Instant;
use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` now (through the vDSO: no system call).
#[must_use]
pub fn now() -> Instant {
    Instant(nanoseconds(ClockId::Monotonic))
}

/// `CLOCK_REALTIME` now, in nanoseconds since 1970.
#[must_use]
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

const UNKNOWN: u8 = 0;
const THERE: u8 = 1;
const HIDDEN: u8 = 2;

/// Whether the program sees a vDSO.
static VDSO: AtomicU8 = AtomicU8::new(UNKNOWN);

#[inline]
fn nanoseconds(clock: ClockId) -> u64 {
    if VDSO.load(Ordering::Relaxed) != THERE && look() == HIDDEN {
        return by_libc(clock);
    }
    let time = clock_gettime(clock);
    since_zero(time.tv_sec, time.tv_nsec)
}

fn since_zero(seconds: i64, nanoseconds: i64) -> u64 {
    (seconds as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(nanoseconds as u64)
}

/// Asks once whether there is a vDSO: whoever hides it takes it out of the vector that libc has.
#[cold]
fn look() -> u8 {
    let known = VDSO.load(Ordering::Relaxed);
    if known != UNKNOWN {
        return known;
    }
    // SAFETY: reads libc's copy of the auxiliary vector.
    let address = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let found = if address == 0 { HIDDEN } else { THERE };
    VDSO.store(found, Ordering::Relaxed);
    found
}

#[cold]
fn by_libc(clock: ClockId) -> u64 {
    let clock = match clock {
        ClockId::Realtime => libc::CLOCK_REALTIME,
        _ => libc::CLOCK_MONOTONIC,
    };
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is writable; both clocks are always there.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    since_zero(time.tv_sec, time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_read_the_same_clocks() {
        for clock in [ClockId::Monotonic, ClockId::Realtime] {
            let before = nanoseconds(clock);
            let between = by_libc(clock);
            let after = nanoseconds(clock);
            assert!((before..=after).contains(&between), "{clock:?}");
        }
    }
}
