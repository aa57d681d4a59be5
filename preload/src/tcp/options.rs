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

use bypass_stack::tcp::congestion;
use bypass_stack::{EndpointId, Family, TcpOptions, TcpState};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, socklen_t};
use once_cell::sync::Lazy;
use rustix::io::Errno;

use super::with_stack;
use crate::address::is_nowhere;
use crate::errno::{Answer, from_c};
use crate::fdtable::{self, Entry};
use crate::{shadow, symbols};

/// Of linux/tcp.h.
const FASTOPEN_NO_COOKIE: c_int = 34;
const INQ: c_int = 36;
/// `SO_RCVTIMEO_NEW` and `SO_SNDTIMEO_NEW` of asm-generic/socket.h.
const RCVTIMEO_NEW: c_int = 66;
const SNDTIMEO_NEW: c_int = 67;
/// Bytes of a name of TCP_CONGESTION (TCP_CA_NAME_MAX).
const NAME_BYTES: usize = 16;

/// Every option that is read from a shadow.
pub(super) const READ: [(c_int, c_int); 27] = [
    (SOL_SOCKET, libc::SO_RCVBUF),
    (SOL_SOCKET, libc::SO_SNDBUF),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (SOL_SOCKET, libc::SO_REUSEPORT),
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_CORK),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_SYNCNT),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (IPPROTO_TCP, libc::TCP_CONGESTION),
    (IPPROTO_TCP, libc::TCP_LINGER2),
    (IPPROTO_TCP, INQ),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (IPPROTO_IP, libc::IP_TOS),
    (IPPROTO_IP, libc::IP_TTL),
    (IPPROTO_IP, libc::IP_RECVERR),
];

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

/// Reads everything that the stack or the shim acts on.
pub fn of_shadow(fd: c_int) -> TcpOptions {
    let mut options = TcpOptions::new();
    for (level, name) in READ {
        read_one(fd, level, name, &mut options);
    }
    if shadow::option::<c_int>(fd, SOL_SOCKET, libc::SO_DOMAIN) == Some(libc::AF_INET6) {
        for name in [
            libc::IPV6_TCLASS,
            libc::IPV6_UNICAST_HOPS,
            libc::IPV6_RECVERR,
        ] {
            read_one(fd, IPPROTO_IPV6, name, &mut options);
        }
    }
    // A buffer as a fresh socket has it was not set, and may grow.
    if shadow::option(fd, SOL_SOCKET, libc::SO_RCVBUF) == Some(FRESH.0) {
        options.set(TcpOptions::RCVBUF_LOCKED, false);
    }
    if shadow::option(fd, SOL_SOCKET, libc::SO_SNDBUF) == Some(FRESH.1) {
        options.set(TcpOptions::SNDBUF_LOCKED, false);
        // A connection starts with room for ten segments and what they cost
        // (net/ipv4/tcp_input.c:tcp_sndbuf_expand).
        options.sndbuf_bytes = options.sndbuf_bytes.max(TcpOptions::new().sndbuf_bytes);
    }
    // TCP_MAXSEG answers what is in force, not what was set: 536 before a connection without it.
    let segment = shadow::option::<c_int>(fd, IPPROTO_TCP, libc::TCP_MAXSEG).unwrap_or(536);
    if segment != 536 {
        options.max_seg = u16::try_from(segment).unwrap_or(0);
    }
    options.set(TcpOptions::NONBLOCKING, shadow::is_nonblocking(fd));
    options
}

/// A small number out of an option that may be -1.
fn small(value: c_int) -> u8 {
    u8::try_from(value).unwrap_or(0)
}

