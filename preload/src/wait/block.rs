//! Waiting inside a blocking call on one socket.

use bypass_stack::{EndpointId, Instant};
use libc::{POLLIN, pollfd};

use super::{Interest, Woken, wait};
use crate::context;

/// Waits until the endpoint or its shadow has something to receive (data, or an error).
pub fn readable(fd: i32, endpoint: EndpointId, deadline: Option<Instant>) -> Woken {
    let Some(joined) = context::joined() else {
        return Woken::Ready;
    };
    let mut fds = Vec::with_capacity(8);
    fds.push(pollfd {
        fd,
        events: POLLIN,
        revents: 0,
    });
    let mut interest = Interest {
        fds: &mut fds,
        endpoints: &|into| into.push(endpoint),
        ready: &mut |locked| {
            locked
                .stack()
                .udp_status(endpoint)
                .map_or(true, |status| status.queued > 0)
        },
        mask: None,
        sleeping: None,
        alone: Some((fd, endpoint)),
    };
    wait(joined, &mut interest, deadline)
}
