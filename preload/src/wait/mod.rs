//! Waiting over a mix of kernel and accelerated descriptors: one mechanism for all calls.
//!
//! ```text
//!   pump the stack, look  --ready-->  return
//!        | not ready
//!   spin for at most spin_us, where that has paid (signals held back from here on until the
//!        | still not ready                          call returns)
//!   park on the endpoints, look again, then ppoll(kernel fds, queues, bell) until the deadline,
//!        |                         without the queues while others watch them ([`lookout`])
//!        | woken by any of them
//!   unpark, pump, look
//! ```
//!
//! No wake-up is lost between the last look and the sleep: a frame that arrives then makes a queue
//! readable; one that another thread or process takes from the queue rings the bell of every
//! waiter parked on its endpoint. Who does not watch the queue looks after some milliseconds. No
//! signal is lost either: the sleep opens the mask in the same step in which it begins, and what
//! came since the last one is delivered before the next.

#![expect(unsafe_code, reason = "UNSAFETY: ppoll and sigmask through libc")]

pub mod block;
pub mod call;
pub mod epoll_set;
mod lookout;
pub mod members;
pub mod shared_members;
pub mod signals;
mod spin;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_runtime::wake::Bell;
use bypass_stack::{EndpointId, Instant, WaiterId, WatcherId};
use libc::{POLLIN, pollfd, sigset_t, timespec};
use rustix::io::Errno;

use self::call::Call;
use self::epoll_set::EpollSet;
use self::lookout::{Look, Wake};
use crate::context::{self, Joined};
use crate::locks::Mutex;
use crate::{config, errno, private, symbols};

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Look again: the stack or one of the kernel descriptors has something.
    Ready,
    /// The deadline has passed.
    TimedOut,
    /// A signal handler has run.
    Interrupted,
}

/// Sleep of a waiter for whom no slot was left: it looks again after this long.
const WITHOUT_BELL_NS: u64 = 1_000_000;

/// How late whoever does not watch the queues runs a timer of the stack.
const TIMER_PATIENCE_NS: u64 = 2_000_000;

/// A slot in the image and the socket that wakes its owner.
#[derive(Debug)]
struct Waiter {
    id: WaiterId,
    bell: Bell,
}

/// Waiters not in use; a wait takes one and puts it back.
static POOL: Mutex<Vec<Waiter>> = Mutex::new(Vec::new());

fn take_waiter(joined: &Joined) -> Option<Waiter> {
    if let Some(waiter) = POOL.lock().pop() {
        return Some(waiter);
    }
    let id = joined
        .attachment
        .lock()
        .ok()?
        .stack()
        .add_waiter(context::process())?;
    match Bell::new(joined.attachment.id(), id) {
        Ok(bell) => {
            let bell = Bell::from_fd(private::hide(bell.into_fd()));
            Some(Waiter { id, bell })
        }
        Err(_) => {
            if let Ok(mut locked) = joined.attachment.lock() {
                locked.stack().remove_waiter(id);
            }
            None
        }
    }
}

/// The waiters belong to the parent's slot: the child makes its own.
pub fn after_fork_in_child() {
    // SAFETY: this is the only thread; whoever held the lock does not exist here.
    unsafe {
        if POOL.is_locked() {
            POOL.force_unlock();
        }
    }
    for waiter in POOL.lock().drain(..) {
        let fd: OwnedFd = waiter.bell.into_fd();
        private::close(fd);
    }
}

/// What a sleeper parks on.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// One endpoint.
    Endpoint(EndpointId),
    /// Every endpoint of a watcher.
    Watcher(WatcherId),
}

impl Target {
    fn park(self, locked: &mut Locked<'_>, waiter: WaiterId) {
        match self {
            Self::Endpoint(endpoint) => locked.stack().park(endpoint, waiter),
            Self::Watcher(watcher) => locked.stack().park_watcher(watcher, waiter),
        }
    }

    fn unpark(self, locked: &mut Locked<'_>, waiter: WaiterId) {
        match self {
            Self::Endpoint(endpoint) => locked.stack().unpark(endpoint, waiter),
            Self::Watcher(watcher) => locked.stack().unpark_watcher(watcher, waiter),
        }
    }
}

