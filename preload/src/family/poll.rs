//! poll and ppoll.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C pointers of the caller become slices"
)]

use std::ffi::c_int;

use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_stack::{EndpointId, Instant};
use libc::{
    POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, nfds_t, pollfd, sigset_t, size_t, timespec,
};
use rustix::io::Errno;

use crate::address::{is_nowhere, is_wild};
use crate::context::{self, Joined};
use crate::errno::{Answer, last, to_int};
use crate::fdtable::{self, Entry};
use crate::tcp::{guest, handover};
use crate::wait::block::Limits;
use crate::wait::call::Call;
use crate::wait::epoll_set::{self, EpollSet};
use crate::wait::{self, Interest, Target, Woken};
use crate::{decide, symbols, udp};

pub unsafe fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    // SAFETY: the caller's array.
    if unsafe { falls_through(fds, count) } {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::poll::original()(fds, count, timeout_ms) };
    }
    // SAFETY: the caller's array.
    unsafe { poll_ours(fds, count, timeout_ms) }
}

/// poll on an array with a descriptor that the table knows.
///
/// # Safety
/// `fds` is an array of `count`.
#[inline(never)]
unsafe fn poll_ours(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let fds = unsafe { std::slice::from_raw_parts_mut(fds, count as usize) };
    if !fds.iter().any(|entry| matters(entry.fd)) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::poll::original()(fds.as_mut_ptr(), count, timeout_ms) };
    }
    to_int(merged(fds, wait::deadline_ms(timeout_ms), None))
}

pub unsafe fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's array.
    if unsafe { falls_through(fds, count) } {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::ppoll::original()(fds, count, timeout, mask) };
    }
    // SAFETY: the caller's array and pointers.
    unsafe { ppoll_ours(fds, count, timeout, mask) }
}

/// ppoll on an array with a descriptor that the table knows.
///
/// # Safety
/// `fds` is an array of `count`; the pointers are the caller's.
#[inline(never)]
unsafe fn ppoll_ours(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    let fds = unsafe { std::slice::from_raw_parts_mut(fds, count as usize) };
    if is_wild(timeout) || is_wild(mask) || !fds.iter().any(|entry| matters(entry.fd)) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::ppoll::original()(fds.as_mut_ptr(), count, timeout, mask) };
    }
    // SAFETY: null or the caller's timeout.
    match wait::deadline_of(unsafe { timeout.as_ref() }) {
        Ok(deadline) => to_int(merged(fds, deadline, (!mask.is_null()).then_some(mask))),
        Err(errno) => to_int(Err(errno)),
    }
}

pub unsafe fn poll_chk(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int, size: size_t) -> c_int {
    // SAFETY: the caller's array.
    if size / size_of::<pollfd>() < count as usize || unsafe { falls_through(fds, count) } {
        // SAFETY: the caller's arguments; libc's own check ends the program on overflow.
        return unsafe { symbols::__poll_chk::original()(fds, count, timeout_ms, size) };
    }
    // SAFETY: the size was checked.
    unsafe { poll(fds, count, timeout_ms) }
}

pub unsafe fn ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    size: size_t,
) -> c_int {
    // SAFETY: the caller's array.
    if size / size_of::<pollfd>() < count as usize || unsafe { falls_through(fds, count) } {
        // SAFETY: the caller's arguments; libc's own check ends the program on overflow.
        return unsafe { symbols::__ppoll_chk::original()(fds, count, timeout, mask, size) };
    }
    // SAFETY: the size was checked.
    unsafe { ppoll(fds, count, timeout, mask) }
}

/// Whether the call is the kernel's by the table alone. Calls nothing, so that falling through
/// is a jump.
///
/// # Safety
/// `fds` is null or an array of `count`.
#[inline(always)]
unsafe fn falls_through(fds: *const pollfd, count: nfds_t) -> bool {
    // The kernel refuses counts above any limit on open files.
    if is_nowhere(fds) || count > 1 << 20 {
        return true;
    }
    (0..count as usize).all(|index| {
        // SAFETY: `index < count`.
        fdtable::falls_through(unsafe { (*fds.add(index)).fd })
    })
}

/// Whether waiting on this descriptor is different from the kernel's way.
pub fn matters(fd: c_int) -> bool {
    match decide::ready(fd) {
        Entry::Epoll(_) => epoll_set::accelerated(fd).is_some(),
        // It may come to the stack during the wait.
        Entry::Guest => true,
        entry => entry.endpoint().is_some(),
    }
}

/// Reported whether asked for or not.
const ALWAYS: i16 = POLLERR | POLLHUP;

/// An accelerated descriptor of the array.
enum Ours {
    /// The endpoint, and whether the kernel may have something for the descriptor too.
    Socket(EndpointId, bool),
    Set(&'static EpollSet),
}

impl Ours {
    /// What the stack has for the descriptor, of what `entry` asks for.
    fn ready(&self, entry: &pollfd, locked: &mut Locked<'_>) -> i16 {
        let wanted = entry.events | ALWAYS;
        match self {
            Self::Socket(endpoint, shadowed) => match locked.stack().readiness(*endpoint) {
                Ok(now) => now.events as i16 & wanted,
                Err(_) if *shadowed => 0,
                Err(_) => ENDED & wanted,
            },
            Self::Set(set) if wanted & READ != 0 && set.any_ready(locked) => READ & wanted,
            Self::Set(_) => 0,
        }
    }

