//! How many requests a listener has: which SYNs it answers, when it gives an old one up, and when
//! it is *pressed*, so that the SYNs of its port should go to the kernel (RFC 4987).
//!
//! Linux answers a SYN beyond the backlog with a cookie, or drops it where tcp_syncookies is off. A
//! cookie of ours could not be answered: its ACK is of no flow, and the kernel's. So what Linux
//! gives a cookie is a request like the others as long as there is room (tcp_max_syn_backlog, free
//! endpoints), and the peer sees the same. Before the room ends the listener is pressed: whoever
//! steers leaves the SYNs of its port to the kernel's listener, which has cookies. They stay there
//! until half of the room is free; so after a flood the next connections are the stack's as soon as
//! its requests have been given up.
//!
//! ```text
//!   requests   0 ────────────── ½ room ────────── ¾ room ──── room
//!   SYNs       ours                                           dropped
//!   pressed    no longer <──────────┘                 └──> from here
//! ```

use crate::counters::Counter;
use crate::stack::Stack;
use crate::tcp::TcpDefaults;

/// While many requests are old, those are given up after so many SYN-ACK timeouts: 7 s.
const FEWEST_TIMEOUTS: u8 = 2;
/// A queue of so few requests is never thinned.
const FEW: u32 = 8;

/// The bit of [`Stack::pressed`] that stands for a port.
#[must_use]
pub const fn pressed_bit(port: u16) -> u64 {
    1 << ((port ^ port >> 6) & 63)
}

/// Whether a listener without SYN cookies is full as Linux would say
/// (net/ipv4/tcp_input.c:tcp_conn_request): the last quarter of tcp_max_syn_backlog is for peers
/// that are known, and we know none.
fn is_full(requests: u32, backlog: u32, defaults: &TcpDefaults) -> bool {
    let most = defaults.max_syn_backlog;
    requests > backlog || most.saturating_sub(requests) < most >> 2
}

impl Stack<'_> {
    /// The ports whose new connections should be the kernel's, as bits: see [`pressed_bit`]. A port
    /// may share its bit with another.
    #[must_use]
    pub fn pressed(&self) -> u64 {
        self.head.pressed
    }

    /// Requests for which a listener has room: one that is answered must find a place when its
    /// handshake is over.
    fn room_for_requests(&self) -> u32 {
        let most = self.head.tcp_defaults.max_syn_backlog.max(1);
        most.min(self.free_endpoints())
    }

    /// Whether a listener answers one more SYN.
    pub(crate) fn admits(&self, listener: u32) -> bool {
        let defaults = &self.head.tcp_defaults;
        self.tcbs.get(listener as usize).is_some_and(|tcb| {
            let is_full =
                defaults.syncookies == 0 && is_full(tcb.request_count, tcb.backlog, defaults);
            !is_full && tcb.request_count < self.room_for_requests()
        })
    }

    /// A listener has got one more request.
    pub(crate) fn request_began(&mut self, listener: u32) {
        if let Some(tcb) = self.tcbs.get_mut(listener as usize) {
            tcb.request_count = tcb.request_count.saturating_add(1);
            tcb.young_count = tcb.young_count.saturating_add(1);
        }
        self.note_pressure(listener);
    }

    /// Sees whether the room for a listener's requests comes to its end. Without a request it never
    /// does: the last one to go must say so.
    pub(crate) fn note_pressure(&mut self, listener: u32) {
        let (room, port) = (self.room_for_requests(), self.port_of(listener));
        let requests = self.requests(listener);
        let is_pressed = requests > 0 && requests >= room.saturating_sub(room >> 2);
        let bit = pressed_bit(port);
        if is_pressed && self.head.tcp_defaults.syncookies != 0 && self.head.pressed & bit == 0 {
            self.head.pressed |= bit;
            self.count(Counter::TcpPressed);
        }
    }

    /// A request of a listener is none any more; `was_young` as in [`Self::request_aged`].
    pub(crate) fn request_ended(&mut self, listener: u32, was_young: bool) {
        if let Some(tcb) = self.tcbs.get_mut(listener as usize) {
            tcb.request_count = tcb.request_count.saturating_sub(1);
        }
        if was_young {
            self.request_aged(listener);
        }
        if self.head.pressed != 0 && self.requests(listener) <= self.room_for_requests() >> 1 {
            self.head.pressed &= !pressed_bit(self.port_of(listener));
        }
    }

    /// A request was not answered in time for the first time.
    pub(crate) fn request_aged(&mut self, listener: u32) {
        if let Some(tcb) = self.tcbs.get_mut(listener as usize) {
            tcb.young_count = tcb.young_count.saturating_sub(1);
        }
    }

    /// SYN-ACK timeouts after which a request is given up: fewer, the more of the requests are old,
    /// so that half of the queue is for young ones
    /// (net/ipv4/inet_connection_sock.c:reqsk_timer_handler).
    pub(crate) fn most_synack_timeouts(&self, listener: u32) -> u8 {
        let mut most = self.head.tcp_defaults.synack_retries;
        let Some(tcb) = self.tcbs.get(listener as usize) else {
            return most;
        };
        let requests = tcb.request_count;
        if requests.saturating_mul(2) <= tcb.backlog.max(FEW) {
            return most;
        }
        let mut young = tcb.young_count.saturating_mul(2);
        while most > FEWEST_TIMEOUTS && requests >= young {
            most = most.saturating_sub(1);
            young = young.saturating_mul(2);
        }
        most
    }

    fn requests(&self, listener: u32) -> u32 {
        let tcb = self.tcbs.get(listener as usize);
        tcb.map_or(0, |tcb| tcb.request_count)
    }

    fn port_of(&self, listener: u32) -> u16 {
        let endpoint = self.endpoints.get(listener as usize);
        endpoint.map_or(0, |endpoint| endpoint.local_port)
    }
}
