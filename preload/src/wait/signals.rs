//! Signals around a wait: held back until the call returns; whether a call is to be restarted.

#![expect(unsafe_code, reason = "UNSAFETY: sigmask calls of libc")]

use std::mem::MaybeUninit;

use libc::{
    SA_RESTART, SIG_BLOCK, SIG_DFL, SIG_IGN, SIG_SETMASK, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS,
    SIGTRAP, sigset_t,
};

/// The signals of this thread, held back from the first wait of a call until it returns: what comes
/// between two waits would run its handler unseen, and the call would sleep on.
#[derive(Debug, Default)]
pub struct Held {
    original: Option<sigset_t>,
}

/// What the program's own memory can raise while we copy: held back, it would end the program.
const OF_THE_COPY: [i32; 6] = [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS];

impl Held {
    /// Holds back the signals, if they are not yet; the mask that is in force outside of the call.
    pub fn hold(&mut self) -> *const sigset_t {
        self.original.get_or_insert_with(block)
    }

    /// Whether they are held back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.original.is_some()
    }
}

/// Blocks every signal but those of the copy; the mask before.
fn block() -> sigset_t {
    let mut most = MaybeUninit::<sigset_t>::uninit();
    let mut original = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: sigfillset fills its argument.
    unsafe { libc::sigfillset(most.as_mut_ptr()) };
    for signal in OF_THE_COPY {
        // SAFETY: filled above; the number is a signal's.
        unsafe { libc::sigdelset(most.as_mut_ptr(), signal) };
    }
    // SAFETY: `most` is filled, `original` is written by the call (which cannot fail with these;
    // SIG_BLOCK leaves blocked what the program has blocked).
    unsafe { libc::pthread_sigmask(SIG_BLOCK, most.as_ptr(), original.as_mut_ptr()) };
    // SAFETY: written just above.
    unsafe { original.assume_init() }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(original) = &self.original {
            // SAFETY: `original` came from the call that replaced it.
            unsafe { libc::pthread_sigmask(SIG_SETMASK, original, std::ptr::null_mut()) };
        }
    }
}

/// Whether a signal waits to be delivered that `mask` lets through.
///
/// # Safety
/// `mask` is a valid set.
pub unsafe fn pending(mask: *const sigset_t) -> bool {
    let mut set = MaybeUninit::<sigset_t>::zeroed();
    // SAFETY: sigpending fills its argument.
    if unsafe { libc::sigpending(set.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: filled above.
    let set = unsafe { set.assume_init() };
    // SAFETY: both are valid sets, the numbers are signals.
    let is_in = |set: *const sigset_t, signal| unsafe { libc::sigismember(set, signal) } == 1;
    (1..=64).any(|signal| is_in(&raw const set, signal) && !is_in(mask, signal))
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
