//! shutdown, and the end of the last descriptor.

use std::ffi::c_int;

use bypass_runtime::clock;
use bypass_stack::{EndpointId, Shutdown, TcpError, TcpOptions, TcpState};
use rustix::io::Errno;

use super::{burst, with_stack};
use crate::errno::Answer;
use crate::wait::call::Call;
use crate::wait::{Interest, Target, Woken, wait};
use crate::{context, decide};

/// shutdown on a connection.
///
/// # Errors
/// `EINVAL`, `ENOTCONN`.
pub fn shutdown(endpoint: EndpointId, how: c_int) -> Answer {
    let how = match how {
        libc::SHUT_RD => Shutdown::Read,
        libc::SHUT_WR => Shutdown::Write,
        libc::SHUT_RDWR => Shutdown::Both,
        _ => return Err(Errno::INVAL),
    };
    burst::sends();
    let done = with_stack(|_, locked, now| {
        let (stack, packets) = locked.parts();
        stack.tcp_shutdown(packets, endpoint, how, now)
    });
    match done {
        Some(Ok(())) => Ok(0),
        Some(Err(TcpError::Errno(errno))) => Err(Errno::from_raw_os_error(errno)),
        Some(Err(TcpError::Stale)) => Err(Errno::NOTCONN),
        Some(Err(TcpError::WouldBlock)) | None => Err(Errno::AGAIN),
    }
}

/// This process's last descriptor of the endpoint is about to be closed; whether no other process
/// holds it either.
pub fn closed(endpoint: EndpointId) -> bool {
    burst::sends();
    let closed = with_stack(|_, locked, now| {
        let options = super::options_of(locked, endpoint);
        let (stack, packets) = locked.parts();
        let last = stack.tcp_close(packets, endpoint, context::process(), now);
        (last, options)
    });
    if let Some((true, Some(options))) = closed
        && options.has(TcpOptions::LINGER)
        && options.linger_s > 0
    {
        linger(endpoint, options.linger_s);
    }
    super::inherited::forget(endpoint);
    super::return_filters();
    closed.is_some_and(|(last, _)| last)
}

/// A listener's last descriptor is about to be closed. When that is done nobody accepts a
/// connection any more, the daemon's copy of the shadow neither.
pub fn listener_closed(endpoint: EndpointId) {
    if closed(endpoint) {
        decide::settle();
    }
}

/// SO_LINGER: waits until the peer has acknowledged everything, our FIN too
/// (net/core/stream.c:sk_stream_wait_close).
fn linger(endpoint: EndpointId, seconds: u32) {
    let Some(joined) = context::joined() else {
        return;
    };
    let span = u64::from(seconds).saturating_mul(1_000_000_000);
    let end = bypass_stack::Instant(clock::now().0.saturating_add(span));
    let mut fds = Vec::with_capacity(8);
    let mut call = Call::default();
    loop {
        let mut done = false;
        let mut interest = Interest {
            fds: &mut fds,
            targets: &|into| into.push(Target::Endpoint(endpoint)),
            ready: &mut |locked| {
                done = locked.stack().tcp_status(endpoint).is_ok_and(|status| {
                    matches!(
                        status.state,
                        TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck
                    )
                });
                done = !done;
                done
            },
            mask: None,
            sleeping: None,
            alone: None,
        };
        let woken = wait(joined, &mut interest, Some(end), &mut call);
        if done || woken != Woken::Ready {
            return;
        }
    }
}
