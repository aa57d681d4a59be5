//! A TCP socket's options between the kernel, which judges and keeps them, and the engine, which
//! acts on them.
//!
//! Every `setsockopt` is the kernel's to judge, on a socket of its own (the shadow); what the
//! engine acts on is then read back into the endpoint's [`TcpOptions`].

use crate::tcp_settings;
use bypass_stack::TcpOptions;
use bypass_stack::tcp::congestion;
use bypass_stack::tcp::notices::{OPT_ID, OPT_ID_TCP};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, c_int};

/// Of linux/tcp.h.
const INQ: c_int = 36;
/// The same.
pub const FASTOPEN_KEY: c_int = 33;
/// The same.
pub const FASTOPEN_NO_COOKIE: c_int = 34;
/// `SO_RCVTIMEO_NEW` and `SO_SNDTIMEO_NEW` of asm-generic/socket.h.
const RCVTIMEO_NEW: c_int = 66;
const SNDTIMEO_NEW: c_int = 67;
/// Bytes of a name of TCP_CONGESTION (TCP_CA_NAME_MAX).
pub const NAME_BYTES: usize = 16;

/// A kernel socket that can be asked for its options.
pub trait Shadow {
    /// The option's value, as many bytes as there is room for: how many. `None`: the kernel does
    /// not know it.
    fn option(&self, level: c_int, name: c_int, into: &mut [u8]) -> Option<usize>;
    /// What a fresh socket answers for its buffers: (SO_RCVBUF, SO_SNDBUF).
    fn fresh_buffers(&self) -> (c_int, c_int);
    /// O_NONBLOCK of the open file description.
    fn is_nonblocking(&self) -> bool;
    /// TCP_NOTSENT_LOWAT of a socket that has not set it (net.ipv4.tcp_notsent_lowat), bytes.
    fn notsent_lowat(&self) -> u32;
}

/// An option that is one `int`.
fn int(shadow: &impl Shadow, level: c_int, name: c_int) -> Option<c_int> {
    let mut bytes = [0; size_of::<c_int>()];
    shadow.option(level, name, &mut bytes)?;
    Some(c_int::from_ne_bytes(bytes))
}

/// SO_RCVTIMEO or SO_SNDTIMEO in milliseconds, rounded up; 0 = none.
fn timeout_ms(shadow: &impl Shadow, name: c_int) -> u32 {
    let mut bytes = [[0; size_of::<i64>()]; 2];
    if shadow
        .option(SOL_SOCKET, name, bytes.as_flattened_mut())
        .is_none()
    {
        return 0;
    }
    let [seconds, microseconds] = bytes.map(i64::from_ne_bytes);
    let ms = seconds
        .saturating_mul(1000)
        .saturating_add((microseconds + 999) / 1000);
    u32::try_from(ms).unwrap_or(if ms < 0 { 0 } else { u32::MAX })
}

/// Every option that is read from a shadow when it becomes accelerated.
pub const READ: [(c_int, c_int); 30] = [
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
    (IPPROTO_TCP, libc::TCP_FASTOPEN),
    (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT),
    (IPPROTO_TCP, FASTOPEN_NO_COOKIE),
];

/// Options that few sockets have. A connect reads them only where something was set that it does
/// not follow.
pub const RARE: [(c_int, c_int); 8] = [
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (SOL_SOCKET, libc::SO_TIMESTAMPING),
    (IPPROTO_TCP, libc::TCP_MAXSEG),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
];

/// Reads everything that the stack or the shim acts on.
pub fn read(shadow: &impl Shadow) -> TcpOptions {
    let mut options = TcpOptions::new();
    for (level, name) in READ {
        read_one(shadow, level, name, &mut options);
    }
    for name in [libc::SO_ZEROCOPY, libc::SO_TIMESTAMP, libc::SO_TIMESTAMPING] {
        read_one(shadow, SOL_SOCKET, name, &mut options);
    }
    if int(shadow, SOL_SOCKET, libc::SO_DOMAIN) == Some(libc::AF_INET6) {
        for name in [
            libc::IPV6_TCLASS,
            libc::IPV6_UNICAST_HOPS,
            libc::IPV6_RECVERR,
        ] {
            read_one(shadow, IPPROTO_IPV6, name, &mut options);
        }
    }
    let fresh = shadow.fresh_buffers();
    // A buffer as a fresh socket has it was not set, and may grow.
    if int(shadow, SOL_SOCKET, libc::SO_RCVBUF) == Some(fresh.0) {
        options.set(TcpOptions::RCVBUF_LOCKED, false);
    }
    if int(shadow, SOL_SOCKET, libc::SO_SNDBUF) == Some(fresh.1) {
        options.set(TcpOptions::SNDBUF_LOCKED, false);
    }
    // TCP_MAXSEG answers what is in force, not what was set: 536 before a connection without it.
    let segment = int(shadow, IPPROTO_TCP, libc::TCP_MAXSEG).unwrap_or(536);
    if segment != 536 {
        options.max_seg = u16::try_from(segment).unwrap_or(0);
    }
    options.set(TcpOptions::NONBLOCKING, shadow.is_nonblocking());
    options
}

