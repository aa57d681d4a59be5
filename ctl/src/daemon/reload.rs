//! Reading the configuration again, on SIGHUP or at the request of `bypassctl reload`.
//!
//! A file with an error changes nothing. What programs have keeps working under the new policy, as
//! far as their interfaces still may be used; it decides what they ask for from then on.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: a signal handler that writes to an eventfd"
)]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::Config;
use super::server::Server;

/// The eventfd that the handler writes to; -1 = none.
static BELL: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_hangup(_signal: c_int) {
    let one = 1_u64;
    let fd = BELL.load(Ordering::Relaxed);
    // SAFETY: `write` may be called in a handler and reads eight bytes of `one`; a descriptor that
    // is not open makes it fail. errno is put back for whatever was interrupted.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, (&raw const one).cast(), size_of::<u64>());
        *libc::__errno_location() = errno;
    }
}

/// An eventfd that is readable after a SIGHUP.
///
/// # Errors
/// What `eventfd` answers.
pub(super) fn hangups() -> Result<OwnedFd, Errno> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    BELL.store(bell.as_raw_fd(), Ordering::Relaxed);
    let handler: extern "C" fn(c_int) = on_hangup;
    // SAFETY: the handler only does what signal(7) allows.
    unsafe { libc::signal(libc::SIGHUP, handler as libc::sighandler_t) };
    Ok(bell)
}

/// Forgets an eventfd that is about to be closed.
pub(super) fn forget(bell: &OwnedFd) {
    let _ = BELL.compare_exchange(bell.as_raw_fd(), -1, Ordering::Relaxed, Ordering::Relaxed);
}

impl Server {
    /// Reads the configuration again; what is wrong with it, if anything. Then the one before
    /// stays.
    pub(super) fn reload(&mut self) -> Option<String> {
        let error = match Config::read(self.config_path.as_deref()) {
            Ok(Config {
                path,
                error: Some(error),
                ..
            }) => Some(format!("{}: {error}", path.unwrap_or_default().display())),
            Ok(config) => {
                self.config = config;
                self.follow_devices();
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &error {
            eprintln!("bypassctl: {error}; the configuration before stays");
        } else {
            self.reconcile_all();
        }
        self.reload_error.clone_from(&error);
        error
    }

    /// A SIGHUP has come.
    pub(super) fn hung_up(&mut self) {
        let mut count = [0; 8];
        if rustix::io::read(&self.hangups, &mut count).is_ok() {
            self.reload();
        }
    }
}
