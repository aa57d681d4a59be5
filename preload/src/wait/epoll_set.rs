//! Epoll sets with accelerated members.
//!
//! The program's epoll descriptor stays a real one and keeps every kernel member. Accelerated
//! members
//! are listed here, by endpoint; their shadows, and the program's own epoll descriptor, are members
//! of
//! a second, hidden epoll set (the *overlay*), so that one descriptor tells whether the kernel has
//! anything for this set.
//!
//! ```text
//!   program's epfd:  pipes, eventfds, listeners, ...          (kernel)
//!   overlay:         program's epfd, shadows of the members   (kernel, hidden)
//!   members:         endpoint, events, data, edge state       (here)
//! ```
//!
//! Where no overlay can be made, since the program has no descriptor left, the epoll descriptor and
//! the shadows are polled one by one, and the next wait tries again.
//!
//! A set is keyed by its index in the registry, which every dup of the epoll descriptor shares.
//! After a fork it is one set still, as it is for the kernel: the overlay is inherited, and the
//! members are in memory that both sides have ([`super::shared_members`]).

#![expect(unsafe_code, reason = "UNSAFETY: epoll calls through libc's originals")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_stack::{EndpointId, Instant, ProcessId, WaiterId};
use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLEXCLUSIVE, EPOLLHUP,
    EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDNORM, POLLIN, epoll_event, pollfd, sigset_t,
};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::call::Call;
use super::members::{Member, Table};
use super::shared_members::Sleepers;
use super::{Interest, Target, Woken};
use crate::context::{self, Joined};
use crate::errno::{Answer, last};
use crate::fdtable::{self, Entry};
use crate::locks::Mutex;
use crate::tcp::{self, burst, guest, handover};
use crate::{private, process, symbols};

/// Token of the program's own epoll descriptor in the overlay; shadows use their member's slot.
const PROGRAM: u64 = u64::MAX;
/// While accelerated members keep a set busy, its kernel side is asked this often.
const KERNEL_EVERY_NS: u64 = 50_000;
/// `data` of the event that ends waits which began before the set had accelerated members.
const KICK: u64 = 0x6279_7061_7373_2121;
/// Times that a fork tries to get a set's lock.
const SHARE_TRIES: u32 = 1000;

/// What may stand beside EPOLLEXCLUSIVE (fs/eventpoll.c:EPOLLEXCLUSIVE_OK_BITS).
const EXCLUSIVE_OK: u32 =
    (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | libc::EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE)
        as u32;

/// A socket that was added before an address made it accelerated, or a connection of the kernel's
/// that may come to the stack.
#[derive(Debug)]
struct Pending {
    fd: i32,
    events: u32,
    data: u64,
    /// It may come at any moment: the kernel's events are not passed on unseen.
    is_guest: bool,
}

/// Another epoll set as a member: the kernel reports its kernel side, we its accelerated members.
#[derive(Debug)]
struct Nested {
    fd: i32,
    set: u32,
    events: u32,
    data: u64,
}

/// What the kernel side of a set has told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Shadows of members: it is noted with them.
    shadows: bool,
    /// The program's own descriptor has events.
    program: bool,
}

#[derive(Debug, Default)]
struct Members {
    active: Table,
    pending: Vec<Pending>,
    nested: Vec<Nested>,
    kick: Option<OwnedFd>,
    overlay: Option<OwnedFd>,
    epfd: i32,
}

/// One epoll set.
#[derive(Debug, Default)]
pub struct EpollSet {
    members: Mutex<Members>,
    count: AtomicU32,
    asked_kernel: AtomicU64,
    sleeping: Sleepers,
    /// A thread has waited on this set in the kernel alone, and may still do so.
    kernel_waits: AtomicBool,
    /// A kick has been entered: the kernel's events may hold it.
    kicked: AtomicBool,
    /// Some of the kernel's members have been guests.
    had_guests: AtomicBool,
    /// Members that have become the kernel's.
    given: AtomicU32,
    /// Relatives have it too.
    is_shared: AtomicBool,
}

/// Every set of the process. Sets are leaked and reused: a descriptor's word holds the index. As
/// many as there are descriptor numbers, so that a look-up is a load and never a lock.
static SETS: [AtomicPtr<EpollSet>; fdtable::NUMBERS] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; fdtable::NUMBERS];
/// How many entries of [`SETS`] are in use.
static MADE: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// The set with this index.
#[inline]
pub fn get(index: u32) -> Option<&'static EpollSet> {
    let set = SETS.get(index as usize)?.load(Ordering::Acquire);
    // SAFETY: null or a leaked box, entered once.
    unsafe { set.as_ref() }
}

/// Every set that was ever made.
fn all() -> impl Iterator<Item = &'static EpollSet> {
    (0..MADE.load(Ordering::Acquire) as u32).filter_map(get)
}

