//! TCP_INFO, as long as the kernel's.

#![expect(unsafe_code, reason = "UNSAFETY: libc's originals on sockets")]

use std::ffi::c_int;

use bypass_stack::EndpointId;
use libc::{IPPROTO_TCP, TCP_INFO, socklen_t};
use zerocopy::IntoBytes;

use super::with_stack;
use crate::symbols;

/// More than any kernel tells: 248 bytes to Linux 6.17, 280 with AccECN.
const ROOM: usize = 512;
/// Where `tcpi_unacked` is: of a listener, the connections that wait.
const WAITING: usize = 24;

/// A TCP_INFO, and how many bytes of it the kernel tells.
#[derive(Debug)]
pub struct Told {
    bytes: [u8; ROOM],
    len: usize,
}

impl Told {
    /// As long as the kernel's.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// What the kernel tells of the shadow. `None`: it does not.
fn ask(fd: c_int) -> Option<Told> {
    let mut bytes = [0; ROOM];
    let mut len = ROOM as socklen_t;
    // SAFETY: `bytes` is writable for `len` bytes.
    let result = unsafe {
        symbols::getsockopt::original()(
            fd,
            IPPROTO_TCP,
            TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let len = len as usize;
    (result == 0).then_some(Told { bytes, len })
}

/// Of a connection: what the engine counts, and zeros for what it does not know (AccECN).
pub fn of_connection(fd: c_int, endpoint: EndpointId) -> Option<Told> {
    let info = with_stack(|_, locked, now| {
        locked.pump(now);
        locked.stack().tcp_info(endpoint, now)
    });
    let info = info?.ok()?;
    let mut told = ask(fd)?;
    told.bytes = [0; ROOM];
    let known = info.as_bytes();
    told.bytes.get_mut(..known.len())?.copy_from_slice(known);
    Some(told)
}

/// Of a listener: the kernel's, with the connections that wait here added.
pub fn of_listener(fd: c_int, endpoint: EndpointId) -> Option<Told> {
    let status = with_stack(|_, locked, now| {
        locked.pump(now);
        locked.stack().tcp_status(endpoint)
    });
    let waiting = status?.ok()?.accept_queue;
    let mut told = ask(fd)?;
    let place = told.bytes.get_mut(WAITING..WAITING + 4)?;
    let kernels = u32::from_ne_bytes(place.try_into().ok()?);
    place.copy_from_slice(&kernels.saturating_add(waiting).to_ne_bytes());
    Some(told)
}
