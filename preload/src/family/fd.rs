//! close, dup and fcntl: what a descriptor number is, followed through its life.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C arguments are passed on to libc's originals"
)]

use std::ffi::{c_int, c_uint};

use bypass_proto::reason::FallThrough;
use libc::size_t;
use rustix::io::Errno;

use crate::errno::{set, to_int};
use crate::fdtable::{self, Entry};
use crate::wait::epoll_set;
use crate::{decide, private, report, sharing, symbols, tcp};

/// The number is about to be closed, or to become something else.
pub fn forget(fd: c_int) {
    let entry = match fdtable::look(fd) {
        Entry::Guest => tcp::guest::closes(fd),
        entry => entry,
    };
    fdtable::set(fd, Entry::Other);
    report::closed(fd);
    if sharing::is_shareable(entry) && sharing::descriptor_removed(entry) {
        ended(fd, entry);
    }
}

/// Nobody in this process holds the entry any more; `fd` was its last number, or is -1.
pub fn ended(fd: c_int, entry: Entry) {
    match entry {
        Entry::Udp(endpoint) => {
            epoll_set::closed(endpoint);
            decide::release(fd, endpoint);
        }
        Entry::Tcp(endpoint) => {
            epoll_set::closed(endpoint);
            tcp::close::closed(endpoint);
        }
        Entry::Listener(endpoint) => {
            epoll_set::closed(endpoint);
            tcp::close::listener_closed(endpoint);
        }
        Entry::Epoll(index) => epoll_set::destroy(index),
        _ => {}
    }
}

pub unsafe fn close(fd: c_int) -> c_int {
    if fdtable::falls_through(fd) {
        // SAFETY: plain integer.
        return unsafe { symbols::close::original()(fd) };
    }
    close_ours(fd)
}

#[cold]
#[inline(never)]
fn close_ours(fd: c_int) -> c_int {
    if fdtable::look(fd) == Entry::Private {
        if !private::is_own() {
            return to_int(Err(Errno::BADF));
        }
        fdtable::set(fd, Entry::Other);
    } else {
        forget(fd);
    }
    // SAFETY: plain integer.
    unsafe { symbols::close::original()(fd) }
}

/// Runs `each` on the stretches of `first..=last` that hold none of our descriptors.
fn around_ours(first: c_uint, last: c_uint, mut each: impl FnMut(c_uint, c_uint)) {
    let mut from = first;
    for (fd, entry) in fdtable::entries(first, last) {
        if entry == Entry::Private {
            let fd = fd as c_uint;
            if from < fd {
                each(from, fd - 1);
            }
            from = fd + 1;
        }
    }
    if from <= last {
        each(from, last);
    }
}

pub unsafe fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    /// `CLOSE_RANGE_UNSHARE` of linux/close_range.h.
    const UNSHARE: c_int = 2;
    /// `CLOSE_RANGE_CLOEXEC` of linux/close_range.h.
    const CLOEXEC: c_int = 4;
    if first > last || flags & !(UNSHARE | CLOEXEC) != 0 {
        // SAFETY: plain integers; the kernel refuses them.
        return unsafe { symbols::close_range::original()(first, last, flags) };
    }
    let mut result = 0;
    around_ours(first, last, |from, to| {
        if flags & CLOEXEC == 0 {
            let numbers: Vec<_> = fdtable::entries(from, to).map(|(fd, _)| fd).collect();
            for fd in numbers {
                forget(fd);
            }
        }
        // SAFETY: plain integers.
        let one = unsafe { symbols::close_range::original()(from, to, flags) };
        if one != 0 {
            result = one;
        }
    });
    result
}

pub unsafe fn closefrom(first: c_int) {
    let first = first.max(0) as c_uint;
    if fdtable::entries(first, c_uint::MAX - 1).next().is_none() {
        // SAFETY: plain integer.
        return unsafe { symbols::closefrom::original()(first as c_int) };
    }
    // SAFETY: plain integers.
    unsafe { close_range(first, c_uint::MAX, 0) };
}

