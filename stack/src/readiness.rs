//! Readiness: one notion for every kind of endpoint, in epoll's bits.
//!
//! Level and edge are both here: [`Readiness::events`] says what is true now, the two edge counts
//! say whether something has *happened* since a reader last looked, which is what an edge-triggered
//! epoll member reports (epoll(7); net/ipv4/tcp.c:tcp_poll, net/core/datagram.c:datagram_poll).

use crate::image::kind;
use crate::stack::Stack;
use crate::types::{EndpointId, Stale};

/// The bits of [`Readiness::events`], with the values of poll(2) and epoll(7).
pub mod event {
    /// Something to receive, or the end of the stream.
    pub const IN: u32 = 0x001;
    /// Urgent data.
    pub const PRI: u32 = 0x002;
    /// Room to send.
    pub const OUT: u32 = 0x004;
    /// A pending error.
    pub const ERR: u32 = 0x008;
    /// Both directions are closed.
    pub const HUP: u32 = 0x010;
    /// As [`IN`].
    pub const RDNORM: u32 = 0x040;
    /// As [`OUT`].
    pub const WRNORM: u32 = 0x100;
    /// The peer has closed its direction.
    pub const RDHUP: u32 = 0x2000;
}

/// What an endpoint is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Bits of [`event`].
    pub events: u32,
    /// Counts arrivals (data, connections, FIN, errors), wrapping.
    pub in_edge: u32,
    /// Counts the moments at which the endpoint became writable after a short write, the end of a
    /// connect, FIN and errors, wrapping.
    pub out_edge: u32,
}

impl Stack<'_> {
    /// What the endpoint is ready for now. A UDP endpoint can always send; a broken receive queue
    /// counts as empty. A connection without room to send counts the room that comes as an edge
    /// from now on, as if a write had found none.
    ///
    /// # Errors
    /// [`Stale`] when the endpoint is gone.
    pub fn readiness(&mut self, id: EndpointId) -> Result<Readiness, Stale> {
        let endpoint = self.endpoint(id)?;
        match endpoint.kind {
            kind::UDP => {
                let mut events = event::OUT | event::WRNORM;
                if self.udp_front(id)?.is_some() {
                    events |= event::IN | event::RDNORM;
                }
                Ok(Readiness {
                    events,
                    in_edge: self.udp_of(id)?.arrivals,
                    out_edge: 0,
                })
            }
            _ => self.tcp_readiness(id.index).ok_or(Stale),
        }
    }
}
