//! The stack lock: process-shared, and a dead owner is found.
//!
//! One word in the image's first page: 0 = free, else the owner's thread id, with the top bit set
//! while somebody sleeps on it. A waiter that has slept for [`OWNER_CHECK`] asks whether the owner
//! still lives; a dead owner's lock is taken over and the guard says so ([`Taken::Orphaned`]), so
//! that the stack can be recovered before use. A thread that already holds the lock (a signal
//! handler that interrupted it) is told [`LockError::Reentered`] instead of waiting for itself.
//!
//! Not pthread's robust mutex: its list pointers belong to glibc and to one address space; this
//! word costs one compare-and-swap and one exchange.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;
use rustix::time::Timespec;

/// Set beside the owner's thread id while a waiter sleeps.
const WAITERS: u32 = 1 << 31;
/// How long a waiter sleeps before it asks whether the owner lives.
const OWNER_CHECK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
/// Attempts before a waiter sleeps: a batch of frames takes a few microseconds.
const SPINS: u32 = 200;

thread_local! {
    /// This thread's id, asked for once. No destructor, no lazy initialiser.
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

/// The caller's thread id.
fn thread_id() -> u32 {
    THREAD.with(|cell| {
        if cell.get() == 0 {
            cell.set(
                rustix::thread::gettid()
                    .as_raw_nonzero()
                    .get()
                    .cast_unsigned(),
            );
        }
        cell.get()
    })
}

/// Forgets the cached thread id: a forked child calls this first.
pub fn forget_thread() {
    THREAD.with(|cell| cell.set(0));
}

/// How the lock was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// From free.
    Clean,
    /// From an owner that died while it held it: what it guards may be half updated.
    Orphaned,
}

/// Why the lock was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockError {
    /// This very thread holds it already.
    Reentered,
    /// Somebody else holds it (only from [`try_lock`]).
    Busy,
}

/// Takes the lock, waiting as long as its owner lives.
///
/// # Errors
/// [`LockError::Reentered`].
pub fn lock(word: &AtomicU32) -> Result<Taken, LockError> {
    let me = thread_id();
    if word
        .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
        .is_ok()
    {
        return Ok(Taken::Clean);
    }
    lock_slow(word, me)
}

/// Takes the lock if it is free.
///
/// # Errors
/// [`LockError::Busy`] or [`LockError::Reentered`].
pub fn try_lock(word: &AtomicU32) -> Result<Taken, LockError> {
    let me = thread_id();
    match word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
        Ok(_) => Ok(Taken::Clean),
        Err(owner) if owner & !WAITERS == me => Err(LockError::Reentered),
        Err(_) => Err(LockError::Busy),
    }
}

#[cold]
fn lock_slow(word: &AtomicU32, me: u32) -> Result<Taken, LockError> {
    if word.load(Ordering::Relaxed) & !WAITERS == me {
        return Err(LockError::Reentered);
    }
    for _ in 0..SPINS {
        if word.load(Ordering::Relaxed) == 0
            && word
                .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        {
            return Ok(Taken::Clean);
        }
        std::hint::spin_loop();
    }
    loop {
        let seen = word.load(Ordering::Relaxed);
        if seen == 0 {
            // Whoever has slept cannot know whether others still do: keep the waiters' bit.
            if word
                .compare_exchange(0, me | WAITERS, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                return Ok(Taken::Clean);
            }
            continue;
        }
        if seen & WAITERS == 0
            && word
                .compare_exchange(seen, seen | WAITERS, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            continue;
        }
        let slept = futex::wait(
            word,
            futex::Flags::empty(),
            seen | WAITERS,
            Some(&OWNER_CHECK),
        );
        if slept == Err(rustix::io::Errno::TIMEDOUT) {
            let owner = word.load(Ordering::Relaxed);
            if owner != 0
                && !thread_lives(owner & !WAITERS)
                && word
                    .compare_exchange(owner, me | WAITERS, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Ok(Taken::Orphaned);
            }
        }
    }
}

/// Gives the lock back. The caller holds it.
pub fn unlock(word: &AtomicU32) {
    if word.swap(0, Ordering::Release) & WAITERS != 0 {
        let _ = futex::wake(word, futex::Flags::empty(), 1);
    }
}

/// Whether the thread runs (a zombie does not).
fn thread_lives(thread: u32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(thread.cast_signed()) else {
        return false;
    };
    if rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    // kill() still finds a zombie; its state letter follows the last ')' of /proc/TID/stat.
    let path = format!("/proc/{thread}/stat");
    let Ok(file) = rustix::fs::open(path, rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
    else {
        return true;
    };
    let mut text = [0; 256];
    let length = rustix::io::read(&file, &mut text).unwrap_or(0);
    let text = text.get(..length).unwrap_or_default();
    let state = text
        .iter()
        .rposition(|&byte| byte == b')')
        .and_then(|at| text.get(at + 2));
    !matches!(state, Some(b'Z' | b'X' | b'x'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn excludes_and_counts() {
        let word = Arc::new(AtomicU32::new(0));
        let total = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (word, total) = (Arc::clone(&word), Arc::clone(&total));
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        assert_eq!(lock(&word), Ok(Taken::Clean));
                        let before = total.load(Ordering::Relaxed);
                        total.store(before + 1, Ordering::Relaxed);
                        unlock(&word);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("thread");
        }
        assert_eq!(total.load(Ordering::Relaxed), 80_000);
    }

    #[test]
    fn the_owner_is_told_that_it_holds_it() {
        let word = AtomicU32::new(0);
        assert_eq!(lock(&word), Ok(Taken::Clean));
        assert_eq!(lock(&word), Err(LockError::Reentered));
        assert_eq!(try_lock(&word), Err(LockError::Reentered));
        unlock(&word);
    }

    #[test]
    fn a_dead_owners_lock_is_taken_over() {
        let word = Arc::new(AtomicU32::new(0));
        let dead = Arc::clone(&word);
        std::thread::spawn(move || lock(&dead))
            .join()
            .expect("thread")
            .expect("lock");
        assert_eq!(lock(&word), Ok(Taken::Orphaned));
    }
}
