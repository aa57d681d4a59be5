//! Sends that connect: with MSG_FASTOPEN, and the first write after a connect with
//! TCP_FASTOPEN_CONNECT (net/ipv4/tcp.c:tcp_sendmsg_fastopen).
//!
//! A socket that blocks waits for the handshake and then writes the rest; one that does not is told
//! how much the SYN has taken.

#![expect(unsafe_code, reason = "UNSAFETY: the buffers that a msghdr names")]

use std::ffi::c_int;

use bypass_stack::{EndpointId, FirstWrite, TcpDefaults, TcpOptions, TcpState};
use libc::{MSG_DONTWAIT, MSG_FASTOPEN, MSG_NOSIGNAL, msghdr};
use rustix::io::Errno;

use super::notices::Sending;
use super::{connect, defaults, flags, send, with_stack};
use crate::address::{self, Given};
use crate::context;
use crate::errno::Answer;

/// Writes to the pieces that it is called with.
type Fill<'a> = &'a mut dyn FnMut(&mut [u8]);

/// A send with MSG_FASTOPEN on a TCP socket that is not connected. `None`: the kernel sends it.
///
/// # Safety
/// `message` describes buffers that the caller may read.
pub unsafe fn connect(fd: c_int, message: &msghdr, flags: c_int) -> Option<Answer> {
    // SAFETY: the caller's promise.
    let judged = unsafe { send::judged(message) };
    let (total, mut gather, stamps) = match judged {
        Ok(judged) => judged,
        Err(errno) => return Some(Err(errno)),
    };
    // SAFETY: the name was judged.
    let to = unsafe { address::read(message.msg_name.cast(), message.msg_namelen) };
    let Given::Inet(remote) = to else {
        return None;
    };
    // The settings are the stack's.
    context::join().ok()?;
    defaults::follow();
    if !is_allowed() {
        return None;
    }
    let fill: Fill<'_> = &mut |to| gather.copy(to);
    let waits = flags & MSG_DONTWAIT == 0 && !crate::shadow::is_nonblocking(fd);
    let first = FirstWrite {
        len: total,
        fill: &mut *fill,
        waits,
    };
    Some(match connect::begin_with(fd, remote, Some(first))? {
        Ok(begun) => {
            let mut sending = Sending::begins(begun.endpoint, flags, stamps).unwrap_or_default();
            let begins = (begun.taken, waits);
            let answer = go_on(fd, begun.endpoint, begins, (total, flags), fill);
            if answer.is_ok_and(|sent| sent > 0) {
                sending.ends(begun.endpoint);
            }
            answer
        }
        Err(errno) => Err(errno),
    })
}

/// What MSG_FASTOPEN adds to a send on a connection: it is a connect again. The send itself is then
/// as any other.
///
/// # Errors
/// As the kernel's.
pub fn on_connection(
    fd: c_int,
    endpoint: EndpointId,
    to: Given,
    flags: c_int,
) -> Result<(), Errno> {
    defaults::follow();
    if !is_allowed() || to == Given::Foreign {
        return Err(Errno::OPNOTSUPP);
    }
    let looked = with_stack(|_, locked, _| {
        let options = super::options_of(locked, endpoint);
        Some((locked.stack().tcp_status(endpoint).ok()?, options?))
    });
    let (status, options) = looked.flatten().ok_or(Errno::BADF)?;
    if status.deferred {
        return Ok(());
    }
    let waits = flags & MSG_DONTWAIT == 0 && !options.has(TcpOptions::NONBLOCKING);
    let is_being_made = matches!(status.state, TcpState::SynSent | TcpState::SynReceived);
    if is_being_made && !waits {
        return Err(Errno::ALREADY);
    }
    if options.shim_flags & flags::CONNECTING == 0 {
        return Err(Errno::ISCONN);
    }
    connect::wait_for(fd, endpoint).map(|_| ())
}

/// The first write on a connection whose SYN waits for it.
///
/// # Errors
/// As the kernel's.
pub fn first(
    fd: c_int,
    endpoint: EndpointId,
    (total, flags): (usize, c_int),
    fill: Fill<'_>,
) -> Answer {
    let started = with_stack(|_, locked, now| {
        let options = super::options_of(locked, endpoint)?;
        let waits = flags & MSG_DONTWAIT == 0 && !options.has(TcpOptions::NONBLOCKING);
        let (stack, packets) = locked.parts();
        let first = FirstWrite {
            len: total,
            fill: &mut *fill,
            waits,
        };
        let taken = stack.tcp_send_first(packets, endpoint, first, now);
        Some((taken, waits))
    });
    match started.flatten() {
        Some((Ok(taken), waits)) => go_on(fd, endpoint, (taken, waits), (total, flags), fill),
        // Another thread was faster.
        Some((Err(_), _)) => send::bytes(
            (fd, endpoint),
            total,
            flags & !MSG_FASTOPEN,
            &mut Sending::default(),
            fill,
        ),
        None => Err(Errno::BADF),
    }
}

/// Whether connections of ours may have Fast Open at all (bit 1 of net.ipv4.tcp_fastopen).
fn is_allowed() -> bool {
    let bits = with_stack(|_, locked, _| locked.stack().tcp_defaults().fast_open);
    bits.is_some_and(|bits| bits & TcpDefaults::FAST_OPEN_CLIENT != 0)
}

/// The SYN has left, with the first `taken` bytes.
fn go_on(
    fd: c_int,
    endpoint: EndpointId,
    (taken, waits): (usize, bool),
    (total, flags): (usize, c_int),
    fill: Fill<'_>,
) -> Answer {
    let so_far = |errno| match taken {
        0 => Err(errno),
        taken => Ok(taken as isize),
    };
    if !waits {
        connect::set_connecting(endpoint, true);
        return so_far(Errno::INPROGRESS);
    }
    match connect::wait_for(fd, endpoint) {
        Ok(_) => {}
        Err(Errno::INPROGRESS) => return so_far(Errno::INPROGRESS),
        Err(errno) => return Err(errno),
    }
    if taken >= total {
        return Ok(taken as isize);
    }
    // Where some bytes were taken there is no error to signal.
    let quiet = if taken > 0 { MSG_NOSIGNAL } else { 0 };
    let flags = flags & !MSG_FASTOPEN | quiet;
    let rest = send::bytes(
        (fd, endpoint),
        total - taken,
        flags,
        &mut Sending::default(),
        fill,
    );
    rest.map(|sent| sent + taken as isize).or_else(so_far)
}
