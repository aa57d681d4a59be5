//! The options of a connection that becomes the kernel's: what the endpoint has and its shadow may
//! not have, because it came with the listener or was set without a system call.

use std::os::fd::OwnedFd;

use bypass_stack::TcpOptions;
use bypass_stack::tcp::congestion;

use super::sockopt::{self as own, CONGESTION, IPPROTO_TCP, Name, SO_RCVLOWAT, SOL_SOCKET};

/// IPPROTO_IP and IPPROTO_IPV6.
const IP: i32 = 0;
const IPV6: i32 = 41;

// asm-generic/socket.h.
const SNDBUF: Name = (SOL_SOCKET, 7);
const RCVBUF: Name = (SOL_SOCKET, 8);
const KEEPALIVE: Name = (SOL_SOCKET, 9);
const OOBINLINE: Name = (SOL_SOCKET, 10);
const LINGER: Name = (SOL_SOCKET, 13);
const RCVLOWAT: Name = (SOL_SOCKET, SO_RCVLOWAT);
const RCVTIMEO: Name = (SOL_SOCKET, 20);
const SNDTIMEO: Name = (SOL_SOCKET, 21);
const TIMESTAMP: Name = (SOL_SOCKET, 29);
const TIMESTAMPNS: Name = (SOL_SOCKET, 35);
const MAX_PACING_RATE: Name = (SOL_SOCKET, 47);
const ZEROCOPY: Name = (SOL_SOCKET, 60);
// linux/tcp.h.
const NODELAY: Name = (IPPROTO_TCP, 1);
const CORK: Name = (IPPROTO_TCP, 3);
const KEEPIDLE: Name = (IPPROTO_TCP, 4);
const KEEPINTVL: Name = (IPPROTO_TCP, 5);
const KEEPCNT: Name = (IPPROTO_TCP, 6);
const SYNCNT: Name = (IPPROTO_TCP, 7);
const LINGER2: Name = (IPPROTO_TCP, 8);
const WINDOW_CLAMP: Name = (IPPROTO_TCP, 10);
const USER_TIMEOUT: Name = (IPPROTO_TCP, 18);
const NOTSENT_LOWAT: Name = (IPPROTO_TCP, 25);
// linux/in.h, linux/in6.h.
const TOS: Name = (IP, 1);
const TTL: Name = (IP, 2);
const UNICAST_HOPS: Name = (IPV6, 16);
const TCLASS: Name = (IPV6, 67);

/// Gives a closed socket the options. One that the kernel refuses (another family's) stays as it
/// is. What has its usual value is not set: every other call than TCP_NODELAY's and TCP_CORK's was
/// made on the shadow too.
pub(super) fn dress(socket: &OwnedFd, options: &TcpOptions) {
    let fresh = TcpOptions::new();
    let flag = |bit| u32::from(options.has(bit));
    for (name, value) in [
        (NODELAY, flag(TcpOptions::NODELAY)),
        (CORK, flag(TcpOptions::CORK)),
    ] {
        put(socket, name, value);
    }
    // Each takes the other's place.
    let timestamp = if options.has(TcpOptions::TIMESTAMPNS) {
        TIMESTAMPNS
    } else {
        TIMESTAMP
    };
    for (name, value, usual) in [
        (KEEPIDLE, options.keep_idle_s, fresh.keep_idle_s),
        (KEEPINTVL, options.keep_interval_s, fresh.keep_interval_s),
        (KEEPCNT, options.keep_count.into(), fresh.keep_count.into()),
        (SYNCNT, options.syn_count.into(), 0),
        (USER_TIMEOUT, options.user_timeout_ms, 0),
        (WINDOW_CLAMP, options.window_clamp, 0),
        (LINGER2, options.linger2_s.cast_unsigned(), 0),
        (RCVLOWAT, options.rcvlowat, 1),
        (TOS, options.tos.into(), 0),
        (TTL, options.ttl.into(), 0),
        (TCLASS, options.traffic_class.into(), 0),
        (UNICAST_HOPS, options.hop_limit.into(), 0),
        (KEEPALIVE, flag(TcpOptions::KEEPALIVE), 0),
        (OOBINLINE, flag(TcpOptions::OOBINLINE), 0),
        (ZEROCOPY, flag(TcpOptions::ZEROCOPY), 0),
        (timestamp, flag(TcpOptions::TIMESTAMP), 0),
    ] {
        if value != usual {
            put(socket, name, value);
        }
    }
    if options.has(TcpOptions::NOTSENT_LOWAT_SET) {
        put(socket, NOTSENT_LOWAT, options.notsent_lowat);
    }
    // The kernel doubles what is set.
    if options.has(TcpOptions::RCVBUF_LOCKED) {
        put(socket, RCVBUF, options.rcvbuf_bytes / 2);
    }
    if options.has(TcpOptions::SNDBUF_LOCKED) {
        put(socket, SNDBUF, options.sndbuf_bytes / 2);
    }
    dress_structures(socket, options);
}

/// The options that are no number.
fn dress_structures(socket: &OwnedFd, options: &TcpOptions) {
    if options.has(TcpOptions::LINGER) {
        let value = [1, options.linger_s].map(u32::to_ne_bytes);
        let _ = own::set(socket, LINGER, value.as_flattened());
    }
    for (name, ms) in [
        (RCVTIMEO, options.rcvtimeo_ms),
        (SNDTIMEO, options.sndtimeo_ms),
    ] {
        // What the program has set itself may be finer.
        if ms != 0 && own::timeout_ms(socket, name) != Ok(ms) {
            let value = [i64::from(ms / 1000), i64::from(ms % 1000) * 1000].map(i64::to_ne_bytes);
            let _ = own::set(socket, name, value.as_flattened());
        }
    }
    if options.max_pacing_rate != TcpOptions::UNPACED {
        let value = options.max_pacing_rate.to_ne_bytes();
        let _ = own::set(socket, MAX_PACING_RATE, &value);
    }
    let name = congestion::name(options.congestion).as_bytes();
    let has_it = own::congestion(socket).is_ok_and(|now| now.starts_with(name));
    if !has_it {
        let _ = own::set(socket, CONGESTION, name);
    }
}

fn put(socket: &OwnedFd, name: Name, value: u32) {
    let _ = own::set(socket, name, &value.to_ne_bytes());
}
