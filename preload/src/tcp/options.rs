//! Options of a connection or listener.
//!
//! The kernel judges every `setsockopt` on the shadow and normalises its value; what the stack acts
//! on is then read back into the endpoint. `getsockopt` answers from the endpoint where it knows
//! better: an accepted connection inherits its listener's options, its shadow does not.
//! `TCP_NODELAY`, `TCP_CORK` and `TCP_QUICKACK` are on the path of every request of some servers
//! and make no system call.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads and writes option values of the caller"
)]

use std::ffi::{c_int, c_void};

use bypass_runtime::tcp_options::{
    self, FASTOPEN_KEY, FASTOPEN_NO_COOKIE, NAME_BYTES, RARE, READ, Shadow, number, usual_name,
};
use bypass_stack::tcp::congestion;
use bypass_stack::{EndpointId, Family, TcpOptions, TcpState};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, socklen_t};
use once_cell::sync::Lazy;
use rustix::io::Errno;

use super::{notices, with_stack};
use crate::address::is_nowhere;
use crate::errno::{Answer, from_c};
use crate::fdtable::{self, Entry};
use crate::{shadow, symbols};

/// What a fresh socket answers for its buffers: (SO_RCVBUF, SO_SNDBUF).
static FRESH: Lazy<(c_int, c_int)> = Lazy::new(|| {
    // SAFETY: plain integers.
    let fd = unsafe {
        symbols::socket::original()(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
    };
    let of = |name| shadow::option(fd, SOL_SOCKET, name).unwrap_or(0);
    let sizes = (of(libc::SO_RCVBUF), of(libc::SO_SNDBUF));
    // SAFETY: our own descriptor.
    unsafe { symbols::close::original()(fd) };
    sizes
});

/// The shadow of this descriptor.
struct ShadowOf(c_int);

impl Shadow for ShadowOf {
    fn option(&self, level: c_int, name: c_int, into: &mut [u8]) -> Option<usize> {
        let mut len = into.len() as socklen_t;
        let to = into.as_mut_ptr().cast();
        // SAFETY: `into` is writable for `len` bytes.
        let result =
            unsafe { symbols::getsockopt::original()(self.0, level, name, to, &raw mut len) };
        (result == 0).then_some(len as usize)
    }

    fn fresh_buffers(&self) -> (c_int, c_int) {
        *FRESH
    }

    fn is_nonblocking(&self) -> bool {
        shadow::is_nonblocking(self.0)
    }

    fn notsent_lowat(&self) -> u32 {
        super::defaults::notsent_lowat()
    }
}

/// Reads everything that the stack or the shim acts on.
pub fn of_shadow(fd: c_int) -> TcpOptions {
    let options = tcp_options::read(&ShadowOf(fd));
    notices::note(&options);
    options
}

/// Reads one option from the shadow.
pub(super) fn read_one(fd: c_int, level: c_int, name: c_int, options: &mut TcpOptions) {
    tcp_options::read_one(&ShadowOf(fd), level, name, options);
    notices::note(options);
}

/// Gives a listener the keys of its Fast Open cookies, which are the kernel's where those can be
/// read: then each takes the other's cookies.
pub(super) fn follow_cookie_keys(fd: c_int, listener: EndpointId) {
    let mut keys = [[0; 2]; 2];
    let count = tcp_options::cookie_keys(&ShadowOf(fd), &mut keys);
    with_stack(|_, locked, _| {
        // What has no listener has no cookies.
        let _ = locked.stack().tcp_set_cookie_keys(listener, &keys[..count]);
    });
}

/// What only a socket without a connection or a port takes
/// (net/ipv4/tcp.c:do_tcp_setsockopt, net/ipv6/ipv6_sockglue.c:do_ipv6_setsockopt).
fn is_too_late(fd: c_int, level: c_int, name: c_int) -> bool {
    let early = [
        (IPPROTO_TCP, libc::TCP_FASTOPEN),
        (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT),
        (IPPROTO_TCP, FASTOPEN_NO_COOKIE),
    ];
    let v6_only = (level, name) == (IPPROTO_IPV6, libc::IPV6_V6ONLY);
    early.contains(&(level, name)) || v6_only && shadow::family(fd) != Some(Family::V4)
}

/// setsockopt on a connection or listener.
///
/// # Errors
/// As the kernel's; `ESTALE` when the endpoint is gone and nothing was done.
///
/// # Safety
/// `value` is readable for `len` bytes.
pub unsafe fn set(
    fd: c_int,
    endpoint: EndpointId,
    (level, name): (c_int, c_int),
    value: *const c_void,
    len: socklen_t,
) -> Answer {
    let at_once = level == IPPROTO_TCP
        && matches!(
            name,
            libc::TCP_NODELAY | libc::TCP_CORK | libc::TCP_QUICKACK
        );
    if at_once {
        if len.cast_signed() < size_of::<c_int>() as i32 {
            return Err(Errno::INVAL);
        }
        if is_nowhere(value) {
            return Err(Errno::FAULT);
        }
        // SAFETY: the caller's promise.
        let value = unsafe { value.cast::<c_int>().read_unaligned() };
        return match name {
            libc::TCP_NODELAY => set_bit(endpoint, TcpOptions::NODELAY, value != 0),
            libc::TCP_CORK => set_bit(endpoint, TcpOptions::CORK, value != 0),
            _ => set_quick_ack(endpoint, value),
        };
    }
    if matches!(fdtable::get(fd), Entry::Tcp(_)) {
        if is_too_late(fd, level, name) {
            return Err(Errno::INVAL);
        }
        if (level, name) == (SOL_SOCKET, libc::SO_TIMESTAMPING) {
            // SAFETY: the caller's promise.
            return unsafe { notices::set_timestamping(fd, endpoint, value, len) };
        }
    }
    // SAFETY: the caller's promise.
    from_c(unsafe { symbols::setsockopt::original()(fd, level, name, value, len) } as isize)?;
    if matches!(fdtable::get(fd), Entry::Listener(_)) && super::inherited::knows(level, name) {
        super::inherited::note(fd, endpoint);
    }
    let (level, name) = usual_name(level, name);
    if level == IPPROTO_TCP && matches!(name, FASTOPEN_KEY | libc::TCP_FASTOPEN) {
        follow_cookie_keys(fd, endpoint);
    }
    if READ.contains(&(level, name)) || RARE.contains(&(level, name)) {
        change(endpoint, |options| read_one(fd, level, name, options));
    }
    Ok(0)
}

/// setsockopt(TCP_NODELAY) and setsockopt(TCP_CORK) on a connection or listener.
fn set_bit(endpoint: EndpointId, bit: u32, on: bool) -> Answer {
    if !change(endpoint, |options| options.set(bit, on)) {
        return Err(Errno::STALE);
    }
    if on && bit == TcpOptions::NODELAY {
        with_stack(|_, locked, now| {
            let (stack, packets) = locked.parts();
            stack.tcp_push(packets, endpoint, now);
        });
    }
    Ok(0)
}

/// setsockopt(TCP_QUICKACK) on a connection or listener.
fn set_quick_ack(endpoint: EndpointId, value: c_int) -> Answer {
    let set = with_stack(|_, locked, now| locked.stack().tcp_set_quick_ack(endpoint, value, now));
    match set {
        Some(Err(_)) => Err(Errno::STALE),
        _ => Ok(0),
    }
}

/// Changes the options of the endpoint and lets the stack act on it; `false`: it is gone.
fn change(endpoint: EndpointId, change: impl FnOnce(&mut TcpOptions)) -> bool {
    let changed = with_stack(|_, locked, now| {
        let (stack, packets) = locked.parts();
        let Ok(options) = stack.tcp_options(endpoint) else {
            return false;
        };
        change(options);
        stack.tcp_options_changed(packets, endpoint, now);
        true
    });
    changed != Some(false)
}

/// Notes O_NONBLOCK as the program has set it.
pub fn note_nonblocking(endpoint: EndpointId, on: bool) {
    with_stack(|_, locked, _| {
        if let Ok(options) = locked.stack().tcp_options(endpoint) {
            options.set(TcpOptions::NONBLOCKING, on);
        }
    });
}

/// O_NONBLOCK as the program has set it.
pub fn is_nonblocking(endpoint: EndpointId) -> bool {
    with_stack(|_, locked, _| super::options_of(locked, endpoint))
        .flatten()
        .is_some_and(|options| options.has(TcpOptions::NONBLOCKING))
}

/// Where getsockopt writes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Of the value.
    pub value: *mut c_void,
    /// Of its length.
    pub len: *mut socklen_t,
}

