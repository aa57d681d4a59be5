//! TCP: what the connection engine stands on.

pub mod congestion;
pub mod secret;
