//! Facts about interfaces, by ioctl on a socket of our own (netdevice(7)) and ethtool's ioctl.

#![expect(unsafe_code, reason = "UNSAFETY: ioctl with ifreq")]

use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCGIFMTU: Opcode = 0x8921;
const SIOCGIFHWADDR: Opcode = 0x8927;
const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `IFF_UP`.
const UP: u16 = 1;
/// `IFF_LOOPBACK`.
const LOOPBACK: u16 = 8;

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// Driver's name; empty when it does not say.
    pub driver: String,
    /// RX queues now in use.
    pub queues: u32,
    /// Administratively up.
    pub up: bool,
    /// A loopback interface.
    pub loopback: bool,
}

impl Interface {
    /// Whether frames come from kernels of this same host, which leave checksums partial.
    #[must_use]
    pub fn is_local_only(&self) -> bool {
        matches!(self.driver.as_str(), "veth" | "tun")
    }
}

/// `struct ifreq`: name and a union of 24 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Request {
    name: [u8; 16],
    data: [u8; 24],
}

struct Call<'a> {
    opcode: Opcode,
    request: &'a mut Request,
}

// SAFETY: the opcode is one that takes a struct ifreq, which `request` is.
unsafe impl Ioctl for Call<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.request).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

fn ask(socket: &OwnedFd, name: &str, opcode: Opcode) -> Result<[u8; 24], Errno> {
    let mut request = named(name);
    // SAFETY: see `Call`.
    unsafe {
        ioctl(
            socket,
            Call {
                opcode,
                request: &mut request,
            },
        )
    }?;
    Ok(request.data)
}

fn named(name: &str) -> Request {
    let mut request = Request {
        name: [0; 16],
        data: [0; 24],
    };
    for (to, from) in request.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    request
}

fn ethtool<const BYTES: usize>(
    socket: &OwnedFd,
    name: &str,
    command: u32,
) -> Result<[u8; BYTES], Errno> {
    let mut buffer = [0_u8; BYTES];
    buffer[..4].copy_from_slice(&command.to_ne_bytes());
    ethtool_call(socket, name, &mut buffer)?;
    Ok(buffer)
}

/// Calls ethtool's ioctl with a buffer of the size that the command at its start has.
pub(super) fn ethtool_call(socket: &OwnedFd, name: &str, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut request = named(name);
    request.data[..8].copy_from_slice(&(buffer.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: the request points at a buffer of the command's size.
    unsafe {
        ioctl(
            socket,
            Call {
                opcode: SIOCETHTOOL,
                request: &mut request,
            },
        )
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

pub(super) fn query_socket() -> Result<OwnedFd, Errno> {
    socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Facts about one interface of this network namespace.
///
/// # Errors
/// `ENODEV` (or `ENXIO`) when there is none.
pub(super) fn interface(ifindex: u32) -> Result<Interface, Errno> {
    let socket = query_socket()?;
    let name = rustix::net::netdevice::index_to_name(socket.as_fd(), ifindex)?;
    let flags = ask(&socket, &name, SIOCGIFFLAGS)?;
    let flags = u16::from_ne_bytes([flags[0], flags[1]]);
    let hardware = ask(&socket, &name, SIOCGIFHWADDR)?;
    let mut mac = [0; 6];
    mac.copy_from_slice(&hardware[2..8]);
    let driver = ethtool::<196>(&socket, &name, ETHTOOL_GDRVINFO)
        .map(|info| {
            let text: Vec<u8> = info[4..36]
                .iter()
                .copied()
                .take_while(|&byte| byte != 0)
                .collect();
            String::from_utf8_lossy(&text).into_owned()
        })
        .unwrap_or_default();
    // rx_count and combined_count of struct ethtool_channels.
    let queues = ethtool::<36>(&socket, &name, ETHTOOL_GCHANNELS)
        .map_or(0, |channels| word(&channels, 20) + word(&channels, 32));
    Ok(Interface {
        ifindex,
        mac,
        mtu: word(&ask(&socket, &name, SIOCGIFMTU)?, 0),
        driver,
        queues: queues.max(1),
        up: flags & UP != 0,
        loopback: flags & LOOPBACK != 0,
        name,
    })
}

/// Every interface of this network namespace.
#[must_use]
pub fn interfaces() -> Vec<Interface> {
    // The thread's own: /proc/self would be the namespace of the process's first thread.
    let Ok(file) = rustix::fs::open(
        "/proc/thread-self/net/dev",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    ) else {
        return Vec::new();
    };
    let mut text = Vec::new();
    let mut buffer = [0_u8; 4096];
    while let Ok(count) = rustix::io::read(&file, &mut buffer) {
        if count == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count]);
    }
    let Ok(socket) = query_socket() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&text)
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim()))
        .filter_map(|name| rustix::net::netdevice::name_to_index(socket.as_fd(), name).ok())
        .filter_map(|ifindex| interface(ifindex).ok())
        .collect()
}
