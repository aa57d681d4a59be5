//! What `libbypass.so` and `bypassctl` share, and nothing else.
//!
//! Control messages between a program and the daemon ([`control`]), the reasons why a socket or a
//! call stays with the kernel ([`reason`]), the policy that decides it ([`policy`]), the option
//! table ([`options`]) and the per-process report that `bypassctl explain` reads ([`report`]).
//! Depends on no other crate of this workspace and does no input or output.

#![forbid(unsafe_code)]

pub mod control;
pub mod options;
pub mod policy;
pub mod reason;
pub mod report;
