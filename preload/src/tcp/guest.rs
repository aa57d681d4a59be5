//! Connections that the kernel serves and that may come (back) to the stack, *guests* there: those
//! that were rolled back, and those that the kernel has accepted at a listener meanwhile.
//!
//! The daemon takes one out of the kernel at any moment, whatever this process does (`bypassctl
//! adopt`). Then its socket is closed, which wakes whoever sleeps on it in the kernel, and the
//! image has an endpoint with the socket's cookie. So a call that fails on a guest looks whether
//! that is why, and is made again; a call that is served by the socket alone looks before. A look
//! is one load of a count in the image.
//!
//! What the kernel has taken from a program must not be in doubt at that moment. Therefore every
//! call that gives it bytes, changes the connection or asks about it is made under the stack's
//! lock ([`unmoved`]), which the daemon has while it moves something, and none sleeps in the
//! kernel. Only a receive may: it gets bytes that the daemon then does not get.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: libc's originals on the caller's message"
)]

use std::cell::Cell;
use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU32, Ordering};

use bypass_proto::reason::FallThrough;
use bypass_stack::EndpointId;
use libc::{MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, POLLHUP, POLLOUT, SPLICE_F_NONBLOCK};
use libc::{iovec, msghdr, pollfd};
use rustix::io::Errno;

use super::send::broken;
use super::with_stack;
use crate::context::Joined;
use crate::errno::{Answer, from_c, set, to_int};
use crate::fdtable::{self, Entry};
use crate::locks::Mutex;
use crate::report::Fate;
use crate::wait::epoll_set;
use crate::{context, family, process, report, shadow, symbols};

/// The image's count when this process last looked.
static SEEN: AtomicU32 = AtomicU32::new(0);
/// One thread looks at a time: who comes second finds what the first has found.
static LOOKING: Mutex<()> = Mutex::new(());

