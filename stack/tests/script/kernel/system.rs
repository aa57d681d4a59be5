//! What the standard library and `rustix` do not offer: a network namespace for this thread, a TUN
//! device, socket options by number.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: unshare, ioctl, getsockopt and setsockopt on memory of our own"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

/// `struct ifreq` as TUNSETIFF reads it (linux/if_tun.h).
#[repr(C)]
struct IfRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

const IFF_TUN: i16 = 1;
const IFF_NO_PI: i16 = 0x1000;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Moves this thread into a network namespace of its own, which goes when the thread and its
/// descriptors are gone.
pub fn new_namespace() -> io::Result<()> {
    // SAFETY: no pointers; only this thread's namespace changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(|_| ())
}

/// A TUN device `tun0` of this namespace; reads and writes are IP packets and do not block.
pub fn tun() -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = IfRequest {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    request.name[..4].copy_from_slice(b"tun0");
    // SAFETY: the request has the layout and size that the kernel reads and writes.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

/// setsockopt of plain bytes.
pub fn set_option(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    let len = value.len() as libc::socklen_t;
    // SAFETY: pointer and length are of one slice, which is only read.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) }).map(|_| ())
}

/// getsockopt into plain bytes: how many the kernel wrote.
pub fn get_option(fd: impl AsFd, level: i32, name: i32, into: &mut [u8]) -> io::Result<usize> {
    let fd = fd.as_fd().as_raw_fd();
    let mut len = into.len() as libc::socklen_t;
    // SAFETY: pointer and length are of one slice, and the kernel writes no more than that.
    let result =
        unsafe { libc::getsockopt(fd, level, name, into.as_mut_ptr().cast(), &raw mut len) };
    check(result)?;
    Ok(len as usize)
}

/// An ioctl that writes an `int`.
pub fn ioctl_int(fd: impl AsFd, request: libc::c_ulong) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: the requests of this module's users write one int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}
