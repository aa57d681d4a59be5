//! The stack lock: process-shared, and a dead owner is found.
//!
//! One word in the image's first page: 0 = free, else the owner's thread id, with the top bit set
//! while somebody sleeps on it. A waiter that has slept for [`OWNER_CHECK`] asks whether the owner
//! still lives; a dead owner's lock is taken over and the guard says so ([`Taken::Orphaned`]), so
//! that the stack can be recovered before use. A thread that already holds the lock (a signal
//! handler that interrupted it) is told [`LockError::Reentered`] instead of waiting for itself.
//!
//! The word is in memory that every program of the stack can write, so whoever must go on whatever
//! is in it (the daemon) takes it by [`lock_within`], which ends in time.
//!
//! Not pthread's robust mutex: its list pointers belong to glibc and to one address space; this
//! word costs one compare-and-swap and one exchange.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::Timespec;

use crate::clock;

/// Set beside the owner's thread id while a waiter sleeps.
const WAITERS: u32 = 1 << 31;
/// How long a waiter sleeps before it asks whether the owner lives.
const OWNER_CHECK: Duration = Duration::from_millis(5);
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
    /// Somebody else holds it (only from [`try_lock`] and [`lock_within`]).
    Busy,
    /// A forked child could not map what the lock guards: for want of memory. Nothing was taken.
    Unmapped,
}

/// What the thread ids in a lock word mean to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Threads of the caller's pid namespace: one that does not exist is dead.
    Visible,
    /// Perhaps of another pid namespace: who lives cannot be told, so nothing is taken over.
    Foreign,
}

/// What the lock does with its word and asks of the system. The model has its own.
trait Word {
    /// Attempts before a waiter sleeps.
    const SPINS: u32;

    fn load(&self) -> u32;

    /// Puts `to` in the place of `from`; else what is there.
    fn exchange(&self, from: u32, to: u32, success: Ordering) -> Result<u32, u32>;

    /// Frees the lock; what was there.
    fn free(&self) -> u32;

    /// Sleeps while `seen` is there, at most for so long; whether this time has passed.
    fn sleep(&self, seen: u32, pause: Duration) -> bool;

    /// Wakes one that sleeps.
    fn wake(&self);

    /// Whether a thread runs.
    fn lives(&self, thread: u32) -> bool;
}

impl Word for AtomicU32 {
    const SPINS: u32 = SPINS;

    fn load(&self) -> u32 {
        self.load(Ordering::Relaxed)
    }

    fn exchange(&self, from: u32, to: u32, success: Ordering) -> Result<u32, u32> {
        self.compare_exchange(from, to, success, Ordering::Relaxed)
    }

    fn free(&self) -> u32 {
        self.swap(0, Ordering::Release)
    }

    fn sleep(&self, seen: u32, pause: Duration) -> bool {
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        let slept = futex::wait(self, futex::Flags::empty(), seen, Some(&pause));
        slept == Err(rustix::io::Errno::TIMEDOUT)
    }

    fn wake(&self) {
        let _ = futex::wake(self, futex::Flags::empty(), 1);
    }

    fn lives(&self, thread: u32) -> bool {
        thread_lives(thread)
    }
}

/// Takes the lock, waiting as long as its owner lives.
///
/// # Errors
/// [`LockError::Reentered`].
pub fn lock(word: &AtomicU32) -> Result<Taken, LockError> {
    lock_as(word, thread_id())
}

