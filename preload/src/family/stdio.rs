//! fdopen and vdprintf: stdio on our sockets.
//!
//! glibc's streams read, write and close by calls inside libc, which no preloaded library sees. A
//! stream over a socket of ours is a cookie stream (fopencookie(3)), whose calls are the hooked
//! ones, with the descriptor's number put in, so that fileno(3) knows it.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: callbacks of libc's streams; C strings of the caller"
)]

use std::ffi::{CStr, c_char, c_int, c_void};

use libc::{FILE, size_t, ssize_t};
use rustix::io::Errno;

use super::{fd as numbers, io};
use crate::errno;
use crate::fdtable::{self, Entry};
use crate::symbols;

/// `cookie_io_functions_t` of stdio.h.
#[repr(C)]
struct Functions {
    read: unsafe extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: unsafe extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    seek: unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut FILE;
    fn vasprintf(text: *mut *mut c_char, format: *const c_char, arguments: *mut c_void) -> c_int;
}

/// Where `_fileno` is in glibc's `FILE` (bits/types/struct_FILE.h): after flags and twelve
/// pointers, unchanged since glibc 2.1.
const FILENO: usize = 8 + 13 * 8;

/// The descriptor's number is the cookie.
fn number(cookie: *mut c_void) -> c_int {
    cookie.addr() as c_int
}

unsafe extern "C" fn read(cookie: *mut c_void, buffer: *mut c_char, len: size_t) -> ssize_t {
    // SAFETY: the stream's own buffer.
    unsafe { io::read(number(cookie), buffer.cast(), len) }
}

/// Everything, as a stream over a file does; less after an error, never negative.
unsafe extern "C" fn write(cookie: *mut c_void, buffer: *const c_char, len: size_t) -> ssize_t {
    // SAFETY: the stream's own buffer.
    unsafe { write_all(number(cookie), buffer, len) as ssize_t }
}

unsafe extern "C" fn seek(_: *mut c_void, _: *mut i64, _: c_int) -> c_int {
    errno::set(Errno::SPIPE);
    -1
}

unsafe extern "C" fn close(cookie: *mut c_void) -> c_int {
    // SAFETY: plain integer.
    unsafe { numbers::close(number(cookie)) }
}

/// Writes until all is written or a write fails; how much was written.
///
/// # Safety
/// `buffer` is readable for `len` bytes.
unsafe fn write_all(fd: c_int, buffer: *const c_char, len: usize) -> usize {
    let mut done = 0;
    while done < len {
        // SAFETY: the caller's promise.
        let put = unsafe { io::write(fd, buffer.add(done).cast(), len - done) };
        if put <= 0 {
            break;
        }
        done += put as usize;
    }
    done
}

/// Whether a stream on this number must go by us.
fn is_ours(fd: c_int) -> bool {
    !fdtable::falls_through(fd) && !matches!(fdtable::get(fd), Entry::Epoll(_) | Entry::Private)
}

pub unsafe fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    if !is_ours(fd) || mode.is_null() {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::fdopen::original()(fd, mode) };
    }
    // SAFETY: the caller's string.
    let asked = unsafe { CStr::from_ptr(mode) }.to_bytes();
    // What glibc looks at: the letter, and a plus among the next ones.
    let both = asked.iter().take(6).skip(1).any(|&letter| letter == b'+');
    let plain = match (asked.first(), both) {
        (Some(b'r'), false) => c"r",
        (Some(b'w'), false) => c"w",
        (Some(b'a'), false) => c"a",
        (Some(b'r'), true) => c"r+",
        (Some(b'w'), true) => c"w+",
        (Some(b'a'), true) => c"a+",
        _ => {
            errno::set(Errno::INVAL);
            return std::ptr::null_mut();
        }
    };
    let functions = Functions {
        read,
        write,
        seek,
        close,
    };
    let cookie = std::ptr::without_provenance_mut(fd as usize);
    // SAFETY: the functions take what stdio gives them.
    let stream = unsafe { fopencookie(cookie, plain.as_ptr(), functions) };
    if !stream.is_null() {
        // SAFETY: glibc's FILE is larger than this; nobody else has the stream yet.
        unsafe { stream.cast::<u8>().add(FILENO).cast::<c_int>().write(fd) };
    }
    stream
}

pub unsafe fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int {
    if !is_ours(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::vdprintf::original()(fd, format, arguments) };
    }
    let mut text = std::ptr::null_mut();
    // SAFETY: the caller's format and arguments.
    let length = unsafe { vasprintf(&raw mut text, format, arguments) };
    if length < 0 {
        return length;
    }
    // SAFETY: `length` bytes were written there.
    let done = unsafe { write_all(fd, text, length as usize) };
    // SAFETY: vasprintf has allocated it; free keeps errno (glibc 2.33).
    unsafe { libc::free(text.cast()) };
    if done < length as usize { -1 } else { length }
}

pub unsafe fn vdprintf_chk(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    arguments: *mut c_void,
) -> c_int {
    if !is_ours(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::__vdprintf_chk::original()(fd, flag, format, arguments) };
    }
    // SAFETY: the caller's arguments.
    unsafe { vdprintf(fd, format, arguments) }
}
