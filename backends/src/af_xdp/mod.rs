//! AF_XDP: a queue of any Linux interface, shared with the kernel by the steering program.
//!
//! The daemon side: [`Nic`] loads and attaches the program, opens queues, writes filters. The
//! client
//! side: [`AfXdpQueuePair`] maps the rings of a queue through its descriptor alone, so an
//! unprivileged
//! program can use what it was given. Each uses only what stands to its left:
//! `syscall` → `bpf` → `program`, `netdev` → `nic`; `ring` → `queue_pair`.

mod bpf;
mod netdev;
mod nic;
mod program;
mod queue_pair;
mod ring;
mod xdp_option;

pub use netdev::{Interface, interfaces};
pub use nic::{
    FilterCounters, FilterKey, Mode, Nic, NicConfig, NicError, PacketMemory, QUEUES_PER_SLOT,
    RING_ENTRIES,
};
pub use program::{COUNTERS, Flow, Listener, Target};
pub use queue_pair::AfXdpQueuePair;
