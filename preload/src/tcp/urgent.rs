//! Urgent data of a connection: MSG_OOB and SIOCATMARK (net/ipv4/tcp.c:tcp_recv_urg, tcp_ioctl).

use std::ffi::c_int;

use bypass_runtime::attachment::Locked;
use bypass_stack::{EndpointId, Instant, TcpError, TcpState};
use libc::{MSG_OOB, MSG_PEEK, MSG_TRUNC, msghdr};
use rustix::io::Errno;

use super::receive::Scatter;
use super::with_stack;
use crate::errno::Answer;

/// Takes the urgent byte. It never waits, whatever the socket does otherwise (tcp(7)).
///
/// # Errors
/// `EINVAL` when there is none or it is in the stream, `EAGAIN` when it has been announced only.
pub fn receive(
    endpoint: EndpointId,
    message: &mut msghdr,
    scatter: &mut Scatter<'_>,
    flags: c_int,
) -> Answer {
    let peek = flags & MSG_PEEK != 0;
    let taken = with_stack(|_, locked, now| take(locked, endpoint, peek, now));
    let byte = match taken {
        Some((Ok(byte), _)) => byte,
        // Announced, and nothing will come any more.
        Some((Err(TcpError::WouldBlock), true)) => return Ok(0),
        Some((Err(TcpError::WouldBlock), false)) | None => return Err(Errno::AGAIN),
        Some((Err(TcpError::Errno(errno)), _)) => return Err(Errno::from_raw_os_error(errno)),
        Some((Err(TcpError::Stale), _)) => return Err(Errno::BADF),
    };
    message.msg_namelen = 0;
    message.msg_controllen = 0;
    message.msg_flags = MSG_OOB;
    if scatter.left() == 0 {
        message.msg_flags |= MSG_TRUNC;
        return Ok(0);
    }
    scatter.put(&[byte]);
    Ok(1)
}

/// The byte, looking at the queues when it is not there; and whether the stream has ended.
fn take(
    locked: &mut Locked<'_>,
    endpoint: EndpointId,
    peek: bool,
    now: Instant,
) -> (Result<u8, TcpError>, bool) {
    let mut taken = locked.stack().tcp_receive_urgent(endpoint, peek);
    if taken.is_err() {
        locked.pump(now);
        taken = locked.stack().tcp_receive_urgent(endpoint, peek);
    }
    let status = locked.stack().tcp_status(endpoint);
    let ended = status.is_ok_and(|status| status.eof || status.state == TcpState::Closed);
    (taken, ended)
}

/// Whether the next byte is the urgent one, as SIOCATMARK says it.
pub fn is_at_mark(locked: &mut Locked<'_>, endpoint: EndpointId) -> bool {
    locked.stack().tcp_at_mark(endpoint).unwrap_or(false)
}
