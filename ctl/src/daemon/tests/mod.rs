//! The daemon in namespaces of its own, with programs that behave and programs that do not.
//!
//! Needs root. Programs that must die are this test binary again ([`child`]).

mod bed;
mod child;
mod deputy;
mod life;
mod opening;
mod ports;
mod program;
mod rude;
mod serve;
mod statics;
mod tcp;
