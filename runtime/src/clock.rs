//! The two clocks: monotonic for the stack, real time for receive timestamps.

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

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}
