//! Maps a stack and runs it: what a program, a forked child and the daemon all do alike.
//!
//! Whoever holds a stack's image, packet memory and queue descriptors can run it. [`image`] maps
//! the image memfd, [`packets`] the packet memory, [`lock`] is the process-shared lock in the
//! image's first page, [`attachment`] joins them with the queue pairs and pumps frames between
//! queues and stack, [`queues`] maps one of whatever backend, [`flows`] leads TCP connections to
//! it, [`cplane`] reads the daemon's control-plane table, [`tcp_options`] and [`tcp_settings`] read
//! what the kernel keeps for the engine, [`wake`] wakes a waiter that sleeps in another thread or
//! process, [`control`] talks to the daemon.
//!
//! Everything here makes raw system calls only (`rustix` without libc): it runs inside programs
//! whose libc symbols are our own hooks. No threads, no signal handlers, nothing printed.

pub mod attachment;
pub mod clock;
pub mod control;
pub mod cplane;
pub mod error_queue;
pub mod flows;
pub mod image;
pub mod lock;
pub mod map;
pub mod packets;
pub mod queues;
pub mod tcp_options;
pub mod tcp_settings;
pub mod wake;
