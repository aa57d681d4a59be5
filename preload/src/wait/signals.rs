//! Signals around a wait: held back while we spin; whether a call is to be restarted.

#![expect(unsafe_code, reason = "UNSAFETY: sigmask calls of libc")]

use std::mem::MaybeUninit;

use libc::{SA_RESTART, SIG_DFL, SIG_IGN, SIG_SETMASK, sigset_t};

/// All signals held back until dropped.
#[derive(Debug)]
pub struct Held {
    original: sigset_t,
}

/// Holds back every signal of this thread.
pub fn hold() -> Held {
    let mut all = MaybeUninit::<sigset_t>::uninit();
    let mut original = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: sigfillset fills its argument.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` is filled, `original` is written by the call (which cannot fail with these).
    unsafe { libc::pthread_sigmask(SIG_SETMASK, all.as_ptr(), original.as_mut_ptr()) };
    // SAFETY: written just above.
    let original = unsafe { original.assume_init() };
    Held { original }
}

impl Held {
    /// The mask that was in force before.
    pub fn original(&self) -> *const sigset_t {
        &raw const self.original
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: `original` came from the call that replaced it.
        unsafe {
            libc::pthread_sigmask(SIG_SETMASK, &raw const self.original, std::ptr::null_mut())
        };
    }
}

/// Whether a signal waits to be delivered (while all are held back).
pub fn pending() -> bool {
    let mut set = MaybeUninit::<sigset_t>::zeroed();
    // SAFETY: sigpending fills its argument.
    if unsafe { libc::sigpending(set.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: filled above.
    let set = unsafe { set.assume_init() };
    // SAFETY: `set` is a valid set, the numbers are signals.
    (1..=64).any(|signal| unsafe { libc::sigismember(&raw const set, signal) } == 1)
}

/// Whether every handler that the program has installed asks for interrupted calls to be restarted
/// (SA_RESTART). Asked only after an interruption: which handler ran is not to be known, so a
/// program that mixes both kinds gets EINTR, which it must expect anyway.
pub fn all_restart() -> bool {
    let mut handlers = 0;
    for signal in 1..=libc::SIGRTMAX() {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: only asks; the action is written by the call.
        if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
            continue;
        }
        // SAFETY: written (or zero).
        let action = unsafe { action.assume_init() };
        if action.sa_sigaction == SIG_DFL || action.sa_sigaction == SIG_IGN {
            continue;
        }
        if action.sa_flags & SA_RESTART == 0 {
            return false;
        }
        handlers += 1;
    }
    handlers > 0
}
