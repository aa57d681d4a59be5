//! What a program reads from the error queue of a connection, and the time stamps of what it
//! receives: the control messages of a [`Notice`] (net/ipv4/ip_sockglue.c:ip_recv_error,
//! net/socket.c:__sock_recv_timestamp).

use bypass_stack::{Family, Notice, NoticeKind, TcpOptions};
use libc::{IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET, c_int};

/// Flags of SO_TIMESTAMPING (linux/net_tstamp.h).
pub mod flags {
    /// Time stamps of received data by the clock of the NIC.
    pub const RX_HARDWARE: u32 = 1 << 2;
    /// Time stamps of received data by the clock of the host.
    pub const RX_SOFTWARE: u32 = 1 << 3;
    /// Stamps of that clock are told.
    pub const SOFTWARE: u32 = 1 << 4;
    /// Stamps of the NIC's clock are told, as it has made them.
    pub const RAW_HARDWARE: u32 = 1 << 6;
    /// Received data is stamped only with `RX_SOFTWARE`.
    pub const OPT_RX_FILTER: u32 = 1 << 17;
}

/// What asks for notices of sends (SOF_TIMESTAMPING_TX_RECORD_MASK): TX_HARDWARE, TX_SOFTWARE,
/// TX_SCHED, TX_ACK, TX_COMPLETION.
pub const TX_RECORD: u32 = 1 | 1 << 1 | 1 << 8 | 1 << 9 | 1 << 18;

/// Of linux/errqueue.h.
const ORIGIN_TIMESTAMPING: u8 = 4;
const ORIGIN_ZEROCOPY: u8 = 5;
const ZEROCOPY_COPIED: u8 = 1;

/// Nanoseconds as the seconds and the rest that C's structures have.
fn split(ns: u64) -> (i64, i64) {
    ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64)
}

fn pair((first, second): (i64, i64)) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_ne_bytes());
    bytes[8..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

/// Puts SO_TIMESTAMP's or SO_TIMESTAMPNS's message.
fn put_timestamp(options: &TcpOptions, at_ns: u64, put: &mut dyn FnMut(c_int, c_int, &[u8])) {
    let (seconds, nanoseconds) = split(at_ns);
    if options.has(TcpOptions::TIMESTAMPNS) {
        put(
            SOL_SOCKET,
            libc::SCM_TIMESTAMPNS,
            &pair((seconds, nanoseconds)),
        );
    } else if options.has(TcpOptions::TIMESTAMP) {
        let microseconds = nanoseconds / 1000;
        put(
            SOL_SOCKET,
            libc::SCM_TIMESTAMP,
            &pair((seconds, microseconds)),
        );
    }
}

/// Puts SCM_TIMESTAMPING.
fn put_timestamping(at_ns: u64, nic_ns: u64, put: &mut dyn FnMut(c_int, c_int, &[u8])) {
    put(SOL_SOCKET, libc::SCM_TIMESTAMPING, &stamping(at_ns, nic_ns));
}

/// What SCM_TIMESTAMPING tells: the times by the host's clock and the NIC's, nanoseconds since
/// 1970, 0 = none.
#[must_use]
pub fn stamping(host_ns: u64, nic_ns: u64) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[..16].copy_from_slice(&pair(split(host_ns)));
    // The second place is of a conversion that the kernel has no more.
    bytes[32..].copy_from_slice(&pair(split(nic_ns)));
    bytes
}

/// Whether received data has to be told with its time.
#[must_use]
pub fn stamps_arrivals(options: &TcpOptions) -> bool {
    options.has(TcpOptions::TIMESTAMP) || stamps_by_flags(options) || stamps_by_nic(options)
}

/// Whether received data has to be told with its time by the clock of the NIC, if that stamps.
#[must_use]
pub fn stamps_by_nic(options: &TcpOptions) -> bool {
    let has = |flag| options.timestamping & flag != 0;
    has(flags::RAW_HARDWARE) && (has(flags::RX_HARDWARE) || !has(flags::OPT_RX_FILTER))
}

fn stamps_by_flags(options: &TcpOptions) -> bool {
    let has = |flag| options.timestamping & flag != 0;
    has(flags::SOFTWARE) && (has(flags::RX_SOFTWARE) || !has(flags::OPT_RX_FILTER))
}

/// Puts the messages about when data has come by the host's clock and the NIC's, nanoseconds since
/// 1970, 0 = not known (net/ipv4/tcp.c:tcp_recv_timestamp).
pub fn put_arrival(
    options: &TcpOptions,
    (at_ns, nic_ns): (u64, u64),
    put: &mut dyn FnMut(c_int, c_int, &[u8]),
) {
    if at_ns != 0 {
        put_timestamp(options, at_ns, put);
    }
    let asked = |by, time| if by { time } else { 0 };
    let at_ns = asked(stamps_by_flags(options), at_ns);
    let nic_ns = asked(stamps_by_nic(options), nic_ns);
    if at_ns != 0 || nic_ns != 0 {
        put_timestamping(at_ns, nic_ns, put);
    }
}

/// Whether the packet that the notice would come with is cut off: none is kept.
#[must_use]
pub fn is_cut(notice: &Notice) -> bool {
    notice.kind != NoticeKind::Copied && notice.first != 0
}

/// Puts the messages of a notice that a socket of this family has read: `at_ns` is its time by the
/// host's clock, or that of the reading when it has none, nanoseconds since 1970.
pub fn put_notice(
    notice: &Notice,
    (options, family): (&TcpOptions, Family),
    at_ns: u64,
    put: &mut dyn FnMut(c_int, c_int, &[u8]),
) {
    let is_copy = notice.kind == NoticeKind::Copied;
    let is_stamp = notice.kind == NoticeKind::Stamped;
    put_timestamp(options, at_ns, put);
    let has = |flag| options.timestamping & flag != 0;
    let is_told = !is_copy && !is_stamp || options.has(TcpOptions::TIMESTAMP);
    let at_ns = if has(flags::SOFTWARE) && is_told {
        at_ns
    } else {
        0
    };
    let nic_ns = if has(flags::RAW_HARDWARE) && is_stamp {
        notice.at.0
    } else {
        0
    };
    if at_ns != 0 || nic_ns != 0 {
        put_timestamping(at_ns, nic_ns, put);
    }
    let (errno, origin, code) = if is_copy {
        (0, ORIGIN_ZEROCOPY, ZEROCOPY_COPIED)
    } else {
        (libc::ENOMSG, ORIGIN_TIMESTAMPING, 0)
    };
    let info = match notice.kind {
        NoticeKind::Copied => notice.first,
        NoticeKind::Sent | NoticeKind::Stamped => 0,
        NoticeKind::Scheduled => 1,
        NoticeKind::Acknowledged => 2,
    };
    // struct sock_extended_err, and the address of an offender that there is none of.
    let mut bytes = [0; 16 + 28];
    bytes[..4].copy_from_slice(&errno.to_ne_bytes());
    (bytes[4], bytes[6]) = (origin, code);
    bytes[8..12].copy_from_slice(&info.to_ne_bytes());
    bytes[12..16].copy_from_slice(&notice.last.to_ne_bytes());
    if family == Family::V4 {
        put(IPPROTO_IP, libc::IP_RECVERR, &bytes[..16 + 16]);
    } else {
        put(IPPROTO_IPV6, libc::IPV6_RECVERR, &bytes);
    }
}
