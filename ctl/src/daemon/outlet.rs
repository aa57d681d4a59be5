//! Packets that the daemon puts into the kernel's receive path, by raw sockets over the loopback
//! interface: what was on its way to an endpoint whose socket is the kernel's now.

use bypass_stack::{IpAddress, wire};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

/// Raw sockets, opened when the first packet of their family leaves.
#[derive(Default)]
pub(super) struct Outlets {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Outlets {
    /// Sends the packet of a frame to one of the host's own addresses.
    pub(super) fn send(&mut self, local: IpAddress, frame: &[u8]) -> Result<(), Errno> {
        let (family, slot) = if local.is_v4() {
            (AddressFamily::INET, &mut self.v4)
        } else {
            (AddressFamily::INET6, &mut self.v6)
        };
        let outlet = match slot {
            Some(outlet) => outlet,
            None => slot.insert(socket_with(
                family,
                SocketType::RAW,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                Some(ipproto::RAW),
            )?),
        };
        let packet = frame.get(wire::ethernet::HEADER..).unwrap_or_default();
        let to = std::net::SocketAddr::new(local.into(), 0);
        sendto(&*outlet, packet, SendFlags::empty(), &to).map(drop)
    }
}
