//! Connections that go on when the last program of their stack has ended become the kernel's: it
//! sends what was not acknowledged, waits for the peer's end and remembers the connection
//! afterwards, for as long as it does that for its own. So nobody serves the stack, and its queues
//! are free.
//!
//! What cannot move (in the middle of a handshake, or because the kernel refuses) stays in the
//! stack, which the daemon runs for a while ([`super::deputy`]).

use std::os::fd::OwnedFd;

use bypass_stack::{EndpointId, IpAddress};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::requests::Refused;
use super::server::Server;
use super::stacks::{Busy, StackEntry};

/// Connections that are moved at a time: others are served between two.
const MOST_MOVED: usize = 256;

impl Server {
    /// Gives the connections of a stack without a process to the kernel; whether some are left.
    pub(super) fn bequeath(&mut self, uid: u32) -> bool {
        let Some(stack) = self.stacks.get(uid) else {
            return false;
        };
        let Ok(orphans) = stack.orphans() else {
            return true;
        };
        for (endpoint, local) in orphans.iter().take(MOST_MOVED) {
            // One may have gone with its other end.
            let _ = self.give_away(uid, *endpoint, *local);
        }
        if orphans.len() > MOST_MOVED {
            self.chores.look_for_relatives(uid);
        }
        let left = self.stacks.get(uid).map(StackEntry::orphans);
        left.is_some_and(|left| left.map_or(true, |left| !left.is_empty()))
    }

    /// Makes a connection that of a kernel socket, which nobody has.
    fn give_away(&mut self, uid: u32, of: EndpointId, local: IpAddress) -> Result<(), Refused> {
        let socket = closed_socket(local)?;
        let held = socket.try_clone().map_err(|_| Errno::MFILE)?;
        self.transfer(uid, of, || Ok(socket.into()))?;
        // SO_LINGER of the program's: the daemon does not wait.
        let _ = sockopt::set_socket_linger(&held, None);
        Ok(())
    }
}

impl StackEntry {
    /// The connections that no process holds, with their local addresses.
    fn orphans(&self) -> Result<Vec<(EndpointId, IpAddress)>, Busy> {
        Ok(self.lock()?.stack().tcp_orphans().collect())
    }
}

/// A TCP socket for connections of this address.
pub(super) fn closed_socket(local: IpAddress) -> Result<OwnedFd, Errno> {
    let family = if local.is_v4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}