impl Room {
    /// Writes as much of the value as there is room for.
    ///
    /// # Safety
    /// The caller's to write.
    pub unsafe fn put(self, bytes: &[u8]) -> Answer {
        if is_nowhere(self.len) {
            return Err(Errno::FAULT);
        }
        // SAFETY: the caller's length.
        let room = unsafe { self.len.read_unaligned() }.cast_signed();
        let length = usize::try_from(room)
            .map_err(|_| Errno::INVAL)?
            .min(bytes.len());
        if length > 0 && is_nowhere(self.value) {
            return Err(Errno::FAULT);
        }
        // SAFETY: the caller's room of at least `length` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.value.cast::<u8>(), length);
        }
        // SAFETY: as above.
        unsafe { self.len.write_unaligned(length as socklen_t) };
        Ok(0)
    }
}

/// What an option answers: a number, or a structure of at most 32 bytes.
struct Value {
    bytes: [u8; 32],
    length: usize,
}

impl Value {
    fn of(bytes: &[u8]) -> Self {
        let mut value = [0; 32];
        let length = bytes.len().min(value.len());
        value[..length].copy_from_slice(&bytes[..length]);
        Self {
            bytes: value,
            length,
        }
    }

    fn number(value: c_int) -> Self {
        Self::of(&value.to_ne_bytes())
    }