thread_local! {
    /// This thread does. No destructor.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The count of moves from the kernel into the stack.
fn count() -> u32 {
    context::joined().map_or(0, |joined| joined.attachment.returned())
}

/// What a number is that was a guest's: still that, or an endpoint's by now.
#[cold]
pub fn look(fd: c_int) -> Entry {
    if count() != SEEN.load(Ordering::Acquire) {
        follow();
    }
    fdtable::look(fd)
}

/// Runs `change` alone; not in a signal handler that has interrupted just that. Whether it ran.
fn alone(change: impl FnOnce()) -> bool {
    if INSIDE.replace(true) {
        return false;
    }
    {
        let _guard = process::no_fork();
        let _one = LOOKING.lock();
        change();
    }
    INSIDE.set(false);
    true
}

/// Finds the guests of this process that have come to the stack. Waits for the daemon if it moves
/// some now.
#[cold]
pub fn follow() {
    if let Some(joined) = context::joined() {
        alone(|| find(joined));
    }
}

fn find(joined: &Joined) {
    let Ok(mut locked) = joined.attachment.lock() else {
        return;
    };
    let count = joined.attachment.returned();
    if count == SEEN.load(Ordering::Relaxed) {
        return;
    }
    let mut shadows: Vec<(u64, EndpointId)> = locked.stack().tcp_shadows().collect();
    drop(locked);
    shadows.sort_unstable_by_key(|(cookie, _)| *cookie);
    let guests = fdtable::entries(0, u32::MAX - 1);
    let guests = guests.filter(|(_, entry)| *entry == Entry::Guest);
    let guests: Vec<c_int> = guests.map(|(fd, _)| fd).collect();
    for fd in guests {
        let cookie = shadow::cookie(fd);
        if let Ok(at) = shadows.binary_search_by_key(&cookie, |(cookie, _)| *cookie) {
            comes(fd, shadows[at].1);
        }
    }
    SEEN.store(count, Ordering::Release);
}

/// The guest is this endpoint's from here on. The table and the report change under the stack's
/// lock: the daemon may move it again as soon as it has that.
fn comes(fd: c_int, endpoint: EndpointId) {
    let comes = with_stack(|_, locked, _| {
        let stack = locked.stack();
        stack.hold(endpoint, context::process());
        let (is_live, now) = (stack.is_live(endpoint), Entry::Tcp(endpoint));
        let comes = is_live && fdtable::replace(fd, Entry::Guest, now);
        if comes {
            report::accelerated(fd, endpoint);
        }
        comes
    });
    if comes == Some(true) {
        epoll_set::activated(fd, endpoint, false);
    }
}

/// A connection has left the stack and become the kernel's, for good unless the report says
/// otherwise.
pub fn leaves(fd: c_int, was: EndpointId) {
    let mut fate = Fate::Stays;
    let mut follow_fate = || {
        fate = report::fate(fd, was);
        if fate != Fate::Stays && fdtable::replace(fd, Entry::Tcp(was), Entry::Guest) {
            // The next look finds where it is.
            SEEN.store(count().wrapping_sub(1), Ordering::Release);
        }
    };
    // Under the stack's lock the daemon moves nothing, and says nothing else.
    let has_run = alone(|| match with_stack(|_, _, _| follow_fate()) {
        Some(()) => {}
        None => follow_fate(),
    });
    if !has_run {
        // The report may say that it may return.
        report::refused(fd, FallThrough::Rollback);
        settle();
    }
    if fate == Fate::Stays {
        fdtable::replace(fd, Entry::Tcp(was), Entry::Other);
        fdtable::replace(fd, Entry::Guest, Entry::Other);
        epoll_set::guest_gone(fd);
    }
}

/// The kernel has accepted a connection at a listener that rests.
pub fn accepted(fd: c_int) {
    if let (Some(local), Some(remote)) = (shadow::local(fd), shadow::remote(fd))
        && !remote.ip.is_loopback()
    {
        fdtable::set(fd, Entry::Guest);
        report::rests(fd, local, remote);
    }
}

/// The connection stays with the kernel to its end; what the number is then. It may have come to
/// the stack in the moment before.
#[cold]
pub fn stays(fd: c_int, why: FallThrough) -> Entry {
    // First this: the daemon looks at it when it has the lock, which is then waited for.
    report::refused(fd, why);
    settle();
    if fdtable::replace(fd, Entry::Guest, Entry::Other) {
        epoll_set::guest_gone(fd);
    }
    fdtable::look(fd)
}

/// Another process is about to have all descriptors: the daemon looks at holders before it moves,
/// and would not know.
pub fn all_stay() {
    let all = fdtable::entries(0, u32::MAX - 1);
    for (fd, _) in all.filter(|(_, entry)| *entry == Entry::Guest) {
        stays(fd, FallThrough::Inherited);
    }
}

/// Whether what the kernel says of a guest is that its connection has come to the stack.
pub fn has_come(told: &pollfd) -> bool {
    if told.revents & POLLHUP == 0 || fdtable::look(told.fd) != Entry::Guest {
        return false;
    }
    settle();
    fdtable::look(told.fd) != Entry::Guest
}

/// The number is about to be closed; what it is now.
#[cold]
pub fn closes(fd: c_int) -> Entry {
    report::closed(fd);
    settle();
    if fdtable::look(fd) == Entry::Guest {
        epoll_set::guest_closes(fd);
    }
    fdtable::look(fd)
}

/// Waits for a move that is going on, and follows it.
#[cold]
pub fn settle() {
    with_stack(|_, _, _| ());
    if count() != SEEN.load(Ordering::Acquire) {
        follow();
    }
}

/// A call on a guest that the kernel's original makes, and which is made again when the connection
/// has moved meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    fd: c_int,
    count: u32,
}

impl Call {
    /// It begins; `None`: the number is no guest any more. Whatever moves from here on counts on.
    pub fn on(fd: c_int) -> Option<Self> {
        let count = count();
        (look(fd) == Entry::Guest).then_some(Self { fd, count })
    }

