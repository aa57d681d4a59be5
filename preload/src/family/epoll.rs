//! epoll_create, epoll_ctl and epoll_wait in their forms.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become references"
)]

use std::ffi::c_int;

use bypass_stack::Instant;
use libc::{EPOLL_CTL_DEL, epoll_event, sigset_t, timespec};

use crate::address::is_nowhere;
use crate::errno::to_int;
use crate::fdtable::{self, Entry};
use crate::wait::{self, epoll_set};
use crate::{context, decide, symbols};

pub unsafe fn epoll_create(size: c_int) -> c_int {
    // SAFETY: plain integer.
    registered(unsafe { symbols::epoll_create::original()(size) })
}

pub unsafe fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: plain integer.
    registered(unsafe { symbols::epoll_create1::original()(flags) })
}

fn registered(fd: c_int) -> c_int {
    if fd >= 0 {
        super::socket::reborn(fd);
        fdtable::set(fd, Entry::Epoll(epoll_set::create()));
    }
    fd
}

pub unsafe fn epoll_ctl(set: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // SAFETY: the caller's arguments.
    let original = || unsafe { symbols::epoll_ctl::original()(set, operation, fd, event) };
    if fdtable::falls_through(fd) {
        return original();
    }
    let Entry::Epoll(index) = fdtable::get(set) else {
        return original();
    };
    let Some(epoll) = epoll_set::get(index) else {
        return original();
    };
    let entry = if operation == EPOLL_CTL_DEL {
        fdtable::get(fd)
    } else {
        decide::ready(fd)
    };
    match entry {
        Entry::Udp(endpoint) => {
            let event = if is_nowhere(event) {
                None
            } else {
                // SAFETY: the caller's event.
                unsafe { event.as_ref() }
            };
            to_int(epoll.control(set, operation, fd, endpoint, event))
        }
        Entry::Candidate | Entry::Bound => {
            let result = original();
            if result == 0 {
                // SAFETY: null or the caller's event, which the kernel has read.
                let (events, data) =
                    unsafe { event.as_ref() }.map_or((0, 0), |event| (event.events, event.u64));
                epoll.note_pending(set, operation, fd, events, data);
            }
            result
        }
        Entry::Epoll(inner) if inner != index => {
            let result = original();
            if result == 0 {
                // SAFETY: null or the caller's event, which the kernel has read.
                let event = unsafe { event.as_ref() }.copied();
                epoll.note_nested(set, operation, fd, inner, event);
            }
            result
        }
        _ => original(),
    }
}

pub unsafe fn epoll_wait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout_ms: c_int,
) -> c_int {
    let Some(epoll) = epoll_set::behind(set) else {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::epoll_wait::original()(set, events, count, timeout_ms) };
    };
    if timeout_ms != 0 {
        epoll.waits_in_kernel();
    }
    if !epoll.is_kernel_only() {
        let deadline = wait::deadline_ms(timeout_ms);
        // SAFETY: the caller's arguments.
        if let Some(result) = unsafe { merged(epoll, set, events, count, deadline, None) } {
            return result;
        }
    }
    // SAFETY: the caller's arguments.
    let found = unsafe { symbols::epoll_wait::original()(set, events, count, timeout_ms) };
    // SAFETY: the kernel has written `found` events.
    unsafe { after_kernel_wait(set, events, count, found, timeout_ms, None) }
}

pub unsafe fn epoll_pwait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    if let Some(epoll) = epoll_set::behind(set).filter(|_| timeout_ms != 0) {
        epoll.waits_in_kernel();
    }
    if let Some(accelerated) = epoll_set::accelerated(set) {
        let deadline = wait::deadline_ms(timeout_ms);
        // SAFETY: the caller's arguments.
        let answer = unsafe { merged(accelerated, set, events, count, deadline, given(mask)) };
        if let Some(result) = answer {
            return result;
        }
    }
    // SAFETY: the caller's arguments.
    let found = unsafe { symbols::epoll_pwait::original()(set, events, count, timeout_ms, mask) };
    // SAFETY: the kernel has written `found` events.
    unsafe { after_kernel_wait(set, events, count, found, timeout_ms, given(mask)) }
}

/// A wait that began in the kernel alone may be ended by the set's first accelerated member: then
/// it goes on as a merged one.
///
/// # Safety
/// The first `found` of the `count` events were written.
#[inline]
unsafe fn after_kernel_wait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    found: c_int,
    timeout_ms: c_int,
    mask: Option<*const sigset_t>,
) -> c_int {
    let Some(written) = usize::try_from(found).ok().filter(|&found| found > 0) else {
        return found;
    };
    let Some(epoll) = epoll_set::behind(set).filter(|epoll| epoll.was_kicked()) else {
        return found;
    };
    // SAFETY: the caller's promise.
    let out = unsafe { std::slice::from_raw_parts_mut(events, written) };
    match epoll_set::without_kick(out) {
        0 => {
            // The timeout begins again: the kick came within it, and ends a wait only once. The set
            // may have lost its accelerated members again: merged or not is decided anew.
            epoll.end_kick(set);
            let mask = mask.unwrap_or(std::ptr::null());
            // SAFETY: the caller's array and mask.
            unsafe { epoll_pwait(set, events, count, timeout_ms, mask) }
        }
        left => left as c_int,
    }
}

pub unsafe fn epoll_pwait2(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    if let Some(accelerated) = epoll_set::accelerated(set) {
        // SAFETY: null or the caller's timeout.
        let answer = match wait::deadline_of(unsafe { timeout.as_ref() }) {
            // SAFETY: the caller's arguments.
            Ok(deadline) => unsafe {
                merged(accelerated, set, events, count, deadline, given(mask))
            },
            Err(errno) => Some(to_int(Err(errno))),
        };
        if let Some(result) = answer {
            return result;
        }
    }
    // SAFETY: the caller's arguments.
    unsafe { symbols::epoll_pwait2::original()(set, events, count, timeout, mask) }
}

fn given(mask: *const sigset_t) -> Option<*const sigset_t> {
    (!mask.is_null()).then_some(mask)
}

/// A wait on a set with accelerated members; `None` for arguments that the kernel refuses.
///
/// # Safety
/// `events` is writable for `count` events.
unsafe fn merged(
    set: &epoll_set::EpollSet,
    epfd: c_int,
    events: *mut epoll_event,
    count: c_int,
    deadline: Option<Instant>,
    mask: Option<*const sigset_t>,
) -> Option<c_int> {
    let joined = context::joined()?;
    let count = usize::try_from(count).ok().filter(|&count| count > 0)?;
    if is_nowhere(events) {
        return None;
    }
    // SAFETY: the caller's promise.
    let out = unsafe { std::slice::from_raw_parts_mut(events, count) };
    Some(to_int(set.wait(joined, epfd, out, deadline, mask)))
}
