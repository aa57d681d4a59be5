//! ef_vi: a hidden queue of a Solarflare or AMD card, with filters in the card.
//!
//! ```text
//!   libciul.so.1 (the system's) ── library: functions by name
//!                               ── calibrate: which release's layout it has, or a refusal
//!                               ── raw: fields and operations of a VI by their offsets
//!   /dev/sfc_char ───────────────── domain: handles, protection domain, set of VIs
//!                                   queue: a VI and its memory; group: those of a port, filters
//!                                   port: frames in and out, events, a dead VI made again
//! ```
//!
//! The interface stays the kernel's: what no filter of ours matches never comes here.
//!
//! What is absent: queue pairs of programs (docs/adr/0020-ef-vi.md), times of frames that were
//! sent, checksums by the card.

mod calibrate;
mod card;
mod domain;
mod event;
mod filter;
#[cfg(test)]
mod genuine;
mod group;
mod layout;
mod library;
mod port;
mod queue;
mod raw;
mod reason;
#[cfg(test)]
mod set_tests;
#[cfg(test)]
mod tests;
mod vlan;

pub use card::{check as check_card, is_vendor};
pub use library::{Ciul, Cookie, LIBRARY};
pub use port::{Counts, EfViPort, Settings, probe};
pub use reason::CiulError;
