//! Waiting inside a blocking call on one socket.

use bypass_runtime::attachment::Locked;
use bypass_stack::{EndpointId, Instant, TcpState, event};
use libc::{POLLIN, pollfd};

use super::call::Call;
use super::{Interest, Target, Woken, wait};
use crate::context::{self, Joined};
use crate::fdtable;

/// What ends a wait beside readiness: the time, and signals, which the call holds back.
pub type Limits<'a> = (Option<Instant>, &'a mut Call);

/// Waits until the handshake of a connection is over. One that Fast Open has made is ready for
/// calls before that.
pub fn until_made(fd: i32, endpoint: EndpointId, limits: Limits<'_>) -> Woken {
    let Some(joined) = context::joined() else {
        return Woken::Ready;
    };
    let ready = &mut |locked: &mut Locked<'_>| {
        let status = locked.stack().tcp_status(endpoint);
        status.map_or(true, |now| {
            !matches!(now.state, TcpState::SynSent | TcpState::SynReceived)
        })
    };
    alone(joined, (fd, endpoint), Vec::new(), ready, limits)
}

/// Waits until the endpoint is ready for one of `events` (bits of [`bypass_stack::event`]), or its
/// shadow has something to receive (data, or an error).
pub fn until(
    fd: i32,
    endpoint: EndpointId,
    events: u32,
    shadowed: bool,
    limits: Limits<'_>,
) -> Woken {
    let Some(joined) = context::joined() else {
        return Woken::Ready;
    };
    let mut fds = Vec::with_capacity(8);
    // Another thread may have closed it since.
    if shadowed && fdtable::leads_to(fd, endpoint) {
        fds.push(pollfd {
            fd,
            events: POLLIN,
            revents: 0,
        });
    }
    let ready = &mut |locked: &mut Locked<'_>| {
        let stack = locked.stack();
        let ready = stack
            .readiness(endpoint)
            .map_or(true, |now| now.events & (events | event::HUP) != 0);
        // What waits in an error queue is no error of the call's.
        ready || stack.tcp_status(endpoint).is_ok_and(|it| it.error != 0)
    };
    alone(joined, (fd, endpoint), fds, ready, limits)
}

/// Waits until a connection has more than `bytes` to read, or an end or error to tell.
pub fn more_than(fd: i32, endpoint: EndpointId, bytes: u32, limits: Limits<'_>) -> Woken {
    let Some(joined) = context::joined() else {
        return Woken::Ready;
    };
    let ready = &mut |locked: &mut Locked<'_>| {
        locked.stack().tcp_status(endpoint).map_or(true, |status| {
            status.readable > bytes || status.eof || status.error != 0
        })
    };
    alone(joined, (fd, endpoint), Vec::with_capacity(4), ready, limits)
}

/// Waits for one socket.
fn alone(
    joined: &Joined,
    (fd, endpoint): (i32, EndpointId),
    mut fds: Vec<pollfd>,
    ready: &mut dyn FnMut(&mut Locked<'_>) -> bool,
    (deadline, call): Limits<'_>,
) -> Woken {
    let mut interest = Interest {
        fds: &mut fds,
        targets: &|into| into.push(Target::Endpoint(endpoint)),
        ready,
        mask: None,
        sleeping: None,
        alone: Some((fd, endpoint)),
    };
    call.keep(fd, endpoint);
    wait(joined, &mut interest, deadline, call)
}