/// Reads one option from the shadow.
pub(super) fn read_one(fd: c_int, level: c_int, name: c_int, options: &mut TcpOptions) {
    match (level, name) {
        (SOL_SOCKET, libc::SO_LINGER) => {
            let [on, seconds] = shadow::option::<[c_int; 2]>(fd, level, name).unwrap_or_default();
            options.set(TcpOptions::LINGER, on != 0);
            options.linger_s = seconds.max(0) as u32;
            return;
        }
        (SOL_SOCKET, libc::SO_RCVTIMEO) => {
            options.rcvtimeo_ms = shadow::timeout_ms(fd, name);
            return;
        }
        (SOL_SOCKET, libc::SO_SNDTIMEO) => {
            options.sndtimeo_ms = shadow::timeout_ms(fd, name);
            return;
        }
        (SOL_SOCKET, libc::SO_MAX_PACING_RATE) => {
            let rate = shadow::option::<u64>(fd, level, name);
            options.max_pacing_rate = rate.unwrap_or(TcpOptions::UNPACED);
            return;
        }
        (IPPROTO_TCP, libc::TCP_CONGESTION) => {
            let bytes = shadow::option::<[u8; NAME_BYTES]>(fd, level, name).unwrap_or_default();
            let end = bytes
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(NAME_BYTES);
            options.congestion = congestion::by_name(&bytes[..end]).unwrap_or(congestion::CUBIC);
            return;
        }
        _ => {}
    }
    let Some(value) = shadow::option::<c_int>(fd, level, name) else {
        return;
    };
    let positive = value.max(0) as u32;
    match (level, name) {
        (SOL_SOCKET, libc::SO_RCVBUF) => {
            options.rcvbuf_bytes = positive;
            options.set(TcpOptions::RCVBUF_LOCKED, true);
        }
        (SOL_SOCKET, libc::SO_SNDBUF) => {
            options.sndbuf_bytes = positive;
            options.set(TcpOptions::SNDBUF_LOCKED, true);
        }
        (SOL_SOCKET, libc::SO_KEEPALIVE) => options.set(TcpOptions::KEEPALIVE, value != 0),
        (SOL_SOCKET, libc::SO_OOBINLINE) => options.set(TcpOptions::OOBINLINE, value != 0),
        (SOL_SOCKET, libc::SO_REUSEPORT) => options.set(TcpOptions::REUSE_PORT, value != 0),
        (SOL_SOCKET, libc::SO_REUSEADDR) => options.set(TcpOptions::REUSE_ADDR, value != 0),
        (SOL_SOCKET, libc::SO_RCVLOWAT) => set_lowat(options, positive),
        (IPPROTO_TCP, INQ) => options.set(TcpOptions::INQ, value != 0),
        (IPPROTO_TCP, libc::TCP_NODELAY) => options.set(TcpOptions::NODELAY, value != 0),
        (IPPROTO_TCP, libc::TCP_CORK) => options.set(TcpOptions::CORK, value != 0),
        (IPPROTO_TCP, libc::TCP_KEEPIDLE) => options.keep_idle_s = positive,
        (IPPROTO_TCP, libc::TCP_KEEPINTVL) => options.keep_interval_s = positive,
        (IPPROTO_TCP, libc::TCP_KEEPCNT) => options.keep_count = small(value),
        (IPPROTO_TCP, libc::TCP_SYNCNT) => options.syn_count = small(value),
        (IPPROTO_TCP, libc::TCP_LINGER2) => options.linger2_s = value,
        (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) => options.defer_accept_s = positive,
        (IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => options.user_timeout_ms = positive,
        // 0 = the system's.
        (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) if value == 0 => {
            options.notsent_lowat = super::defaults::notsent_lowat();
        }
        (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) => options.notsent_lowat = value.cast_unsigned(),
        (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP) => options.window_clamp = positive,
        (IPPROTO_TCP, libc::TCP_MAXSEG) => options.max_seg = u16::try_from(value).unwrap_or(0),
        (IPPROTO_IP, libc::IP_TOS) => options.tos = small(value),
        (IPPROTO_IP, libc::IP_TTL) => options.ttl = small(value),
        (IPPROTO_IP, libc::IP_RECVERR) | (IPPROTO_IPV6, libc::IPV6_RECVERR) => {
            options.set(TcpOptions::RECVERR, value != 0);
        }
        (IPPROTO_IPV6, libc::IPV6_TCLASS) => options.traffic_class = small(value),
        (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => options.hop_limit = small(value),
        _ => {}
    }
}

/// SO_RCVLOWAT: no more than a buffer that was set takes, and any other buffer grows with it
/// (net/ipv4/tcp.c:tcp_set_rcvlowat). Half of the buffer is the window.
fn set_lowat(options: &mut TcpOptions, bytes: u32) {
    let half = options.rcvbuf_bytes / 2;
    if options.has(TcpOptions::RCVBUF_LOCKED) {
        options.rcvlowat = bytes.min(half).max(1);
    } else {
        options.rcvlowat = bytes.max(1);
        options.rcvbuf_bytes = options.rcvbuf_bytes.max(bytes.saturating_mul(2));
    }
}

/// The option by its usual name: two have a newer one, two a privileged one that no limit binds.
pub fn usual_name(level: c_int, name: c_int) -> (c_int, c_int) {
    let name = match (level, name) {
        (SOL_SOCKET, RCVTIMEO_NEW) => libc::SO_RCVTIMEO,
        (SOL_SOCKET, SNDTIMEO_NEW) => libc::SO_SNDTIMEO,
        (SOL_SOCKET, libc::SO_RCVBUFFORCE) => libc::SO_RCVBUF,
        (SOL_SOCKET, libc::SO_SNDBUFFORCE) => libc::SO_SNDBUF,
        _ => name,
    };
    (level, name)
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
        let on = unsafe { value.cast::<c_int>().read_unaligned() } != 0;
        let bit = match name {
            libc::TCP_NODELAY => TcpOptions::NODELAY,
            libc::TCP_CORK => TcpOptions::CORK,
            // Acknowledging at once is no promise (tcp(7): not permanent).
            _ => return Ok(0),
        };
        return if change(endpoint, |options| options.set(bit, on)) {
            Ok(0)
        } else {
            Err(Errno::STALE)
        };
    }
    if matches!(fdtable::get(fd), Entry::Tcp(_)) && is_too_late(fd, level, name) {
        return Err(Errno::INVAL);
    }
    // SAFETY: the caller's promise.
    from_c(unsafe { symbols::setsockopt::original()(fd, level, name, value, len) } as isize)?;
    if matches!(fdtable::get(fd), Entry::Listener(_)) && super::inherited::knows(level, name) {
        super::inherited::note(fd, endpoint);
    }
    let (level, name) = usual_name(level, name);
    if READ.contains(&(level, name)) || RARE.contains(&(level, name)) {
        change(endpoint, |options| read_one(fd, level, name, options));
    }
    Ok(0)
}

/// Options that are followed, but not read at the start: a fresh socket's answer is the default.
const RARE: [(c_int, c_int); 4] = [
    (IPPROTO_TCP, libc::TCP_MAXSEG),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
];

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
    if is_connection && level == SOL_SOCKET && name == libc::SO_ERROR {
        let error = with_stack(|_, locked, now| {
            locked.pump(now);
            let live = locked.stack().is_live(endpoint);
            live.then(|| locked.stack().tcp_socket_error(endpoint))
        });
        let error = error.unwrap_or(Some(0))?;
        // SAFETY: the caller's promise.
        return Some(unsafe { room.put(&error.to_ne_bytes()) });
    }
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
    let (options, status) = with_stack(|_, locked, _| {
        let status = locked.stack().tcp_status(endpoint).ok();
        Some((super::options_of(locked, endpoint)?, status?))
    })
    .flatten()?;
    let pair = |one: c_int, two: c_int| {
        let mut bytes = [0_u8; 8];
        bytes[..4].copy_from_slice(&one.to_ne_bytes());
        bytes[4..].copy_from_slice(&two.to_ne_bytes());
        bytes
    };
    match (level, name) {
        (SOL_SOCKET, libc::SO_LINGER) => {
            let on = c_int::from(options.has(TcpOptions::LINGER));
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&pair(on, options.linger_s as c_int)) })
        }
        (SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO) => {
            let ms = i64::from(if name == libc::SO_RCVTIMEO {
                options.rcvtimeo_ms
            } else {
                options.sndtimeo_ms
            });
            let mut bytes = [0_u8; 16];
            bytes[..8].copy_from_slice(&(ms / 1000).to_ne_bytes());
            bytes[8..].copy_from_slice(&(ms % 1000 * 1000).to_ne_bytes());
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&bytes) })
        }
        (IPPROTO_TCP, libc::TCP_CONGESTION) => {
            let mut bytes = [0_u8; NAME_BYTES];
            let known = congestion::name(options.congestion);
            bytes[..known.len()].copy_from_slice(known.as_bytes());
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&bytes) })
        }
        (IPPROTO_TCP, libc::TCP_MAXSEG) if status.state != TcpState::Listen => {
            let info = with_stack(|_, locked, now| locked.stack().tcp_info(endpoint, now));
            let mss = info?.ok()?.snd_mss as c_int;
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&mss.to_ne_bytes()) })
        }
        (IPPROTO_IP, libc::IP_MTU) if is_connection => {
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&mtu(endpoint)?.to_ne_bytes()) })
        }
        (IPPROTO_IPV6, _) if status.family == Family::V4 => None,
        (IPPROTO_IPV6, libc::IPV6_MTU) if is_connection => {
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&mtu(endpoint)?.to_ne_bytes()) })
        }
        (IPPROTO_IPV6, libc::IPV6_PATHMTU) if is_connection => {
            // struct ip6_mtuinfo: no address, the size.
            let mut bytes = [0_u8; 32];
            bytes[28..].copy_from_slice(&mtu(endpoint)?.to_ne_bytes());
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&bytes) })
        }
        (IPPROTO_IPV6, libc::IPV6_ADDRFORM) if status.state == TcpState::Established => {
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&libc::AF_INET6.to_ne_bytes()) })
        }
        // Whoever asks has taken the last packets from the queue.
        (SOL_SOCKET, libc::SO_INCOMING_CPU) if is_connection => {
            // SAFETY: takes no arguments.
            let cpu = unsafe { libc::sched_getcpu() };
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&cpu.to_ne_bytes()) })
        }
        // What a listener's own buffer is, the engine does not know: it has no use for one.
        (SOL_SOCKET, libc::SO_SNDBUF)
            if !is_connection && !options.has(TcpOptions::SNDBUF_LOCKED) =>
        {
            None
        }
        _ => {
            let value = number(level, name, &options)?;
            // SAFETY: the caller's promise.
            Some(unsafe { room.put(&value.to_ne_bytes()) })
        }
    }
}

