//! Questions to the shadow: the kernel socket behind an accelerated descriptor.
//!
//! The kernel keeps addresses and options; the endpoint only caches what the stack acts on. So
//! everything is asked here when a socket becomes accelerated and after each `setsockopt`.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: getsockopt and getsockname through libc's originals"
)]

use std::mem::{size_of, zeroed};

use bypass_runtime::error_queue;
use bypass_stack::{Family, SocketAddress, UdpOptions};
use libc::{c_int, c_void, sockaddr_storage, socklen_t};

use crate::address::{self, Given};
use crate::symbols;

/// An option's value, or `None` when the kernel does not know it.
pub fn option<T: Copy + Default>(fd: i32, level: c_int, name: c_int) -> Option<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as socklen_t;
    // SAFETY: `value` is writable for `len` bytes; T is a plain integer type (see the callers).
    let result = unsafe {
        symbols::getsockopt::original()(
            fd,
            level,
            name,
            (&raw mut value).cast::<c_void>(),
            &raw mut len,
        )
    };
    (result == 0).then_some(value)
}

/// How many connections may wait at a listener (net/ipv4/tcp.c:tcp_get_info tells it as
/// `tcpi_sacked`, the eighth word).
pub fn backlog(fd: i32) -> Option<u32> {
    let info = option::<[u32; 8]>(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    info.last().copied()
}

fn flag(fd: i32, level: c_int, name: c_int) -> bool {
    option::<c_int>(fd, level, name).unwrap_or(0) != 0
}

type NameCall = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut socklen_t) -> c_int;

fn name(fd: i32, call: NameCall) -> Option<SocketAddress> {
    // SAFETY: plain integers; all zero is a value.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let mut len = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: `storage` is writable for `len` bytes.
    if unsafe { call(fd, (&raw mut storage).cast(), &raw mut len) } != 0 {
        return None;
    }
    // SAFETY: the kernel has filled `len` bytes of `storage`.
    match unsafe { address::read((&raw const storage).cast(), len) } {
        Given::Inet(address) => Some(address),
        Given::Nothing | Given::Foreign => None,
    }
}

/// `SO_BINDTOIFINDEX` of asm-generic/socket.h.
pub const SO_BINDTOIFINDEX: c_int = 62;

/// The local address.
pub fn local(fd: i32) -> Option<SocketAddress> {
    name(fd, symbols::getsockname::original())
}

/// The remote address of a connected socket.
pub fn remote(fd: i32) -> Option<SocketAddress> {
    name(fd, symbols::getpeername::original())
}

/// The socket's family, with IPV6_V6ONLY taken into account.
pub fn family(fd: i32) -> Option<Family> {
    match option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_INET => Some(Family::V4),
        libc::AF_INET6 if flag(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => Some(Family::V6),
        libc::AF_INET6 => Some(Family::Dual),
        _ => None,
    }
}

/// The socket's identity, the same for every descriptor and process that has it.
pub fn cookie(fd: i32) -> u64 {
    option(fd, libc::SOL_SOCKET, libc::SO_COOKIE).unwrap_or(0)
}

/// Flags that only the shim acts on, kept in the endpoint so that every process sees them.
pub mod flags {
    /// O_NONBLOCK of the open file description.
    pub const NONBLOCKING: u32 = 1;
    /// IP_PKTINFO.
    pub const PKTINFO: u32 = 1 << 1;
    /// IPV6_RECVPKTINFO.
    pub const PKTINFO6: u32 = 1 << 2;
    /// IP_RECVTOS.
    pub const RECVTOS: u32 = 1 << 3;
    /// IP_RECVTTL.
    pub const RECVTTL: u32 = 1 << 4;
    /// IPV6_RECVTCLASS.
    pub const RECVTCLASS: u32 = 1 << 5;
    /// IPV6_RECVHOPLIMIT.
    pub const RECVHOPLIMIT: u32 = 1 << 6;
    /// SO_TIMESTAMP.
    pub const TIMESTAMP: u32 = 1 << 7;
    /// SO_TIMESTAMPNS.
    pub const TIMESTAMPNS: u32 = 1 << 8;
    /// SO_RXQ_OVFL.
    pub const RXQ_OVFL: u32 = 1 << 9;
    /// IP_RECVORIGDSTADDR.
    pub const ORIGDSTADDR: u32 = 1 << 10;
    /// An option that makes sends the kernel's: SO_MARK, UDP_CORK, times of sends by
    /// SO_TIMESTAMPING. (SO_PRIORITY only tells queueing disciplines, which accelerated packets do
    /// not meet.)
    pub const KERNEL_SENDS: u32 = 1 << 11;
    /// shutdown(SHUT_RD) was called.
    pub const SHUT_READ: u32 = 1 << 12;
    /// shutdown(SHUT_WR) was called.
    pub const SHUT_WRITE: u32 = 1 << 13;
    /// UDP_GRO.
    pub const GRO: u32 = 1 << 14;
    /// SO_TIMESTAMPING with times of arrival by the host's clock.
    pub const STAMPS: u32 = 1 << 15;
    /// The same by the NIC's clock.
    pub const NIC_STAMPS: u32 = 1 << 16;
    /// Times were last asked for by SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW or SO_TIMESTAMPING_NEW:
    /// the messages of all three have other types.
    pub const NEW_TYPES: u32 = 1 << 17;
}

