//! getsockname and getpeername of a connection.

#![expect(unsafe_code, reason = "UNSAFETY: writes the caller's address")]

use bypass_stack::{EndpointId, TcpState};
use libc::{sockaddr, socklen_t};
use rustix::io::Errno;

use super::options::Room;
use super::with_stack;
use crate::address;
use crate::errno::Answer;

/// Which end of the connection is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// getsockname.
    Local,
    /// getpeername.
    Remote,
}

/// SO_PEERNAME: the peer's address, to whoever asks for no more than there is
/// (net/core/sock.c:sk_getsockopt). `None`: the connection is none of ours any more.
///
/// # Errors
/// `ENOTCONN`, `EINVAL`, `EFAULT`.
///
/// # Safety
/// `room` is the caller's to write.
pub unsafe fn peer(endpoint: EndpointId, room: Room) -> Option<Answer> {
    let status = with_stack(|_, locked, _| locked.stack().tcp_status(endpoint));
    let status = status?.ok()?;
    // Who is being connected to is told, other than by getpeername.
    if status.state == TcpState::Closed {
        return Some(Err(Errno::NOTCONN));
    }
    if address::is_nowhere(room.len) {
        return Some(Err(Errno::FAULT));
    }
    // SAFETY: plain integers; all zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let full = address::fill(status.remote, status.family, &mut storage);
    // SAFETY: the caller's length.
    if unsafe { room.len.read_unaligned() } as usize > full {
        return Some(Err(Errno::INVAL));
    }
    // SAFETY: `full` bytes of the storage are filled.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const storage).cast::<u8>(), full) };
    // SAFETY: the caller's promise.
    Some(unsafe { room.put(bytes) })
}

/// Writes the address of one end.
///
/// # Errors
/// `ENOTCONN` for the peer of a connection that is not made (net/ipv4/af_inet.c:inet_getname),
/// `EFAULT`, `EINVAL`.
///
/// # Safety
/// The address is the caller's to write.
pub unsafe fn of(endpoint: EndpointId, end: End, to: *mut sockaddr, len: *mut socklen_t) -> Answer {
    let status = with_stack(|_, locked, _| locked.stack().tcp_status(endpoint));
    let Some(Ok(status)) = status else {
        return Err(Errno::NOTCONN);
    };
    let unconnected = matches!(status.state, TcpState::Closed | TcpState::SynSent);
    if end == End::Remote && unconnected {
        return Err(Errno::NOTCONN);
    }
    if address::is_nowhere(len) {
        return Err(Errno::FAULT);
    }
    // SAFETY: the caller's length.
    let room = unsafe { len.read_unaligned() };
    if room.cast_signed() < 0 {
        return Err(Errno::INVAL);
    }
    if room != 0 && address::is_nowhere(to) {
        return Err(Errno::FAULT);
    }
    let from = match end {
        End::Local => status.local,
        End::Remote => status.remote,
    };
    // SAFETY: the caller's promise.
    unsafe { address::write(from, status.family, to, len) };
    Ok(0)
}