/// A new, empty set behind this descriptor; its index. `None` when there are more sets than
/// descriptor numbers.
pub fn create(epfd: i32) -> Option<u32> {
    let mut free = FREE.lock();
    let index = match free.pop() {
        Some(index) => index,
        None => make()?,
    };
    drop(free);
    get(index)?.members.lock().epfd = epfd;
    Some(index)
}

/// One more set, under the lock of [`FREE`].
fn make() -> Option<u32> {
    let index = MADE.load(Ordering::Relaxed);
    let set: &'static mut EpollSet = Box::leak(Box::default());
    SETS.get(index)?.store(set, Ordering::Release);
    MADE.store(index + 1, Ordering::Release);
    Some(index as u32)
}

/// The last descriptor of a set was closed.
pub fn destroy(index: u32) {
    if let Some(set) = get(index) {
        if let Some(Ok(mut locked)) = context::joined().map(|joined| joined.attachment.lock()) {
            set.members.lock().active.unwatch_all(&mut locked);
        }
        let mut members = set.members.lock();
        for fd in [members.overlay.take(), members.kick.take()]
            .into_iter()
            .flatten()
        {
            private::close(fd);
        }
        *members = Members::default();
        set.count.store(0, Ordering::Release);
        set.kernel_waits.store(false, Ordering::Relaxed);
        set.kicked.store(false, Ordering::Relaxed);
        set.had_guests.store(false, Ordering::Relaxed);
        set.is_shared.store(false, Ordering::Relaxed);
        drop(members);
        FREE.lock().push(index);
    }
}

/// A socket became accelerated: sets that have it as a kernel member take it over.
pub fn activated(fd: i32, endpoint: EndpointId, shadowed: bool) {
    for set in all() {
        let mut locked = set.lock_if_shared();
        let mut members = set.members.lock();
        if let Some(at) = members.pending.iter().position(|pending| pending.fd == fd) {
            let Pending { events, data, .. } = members.pending.swap_remove(at);
            if let Some(locked) = &mut locked {
                members.active.follow(locked);
            }
            set.recount(&mut members);
            let taken = ctl(members.epfd, EPOLL_CTL_DEL, fd, 0, 0);
            // Not a member there: the number was another socket's then. (A relative that shares the
            // set may have been faster.)
            let was_faster = members.active.find(fd, endpoint).is_some();
            if was_faster || taken.is_err() && !process::has_relatives() {
                continue;
            }
            let member = Member::new(fd, endpoint, shadowed, events, data);
            let _ = set.insert(&mut members, member);
            drop(members);
            drop(locked);
            set.ring();
        }
    }
}

/// The last descriptor of this process for the endpoint is about to be closed: it is no member of
/// any set any more. Of one that relatives have too it is, as long as they hold the endpoint.
pub fn closed(endpoint: EndpointId) {
    for set in all().filter(|set| !set.is_kernel_only()) {
        let Some(mut locked) = context::joined().and_then(tcp::lock) else {
            return;
        };
        let mut members = set.members.lock();
        if set.is_shared() && has_others(&mut locked, endpoint) {
            members.active.disown(endpoint);
            continue;
        }
        let overlay = members.overlay();
        members
            .active
            .remove_endpoint(endpoint, &mut locked, |member| {
                // The kernel would keep the shadow in the overlay for a relative's descriptor.
                if member.shadowed && process::has_relatives() {
                    let _ = ctl(overlay, EPOLL_CTL_DEL, member.fd, 0, 0);
                }
            });
        set.recount(&mut members);
    }
}

/// Whether another process holds the endpoint, that lives: what a dead one had the daemon gives
/// back, in a moment or when there is one.
fn has_others(locked: &mut Locked<'_>, endpoint: EndpointId) -> bool {
    let stack = locked.stack();
    let holders = stack.holders(endpoint);
    let holds = |slot: u8| holders[usize::from(slot / 64)] & 1 << (slot % 64) != 0;
    let others = (0..128).filter(|slot| *slot != context::process().0 && holds(*slot));
    others
        .filter_map(|slot| stack.process_pid(ProcessId(slot)))
        .any(|pid| pid == 0 || lives(pid))
}

/// Whether there is a process with this number.
fn lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// The socket is the kernel's from here on: it becomes a member of the program's own sets.
pub fn handed_over(endpoint: EndpointId) {
    give_to_kernel(endpoint, |_, _| {});
}

/// The same for a connection that may come back: until then it is the kernel's member.
pub fn left(endpoint: EndpointId) {
    for set in all().filter(|set| !set.is_kernel_only()) {
        // Before the kernel can tell of it.
        set.had_guests.store(true, Ordering::Release);
    }
    give_to_kernel(endpoint, |members, pending| {
        members.pending.retain(|other| other.fd != pending.fd);
        let is_guest = true;
        members.pending.push(Pending {
            is_guest,
            ..pending
        });
    });
}

