//! Ports that the stack keeps for connections (docs/adr/0017): a connect takes one without a word
//! to the daemon, and asks it for more when none has rested long enough.

use bypass_proto::control::{Request, RequestKind};
use bypass_stack::{EndpointId, NoPort, SocketAddress, TcpOpen};

use super::with_stack;
use crate::{context, decide};

/// Opens an endpoint at a kept port. `None`: the socket is bound, or there is no such port.
pub fn open(open: &TcpOpen, remote: SocketAddress) -> Option<(EndpointId, SocketAddress)> {
    // Without a daemon nobody has the ports reserved.
    if open.local.port != 0 || open.ifindex != 0 || !context::has_daemon() {
        return None;
    }
    let take = |urgent| {
        with_stack(|_, locked, now| locked.stack().tcp_open_any(open, remote, urgent, now))
    };
    let opened = match take(false)? {
        Err(NoPort::Few) => {
            let request = Request {
                local: open.local.ip.0,
                ..Request::new(RequestKind::AddPorts)
            };
            // Refused or not: one that has not rested long is better than none.
            let _ = context::with_control(|control| control.ask(request, None));
            take(true)?
        }
        opened => opened,
    };
    opened.ok()
}

/// A program binds this port itself: it is not kept any more, unless a connection has it.
pub fn forget(port: u16) {
    let kept = || with_stack(|_, locked, _| locked.stack().port_forget(port)).flatten();
    while let Some(filter) = kept() {
        decide::remove_filter(filter);
    }
}
