//! A connection becomes the kernel's: exec, SCM_RIGHTS, an option that only the kernel has.
//!
//! The daemon makes the shadow into the connection (TCP_REPAIR, which is privileged) and ends the
//! endpoint, for every process that holds it. So the descriptor keeps its number and its open file,
//! and whoever has it finds a plain kernel socket: this process at once, others by their next call
//! on it, which meets an endpoint that is gone, or by their next wait.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: libc's originals; borrows the program's descriptor for one call"
)]

use std::ffi::{c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use bypass_proto::control::{Refusal, Request, RequestKind};
use bypass_proto::options::Log;
use bypass_proto::reason::FallThrough;
use bypass_runtime::attachment::Locked;
use bypass_runtime::control::ControlError;
use bypass_stack::tcp::congestion;
use bypass_stack::{Counter, EndpointId, TcpOptions, TcpState, event};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, socklen_t};
use rustix::io::Errno;

use super::with_stack;
use crate::decide::TCP;
use crate::fdtable::{self, Entry};
use crate::wait::call::Call;
use crate::wait::{self, Woken, epoll_set};
use crate::{context, log, report, shadow, sharing, symbols};

/// Times that the daemon is asked again when the stack was busy.
const TRIES: u32 = 20;
/// How long a handshake is waited for.
const HANDSHAKE_MS: u32 = 3000;

/// Connections that have left the stack when this process last looked.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Makes the connection the kernel's; `false`: it is not, and nothing has changed.
pub fn hand_over(fd: c_int, endpoint: EndpointId, why: FallThrough) -> bool {
    if !is_made(fd, endpoint) {
        return false;
    }
    let options = with_stack(|_, locked, _| super::options_of(locked, endpoint)).flatten();
    let Some(options) = options else {
        return moved(fd, endpoint);
    };
    copy_options(fd, &options);
    let request = Request {
        protocol: TCP,
        endpoint_index: endpoint.index,
        endpoint_generation: endpoint.generation,
        ..Request::new(RequestKind::HandOver)
    };
    // SAFETY: the program's descriptor is open during its own call on it.
    let proof = unsafe { BorrowedFd::borrow_raw(fd) };
    for _ in 0..TRIES {
        match context::with_control(|control| control.ask(request, Some(proof))) {
            Ok(_) => break,
            Err(error) if is_busy(error) => std::thread::yield_now(),
            // Another thread or process was faster, or it stays.
            Err(error) => {
                log::at(Log::Info, format_args!("fd {fd} stays: {error:?}"));
                break;
            }
        }
    }
    let gone = with_stack(|_, locked, _| !locked.stack().is_live(endpoint)) == Some(true);
    if gone {
        settle(endpoint, why);
        super::return_filters();
    }
    gone
}

fn is_busy(error: ControlError) -> bool {
    let busy = Errno::BUSY.raw_os_error().unsigned_abs();
    matches!(error, ControlError::Refused { refusal: Refusal::System, detail } if detail == busy)
}

/// Waits for the end of the handshake; `false`: there is no connection.
fn is_made(fd: c_int, endpoint: EndpointId) -> bool {
    let deadline = super::deadline(HANDSHAKE_MS);
    let mut call = Call::default();
    loop {
        let status = with_stack(|_, locked, _| locked.stack().tcp_status(endpoint));
        match status {
            Some(Ok(status)) if status.state == TcpState::Closed => return false,
            Some(Ok(status))
                if matches!(status.state, TcpState::SynSent | TcpState::SynReceived) => {}
            Some(_) => return true,
            None => return false,
        }
        match wait::block::until(fd, endpoint, event::OUT, false, (deadline, &mut call)) {
            Woken::TimedOut => return false,
            Woken::Ready | Woken::Interrupted => {}
        }
    }
}

/// Whether the connection behind a descriptor is the kernel's by now, because another thread or
/// process has handed it over: then the descriptor is no concern of ours any more.
#[cold]
pub fn moved(fd: c_int, endpoint: EndpointId) -> bool {
    let live = with_stack(|_, locked, _| locked.stack().is_live(endpoint));
    if live != Some(false) {
        return false;
    }
    settle(endpoint, FallThrough::Passed);
    fdtable::get(fd) == Entry::Other
}

/// Whether connections have left the stack since this process last looked.
pub fn is_news(locked: &mut Locked<'_>) -> bool {
    let left = locked.stack().counters().get(Counter::TcpHandedOver);
    left != SEEN.load(Ordering::Relaxed)
}

/// Finds the descriptors of this process whose connections have left the stack.
#[cold]
pub fn follow() {
    let mut gone = Vec::new();
    with_stack(|_, locked, _| {
        let left = locked.stack().counters().get(Counter::TcpHandedOver);
        SEEN.store(left, Ordering::Relaxed);
        for (_, entry) in fdtable::entries(0, u32::MAX - 1) {
            if let Entry::Tcp(endpoint) = entry
                && !locked.stack().is_live(endpoint)
            {
                gone.push(endpoint);
            }
        }
    });
    for endpoint in gone {
        settle(endpoint, FallThrough::Passed);
    }
}

