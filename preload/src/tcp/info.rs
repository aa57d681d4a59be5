//! TCP_INFO, as long as the kernel's.

#![expect(unsafe_code, reason = "UNSAFETY: libc's originals on sockets")]

use std::ffi::c_int;

use bypass_stack::EndpointId;
use libc::{AF_INET, IPPROTO_TCP, SOCK_CLOEXEC, SOCK_STREAM, TCP_INFO, socklen_t};
use once_cell::sync::Lazy;
use zerocopy::IntoBytes;

use super::with_stack;
use crate::symbols;

/// More than any kernel tells.
const ROOM: usize = 512;
/// Where `tcpi_unacked` is: of a listener, the connections that wait.
const WAITING: usize = 24;

/// How much the kernel tells, bytes: 248 to Linux 6.17, 280 with AccECN.
static LENGTH: Lazy<usize> = Lazy::new(|| {
    // SAFETY: plain integers.
    let fd = unsafe { symbols::socket::original()(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) };
    let length = ask(fd).len();
    // SAFETY: our own descriptor.
    unsafe { symbols::close::original()(fd) };
    length
});

/// What the kernel tells of a socket; nothing when it does not.
fn ask(fd: c_int) -> Vec<u8> {
    let mut told = vec![0; ROOM];
    let mut len = ROOM as socklen_t;
    // SAFETY: `told` is writable for `len` bytes.
    let result = unsafe {
        symbols::getsockopt::original()(
            fd,
            IPPROTO_TCP,
            TCP_INFO,
            told.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    told.truncate(if result == 0 { len as usize } else { 0 });
    told
}

/// Of a connection: what the engine counts, and zeros for what it does not know (AccECN).
pub fn of_connection(endpoint: EndpointId) -> Option<Vec<u8>> {
    let info = with_stack(|_, locked, now| {
        locked.pump(now);
        locked.stack().tcp_info(endpoint, now)
    });
    let mut told = info?.ok()?.as_bytes().to_vec();
    told.resize(*LENGTH, 0);
    Some(told)
}

/// Of a listener: the kernel's, with the connections that wait here added.
pub fn of_listener(fd: c_int, endpoint: EndpointId) -> Option<Vec<u8>> {
    let status = with_stack(|_, locked, now| {
        locked.pump(now);
        locked.stack().tcp_status(endpoint)
    });
    let waiting = status?.ok()?.accept_queue;
    let mut told = ask(fd);
    let place = told.get_mut(WAITING..WAITING + 4)?;
    let kernels = u32::from_ne_bytes(place.try_into().ok()?);
    place.copy_from_slice(&kernels.saturating_add(waiting).to_ne_bytes());
    Some(told)
}
