//! Our own descriptors in the host process: kept high, close-on-exec, hidden and protected.
//!
//! A program that closes "everything from 3 on" (inetd, CPython's children, daemons) must not cut
//! our queues, and `dup2` to a number must not hit them.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: takes ownership of descriptor numbers it just made"
)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::process::{Resource, getrlimit};

use crate::fdtable::{self, Entry};

/// How far below the limit our descriptors begin.
const ROOM: u64 = 256;
/// Programs that raise the limit to millions would make the kernel grow its table: stay below.
const CEILING: u64 = 16_384;
/// Below this, programs put their own.
const FLOOR: u64 = 256;

/// First number to try.
fn base() -> i32 {
    let limit = getrlimit(Resource::Nofile)
        .current
        .unwrap_or(CEILING)
        .min(CEILING);
    limit.saturating_sub(ROOM).max(FLOOR) as i32
}

/// Moves a descriptor out of the program's way; where that cannot be done it stays where it is.
pub fn hide(fd: OwnedFd) -> OwnedFd {
    let fd = match rustix::io::fcntl_dupfd_cloexec(&fd, base()) {
        Ok(high) => high,
        Err(_) => fd,
    };
    fdtable::set(fd.as_raw_fd(), Entry::Private);
    fd
}

thread_local! {
    /// Depth of our own code that may drop hidden descriptors. No destructor.
    static OWN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// While it lives, this thread may close hidden descriptors by dropping them.
///
/// Dropping an `OwnedFd` calls `close`, which is our own hook and hides these numbers from the
/// program.
#[derive(Debug)]
pub struct Own(());

/// Begins a stretch of our own code.
pub fn own() -> Own {
    OWN.with(|depth| depth.set(depth.get() + 1));
    Own(())
}

impl Drop for Own {
    fn drop(&mut self) {
        OWN.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Whether a close on this thread comes from our own code.
pub fn is_own() -> bool {
    OWN.with(std::cell::Cell::get) > 0
}

/// Closes a hidden descriptor.
pub fn close(fd: OwnedFd) {
    fdtable::set(fd.as_raw_fd(), Entry::Other);
    drop(fd);
}

/// Takes a raw number that a libc call has just made.
///
/// # Safety
/// Nobody else owns `fd`.
pub unsafe fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
