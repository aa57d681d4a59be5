//! What each descriptor number is to us: one load per call.
//!
//! A flat table in zero-initialised memory, one word per number, so that the fall-through path is
//! one bounds check and one load, valid before any constructor has run. A word says everything that
//! a call needs; there is no object behind it that could be freed while another thread uses it. An
//! endpoint's word carries its generation: the stack refuses a stale one, so a number that was
//! closed behind our back is never taken for the old socket.

use std::sync::atomic::{AtomicU64, Ordering};

use bypass_stack::EndpointId;

use crate::tcp::{guest, heir};

/// Numbers that the table knows (the kernel's default `fs.nr_open`). Higher ones fall through.
pub const NUMBERS: usize = 1 << 20;

static TABLE: [AtomicU64; NUMBERS] = [const { AtomicU64::new(0) }; NUMBERS];

/// Highest number with an entry so far; walks end there.
static HIGHEST: AtomicU64 = AtomicU64::new(0);

const KIND_SHIFT: u32 = 60;
const KIND_CANDIDATE: u64 = 1;
const KIND_BOUND: u64 = 2;
const KIND_UDP: u64 = 3;
const KIND_EPOLL: u64 = 4;
const KIND_PRIVATE: u64 = 5;
const KIND_TCP_CANDIDATE: u64 = 6;
const KIND_TCP: u64 = 7;
const KIND_LISTENER: u64 = 8;
const KIND_HEIR: u64 = 9;
const KIND_GUEST: u64 = 10;

/// What a descriptor number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing to us: every call falls through.
    Other,
    /// A UDP socket whose address nothing has fixed yet.
    Candidate,
    /// A UDP socket that policy accelerates from its first use on.
    Bound,
    /// An accelerated UDP socket.
    Udp(EndpointId),
    /// A TCP socket that neither listens nor has been connected.
    TcpCandidate,
    /// An accelerated TCP connection. Its shadow is an unconnected kernel socket.
    Tcp(EndpointId),
    /// An accelerated TCP listener. Its shadow listens too.
    Listener(EndpointId),
    /// A listener of the program before this one, which no call has touched yet.
    Heir,
    /// A TCP connection of the kernel's that may come to the stack at any moment.
    Guest,
    /// An epoll set: index into the registry of sets.
    Epoll(u32),
    /// One of our own descriptors, hidden from the program.
    Private,
}

impl Entry {
    fn encode(self) -> u64 {
        match self {
            Self::Other => 0,
            Self::Candidate => KIND_CANDIDATE << KIND_SHIFT,
            Self::Bound => KIND_BOUND << KIND_SHIFT,
            Self::TcpCandidate => KIND_TCP_CANDIDATE << KIND_SHIFT,
            Self::Udp(endpoint) => with_endpoint(KIND_UDP, endpoint),
            Self::Tcp(endpoint) => with_endpoint(KIND_TCP, endpoint),
            Self::Listener(endpoint) => with_endpoint(KIND_LISTENER, endpoint),
            Self::Epoll(set) => (KIND_EPOLL << KIND_SHIFT) | u64::from(set),
            Self::Private => KIND_PRIVATE << KIND_SHIFT,
            Self::Heir => KIND_HEIR << KIND_SHIFT,
            Self::Guest => KIND_GUEST << KIND_SHIFT,
        }
    }

    fn decode(word: u64) -> Self {
        let low = word as u32;
        let endpoint = EndpointId {
            index: (word >> 32) as u32 & 0x0fff_ffff,
            generation: low,
        };
        match word >> KIND_SHIFT {
            KIND_CANDIDATE => Self::Candidate,
            KIND_BOUND => Self::Bound,
            KIND_UDP => Self::Udp(endpoint),
            KIND_TCP_CANDIDATE => Self::TcpCandidate,
            KIND_TCP => Self::Tcp(endpoint),
            KIND_LISTENER => Self::Listener(endpoint),
            KIND_EPOLL => Self::Epoll(low),
            KIND_PRIVATE => Self::Private,
            KIND_HEIR => Self::Heir,
            KIND_GUEST => Self::Guest,
            _ => Self::Other,
        }
    }

