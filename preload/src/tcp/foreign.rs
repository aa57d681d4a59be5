//! What only the kernel provides, options and signals: whoever asks for it gets a socket of the
//! kernel's.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads option values of the caller; setsockopt by libc's original"
)]

use std::ffi::{c_int, c_void};

use bypass_proto::reason::FallThrough;
use bypass_stack::tcp::congestion;
use bypass_stack::{EndpointId, TcpState};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, socklen_t};
use rustix::io::Errno;

use super::handover;
use crate::address::is_nowhere;
use crate::errno::from_c;
use crate::fdtable::{self, Entry};
use crate::shadow::new_names;
use crate::{decide, report, symbols};

/// Of linux/tcp.h.
const SAVE_SYN: c_int = 27;
const ZEROCOPY_RECEIVE: c_int = 35;
const MD5SIG_EXT: c_int = 32;
const TX_DELAY: c_int = 37;
const AO_ADD_KEY: c_int = 38;
/// Of asm-generic/socket.h.
const REUSEPORT_CBPF: c_int = 51;
const REUSEPORT_EBPF: c_int = 52;
/// Of linux/in6.h.
const IPV6_2292PKTOPTIONS: c_int = 6;
const IPV6_MINHOPCOUNT: c_int = 73;

/// Which values ask for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    NotZero,
    NotNegative,
}
use When::{Always, NotNegative, NotZero};

/// Time stamps by their newer names, signed or delayed segments, what stands in IP headers, sockets
/// put together by hand, foreign addresses, routes by mark, programs that filter or choose.
const OPTIONS: [(c_int, c_int, When); 27] = [
    (SOL_SOCKET, new_names::TIMESTAMP, NotZero),
    (SOL_SOCKET, new_names::TIMESTAMPNS, NotZero),
    (SOL_SOCKET, new_names::TIMESTAMPING, NotZero),
    (SOL_SOCKET, libc::SO_PEEK_OFF, NotNegative),
    (SOL_SOCKET, libc::SO_MARK, NotZero),
    (SOL_SOCKET, libc::SO_ATTACH_FILTER, Always),
    (SOL_SOCKET, libc::SO_ATTACH_BPF, Always),
    (SOL_SOCKET, REUSEPORT_CBPF, Always),
    (SOL_SOCKET, REUSEPORT_EBPF, Always),
    (IPPROTO_TCP, libc::TCP_MD5SIG, Always),
    (IPPROTO_TCP, MD5SIG_EXT, Always),
    (IPPROTO_TCP, AO_ADD_KEY, Always),
    (IPPROTO_TCP, libc::TCP_REPAIR, Always),
    (IPPROTO_TCP, libc::TCP_ULP, Always),
    (IPPROTO_TCP, SAVE_SYN, NotZero),
    (IPPROTO_TCP, TX_DELAY, NotZero),
    (IPPROTO_IP, libc::IP_TRANSPARENT, Always),
    (IPPROTO_IP, libc::IP_OPTIONS, Always),
    (IPPROTO_IP, libc::IP_MINTTL, NotZero),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT, Always),
    (IPPROTO_IPV6, libc::IPV6_ADDRFORM, Always),
    (IPPROTO_IPV6, IPV6_2292PKTOPTIONS, Always),
    (IPPROTO_IPV6, libc::IPV6_HOPOPTS, Always),
    (IPPROTO_IPV6, libc::IPV6_RTHDRDSTOPTS, Always),
    (IPPROTO_IPV6, libc::IPV6_RTHDR, Always),
    (IPPROTO_IPV6, libc::IPV6_DSTOPTS, Always),
    (IPPROTO_IPV6, IPV6_MINHOPCOUNT, NotZero),
];

/// Whether a value of the option is one of these.
///
/// # Safety
/// `value` is null or readable for `len` bytes.
pub unsafe fn is(level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> bool {
    if (level, name) == (IPPROTO_TCP, libc::TCP_CONGESTION) {
        // SAFETY: the caller's promise.
        return unsafe { is_unknown_algorithm(value, len) };
    }
    let Some((.., when)) = OPTIONS.iter().find(|one| (one.0, one.1) == (level, name)) else {
        return false;
    };
    if *when == Always {
        // Nothing is set by nothing: the kernel refuses it, or clears what there is.
        return len > 0;
    }
    if is_nowhere(value) || len == 0 {
        return false;
    }
    let number = if (len as usize) >= size_of::<c_int>() {
        // SAFETY: the caller's promise.
        unsafe { value.cast::<c_int>().read_unaligned() }
    } else if level == IPPROTO_IP {
        // Of this level a byte will do (net/ipv4/ip_sockglue.c:do_ip_setsockopt).
        // SAFETY: the caller's promise.
        c_int::from(unsafe { value.cast::<u8>().read() })
    } else {
        return false;
    };
    if *when == NotZero {
        number != 0
    } else {
        number >= 0
    }
}

/// Whether a name of TCP_CONGESTION is none of the engine's.
///
/// # Safety
/// As [`is`].
unsafe fn is_unknown_algorithm(value: *const c_void, len: socklen_t) -> bool {
    if is_nowhere(value) || len == 0 {
        return false;
    }
    // SAFETY: the caller's promise.
    let name = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), (len as usize).min(15)) };
    let end = name.iter().position(|&byte| byte == 0);
    congestion::by_name(&name[..end.unwrap_or(name.len())]).is_none()
}

