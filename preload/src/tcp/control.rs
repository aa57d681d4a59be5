//! Control messages of a connection: what a send brings is judged, a receive brings TCP_INQ.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the control buffer that a msghdr names"
)]

use std::ffi::c_int;

use libc::{MSG_CMSG_CLOEXEC, MSG_CTRUNC, SOL_SOCKET, SOL_TCP, msghdr};
use rustix::io::Errno;

use crate::address::is_nowhere;
use crate::udp::asked::messages;
use crate::udp::cmsg::Writer;

/// `TCP_CM_INQ` of linux/tcp.h.
const INQ: c_int = 36;
/// A control buffer is smaller than this (net.core.optmem_max as Linux sets it).
const LIMIT: usize = 131_072;

/// Judges what a send brings, as net/socket.c:____sys_sendmsg and net/core/sock.c:sock_cmsg_send
/// do. None of it changes what is sent.
///
/// # Errors
/// `ENOBUFS`, `EFAULT`, `EINVAL`.
///
/// # Safety
/// The buffer is the caller's to read.
#[cold]
pub unsafe fn judge(message: &msghdr) -> Result<(), Errno> {
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
    for one in messages(buffer) {
        let data = one.data.ok_or(Errno::INVAL)?;
        if one.level == SOL_SOCKET && !is_known(one.kind, data.len()) {
            return Err(Errno::INVAL);
        }
    }
    Ok(())
}

/// Whether the kernel knows a message of SOL_SOCKET to a connection.
fn is_known(kind: c_int, len: usize) -> bool {
    /// `SO_TIMESTAMPING_NEW` of asm-generic/socket.h.
    const TIMESTAMPING_NEW: c_int = 65;
    match kind {
        libc::SCM_RIGHTS | libc::SCM_CREDENTIALS => true,
        libc::SO_MARK | libc::SO_PRIORITY | libc::SO_TIMESTAMPING | TIMESTAMPING_NEW => {
            len == size_of::<c_int>()
        }
        _ => false,
    }
}

/// What a receive leaves in the message beside the bytes: how many bytes are behind them (`inq`),
/// if the program has set TCP_INQ.
///
/// # Safety
/// The buffer is the caller's to write.
pub unsafe fn received(message: &mut msghdr, inq: Option<u32>, flags: c_int) {
    message.msg_namelen = 0;
    message.msg_flags = flags & MSG_CMSG_CLOEXEC;
    let Some(inq) = inq else {
        message.msg_controllen = 0;
        return;
    };
    let buffer = if is_nowhere(message.msg_control) {
        &mut []
    } else {
        // SAFETY: the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(message.msg_control.cast::<u8>(), message.msg_controllen)
        }
    };
    let mut writer = Writer::new(buffer);
    writer.put(SOL_TCP, INQ, &inq.to_ne_bytes());
    if writer.truncated() {
        message.msg_flags |= MSG_CTRUNC;
    }
    message.msg_controllen = writer.used();
}
