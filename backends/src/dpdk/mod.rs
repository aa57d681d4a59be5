//! DPDK: a port in a process of its own, the relay, which serves a stack and the kernel.
//!
//! ```text
//!   program ── rings, bell ──┐                            ┌── DPDK (libbypass_dpdk.so) ── port
//!   program ── rings, bell ──┤ one stack ───── relay ─────┤
//!                                                         └── TAP ── kernel
//!   daemon ── filters (shared tables), control ────┘
//! ```
//!
//! The environment of DPDK is in the relay only: programs map two descriptors, as with AF_XDP, and
//! fork, die and come back as they like. docs/adr/0018-dpdk.md says why.
//!
//! The relay's side: [`Plugin`] opens the port, [`Relay`] works. The daemon's side: [`Link`] and
//! [`DpdkNic`]. The stack's side: [`DpdkQueuePair`].
//!
//! What is absent: more than one queue pair of a port, frames without a copy, checksum and
//! segmentation offloads, filters in the card (rte_flow), VLAN tags.

mod board;
mod control;
mod memory;
mod nic;
mod plugin;
mod queue_pair;
mod relay;
mod rings;
mod steering;
mod tap;

pub use board::read as read_board;
pub use control::claim;
pub use nic::{Answer, DpdkNic, Link, OpenQueue};
pub use plugin::{LIBRARY, Plugin, Port};
pub use queue_pair::DpdkQueuePair;
pub use relay::{Relay, tell_failure};
pub use steering::Filters;

/// What became of frames, in the order in which the relay counts them: as of the XDP program.
pub use crate::af_xdp::COUNTERS;