/// Whether a set has the endpoint as a one-shot member.
pub fn has_one_shot(endpoint: EndpointId) -> bool {
    let sets = all().filter(|set| !set.is_kernel_only());
    let once = EPOLLONESHOT as u32;
    let is_one = |set: &EpollSet| {
        let members = set.members.lock();
        let mut its = members.active.iter().map(|(_, member)| member);
        its.any(|member| member.endpoint == endpoint && member.events & once != 0)
    };
    sets.into_iter().any(is_one)
}

/// The guest is the kernel's for good.
pub fn guest_gone(fd: i32) {
    forget_guest(fd, |_| {});
}

/// The guest is about to be closed, and is no member any more: the daemon may have a copy of the
/// socket for a moment, for which the kernel would go on telling of it.
pub fn guest_closes(fd: i32) {
    forget_guest(fd, |epfd| {
        let _ = ctl(epfd, EPOLL_CTL_DEL, fd, 0, 0);
    });
}

/// `each` gets the descriptors of the sets.
fn forget_guest(fd: i32, each: impl Fn(i32)) {
    for set in all().filter(|set| !set.is_kernel_only()) {
        let mut members = set.members.lock();
        let is_its = |pending: &Pending| pending.is_guest && pending.fd == fd;
        if members.pending.iter().any(is_its) {
            each(members.epfd);
            members.pending.retain(|pending| !is_its(pending));
            set.recount(&mut members);
        }
    }
}

/// The socket has no endpoint any more and may get another one (a connect that failed, a listener
/// that was shut down): until then it is the kernel's member, as before [`activated`].
pub fn released(endpoint: EndpointId) {
    give_to_kernel(endpoint, |members, pending| {
        members.pending.retain(|other| other.fd != pending.fd);
        members.pending.push(pending);
    });
}

/// Makes the members that have this endpoint the kernel's; `each` is told of them.
fn give_to_kernel(endpoint: EndpointId, each: impl Fn(&mut Members, Pending)) {
    for set in all().filter(|set| !set.is_kernel_only()) {
        let Some(Ok(mut locked)) = context::joined().map(|joined| joined.attachment.lock()) else {
            return;
        };
        let mut members = set.members.lock();
        let (epfd, overlay) = (members.epfd, members.overlay());
        let mut moved = Vec::new();
        members
            .active
            .remove_endpoint(endpoint, &mut locked, |member| {
                if member.shadowed {
                    let _ = ctl(overlay, EPOLL_CTL_DEL, member.fd, 0, 0);
                }
                let (fd, events, data) = (member.fd, member.kernel_events(), member.data);
                // Before the kernel can tell of it.
                set.given.fetch_add(1, Ordering::Release);
                // A relative that shares the set may have been faster.
                let _ = ctl(epfd, EPOLL_CTL_ADD, fd, events, data);
                let is_guest = false;
                moved.push(Pending {
                    fd,
                    events,
                    data,
                    is_guest,
                });
            });
        let news = !moved.is_empty();
        for member in moved {
            each(&mut members, member);
        }
        set.recount(&mut members);
        drop(members);
        drop(locked);
        if news {
            set.ring();
        }
    }
}

/// A fork is about to happen: the sets that have sockets which are a stack's, or may become so, the
/// child will have in common with this process. What cannot be done leaves the child a copy.
pub fn share_all(joined: &Joined) {
    for index in 0..MADE.load(Ordering::Acquire) as u32 {
        if let Some(set) = get(index).filter(|set| !set.is_shared()) {
            set.share(index, joined);
        }
    }
}

/// A forked child: nobody but this thread lives, and overlays of sets that are not shared are the
/// parent's.
pub fn after_fork_in_child() {
    // SAFETY: this is the only thread; holders of these locks do not exist here.
    unsafe {
        if FREE.is_locked() {
            FREE.force_unlock();
        }
    }
    for set in all() {
        // SAFETY: as above.
        unsafe {
            if set.members.is_locked() {
                set.members.force_unlock();
            }
        }
        set.sleeping.clear();
        let mut members = set.members.lock();
        members.active.after_fork_in_child();
        if !set.is_shared()
            && let Some(overlay) = members.overlay.take()
        {
            private::close(overlay);
            let _ = set.build_overlay(&mut members);
        }
    }
}

/// Ends the waits of threads that wait in the kernel alone: they must wait for both sides now.
fn kick(members: &mut Members) {
    if let Ok(kick) = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC) {
        let kick = private::hide(kick);
        let _ = ctl(
            members.epfd,
            EPOLL_CTL_ADD,
            kick.as_raw_fd(),
            EPOLLIN as u32,
            KICK,
        );
        if let Some(old) = members.kick.replace(kick) {
            private::close(old);
        }
    }
}