    /// Whether it failed because the connection has moved, or was about to.
    #[cold]
    pub fn is_void(self, why: Errno) -> bool {
        // A socket in repair mode, or closed (net/ipv4/tcp.c: tcp_recvmsg, tcp_sendmsg,
        // tcp_disconnect); a sleeper that was woken by that (net/sock.h: sk_wait_event).
        let moved = [
            Errno::PERM,
            Errno::INVAL,
            Errno::CONNABORTED,
            Errno::NOTCONN,
            Errno::PIPE,
        ];
        if !moved.contains(&why) {
            return false;
        }
        settle();
        let is_void = count() != self.count || fdtable::look(self.fd) != Entry::Guest;
        if !is_void {
            // The caller returns it.
            set(why);
        }
        is_void
    }
}

/// Makes a call on a guest while the daemon moves nothing; `None`: it is none any more. The call
/// must not sleep, and be no cancellation point (pthreads(7)): the lock would never be given back.
pub fn unmoved<T>(fd: c_int, call: impl FnOnce() -> T) -> Option<T> {
    loop {
        // Without it: this thread has it already, in the code that a signal has interrupted.
        let locked = context::joined().and_then(|joined| joined.attachment.lock().ok());
        if fdtable::look(fd) != Entry::Guest {
            return None;
        }
        let is_followed = count() == SEEN.load(Ordering::Acquire);
        if is_followed || locked.is_none() || INSIDE.get() {
            return Some(call());
        }
        drop(locked);
        follow();
    }
}

/// Makes a call of libc's that is one of the kernel's as [`unmoved`] does.
pub fn asked(fd: c_int, call: impl FnOnce() -> c_int) -> Option<c_int> {
    let answer = unmoved(fd, || from_c(call() as isize))?;
    Some(to_int(answer))
}

/// Makes a splice to or from a descriptor, which may be a guest; `None`: it is none (any more).
pub fn spliced(fd: c_int, flags: c_uint, call: impl FnOnce() -> isize) -> Option<Answer> {
    if fdtable::look(fd) != Entry::Guest {
        return None;
    }
    if flags & SPLICE_F_NONBLOCK == 0 || !shadow::is_nonblocking(fd) {
        // It may fall asleep.
        stays(fd, FallThrough::Option);
        return None;
    }
    unmoved(fd, || from_c(call()))
}

/// send on a guest of bytes that are ours.
///
/// # Errors
/// As the kernel's.
pub fn send_bytes(fd: c_int, bytes: &[u8], flags: c_int) -> Answer {
    let mut vector = iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: plain data; all zero is a value.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    // SAFETY: the message is of the slice.
    unsafe { family::send::again(fd, &message, flags) }
}

/// recvmsg on a guest.
///
/// # Safety
/// `message` describes buffers that the caller may write.
pub unsafe fn receive(fd: c_int, message: &mut msghdr, flags: c_int) -> Answer {
    if flags & MSG_WAITALL != 0 {
        // It could be woken half way.
        stays(fd, FallThrough::Option);
    }
    let Some(call) = Call::on(fd) else {
        // SAFETY: the caller's promise.
        return unsafe { family::recv::again(fd, message, flags) };
    };
    // SAFETY: as above.
    match from_c(unsafe { symbols::recvmsg::original()(fd, message, flags) }) {
        // SAFETY: as above.
        Err(why) if call.is_void(why) => unsafe { family::recv::again(fd, message, flags) },
        answer => answer,
    }
}

