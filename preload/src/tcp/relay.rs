//! A connection whose descriptor leaves for a program that reads the kernel's socket: exec,
//! SCM_RIGHTS.
//!
//! The kernel knows nothing of the connection, so the descriptor becomes one end of a pair that the
//! kernel connects, and a process of its own carries bytes between the other end and the stack
//! until both directions have ended. What the next program sees is a stream socket; its peer's
//! address is the relay's.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: fork, and libc's originals on descriptors of this module"
)]

use std::ffi::c_int;

use bypass_stack::{EndpointId, Family, IpAddress, SocketAddress, TcpOptions};
use libc::{
    AF_INET, AF_INET6, MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, POLLOUT, SHUT_WR, SOCK_CLOEXEC,
    SOCK_STREAM, SOL_SOCKET, pollfd, socklen_t,
};

use super::with_stack;
use crate::fdtable::{self, Entry};
use crate::{address, family, process, shadow, symbols};

/// Bytes in flight in each direction.
const ROOM: usize = 64 * 1024;

/// Puts a relay behind every descriptor of the connection; `false`: nothing was changed.
pub fn replace(endpoint: EndpointId) -> bool {
    let looked = with_stack(|_, locked, _| {
        let status = locked.stack().tcp_status(endpoint).ok()?;
        Some((status, super::options_of(locked, endpoint)?))
    });
    let Some(Some((status, options))) = looked else {
        return false;
    };
    let numbers: Vec<c_int> = fdtable::entries(0, u32::MAX - 1)
        .filter_map(|(fd, entry)| (entry == Entry::Tcp(endpoint)).then_some(fd))
        .collect();
    let (Some(&first), Some((theirs, ours))) = (numbers.first(), pair(status.family)) else {
        return false;
    };
    let started = start(first, theirs, ours);
    close(ours);
    if started {
        let nonblocking = options.has(TcpOptions::NONBLOCKING);
        super::listen::set_nonblocking(theirs, nonblocking);
        for fd in numbers {
            let kept = if shadow::is_close_on_exec(fd) {
                libc::O_CLOEXEC
            } else {
                0
            };
            family::fd::forget(fd);
            // SAFETY: plain integers.
            unsafe { symbols::dup3::original()(theirs, fd, kept) };
        }
    }
    close(theirs);
    started
}

fn close(fd: c_int) {
    // SAFETY: a descriptor of this module.
    unsafe { symbols::close::original()(fd) };
}

/// Two connected stream sockets on the loopback address of the family.
fn pair(family: Family) -> Option<(c_int, c_int)> {
    let (domain, ip) = if family == Family::V4 {
        (AF_INET, IpAddress::from_v4([127, 0, 0, 1]))
    } else {
        let mut ip = [0; 16];
        ip[15] = 1;
        (AF_INET6, IpAddress(ip))
    };
    // SAFETY: plain integers.
    let new = || unsafe { symbols::socket::original()(domain, SOCK_STREAM | SOCK_CLOEXEC, 0) };
    let (door, theirs) = (new(), new());
    let made = connect(door, theirs, ip, family);
    close(door);
    if made.is_none() {
        close(theirs);
    }
    made.map(|ours| (theirs, ours))
}

/// Connects `theirs` to `door`, which listens; the other end.
fn connect(door: c_int, theirs: c_int, ip: IpAddress, family: Family) -> Option<c_int> {
    // SAFETY: plain integers; all zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = address::fill(SocketAddress::new(ip, 0), family, &mut storage) as socklen_t;
    // SAFETY: `storage` is readable for `len` bytes.
    if unsafe { symbols::bind::original()(door, (&raw const storage).cast(), len) } != 0 {
        return None;
    }
    // SAFETY: plain integers.
    if unsafe { symbols::listen::original()(door, 8) } != 0 {
        return None;
    }
    let at = shadow::local(door)?;
    let len = address::fill(at, family, &mut storage) as socklen_t;
    // SAFETY: `storage` is readable for `len` bytes.
    if unsafe { symbols::connect::original()(theirs, (&raw const storage).cast(), len) } != 0 {
        return None;
    }
    let wanted = shadow::local(theirs)?;
    // Somebody else may have found the door.
    for _ in 0..64 {
        let nowhere = std::ptr::null_mut();
        // SAFETY: no address is asked for.
        let found = unsafe {
            symbols::accept4::original()(door, nowhere, std::ptr::null_mut(), SOCK_CLOEXEC)
        };
        if found < 0 {
            return None;
        }
        if shadow::remote(found) == Some(wanted) {
            return Some(found);
        }
        close(found);
    }
    None
}

