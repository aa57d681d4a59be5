//! The TCP flows of a stack: which segments its queues get, entered without a system call.
//!
//! A flow is entered *before* the segment that opens it leaves, SYN or SYN-ACK, and removed after
//! the last one; its local address and port must be granted by the daemon
//! ([`bypass_proto::control::RequestKind::AddFilter`]), else the entry does nothing. All writes are
//! made under the stack lock. The daemon removes flows whose endpoint is gone.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: passes on what the table's owner promises"
)]

use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;

use bypass_backends::af_xdp::{FlowEntry, FlowTable, TableFull, TcpFlow, Unforked};
use bypass_stack::{EndpointId, IpAddress, SocketAddress};
use rustix::io::Errno;

/// The mapped table of a stack.
#[derive(Debug)]
pub struct Flows {
    table: FlowTable,
}

/// A flow that is steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its place, for [`Flows::remove_slot`].
    pub slot: u32,
    /// Local address and port.
    pub local: SocketAddress,
    /// Remote address and port.
    pub remote: SocketAddress,
    /// The connection's endpoint.
    pub endpoint: EndpointId,
    /// Frames redirected.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Flows {
    /// Maps the table that [`bypass_proto::control::ReplyKind::Attached`] brings.
    ///
    /// # Errors
    /// `EINVAL` when it is none, or what `mmap` answers.
    pub fn map(fd: impl AsFd) -> Result<Self, Errno> {
        let table = FlowTable::map(fd)?;
        Ok(Self { table })
    }

    /// As [`FlowTable::leave_out_of_forks`].
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// As there.
    pub(crate) unsafe fn leave_out_of_forks(&mut self, fd: RawFd) -> Result<Arc<Unforked>, Errno> {
        // SAFETY: as promised.
        unsafe { self.table.leave_out_of_forks(fd) }
    }

    /// Leads the segments of a connection to the stack; its place. One that is there already
    /// keeps its place and gets the new endpoint. Addresses are specific, IPv4 as v4-mapped.
    ///
    /// # Errors
    /// [`TableFull`]: then the connection cannot be the stack's.
    pub fn insert(
        &self,
        local: SocketAddress,
        remote: SocketAddress,
        endpoint: EndpointId,
    ) -> Result<u32, TableFull> {
        self.table.insert(&flow(local, remote), owner(endpoint))
    }

    /// Leaves the SYNs of these ports to the kernel, and no others:
    /// [`bypass_stack::Stack::pressed`].
    pub fn press(&self, ports: u64) {
        self.table.mark(ports);
    }

    /// Leaves the segments of a connection to the kernel again; whether they were led here.
    pub fn remove(&self, local: SocketAddress, remote: SocketAddress) -> bool {
        self.table.remove(&flow(local, remote))
    }

    /// The same by the place that [`Self::insert`] gave, if it still is this endpoint's.
    pub fn remove_slot(&self, slot: u32, endpoint: EndpointId) -> bool {
        self.table.remove_slot(slot, owner(endpoint))
    }

    /// The place of a connection.
    #[must_use]
    pub fn find(&self, local: SocketAddress, remote: SocketAddress) -> Option<u32> {
        self.table.find(&flow(local, remote))
    }

    /// Every flow. Without the stack lock one that comes or goes may be missing or be read half.
    pub fn iter(&self) -> impl Iterator<Item = Flow> {
        self.table.entries().map(view)
    }
}

fn flow(local: SocketAddress, remote: SocketAddress) -> TcpFlow {
    TcpFlow {
        local: local.ip.0,
        remote: remote.ip.0,
        local_port: local.port,
        remote_port: remote.port,
    }
}

fn owner(endpoint: EndpointId) -> u64 {
    u64::from(endpoint.generation) << 32 | u64::from(endpoint.index)
}

fn view(entry: FlowEntry) -> Flow {
    let TcpFlow {
        local,
        remote,
        local_port,
        remote_port,
    } = entry.flow;
    Flow {
        slot: entry.slot,
        local: SocketAddress::new(IpAddress(local), local_port),
        remote: SocketAddress::new(IpAddress(remote), remote_port),
        endpoint: EndpointId {
            index: entry.owner as u32,
            generation: (entry.owner >> 32) as u32,
        },
        packets: entry.packets,
        bytes: entry.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_and_steering_mean_the_same_ports() {
        let fd = FlowTable::create(8, 3).expect("this test needs CAP_BPF");
        let flows = Flows::map(&fd).expect("map");
        for port in [0, 1, 22, 80, 443, 6379, 8080, 8443, 40_000, 65_535] {
            flows.press(bypass_stack::tcp::pressed_bit(port));
            assert!(flows.table.is_marked(port));
            flows.press(!bypass_stack::tcp::pressed_bit(port));
            assert!(!flows.table.is_marked(port));
        }
    }

    #[test]
    fn a_flow_is_its_endpoints() {
        let fd = FlowTable::create(8, 3).expect("this test needs CAP_BPF");
        let flows = Flows::map(&fd).expect("map");
        let local = SocketAddress::new(IpAddress::from_v4([198, 18, 9, 1]), 80);
        let remote = SocketAddress::new(IpAddress::from_v4([198, 18, 9, 2]), 5000);
        let endpoint = |generation| EndpointId {
            index: 5,
            generation,
        };
        let slot = flows.insert(local, remote, endpoint(2)).expect("room");
        assert_eq!(flows.find(local, remote), Some(slot));
        let listed: Vec<Flow> = Flows::map(&fd).expect("map").iter().collect();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].local, listed[0].remote), (local, remote));
        assert_eq!((listed[0].slot, listed[0].endpoint), (slot, endpoint(2)));
        assert!(!flows.remove_slot(slot, endpoint(1)));
        assert!(flows.remove_slot(slot, endpoint(2)));
        assert!(!flows.remove(local, remote));
        assert_eq!(flows.iter().count(), 0);
    }
}
