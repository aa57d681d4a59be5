//! The error queue of a connection: what it tells of sends, and the times of what was received.
//!
//! The bytes of every send are copied, so one with MSG_ZEROCOPY is over when its call returns, and
//! the notice says that it was a copy. Timestamps await their moment in the image
//! ([`bypass_stack::tcp::notices`]).

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the control buffer that a msghdr names"
)]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_runtime::error_queue::{TX_RECORD, is_cut, put_arrival, put_notice};
use bypass_runtime::tcp_options::timestamping_of_shadow;
use bypass_stack::tcp::notices::OPT_ID;
use bypass_stack::{EndpointId, Instant, NoticeKind, TcpOptions, TcpState};
use libc::{
    MSG_CMSG_CLOEXEC, MSG_ERRQUEUE, MSG_TRUNC, MSG_ZEROCOPY, SO_TIMESTAMPING, SOL_SOCKET, msghdr,
    socklen_t,
};
use rustix::io::Errno;

use super::with_stack;
use crate::address::is_nowhere;
use crate::errno::{Answer, from_c};
use crate::symbols;
use crate::udp::cmsg::Writer;

/// Whether a socket of this process has ever asked for notices or times.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Notes what the options of a socket ask for.
pub fn note(options: &TcpOptions) {
    let bits = TcpOptions::ZEROCOPY | TcpOptions::TIMESTAMP;
    if options.has(bits) || options.timestamping != 0 {
        ASKED.store(true, Ordering::Relaxed);
    }
}

/// Whether a send or receive has to ask for the socket's options at all.
pub fn are_asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// What a send still has to tell when it is over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    copied: bool,
    stamps: u32,
}

impl Sending {
    /// Of a send that begins. `own`: the flags that a control message brings, instead of the
    /// socket's.
    ///
    /// # Errors
    /// `ENOBUFS`: the error queue is full.
    pub fn begins(endpoint: EndpointId, call: c_int, own: Option<u32>) -> Result<Self, Errno> {
        if !are_asked() && own.is_none() && call & MSG_ZEROCOPY == 0 {
            return Ok(Self::default());
        }
        let begun = with_stack(|_, locked, _| {
            let options = super::options_of(locked, endpoint)?;
            let copied = call & MSG_ZEROCOPY != 0 && options.has(TcpOptions::ZEROCOPY);
            if copied && !locked.stack().tcp_may_notice(endpoint) {
                return Some(Err(Errno::NOBUFS));
            }
            let stamps = own.unwrap_or(options.timestamping) & TX_RECORD;
            Some(Ok(Self { copied, stamps }))
        });
        begun.flatten().unwrap_or_else(|| Ok(Self::default()))
    }

    /// Some of its bytes were taken, and it is over.
    pub fn ends(&mut self, endpoint: EndpointId) {
        if self.copied || self.stamps != 0 {
            with_stack(|_, locked, now| self.ends_in(locked, endpoint, now));
        }
    }

    /// The same under the lock under which the last of them were: before they leave, which a NIC
    /// that stamps them has to know.
    #[inline]
    pub fn ends_in(&mut self, locked: &mut Locked<'_>, endpoint: EndpointId, now: Instant) {
        if self.copied || self.stamps != 0 {
            let Self { copied, stamps } = std::mem::take(self);
            let stack = locked.stack();
            if copied {
                let _ = stack.tcp_copied(endpoint, now);
            }
            if stamps != 0 {
                let _ = stack.tcp_await(endpoint, stamps, now);
            }
        }
    }
}

