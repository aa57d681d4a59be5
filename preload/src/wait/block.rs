//! Waiting inside a blocking call on one socket.

use bypass_stack::{EndpointId, Instant, event};
use libc::{POLLIN, pollfd};

use super::{Interest, Target, Woken, wait};
use crate::context;

/// Ends every wait.
const ALWAYS: u32 = event::ERR | event::HUP;

/// Waits until the endpoint is ready for one of `events` (bits of [`bypass_stack::event`]), or its
/// shadow has something to receive (data, or an error).
pub fn until(
    fd: i32,
    endpoint: EndpointId,
    events: u32,
    shadowed: bool,
    deadline: Option<Instant>,
) -> Woken {
    let Some(joined) = context::joined() else {
        return Woken::Ready;
    };
    let mut fds = Vec::with_capacity(8);
    if shadowed {
        fds.push(pollfd {
            fd,
            events: POLLIN,
            revents: 0,
        });
    }
    let mut interest = Interest {
        fds: &mut fds,
        targets: &|into| into.push(Target::Endpoint(endpoint)),
        ready: &mut |locked| {
            locked
                .stack()
                .readiness(endpoint)
                .map_or(true, |now| now.events & (events | ALWAYS) != 0)
        },
        mask: None,
        sleeping: None,
        alone: Some((fd, endpoint)),
    };
    wait(joined, &mut interest, deadline)
}
