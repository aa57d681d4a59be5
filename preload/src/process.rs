//! This process's part in the stack through fork and exec.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bypass_proto::control::{Request, RequestKind};
use bypass_proto::reason::FallThrough;
use bypass_runtime::{clock, lock};
use bypass_stack::{EndpointId, ProcessId};

use crate::fdtable::{self, Entry};
use crate::locks::{RwLock, RwLockReadGuard};
use crate::{context, decide, report, shadow, sharing, tcp, wait};

/// Whether this process was forked, has forked, or has sockets of another program: sockets may be
/// shared with relatives.
static RELATIVES: AtomicBool = AtomicBool::new(false);

/// Until when ([`clock::now`]) a parent that got no place for its child does not ask again.
static FULL_UNTIL: AtomicU64 = AtomicU64::new(0);

/// How long that is, in nanoseconds.
const NEXT_ASK_NS: u64 = 1_000_000_000;

/// Held for reading by every change of in-process tables, for writing by a fork, so that a child
/// never inherits a table in the middle of a change.
static FORK: RwLock<()> = RwLock::new(());

thread_local! {
    /// While this thread forks, in the child too: the slot that the child gets, if there is one.
    static FORKING: Cell<Option<Option<ProcessId>>> = const { Cell::new(None) };
}

/// Keeps forks away while in-process tables change. In a handler that runs inside of this thread's
/// own fork (pthread_atfork, a signal) there is nothing to keep away, on either side.
pub fn no_fork() -> Option<RwLockReadGuard<'static, ()>> {
    let forks = FORKING.with(|forking| forking.get().is_some());
    (!forks).then(|| FORK.read_recursive())
}

/// See [`RELATIVES`].
pub fn has_relatives() -> bool {
    RELATIVES.load(Ordering::Relaxed)
}

/// A socket of another program has come to this process.
pub fn has_come() {
    RELATIVES.store(true, Ordering::Relaxed);
}

/// Whether this process surely has one thread only (sys/single_threaded.h, since glibc 2.32).
#[inline]
#[expect(unsafe_code, reason = "UNSAFETY: reads a variable of libc")]
pub fn is_alone() -> bool {
    unsafe extern "C" {
        static __libc_single_threaded: std::ffi::c_char;
    }
    // SAFETY: glibc changes it only while no other thread runs, or in the one that asks.
    unsafe { __libc_single_threaded != 0 }
}

/// Runs a fork. The parent makes the child's slot before it, so that no moment exists in which the
/// child holds endpoints that nobody accounts for.
pub fn forked(original: impl FnOnce() -> i32) -> i32 {
    // A handler inside of a fork may fork.
    let outer = FORKING.get();
    if outer.is_none() {
        make_room();
        tcp::guest::all_stay();
    }
    let guard = outer.is_none().then(|| FORK.write());
    FORKING.set(Some(None));
    let slot = reserve();
    FORKING.set(Some(slot));
    if let (Some(_), Some(joined)) = (slot, context::joined()) {
        wait::epoll_set::share_all(joined);
    }
    let pid = original();
    tcp::changed::forget_all();
    match pid {
        0 => in_child(),
        1.. => name_child(slot, pid),
        _ => {}
    }
    drop(guard);
    FORKING.set(outer);
    if pid != 0 {
        in_parent(slot, pid);
    }
    pid
}

/// This process is a child that uses the stack for the first time: perhaps inside of the fork,
/// perhaps made by a call that we have not seen. Then it holds nothing, and what it closes stays
/// its parent's.
pub fn begins_in_child() {
    context::set_process(FORKING.get().flatten());
}

/// When no place for a process is free, some may be of dead ones that the daemon has not come to
/// yet: it gives those back before it answers. (Before the fork begins: whoever has the connection
/// to the daemon may be waiting for the end of a fork.) When all live, not every fork waits for it.
fn make_room() {
    let Some(joined) = context::joined() else {
        return;
    };
    let is_full = || {
        let locked = joined.attachment.lock();
        locked.is_ok_and(|mut locked| locked.stack().free_processes() == 0)
    };
    if !is_full() || clock::now().0 < FULL_UNTIL.load(Ordering::Relaxed) {
        return;
    }
    context::settle_if_running();
    if is_full() {
        let until = clock::now().0.saturating_add(NEXT_ASK_NS);
        FULL_UNTIL.store(until, Ordering::Relaxed);
    }
}

fn reserve() -> Option<ProcessId> {
    let joined = context::joined()?;
    let mut locked = joined.attachment.lock().ok()?;
    locked.stack().fork_process(context::process())
}

