//! DPDK: a port by a small plugin in C, in a process of its own ([`crate::relay`]).
//!
//! The environment of DPDK is in that process only. docs/adr/0018-dpdk.md says why.
//!
//! What is absent: a second queue, with which rules of the port (rte_flow) would spare it frames.

mod plugin;

pub use plugin::{DpdkPort, LIBRARY, Plugin};
