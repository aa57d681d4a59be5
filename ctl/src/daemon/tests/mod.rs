//! The daemon in namespaces of its own, with programs that behave and programs that do not.
//!
//! Needs root. Programs that must die are this test binary again ([`victim`]).

mod bed;
mod program;
mod serve;
