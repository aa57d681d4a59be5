//! Socket options that `rustix` does not offer: who may have a filter, which queue an XSK is, and
//! what a connection is put together with.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: getsockopt and setsockopt, and a descriptor that the former returns"
)]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

// asm-generic/socket.h.
pub(super) const SOL_SOCKET: c_int = 1;
/// IPPROTO_TCP.
pub(super) const IPPROTO_TCP: c_int = 6;
pub(super) const SO_RCVLOWAT: c_int = 18;
const SO_BINDTOIFINDEX: c_int = 62;
const SO_COOKIE: c_int = 57;
const SO_NETNS_COOKIE: c_int = 71;
const SO_PEERPIDFD: c_int = 77;

/// linux/tcp.h.
pub(super) const CONGESTION: Name = (IPPROTO_TCP, 13);

unsafe extern "C" {
    fn getsockopt(
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        length: *mut u32,
    ) -> c_int;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: u32)
    -> c_int;
}

/// Upper half of the mark that [`tag_queue`] leaves.
const QUEUE_TAG: u32 = 0x4259_0000;

/// Level and name of an option.
pub(super) type Name = (c_int, c_int);

/// Reads an option of `N` bytes of the socket level.
fn option<const N: usize>(fd: impl AsFd, name: c_int) -> Result<[u8; N], Errno> {
    option_at(fd, (SOL_SOCKET, name))
}

/// Reads an option of `N` bytes.
fn option_at<const N: usize>(fd: impl AsFd, (level, name): Name) -> Result<[u8; N], Errno> {
    let mut value = [0_u8; N];
    let mut length = N as u32;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has that many, and the
    // new length to `length`; both live across the call.
    let result = unsafe {
        getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(last_error());
    }
    if length as usize == N {
        Ok(value)
    } else {
        Err(Errno::PROTO)
    }
}

fn last_error() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    Errno::from_raw_os_error(code.max(1))
}

/// Notes in an XSK which queue pair it is and how many entries its rings have (a power of two),
/// for a daemon that finds it later: the kernel tells nobody. The note is in SO_RCVLOWAT, which
/// AF_XDP stores and never uses.
pub(super) fn tag_queue(xsk: impl AsFd, index: u8, ring_entries: u32) -> Result<(), Errno> {
    let value = QUEUE_TAG | ring_entries.trailing_zeros() << 8 | u32::from(index);
    set(xsk, (SOL_SOCKET, SO_RCVLOWAT), &value.to_ne_bytes())
}

/// Sets an option, named by level and name, to these bytes.
pub(super) fn set(fd: impl AsFd, (level, name): Name, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `value`, which lives across the call, to its length.
    let result = unsafe {
        setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as u32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// State of a TCP socket by Linux's numbers (the first byte of TCP_INFO, tcp(7)).
pub(super) fn tcp_state(fd: impl AsFd) -> Result<u8, Errno> {
    /// TCP_INFO of linux/tcp.h.
    const TCP_INFO: c_int = 11;
    option_at::<1>(fd, (IPPROTO_TCP, TCP_INFO)).map(|[state]| state)
}

/// Reads an option, as much as there is room for; how many bytes.
pub(super) fn get(fd: impl AsFd, (level, name): Name, into: &mut [u8]) -> Result<usize, Errno> {
    let mut length = into.len() as u32;
    // SAFETY: the kernel writes at most `length` bytes to `into`, which has that many, and the new
    // length to `length`; both live across the call.
    let result = unsafe {
        getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            into.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(length as usize)
    } else {
        Err(last_error())
    }
}

/// Reads an option that is a number.
pub(super) fn number(fd: impl AsFd, name: Name) -> Result<u32, Errno> {
    option_at(fd, name).map(u32::from_ne_bytes)
}

/// SO_COOKIE: the socket's identity.
pub(super) fn cookie(fd: impl AsFd) -> Result<u64, Errno> {
    option(fd, SO_COOKIE).map(u64::from_ne_bytes)
}

/// Bytes that wait by one of the ioctls of tcp(7) and linux/sockios.h.
pub(super) fn waiting(fd: impl AsFd, request: u32) -> Result<u32, Errno> {
    let mut bytes: c_int = 0;
    // SAFETY: these requests write one int, which lives across the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request.into(), &raw mut bytes) };
    if result == 0 {
        Ok(bytes.unsigned_abs())
    } else {
        Err(last_error())
    }
}

/// Whether somebody gets signals about the socket (F_SETOWN).
pub(super) fn is_owned(fd: impl AsFd) -> bool {
    // SAFETY: F_GETOWN takes no argument.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETOWN) != 0 }
}

/// TCP_CONGESTION, padded with NULs.
pub(super) fn congestion(fd: impl AsFd) -> Result<[u8; 16], Errno> {
    option_at(fd, CONGESTION)
}

/// SO_RCVTIMEO or SO_SNDTIMEO in milliseconds, rounded up.
pub(super) fn timeout_ms(fd: impl AsFd, name: Name) -> Result<u32, Errno> {
    let bytes = option_at::<16>(fd, name)?;
    let (seconds, micros) = bytes.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_ne_bytes);
    let ms = number(seconds)
        .saturating_mul(1000)
        .saturating_add((number(micros) + 999) / 1000);
    Ok(u32::try_from(ms).unwrap_or(u32::MAX))
}

/// What [`tag_queue`] noted: index and ring entries.
pub(super) fn queue_tag(xsk: impl AsFd) -> Option<(u8, u32)> {
    let value = u32::from_ne_bytes(option(xsk, SO_RCVLOWAT).ok()?);
    let [index, power, ..] = value.to_le_bytes();
    let entries = 1_u32.checked_shl(u32::from(power))?;
    (value & 0xffff_0000 == QUEUE_TAG).then_some((index, entries))
}

/// Interface that the socket is bound to (SO_BINDTODEVICE); 0 = none.
pub(super) fn bound_interface(fd: impl AsFd) -> Result<u32, Errno> {
    option(fd, SO_BINDTOIFINDEX).map(u32::from_ne_bytes)
}

/// The network namespace that the socket was made in, as a number that is never used again.
pub(super) fn namespace_cookie(fd: impl AsFd) -> Result<u64, Errno> {
    option(fd, SO_NETNS_COOKIE).map(u64::from_ne_bytes)
}

/// A pidfd of the process that connected a UNIX socket: unlike its pid never another's.
pub(super) fn peer_pidfd(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    let number = option(fd, SO_PEERPIDFD).map(c_int::from_ne_bytes)?;
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the kernel has just installed this descriptor for us (close-on-exec), and nobody
    // else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