/// Hands a connection over that is about to get such an option. `true`: it has the option already.
///
/// # Errors
/// The kernel's, which is asked by the shadow first where an unconnected socket is refused
/// otherwise than a connected one; `EOPNOTSUPP` when the connection stays.
///
/// # Safety
/// As [`is`].
pub unsafe fn prepare(
    fd: c_int,
    endpoint: EndpointId,
    (level, name): (c_int, c_int),
    value: *const c_void,
    len: socklen_t,
) -> Result<bool, Errno> {
    if state(endpoint) == Some(TcpState::Closed) {
        // Nothing comes or goes any more: its shadow keeps the option.
        return Ok(false);
    }
    let asks_first = [libc::TCP_ULP, libc::TCP_CONGESTION];
    if level == IPPROTO_TCP && asks_first.contains(&name) {
        // SAFETY: the caller's promise.
        let told = unsafe { symbols::setsockopt::original()(fd, level, name, value, len) };
        match from_c(told as isize) {
            // Another thread was faster, the shadow is the connection.
            Ok(_) if name == libc::TCP_ULP => return Ok(true),
            Ok(_) | Err(Errno::NOTCONN) => {}
            Err(errno) => return Err(errno),
        }
    }
    if handover::hand_over(fd, endpoint, FallThrough::Option) {
        Ok(false)
    } else {
        Err(Errno::OPNOTSUPP)
    }
}

/// An option is about to be read: one answer about a connection only the kernel can give.
pub fn about_to_read(fd: c_int, endpoint: EndpointId, level: c_int, name: c_int) {
    if (level, name) == (IPPROTO_TCP, ZEROCOPY_RECEIVE) {
        handover::hand_over(fd, endpoint, FallThrough::Option);
    }
}

/// The kernel has accepted such an option on a socket without a connection: from here on the socket
/// is the kernel's. Everything after this goes by its own calls.
pub fn was_set(fd: c_int) {
    match fdtable::get(fd) {
        Entry::TcpCandidate => fdtable::set(fd, Entry::Other),
        Entry::Listener(listener) => give_up(fd, listener),
        _ => return,
    }
    report::refused(fd, FallThrough::Option);
}

/// Somebody wants signals about the socket (F_SETOWN): the kernel sends SIGURG and SIGIO at the
/// moment when something comes, whatever the program does then.
#[cold]
pub fn signals(fd: c_int) {
    match fdtable::get(fd) {
        Entry::Tcp(endpoint) if state(endpoint) != Some(TcpState::Closed) => {
            handover::hand_over(fd, endpoint, FallThrough::Option);
        }
        Entry::Guest => {
            if let Entry::Tcp(endpoint) = super::guest::stays(fd, FallThrough::Option) {
                handover::hand_over(fd, endpoint, FallThrough::Option);
            }
        }
        Entry::Udp(endpoint) => {
            decide::release_all(endpoint);
            report::refused(fd, FallThrough::Option);
        }
        Entry::Candidate | Entry::Bound => {
            fdtable::set(fd, Entry::Other);
            report::refused(fd, FallThrough::Option);
        }
        _ => was_set(fd),
    }
}

/// The state of a connection of ours.
fn state(endpoint: EndpointId) -> Option<TcpState> {
    let status = super::with_stack(|_, locked, _| locked.stack().tcp_status(endpoint));
    status?.ok().map(|status| status.state)
}

fn give_up(fd: c_int, listener: EndpointId) {
    super::listen::give_up(fd, listener);
    decide::settle();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_decides() {
        let is = |level, name, value: c_int| {
            // SAFETY: the value is readable for its size.
            unsafe {
                is(
                    level,
                    name,
                    (&raw const value).cast(),
                    size_of::<c_int>() as u32,
                )
            }
        };
        assert!(is(SOL_SOCKET, libc::SO_PEEK_OFF, 0));
        assert!(!is(SOL_SOCKET, libc::SO_PEEK_OFF, -1));
        assert!(is(SOL_SOCKET, libc::SO_MARK, 1));
        assert!(!is(SOL_SOCKET, libc::SO_MARK, 0));
        assert!(is(IPPROTO_TCP, libc::TCP_ULP, 0));
        assert!(!is(IPPROTO_TCP, libc::TCP_NODELAY, 1));
    }

    #[test]
    fn congestion_control_that_the_engine_has_not() {
        let is = |name: &[u8]| {
            let len = name.len() as socklen_t;
            // SAFETY: the name is readable for its length.
            unsafe { is(IPPROTO_TCP, libc::TCP_CONGESTION, name.as_ptr().cast(), len) }
        };
        assert!(is(b"dctcp"));
        assert!(is(b"dctcp\0 and more of that"));
        assert!(!is(b"cubic"));
        assert!(!is(b"reno\0"));
        assert!(!is(b""));
    }
}
