//! DPDK: a port by a small plugin in C, in a process of its own ([`crate::relay`]).
//!
//! The environment of DPDK is in that process only. docs/adr/0018-dpdk.md says why.
//!
//! What is absent: filters in the card (rte_flow).

mod plugin;

pub use plugin::{DpdkPort, LIBRARY, Plugin};