/// recvmsg with MSG_ERRQUEUE. The packet that a timestamp without SOF_TIMESTAMPING_OPT_TSONLY comes
/// with is not kept: it counts as cut off.
///
/// # Errors
/// `EAGAIN` when there is nothing, `EBADF` when the endpoint is gone.
///
/// # Safety
/// `message` describes buffers that the caller may write.
pub unsafe fn receive(endpoint: EndpointId, message: &mut msghdr, call: c_int) -> Answer {
    let taken = with_stack(|_, locked, now| {
        let mut notice = locked.stack().tcp_take_notice(endpoint);
        if notice == Ok(None) {
            locked.pump(now);
            notice = locked.stack().tcp_take_notice(endpoint);
        }
        let options = super::options_of(locked, endpoint)?;
        let family = locked.stack().tcp_status(endpoint).ok()?.family;
        Some((notice.ok()?, (options, family), now))
    });
    let (notice, (options, family), now) = taken.ok_or(Errno::AGAIN)?.ok_or(Errno::BADF)?;
    let notice = notice.ok_or(Errno::AGAIN)?;
    // The others have no time of the host's clock: theirs is that of the reading.
    let age = match notice.kind {
        NoticeKind::Copied | NoticeKind::Stamped => 0,
        _ => now.0.saturating_sub(notice.at.0),
    };
    let at_ns = clock::realtime_ns().saturating_sub(age);
    message.msg_namelen = 0;
    message.msg_flags = MSG_ERRQUEUE | call & MSG_CMSG_CLOEXEC;
    if is_cut(&notice) {
        message.msg_flags |= MSG_TRUNC;
    }
    // SAFETY: the caller's promise.
    unsafe {
        super::control::put(message, |writer| {
            let put = &mut |level, kind, bytes: &[u8]| writer.put(level, kind, bytes);
            put_notice(&notice, (&options, family), at_ns, put);
        });
    }
    Ok(0)
}

/// setsockopt(SO_TIMESTAMPING) on a connection. The shadow, which has none, judges all but what
/// counts its bytes (net/core/sock.c:sock_set_timestamping).
///
/// # Errors
/// As the kernel's; `ESTALE` when the endpoint is gone and nothing was done.
///
/// # Safety
/// `value` is readable for `len` bytes.
pub unsafe fn set_timestamping(
    fd: c_int,
    endpoint: EndpointId,
    value: *const c_void,
    len: socklen_t,
) -> Answer {
    if len.cast_signed() < size_of::<c_int>() as i32 {
        return Err(Errno::INVAL);
    }
    if is_nowhere(value) {
        return Err(Errno::FAULT);
    }
    // SAFETY: the caller's promise.
    let asked = unsafe { value.cast::<u32>().read_unaligned() };
    let mut told = [timestamping_of_shadow(asked).ok_or(Errno::INVAL)?, 0];
    if len as usize == size_of_val(&told) {
        // struct so_timestamping has the number of a hardware clock too.
        // SAFETY: the caller's promise.
        told[1] = unsafe { value.cast::<u32>().add(1).read_unaligned() };
    }
    let (from, room) = ((&raw const told).cast(), len.min(size_of_val(&told) as u32));
    // SAFETY: `told` is readable for its size.
    let set =
        unsafe { symbols::setsockopt::original()(fd, SOL_SOCKET, SO_TIMESTAMPING, from, room) };
    from_c(set as isize)?;
    let done = with_stack(|_, locked, _| {
        let state = locked.stack().tcp_status(endpoint)?.state;
        let counts = asked & OPT_ID != 0 && {
            let old = locked.stack().tcp_options(endpoint)?.timestamping;
            old & OPT_ID == 0
        };
        if counts && state == TcpState::Closed {
            return Ok(Err(Errno::INVAL));
        }
        locked.stack().tcp_set_timestamping(endpoint, asked)?;
        Ok::<_, bypass_stack::Stale>(Ok(0))
    });
    ASKED.store(true, Ordering::Relaxed);
    done.unwrap_or(Ok(Ok(0))).map_err(|_| Errno::STALE)?
}

/// When received data has come, and what of that its socket asks for.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// By the host's clock and the NIC's, nanoseconds since 1970; 0 = not known.
    pub at_ns: (u64, u64),
    /// The socket's.
    pub options: TcpOptions,
}

impl Arrival {
    /// Puts its messages.
    pub fn put(&self, writer: &mut Writer<'_>) {
        let put = &mut |level, kind, bytes: &[u8]| writer.put(level, kind, bytes);
        put_arrival(&self.options, self.at_ns, put);
    }
}