/// The keys of a listener's Fast Open cookies, the newer first: those that were set on it, or the
/// system's, which only root may read. How many there are; the kernel has made its own when a
/// listener has begun.
pub fn cookie_keys(shadow: &impl Shadow, keys: &mut [[u64; 2]; 2]) -> usize {
    let mut bytes = [0; 32];
    let read = shadow.option(IPPROTO_TCP, FASTOPEN_KEY, &mut bytes);
    if read.unwrap_or(0) < 16 {
        return tcp_settings::cookie_keys(keys);
    }
    let (words, _) = bytes.as_chunks::<8>();
    for (place, word) in keys.as_flattened_mut().iter_mut().zip(words) {
        *place = u64::from_le_bytes(*word);
    }
    read.unwrap_or(0) / 16
}

/// A small number out of an option that may be -1.
fn small(value: c_int) -> u8 {
    u8::try_from(value).unwrap_or(0)
}

/// Reads one option from the shadow.
pub fn read_one(shadow: &impl Shadow, level: c_int, name: c_int, options: &mut TcpOptions) {
    if read_structure(shadow, level, name, options) {
        return;
    }
    let Some(value) = int(shadow, level, name) else {
        return;
    };
    match level {
        SOL_SOCKET => note_socket_number(name, value, options),
        IPPROTO_TCP => note_tcp_number(shadow, name, value, options),
        _ => note_ip_number(level, name, value, options),
    }
}

/// The options that are more than one number, or that two names set; `false`: it is none of them.
fn read_structure(
    shadow: &impl Shadow,
    level: c_int,
    name: c_int,
    options: &mut TcpOptions,
) -> bool {
    match (level, name) {
        (SOL_SOCKET, libc::SO_LINGER) => {
            let mut bytes = [[0; size_of::<c_int>()]; 2];
            shadow.option(level, name, bytes.as_flattened_mut());
            let [on, seconds] = bytes.map(c_int::from_ne_bytes);
            options.set(TcpOptions::LINGER, on != 0);
            options.linger_s = seconds.max(0) as u32;
        }
        (SOL_SOCKET, libc::SO_RCVTIMEO) => {
            options.rcvtimeo_ms = timeout_ms(shadow, name);
        }
        (SOL_SOCKET, libc::SO_SNDTIMEO) => {
            options.sndtimeo_ms = timeout_ms(shadow, name);
        }
        (SOL_SOCKET, libc::SO_TIMESTAMP | libc::SO_TIMESTAMPNS) => {
            let on = |name| int(shadow, level, name).unwrap_or(0) != 0;
            let exact = on(libc::SO_TIMESTAMPNS);
            options.set(TcpOptions::TIMESTAMPNS, exact);
            options.set(TcpOptions::TIMESTAMP, exact || on(libc::SO_TIMESTAMP));
        }
        (SOL_SOCKET, libc::SO_MAX_PACING_RATE) => {
            let mut bytes = [0; size_of::<u64>()];
            let rate = shadow.option(level, name, &mut bytes);
            let rate = rate.map(|_| u64::from_ne_bytes(bytes));
            options.max_pacing_rate = rate.unwrap_or(TcpOptions::UNPACED);
        }
        (IPPROTO_TCP, libc::TCP_CONGESTION) => {
            let mut bytes = [0; NAME_BYTES];
            shadow.option(level, name, &mut bytes);
            let end = bytes
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(NAME_BYTES);
            options.congestion = congestion::by_name(&bytes[..end]).unwrap_or(congestion::CUBIC);
        }
        _ => return false,
    }
    true
}

fn note_socket_number(name: c_int, value: c_int, options: &mut TcpOptions) {
    let positive = value.max(0) as u32;
    match name {
        libc::SO_RCVBUF => {
            options.rcvbuf_bytes = positive;
            options.set(TcpOptions::RCVBUF_LOCKED, true);
        }
        libc::SO_SNDBUF => {
            options.sndbuf_bytes = positive;
            options.set(TcpOptions::SNDBUF_LOCKED, true);
        }
        libc::SO_KEEPALIVE => options.set(TcpOptions::KEEPALIVE, value != 0),
        libc::SO_OOBINLINE => options.set(TcpOptions::OOBINLINE, value != 0),
        libc::SO_REUSEPORT => options.set(TcpOptions::REUSE_PORT, value != 0),
        libc::SO_REUSEADDR => options.set(TcpOptions::REUSE_ADDR, value != 0),
        libc::SO_RCVLOWAT => set_lowat(options, positive),
        libc::SO_ZEROCOPY => options.set(TcpOptions::ZEROCOPY, value != 0),
        libc::SO_TIMESTAMPING => options.timestamping = value.cast_unsigned(),
        _ => {}
    }
}

