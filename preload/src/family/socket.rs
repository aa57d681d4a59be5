//! socket, bind, connect and the calls that name or tune a socket.
//!
//! The kernel's own answer always comes first and is what the program gets: it validates arguments,
//! reserves ports, picks source addresses, keeps options. We only follow what it accepted.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: C arguments are passed on to libc's originals"
)]

use std::ffi::{c_int, c_void};

use bypass_proto::policy::Role;
use bypass_proto::reason::FallThrough;
use libc::{AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, sockaddr, socklen_t};
use rustix::io::Errno;

use crate::address::{self, Given};
use crate::errno::{self, Answer, to_int};
use crate::fdtable::{self, Entry};
use crate::tcp::accept::Place;
use crate::tcp::handover;
use crate::tcp::name::End;
use crate::tcp::options::{self, Room};
use crate::{context, decide, report, shadow, symbols, tcp};

/// Low bits of socket()'s type; the rest are SOCK_NONBLOCK and SOCK_CLOEXEC.
const TYPE_MASK: c_int = 0xf;

pub unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: plain integers.
    let fd = unsafe { symbols::socket::original()(domain, kind, protocol) };
    if fd >= 0 {
        born(fd, domain, kind & TYPE_MASK, protocol);
    }
    fd
}

/// Notes a new socket: a candidate, or the reason why it is none.
fn born(fd: c_int, domain: c_int, kind: c_int, protocol: c_int) {
    reborn(fd);
    let inet = domain == AF_INET || domain == AF_INET6;
    if inet && kind == SOCK_DGRAM && (protocol == 0 || protocol == libc::IPPROTO_UDP) {
        fdtable::set(fd, Entry::Candidate);
        report::born(fd, FallThrough::Undecided, 17, domain);
        return;
    }
    if inet && kind == SOCK_STREAM {
        let ours = protocol == 0 || protocol == libc::IPPROTO_TCP;
        let reason = if ours && tcp::is_on() {
            fdtable::set(fd, Entry::TcpCandidate);
            tcp::changed::born(fd);
            FallThrough::Undecided
        } else if ours {
            FallThrough::TcpOff
        } else {
            FallThrough::SocketType
        };
        report::born(fd, reason, decide::TCP, domain);
    } else if inet {
        report::born(fd, FallThrough::SocketType, 0, domain);
    }
}

pub unsafe fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int {
    // SAFETY: the caller's arguments.
    let result = unsafe { symbols::socketpair::original()(domain, kind, protocol, pair) };
    if result == 0 {
        // SAFETY: the kernel has written both numbers.
        let fds = unsafe { [pair.read(), pair.add(1).read()] };
        for fd in fds {
            reborn(fd);
        }
    }
    result
}

pub unsafe fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    if let Entry::Tcp(_) = fdtable::get(fd) {
        return to_int(Err(Errno::INVAL));
    }
    // SAFETY: the caller's arguments.
    let mut result = unsafe { symbols::bind::original()(fd, address, len) };
    if result != 0 && errno::last() == Errno::ADDRINUSE {
        // SAFETY: as above.
        let wanted = unsafe { address::read(address, len) };
        if tcp::listen::may_be_held(fd, wanted) {
            // SAFETY: as above.
            result = unsafe { symbols::bind::original()(fd, address, len) };
        } else {
            errno::set(Errno::ADDRINUSE);
        }
    }
    if result == 0 && fdtable::get(fd) == Entry::Candidate {
        decide::decide(fd, Role::Bind);
    }
    result
}

pub unsafe fn listen(fd: c_int, backlog: c_int) -> c_int {
    if let Entry::Tcp(_) = fdtable::get(fd) {
        return to_int(Err(Errno::INVAL));
    }
    // SAFETY: plain integers.
    let result = unsafe { symbols::listen::original()(fd, backlog) };
    if result == 0 && !fdtable::falls_through(fd) {
        tcp::listen::listening(fd, backlog);
    }
    result
}

pub unsafe fn accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if !fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { accept4(fd, address, len, 0) };
    }
    // SAFETY: the caller's arguments.
    let accepted = unsafe { symbols::accept::original()(fd, address, len) };
    accepted_by_kernel(accepted)
}

pub unsafe fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    match fdtable::get(fd) {
        Entry::Listener(listener) => {
            let place = Place { address, len };
            // SAFETY: the caller's arguments.
            return to_int(unsafe { tcp::accept::accept(fd, listener, place, flags) });
        }
        Entry::Tcp(_) => return to_int(Err(Errno::INVAL)),
        _ => {}
    }
    // SAFETY: the caller's arguments.
    let accepted = unsafe { symbols::accept4::original()(fd, address, len, flags) };
    accepted_by_kernel(accepted)
}

fn accepted_by_kernel(fd: c_int) -> c_int {
    reborn(fd);
    fd
}