    /// Whether another thread has closed the descriptor since: the kernel knows it no more.
    fn is_closed(&self, fd: c_int) -> bool {
        matches!(self, Self::Socket(endpoint, _) if !fdtable::leads_to(fd, *endpoint))
    }

    /// Keeps it for the call.
    fn keep(&self, fd: c_int, call: &mut Call) {
        match self {
            Self::Socket(endpoint, _) => call.keep(fd, *endpoint),
            Self::Set(_) => call.keep_set(fd),
        }
    }

    /// Whether the kernel's answer for the descriptor counts.
    fn is_shadowed(&self) -> bool {
        !matches!(self, Self::Socket(_, false))
    }
}

/// What a socket is ready for that has ended: every call returns at once.
const ENDED: i16 = READ | POLLOUT | POLLERR | POLLHUP;

/// What says that there is something to read.
const READ: i16 = POLLIN | POLLRDNORM;

/// poll over kernel and accelerated descriptors.
///
/// # Errors
/// As the kernel's.
pub fn merged(
    fds: &mut [pollfd],
    deadline: Option<Instant>,
    mask: Option<*const sigset_t>,
) -> Answer {
    let Some(joined) = context::joined() else {
        return kernel(fds);
    };
    let mut ours = ours_of(fds);
    let mut call = Call::default();
    loop {
        let (ready, news) = look(joined, fds, &ours)?;
        if news {
            handover::follow();
            ours = ours_of(fds);
            continue;
        }
        if ready > 0 {
            return Ok(ready);
        }
        if deadline.is_some_and(|deadline| clock::now().0 >= deadline.0) {
            return Ok(0);
        }
        match sleep(joined, fds, &ours, (deadline, &mut call), mask) {
            Woken::Ready => {}
            Woken::TimedOut => return Ok(0),
            Woken::Interrupted => return Err(Errno::INTR),
        }
    }
}

/// The accelerated descriptors of the array.
fn ours_of(fds: &[pollfd]) -> Vec<(usize, Ours)> {
    let each = fds.iter().enumerate();
    each.filter_map(|(index, entry)| match fdtable::get(entry.fd) {
        Entry::Epoll(_) => epoll_set::accelerated(entry.fd).map(|set| (index, Ours::Set(set))),
        ours => ours
            .endpoint()
            .map(|endpoint| (index, Ours::Socket(endpoint, ours.is_shadowed()))),
    })
    .collect()
}

fn kernel(fds: &mut [pollfd]) -> Answer {
    // SAFETY: the slice is writable for its length; no waiting.
    let count = unsafe { symbols::poll::original()(fds.as_mut_ptr(), fds.len() as nfds_t, 0) };
    if count < 0 {
        Err(last())
    } else {
        Ok(count as isize)
    }
}

/// Fills `revents` from kernel and stack; returns how many descriptors are ready, and whether
/// connections have gone to the kernel meanwhile.
fn look(
    joined: &Joined,
    fds: &mut [pollfd],
    ours: &[(usize, Ours)],
) -> Result<(isize, bool), Errno> {
    if ours.len() < fds.len() || ours.iter().any(|(_, ours)| ours.is_shadowed()) {
        kernel(fds)?;
    }
    if fds.iter().any(guest::has_come) {
        return Ok((0, true));
    }
    let mut stale = false;
    let mut news = false;
    if let Ok(mut locked) = joined.attachment.lock() {
        locked.pump(clock::now());
        news = handover::is_news(&mut locked);
        stale = joined.is_stale(locked.stack().queue_pairs_generation());
        for (index, ours) in ours {
            let entry = &mut fds[*index];
            if !ours.is_shadowed() || ours.is_closed(entry.fd) {
                entry.revents = 0;
            } else if entry.revents & POLLERR != 0 {
                udp::send::error_seen(entry.fd);
            }
            let ready = ours.ready(entry, &mut locked);
            entry.revents |= ready;
        }
    }
    if stale {
        joined.refresh();
    }
    let ready = fds.iter().filter(|entry| entry.revents != 0).count();
    Ok((ready as isize, news))
}

fn sleep(
    joined: &Joined,
    fds: &[pollfd],
    ours: &[(usize, Ours)],
    (deadline, call): Limits<'_>,
    mask: Option<*const sigset_t>,
) -> Woken {
    for (index, ours) in ours {
        ours.keep(fds[*index].fd, call);
    }
    let mut watched = Vec::with_capacity(fds.len() + 8);
    watched.extend_from_slice(fds);
    for (index, ours) in ours {
        match ours {
            Ours::Socket(_, false) => watched[*index].fd = -1,
            Ours::Socket(_, true) if ours.is_closed(fds[*index].fd) => watched[*index].fd = -1,
            Ours::Socket(_, true) => {}
            // The overlay tells of shadows and kernel members, whatever was asked of the set
            // itself.
            Ours::Set(set) if fds[*index].events & POLLIN != 0 => set.overlays(&mut watched),
            Ours::Set(_) => {}
        }
    }
    let mut interest = Interest {
        fds: &mut watched,
        targets: &|into| {
            for (index, ours) in ours {
                match ours {
                    Ours::Socket(endpoint, _) => into.push(Target::Endpoint(*endpoint)),
                    Ours::Set(set) if fds[*index].events & READ != 0 => set.targets(into),
                    Ours::Set(_) => {}
                }
            }
        },
        ready: &mut |locked| {
            ours.iter()
                .any(|(index, ours)| ours.ready(&fds[*index], locked) != 0)
        },
        mask,
        sleeping: None,
        alone: None,
    };
    wait::wait(joined, &mut interest, deadline, call)
}