/// What a wait is about.
pub struct Interest<'a> {
    /// Kernel descriptors; their `revents` are filled when the wait ends by one of them.
    pub fds: &'a mut Vec<pollfd>,
    /// Pushes what the readiness depends on.
    pub targets: &'a dyn Fn(&mut Vec<Target>),
    /// Whether the stack's side is ready. Called under the lock, after a pump.
    pub ready: &'a mut dyn FnMut(&mut Locked<'_>) -> bool,
    /// Signal mask during the sleep, as ppoll takes it.
    pub mask: Option<*const sigset_t>,
    /// The set where the waiter is noted while it sleeps, for whoever changes what it waits for.
    pub sleeping: Option<&'a EpollSet>,
    /// The one socket of a blocking call.
    pub alone: Option<(i32, EndpointId)>,
}

impl std::fmt::Debug for Interest<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Interest")
            .field("fds", &self.fds.len())
            .finish_non_exhaustive()
    }
}

/// Waits until something of the interest is ready, or the deadline, or a signal. A call that waits
/// again and again gives the same `call`.
pub fn wait(
    joined: &Joined,
    interest: &mut Interest<'_>,
    deadline: Option<Instant>,
    call: &mut Call,
) -> Woken {
    crate::tcp::burst::ends();
    let spin_ns = u64::from(config::get().options.spin_us) * 1000;
    let first = !call.has_waited();
    let outside = call.hold();
    let mask = interest.mask.unwrap_or(outside);
    if !first && ppoll(&mut [], None, 0, Some(mask)).is_err() {
        return Woken::Interrupted;
    }
    let woken = if spin::spin(joined, interest, deadline, spin_ns, mask) {
        lookout::has_work();
        Woken::Ready
    } else {
        sleep(joined, interest, deadline, Some(mask))
    };
    match interest.alone {
        Some((fd, endpoint)) if woken == Woken::Ready && is_replaced(joined, fd, endpoint) => {
            // Another thread has put something else on this number. The kernel's call would go on
            // with the old socket, which nobody can reach any more, until a signal ends it.
            match ppoll(&mut [], deadline, u64::MAX, Some(mask)) {
                Err(_) => Woken::Interrupted,
                Ok(_) => Woken::TimedOut,
            }
        }
        _ => woken,
    }
}

/// Whether the endpoint is gone and its descriptor is no such socket any more.
fn is_replaced(joined: &Joined, fd: i32, endpoint: EndpointId) -> bool {
    let gone = joined
        .attachment
        .lock()
        .is_ok_and(|mut locked| !locked.stack().is_live(endpoint));
    gone && !crate::shadow::is_inet(fd)
}

/// Parks, looks once more, sleeps.
fn sleep(
    joined: &Joined,
    interest: &mut Interest<'_>,
    deadline: Option<Instant>,
    mask: Option<*const sigset_t>,
) -> Woken {
    let waiter = take_waiter(joined);
    if let (Some(waiter), Some(set)) = (&waiter, interest.sleeping) {
        set.falls_asleep(waiter.id);
    }
    let woken = park_and_poll(joined, interest, deadline, mask, waiter.as_ref());
    if let Some(waiter) = waiter {
        if let Some(set) = interest.sleeping {
            set.wakes(waiter.id);
        }
        POOL.lock().push(waiter);
    }
    woken
}

fn park_and_poll(
    joined: &Joined,
    interest: &mut Interest<'_>,
    deadline: Option<Instant>,
    mask: Option<*const sigset_t>,
    waiter: Option<&Waiter>,
) -> Woken {
    let mut targets = Vec::new();
    let (timer, frames);
    {
        let Ok(mut locked) = joined.attachment.lock() else {
            return Woken::Ready;
        };
        locked.pump(clock::now());
        if (interest.ready)(&mut locked) {
            lookout::has_work();
            return Woken::Ready;
        }
        if let Some(waiter) = waiter {
            (interest.targets)(&mut targets);
            for target in &targets {
                target.park(&mut locked, waiter.id);
            }
        }
        timer = locked.stack().next_deadline();
        frames = joined.attachment.frames();
    }
    let own = interest.fds.len();
    let (polled, wake) = poll(joined, interest.fds, (deadline, timer), mask, waiter);
    interest.fds.truncate(own);
    let Ok(mut locked) = joined.attachment.lock() else {
        return Woken::Ready;
    };
    if let Some(waiter) = waiter {
        for target in &targets {
            target.unpark(&mut locked, waiter.id);
        }
    }
    let attended = joined.attachment.frames() != frames;
    let now = clock::now();
    let found_frames = locked.pump(now) > 0;
    let gone = interest
        .alone
        .is_some_and(|(_, endpoint)| !locked.stack().is_live(endpoint));
    if gone && polled == Err(Errno::INTR) {
        return Woken::Interrupted;
    }
    let ready = (interest.ready)(&mut locked);
    let look = Look {
        ready,
        found_frames,
        attended: attended || locked.stack().has_wakeups(),
    };
    lookout::learn(wake, look, now);
    if ready || interest.fds.iter().any(|entry| entry.revents != 0) {
        return Woken::Ready;
    }
    match polled {
        Err(Errno::INTR) => Woken::Interrupted,
        Ok(0) if deadline.is_some_and(|deadline| clock::now().0 >= deadline.0) => Woken::TimedOut,
        _ => Woken::Ready,
    }
}

