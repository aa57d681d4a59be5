//! What runs when the library is loaded: resolve the originals, note our variables,
//! inherited listeners and what standard error is. Nothing else:
//! programs without a socket of ours must not notice us.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: a constructor in .init_array, and raw write in the panic hook"
)]

use crate::tcp::heir;
use crate::{environment, log, symbols};

/// Runs before main. Hooks may run earlier, from other libraries' constructors: every original is
/// resolved at its first use then.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    symbols::resolve_all();
    environment::remember();
    heir::remember();
    log::remember();
    std::panic::set_hook(Box::new(|info| {
        // One line by a raw write; the standard printer would come back through our hooks.
        let line = format!("libbypass: internal error, aborting: {info}\n");
        // SAFETY: standard error is borrowed for one write; when it is closed the write fails.
        let stderr = unsafe { std::os::fd::BorrowedFd::borrow_raw(2) };
        let _ = rustix::io::write(stderr, line.as_bytes());
    }));
}
