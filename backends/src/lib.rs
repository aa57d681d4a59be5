//! Queue pairs: how frames come in and go out.
//!
//! [`QueuePair`] is the one contract that every backend serves: free chunks go to the NIC, filled
//! ones
//! come back, frames to send go out, sent chunks come back. [`af_xdp`] drives a queue of any Linux
//! interface; [`sim`] is a deterministic wire in memory for tests. Chunks are numbers here; memory
//! and
//! the right to touch it are the caller's.
//!
//! Raw system calls only: this code runs inside programs whose libc symbols are our own hooks.

pub mod af_xdp;
mod api;
pub mod sim;

pub use api::{QueueError, QueuePair, Received, Severity, Transmit};