fn note_tcp_number(shadow: &impl Shadow, name: c_int, value: c_int, options: &mut TcpOptions) {
    let positive = value.max(0) as u32;
    match name {
        INQ => options.set(TcpOptions::INQ, value != 0),
        libc::TCP_NODELAY => options.set(TcpOptions::NODELAY, value != 0),
        libc::TCP_CORK => options.set(TcpOptions::CORK, value != 0),
        libc::TCP_KEEPIDLE => options.keep_idle_s = positive,
        libc::TCP_KEEPINTVL => options.keep_interval_s = positive,
        libc::TCP_KEEPCNT => options.keep_count = small(value),
        libc::TCP_SYNCNT => options.syn_count = small(value),
        libc::TCP_LINGER2 => options.linger2_s = value,
        libc::TCP_DEFER_ACCEPT => options.defer_accept_s = positive,
        libc::TCP_USER_TIMEOUT => options.user_timeout_ms = positive,
        // 0 = the system's.
        libc::TCP_NOTSENT_LOWAT => {
            options.set(TcpOptions::NOTSENT_LOWAT_SET, value != 0);
            options.notsent_lowat = if value == 0 {
                shadow.notsent_lowat()
            } else {
                value.cast_unsigned()
            };
        }
        libc::TCP_WINDOW_CLAMP => options.window_clamp = positive,
        libc::TCP_FASTOPEN => {
            options.fast_open_queue = u16::try_from(value.max(0)).unwrap_or(u16::MAX);
        }
        libc::TCP_FASTOPEN_CONNECT => {
            options.set(TcpOptions::FAST_OPEN_CONNECT, value != 0);
        }
        FASTOPEN_NO_COOKIE => {
            options.set(TcpOptions::FAST_OPEN_NO_COOKIE, value != 0);
        }
        libc::TCP_MAXSEG => options.max_seg = u16::try_from(value).unwrap_or(0),
        _ => {}
    }
}

fn note_ip_number(level: c_int, name: c_int, value: c_int, options: &mut TcpOptions) {
    match (level, name) {
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

/// SO_TIMESTAMPING as it can be set on the shadow of a connection, which has none itself: the
/// shadow judges all flags but those of the numbers that notices have. `None`: the kernel refuses
/// the flags (net/core/sock.c:sock_set_timestamping).
#[must_use]
pub fn timestamping_of_shadow(flags: u32) -> Option<u32> {
    let of_numbers = OPT_ID | OPT_ID_TCP;
    (flags & of_numbers != OPT_ID_TCP).then_some(flags & !of_numbers)
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
#[must_use]
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

/// The value of an option that is one number, as getsockopt tells it; `None`: the shadow knows
/// better.
#[must_use]
pub fn number(level: c_int, name: c_int, options: &TcpOptions) -> Option<c_int> {
    let flag = |bit| c_int::from(options.has(bit));
    let value = match (level, name) {
        (SOL_SOCKET, libc::SO_RCVBUF) => options.rcvbuf_bytes as c_int,
        (SOL_SOCKET, libc::SO_SNDBUF) => options.sndbuf_bytes as c_int,
        (SOL_SOCKET, libc::SO_KEEPALIVE) => flag(TcpOptions::KEEPALIVE),
        (SOL_SOCKET, libc::SO_OOBINLINE) => flag(TcpOptions::OOBINLINE),
        (SOL_SOCKET, libc::SO_REUSEPORT) => flag(TcpOptions::REUSE_PORT),
        (SOL_SOCKET, libc::SO_REUSEADDR) => flag(TcpOptions::REUSE_ADDR),
        (SOL_SOCKET, libc::SO_RCVLOWAT) => options.rcvlowat as c_int,
        (SOL_SOCKET, libc::SO_ZEROCOPY) => flag(TcpOptions::ZEROCOPY),
        (SOL_SOCKET, libc::SO_TIMESTAMPNS) => flag(TcpOptions::TIMESTAMPNS),
        (SOL_SOCKET, libc::SO_TIMESTAMP) => {
            flag(TcpOptions::TIMESTAMP) & !flag(TcpOptions::TIMESTAMPNS)
        }
        (IPPROTO_TCP, libc::TCP_NODELAY) => flag(TcpOptions::NODELAY),
        (IPPROTO_TCP, libc::TCP_CORK) => flag(TcpOptions::CORK),
        (IPPROTO_TCP, libc::TCP_KEEPIDLE) => options.keep_idle_s as c_int,
        (IPPROTO_TCP, libc::TCP_KEEPINTVL) => options.keep_interval_s as c_int,
        (IPPROTO_TCP, libc::TCP_KEEPCNT) => c_int::from(options.keep_count),
        (IPPROTO_TCP, libc::TCP_SYNCNT) if options.syn_count != 0 => c_int::from(options.syn_count),
        (IPPROTO_TCP, libc::TCP_LINGER2) if options.linger2_s != 0 => options.linger2_s,
        (IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => options.user_timeout_ms as c_int,
        (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) if options.has(TcpOptions::NOTSENT_LOWAT_SET) => {
            options.notsent_lowat as c_int
        }
        (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) => 0,
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
