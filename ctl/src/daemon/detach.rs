//! Becoming a background process.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: fork, and closing descriptors by number"
)]

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::DaemonError;

unsafe extern "C" {
    fn fork() -> c_int;
}

/// Which of the two processes goes on after [`detach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that was started; whoever started it waits for it.
    Caller,
    /// The daemon.
    Daemon,
}

/// Closes whatever descriptors a program that started us has left open: its listeners would stay
/// open with us. Called before the daemon has opened anything.
pub(super) fn close_inherited() {
    let Ok(folder) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<RawFd> = folder
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        if rustix::fs::readlink(format!("/proc/self/fd/{number}"), Vec::new()).is_ok() {
            // SAFETY: the descriptor is open and was inherited, for this process has opened none
            // that is still open; so nobody here owns it.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

/// Goes on in a child that has its own session, the root folder and no standard streams.
///
/// # Errors
/// When the kernel refuses a step.
pub(super) fn detach() -> Result<Side, DaemonError> {
    let failed = |step| move |errno| DaemonError::System(step, errno);
    // SAFETY: the process has one thread (see `daemon::run`), so the child may go on as it likes.
    let child = unsafe { fork() };
    if child < 0 {
        let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(1);
        return Err(DaemonError::System("fork", Errno::from_raw_os_error(code)));
    }
    if child > 0 {
        return Ok(Side::Caller);
    }
    bypass_runtime::lock::forget_thread();
    rustix::process::setsid().map_err(failed("make a session"))?;
    rustix::process::chdir("/").map_err(failed("change to the root folder"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open /dev/null"))?;
    let streams = [
        rustix::stdio::dup2_stdin,
        rustix::stdio::dup2_stdout,
        rustix::stdio::dup2_stderr,
    ];
    for stream in streams {
        stream(&null).map_err(failed("leave the standard streams"))?;
    }
    Ok(Side::Daemon)
}
