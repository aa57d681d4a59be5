//! What is written to standard error, by `BYPASS_LOG`: cold paths only.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use bypass_proto::options::Log;
use bypass_proto::reason::FallThrough;
use once_cell::sync::OnceCell;
use rustix::io::Errno;

use crate::config;

/// Device and inode of descriptor 2 when the program started: what it is later may be a file of the
/// program's that must not get our lines.
static STDERR: OnceCell<(u64, u64)> = OnceCell::new();

/// The process's descriptor 2.
fn stderr() -> BorrowedFd<'static> {
    #[expect(unsafe_code, reason = "UNSAFETY: borrows descriptor 2")]
    // SAFETY: used for one call at a time; when it is closed the call fails.
    unsafe {
        BorrowedFd::borrow_raw(2)
    }
}

fn identity() -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(stderr()).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Notes what descriptor 2 is at the start.
pub fn remember() {
    if let Some(identity) = identity() {
        let _ = STDERR.set(identity);
    }
}

fn line(text: fmt::Arguments<'_>) {
    if identity().is_some_and(|now| STDERR.get() == Some(&now)) {
        let config = config::get();
        let name = config.program.rsplit('/').next().unwrap_or_default();
        let pid = rustix::process::getpid().as_raw_nonzero();
        let line = format!("libbypass: {name}[{pid}]: {text}\n");
        let _ = rustix::io::write(stderr(), line.as_bytes());
    }
}

/// Writes a line at this level.
pub fn at(level: Log, text: fmt::Arguments<'_>) {
    if config::get().options.log >= level {
        line(text);
    }
}

/// Tells once what is wrong with the BYPASS_* variables.
pub fn complain() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let complaints = &config::get().complaints;
    if !complaints.is_empty() && !TOLD.swap(true, Ordering::Relaxed) {
        at(Log::Info, format_args!("{}", complaints.join("; ")));
    }
}

/// Whether the reason holds for every socket of the process and is not what was asked for.
fn is_of_process(reason: FallThrough) -> bool {
    matches!(
        reason,
        FallThrough::BadConfig
            | FallThrough::NoDaemon
            | FallThrough::NotAllowed
            | FallThrough::Refused
            | FallThrough::Version
    )
}

/// Tells of a socket that stays with the kernel, or once of all of them.
pub fn refused(socket: fmt::Arguments<'_>, reason: FallThrough, errno: i32) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let config = config::get();
    let why = Why {
        reason,
        errno,
        config: config.policy.as_ref().err().map(String::as_str),
    };
    at(Log::Info, format_args!("{socket}: kernel: {why}"));
    if config.options.log == Log::Error
        && is_of_process(reason)
        && !TOLD.swap(true, Ordering::Relaxed)
    {
        line(format_args!("all sockets stay with the kernel: {why}"));
    }
}

/// A reason with what belongs to it.
struct Why<'a> {
    reason: FallThrough,
    errno: i32,
    config: Option<&'a str>,
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.sentence())?;
        if let (FallThrough::BadConfig, Some(message)) = (self.reason, self.config) {
            return write!(f, " {message}");
        }
        if self.errno != 0 {
            write!(f, " ({})", Errno::from_raw_os_error(self.errno))?;
        }
        if self.reason.advice().is_empty() {
            Ok(())
        } else {
            write!(f, " -> {}", self.reason.advice())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_tells_its_error_and_what_to_do() {
        let why = |reason, errno| {
            let config = Some("/x:3:1: unknown key");
            let why = Why {
                reason,
                errno,
                config,
            };
            why.to_string()
        };
        let text = why(FallThrough::NoDaemon, 111);
        assert!(
            text.contains("os error 111") && text.contains("-> start"),
            "{text}"
        );
        assert!(why(FallThrough::BadConfig, 0).ends_with("/x:3:1: unknown key"));
        assert_eq!(
            why(FallThrough::Loopback, 0),
            FallThrough::Loopback.sentence()
        );
    }
}
