//! The exception path: a TAP device that is the port's face in the kernel.
//!
//! It has the port's name, MAC address and MTU, and is made persistent: what the administrator has
//! set on it (addresses, routes) outlives a relay that dies.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the ioctls of tun and of interfaces, for which rustix has no call"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// `struct ifreq` of linux/if.h.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

/// IFF_TAP and IFF_NO_PI of linux/if_tun.h: whole frames, nothing before them.
const TAP: u16 = 0x0002 | 0x1000;
/// IFF_UP and IFF_MULTICAST of linux/if.h.
const UP: u16 = 0x0001 | 0x1000;
/// ARPHRD_ETHER of linux/if_arp.h.
const ETHERNET: u16 = 1;
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFMTU: Opcode = 0x8922;
const SIOCSIFHWADDR: Opcode = 0x8924;

/// The device, with one queue.
#[derive(Debug)]
pub(super) struct Tap {
    queue: OwnedFd,
    /// Interface index.
    pub(super) ifindex: u32,
    named: Request,
}

impl Tap {
    /// Makes the device, or takes the one that a relay before has left. It is down, or as it was.
    ///
    /// # Errors
    /// `EBUSY` when another process has it, `EINVAL` when it is no TAP device or the name is too
    /// long, `ENOENT` without the tun driver.
    pub(super) fn open(name: &str, mac: [u8; 6], mtu: u16) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let queue = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let mut named = Request {
            name: [0; 16],
            value: [0; 24],
        };
        let place = named
            .name
            .get_mut(..15)
            .and_then(|all| all.get_mut(..name.len()));
        place.ok_or(Errno::INVAL)?.copy_from_slice(name.as_bytes());
        // SAFETY: TUNSETIFF reads a `struct ifreq`.
        unsafe { set::<TUNSETIFF>(&queue, named.with(&TAP.to_ne_bytes())) }?;
        // SAFETY: TUNSETPERSIST takes a number and reads no memory.
        unsafe {
            ioctl(
                &queue,
                rustix::ioctl::IntegerSetter::<TUNSETPERSIST>::new_usize(1),
            )
        }?;
        let control = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let [family, address] = [ETHERNET.to_ne_bytes().to_vec(), mac.to_vec()];
        // SAFETY: reads a `struct ifreq`, as does the one below.
        unsafe { set::<SIOCSIFHWADDR>(&control, named.with(&[family, address].concat())) }?;
        // SAFETY: as above.
        unsafe { set::<SIOCSIFMTU>(&control, named.with(&i32::from(mtu).to_ne_bytes())) }?;
        let ifindex = netdevice::name_to_index(&control, name)?;
        Ok(Self {
            queue,
            ifindex,
            named,
        })
    }

    /// Brings it up.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn bring_up(&self) -> Result<(), Errno> {
        let control = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let request = self.named.with(&UP.to_ne_bytes());
        // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`.
        unsafe { set::<SIOCSIFFLAGS>(&control, request) }
    }

    /// Takes a frame that the kernel sends; `None` when there is none now.
    pub(super) fn read<'b>(&self, into: &'b mut [u8]) -> Option<&'b [u8]> {
        let length = rustix::io::read(&self.queue, &mut *into).ok()?;
        into.get(..length)
    }

    /// Gives the kernel a frame; whether it was taken.
    pub(super) fn write(&self, frame: &[u8]) -> bool {
        rustix::io::write(&self.queue, frame).is_ok()
    }

    /// Lets the device go with its last descriptor.
    pub(super) fn end(&self) {
        // SAFETY: takes a number and reads no memory.
        let _ = unsafe {
            ioctl(
                &self.queue,
                rustix::ioctl::IntegerSetter::<TUNSETPERSIST>::new_usize(0),
            )
        };
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl Request {
    fn with(mut self, value: &[u8]) -> Self {
        let room = self.value.len().min(value.len());
        self.value[..room].copy_from_slice(&value[..room]);
        self
    }
}

/// # Safety
/// `CODE` reads a `struct ifreq` and nothing else.
unsafe fn set<const CODE: Opcode>(fd: &OwnedFd, request: Request) -> Result<(), Errno> {
    // SAFETY: the caller's word; `Request` is a `struct ifreq`.
    unsafe { ioctl(fd, Setter::<CODE, Request>::new(request)) }
}
