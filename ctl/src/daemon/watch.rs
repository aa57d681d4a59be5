//! Who lives: a pidfd for each process that takes part in a stack.
//!
//! A process that ends makes its pidfd readable, in the same moment for a `kill -9` as for an
//! exit. What it held is then given back by the server.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bypass_stack::ProcessId;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::process;

/// A process in a slot of a stack.
#[derive(Debug)]
pub(super) struct Watched {
    pidfd: OwnedFd,
    /// Process id in the daemon's pid namespace.
    pub pid: u32,
    /// Start time, as [`process::Process::start_time`].
    pub start_time: u64,
    /// User of the stack.
    pub uid: u32,
    /// Slot in the stack.
    pub slot: ProcessId,
    /// Descriptor that its report was when it was last found.
    pub report: Cell<Option<u32>>,
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// All watched processes, by a number of our own.
#[derive(Debug, Default)]
pub(super) struct Watch {
    by_number: HashMap<u64, Watched>,
    last: u64,
}

impl Watch {
    /// Watches a process; its number.
    pub(super) fn insert(&mut self, watched: Watched) -> u64 {
        self.last += 1;
        self.by_number.insert(self.last, watched);
        self.last
    }

    /// Ends a watch.
    pub(super) fn remove(&mut self, number: u64) -> Option<Watched> {
        self.by_number.remove(&number)
    }

    /// One watched process.
    pub(super) fn get(&self, number: u64) -> Option<&Watched> {
        self.by_number.get(&number)
    }

    /// Number and slot of a process in the stack of a user.
    pub(super) fn find(&self, uid: u32, pid: u32, start_time: u64) -> Option<(u64, ProcessId)> {
        self.iter()
            .find(|(_, watched)| {
                (watched.uid, watched.pid, watched.start_time) == (uid, pid, start_time)
            })
            .map(|(number, watched)| (number, watched.slot))
    }

    /// The stacks (by user) that a process takes part in, with its numbers.
    pub(super) fn of_pid(&self, pid: u32) -> Vec<(u64, u32)> {
        let mine = self.iter().filter(|(_, watched)| watched.pid == pid);
        mine.map(|(number, watched)| (number, watched.uid))
            .collect()
    }

    /// Number of the watch on a slot of a stack.
    pub(super) fn of_slot(&self, uid: u32, slot: ProcessId) -> Option<u64> {
        self.iter()
            .find(|(_, watched)| (watched.uid, watched.slot) == (uid, slot))
            .map(|(number, _)| number)
    }

    /// Every watched process with its number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Watched)> {
        self.by_number
            .iter()
            .map(|(number, watched)| (*number, watched))
    }

    /// How many processes a stack has.
    pub(super) fn count(&self, uid: u32) -> usize {
        self.by_number
            .values()
            .filter(|watched| watched.uid == uid)
            .count()
    }

    /// Whether nobody is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }
}

/// Opens a process for watching, unless that is done already.
///
/// # Errors
/// `ESRCH` when it is gone or when the pid is another process's by now; else what the kernel
/// answers.
pub(super) fn open(
    pid: u32,
    start_time: u64,
    pidfd: Option<OwnedFd>,
    uid: u32,
    slot: ProcessId,
) -> Result<Watched, Errno> {
    let raw = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::SRCH)?;
    let pidfd = match pidfd {
        Some(pidfd) => pidfd,
        None => pidfd_open(raw, PidfdFlags::empty())?,
    };
    // The descriptor is of whoever has the pid now: the start time tells whether that is the one.
    match process::start_time(pid) {
        Some((seen, _)) if seen == start_time => Ok(Watched {
            pidfd,
            pid,
            start_time,
            uid,
            slot,
            report: Cell::new(None),
        }),
        _ => Err(Errno::SRCH),
    }
}