/// Which of the endpoint's shim words holds UDP_SEGMENT.
pub const GSO_WORD: usize = 0;
/// Which of them says that MSG_MORE has left a datagram open in the shadow.
pub const CORK_WORD: usize = 1;
/// Which of them holds the interface that the policy restricts the socket to; 0 = none.
pub const ONLY_WORD: usize = 2;

/// Reads everything that the stack or the shim acts on.
pub fn options(fd: i32, family: Family) -> UdpOptions {
    use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, SOL_SOCKET};
    let v6 = family != Family::V4;
    let mut options = UdpOptions {
        rcvbuf_bytes: option::<c_int>(fd, SOL_SOCKET, libc::SO_RCVBUF)
            .unwrap_or(0)
            .max(0) as u32,
        rcvtimeo_ms: timeout_ms(fd, libc::SO_RCVTIMEO),
        ..UdpOptions::default()
    };
    let ttl = option::<c_int>(fd, IPPROTO_IP, libc::IP_TTL).unwrap_or(0);
    let tos = option::<c_int>(fd, IPPROTO_IP, libc::IP_TOS).unwrap_or(0);
    options.ttl = u8::try_from(ttl).unwrap_or(0);
    options.tos = u8::try_from(tos).unwrap_or(0);
    if v6 {
        let hops = option::<c_int>(fd, IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS).unwrap_or(0);
        let class = option::<c_int>(fd, IPPROTO_IPV6, libc::IPV6_TCLASS).unwrap_or(0);
        options.hop_limit = u8::try_from(hops).unwrap_or(0);
        options.traffic_class = u8::try_from(class).unwrap_or(0);
    }
    let mut stack = 0;
    for (set, level, name) in [
        (UdpOptions::REUSE_PORT, SOL_SOCKET, libc::SO_REUSEPORT),
        (UdpOptions::REUSE_ADDR, SOL_SOCKET, libc::SO_REUSEADDR),
        (UdpOptions::CHECKSUM_OFF, SOL_SOCKET, libc::SO_NO_CHECK),
    ] {
        if flag(fd, level, name) {
            stack |= set;
        }
    }
    // IP_PMTUDISC_DONT (0) and _OMIT (5) send without DF; _WANT (1, the default), _DO and _PROBE
    // set it. The stack never sends more than the route's MTU, so DF only shows on the wire.
    let discover = option::<c_int>(fd, IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap_or(1);
    if !matches!(discover, 0 | 5) {
        stack |= UdpOptions::DONT_FRAGMENT;
    }
    options.shim_words[GSO_WORD] = option::<c_int>(fd, IPPROTO_UDP, libc::UDP_SEGMENT)
        .unwrap_or(0)
        .max(0) as u32;
    options.flags = stack;
    options.shim_flags = shim_flags(fd, v6);
    options
}