fn lock_as(word: &impl Word, me: u32) -> Result<Taken, LockError> {
    if word.exchange(0, me, Ordering::Acquire).is_ok() {
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
    match word.exchange(0, me, Ordering::Acquire) {
        Ok(_) => Ok(Taken::Clean),
        Err(owner) if owner & !WAITERS == me => Err(LockError::Reentered),
        Err(_) => Err(LockError::Busy),
    }
}

/// Takes the lock within `patience`, whatever is in the word. For one who surely does not hold it:
/// a word that names the caller is taken for forged, and the lock taken over.
///
/// # Errors
/// [`LockError::Busy`] when its owner lives and keeps it.
pub fn lock_within(
    word: &AtomicU32,
    patience: Duration,
    owners: Owners,
) -> Result<Taken, LockError> {
    let me = thread_id();
    let Err(found) = word.exchange(0, me, Ordering::Acquire) else {
        return Ok(Taken::Clean);
    };
    if found & !WAITERS == me && take_over(word, found, me) {
        return Ok(Taken::Orphaned);
    }
    let deadline = clock::now().0.saturating_add(patience.as_nanos() as u64);
    acquire(word, me, Some(deadline), owners)
}

#[cold]
fn lock_slow(word: &impl Word, me: u32) -> Result<Taken, LockError> {
    if word.load() & !WAITERS == me {
        return Err(LockError::Reentered);
    }
    acquire(word, me, None, Owners::Visible)
}

/// Spins, then sleeps, until the word is free, its owner is dead, or the deadline has passed
/// (nanoseconds of `CLOCK_MONOTONIC`).
#[cold]
fn acquire<W: Word>(
    word: &W,
    me: u32,
    deadline: Option<u64>,
    owners: Owners,
) -> Result<Taken, LockError> {
    for _ in 0..W::SPINS {
        if word.load() == 0 && word.exchange(0, me, Ordering::Acquire).is_ok() {
            return Ok(Taken::Clean);
        }
        std::hint::spin_loop();
    }
    loop {
        let seen = word.load();
        // Whoever has slept cannot know whether others still do: keep the waiters' bit.
        if seen == 0 && take_over(word, 0, me) {
            return Ok(Taken::Clean);
        }
        let left = deadline.map(|deadline| deadline.saturating_sub(clock::now().0));
        if left == Some(0) {
            // An owner that has been dead since before we came is not waited for.
            let dead = owners == Owners::Visible && seen != 0 && !word.lives(seen & !WAITERS);
            return if dead && take_over(word, seen, me) {
                Ok(Taken::Orphaned)
            } else {
                Err(LockError::Busy)
            };
        }
        if seen == 0 {
            continue; // Marked while it is free, it would look like a dead owner's.
        }
        let is_marked = seen & WAITERS != 0
            || word
                .exchange(seen, seen | WAITERS, Ordering::Relaxed)
                .is_ok();
        if !is_marked {
            continue;
        }
        let pause = left.map_or(OWNER_CHECK, |left| {
            OWNER_CHECK.min(Duration::from_nanos(left))
        });
        if word.sleep(seen | WAITERS, pause) && owners == Owners::Visible {
            let owner = word.load();
            if owner != 0 && !word.lives(owner & !WAITERS) && take_over(word, owner, me) {
                return Ok(Taken::Orphaned);
            }
        }
    }
}

/// Puts this thread in the place of `owner`; whether nobody else was faster.
fn take_over(word: &impl Word, owner: u32, me: u32) -> bool {
    word.exchange(owner, me | WAITERS, Ordering::Acquire)
        .is_ok()
}

/// Gives the lock back. The caller holds it.
pub fn unlock(word: &AtomicU32) {
    release(word);
}

fn release(word: &impl Word) {
    if word.free() & WAITERS != 0 {
        word.wake();
    }
}

/// Whether somebody sleeps until the lock is free, as far as its owner can tell.
#[must_use]
pub fn is_awaited(word: &AtomicU32) -> bool {
    word.load(Ordering::Relaxed) & WAITERS != 0
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

    #[test]
    fn whatever_is_in_the_word_ends_in_time() {
        const PATIENCE: Duration = Duration::from_millis(2);
        let take = |content: u32, owners| {
            let word = AtomicU32::new(content);
            let begun = std::time::Instant::now();
            let taken = lock_within(&word, PATIENCE, owners);
            assert!(begun.elapsed() < Duration::from_secs(1), "{content:x}");
            if taken.is_ok() {
                unlock(&word);
                assert_eq!(word.load(Ordering::Relaxed), 0, "{content:x}");
            }
            taken
        };
        let init_lives = 1;
        let nobody = 0x3fff_ffff; // Above any pid_max.
        for mark in [0, WAITERS] {
            assert_eq!(
                take(init_lives | mark, Owners::Visible),
                Err(LockError::Busy)
            );
            assert_eq!(take(nobody | mark, Owners::Visible), Ok(Taken::Orphaned));
            assert_eq!(take(nobody | mark, Owners::Foreign), Err(LockError::Busy));
            assert_eq!(
                take(thread_id() | mark, Owners::Visible),
                Ok(Taken::Orphaned)
            );
            assert_eq!(
                take(thread_id() | mark, Owners::Foreign),
                Ok(Taken::Orphaned)
            );
        }
        assert_eq!(take(WAITERS, Owners::Visible), Ok(Taken::Orphaned));
        assert_eq!(take(0, Owners::Foreign), Ok(Taken::Clean));
    }

    #[test]
    fn it_waits_for_an_owner_that_lives() {
        let word = Arc::new(AtomicU32::new(0));
        assert_eq!(lock(&word), Ok(Taken::Clean));
        let other = Arc::clone(&word);
        let waiter = std::thread::spawn(move || {
            lock_within(&other, Duration::from_secs(10), Owners::Visible)
        });
        while !is_awaited(&word) {
            std::thread::yield_now();
        }
        unlock(&word);
        assert!(word.load(Ordering::Relaxed) == 0 || is_awaited(&word));
        assert_eq!(waiter.join().expect("thread"), Ok(Taken::Clean));
    }
}

/// Every order in which threads may take steps, by loom.
#[cfg(test)]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicBool, AtomicU32};
    use loom::sync::{Arc, Condvar, Mutex};

    /// A word and what it guards. Whoever sleeps is woken by [`Word::wake`] and by an owner's
    /// death; that his time passes while the owner lives would change nothing.
    struct Modelled {
        word: AtomicU32,
        gate: Mutex<()>,
        bell: Condvar,
        /// By thread id.
        dead: [AtomicBool; 4],
        guarded: UnsafeCell<[u32; 2]>,
    }

    impl Word for Modelled {
        const SPINS: u32 = 1;

        fn load(&self) -> u32 {
            self.word.load(Ordering::Relaxed)
        }

        fn exchange(&self, from: u32, to: u32, success: Ordering) -> Result<u32, u32> {
            let word = &self.word;
            word.compare_exchange(from, to, success, Ordering::Relaxed)
        }

        fn free(&self) -> u32 {
            self.word.swap(0, Ordering::Release)
        }

        fn sleep(&self, seen: u32, _: Duration) -> bool {
            let gate = self.gate.lock().unwrap();
            if self.load() != seen {
                return false;
            }
            if self.lives(seen & !WAITERS) {
                drop(self.bell.wait(gate).unwrap());
            }
            !self.lives(seen & !WAITERS)
        }

        fn wake(&self) {
            let _gate = self.gate.lock().unwrap();
            self.bell.notify_one();
        }

        fn lives(&self, thread: u32) -> bool {
            !self.dead[thread as usize].load(Ordering::Acquire)
        }
    }

    impl Modelled {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                word: AtomicU32::new(0),
                gate: Mutex::new(()),
                bell: Condvar::new(),
                dead: std::array::from_fn(|_| AtomicBool::new(false)),
                guarded: UnsafeCell::new([0; 2]),
            })
        }

        /// Takes the lock, looks for a half update, which only an orphaned lock may have, and adds
        /// one to both halves.
        fn update(&self, me: u32) -> Taken {
            let taken = lock_as(self, me).expect("the lock");
            #[expect(
                unsafe_code,
                reason = "UNSAFETY: what the lock is for; loom looks at it"
            )]
            self.guarded.with_mut(|both| {
                // SAFETY: the lock is held; loom fails where somebody else may be here.
                let [first, second] = unsafe { &mut *both };
                assert!(taken == Taken::Orphaned || first == second);
                *second = *first;
                *first += 1;
                *second += 1;
            });
            release(self);
            taken
        }

        /// Takes the lock and dies in an update.
        fn die(&self, me: u32) {
            lock_as(self, me).expect("the lock");
            #[expect(
                unsafe_code,
                reason = "UNSAFETY: what the lock is for; loom looks at it"
            )]
            self.guarded.with_mut(|both| {
                // SAFETY: as in `update`.
                unsafe { (*both)[0] += 1 };
            });
            self.dead[me as usize].store(true, Ordering::Release);
            let _gate = self.gate.lock().unwrap();
            self.bell.notify_all();
        }
    }

    fn every_order(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        model.check(body);
    }

    /// Three threads that sleep until they are woken: loom tells of one that is never.
    #[test]
    fn nobody_is_let_in_twice_and_nobody_sleeps_for_ever() {
        every_order(3, || {
            let shared = Modelled::new();
            let others = [2, 3].map(|me| {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || shared.update(me))
            });
            assert_eq!(shared.update(1), Taken::Clean);
            for other in others {
                assert_eq!(other.join().unwrap(), Taken::Clean);
            }
            assert_eq!(shared.update(1), Taken::Clean);
        });
    }

    /// An owner dies in an update while two wait, or are about to come: one of them repairs it, and
    /// the other finds nothing wrong.
    #[test]
    fn one_who_waits_inherits_from_the_dead() {
        every_order(2, || {
            let shared = Modelled::new();
            let doomed = Arc::clone(&shared);
            let doomed = loom::thread::spawn(move || doomed.die(2));
            let other = Arc::clone(&shared);
            let other = loom::thread::spawn(move || other.update(3));
            let mine = shared.update(1);
            let both = [mine, other.join().unwrap()];
            doomed.join().unwrap();
            let orphaned = both.iter().filter(|&&it| it == Taken::Orphaned).count();
            let last = shared.update(1);
            assert_eq!(orphaned + usize::from(last == Taken::Orphaned), 1);
        });
    }
}