/// The endpoint is gone and its descriptors are the kernel's, in epoll sets too.
fn settle(endpoint: EndpointId, why: FallThrough) {
    epoll_set::handed_over(endpoint);
    let mut numbers = Vec::new();
    for (fd, entry) in fdtable::entries(0, u32::MAX - 1) {
        if entry == Entry::Tcp(endpoint) && fdtable::replace(fd, entry, Entry::Other) {
            numbers.push(fd);
        }
    }
    sharing::ended(Entry::Tcp(endpoint));
    for fd in numbers {
        report::refused(fd, why);
    }
}

/// Gives the shadow what the endpoint has and the shadow may not: what an accepted connection has
/// from its listener, and what is set without a system call.
fn copy_options(fd: c_int, options: &TcpOptions) {
    let fresh = TcpOptions::new();
    let flag = |bit| c_int::from(options.has(bit));
    let put = |level, name, value: c_int| put(fd, level, name, &value.to_ne_bytes());
    put(IPPROTO_TCP, libc::TCP_NODELAY, flag(TcpOptions::NODELAY));
    put(IPPROTO_TCP, libc::TCP_CORK, flag(TcpOptions::CORK));
    put(SOL_SOCKET, libc::SO_KEEPALIVE, flag(TcpOptions::KEEPALIVE));
    put(SOL_SOCKET, libc::SO_OOBINLINE, flag(TcpOptions::OOBINLINE));
    let numbers = [
        (
            IPPROTO_TCP,
            libc::TCP_KEEPIDLE,
            options.keep_idle_s,
            fresh.keep_idle_s,
        ),
        (
            IPPROTO_TCP,
            libc::TCP_KEEPINTVL,
            options.keep_interval_s,
            fresh.keep_interval_s,
        ),
        (
            IPPROTO_TCP,
            libc::TCP_KEEPCNT,
            options.keep_count.into(),
            fresh.keep_count.into(),
        ),
        (IPPROTO_TCP, libc::TCP_SYNCNT, options.syn_count.into(), 0),
        (
            IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            options.user_timeout_ms,
            0,
        ),
        (
            IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            options.notsent_lowat,
            super::defaults::notsent_lowat(),
        ),
        (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, options.window_clamp, 0),
        (
            IPPROTO_TCP,
            libc::TCP_LINGER2,
            options.linger2_s.cast_unsigned(),
            0,
        ),
        (SOL_SOCKET, libc::SO_RCVLOWAT, options.rcvlowat, 1),
        (IPPROTO_IP, libc::IP_TOS, options.tos.into(), 0),
        (IPPROTO_IP, libc::IP_TTL, options.ttl.into(), 0),
        (
            IPPROTO_IPV6,
            libc::IPV6_TCLASS,
            options.traffic_class.into(),
            0,
        ),
        (
            IPPROTO_IPV6,
            libc::IPV6_UNICAST_HOPS,
            options.hop_limit.into(),
            0,
        ),
    ];
    for (level, name, value, usual) in numbers {
        if value != usual {
            put(level, name, value.cast_signed());
        }
    }
    for (bit, name, bytes) in [
        (
            TcpOptions::RCVBUF_LOCKED,
            libc::SO_RCVBUF,
            options.rcvbuf_bytes,
        ),
        (
            TcpOptions::SNDBUF_LOCKED,
            libc::SO_SNDBUF,
            options.sndbuf_bytes,
        ),
    ] {
        // The kernel doubles what is set.
        if options.has(bit) {
            put(SOL_SOCKET, name, (bytes / 2).cast_signed());
        }
    }
    copy_structures(fd, options);
}

/// The options that are no number.
fn copy_structures(fd: c_int, options: &TcpOptions) {
    if options.has(TcpOptions::LINGER) {
        let value = [1, options.linger_s.cast_signed()].map(c_int::to_ne_bytes);
        put(fd, SOL_SOCKET, libc::SO_LINGER, value.as_flattened());
    }
    for (name, ms) in [
        (libc::SO_RCVTIMEO, options.rcvtimeo_ms),
        (libc::SO_SNDTIMEO, options.sndtimeo_ms),
    ] {
        if ms != shadow::timeout_ms(fd, name) {
            let value = [i64::from(ms / 1000), i64::from(ms % 1000) * 1000].map(i64::to_ne_bytes);
            put(fd, SOL_SOCKET, name, value.as_flattened());
        }
    }
    if options.max_pacing_rate != TcpOptions::UNPACED {
        let value = options.max_pacing_rate.to_ne_bytes();
        put(fd, SOL_SOCKET, libc::SO_MAX_PACING_RATE, &value);
    }
    if super::options::of_shadow(fd).congestion != options.congestion {
        let name = congestion::name(options.congestion);
        put(fd, IPPROTO_TCP, libc::TCP_CONGESTION, name.as_bytes());
    }
}

/// Sets an option of the shadow; one that the kernel refuses (another family's) stays as it is.
fn put(fd: c_int, level: c_int, name: c_int, value: &[u8]) {
    let bytes = value.as_ptr().cast::<c_void>();
    // SAFETY: the value is readable for its length.
    unsafe { symbols::setsockopt::original()(fd, level, name, bytes, value.len() as socklen_t) };
}
