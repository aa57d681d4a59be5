//! The sans-IO protocol engine: one *stack* on one flat *stack image*.
//!
//! In go frames (as chunks of packet memory), calls of the socket layer and the time; out come
//! datagrams, frames to send, wake-ups and counters. Nothing here makes a system call, allocates,
//! holds a pointer between calls or knows a NIC.
//!
//! All state lives in the image: a header and fixed-capacity slabs linked by `u32` index, which
//! several processes map shared and use one after the other under a lock that the mapper keeps
//! (see `bypass-runtime`). [`Stack`] is a view of those bytes. Because any process of the group
//! may have died in the middle of an update or written rubbish, **no content of the image, no
//! frame and no call may panic**: every index is checked, every walk is bounded by the capacity of
//! its slab, and what does not fit is counted ([`Counter`]) and left alone.
//!
//! What is here: UDP over IPv4 and IPv6 ([`Stack::udp_open`] and the rest), processes and waiters
//! ([`Stack::add_process`]), TCP ([`tcp`]), the route and neighbour table ([`cplane`]), and a
//! read-only view for tools ([`inspect`]). What is absent on purpose: ARP, ND, ICMP, fragments,
//! multicast and loopback, which stay with the kernel.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(test)]
extern crate std;

mod chunk;
mod counters;
pub mod cplane;
mod demux;
mod find;
mod hairpin;
mod holders;
mod image;
pub mod inspect;
mod process;
mod readiness;
mod receive_buffer;
mod send;
mod stack;
pub mod tcp;
mod types;
mod udp;
mod watcher;
pub mod wire;

pub use chunk::EachInRings;
pub use counters::{Counter, Counters, DropReason};
pub use cplane::NextHop;
pub use hairpin::Hairpin;
pub use image::{
    Capacities, HEAD_BYTES, LAYOUT_VERSION, LayoutError, MAGIC, MAX_CHUNK_SIZE, MIN_CHUNK_SIZE,
    QueuePairInfo, UdpOptions, image_bytes, stated_bytes,
};
pub use readiness::{Readiness, event};
pub use send::SendError;
pub use stack::{FrameOutcome, RxChecksum, RxFrame, Stack, Transmit};
pub use tcp::{
    CannotMove, Cargo, ConnectionRecord, Ended, FirstWrite, FlowChange, Hold, Kept, NoPort, Notice,
    NoticeKind, Part, PortView, Shortage, Shutdown, Span, TcpDefaults, TcpError, TcpInfo, TcpInput,
    TcpOpen, TcpOptions, TcpState, TcpStatus, Twin,
};
pub use types::{
    ChunkId, Duration, EndpointId, Family, Instant, IpAddress, Memory, PROCESSES, ProcessId,
    QUEUE_PAIR_HAIRPIN, QUEUE_PAIRS, STAMP_AT, SocketAddress, Stale, WAITERS, WATCHERS, WaiterId,
    WaiterSet, WatcherId,
};
pub use udp::{Datagram, OpenError, UdpOpen, UdpStatus};
