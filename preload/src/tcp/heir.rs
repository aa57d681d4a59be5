//! Listeners that a program has from another one: by an exec, or by SCM_RIGHTS.
//!
//! The new program finds a kernel socket that listens; what comes to its port goes to the endpoint,
//! which whoever gave it still has. So the new program must become a holder as well, or nobody
//! accepts what comes once the old one has stopped to (nginx's binary upgrade, haproxy's reload).
//! After an exec it does so at its first call that is about the socket itself: most programs that
//! happen to inherit a listener never make one, and pay nothing. What comes by SCM_RIGHTS is meant.
//!
//! ```text
//!   exec:       LIBBYPASS_LISTENERS=6,7 --constructor--> Heir --accept, getsockname--> Listener
//!   SCM_RIGHTS: sendmsg: steering ends ------------- recvmsg: Listener, steering goes on
//! ```
//!
//! What the variable says is only a hint: a socket is an heir when it listens and its cookie is
//! that of an endpoint, or when the policy accelerates it anew. A receiver that is none (no
//! library, another user's stack) is served by the kernel's socket; so is the sender, after its own
//! queue.

use std::ffi::{CString, c_int};

use bypass_proto::control::{Request, RequestKind};
use bypass_stack::EndpointId;
use libc::{AF_INET, AF_INET6, SO_ACCEPTCONN, SO_DOMAIN, SO_PROTOCOL, SOL_SOCKET};

use super::listen;
use crate::family::socket;
use crate::fdtable::{self, Entry};
use crate::{context, process, shadow, sharing};

/// Tells the next program which of its descriptors are such listeners.
pub const VARIABLE: &str = "LIBBYPASS_LISTENERS";

/// The variable for a program that is about to be executed; `None`: it inherits none.
pub fn bequest() -> Option<CString> {
    let mut numbers = Vec::new();
    for (fd, entry) in fdtable::entries(0, u32::MAX - 1) {
        if matches!(entry, Entry::Listener(_) | Entry::Heir) && !shadow::is_close_on_exec(fd) {
            numbers.push(fd.to_string());
        }
    }
    if numbers.is_empty() {
        return None;
    }
    CString::new(format!("{VARIABLE}={}", numbers.join(","))).ok()
}

/// Notes what the program before this one has left.
pub fn remember() {
    let Ok(numbers) = std::env::var(VARIABLE) else {
        return;
    };
    for fd in numbers.split(',').filter_map(|number| number.parse().ok()) {
        fdtable::set(fd, Entry::Heir);
    }
}

/// The first call on an heir: what it is from here on.
#[cold]
pub fn claim(fd: c_int) -> Entry {
    // From here on the number is the kernel's to our own calls below.
    if fdtable::replace(fd, Entry::Heir, Entry::Other) && super::is_on() && is_listener(fd) {
        join_in(fd, true);
    }
    fdtable::look(fd)
}

/// A descriptor has come by SCM_RIGHTS.
pub fn received(fd: c_int) {
    socket::reborn(fd);
    if super::is_on() && is_listener(fd) {
        // Whoever sent it may have no endpoint and go on to accept: then neither have we.
        if let Some(endpoint) = join_in(fd, false) {
            lend(endpoint, false);
        }
    }
}

/// Becomes a holder of the endpoint behind a listening socket; `anew`: makes one if there is none.
fn join_in(fd: c_int, anew: bool) -> Option<EndpointId> {
    process::has_come();
    listen::inherit(fd, anew);
    let entry = fdtable::look(fd);
    let same = fdtable::entries(0, u32::MAX - 1).filter(|(_, other)| *other == entry);
    if entry.endpoint().is_some() && same.count() > 1 {
        sharing::descriptor_added(entry);
    }
    entry.endpoint()
}

/// Tells the daemon that a listener is passed to another program, or that this one has it.
pub fn lend(listener: EndpointId, on: bool) {
    let request = Request {
        endpoint_index: listener.index,
        endpoint_generation: listener.generation,
        listen: u8::from(!on),
        ..Request::new(RequestKind::Lend)
    };
    // Without a daemon it is steered as before: whoever has the endpoint is served.
    let _ = context::with_control(|control| control.ask(request, None));
}

/// Whether this is a TCP socket that listens.
fn is_listener(fd: c_int) -> bool {
    let option = |name| shadow::option::<c_int>(fd, SOL_SOCKET, name);
    option(SO_ACCEPTCONN) == Some(1)
        && option(SO_PROTOCOL) == Some(libc::IPPROTO_TCP)
        && matches!(option(SO_DOMAIN), Some(AF_INET | AF_INET6))
}
