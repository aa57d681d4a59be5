//! ICMP errors about connections of the stacks.
//!
//! ICMP is the kernel's, and stays so: nothing is steered. Two raw sockets get a copy of every
//! error of this network namespace beside the kernel, which knows sockets of UDP, and so our
//! shadows, but has no connection for a segment of ours. What is quoted names the connection;
//! whether it is believed is the engine's decision (`stack/src/tcp/icmp.rs`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bypass_runtime::clock;
use bypass_stack::wire::icmp::{self, IcmpError};
use bypass_stack::wire::tcp::TCP;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, ipproto, recv, socket_with,
};

use super::counters::Counter;
use super::server::Server;
use super::sockopt;

/// Messages taken in one round, so that a flood of them holds nobody up.
const MESSAGES: usize = 64;
/// As much of a message as anybody quotes: routers keep to 576 bytes, or to 1280 for IPv6.
const LONGEST: usize = 1280;
/// Types of ICMP that are heard: unreachable, time exceeded, parameter problem.
const HEARD_V4: u32 = 1 << 3 | 1 << 11 | 1 << 12;
/// Types of ICMPv6: unreachable, too big, time exceeded, parameter problem.
const HEARD_V6: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;
/// SOL_RAW and ICMP_FILTER of linux/icmp.h: a bit set is a type not heard.
const ICMP_FILTER: sockopt::Name = (255, 1);
/// IPPROTO_ICMPV6 and ICMPV6_FILTER of linux/icmpv6.h: the same for 256 types.
const ICMPV6_FILTER: sockopt::Name = (58, 1);

/// A family's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ear {
    V4,
    V6,
}

/// The raw sockets; `None` where the kernel has refused one.
#[derive(Debug)]
pub(super) struct Ears {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Ears {
    /// Opens what can be opened.
    pub(super) fn open() -> Self {
        let mut types = [u32::MAX; 8];
        types[0] = !HEARD_V6;
        let types = types.map(u32::to_ne_bytes);
        Self {
            v4: raw(AddressFamily::INET, ipproto::ICMP)
                .filter(|fd| sockopt::set(fd, ICMP_FILTER, &(!HEARD_V4).to_ne_bytes()).is_ok()),
            v6: raw(AddressFamily::INET6, ipproto::ICMPV6)
                .filter(|fd| sockopt::set(fd, ICMPV6_FILTER, types.as_flattened()).is_ok()),
        }
    }

    /// Those that are open.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (Ear, BorrowedFd<'_>)> {
        let both = [(Ear::V4, &self.v4), (Ear::V6, &self.v6)];
        let open = both.into_iter();
        open.filter_map(|(ear, socket)| Some((ear, socket.as_ref()?.as_fd())))
    }

    /// The next message, if there is one: the error in it, if it is one.
    fn next(&self, ear: Ear) -> Option<Option<IcmpError>> {
        let (_, socket) = self.sockets().find(|(which, _)| *which == ear)?;
        let mut buffer = [0; LONGEST];
        let len = match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((len, _)) => len,
            Err(Errno::AGAIN) => return None,
            Err(_) => return Some(None),
        };
        let message = buffer.get(..len)?;
        Some(match ear {
            Ear::V4 => icmp::parse_v4(message),
            Ear::V6 => icmp::parse_v6(message),
        })
    }
}

fn raw(family: AddressFamily, protocol: Protocol) -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::RAW, flags, Some(protocol)).ok()
}

impl Server {
    /// Takes the ICMP errors that have come.
    pub(super) fn hear(&mut self, ear: Ear) {
        for _ in 0..MESSAGES {
            let Some(message) = self.ears.next(ear) else {
                return;
            };
            if let Some(error) = message.filter(|error| error.protocol == TCP) {
                self.tell(&error);
            }
        }
    }

    /// Tells the stack that has the connection. One whose lock is not to be had misses it, as if
    /// the network had lost the message.
    fn tell(&mut self, error: &IcmpError) {
        for stack in self.stacks.iter() {
            if !self.filters.grants_tcp(stack.uid, error.local) {
                continue;
            }
            let Ok(mut locked) = stack.lock() else {
                self.counters.add(Counter::StackLocksBusy);
                continue;
            };
            let (state, packets) = locked.parts();
            if state.tcp_icmp(packets, error, clock::now()) {
                self.counters.add(Counter::IcmpErrors);
                return;
            }
        }
    }
}