/// The `flags` of a socket.
fn shim_flags(fd: i32, v6: bool) -> u32 {
    use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, SOL_SOCKET};
    /// `UDP_CORK` of linux/udp.h.
    const UDP_CORK: c_int = 1;
    /// `UDP_GRO` of linux/udp.h.
    const UDP_GRO: c_int = 104;
    let mut result = 0;
    let v4_options = [
        (flags::PKTINFO, IPPROTO_IP, libc::IP_PKTINFO),
        (flags::RECVTOS, IPPROTO_IP, libc::IP_RECVTOS),
        (flags::RECVTTL, IPPROTO_IP, libc::IP_RECVTTL),
        (flags::ORIGDSTADDR, IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
        (flags::TIMESTAMP, SOL_SOCKET, libc::SO_TIMESTAMP),
        (flags::TIMESTAMPNS, SOL_SOCKET, libc::SO_TIMESTAMPNS),
        (flags::RXQ_OVFL, SOL_SOCKET, libc::SO_RXQ_OVFL),
        (flags::KERNEL_SENDS, SOL_SOCKET, libc::SO_MARK),
        (flags::KERNEL_SENDS, IPPROTO_UDP, UDP_CORK),
        (flags::GRO, IPPROTO_UDP, UDP_GRO),
    ];
    let v6_options = [
        (flags::PKTINFO6, IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        (flags::RECVTCLASS, IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
        (flags::RECVHOPLIMIT, IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    ];
    let asked = v4_options.iter().chain(v6_options.iter().filter(|_| v6));
    for &(set, level, name) in asked {
        if flag(fd, level, name) {
            result |= set;
        }
    }
    if is_nonblocking(fd) {
        result |= flags::NONBLOCKING;
    }
    result |= new_times(fd);
    let stamping = option::<c_int>(fd, SOL_SOCKET, libc::SO_TIMESTAMPING).unwrap_or(0);
    let has_timestamp = result & (flags::TIMESTAMP | flags::TIMESTAMPNS) != 0;
    result | stamps(stamping.cast_unsigned(), has_timestamp)
}

/// What is asked for by the options with 64 bits for seconds, which answer 0 where times were asked
/// for by the others (net/core/sock.c:sk_getsockopt).
fn new_times(fd: i32) -> u32 {
    use new_names::{TIMESTAMP, TIMESTAMPING, TIMESTAMPNS};
    let has = |name| flag(fd, libc::SOL_SOCKET, name);
    match (has(TIMESTAMPNS), has(TIMESTAMP), has(TIMESTAMPING)) {
        (true, _, _) => flags::TIMESTAMPNS | flags::NEW_TYPES,
        (_, true, _) => flags::TIMESTAMP | flags::NEW_TYPES,
        (_, _, true) => flags::NEW_TYPES,
        _ => 0,
    }
}

/// Options of asm-generic/socket.h, which the types of their messages are too.
pub mod new_names {
    use std::ffi::c_int;

    /// `SO_TIMESTAMP_NEW`.
    pub const TIMESTAMP: c_int = 63;
    /// `SO_TIMESTAMPNS_NEW`.
    pub const TIMESTAMPNS: c_int = 64;
    /// `SO_TIMESTAMPING_NEW`.
    pub const TIMESTAMPING: c_int = 65;
}

/// What the flags of SO_TIMESTAMPING come to, beside SO_TIMESTAMP or without
/// (net/socket.c:__sock_recv_timestamp): a socket that asks for neither has no times by the host's
/// clock to be told, while a NIC stamps as it is set.
fn stamps(asked: u32, has_timestamp: bool) -> u32 {
    use error_queue::{TX_RECORD, flags as of};
    let has = |flag| asked & flag != 0;
    let is_unfiltered = !has(of::OPT_RX_FILTER);
    let mut result = 0;
    if has(of::SOFTWARE) && (has(of::RX_SOFTWARE) || is_unfiltered && has_timestamp) {
        result |= flags::STAMPS;
    }
    if has(of::RAW_HARDWARE) && (has(of::RX_HARDWARE) || is_unfiltered) {
        result |= flags::NIC_STAMPS;
    }
    if has(TX_RECORD) {
        result |= flags::KERNEL_SENDS;
    }
    result
}

/// SO_RCVTIMEO or SO_SNDTIMEO in milliseconds, rounded up; 0 = none.
pub fn timeout_ms(fd: i32, name: c_int) -> u32 {
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct Time {
        seconds: i64,
        microseconds: i64,
    }
    let time: Time = option(fd, libc::SOL_SOCKET, name).unwrap_or_default();
    let ms = time
        .seconds
        .saturating_mul(1000)
        .saturating_add((time.microseconds + 999) / 1000);
    u32::try_from(ms).unwrap_or(if ms < 0 { 0 } else { u32::MAX })
}

/// O_NONBLOCK of the open file description.
pub fn is_nonblocking(fd: i32) -> bool {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { symbols::fcntl::original()(fd, libc::F_GETFL, 0) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// Whether the socket has a pending error, without taking it.
pub fn has_error(fd: i32) -> Option<bool> {
    let mut entry = libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    };
    // SAFETY: one entry, no waiting.
    let result = unsafe { symbols::poll::original()(&raw mut entry, 1, 0) };
    (result >= 0).then_some(entry.revents & libc::POLLERR != 0)
}

/// Whether the number still is a UDP socket.
pub fn is_udp(fd: i32) -> bool {
    option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Some(libc::IPPROTO_UDP)
}

/// Whether the number still is a UDP or TCP socket.
pub fn is_inet(fd: i32) -> bool {
    let protocol = option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL);
    matches!(protocol, Some(libc::IPPROTO_UDP | libc::IPPROTO_TCP))
}

/// Whether an exec closes the descriptor.
pub fn is_close_on_exec(fd: i32) -> bool {
    // SAFETY: F_GETFD takes no argument.
    let flags = unsafe { symbols::fcntl::original()(fd, libc::F_GETFD, 0) };
    flags < 0 || flags & libc::FD_CLOEXEC != 0
}
