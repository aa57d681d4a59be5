//! Options that only the kernel provides: whoever sets one gets a socket of the kernel's.

use std::ffi::c_int;

use bypass_proto::reason::FallThrough;
use bypass_stack::EndpointId;
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

use crate::fdtable::{self, Entry};
use crate::{decide, report};

/// `TCP_MD5SIG_EXT` and `TCP_AO_ADD_KEY` of linux/tcp.h.
const MD5SIG_EXT: c_int = 32;
const AO_ADD_KEY: c_int = 38;
/// `SO_ATTACH_REUSEPORT_CBPF` and `_EBPF` of asm-generic/socket.h.
const REUSEPORT_CBPF: c_int = 51;
const REUSEPORT_EBPF: c_int = 52;

/// Completions on the error queue, signed segments, sockets put together by hand, foreign
/// addresses, programs that filter or choose.
const OPTIONS: [(c_int, c_int); 11] = [
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (SOL_SOCKET, libc::SO_ATTACH_FILTER),
    (SOL_SOCKET, libc::SO_ATTACH_BPF),
    (SOL_SOCKET, REUSEPORT_CBPF),
    (SOL_SOCKET, REUSEPORT_EBPF),
    (IPPROTO_TCP, libc::TCP_MD5SIG),
    (IPPROTO_TCP, MD5SIG_EXT),
    (IPPROTO_TCP, AO_ADD_KEY),
    (IPPROTO_TCP, libc::TCP_REPAIR),
    (IPPROTO_IP, libc::IP_TRANSPARENT),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
];

/// Whether the option is one of these.
pub fn is(level: c_int, name: c_int) -> bool {
    OPTIONS.contains(&(level, name))
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

fn give_up(fd: c_int, listener: EndpointId) {
    super::listen::give_up(fd, listener);
    decide::settle();
}
