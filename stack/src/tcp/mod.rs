//! TCP: what the connection engine stands on.

pub mod secret;