    /// The endpoint of an accelerated socket.
    #[inline]
    #[must_use]
    pub fn endpoint(self) -> Option<EndpointId> {
        match self {
            Self::Udp(endpoint) | Self::Tcp(endpoint) | Self::Listener(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    /// Whether the kernel may have something for an accelerated socket too: datagrams or
    /// connections from other interfaces, errors. A connection's shadow has nothing.
    #[inline]
    #[must_use]
    pub fn is_shadowed(self) -> bool {
        !matches!(self, Self::Tcp(_))
    }
}

fn with_endpoint(kind: u64, endpoint: EndpointId) -> u64 {
    (kind << KIND_SHIFT) | (u64::from(endpoint.index) << 32) | u64::from(endpoint.generation)
}

/// Whether every call on this number falls through. The whole cost of a call that is not ours.
#[inline(always)]
pub fn falls_through(fd: i32) -> bool {
    match TABLE.get(fd as u32 as usize) {
        Some(word) => word.load(Ordering::Acquire) == 0,
        None => true,
    }
}

/// What this number is, for a call on it: an heir turns out to be something else now, a guest may.
#[inline]
pub fn get(fd: i32) -> Entry {
    match look(fd) {
        Entry::Heir => heir::claim(fd),
        Entry::Guest => guest::look(fd),
        entry => entry,
    }
}

/// What this number is.
#[inline]
pub fn look(fd: i32) -> Entry {
    match TABLE.get(fd as u32 as usize) {
        Some(word) => Entry::decode(word.load(Ordering::Acquire)),
        None => Entry::Other,
    }
}

/// What epoll_wait asks first: one load, and no jump by a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// The epoll set with this index.
    Known(u32),
    /// No epoll set of ours.
    No,
    /// Only [`get`] can tell.
    Heir,
}

/// Which epoll set this number is.
#[inline]
pub fn set_of(fd: i32) -> Set {
    let word = match TABLE.get(fd as u32 as usize) {
        Some(word) => word.load(Ordering::Acquire),
        None => return Set::No,
    };
    match word >> KIND_SHIFT {
        KIND_EPOLL => Set::Known(word as u32),
        KIND_HEIR => Set::Heir,
        _ => Set::No,
    }
}

/// Notes what this number is. Numbers beyond the table stay [`Entry::Other`].
pub fn set(fd: i32, entry: Entry) {
    if let Some(word) = TABLE.get(fd as u32 as usize) {
        if entry != Entry::Other {
            HIGHEST.fetch_max(fd as u64, Ordering::Relaxed);
        }
        word.store(entry.encode(), Ordering::Release);
    }
}

/// Replaces `old` by `new` if the number still is `old`; says whether it did.
pub fn replace(fd: i32, old: Entry, new: Entry) -> bool {
    TABLE.get(fd as u32 as usize).is_some_and(|word| {
        word.compare_exchange(
            old.encode(),
            new.encode(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .is_ok()
    })
}

/// Whether the number still is this endpoint's.
#[inline]
pub fn leads_to(fd: i32, endpoint: EndpointId) -> bool {
    look(fd).endpoint() == Some(endpoint)
}

/// Every number in `first..=last` that is not [`Entry::Other`], in rising order.
pub fn entries(first: u32, last: u32) -> impl Iterator<Item = (i32, Entry)> {
    let end = (HIGHEST.load(Ordering::Relaxed) as usize + 1)
        .min(last as usize + 1)
        .min(NUMBERS);
    let start = (first as usize).min(end);
    TABLE[start..end]
        .iter()
        .enumerate()
        .filter_map(move |(offset, word)| {
            let entry = Entry::decode(word.load(Ordering::Acquire));
            (entry != Entry::Other).then_some(((start + offset) as i32, entry))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_encoding() {
        let endpoint = EndpointId {
            index: 4095,
            generation: u32::MAX,
        };
        for entry in [
            Entry::Other,
            Entry::Candidate,
            Entry::Bound,
            Entry::TcpCandidate,
            Entry::Udp(endpoint),
            Entry::Tcp(endpoint),
            Entry::Listener(endpoint),
            Entry::Epoll(77),
            Entry::Private,
            Entry::Heir,
            Entry::Guest,
        ] {
            assert_eq!(Entry::decode(entry.encode()), entry);
        }
    }

    #[test]
    fn numbers_outside_the_table_fall_through() {
        assert!(falls_through(-1));
        assert!(falls_through(i32::MAX));
        set(i32::MAX, Entry::Candidate);
        assert_eq!(get(i32::MAX), Entry::Other);
    }

    #[test]
    fn a_walk_sees_only_its_range() {
        set(500_001, Entry::Bound);
        set(500_003, Entry::Private);
        let seen: Vec<_> = entries(500_000, 500_002).collect();
        assert_eq!(seen, [(500_001, Entry::Bound)]);
        set(500_001, Entry::Other);
        set(500_003, Entry::Other);
    }
}
