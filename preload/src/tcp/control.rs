//! Control messages of a connection: what a send brings is judged, a receive brings times and
//! TCP_INQ.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the control buffer that a msghdr names"
)]

use std::ffi::c_int;

use bypass_runtime::error_queue::TX_RECORD;
use libc::{MSG_CMSG_CLOEXEC, MSG_CTRUNC, SOL_SOCKET, SOL_TCP, msghdr};
use rustix::io::Errno;

use super::notices::Arrival;
use crate::address::is_nowhere;
use crate::shadow::new_names;
use crate::udp::asked::messages;
use crate::udp::cmsg::Writer;

/// `TCP_CM_INQ` of linux/tcp.h.
const INQ: c_int = 36;
/// A control buffer is smaller than this (net.core.optmem_max as Linux sets it).
const LIMIT: usize = 131_072;

/// Judges what a send brings, as net/socket.c:____sys_sendmsg and net/core/sock.c:sock_cmsg_send
/// do. None of it changes what is sent; returns the flags of SO_TIMESTAMPING, if it has some.
///
/// # Errors
/// `ENOBUFS`, `EFAULT`, `EINVAL`.
///
/// # Safety
/// The buffer is the caller's to read.
#[cold]
pub unsafe fn judge(message: &msghdr) -> Result<Option<u32>, Errno> {
    if message.msg_controllen >= LIMIT {
        return Err(Errno::NOBUFS);
    }
    if is_nowhere(message.msg_control) {
        return Err(Errno::FAULT);
    }
    // SAFETY: the caller's promise.
    let buffer = unsafe {
        std::slice::from_raw_parts(message.msg_control.cast::<u8>(), message.msg_controllen)
    };
    let mut stamps = None;
    for one in messages(buffer) {
        let data = one.data.ok_or(Errno::INVAL)?;
        if one.level != SOL_SOCKET {
            continue;
        }
        if !is_known(one.kind, data.len()) {
            return Err(Errno::INVAL);
        }
        if matches!(one.kind, libc::SO_TIMESTAMPING | new_names::TIMESTAMPING) {
            let flags = data.first_chunk().map_or(0, |it| u32::from_ne_bytes(*it));
            if flags & !TX_RECORD != 0 {
                return Err(Errno::INVAL);
            }
            stamps = Some(flags);
        }
    }
    Ok(stamps)
}

/// Whether the kernel knows a message of SOL_SOCKET to a connection.
fn is_known(kind: c_int, len: usize) -> bool {
    match kind {
        libc::SCM_RIGHTS | libc::SCM_CREDENTIALS => true,
        libc::SO_MARK | libc::SO_PRIORITY | libc::SO_TIMESTAMPING | new_names::TIMESTAMPING => {
            len == size_of::<c_int>()
        }
        _ => false,
    }
}

/// What a receive leaves in the message beside the bytes: when the last of them have come, and how
/// many bytes are behind them (`inq`), if the program has asked for it
/// (net/ipv4/tcp.c:tcp_recvmsg).
///
/// # Safety
/// The buffer is the caller's to write.
pub unsafe fn received(
    message: &mut msghdr,
    (arrival, inq): (Option<Arrival>, Option<u32>),
    flags: c_int,
) {
    message.msg_namelen = 0;
    message.msg_flags = flags & MSG_CMSG_CLOEXEC;
    if arrival.is_none() && inq.is_none() {
        message.msg_controllen = 0;
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        put(message, |writer| {
            if let Some(arrival) = arrival {
                arrival.put(writer);
            }
            if let Some(inq) = inq {
                writer.put(SOL_TCP, INQ, &inq.to_ne_bytes());
            }
        });
    }
}

/// Fills the control buffer of a message with what `fill` puts; its flags and length say how far.
///
/// # Safety
/// The buffer is the caller's to write.
pub unsafe fn put(message: &mut msghdr, fill: impl FnOnce(&mut Writer<'_>)) {
    let buffer = if is_nowhere(message.msg_control) {
        &mut []
    } else {
        // SAFETY: the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(message.msg_control.cast::<u8>(), message.msg_controllen)
        }
    };
    let mut writer = Writer::new(buffer);
    fill(&mut writer);
    if writer.truncated() {
        message.msg_flags |= MSG_CTRUNC;
    }
    message.msg_controllen = writer.used();
}
