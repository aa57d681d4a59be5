//! The stack behind packetdrill's shared-object interface (`--so_filename`), so that whoever has
//! packetdrill can run its scripts against the engine: `cargo xtask packetdrill PATH`.
//!
//! The engine is the same as in `libbypass.so`; around it, in place of queues and the shim, are a
//! wire in memory and a clock that only the script moves ([`world`]; [`bursts`] is what a device
//! with segmentation offload does). Every descriptor is a kernel socket (the shadow) that judges
//! and keeps options, as in the shim ([`kernel`]); calls on it are [`calls`] and [`transfer`],
//! waiting for several is [`ready`], what the table of functions wants of a C program is [`table`],
//! and [`turns`] lets the thread of a blocking call and the script's take turns.

pub mod bursts;
pub mod calls;
pub mod kernel;
pub mod ready;
pub mod table;
pub mod transfer;
pub mod turns;
pub mod world;
