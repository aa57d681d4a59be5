//! Which flows the steering must lead to us: the stack says what changes, its owner carries it into
//! the NIC's or the XDP program's table before the next frame leaves.

use crate::counters::Counter;
use crate::stack::Stack;
use crate::types::{IpAddress, SocketAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Changes that wait to be carried out at most; the owner takes them after every batch of frames,
/// which is far shorter.
pub(crate) const CHANGES: usize = 512;

/// A change of the set of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowChange {
    /// The flow begins (`true`) or has ended.
    pub begins: bool,
    /// Our address.
    pub local: SocketAddress,
    /// The peer's address.
    pub remote: SocketAddress,
}

/// A change as it waits in the image.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Waiting {
    local_ip: IpAddress,
    remote_ip: IpAddress,
    local_port: u16,
    remote_port: u16,
    begins: u32,
}

/// The ring of changes.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct FlowChanges {
    waiting: [Waiting; CHANGES],
    written: u32,
    taken: u32,
}

impl FlowChanges {
    /// How many there have been; wraps.
    pub(crate) fn written(&self) -> u32 {
        self.written
    }
}

impl Stack<'_> {
    pub(crate) fn flow_begins(&mut self, local: SocketAddress, remote: SocketAddress) {
        self.flow_change(local, remote, true);
    }

    pub(crate) fn flow_ended(&mut self, local: SocketAddress, remote: SocketAddress) {
        self.flow_change(local, remote, false);
    }

    fn flow_change(&mut self, local: SocketAddress, remote: SocketAddress, begins: bool) {
        let ring = &mut self.head.flow_changes;
        if ring.written.wrapping_sub(ring.taken) as usize >= CHANGES {
            self.count(Counter::TcpFlowChangesLost);
            return;
        }
        let at = ring.written as usize % CHANGES;
        if let Some(slot) = ring.waiting.get_mut(at) {
            *slot = Waiting {
                local_ip: local.ip,
                remote_ip: remote.ip,
                local_port: local.port,
                remote_port: remote.port,
                begins: u32::from(begins),
            };
        }
        ring.written = ring.written.wrapping_add(1);
    }

    /// Whether the stack has something that takes the segments of this flow: a connection, a
    /// request or a time wait.
    #[must_use]
    pub fn has_flow(&self, local: SocketAddress, remote: SocketAddress) -> bool {
        let is_mini = || {
            let mini = self.find_mini(&local, &remote)?;
            let mini = self.minis.get(mini as usize)?;
            (mini.kind != super::mini::kind::LEFT).then_some(())
        };
        self.find_connection(&local, &remote).is_some() || is_mini().is_some()
    }

    /// The next change of the set of flows, oldest first. Take all before frames leave.
    pub fn take_flow_change(&mut self) -> Option<FlowChange> {
        let ring = &mut self.head.flow_changes;
        if ring.taken == ring.written {
            return None;
        }
        if ring.written.wrapping_sub(ring.taken) as usize > CHANGES {
            // Not a count of ours: whoever takes all must come to an end.
            ring.taken = ring.written;
            self.count(Counter::CorruptList);
            return None;
        }
        let at = ring.taken as usize % CHANGES;
        ring.taken = ring.taken.wrapping_add(1);
        let waiting = ring.waiting.get(at)?;
        Some(FlowChange {
            begins: waiting.begins != 0,
            local: SocketAddress::new(waiting.local_ip, waiting.local_port),
            remote: SocketAddress::new(waiting.remote_ip, waiting.remote_port),
        })
    }
}