/// The path's MTU, bytes.
fn mtu(endpoint: EndpointId) -> Option<c_int> {
    let info = with_stack(|_, locked, now| locked.stack().tcp_info(endpoint, now));
    Some(info?.ok()?.pmtu as c_int)
}

/// The options that are one number.
fn number(level: c_int, name: c_int, options: &TcpOptions) -> Option<c_int> {
    let flag = |bit| c_int::from(options.has(bit));
    let value = match (level, name) {
        (SOL_SOCKET, libc::SO_RCVBUF) => options.rcvbuf_bytes as c_int,
        (SOL_SOCKET, libc::SO_SNDBUF) => options.sndbuf_bytes as c_int,
        (SOL_SOCKET, libc::SO_KEEPALIVE) => flag(TcpOptions::KEEPALIVE),
        (SOL_SOCKET, libc::SO_OOBINLINE) => flag(TcpOptions::OOBINLINE),
        (SOL_SOCKET, libc::SO_REUSEPORT) => flag(TcpOptions::REUSE_PORT),
        (SOL_SOCKET, libc::SO_REUSEADDR) => flag(TcpOptions::REUSE_ADDR),
        (SOL_SOCKET, libc::SO_RCVLOWAT) => options.rcvlowat as c_int,
        (IPPROTO_TCP, libc::TCP_NODELAY) => flag(TcpOptions::NODELAY),
        (IPPROTO_TCP, libc::TCP_CORK) => flag(TcpOptions::CORK),
        (IPPROTO_TCP, libc::TCP_QUICKACK) => 1,
        (IPPROTO_TCP, libc::TCP_KEEPIDLE) => options.keep_idle_s as c_int,
        (IPPROTO_TCP, libc::TCP_KEEPINTVL) => options.keep_interval_s as c_int,
        (IPPROTO_TCP, libc::TCP_KEEPCNT) => c_int::from(options.keep_count),
        (IPPROTO_TCP, libc::TCP_SYNCNT) if options.syn_count != 0 => c_int::from(options.syn_count),
        (IPPROTO_TCP, libc::TCP_LINGER2) if options.linger2_s != 0 => options.linger2_s,
        (IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => options.user_timeout_ms as c_int,
        (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) if options.notsent_lowat != u32::MAX => {
            options.notsent_lowat as c_int
        }
        (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP) => options.window_clamp as c_int,
        (IPPROTO_IP, libc::IP_TOS) => c_int::from(options.tos),
        (IPPROTO_IP, libc::IP_TTL) if options.ttl != 0 => c_int::from(options.ttl),
        (IPPROTO_IPV6, libc::IPV6_TCLASS) => c_int::from(options.traffic_class),
        (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) if options.hop_limit != 0 => {
            c_int::from(options.hop_limit)
        }
        _ => return None,
    };
    Some(value)
}
