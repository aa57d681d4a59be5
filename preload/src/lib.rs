//! `libbypass.so`: serves an unmodified program's sockets by a user-level stack.
//!
//! Contract with the host program: every hooked call behaves as the kernel's own would. A socket
//! that the policy does not match, and every call on any other descriptor, goes to libc's function
//! at the cost of one load. Whatever goes wrong at start leaves the program on the kernel and a
//! reason in its report, and one line on standard error at most (`BYPASS_LOG`); no thread and no
//! signal handler is installed, nothing outlives the process.
//!
//! Map: [`symbols`] is the one list of hooks; `family` has what each hook does; [`fdtable`] says
//! what
//! a descriptor number is; [`decide`] asks the policy and makes endpoints; `udp` and `tcp`
//! serve them;
//! `wait` is the one waiting mechanism; [`context`] holds the stack that this process has joined.
//!
//! Inside a hook only raw system calls (`rustix`) and originals are called, so that no hook is
//! entered again. A panic ends the process (`panic = "abort"`).

// They come back through our own hooks.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![expect(
    clippy::missing_safety_doc,
    reason = "the contracts of the hooks are libc's"
)]

pub mod address;
pub mod autostart;
pub mod config;
pub mod context;
pub mod decide;
pub mod environment;
pub mod errno;
pub mod family;
pub mod fdtable;
pub mod interface;
pub mod locks;
pub mod log;
pub mod passing;
pub mod private;
pub mod process;
pub mod report;
pub mod shadow;
mod sharing;
pub mod startup;
pub mod symbols;
pub mod tcp;
pub mod udp;
pub mod wait;
