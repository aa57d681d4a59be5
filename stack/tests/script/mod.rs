//! The language of the packet scripts: one action a line, in virtual time. See
//! `tests/tcp_scripts/README.md` for what a script can say.

pub mod differential;
mod flow;
pub mod kernel;
mod known;
mod machine;
mod recorder;
mod segment;
mod sockets;
mod source;
mod words;

pub use machine::run;
