//! What the kernel knows of links, addresses, routes and neighbours.
//!
//! [`message`] turns bytes into values, [`mirror`] keeps the daemon's copy and writes it into
//! control-plane tables.

pub(super) mod message;
pub(super) mod mirror;
#[cfg(test)]
mod tests;