/// sendmsg on a guest.
///
/// # Safety
/// `message` describes buffers that the caller may read.
pub unsafe fn send(fd: c_int, message: &msghdr, flags: c_int) -> Answer {
    let mut deadline = None;
    let mut sent = 0_usize;
    // SAFETY: the caller's array; the kernel refuses what is too long or no address.
    let mut vectors = unsafe { vectors(message) };
    let mut rest = *message;
    loop {
        if sent > 0 {
            // What it says beside the bytes has been said.
            (rest.msg_control, rest.msg_controllen) = (std::ptr::null_mut(), 0);
            (rest.msg_iov, rest.msg_iovlen) = (vectors.as_mut_ptr(), vectors.len());
        }
        let quiet = flags | MSG_DONTWAIT | MSG_NOSIGNAL;
        // SAFETY: the caller's promise.
        match unmoved(fd, || unsafe { family::raw::sendmsg(fd, &rest, quiet) }) {
            None => {
                // SAFETY: as above.
                let last = unsafe { family::send::again(fd, &rest, flags) };
                return with_sent(sent, last);
            }
            Some(Err(Errno::AGAIN)) => {}
            Some(Err(why)) if sent == 0 => return Err(broken(why.raw_os_error(), flags)),
            Some(Err(_)) => return Ok(sent as isize),
            Some(Ok(done)) => {
                sent += done as usize;
                advance(&mut vectors, done as usize);
                if vectors.is_empty() {
                    return Ok(sent as isize);
                }
            }
        }
        if flags & MSG_DONTWAIT != 0 || shadow::is_nonblocking(fd) {
            return with_sent(sent, Err(Errno::AGAIN));
        }
        if let Err(why) = await_room(fd, &mut deadline) {
            return with_sent(sent, Err(why));
        }
    }
}

/// What a send of several parts answers, of which the last has answered this.
fn with_sent(sent: usize, last: Answer) -> Answer {
    match last {
        Ok(more) => Ok(more + sent as isize),
        Err(_) if sent > 0 => Ok(sent as isize),
        Err(why) => Err(why),
    }
}

/// The vectors of a message.
///
/// # Safety
/// They are the caller's, of whatever length it says.
unsafe fn vectors(message: &msghdr) -> Vec<iovec> {
    if message.msg_iovlen > 1024 || crate::address::is_nowhere(message.msg_iov) {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen) }.to_vec()
}

/// Takes so many bytes off the front.
fn advance(vectors: &mut Vec<iovec>, mut bytes: usize) {
    let mut whole = 0;
    for vector in vectors.iter_mut() {
        if bytes < vector.iov_len {
            vector.iov_base = vector.iov_base.wrapping_byte_add(bytes);
            vector.iov_len -= bytes;
            break;
        }
        bytes -= vector.iov_len;
        whole += 1;
    }
    vectors.drain(..whole);
}

/// Sleeps until there is room, or the connection has moved.
fn await_room(fd: c_int, deadline: &mut Option<bypass_stack::Instant>) -> Result<(), Errno> {
    let timeout_ms = send_timeout_ms(fd);
    let end = *deadline.get_or_insert_with(|| {
        super::deadline(timeout_ms).unwrap_or(bypass_stack::Instant(u64::MAX))
    });
    let now = bypass_runtime::clock::now();
    let left_ms = match timeout_ms {
        0 => -1,
        _ => c_int::try_from(end.since(now).0.div_ceil(1_000_000)).unwrap_or(c_int::MAX),
    };
    let mut socket = pollfd {
        fd,
        events: POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry.
    match from_c(unsafe { symbols::poll::original()(&raw mut socket, 1, left_ms) } as isize) {
        Ok(0) => Err(Errno::AGAIN),
        Err(Errno::INTR) if super::restarts(timeout_ms) => Ok(()),
        Err(why) => Err(why),
        Ok(_) => Ok(()),
    }
}

/// SO_SNDTIMEO, 0 = none.
fn send_timeout_ms(fd: c_int) -> u32 {
    let time = shadow::option::<[i64; 2]>(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO);
    let [seconds, micros] = time.unwrap_or_default();
    let ms = seconds
        .saturating_mul(1000)
        .saturating_add((micros + 999) / 1000);
    u32::try_from(ms).unwrap_or(u32::MAX)
}