/// A number that the kernel has just given out was closed, perhaps behind our back (inside libc):
/// what we knew of it ends here.
pub fn reborn(fd: c_int) {
    if fd >= 0 && !fdtable::falls_through(fd) {
        super::fd::forget(fd);
    }
}

pub unsafe fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::connect::original()(fd, address, len) };
    }
    // SAFETY: null or the caller's address.
    if let Some(answer) = unsafe { connect_tcp(fd, address, len) } {
        return to_int(answer);
    }
    // SAFETY: as above.
    let result = unsafe { symbols::connect::original()(fd, address, len) };
    if result != 0 {
        return result;
    }
    match fdtable::get(fd) {
        // A listener was dissolved (AF_UNSPEC; all else is refused).
        Entry::Listener(listener) => tcp::listen::give_up(fd, listener),
        Entry::Candidate | Entry::Bound => {
            // SAFETY: the kernel has just read `len` bytes of it.
            match unsafe { address::read(address, len) } {
                Given::Inet(_) => {
                    decide::decide(fd, Role::Connect);
                }
                Given::Nothing | Given::Foreign => {}
            }
        }
        Entry::Udp(endpoint) => decide::follow(fd, endpoint),
        _ => {}
    }
    result
}

/// connect on a TCP socket; `None`: the kernel's call comes now.
///
/// # Safety
/// `address` is null or readable for `len` bytes.
unsafe fn connect_tcp(fd: c_int, address: *const sockaddr, len: socklen_t) -> Option<Answer> {
    let entry = fdtable::get(fd);
    if !matches!(entry, Entry::TcpCandidate | Entry::Tcp(_)) {
        return None;
    }
    // SAFETY: the caller's promise.
    let to = unsafe { address::read(address, len) };
    match entry {
        Entry::TcpCandidate => tcp::connect::begin(fd, to),
        Entry::Tcp(endpoint) => match tcp::connect::again(fd, endpoint, to) {
            None if address::is_nowhere(address) => Some(Err(Errno::FAULT)),
            None if len < 2 => Some(Err(Errno::INVAL)),
            None => {
                // SAFETY: at least the family is readable.
                let family = unsafe { address.cast::<libc::sa_family_t>().read_unaligned() };
                if i32::from(family) != libc::AF_UNSPEC {
                    return Some(Err(Errno::ISCONN));
                }
                tcp::connect::dissolve(fd, endpoint);
                None
            }
            answer => answer,
        },
        _ => None,
    }
}

pub unsafe fn shutdown(fd: c_int, how: c_int) -> c_int {
    let entry = fdtable::get(fd);
    match entry {
        Entry::Tcp(endpoint) => {
            let answer = tcp::close::shutdown(endpoint, how);
            if answer != Err(Errno::NOTCONN) || !handover::moved(fd, endpoint) {
                return to_int(answer);
            }
            // SAFETY: plain integers.
            return unsafe { shutdown(fd, how) };
        }
        Entry::Listener(endpoint) if matches!(how, libc::SHUT_RD | libc::SHUT_RDWR) => {
            tcp::listen::give_up(fd, endpoint);
        }
        Entry::Guest => {
            // SAFETY: plain integers.
            let call = || unsafe { symbols::shutdown::original()(fd, how) };
            let asked = tcp::guest::asked(fd, call);
            // SAFETY: plain integers.
            return asked.unwrap_or_else(|| unsafe { shutdown(fd, how) });
        }
        _ => {}
    }
    // SAFETY: plain integers.
    let result = unsafe { symbols::shutdown::original()(fd, how) };
    if result == 0
        && let Entry::Udp(endpoint) = fdtable::get(fd)
        && let Some(joined) = context::joined()
        && let Ok(mut locked) = joined.attachment.lock()
        && let Ok(options) = locked.stack().udp_options(endpoint)
    {
        options.shim_flags |= match how {
            libc::SHUT_RD => shadow::flags::SHUT_READ,
            libc::SHUT_WR => shadow::flags::SHUT_WRITE,
            _ => shadow::flags::SHUT_READ | shadow::flags::SHUT_WRITE,
        };
    }
    result
}

pub unsafe fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if let Entry::Tcp(endpoint) = fdtable::get(fd) {
        // SAFETY: the caller's arguments.
        let answer = unsafe { tcp::name::of(endpoint, End::Local, address, len) };
        if answer != Err(Errno::NOTCONN) || !handover::moved(fd, endpoint) {
            return to_int(answer);
        }
    }
    // SAFETY: the caller's arguments; the shadow has the name.
    unsafe { symbols::getsockname::original()(fd, address, len) }
}

