//! A TAP device: frames that a namespace sends are read, frames that are written arrive there.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: one ioctl, for which rustix has no call"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::ioctl::{Setter, ioctl, opcode};

use crate::Result;

/// `struct ifreq` of linux/if.h, as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// IFF_TAP and IFF_NO_PI of linux/if_tun.h: whole frames, nothing before them.
const FLAGS: u16 = 0x0002 | 0x1000;
/// TUNSETIFF of linux/if_tun.h.
const TUNSETIFF: u32 = opcode::write::<i32>(b'T', 202);
/// O_NONBLOCK: also what makes the driver run XDP on what is written (tun_can_build_skb).
const NONBLOCK: i32 = 0o4000;

/// A TAP device of one queue; it goes with the value.
#[derive(Debug)]
pub(crate) struct Tap(File);

impl Tap {
    /// Makes a device of this name (at most 15 bytes) in the namespace of the caller.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(NONBLOCK);
        let file = options.open("/dev/net/tun")?;
        let mut request = Request {
            name: [0; 16],
            flags: FLAGS,
            rest: [0; 22],
        };
        let bytes = name.as_bytes();
        let place = request.name[..15].get_mut(..bytes.len());
        place.ok_or("name too long")?.copy_from_slice(bytes);
        // SAFETY: TUNSETIFF reads a `struct ifreq`, which `Request` is.
        unsafe {
            ioctl(&file, Setter::<TUNSETIFF, Request>::new(request))?;
        }
        Ok(Self(file))
    }

    /// Takes a frame that the device's namespace has sent; `None` when there is none now.
    pub(crate) fn read<'b>(&self, into: &'b mut [u8]) -> Option<&'b [u8]> {
        let length = io::Read::read(&mut &self.0, into).ok()?;
        into.get(..length)
    }

    /// Has a frame arrive at the device; whether it was taken.
    pub(crate) fn write(&self, frame: &[u8]) -> bool {
        io::Write::write(&mut &self.0, frame).is_ok()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
