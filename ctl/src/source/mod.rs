//! Where the facts come from: the daemon's answers, and what processes hold in memory.
//!
//! [`ask`] talks to the daemon. Images and reports are memfds that [`memfd`] finds through
//! `/proc/PID/fd`, copies and hands out for checking: nobody is asked and nothing is stopped.
//! [`process`] reads what `/proc` says of a process. All of it may be written by others at any
//! time; it is believed only as far as it is checked.

mod ask;
pub mod card;
pub mod ethtool;
mod memfd;
pub mod pci;
mod process;
pub mod rtnetlink;

pub use ask::{Interface, ask, backend_of, interfaces, query};
pub use memfd::{Held, memfd_device, memfds, reopen, reports};
pub use process::{exists, has_library, in_this_namespace, program, user_name, users};
