//! accept and accept4: the endpoint's queue first, then the kernel's, then waiting for both.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: libc's originals; writes the caller's address"
)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use bypass_proto::reason::FallThrough;
use bypass_stack::{EndpointId, Family, SocketAddress, TcpOptions, event};
use libc::{AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, sockaddr, socklen_t};
use rustix::io::Errno;

use super::{guest, handover, with_stack};
use crate::errno::{Answer, from_c, last};
use crate::fdtable::{self, Entry};
use crate::wait::call::Call;
use crate::wait::{self, Woken};
use crate::{address, context, report, symbols};

/// Accepts served by the stack between two looks at a shadow.
const SHADOW_EVERY: u32 = 64;
static SERVED: AtomicU32 = AtomicU32::new(0);

/// Where the caller wants the peer's address.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Null = nowhere.
    pub address: *mut sockaddr,
    /// Room there.
    pub len: *mut socklen_t,
}

impl Place {
    /// Why the kernel would refuse to write there.
    fn unusable(self) -> Option<Errno> {
        if self.address.is_null() {
            return None;
        }
        if address::is_nowhere(self.address) || address::is_nowhere(self.len) {
            return Some(Errno::FAULT);
        }
        // SAFETY: the caller's length.
        let len = unsafe { self.len.read_unaligned() };
        (len.cast_signed() < 0).then_some(Errno::INVAL)
    }
}

/// What one look at the endpoint's accept queue brought.
enum Look {
    Got(c_int),
    Empty(TcpOptions),
    Failed(Errno),
    /// The endpoint is gone: the kernel answers.
    Gone,
}

/// accept4 on an accelerated listener.
///
/// # Safety
/// `place` is the caller's to write.
pub unsafe fn accept(fd: c_int, listener: EndpointId, place: Place, call_flags: c_int) -> Answer {
    if call_flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    if let Some(errno) = place.unusable() {
        return Err(errno);
    }
    let served = SERVED.fetch_add(1, Ordering::Relaxed);
    if served.is_multiple_of(SHADOW_EVERY) && !context::rests(listener) {
        super::defaults::follow();
        // SAFETY: the caller's promise.
        match unsafe { from_kernel((fd, listener), place, call_flags) } {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    let mut deadline = None;
    let mut call = Call::default();
    loop {
        // SAFETY: the caller's promise.
        let options = match unsafe { look(listener, place, call_flags) } {
            Look::Got(new) => return Ok(new as isize),
            Look::Failed(errno) => return Err(errno),
            Look::Empty(options) => options,
            Look::Gone => {
                fdtable::replace(fd, Entry::Listener(listener), Entry::Other);
                // SAFETY: the caller's promise.
                return unsafe { from_kernel((fd, listener), place, call_flags) };
            }
        };
        // Another thread may have closed it since: the number is none of ours then.
        if fdtable::leads_to(fd, listener) {
            // SAFETY: the caller's promise. The shadow does not block.
            match unsafe { from_kernel((fd, listener), place, call_flags) } {
                Err(Errno::AGAIN) => {}
                answer => return answer,
            }
        }
        if options.has(TcpOptions::NONBLOCKING) {
            return Err(Errno::AGAIN);
        }
        if deadline.is_none() {
            deadline = super::deadline(options.rcvtimeo_ms);
        }
        match wait::block::until(fd, listener, event::IN, true, (deadline, &mut call)) {
            Woken::Ready => {}
            Woken::TimedOut => return Err(Errno::AGAIN),
            Woken::Interrupted if super::restarts(options.rcvtimeo_ms) => {}
            Woken::Interrupted => return Err(Errno::INTR),
        }
    }
}

/// The original accept4 on the shadow.
///
/// # Safety
/// `place` is the caller's to write.
unsafe fn from_kernel(
    (fd, listener): (c_int, EndpointId),
    place: Place,
    call_flags: c_int,
) -> Answer {
    // SAFETY: the caller's promise.
    let accepted =
        unsafe { symbols::accept4::original()(fd, place.address, place.len, call_flags) };
    crate::family::socket::reborn(accepted);
    if accepted >= 0 && context::rests(listener) {
        guest::accepted(accepted);
    }
    from_c(accepted as isize)
}

/// Takes one connection from the endpoint's queue.
///
/// # Safety
/// `place` is the caller's to write.
unsafe fn look(listener: EndpointId, place: Place, call_flags: c_int) -> Look {
    let waiting = with_stack(|joined, locked, now| {
        let mut status = locked.stack().tcp_status(listener);
        if status.is_ok_and(|status| status.accept_queue == 0) {
            locked.pump(now);
            status = locked.stack().tcp_status(listener);
        }
        let options = super::options_of(locked, listener);
        let generation = locked.stack().queue_pairs_generation();
        (joined, status, options, generation)
    });
    let Some((joined, status, options, generation)) = waiting else {
        return Look::Failed(Errno::AGAIN);
    };
    super::refresh(joined, generation);
    let (Ok(status), Some(options)) = (status, options) else {
        return Look::Gone;
    };
    if status.accept_queue == 0 {
        return Look::Empty(options);
    }
    let shadow = match make_shadow(status.family, call_flags) {
        Ok(shadow) => shadow,
        Err(errno) => return Look::Failed(errno),
    };
    let nonblocking = call_flags & SOCK_NONBLOCK != 0;
    let taken = with_stack(|_, locked, _| {
        let process = context::process();
        let rests = locked.stack().rests(listener);
        let endpoint = locked.stack().tcp_accept(listener, process, 0).ok()??;
        if let Ok(options) = locked.stack().tcp_options(endpoint) {
            options.set(TcpOptions::NONBLOCKING, nonblocking);
        }
        let status = locked.stack().tcp_status(endpoint).ok()?;
        Some((endpoint, (status.local, status.remote), rests))
    });
    let Some((endpoint, (local, remote), rests)) = taken.flatten() else {
        // Another thread or process was faster.
        // SAFETY: our own descriptor, which nobody has seen.
        unsafe { symbols::close::original()(shadow) };
        return Look::Empty(options);
    };
    super::inherited::give(listener, shadow);
    place_connection(shadow, endpoint, local, remote);
    if rests {
        // Its handshake began before the listener was rolled back.
        handover::hand_over(shadow, endpoint, FallThrough::Rollback);
    }
    if !place.address.is_null() {
        // SAFETY: the caller's promise.
        unsafe { address::write(remote, status.family, place.address, place.len) };
    }
    Look::Got(shadow)
}

/// The new connection has its descriptor.
fn place_connection(fd: c_int, endpoint: EndpointId, local: SocketAddress, remote: SocketAddress) {
    fdtable::set(fd, Entry::Tcp(endpoint));
    report::accepted(fd, endpoint, local, remote);
}

/// A kernel socket for a connection: the number and the open file description.
fn make_shadow(family: Family, call_flags: c_int) -> Result<c_int, Errno> {
    let domain = if family == Family::V4 {
        AF_INET
    } else {
        AF_INET6
    };
    // SAFETY: plain integers.
    let fd = unsafe { symbols::socket::original()(domain, SOCK_STREAM | call_flags, 0) };
    if fd < 0 {
        return Err(last());
    }
    crate::family::socket::reborn(fd);
    Ok(fd)
}