/// Asks poll whether there is something to read.
const fn readable(fd: i32) -> pollfd {
    pollfd {
        fd,
        events: POLLIN,
        revents: 0,
    }
}

fn ctl(set: i32, operation: i32, fd: i32, events: u32, token: u64) -> Result<(), Errno> {
    let mut event = epoll_event { events, u64: token };
    // SAFETY: the event is readable for the call.
    let result = unsafe { symbols::epoll_ctl::original()(set, operation, fd, &raw mut event) };
    if result == 0 { Ok(()) } else { Err(last()) }
}

/// What the overlay watches on a shadow: what it may have to receive, and errors. Edge-triggered
/// members stay edge-triggered there.
fn shadow_events(events: u32) -> u32 {
    (events & (EPOLLIN | EPOLLRDNORM | EPOLLET) as u32) | EPOLLERR as u32
}

impl EpollSet {
    /// Whether the kernel alone can answer for this set.
    #[inline]
    pub fn is_kernel_only(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// A thread is about to wait on this set in the kernel alone.
    #[inline]
    pub fn waits_in_kernel(&self) {
        if !self.kernel_waits.load(Ordering::Relaxed) {
            self.kernel_waits.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the kernel's events of this set may hold a kick.
    #[inline]
    pub fn was_kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire)
    }

    /// Takes the kick out of the program's set.
    pub fn end_kick(&self, epfd: i32) {
        self.members.lock().end_kick(epfd);
    }

    /// Wakes every thread that sleeps on this set, relatives' too: what it waits for has changed.
    fn ring(&self) {
        let Some(joined) = context::joined() else {
            return;
        };
        self.sleeping.wake(&joined.attachment);
        self.in_shared(|sleepers| sleepers.wake(&joined.attachment));
    }

    /// The waiter is about to look for the last time before it sleeps on this set.
    pub fn falls_asleep(&self, waiter: WaiterId) {
        self.sleeping.add(waiter);
        self.in_shared(|sleepers| sleepers.add(waiter));
    }

    /// It does not sleep any more.
    pub fn wakes(&self, waiter: WaiterId) {
        self.sleeping.remove(waiter);
        self.in_shared(|sleepers| sleepers.remove(waiter));
    }

    fn in_shared(&self, what: impl FnOnce(&Sleepers)) {
        if self.is_shared()
            && let Some(shared) = self.members.lock().active.shared()
        {
            what(shared.sleepers());
        }
    }

    /// Whether relatives have the set too.
    #[inline]
    fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// The stack's lock, under which members change that relatives have too. Before the set's.
    fn lock_if_shared(&self) -> Option<Locked<'static>> {
        let joined = context::joined().filter(|_| self.is_shared())?;
        joined.attachment.lock().ok()
    }

    /// Has the set in common with children from here on. Its waits are never the kernel's alone
    /// then: a relative may add an accelerated member at any moment.
    #[cold]
    fn share(&self, index: u32, joined: &Joined) {
        let Ok(mut locked) = joined.attachment.lock() else {
            return;
        };
        let most = 2 * locked.stack().capacities().endpoints as usize;
        drop(locked);
        // A signal handler that forks may have interrupted whoever has the lock.
        let mut tries = 0..SHARE_TRIES;
        let Some(mut members) = tries.find_map(|_| {
            let members = self.members.try_lock();
            if members.is_none() {
                std::thread::yield_now();
            }
            members
        }) else {
            return;
        };
        if members.active.is_empty() && members.pending.is_empty() && members.nested.is_empty() {
            // Its waits are the kernel's alone, and stay so.
            return;
        }
        let is_its = |fd: i32| fdtable::look(fd) == Entry::Epoll(index);
        if !is_its(members.epfd) {
            let mut entries = fdtable::entries(0, u32::MAX - 1);
            match entries.find(|(_, entry)| *entry == Entry::Epoll(index)) {
                Some((fd, _)) => members.epfd = fd,
                // Nobody has it any more.
                None => return,
            }
        }
        if members.overlay.is_none() && self.build_overlay(&mut members).is_err() {
            return;
        }
        if members.active.share(most).is_ok() {
            self.is_shared.store(true, Ordering::Relaxed);
            self.grows(&mut members);
        }
    }

    /// Notes a UDP socket that the kernel has taken as a member while nothing has decided it.
    pub fn note_pending(&self, epfd: i32, operation: i32, fd: i32, events: u32, data: u64) {
        let mut members = self.members.lock();
        members.epfd = epfd;
        members.pending.retain(|pending| pending.fd != fd);
        if operation != EPOLL_CTL_DEL {
            let is_guest = false;
            members.pending.push(Pending {
                fd,
                events,
                data,
                is_guest,
            });
        }
    }