/// Starts the relay, as nobody's child.
fn start(connection: c_int, theirs: c_int, ours: c_int) -> bool {
    // SAFETY: no arguments.
    let fork = || process::forked(|| unsafe { symbols::fork::original()() });
    let between = fork();
    if between == 0 {
        let relay = fork();
        if relay == 0 {
            alone(connection, theirs, ours);
        }
        // SAFETY: ends this process without the program's exit handlers.
        unsafe { libc::_exit(i32::from(relay < 0)) };
    }
    let mut status = 0;
    // SAFETY: `status` is writable.
    while between > 0 && unsafe { libc::waitpid(between, &raw mut status, 0) } < 0 {
        if crate::errno::last() != rustix::io::Errno::INTR {
            // The program's handler was faster: the relay's start is not known to have failed.
            return true;
        }
    }
    between > 0 && status == 0
}

/// The relay's process: nothing of the program's stays open, no signal of the program's ends it.
fn alone(connection: c_int, theirs: c_int, ours: c_int) -> ! {
    // SAFETY: plain data; the set is filled before it is used.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::setsid();
    }
    close(theirs);
    let (low, high) = (connection.min(ours), connection.max(ours));
    for (first, last) in [(0, low - 1), (low + 1, high - 1), (high + 1, c_int::MAX)] {
        if first <= last {
            // SAFETY: plain integers.
            unsafe { family::fd::close_range(first as u32, last as u32, 0) };
        }
    }
    // The connection is still accelerated, unless the fork has found no slot for this process.
    if matches!(fdtable::get(connection), Entry::Tcp(_)) {
        carry(connection, ours);
    }
    // SAFETY: ends this process without the program's exit handlers.
    unsafe { libc::_exit(0) }
}

/// One direction.
struct Way {
    from: c_int,
    to: c_int,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Nothing more comes.
    ended: bool,
    /// And the other side knows.
    told: bool,
}

impl Way {
    fn new(from: c_int, to: c_int) -> Self {
        Self {
            from,
            to,
            bytes: vec![0; ROOM],
            start: 0,
            end: 0,
            ended: false,
            told: false,
        }
    }

    /// What this way waits for on each of its descriptors.
    fn interest(&self) -> (i16, i16) {
        match (self.start < self.end, self.ended) {
            (true, _) => (0, POLLOUT),
            (false, false) => (POLLIN, 0),
            (false, true) => (0, 0),
        }
    }

    /// Moves what can be moved; `false`: an end is broken.
    fn turn(&mut self) -> bool {
        if self.start == self.end && !self.ended {
            let to = self.bytes.as_mut_ptr().cast();
            // SAFETY: the buffer's own length.
            let got = unsafe { family::recv::recv(self.from, to, ROOM, MSG_DONTWAIT) };
            match got {
                0 => self.ended = true,
                1.. => (self.start, self.end) = (0, got as usize),
                _ if !is_later() => return false,
                _ => {}
            }
        }
        if self.start < self.end {
            let rest = &self.bytes[self.start..self.end];
            let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
            // SAFETY: the buffer's own bytes.
            let put =
                unsafe { family::send::send(self.to, rest.as_ptr().cast(), rest.len(), flags) };
            match put {
                0.. => self.start += put as usize,
                _ if !is_later() => return false,
                _ => {}
            }
        }
        if self.ended && self.start == self.end && !self.told {
            self.told = true;
            // SAFETY: plain integers.
            unsafe { family::socket::shutdown(self.to, SHUT_WR) };
        }
        true
    }
}

/// Whether the last call would have waited.
fn is_later() -> bool {
    matches!(
        crate::errno::last(),
        rustix::io::Errno::AGAIN | rustix::io::Errno::INTR
    )
}

/// Carries bytes both ways until both have ended or one is broken.
fn carry(connection: c_int, ours: c_int) {
    let (mut out, mut back) = (Way::new(ours, connection), Way::new(connection, ours));
    while !(out.told && back.told) {
        if !(out.turn() && back.turn()) {
            // A broken end breaks the other one.
            reset(connection);
            reset(ours);
            break;
        }
        let (ours_in, connection_out) = out.interest();
        let (connection_in, ours_out) = back.interest();
        let mut fds = [
            entry(ours, ours_in | ours_out),
            entry(connection, connection_in | connection_out),
        ];
        if !(out.told && back.told) {
            // SAFETY: an array of two.
            unsafe { family::poll::poll(fds.as_mut_ptr(), 2, -1) };
        }
    }
    for fd in [connection, ours] {
        // SAFETY: plain integer.
        unsafe { family::fd::close(fd) };
    }
}

/// An entry of poll; a descriptor of which nothing is wanted is not looked at, else its hang-up
/// would end every wait.
fn entry(fd: c_int, events: i16) -> pollfd {
    pollfd {
        fd: if events == 0 { -1 } else { fd },
        events,
        revents: 0,
    }
}

/// The next close resets.
fn reset(fd: c_int) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let len = size_of::<libc::linger>() as socklen_t;
    // SAFETY: the value is readable for its size.
    unsafe {
        family::socket::setsockopt(
            fd,
            SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            len,
        );
    }
}