    fn pair(one: c_int, two: c_int) -> Self {
        Self::of([one, two].map(c_int::to_ne_bytes).as_flattened())
    }

    /// struct timeval.
    fn time(ms: u32) -> Self {
        let ms = i64::from(ms);
        Self::of(
            [ms / 1000, ms % 1000 * 1000]
                .map(i64::to_ne_bytes)
                .as_flattened(),
        )
    }
}

/// getsockopt on a connection (`is_connection`) or listener; `None`: the shadow answers.
///
/// # Safety
/// `room` is the caller's to write.
pub unsafe fn get(
    (fd, endpoint, is_connection): (c_int, EndpointId, bool),
    (level, name): (c_int, c_int),
    room: Room,
) -> Option<Answer> {
    if level == SOL_SOCKET && matches!(name, libc::SO_RCVBUFFORCE | libc::SO_SNDBUFFORCE) {
        // The privileged names are for setting only.
        return None;
    }
    let (level, name) = usual_name(level, name);
    if level == IPPROTO_TCP && name == libc::TCP_INFO {
        let info = if is_connection {
            super::info::of_connection(fd, endpoint)?
        } else {
            super::info::of_listener(fd, endpoint)?
        };
        // SAFETY: the caller's promise.
        return Some(unsafe { room.put(info.bytes()) });
    }
    if is_connection && level == SOL_SOCKET && name == libc::SO_PEERNAME {
        // SAFETY: the caller's promise.
        return unsafe { super::name::peer(endpoint, room) };
    }
    let value = if is_connection && level == SOL_SOCKET && name == libc::SO_ERROR {
        take_error(endpoint)?
    } else {
        value_of(endpoint, is_connection, level, name)?
    };
    // SAFETY: the caller's promise.
    Some(unsafe { room.put(&value.bytes[..value.length]) })
}

