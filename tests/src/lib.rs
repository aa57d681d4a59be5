//! What the tests and `cargo xtask` share: a test bed of two network namespaces, programs run in it
//! with or without the shim, and the proof of what the kernel carried.
//!
//! - [`testbed`]: two namespaces joined by a veth, removed whatever happens to the owner.
//! - [`emulated_link`]: two TAP devices joined by a link with rate, delay, loss and disorder.
//! - [`program`]: one program in a namespace, in the [`program::Column`] native or shim.
//! - [`counters`]: what the kernel of a namespace carried, and processor time of a process.
//! - [`daemon`]: `bypassctl` in the test bed; [`services`]: name servers and their client.
//! - [`paths`]: where the repository, the built shim and the C programs are.
//! - [`conformance`]: one case run in two columns, outputs compared line by line.
//! - [`leftovers`]: what the bypass must not leave behind.
//! - [`sources`]: reads the list of hooked functions and the repository's text for the ABI test
//!   and for `cargo xtask tidy`.
//!
//! Nothing here is used by the product. Everything needs root and Linux.

pub mod ciul;
pub mod conformance;
pub mod counters;
pub mod daemon;
pub mod emulated_link;
pub mod leftovers;
pub mod paths;
pub mod plugin;
pub mod program;
pub mod services;
pub mod sources;
mod tap;
pub mod testbed;
pub mod vdev;

/// Every fallible function of this crate: the error is a sentence for a person.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
