//! The one place where a Rust answer becomes a C return value.

#![expect(unsafe_code, reason = "UNSAFETY: writes errno through libc's pointer")]

use rustix::io::Errno;

/// How an intercepted call ends.
pub type Answer = Result<isize, Errno>;

/// errno of the last libc call of this thread.
pub fn last() -> Errno {
    // SAFETY: libc's errno location is valid for the thread's life.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Sets errno.
pub fn set(errno: Errno) {
    // SAFETY: as in `last`.
    unsafe { *libc::__errno_location() = errno.raw_os_error() };
}

/// The C form: the value, or -1 and errno. errno stays untouched on success.
pub fn to_c(answer: Answer) -> isize {
    match answer {
        Ok(value) => value,
        Err(errno) => {
            set(errno);
            -1
        }
    }
}

/// The C form of an `int` call.
pub fn to_int(answer: Answer) -> i32 {
    to_c(answer) as i32
}

/// A libc call's return value as an answer.
pub fn from_c(value: isize) -> Answer {
    if value < 0 { Err(last()) } else { Ok(value) }
}
