//! ioctl: FIONBIO and FIONREAD are ours to answer, all else is the shadow's.

#![expect(unsafe_code, reason = "UNSAFETY: reads and writes the caller's int")]

use std::ffi::{c_int, c_ulong};

use bypass_stack::{TcpOptions, TcpState};
use libc::size_t;
use rustix::io::Errno;

use crate::address::is_nowhere;
use crate::errno::{Answer, from_c, to_int};
use crate::fdtable::{self, Entry};
use crate::{context, decide, shadow, symbols, tcp};

/// Of asm-generic/sockios.h.
const FIOSETOWN: c_ulong = 0x8901;
const SIOCSPGRP: c_ulong = 0x8902;

pub unsafe fn ioctl(fd: c_int, request: c_ulong, argument: size_t) -> c_int {
    if fdtable::falls_through(fd) {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::ioctl::original()(fd, request, argument) };
    }
    // SAFETY: the caller's argument.
    if let Some(answer) = unsafe { stream(fd, request, argument) } {
        return to_int(answer);
    }
    // SAFETY: the caller's arguments. The kernel answers first: it validates the pointer.
    let result = unsafe { symbols::ioctl::original()(fd, request, argument) };
    if result != 0 {
        return result;
    }
    match request {
        libc::FIONREAD => {
            // SAFETY: the kernel has just written this int.
            unsafe { waiting_bytes(fd, argument as *mut c_int) };
        }
        libc::FIONBIO => nonblocking_changed(fd),
        // SAFETY: the kernel has just read this int.
        FIOSETOWN | SIOCSPGRP if unsafe { (argument as *const c_int).read_unaligned() } != 0 => {
            tcp::foreign::signals(fd);
        }
        _ => {}
    }
    result
}

/// What is ours to answer about a connection or listener; `None`: the shadow answers.
///
/// # Safety
/// `argument` points to an int of the caller, for the requests that take one.
unsafe fn stream(fd: c_int, request: c_ulong, argument: size_t) -> Option<Answer> {
    /// `SIOCOUTQNSD` of linux/sockios.h.
    const SIOCOUTQNSD: c_ulong = 0x894b;
    /// `SIOCATMARK` of asm-generic/sockios.h.
    const SIOCATMARK: c_ulong = 0x8905;
    let entry = fdtable::get(fd);
    let ours = [libc::FIONREAD, libc::TIOCOUTQ, SIOCOUTQNSD, SIOCATMARK];
    if entry == Entry::Guest && ours.contains(&request) {
        // SAFETY: the caller's arguments.
        let call = || unsafe { symbols::ioctl::original()(fd, request, argument) };
        let answer = tcp::guest::unmoved(fd, || from_c(call() as isize));
        // SAFETY: the caller's promise.
        return answer.or_else(|| unsafe { stream(fd, request, argument) });
    }
    let (Entry::Tcp(endpoint) | Entry::Listener(endpoint)) = entry else {
        return None;
    };
    let pointer = argument as *mut c_int;
    if request == libc::FIONBIO {
        if is_nowhere(pointer) {
            return Some(Err(Errno::FAULT));
        }
        // SAFETY: the caller's promise.
        let on = unsafe { pointer.read_unaligned() } != 0;
        tcp::options::note_nonblocking(endpoint, on);
        // A listener's shadow never blocks; a connection's has the program's flag.
        return matches!(entry, Entry::Listener(_)).then_some(Ok(0));
    }
    if !ours.contains(&request) {
        return None;
    }
    if matches!(entry, Entry::Listener(_)) {
        return (request != SIOCATMARK).then_some(Err(Errno::INVAL));
    }
    let status = tcp::with_stack(|_, locked, now| {
        if matches!(request, libc::FIONREAD | SIOCATMARK) {
            locked.pump(now);
        }
        let at_mark = tcp::urgent::is_at_mark(locked, endpoint);
        let inline = tcp::options_of(locked, endpoint)?.has(TcpOptions::OOBINLINE);
        Some((locked.stack().tcp_status(endpoint).ok()?, at_mark, inline))
    });
    let Some(Some((status, at_mark, inline))) = status else {
        return (!tcp::handover::moved(fd, endpoint)).then_some(Err(Errno::INVAL));
    };
    if is_nowhere(pointer) {
        return Some(Err(Errno::FAULT));
    }
    let value = match request {
        // What Fast Open has brought is not told before the handshake is over
        // (net/ipv4/tcp.c:tcp_inq).
        libc::FIONREAD if status.state == TcpState::SynReceived => 0,
        // Up to the mark, even when the reader is there (the same).
        libc::FIONREAD if at_mark && !inline => 0,
        libc::FIONREAD => status.readable,
        libc::TIOCOUTQ => status.unacked,
        SIOCOUTQNSD => status.unsent,
        _ => u32::from(at_mark),
    };
    // SAFETY: the caller's promise.
    unsafe { pointer.write_unaligned(value as c_int) };
    Some(Ok(0))
}

/// The size of the next datagram: the stack's when it has one, else what the kernel wrote.
///
/// # Safety
/// `to` is writable.
unsafe fn waiting_bytes(fd: c_int, to: *mut c_int) {
    if let Entry::Udp(endpoint) = decide::ready(fd)
        && let Some(joined) = context::joined()
        && let Ok(mut locked) = joined.attachment.lock()
    {
        if matches!(locked.stack().udp_front(endpoint), Ok(None)) {
            locked.pump(bypass_runtime::clock::now());
        }
        if let Ok(Some(datagram)) = locked.stack().udp_front(endpoint) {
            // SAFETY: the caller's promise.
            unsafe { to.write(datagram.len as c_int) };
        }
    }
}

/// Follows O_NONBLOCK after a change of the open file description.
pub fn nonblocking_changed(fd: c_int) {
    if fdtable::look(fd) == Entry::Guest {
        tcp::guest::settle();
    }
    if let Entry::Tcp(endpoint) = fdtable::get(fd) {
        tcp::options::note_nonblocking(endpoint, shadow::is_nonblocking(fd));
    }
    if let Entry::Udp(endpoint) = fdtable::get(fd)
        && let Some(joined) = context::joined()
    {
        let now = shadow::is_nonblocking(fd);
        if let Ok(mut locked) = joined.attachment.lock()
            && let Ok(options) = locked.stack().udp_options(endpoint)
        {
            if now {
                options.shim_flags |= shadow::flags::NONBLOCKING;
            } else {
                options.shim_flags &= !shadow::flags::NONBLOCKING;
            }
        }
    }
}
