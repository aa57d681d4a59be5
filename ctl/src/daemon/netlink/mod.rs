//! What the kernel knows of links, addresses, routes and neighbours, and of UDP sockets.
//!
//! [`mirror`] keeps the daemon's copy and writes it into
//! control-plane tables, [`diag`] tells which sockets there are.

pub(super) mod diag;
pub(super) mod mirror;
#[cfg(test)]
mod tests;
