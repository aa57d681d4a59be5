//! `libciul.so.1`, not the genuine one: a stand-in for tests where no Solarflare card is.
//!
//! ```text
//!   backend ── ef_vi calls ──► driver.rs   handles, protection domains, memory, filters
//!           ── ops ──────────► vi.rs       EF10's rings: descriptors, events, ids
//!                              set.rs      VIs that share a wire
//!                              nic.rs      the hardware's side of the rings: a software NIC
//!                              wire.rs     loop | null | pair:NAME | tap:IF | packet[:IF]
//! ```
//!
//! By `bridge.c` the vendor's ring code may have the place of `vi.rs`, and the rest is as it is
//! ([`vendor`]).
//!
//! The layout of `struct ef_vi` is data ([`layout`]): one table for each release. Settings come
//! from the environment (`FAKE_CIUL_LAYOUT`, `_WIRE`, `_FAULT`, `_FILTERS`,
//! `_VENDOR`), or from
//! `fake_ciul_set` in a test that has loaded a copy of its own.
//!
//! What is here follows a description of the interface, not its source. Nothing of it is for
//! production: a stand-in looks up a table and takes a lock at each call.

mod config;
mod driver;
mod filter;
mod layout;
mod nic;
mod set;
mod steal;
mod vendor;
mod vi;
mod wire;
