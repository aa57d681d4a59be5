//! The port's face in the kernel: where a frame goes that is not the stack's.
//!
//! A port that the kernel does not know gets a TAP device. Of a bifurcated one the kernel has the
//! interface: only frames come here that a filter of the card matches. Those that are the kernel's
//! all the same (a segment of a connection that the kernel has, on a port whose listener is led
//! here) go back by the loopback device, where the kernel takes them as any other for its
//! addresses.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: a packet socket's address, for which rustix has no type"
)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::port::Facts;
use super::tap::Tap;

/// Where what is the kernel's goes to and comes from.
#[derive(Debug)]
pub(super) enum Face {
    /// A device of its own.
    Tap(Tap),
    /// The interface that it has, and a way back.
    Kernel {
        /// Interface index.
        ifindex: u32,
        /// A packet socket.
        back: OwnedFd,
    },
}

/// `struct sockaddr_ll` of linux/if_packet.h.
#[repr(C)]
struct Address {
    family: u16,
    protocol: u16,
    ifindex: i32,
    hardware: u16,
    kind: u8,
    length: u8,
    mac: [u8; 8],
}

/// Index of the loopback device in every network namespace.
const LOOPBACK: i32 = 1;
const PACKET: u16 = 17;
const HEADER: usize = 14;

unsafe extern "C" {
    fn sendto(
        socket: i32,
        bytes: *const u8,
        length: usize,
        flags: i32,
        to: *const Address,
        size: u32,
    ) -> isize;
}

impl Face {
    /// The face of a port, under this name.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn of(name: &str, facts: &Facts) -> Result<Self, String> {
        let failed = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
        if !facts.is_bifurcated {
            return Tap::open(name, facts.mac, facts.mtu)
                .map(Self::Tap)
                .map_err(failed("making the TAP device of the exception path"));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let back = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, None)
            .map_err(failed("making the packet socket of the way back"))?;
        let ifindex =
            netdevice::name_to_index(&back, name).map_err(failed("looking for the interface"))?;
        Ok(Self::Kernel { ifindex, back })
    }

    /// Interface index.
    pub(super) fn ifindex(&self) -> u32 {
        match self {
            Self::Tap(tap) => tap.ifindex,
            Self::Kernel { ifindex, .. } => *ifindex,
        }
    }

    /// The device, if it is one of our own.
    pub(super) fn tap(&self) -> Option<&Tap> {
        match self {
            Self::Tap(tap) => Some(tap),
            Self::Kernel { .. } => None,
        }
    }

    /// Gives the kernel a frame. One for which it has no room is lost, as in the driver of a card.
    pub(super) fn give(&self, frame: &[u8]) {
        match self {
            Self::Tap(tap) => {
                tap.write(frame);
            }
            Self::Kernel { back, .. } => give_back(back, frame),
        }
    }
}

fn give_back(socket: &OwnedFd, frame: &[u8]) {
    let (Some(packet), Some(kind)) = (frame.get(HEADER..), frame.get(12..HEADER)) else {
        return;
    };
    let to = Address {
        family: PACKET,
        protocol: u16::from_ne_bytes([kind[0], kind[1]]),
        ifindex: LOOPBACK,
        hardware: 0,
        kind: 0,
        length: 6,
        mac: [0; 8],
    };
    let (fd, size) = (socket.as_fd().as_raw_fd(), size_of::<Address>() as u32);
    // SAFETY: bytes and an address of these lengths.
    let _ = unsafe { sendto(fd, packet.as_ptr(), packet.len(), 0, &raw const to, size) };
}