/// Sleeps on the program's descriptors, the bell and the queues, these only when it is this
/// thread's turn; what ended it.
fn poll(
    joined: &Joined,
    fds: &mut Vec<pollfd>,
    (deadline, timer): (Option<Instant>, Option<Instant>),
    mask: Option<*const sigset_t>,
    waiter: Option<&Waiter>,
) -> (Result<i32, Errno>, Wake) {
    let pollin = |fd| pollfd {
        fd,
        events: POLLIN,
        revents: 0,
    };
    let now = clock::now();
    let own = fds.len();
    let rest = waiter.and_then(|_| lookout::rests_ns(now));
    if rest.is_none() {
        fds.extend(joined.attachment.wait_fds().map(pollin));
    }
    let queues = own..fds.len();
    let mut limit = match waiter {
        Some(waiter) => {
            fds.push(pollin(waiter.bell.as_fd().as_raw_fd()));
            rest.unwrap_or(u64::MAX)
        }
        None => WITHOUT_BELL_NS,
    };
    // Somebody who waits runs the stack's timers; whoever rests leaves others the time to do it.
    if let Some(timer) = timer {
        let patience = rest.map_or(0, |_| TIMER_PATIENCE_NS);
        limit = limit.min(timer.since(now).0.saturating_add(patience));
    }
    let polled = ppoll(fds, deadline, limit, mask);
    let is_up = |entry: &pollfd| entry.revents != 0;
    if let Some(waiter) = waiter
        && fds.last().is_some_and(is_up)
    {
        waiter.bell.drain();
    }
    let wake = match polled {
        Ok(0) if rest.is_some() => Wake::RestOver,
        Ok(1..)
            if fds
                .get(queues)
                .is_some_and(|queues| queues.iter().any(is_up)) =>
        {
            Wake::Frames
        }
        _ => Wake::Other,
    };
    (polled, wake)
}

/// ppoll until the deadline, for at most `limit` nanoseconds.
fn ppoll(
    fds: &mut [pollfd],
    deadline: Option<Instant>,
    limit: u64,
    mask: Option<*const sigset_t>,
) -> Result<i32, Errno> {
    let left = deadline.map_or(u64::MAX, |deadline| {
        deadline.0.saturating_sub(clock::now().0)
    });
    let left = left.min(limit);
    let timeout = timespec {
        tv_sec: (left / 1_000_000_000) as i64,
        tv_nsec: (left % 1_000_000_000) as i64,
    };
    let timeout_pointer = if left == u64::MAX {
        std::ptr::null()
    } else {
        &raw const timeout
    };
    // SAFETY: the slice is writable for its length; timeout and mask are null or valid.
    let result = unsafe {
        symbols::ppoll::original()(
            fds.as_mut_ptr(),
            fds.len() as libc::nfds_t,
            timeout_pointer,
            mask.unwrap_or(std::ptr::null()),
        )
    };
    if result < 0 {
        Err(errno::last())
    } else {
        Ok(result)
    }
}

/// A deadline from a timeout in milliseconds; `None` = never.
pub fn deadline_ms(timeout_ms: i32) -> Option<Instant> {
    let ms = u64::try_from(timeout_ms).ok()?;
    Some(Instant(clock::now().0.saturating_add(ms * 1_000_000)))
}

/// A deadline from a timespec.
///
/// # Errors
/// `EINVAL` for values that no kernel call takes.
pub fn deadline_of(timeout: Option<&timespec>) -> Result<Option<Instant>, Errno> {
    let Some(time) = timeout else { return Ok(None) };
    if time.tv_sec < 0 || !(0..1_000_000_000).contains(&time.tv_nsec) {
        return Err(Errno::INVAL);
    }
    let span = (time.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec as u64);
    Ok(Some(Instant(clock::now().0.saturating_add(span))))
}