/// `new` is now a duplicate of `old`.
fn duplicated(old: c_int, new: c_int) {
    let entry = match fdtable::get(old) {
        // A duplicate shares the address too: decide now, so that both lead to one endpoint.
        Entry::Bound => decide::activate(old),
        // Who has several descriptors has it from the kernel.
        Entry::Guest => tcp::guest::stays(old, FallThrough::Inherited),
        entry => entry,
    };
    if sharing::is_shareable(entry) {
        sharing::descriptor_added(entry);
        fdtable::set(new, entry);
        report::duplicated(old, new);
    } else if is_candidate(entry) || !fdtable::falls_through(new) {
        // A candidate's duplicate is not followed: the kernel serves both from here on.
        fdtable::set(new, Entry::Other);
        if is_candidate(entry) {
            fdtable::set(old, Entry::Other);
            report::refused(old, FallThrough::Inherited);
        }
    }
}

fn is_candidate(entry: Entry) -> bool {
    matches!(entry, Entry::Candidate | Entry::TcpCandidate)
}

pub unsafe fn dup(fd: c_int) -> c_int {
    if fdtable::get(fd) == Entry::Private {
        return to_int(Err(Errno::BADF));
    }
    // SAFETY: plain integer.
    let new = unsafe { symbols::dup::original()(fd) };
    if new >= 0 {
        duplicated(fd, new);
    }
    new
}

pub unsafe fn dup2(old: c_int, new: c_int) -> c_int {
    if fdtable::falls_through(old) && fdtable::falls_through(new) {
        // SAFETY: plain integers.
        return unsafe { symbols::dup2::original()(old, new) };
    }
    // SAFETY: plain integers.
    onto(old, new, || unsafe { symbols::dup2::original()(old, new) })
}

pub unsafe fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    if fdtable::falls_through(old) && fdtable::falls_through(new) {
        // SAFETY: plain integers.
        return unsafe { symbols::dup3::original()(old, new, flags) };
    }
    // SAFETY: plain integers.
    onto(old, new, || unsafe {
        symbols::dup3::original()(old, new, flags)
    })
}

fn onto(old: c_int, new: c_int, original: impl FnOnce() -> c_int) -> c_int {
    if fdtable::get(old) == Entry::Private {
        return to_int(Err(Errno::BADF));
    }
    if fdtable::look(new) == Entry::Private {
        // Our descriptor sits on that number and cannot move while threads use it.
        return to_int(Err(Errno::BUSY));
    }
    if old == new {
        return original();
    }
    // The kernel refuses a bad `old` before it touches `new`.
    // SAFETY: F_GETFD takes no argument.
    if unsafe { symbols::fcntl::original()(old, libc::F_GETFD, 0) } < 0 {
        return original();
    }
    if !fdtable::falls_through(new) {
        forget(new);
    }
    let result = original();
    if result >= 0 {
        duplicated(old, new);
    }
    result
}

/// Of asm-generic/fcntl.h.
const F_SETOWN_EX: c_int = 15;

pub unsafe fn fcntl(fd: c_int, command: c_int, argument: size_t) -> c_int {
    // SAFETY: the caller's arguments.
    let original = || unsafe { symbols::fcntl::original()(fd, command, argument) };
    if fdtable::falls_through(fd) {
        let result = original();
        // The new number may have been ours before it was closed behind our back.
        if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC)
            && result >= 0
            && !fdtable::falls_through(result)
        {
            fdtable::set(result, Entry::Other);
        }
        return result;
    }
    if fdtable::get(fd) == Entry::Private {
        // A debug build of std asks whether a descriptor that it closes is open.
        if private::is_own() {
            return original();
        }
        set(Errno::BADF);
        return -1;
    }
    if let (Entry::Listener(endpoint), libc::F_SETFL) = (fdtable::get(fd), command) {
        // The shadow never blocks (see `tcp::listen`).
        let wanted = argument as c_int;
        let kept = (wanted | libc::O_NONBLOCK) as size_t;
        // SAFETY: plain integers.
        let result = unsafe { symbols::fcntl::original()(fd, command, kept) };
        if result >= 0 {
            tcp::options::note_nonblocking(endpoint, wanted & libc::O_NONBLOCK != 0);
        }
        return result;
    }
    let result = original();
    if result < 0 {
        return result;
    }
    if let (Entry::Listener(endpoint), libc::F_GETFL) = (fdtable::get(fd), command) {
        let on = tcp::options::is_nonblocking(endpoint);
        return result & !libc::O_NONBLOCK | if on { libc::O_NONBLOCK } else { 0 };
    }
    match command {
        libc::F_SETOWN if argument as c_int == 0 => {}
        libc::F_SETOWN | F_SETOWN_EX => tcp::foreign::signals(fd),
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, result),
        libc::F_SETFL => super::ioctl::nonblocking_changed(fd),
        _ => {}
    }
    result
}