/// SO_ERROR of a connection, which it is rid of then.
fn take_error(endpoint: EndpointId) -> Option<Value> {
    let error = with_stack(|_, locked, now| {
        locked.pump(now);
        let live = locked.stack().is_live(endpoint);
        live.then(|| locked.stack().tcp_socket_error(endpoint))
    });
    error.unwrap_or(Some(0)).map(Value::number)
}

/// What an option of a connection or listener is.
fn value_of(endpoint: EndpointId, is_connection: bool, level: c_int, name: c_int) -> Option<Value> {
    let (options, status) = with_stack(|_, locked, _| {
        let status = locked.stack().tcp_status(endpoint).ok();
        Some((super::options_of(locked, endpoint)?, status?))
    })
    .flatten()?;
    let value = match (level, name) {
        (SOL_SOCKET, libc::SO_LINGER) => {
            let on = c_int::from(options.has(TcpOptions::LINGER));
            Value::pair(on, options.linger_s as c_int)
        }
        (SOL_SOCKET, libc::SO_RCVTIMEO) => Value::time(options.rcvtimeo_ms),
        (SOL_SOCKET, libc::SO_SNDTIMEO) => Value::time(options.sndtimeo_ms),
        // struct so_timestamping: the flags, no hardware clock.
        (SOL_SOCKET, libc::SO_TIMESTAMPING) if is_connection => {
            Value::pair(options.timestamping.cast_signed(), 0)
        }
        (IPPROTO_TCP, libc::TCP_CONGESTION) => {
            let mut bytes = [0_u8; NAME_BYTES];
            let known = congestion::name(options.congestion);
            bytes[..known.len()].copy_from_slice(known.as_bytes());
            Value::of(&bytes)
        }
        (IPPROTO_TCP, libc::TCP_QUICKACK) => {
            let quick = with_stack(|_, locked, _| locked.stack().tcp_quick_ack(endpoint));
            Value::number(c_int::from(quick?.ok()?))
        }
        (IPPROTO_TCP, libc::TCP_MAXSEG) if status.state != TcpState::Listen => {
            let info = with_stack(|_, locked, now| locked.stack().tcp_info(endpoint, now));
            Value::number(info?.ok()?.snd_mss as c_int)
        }
        (IPPROTO_IP, libc::IP_MTU) if is_connection => Value::number(mtu(endpoint)?),
        (IPPROTO_IPV6, _) if status.family == Family::V4 => return None,
        (IPPROTO_IPV6, libc::IPV6_MTU) if is_connection => Value::number(mtu(endpoint)?),
        (IPPROTO_IPV6, libc::IPV6_PATHMTU) if is_connection => {
            // struct ip6_mtuinfo: no address, the size.
            let mut bytes = [0_u8; 32];
            bytes[28..].copy_from_slice(&mtu(endpoint)?.to_ne_bytes());
            Value::of(&bytes)
        }
        (IPPROTO_IPV6, libc::IPV6_ADDRFORM) if status.state == TcpState::Established => {
            Value::number(libc::AF_INET6)
        }
        // Whoever asks has taken the last packets from the queue.
        (SOL_SOCKET, libc::SO_INCOMING_CPU) if is_connection => {
            // SAFETY: takes no arguments.
            Value::number(unsafe { libc::sched_getcpu() })
        }
        // What a listener's own buffer is, the engine does not know: it has no use for one.
        (SOL_SOCKET, libc::SO_SNDBUF)
            if !is_connection && !options.has(TcpOptions::SNDBUF_LOCKED) =>
        {
            return None;
        }
        _ => Value::number(number(level, name, &options)?),
    };
    Some(value)
}

/// The path's MTU, bytes.
fn mtu(endpoint: EndpointId) -> Option<c_int> {
    let info = with_stack(|_, locked, now| locked.stack().tcp_info(endpoint, now));
    Some(info?.ok()?.pmtu as c_int)
}
