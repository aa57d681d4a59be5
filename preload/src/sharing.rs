//! How long an endpoint or an epoll set is held by this process: as long as a descriptor leads to
//! it or a call waits on it, as a file lives as long as it has references (fs/file.c:fget).

#![expect(unsafe_code, reason = "UNSAFETY: reads a variable of libc")]

use std::ffi::c_char;

use dashmap::DashMap;
use once_cell::sync::Lazy;

use crate::fdtable::Entry;
use crate::process;

unsafe extern "C" {
    /// Not 0: this process has had one thread only (sys/single_threaded.h).
    static __libc_single_threaded: c_char;
}

/// Who holds an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holders {
    descriptors: u32,
    calls: u32,
}

/// What an entry without a note has.
const ONE_DESCRIPTOR: Holders = Holders {
    descriptors: 1,
    calls: 0,
};

/// Parts of a shared table. Said here because the library would ask for the number of processors,
/// for which it reads files of /proc and /sys, in every forked child.
pub const SHARDS: usize = 16;

/// Entries that were dup'ed or that calls wait on.
static SHARED: Lazy<DashMap<u64, Holders>> = Lazy::new(|| DashMap::with_shard_amount(SHARDS));

/// Key of an entry: endpoints and epoll sets have one.
fn key(entry: Entry) -> Option<u64> {
    match entry {
        Entry::Epoll(index) => Some(1 << 63 | u64::from(index)),
        _ => entry
            .endpoint()
            .map(|endpoint| u64::from(endpoint.index) << 32 | u64::from(endpoint.generation)),
    }
}

/// Whether the entry can have holders.
pub fn is_shareable(entry: Entry) -> bool {
    key(entry).is_some()
}

/// One more descriptor has this entry.
pub fn descriptor_added(entry: Entry) {
    change(entry, |holders| holders.descriptors += 1);
}

/// One descriptor less has this entry; whether nobody in this process holds it any more.
#[must_use]
pub fn descriptor_removed(entry: Entry) -> bool {
    if key(entry).is_none_or(|key| !SHARED.contains_key(&key)) {
        return true;
    }
    change(entry, |holders| {
        holders.descriptors = holders.descriptors.saturating_sub(1);
    })
}

/// A call is about to wait on this entry. Whether it did note that: without other threads nobody
/// could close the entry meanwhile.
#[must_use]
pub fn call_begins(entry: Entry) -> bool {
    // SAFETY: libc changes it before a thread is made.
    if key(entry).is_none() || unsafe { __libc_single_threaded } != 0 {
        return false;
    }
    change(entry, |holders| holders.calls += 1);
    true
}

/// The call has ended; whether nobody in this process holds the entry any more.
#[must_use]
pub fn call_ends(entry: Entry) -> bool {
    change(entry, |holders| {
        holders.calls = holders.calls.saturating_sub(1);
    })
}

/// Changes who holds the entry; whether nobody does after it.
fn change(entry: Entry, how: impl FnOnce(&mut Holders)) -> bool {
    let Some(key) = key(entry) else { return true };
    let _guard = process::no_fork();
    let mut holders = SHARED.entry(key).or_insert(ONE_DESCRIPTOR);
    how(&mut holders);
    let now = *holders;
    drop(holders);
    let nobody = now.descriptors == 0 && now.calls == 0;
    if nobody || now == ONE_DESCRIPTOR {
        SHARED.remove_if(&key, |_, holders| *holders == now);
    }
    nobody
}

/// The descriptors of this entry are the kernel's from here on.
pub fn ended(entry: Entry) {
    if let Some(key) = key(entry) {
        let _guard = process::no_fork();
        SHARED.remove(&key);
    }
}

/// A forked child has no other threads: their calls are not here.
pub fn after_fork_in_child() {
    SHARED.retain(|_, holders| {
        holders.calls = 0;
        holders.descriptors > 1
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bypass_stack::EndpointId;

    #[test]
    fn the_last_holder_is_told() {
        let entry = Entry::Tcp(EndpointId {
            index: 77,
            generation: 1,
        });
        assert!(descriptor_removed(entry));
        descriptor_added(entry);
        assert!(!descriptor_removed(entry));
        change(entry, |holders| holders.calls += 2);
        assert!(!descriptor_removed(entry));
        assert!(!call_ends(entry));
        assert!(call_ends(entry));
        assert!(SHARED.get(&key(entry).unwrap_or(0)).is_none());
    }
}
