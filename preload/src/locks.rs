//! Locks with which a forked child goes on, whatever the other threads of its parent were doing: a
//! word each, on which the kernel lets sleep. (parking_lot keeps a table of all that sleep, with
//! locks of its own; a fork in the middle of a change there leaves them locked for ever.)

#![expect(unsafe_code, reason = "UNSAFETY: implements lock_api's traits")]

use std::sync::atomic::{AtomicU32, Ordering};

use lock_api::{GuardNoSend, RawMutex, RawRwLock, RawRwLockRecursive};
use rustix::thread::futex::{self, Flags};

/// A mutual exclusion.
pub type Mutex<T> = lock_api::Mutex<Exclusive, T>;
/// Readers or a writer. Readers do not wait for a writer that waits.
pub type RwLock<T> = lock_api::RwLock<Shared, T>;
/// A reader's guard.
pub type RwLockReadGuard<'a, T> = lock_api::RwLockReadGuard<'a, Shared, T>;

/// Looks before a thread sleeps.
const SPINS: u32 = 100;

/// The word of a [`Mutex`].
#[derive(Debug)]
pub struct Exclusive(AtomicU32);

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody may sleep.
const AWAITED: u32 = 2;

/// The word of a [`RwLock`]: the number of readers, and two bits.
#[derive(Debug)]
pub struct Shared(AtomicU32);

const WRITER: u32 = 1 << 31;
/// Somebody may sleep.
const SLEEPERS: u32 = 1 << 30;

/// Sleeps while `seen` is there, or less long.
fn sleep(word: &AtomicU32, seen: u32) {
    // Whoever is woken looks again, for whatever reason.
    let _ = futex::wait(word, Flags::PRIVATE, seen, None);
}

fn wake(word: &AtomicU32, count: u32) {
    let _ = futex::wake(word, Flags::PRIVATE, count);
}

// SAFETY: only one caller puts something else in the place of FREE before it is there again.
unsafe impl RawMutex for Exclusive {
    const INIT: Self = Self(AtomicU32::new(FREE));

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        for _ in 0..SPINS {
            if self.try_lock() {
                return;
            }
            std::hint::spin_loop();
        }
        while self.0.swap(AWAITED, Ordering::Acquire) != FREE {
            sleep(&self.0, AWAITED);
        }
    }

    fn try_lock(&self) -> bool {
        let taken = self
            .0
            .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok()
    }

    unsafe fn unlock(&self) {
        if self.0.swap(FREE, Ordering::Release) == AWAITED {
            wake(&self.0, 1);
        }
    }

    fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed) != FREE
    }
}

impl Shared {
    /// Takes the lock by `change` of what is there, which says `None` while it has to wait.
    fn acquire(&self, change: impl Fn(u32) -> Option<u32>) {
        let mut looks = 0;
        loop {
            if self.attempt(&change) {
                return;
            }
            looks += 1;
            if looks < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let seen = self.0.load(Ordering::Relaxed);
            let marked = seen | SLEEPERS;
            let is_marked = || {
                let order = Ordering::Relaxed;
                seen == marked || self.0.compare_exchange(seen, marked, order, order).is_ok()
            };
            if change(seen).is_none() && is_marked() {
                sleep(&self.0, marked);
            }
        }
    }

    fn attempt(&self, change: impl Fn(u32) -> Option<u32>) -> bool {
        let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
        self.0.fetch_update(success, failure, change).is_ok()
    }
}

/// One reader more, unless somebody writes.
fn read(word: u32) -> Option<u32> {
    (word & WRITER == 0).then_some(word.wrapping_add(1))
}

/// A writer, if there is nobody.
fn write(word: u32) -> Option<u32> {
    (word & !SLEEPERS == 0).then_some(word | WRITER)
}

// SAFETY: a writer comes only when there is neither reader nor writer, a reader when no writer is.
unsafe impl RawRwLock for Shared {
    const INIT: Self = Self(AtomicU32::new(0));

    type GuardMarker = GuardNoSend;

    fn lock_shared(&self) {
        self.acquire(read);
    }

    fn try_lock_shared(&self) -> bool {
        self.attempt(read)
    }

    unsafe fn unlock_shared(&self) {
        let left = self.0.fetch_sub(1, Ordering::Release).wrapping_sub(1);
        let order = Ordering::Relaxed;
        if left == SLEEPERS && self.0.compare_exchange(SLEEPERS, 0, order, order).is_ok() {
            wake(&self.0, i32::MAX as u32);
        }
    }

    fn lock_exclusive(&self) {
        self.acquire(write);
    }

    fn try_lock_exclusive(&self) -> bool {
        self.attempt(write)
    }

    unsafe fn unlock_exclusive(&self) {
        if self.0.swap(0, Ordering::Release) & SLEEPERS != 0 {
            wake(&self.0, i32::MAX as u32);
        }
    }
}

// SAFETY: no reader waits for a writer that waits.
unsafe impl RawRwLockRecursive for Shared {
    fn lock_shared_recursive(&self) {
        self.lock_shared();
    }

    fn try_lock_shared_recursive(&self) -> bool {
        self.try_lock_shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_writers_take_turns() {
        static TOTAL: RwLock<u64> = RwLock::new(0);
        static COUNT: Mutex<u64> = Mutex::new(0);
        let thread = |_| {
            std::thread::spawn(|| {
                for turn in 0..20_000 {
                    if turn % 4 == 0 {
                        *TOTAL.write() += 1;
                    } else {
                        let outer = TOTAL.read_recursive();
                        assert_eq!(*TOTAL.read_recursive(), *outer);
                    }
                    *COUNT.lock() += 1;
                }
            })
        };
        let threads: Vec<_> = (0..6).map(thread).collect();
        threads
            .into_iter()
            .for_each(|it| it.join().expect("thread"));
        assert_eq!((*TOTAL.read(), *COUNT.lock()), (30_000, 120_000));
    }
}
