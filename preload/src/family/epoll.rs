//! epoll_create, epoll_ctl and epoll_wait in their forms.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become references"
)]

use std::ffi::c_int;

use bypass_proto::reason::FallThrough;
use bypass_stack::Instant;
use libc::{EPOLL_CTL_DEL, epoll_event, sigset_t, timespec};
use rustix::io::Errno;

use crate::address::{is_kernels, is_nowhere, is_wild};
use crate::errno::to_int;
use crate::fdtable::{self, Entry, Set};
use crate::tcp::{guest, handover};
use crate::wait::{self, epoll_set};
use crate::{context, decide, process, symbols};

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
        if let Some(index) = epoll_set::create(fd) {
            fdtable::set(fd, Entry::Epoll(index));
        }
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
        Entry::Udp(endpoint) | Entry::Tcp(endpoint) | Entry::Listener(endpoint) => {
            let event_of_caller = event;
            let event = if is_nowhere(event) {
                None
            } else {
                // SAFETY: the caller's event.
                unsafe { event.as_ref() }
            };
            let socket = (fd, endpoint, entry.is_shadowed());
            match epoll.control(set, operation, socket, event) {
                // SAFETY: the caller's arguments.
                Err(Errno::STALE) if handover::moved(fd, endpoint) => unsafe {
                    epoll_ctl(set, operation, fd, event_of_caller)
                },
                Err(Errno::STALE) => to_int(Err(Errno::NOENT)),
                answer => to_int(answer),
            }
        }
        Entry::Candidate | Entry::Bound | Entry::TcpCandidate => {
            let result = original();
            if result == 0 {
                // SAFETY: null or the caller's event, which the kernel has read.
                let (events, data) =
                    unsafe { event.as_ref() }.map_or((0, 0), |event| (event.events, event.u64));
                epoll.note_pending(set, operation, fd, events, data);
            }
            result
        }
        Entry::Guest => {
            // SAFETY: the caller's arguments.
            unsafe { control_guest(epoll, set, operation, fd, event) }
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

/// epoll_ctl on a guest: the kernel's, as long as it is one.
///
/// # Safety
/// `event` is the caller's.
#[cold]
unsafe fn control_guest(
    epoll: &epoll_set::EpollSet,
    set: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the caller's promise.
    let given = || unsafe { event.as_ref() }.map_or((0, 0), |event| (event.events, event.u64));
    // SAFETY: the caller's arguments.
    let result = unsafe { symbols::epoll_ctl::original()(set, operation, fd, event) };
    if result == 0 {
        let (events, data) = match operation {
            EPOLL_CTL_DEL => (0, 0),
            _ => given(),
        };
        epoll.note_guest(set, operation, fd, events, data);
        if events & libc::EPOLLONESHOT as u32 != 0 {
            // Nobody knows later whether the kernel has told of it.
            guest::stays(fd, FallThrough::Option);
        }
    }
    match fdtable::look(fd) {
        // It has come to the stack meanwhile.
        Entry::Tcp(endpoint) if result == 0 => epoll_set::activated(fd, endpoint, false),
        // SAFETY: the caller's arguments.
        Entry::Tcp(_) => return unsafe { epoll_ctl(set, operation, fd, event) },
        _ => {}
    }
    result
}

/// Whether the original alone can serve a wait on this descriptor: two or three loads.
///
/// A set without accelerated members may get one from another thread during the wait, which must
/// then end ([`kernel_wait`]); a program with one thread has nobody who could do that.
#[inline]
fn is_plain(set: c_int) -> bool {
    match fdtable::set_of(set) {
        Set::Known(index) => {
            epoll_set::get(index).is_none_or(|epoll| epoll.is_kernel_only() && process::is_alone())
        }
        Set::No => true,
        Set::Heir => false,
    }
}

pub unsafe fn epoll_wait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout_ms: c_int,
) -> c_int {
    if is_plain(set) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::epoll_wait::original()(set, events, count, timeout_ms) };
    }
    // SAFETY: the caller's arguments; epoll_wait is epoll_pwait without a mask.
    unsafe { wait_ms(set, events, count, timeout_ms, std::ptr::null()) }
}

pub unsafe fn epoll_pwait(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    if is_plain(set) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::epoll_pwait::original()(set, events, count, timeout_ms, mask) };
    }
    // SAFETY: the caller's arguments.
    unsafe { wait_ms(set, events, count, timeout_ms, mask) }
}

pub unsafe fn epoll_pwait2(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    let original =
        || unsafe { symbols::epoll_pwait2::original()(set, events, count, timeout, mask) };
    if is_plain(set) || is_wild(timeout) {
        return original();
    }
    // SAFETY: null or the caller's timeout.
    match wait::deadline_of(unsafe { timeout.as_ref() }) {
        // SAFETY: the caller's arguments.
        Ok(deadline) => unsafe { either(set, events, count, || deadline, mask, original) },
        Err(errno) => to_int(Err(errno)),
    }
}

/// A wait with a timeout in milliseconds on a set that may have accelerated members.
///
/// # Safety
/// `events` is writable for `count` events.
#[inline(never)]
unsafe fn wait_ms(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    let original =
        || unsafe { symbols::epoll_pwait::original()(set, events, count, timeout_ms, mask) };
    let deadline = || wait::deadline_ms(timeout_ms);
    // SAFETY: the caller's promise.
    unsafe { either(set, events, count, deadline, mask, original) }
}

/// A merged wait when the set has accelerated members, else the kernel's. A wait that began in
/// the kernel alone may be ended by the set's first accelerated member: then it begins again, and
/// its timeout too (the kick came within it, and ends a wait only once).
///
/// # Safety
/// `events` is writable for `count` events.
unsafe fn either(
    set: c_int,
    events: *mut epoll_event,
    count: c_int,
    deadline: impl Fn() -> Option<Instant>,
    mask: *const sigset_t,
    original: impl Fn() -> c_int,
) -> c_int {
    loop {
        let Some(epoll) = epoll_set::behind(set) else {
            return original();
        };
        epoll.waits_in_kernel();
        if !epoll.is_kernel_only() && !is_wild(mask) {
            // SAFETY: the caller's promise.
            let merged = unsafe { merged(epoll, set, events, count, deadline(), given(mask)) };
            if let Some(result) = merged {
                return result;
            }
        }
        let found = original();
        if found <= 0 || !epoll.was_kicked() {
            return found;
        }
        // SAFETY: the kernel has written `found` events.
        let written = unsafe { std::slice::from_raw_parts_mut(events, found as usize) };
        match epoll_set::without_kick(written) {
            0 => epoll.end_kick(set),
            left => return left as c_int,
        }
    }
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
    if is_kernels(events) {
        return None;
    }
    if is_nowhere(events) {
        // The kernel finds out when it has an event to write.
        let mut out = [epoll_event { events: 0, u64: 0 }];
        let found = set.wait(joined, epfd, &mut out, deadline, mask);
        return Some(to_int(found.and_then(|count| match count {
            0 => Ok(0),
            _ => Err(Errno::FAULT),
        })));
    }
    // SAFETY: the caller's promise.
    let out = unsafe { std::slice::from_raw_parts_mut(events, count) };
    Some(to_int(set.wait(joined, epfd, out, deadline, mask)))
}
