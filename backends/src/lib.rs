//! Queue pairs: how frames come in and go out.
//!
//! [`QueuePair`] is the one contract that every backend serves: free chunks go to the NIC, filled
//! ones come back, frames to send go out, sent chunks come back.
//!
//! ```text
//!               stack                        QueuePair                    NIC
//!   take_chunk ───────────────► fill ─────► [ fill ring       ] ─────►
//!   handle_frame ◄───────── receive ◄────── [ RX ring         ] ◄───── frames
//!   poll_transmit ──────────► submit ─────► [ TX ring         ] ─────► frames (after a doorbell)
//!   release_chunk ◄──────── complete ◄───── [ completion ring ] ◄─────
//! ```
//!
//! - [`af_xdp`] drives a queue of any Linux interface that takes an XDP program, veth included,
//!   and leaves to the kernel whatever no filter matches.
//! - [`relay`] lends a port that a process of its own has: of
//!   [`dpdk`], whose relay leaves to the kernel whatever no filter matches, by a TAP device; or of
//!   [`ef_vi`], a hidden queue of a Solarflare or AMD card by the system's libciul, to which the
//!   card's filters lead while the interface stays the kernel's.
//! - [`netlink`] asks the kernel about interfaces.
//! - [`sim`] is a deterministic wire in memory for tests.
//!
//! Chunks are numbers here; memory and the right to touch it are the caller's. So is the lock
//! under which the processes of one stack use a queue pair in turn.
//!
//! Raw system calls only: this code runs inside programs whose libc symbols are our own hooks.
//! `std::net`, `std::fs` and the printing macros are for tests only.

pub mod af_xdp;
mod api;
pub mod dpdk;
pub mod ef_vi;
pub mod netlink;
pub mod relay;
mod ring;
pub mod sim;

pub use api::{QueueError, QueuePair, Received, Severity, Transmit};
