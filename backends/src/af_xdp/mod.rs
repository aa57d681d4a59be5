//! AF_XDP: a queue of any Linux interface, shared with the kernel by the steering program.
//!
//! ```text
//!             ┌──────────── steering program (XDP) ────────────┐
//!   NIC ────► │ flows, listeners, grants + flow table of the   │
//!             │ stack: slot ► xsks[slot, RX queue]             │ ── match ──► XSK ► RX ring
//!             └──────────────────────┬─────────────────────────┘
//!                                    └── everything else ──► kernel
//! ```
//!
//! The daemon's side: [`Nic`] loads and attaches the program, opens queues, writes filters. The
//! client's side: [`AfXdpQueuePair`] maps the rings of a queue through its descriptor alone, and
//! [`FlowTable`] the stack's TCP flows, so an unprivileged program can use what it was given. Each
//! module uses only what stands to its left: `syscall` → `bpf` → `flow_table` → `program`;
//! `netdev`, `umem` → `xsk` → `nic`; `own_queue` → `ntuple` → `nic`;
//! `crate::ring` → `queue_pair`.
//!
//! What is absent: frames of more than one chunk (they pass to the kernel), VLAN tags, metadata
//! offloads.

mod bpf;
mod error;
mod flow_table;
mod netdev;
mod nic;
mod ntuple;
mod own_queue;
mod program;
mod queue_pair;
mod syscall;
mod umem;
mod unforked;
mod xsk;

#[cfg(test)]
mod tests;

pub use error::NicError;
pub use flow_table::{FlowEntry, FlowTable, TableFull, TcpFlow};
pub(crate) use flow_table::{FlowKey, halves, port_bit};
pub use netdev::{Interface, interfaces};
pub use nic::{
    FilterCounters, FilterKey, Mode, Nic, NicConfig, QUEUES_PER_SLOT, RING_ENTRIES, SLOTS,
};
pub(crate) use ntuple::Ntuple;
pub use own_queue::Rule;
pub(crate) use own_queue::{Card, Destination, enter, of_function, try_rule, withdraw};
pub use program::{COUNTERS, Flow, Listener, Target};
pub use queue_pair::AfXdpQueuePair;
pub use umem::{HEADROOM, PacketMemory, longest_frame};
pub use unforked::Unforked;
pub use xsk::{OpenedQueue, is_zero_copy, ring_doorbell};