    /// Notes a guest that the kernel has taken as a member, or has changed or let go.
    pub fn note_guest(&self, epfd: i32, operation: i32, fd: i32, events: u32, data: u64) {
        self.note_pending(epfd, operation, fd, events, data);
        let mut members = self.members.lock();
        if let Some(pending) = members.pending.iter_mut().find(|it| it.fd == fd) {
            pending.is_guest = true;
            self.had_guests.store(true, Ordering::Release);
        }
        if members.overlay.is_none() {
            let _ = self.build_overlay(&mut members);
        }
        self.grows(&mut members);
    }

    fn build_overlay(&self, members: &mut Members) -> Result<(), Errno> {
        // SAFETY: no pointers.
        let fd = unsafe { symbols::epoll_create1::original()(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(last());
        }
        // SAFETY: just made.
        let overlay = private::hide(unsafe { private::adopt(fd) });
        let number = overlay.as_raw_fd();
        ctl(number, EPOLL_CTL_ADD, members.epfd, EPOLLIN as u32, PROGRAM)?;
        for (slot, member) in members.active.iter().filter(|(_, member)| member.shadowed) {
            let _ = ctl(
                number,
                EPOLL_CTL_ADD,
                member.fd,
                shadow_events(member.events),
                u64::from(slot),
            );
        }
        members.overlay = Some(overlay);
        Ok(())
    }

    /// Makes the overlay that is missing; where no descriptor is left for it, the set does without.
    fn have_overlay(&self, members: &mut Members) -> Result<(), Errno> {
        if members.overlay.is_some() {
            return Ok(());
        }
        match self.build_overlay(members) {
            Err(Errno::MFILE | Errno::NFILE) => Ok(()),
            built => built,
        }
    }

    fn insert(&self, members: &mut Members, member: Member) -> Result<(), Errno> {
        self.have_overlay(members)?;
        let (fd, events, shadowed) = (member.fd, member.events, member.shadowed);
        let slot = members.active.insert(member)?;
        if shadowed && members.overlay.is_some() {
            let added = ctl(
                members.overlay(),
                EPOLL_CTL_ADD,
                fd,
                shadow_events(events),
                u64::from(slot),
            );
            if let Err(errno) = added {
                members.active.remove(slot, None);
                return Err(errno);
            }
        }
        self.grows(members);
        Ok(())
    }

    /// EPOLL_CTL_ADD.
    fn add(
        &self,
        members: &mut Members,
        locked: Option<&mut Locked<'_>>,
        member: impl Fn() -> Member,
    ) -> Result<(), Errno> {
        let Member { events, .. } = member();
        if events & EPOLLEXCLUSIVE as u32 != 0 && events & !EXCLUSIVE_OK != 0 {
            return Err(Errno::INVAL);
        }
        let added = self.insert(members, member());
        let Some(locked) = locked else { return added };
        if added == Err(Errno::NOSPC) && members.active.reap(locked) > 0 {
            self.insert(members, member())?;
        } else {
            added?;
        }
        members.active.watch_polled(locked);
        Ok(())
    }

    /// There are more members that the kernel alone does not serve.
    fn grows(&self, members: &mut Members) {
        let was_kernel_only = self.is_kernel_only();
        self.recount(members);
        // First the count, then the flag; a waiter sets the flag first, then reads the count: one
        // of
        // the two sees the other.
        let is_served = !self.is_kernel_only();
        if was_kernel_only && is_served && self.kernel_waits.load(Ordering::SeqCst) {
            self.kicked.store(true, Ordering::Release);
            kick(members);
        }
    }

    /// Members that the kernel alone does not serve.
    fn recount(&self, members: &mut Members) {
        let guests = members.pending.iter().filter(|it| it.is_guest).count();
        let shared = usize::from(self.is_shared());
        let count = members.active.len() + members.nested.len() + guests + shared;
        if count == 0 {
            // The next wait is the kernel's alone again, and would report it.
            members.end_kick(members.epfd);
        }
        self.count.store(count as u32, Ordering::SeqCst);
    }

    /// Follows another set as a member, after the kernel has accepted the change.
    pub fn note_nested(
        &self,
        epfd: i32,
        operation: i32,
        fd: i32,
        set: u32,
        event: Option<epoll_event>,
    ) {
        let mut members = self.members.lock();
        members.epfd = epfd;
        members.nested.retain(|nested| nested.fd != fd);
        if let (Some(event), true) = (event, operation != EPOLL_CTL_DEL) {
            members.nested.push(Nested {
                fd,
                set,
                events: event.events,
                data: event.u64,
            });
            if members.overlay.is_none() {
                let _ = self.build_overlay(&mut members);
            }
        }
        self.recount(&mut members);
    }

    /// epoll_ctl on an accelerated socket; `shadowed` when the kernel may have something for it.
    ///
    /// # Errors
    /// As the kernel's: `EEXIST`, `ENOENT`, `EINVAL`; `ESTALE` when a connection is gone.
    pub fn control(
        &self,
        epfd: i32,
        operation: i32,
        (fd, endpoint, shadowed): (i32, EndpointId, bool),
        event: Option<&epoll_event>,
    ) -> Answer {
        let Some(joined) = context::joined() else {
            return Err(Errno::NOENT);
        };
        // The order of locks: stack, then set. (A signal handler inside a locked section goes
        // without: the member is polled then.)
        let mut locked = tcp::lock(joined);
        let mut members = self.members.lock();
        members.epfd = epfd;
        let gone = |locked: &mut Locked<'_>| !locked.stack().is_live(endpoint);
        if !shadowed && locked.as_mut().is_some_and(gone) {
            return Err(Errno::STALE);
        }
        if let Some(locked) = &mut locked {
            members.active.follow(locked);
        }
        let at = members.active.find(fd, endpoint);
        let exclusive = EPOLLEXCLUSIVE as u32;
        match (operation, at, event) {
            (EPOLL_CTL_ADD | EPOLL_CTL_MOD, _, None) => return Err(Errno::FAULT),
            (EPOLL_CTL_ADD, Some(_), _) => return Err(Errno::EXIST),
            (EPOLL_CTL_ADD, None, Some(event)) => {
                let member = || Member::new(fd, endpoint, shadowed, event.events, event.u64);
                self.add(&mut members, locked.as_mut(), member)?;
            }
            (EPOLL_CTL_MOD | EPOLL_CTL_DEL, None, _) => return Err(Errno::NOENT),
            (EPOLL_CTL_MOD, Some(slot), Some(event)) => {
                let overlay = members.overlay();
                let member = members.active.get_mut(slot).ok_or(Errno::NOENT)?;
                if (member.events | event.events) & exclusive != 0 {
                    return Err(Errno::INVAL);
                }
                let watched = shadow_events(event.events);
                // An edge is armed again by it.
                let rearm = event.events & EPOLLET as u32 != 0;
                if shadowed && (rearm || watched != shadow_events(member.events)) {
                    let _ = ctl(overlay, EPOLL_CTL_MOD, fd, watched, u64::from(slot));
                }
                member.modify(event.events, event.u64);
                members.active.touch(slot, locked.as_mut());
                members.active.publish(slot);
            }
            (EPOLL_CTL_DEL, Some(slot), _) => {
                if shadowed {
                    let _ = ctl(members.overlay(), EPOLL_CTL_DEL, fd, 0, 0);
                }
                members.active.remove(slot, locked.as_mut());
                self.recount(&mut members);
            }
            _ => return Err(Errno::INVAL),
        }
        drop(members);
        drop(locked);
        self.ring();
        Ok(0)
    }

    /// Whether an accelerated member would be reported now.
    pub fn any_ready(&self, locked: &mut Locked<'_>) -> bool {
        if handover::is_news(locked) {
            return true;
        }
        let mut members = self.members.lock();
        members.active.any_ready(locked)
            || members.nested.iter().any(|nested| nested.is_ready(locked))
    }

    /// Pushes what a sleeper on this set parks on.
    pub fn targets(&self, into: &mut Vec<Target>) {
        let members = self.members.lock();
        into.extend(members.active.watcher().map(Target::Watcher));
        into.extend(members.active.polled().map(Target::Endpoint));
        for nested in &members.nested {
            if let Some(set) = get(nested.set) {
                set.targets(into);
            }
        }
    }

    /// Pushes the descriptors that are readable when the kernel has something for this set.
    pub fn overlays(&self, into: &mut Vec<pollfd>) {
        let members = self.members.lock();
        match &members.overlay {
            Some(overlay) => into.push(readable(overlay.as_raw_fd())),
            None => into.extend(members.kernel_side().map(|(_, polled)| polled)),
        }
        for nested in &members.nested {
            if let Some(set) = get(nested.set).filter(|set| !set.is_kernel_only()) {
                set.overlays(into);
            }
        }
    }

    /// Collects accelerated members that are ready, the longest waiting first.
    fn collect(&self, locked: &mut Locked<'_>, out: &mut [epoll_event]) -> usize {
        let mut members = self.members.lock();
        let before = members.active.len();
        let mut found = members.active.collect(locked, out);
        if members.active.len() != before {
            self.recount(&mut members);
        }
        for nested in &members.nested {
            if found < out.len() && nested.is_ready(locked) {
                out[found] = epoll_event {
                    events: EPOLLIN as u32,
                    u64: nested.data,
                };
                found += 1;
            }
        }
        found
    }

    /// Asks the kernel side of the set, without waiting, for so many events. The caller reports
    /// what is told: by the next wait it may be over, since the program has accepted what waited.
    fn ask_kernel(&self, epfd: i32, room: usize) -> Result<Told, Errno> {
        let mut events = [epoll_event { events: 0, u64: 0 }; 64];
        let most = room.min(events.len());
        let mut locked = self.lock_if_shared();
        let mut members = self.members.lock();
        if let Some(locked) = &mut locked {
            // Tokens may be of members that a relative has just added.
            members.active.follow(locked);
        }
        let _ = self.have_overlay(&mut members);
        let count = members.ask(&mut events[..most])?;
        let mut told = Told::default();
        for event in &events[..count] {
            let token = event.u64;
            if token == PROGRAM {
                told.program = true;
            } else if let Some(fd) = members.active.tell(token as u32, event.events) {
                told.shadows = true;
                if event.events & EPOLLERR as u32 != 0 {
                    crate::udp::send::error_seen(fd);
                }
            }
        }
        // Whoever waits from now on waits for both sides: the kick has done its work.
        if told.program {
            members.end_kick(epfd);
        }
        Ok(told)
    }

    /// The events of the program's own descriptor, without waiting, behind those that are found
    /// since so many members were `given` to the kernel.
    fn program_events(
        &self,
        epfd: i32,
        out: &mut [epoll_event],
        (found, given): (usize, u32),
    ) -> Answer {
        let (ours, rest) = out.split_at_mut(found);
        if rest.is_empty() {
            return Ok(0);
        }
        let original = symbols::epoll_wait::original();
        // SAFETY: `rest` is writable for its length; no waiting.
        let count = unsafe { original(epfd, rest.as_mut_ptr(), rest.len() as i32, 0) };
        if count < 0 {
            return Err(last());
        }
        let left = without_kick(&mut rest[..count as usize]);
        let left = self.without_guests(&mut rest[..left]);
        // A member that was found, and given away then, is the kernel's to tell of too.
        let is_given = self.given.load(Ordering::Acquire) != given;
        if !is_given && self.members.lock().nested.is_empty() {
            return Ok(left as isize);
        }
        Ok(without_doubles(ours, &mut rest[..left]) as isize)
    }

    /// Takes out of the kernel's events what tells only that a guest has come to the stack, where
    /// it is a member from here on; how many are left.
    fn without_guests(&self, events: &mut [epoll_event]) -> usize {
        let ended = |event: &epoll_event| event.events & EPOLLHUP as u32 != 0;
        if !self.had_guests.load(Ordering::Acquire) || !events.iter().any(ended) {
            return events.len();
        }
        guest::settle();
        let members = self.members.lock();
        let has_come = |event: &epoll_event| {
            let data = event.u64;
            let mut active = members.active.iter().map(|(_, member)| member);
            ended(event) && active.any(|member| !member.shadowed && member.data == data)
        };
        keep(events, |event| !has_come(event))
    }

    /// Collects what is ready after a pump, and follows connections that have left; how many, and
    /// whether some have.
    fn look(&self, joined: &Joined, out: &mut [epoll_event]) -> (usize, bool) {
        let mut found = 0;
        let mut stale = false;
        let mut news = false;
        if let Ok(mut locked) = joined.attachment.lock() {
            locked.pump(clock::now());
            news = handover::is_news(&mut locked);
            found = self.collect(&mut locked, out);
            stale = joined.is_stale(locked.stack().queue_pairs_generation());
        }
        if stale {
            joined.refresh();
        }
        if news {
            handover::follow();
        }
        (found, news)
    }

    /// epoll_wait on a set with accelerated members.
    ///
    /// # Errors
    /// As the kernel's: `EINTR`, `EBADF`.
    pub fn wait(
        &self,
        joined: &Joined,
        epfd: i32,
        out: &mut [epoll_event],
        deadline: Option<Instant>,
        mask: Option<*const sigset_t>,
    ) -> Answer {
        burst::ends();
        let mut call = Call::default();
        loop {
            let now = clock::now().0;
            let given = self.given.load(Ordering::Acquire);
            let asked = self.asked_kernel.load(Ordering::Relaxed);
            let due = now.wrapping_sub(asked) >= KERNEL_EVERY_NS;
            let mut told = Told::default();
            if due {
                self.asked_kernel.store(now, Ordering::Relaxed);
                told = self.ask_kernel(epfd, out.len())?;
            }
            let (mut found, news) = self.look(joined, out);
            burst::begins(found);
            if found == 0 && (!due || news) {
                self.asked_kernel.store(now, Ordering::Relaxed);
                told = self.ask_kernel(epfd, out.len())?;
                if told.shadows
                    && let Ok(mut locked) = joined.attachment.lock()
                {
                    found = self.collect(&mut locked, out);
                }
            }
            if told.program {
                found += self.program_events(epfd, out, (found, given))? as usize;
            }
            if found > 0 {
                return Ok(found as isize);
            }
            if deadline.is_some_and(|deadline| clock::now().0 >= deadline.0) {
                return Ok(0);
            }
            let mut fds = Vec::with_capacity(8);
            self.overlays(&mut fds);
            let mut interest = Interest {
                fds: &mut fds,
                targets: &|into| self.targets(into),
                ready: &mut |locked| self.any_ready(locked),
                mask,
                sleeping: Some(self),
                alone: None,
            };
            call.keep_set(epfd);
            match super::wait(joined, &mut interest, deadline, &mut call) {
                Woken::Ready => {}
                Woken::TimedOut => return Ok(0),
                Woken::Interrupted => return Err(Errno::INTR),
            }
        }
    }
}

impl Members {
    /// The overlay's number, or -1.
    fn overlay(&self) -> i32 {
        self.overlay.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// What the overlay has members of: each with its token.
    fn kernel_side(&self) -> impl Iterator<Item = (u64, pollfd)> {
        let members = self.active.iter();
        let shadows = members.filter(|(_, member)| member.shadowed);
        let shadows = shadows.map(|(slot, member)| {
            let events = shadow_events(member.events) as i16;
            let shadow = readable(member.fd);
            (u64::from(slot), pollfd { events, ..shadow })
        });
        std::iter::once((PROGRAM, readable(self.epfd))).chain(shadows)
    }

    /// The events of the kernel side, without waiting; how many.
    fn ask(&self, events: &mut [epoll_event]) -> Result<usize, Errno> {
        let most = events.len() as i32;
        let Some(overlay) = &self.overlay else {
            return self.poll_each(events);
        };
        let original = symbols::epoll_wait::original();
        // SAFETY: `events` is writable for `most` events; no waiting.
        let count = unsafe { original(overlay.as_raw_fd(), events.as_mut_ptr(), most, 0) };
        usize::try_from(count).map_err(|_| last())
    }

    /// The same without an overlay. (Bits of poll and epoll are the same.)
    fn poll_each(&self, events: &mut [epoll_event]) -> Result<usize, Errno> {
        let (tokens, mut fds): (Vec<u64>, Vec<pollfd>) = self.kernel_side().unzip();
        // SAFETY: `fds` is writable for its length; no waiting.
        let count =
            unsafe { symbols::poll::original()(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) };
        if count < 0 {
            return Err(last());
        }
        let ready = tokens.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0);
        let told = ready.zip(events.iter_mut()).map(|((token, fd), event)| {
            *event = epoll_event {
                events: fd.revents as u32,
                u64: *token,
            };
        });
        Ok(told.count())
    }