fn in_child() {
    let slot = FORKING.get().flatten();
    lock::forget_thread();
    RELATIVES.store(true, Ordering::Relaxed);
    context::set_process(slot);
    context::after_fork_in_child();
    tcp::burst::ends();
    wait::after_fork_in_child();
    wait::epoll_set::after_fork_in_child();
    report::after_fork_in_child();
    sharing::after_fork_in_child();
    let Some(joined) = context::joined() else {
        return;
    };
    let has_all = joined.attachment.mend().is_ok();
    let Some(slot) = slot.filter(|_| has_all) else {
        // No slot or no memory left: the child's sockets are the kernel's.
        forget_all();
        return;
    };
    if let Ok(mut locked) = joined.attachment.lock() {
        let pid = rustix::process::getpid()
            .as_raw_nonzero()
            .get()
            .cast_unsigned();
        // The parent's word goes first: in a pid namespace of its own a child does not know by
        // which number the daemon knows it.
        if locked.stack().process_pid(slot) == Some(0) {
            locked.stack().set_process_pid(slot, pid, 0);
        }
    }
}

/// The child may be killed before it says who it is, and nobody must wait then for what it holds.
/// No other thread has forked since: the slot is this child's.
fn name_child(slot: Option<ProcessId>, pid: i32) {
    if let Some(slot) = slot
        && let Some(joined) = context::joined()
        && let Ok(mut locked) = joined.attachment.lock()
    {
        let (stack, pid) = (locked.stack(), pid.cast_unsigned());
        stack.name_child(context::process(), slot, pid);
    }
}

fn in_parent(slot: Option<ProcessId>, pid: i32) {
    let Some(slot) = slot else { return };
    if pid < 0 {
        if let Some(joined) = context::joined()
            && let Ok(mut locked) = joined.attachment.lock()
        {
            locked.stack().remove_process(slot);
        }
        return;
    }
    RELATIVES.store(true, Ordering::Relaxed);
    let request = Request {
        process: u32::from(slot.0),
        pid: pid.cast_unsigned(),
        ..Request::new(RequestKind::Forked)
    };
    let _ = context::with_control(|control| control.tell(request));
}

/// Every accelerated descriptor becomes the kernel's, without touching the endpoints.
fn forget_all() {
    for (fd, entry) in fdtable::entries(0, u32::MAX - 1) {
        if matches!(
            entry,
            Entry::Udp(_)
                | Entry::Bound
                | Entry::Candidate
                | Entry::Tcp(_)
                | Entry::Listener(_)
                | Entry::TcpCandidate
                | Entry::Guest
                | Entry::Heir
        ) {
            fdtable::set(fd, Entry::Other);
        }
    }
}

/// Whether no other process has the endpoint.
fn is_sole_holder(endpoint: EndpointId) -> bool {
    let holders = tcp::with_stack(|_, locked, _| locked.stack().holders(endpoint));
    holders.is_none_or(|[low, high]| low.count_ones() + high.count_ones() <= 1)
}

/// The program image is about to be replaced: what it has goes to the kernel now, for the next
/// program reads the shadows. If the exec fails, the sockets stay with the kernel.
pub fn about_to_exec() {
    if context::joined().is_none() {
        return;
    }
    let mut any = false;
    tcp::guest::all_stay();
    for (fd, entry) in fdtable::entries(0, u32::MAX - 1) {
        if let Entry::Udp(endpoint) = entry {
            if shadow::is_close_on_exec(fd) {
                decide::release(fd, endpoint);
            } else {
                // The next program reads the shadow, so packets must go there, whoever else holds
                // the endpoint: relatives find it gone and use the kernel as well.
                decide::abolish(fd, endpoint);
            }
            report::refused(fd, FallThrough::Inherited);
            any = true;
        }
        // A connection that stays open goes on in the kernel. (Of several descriptors the first
        // takes the others along.) A listener's shadow listens in the next program.
        if let Entry::Tcp(endpoint) = entry
            && !shadow::is_close_on_exec(fd)
            && (fdtable::get(fd) != entry
                || tcp::handover::hand_over(fd, endpoint, FallThrough::Inherited))
        {
            continue;
        }
        if let Entry::Tcp(endpoint) | Entry::Listener(endpoint) = entry {
            fdtable::set(fd, Entry::Other);
            // A relative that has the listener too asks its shadow still, and must not fall asleep.
            if matches!(entry, Entry::Listener(_)) && is_sole_holder(endpoint) {
                let nonblocking = tcp::options::is_nonblocking(endpoint);
                tcp::listen::set_nonblocking(fd, nonblocking);
            }
            tcp::close::closed(endpoint);
            report::refused(fd, FallThrough::Inherited);
            any = true;
        }
    }
    if any {
        decide::settle();
    }
}

/// A program is about to be started whose standard descriptors are this process's: connections
/// there go to the kernel.
pub fn about_to_spawn() {
    if context::joined().is_none() {
        return;
    }
    for fd in 0..=2 {
        if !shadow::is_close_on_exec(fd) {
            about_to_give(fd);
        }
    }
}

/// A program that is about to be started gets this descriptor.
pub fn about_to_give(fd: i32) {
    if fdtable::look(fd) == Entry::Guest {
        tcp::guest::stays(fd, FallThrough::Inherited);
    }
    if let Entry::Tcp(endpoint) = fdtable::get(fd) {
        tcp::handover::hand_over(fd, endpoint, FallThrough::Inherited);
    }
}
