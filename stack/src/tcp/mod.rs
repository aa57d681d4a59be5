//! TCP (RFC 9293 and what servers need of its companions): states, windows, loss recovery, timers.
//!
//! ```text
//!  frame ─► input ─► ack ─────► recovery ─► output ─► transmit list
//!             │        (RACK, PRR, cc)          ▲
//!             └────► receive ─► queue ─► recv   │
//!  call ──► socket ──────────────────► send queue
//!  time ──► wheel ─► timer ──────────────► (RTO, TLP, probes, keepalive, delayed ACK)
//! ```
//!
//! An endpoint of kind TCP has a control block ([`tcb`]) of the same index. A chunk on a send queue
//! *is* the retransmission buffer; a chunk on a receive queue is the frame as it came. A passive
//! open and a closed connection are minisockets ([`mini`]). [`connection::Connection`] is the view
//! on which every protocol step works; after each step [`crate::Stack::settle`] draws the
//! consequences for tables and timers.

mod ack;
mod collapse;
pub mod congestion;
mod connection;
pub(crate) mod cookies;
pub(crate) mod defaults;
mod departures;
pub(crate) mod ended;
mod expected;
mod fast_connect;
mod fast_open;
pub(crate) mod flow;
pub mod handover;
mod hold;
mod icmp;
pub(crate) mod info;
mod input;
mod listen;
pub(crate) mod mini;
mod mtu_search;
pub mod notices;
pub(crate) mod options;
mod orphan;
mod output;
mod pace;
mod path_mtu;
pub(crate) mod pool;
pub mod ports;
pub(crate) mod pressure;
mod receive;
mod recovery;
mod reroute;
mod reset;
mod rtt;
pub mod secret;
mod send_buffer;
mod send_queue;
pub(crate) mod seq;
mod settle;
pub(crate) mod socket;
pub(crate) mod tcb;
mod timer;
mod urgent;
pub(crate) mod wheel;

pub use defaults::TcpDefaults;
pub use fast_connect::FirstWrite;
pub use flow::FlowChange;
pub use handover::{CannotMove, Cargo, ConnectionRecord, Part, Twin};
pub use hold::{Hold, Kept, Shortage};
pub use info::TcpInfo;
pub use notices::{Notice, NoticeKind};
pub use options::TcpOptions;
pub use ports::{NoPort, PortView};
pub use pressure::pressed_bit;
pub use socket::{Ended, Shutdown, Span, TcpError, TcpInput, TcpOpen, TcpStatus};
pub use tcb::TcpState;