    /// Takes the kick out of the program's set.
    fn end_kick(&mut self, epfd: i32) {
        if let Some(kick) = self.kick.take() {
            let _ = ctl(epfd, EPOLL_CTL_DEL, kick.as_raw_fd(), 0, 0);
            private::close(kick);
        }
    }
}

impl Nested {
    /// Whether the accelerated members of the inner set make it readable.
    fn is_ready(&self, locked: &mut Locked<'_>) -> bool {
        self.events & EPOLLIN as u32 != 0 && get(self.set).is_some_and(|set| set.any_ready(locked))
    }
}

/// Takes the kick out of the kernel's events; returns how many are left.
pub fn without_kick(events: &mut [epoll_event]) -> usize {
    keep(events, |event| event.u64 != KICK)
}

/// Takes out of `more` what `ours` reports already: no wait reports a member twice.
fn without_doubles(ours: &[epoll_event], more: &mut [epoll_event]) -> usize {
    keep(more, |event| {
        let data = event.u64;
        !ours.iter().any(|other| other.u64 == data)
    })
}

/// Moves the events that are kept to the front; returns their count.
fn keep(events: &mut [epoll_event], mut is_kept: impl FnMut(&epoll_event) -> bool) -> usize {
    let mut left = 0;
    for index in 0..events.len() {
        let event = events[index];
        if is_kept(&event) {
            events[left] = event;
            left += 1;
        }
    }
    left
}

/// The set behind a descriptor, when it has accelerated members.
pub fn accelerated(epfd: i32) -> Option<&'static EpollSet> {
    behind(epfd).filter(|set| !set.is_kernel_only())
}

/// The set behind a descriptor: two loads.
#[inline]
pub fn behind(epfd: i32) -> Option<&'static EpollSet> {
    match fdtable::get(epfd) {
        Entry::Epoll(index) => get(index),
        _ => None,
    }
}
