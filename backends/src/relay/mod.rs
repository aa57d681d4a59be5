//! The relay: a process that has a port and lends it to the programs of a stack.
//!
//! ```text
//!   program ── rings, bell ──┐                            ┌── port (DPDK, or a card by ef_vi)
//!   program ── rings, bell ──┤ one stack ───── relay ─────┤
//!                                                         └── the kernel
//!   daemon ── filters (shared tables), control ────┘
//! ```
//!
//! What drives the port is in the relay only: programs map two descriptors, as with AF_XDP, and
//! fork, die and come back as they like. docs/adr/0018-dpdk.md says why.
//!
//! The relay's side: [`Relay`] works on a [`Port`]. The daemon's side: [`Link`] and [`RelayNic`].
//! The stack's side: [`RelayQueuePair`].
//!
//! What is absent: more than one queue pair of a port, segmentation offload, VLAN tags.

mod board;
mod control;
mod face;
mod hands;
mod in_place;
mod memory;
mod nic;
mod physical;
mod port;
mod queue_pair;
mod rings;
mod roster;
mod rules;
mod steering;
mod tap;
mod worker;

pub use board::read as read_board;
pub use control::claim;
pub use memory::{Memory, STAMP_AT};
pub use nic::{Answer, Link, OpenQueue, PATIENCE, RelayNic, Unsteered};
pub use physical::{PHYSICAL, PhysicalRules};
pub use port::{CardFilter, End, Facts, InCard, InPlace, Lent, Offloads, Port, Told};
pub use queue_pair::RelayQueuePair;
pub use rings::{Departure, is_in_place};
pub use rules::Rules;
pub use steering::Filters;
pub use worker::{Relay, tell_failure};

/// What became of frames, in the order in which the relay counts them: as of the XDP program.
pub use crate::af_xdp::COUNTERS;