pub unsafe fn getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let entry = fdtable::get(fd);
    if let Entry::Tcp(endpoint) = entry {
        // SAFETY: the caller's arguments.
        let answer = unsafe { tcp::name::of(endpoint, End::Remote, address, len) };
        if answer != Err(Errno::NOTCONN) || !handover::moved(fd, endpoint) {
            return to_int(answer);
        }
        // SAFETY: the caller's arguments.
        return unsafe { getpeername(fd, address, len) };
    }
    // SAFETY: the caller's arguments; the shadow has the name.
    let call = || unsafe { symbols::getpeername::original()(fd, address, len) };
    if entry != Entry::Guest {
        return call();
    }
    // SAFETY: the caller's arguments.
    tcp::guest::asked(fd, call).unwrap_or_else(|| unsafe { getpeername(fd, address, len) })
}

pub unsafe fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    let entry = fdtable::get(fd);
    if let Entry::Tcp(endpoint) | Entry::Listener(endpoint) = entry {
        let connection = matches!(entry, Entry::Tcp(_));
        if connection {
            tcp::foreign::about_to_read(fd, endpoint, level, name);
        }
        let place = (fd, endpoint, connection);
        let room = Room { value, len };
        // SAFETY: the caller's arguments.
        if let Some(answer) = unsafe { options::get(place, (level, name), room) } {
            return to_int(answer);
        }
    }
    // SAFETY: the caller's arguments; the shadow keeps every option.
    let call = || unsafe { symbols::getsockopt::original()(fd, level, name, value, len) };
    if entry != Entry::Guest {
        return call();
    }
    let asked = tcp::guest::asked(fd, call);
    // SAFETY: the caller's arguments.
    asked.unwrap_or_else(|| unsafe { getsockopt(fd, level, name, value, len) })
}

pub unsafe fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let entry = fdtable::get(fd);
    // SAFETY: the caller's arguments.
    let foreign = entry != Entry::Other && unsafe { tcp::foreign::is(level, name, value, len) };
    if foreign && entry == Entry::Guest {
        tcp::guest::stays(fd, FallThrough::Option);
        // SAFETY: the caller's arguments.
        return unsafe { setsockopt(fd, level, name, value, len) };
    }
    if foreign && let Entry::Tcp(endpoint) = entry {
        // SAFETY: as above.
        let prepared = unsafe { tcp::foreign::prepare(fd, endpoint, (level, name), value, len) };
        match prepared {
            Err(errno) => return to_int(Err(errno)),
            Ok(true) => {
                handover::moved(fd, endpoint);
                return 0;
            }
            Ok(false) => {}
        }
    }
    if let Entry::Tcp(endpoint) | Entry::Listener(endpoint) = entry
        && !foreign
    {
        // SAFETY: the caller's arguments.
        let answer = unsafe { options::set(fd, endpoint, (level, name), value, len) };
        if answer != Err(Errno::STALE) || !handover::moved(fd, endpoint) {
            return to_int(answer);
        }
        // SAFETY: the caller's arguments.
        return unsafe { setsockopt(fd, level, name, value, len) };
    }
    // SAFETY: the caller's arguments.
    let call = || unsafe { symbols::setsockopt::original()(fd, level, name, value, len) };
    if entry == Entry::Guest {
        let asked = tcp::guest::asked(fd, call);
        // SAFETY: the caller's arguments.
        return asked.unwrap_or_else(|| unsafe { setsockopt(fd, level, name, value, len) });
    }
    let result = call();
    if result == 0 && entry == Entry::TcpCandidate {
        tcp::changed::note(fd, level, name);
    }
    if result == 0 && foreign {
        tcp::foreign::was_set(fd);
    }
    if result == 0
        && let Entry::Udp(endpoint) = fdtable::get(fd)
    {
        options_changed(fd, endpoint);
        if level == libc::SOL_SOCKET
            && (name == libc::SO_BINDTODEVICE || name == shadow::SO_BINDTOIFINDEX)
        {
            decide::follow(fd, endpoint);
        }
    }
    result
}

/// Reads the options again after the kernel has accepted a change.
fn options_changed(fd: c_int, endpoint: bypass_stack::EndpointId) {
    let (Some(joined), Some(family)) = (context::joined(), shadow::family(fd)) else {
        return;
    };
    let mut fresh = shadow::options(fd, family);
    if let Ok(mut locked) = joined.attachment.lock()
        && let Ok(options) = locked.stack().udp_options(endpoint)
    {
        fresh.shim_flags |=
            options.shim_flags & (shadow::flags::SHUT_READ | shadow::flags::SHUT_WRITE);
        fresh.set(
            bypass_stack::UdpOptions::RESTING,
            options.has(bypass_stack::UdpOptions::RESTING),
        );
        fresh.shim_words[shadow::ONLY_WORD] = options.shim_words[shadow::ONLY_WORD];
        *options = fresh;
    }
}
