//! How many requests a listener has: which SYNs it answers, when it gives an old one up, and when
//! it is *pressed*, so that the SYNs of its port should go to the kernel (RFC 4987).
//!
//! Linux answers a SYN beyond the backlog with a cookie, or drops it where tcp_syncookies is off. A
//! cookie of ours could not be answered: its ACK is of no flow, and the kernel's. So what Linux
//! gives a cookie is a request like the others as long as there is room (tcp_max_syn_backlog, free
//! endpoints and minisockets), and the peer sees the same. Before the room ends the listener is
//! pressed: whoever steers leaves the SYNs of its port to the kernel's listener, which has cookies.
//! They stay there until half of the room is free; so after a flood the next connections are the
//! stack's as soon as its requests have been given up.
//!
//! ```text
//!   requests   0 ────────────── ½ room ────────── ¾ room ──── room
//!   SYNs       ours                                           dropped
//!   pressed    no longer <──────────┘                 └──> from here
//! ```
//!
//! There are two rooms. One is each listener's own: tcp_max_syn_backlog. The other is the stack's,
//! whose listeners share one slab of minisockets and one of endpoints: while its end is near, the
//! stack is *crowded*, and the SYNs of every port should go to the kernel.

use crate::counters::Counter;
use crate::stack::Stack;
use crate::tcp::TcpDefaults;

/// While many requests are old, those are given up after so many SYN-ACK timeouts: 7 s.
const FEWEST_TIMEOUTS: u8 = 2;
/// A queue of so few requests is not thinned while there is room.
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

/// Whether three quarters of a room are taken.
const fn nears_end(requests: u32, room: u32) -> bool {
    requests > 0 && requests >= room.saturating_sub(room >> 2)
}

impl Stack<'_> {
    /// The ports whose new connections should be the kernel's, as bits: see [`pressed_bit`]. A port
    /// may share its bit with another. All of them while the stack is crowded.
    #[must_use]
    pub fn pressed(&self) -> u64 {
        match self.head.is_crowded {
            0 => self.head.pressed,
            _ => u64::MAX,
        }
    }

    /// Requests for which a listener has room, whatever the others have.
    fn room_of_listener(&self) -> u32 {
        self.head.tcp_defaults.max_syn_backlog.max(1)
    }

    /// Requests for which the stack has room: what the slab holds beside connections that have left
    /// (time waits make room), and one that is answered must find an endpoint when its handshake is
    /// over.
    fn room_of_stack(&self) -> u32 {
        let head = &self.head;
        let yielding = head.requests.saturating_add(head.time_waits);
        let others = head.live_minis.saturating_sub(yielding);
        let places = (self.minis.len() as u32).saturating_sub(others);
        places.min(self.free_endpoints())
    }

    /// Whether a listener answers one more SYN.
    pub(crate) fn admits(&self, listener: u32) -> bool {
        let defaults = &self.head.tcp_defaults;
        self.tcbs.get(listener as usize).is_some_and(|tcb| {
            let is_full =
                defaults.syncookies == 0 && is_full(tcb.request_count, tcb.backlog, defaults);
            !is_full
                && tcb.request_count < self.room_of_listener()
                && self.head.requests < self.room_of_stack()
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

    /// Sees whether the room for a listener's requests, or for those of all, comes to its end.
    pub(crate) fn note_pressure(&mut self, listener: u32) {
        if self.head.tcp_defaults.syncookies == 0 {
            return;
        }
        if nears_end(self.requests(listener), self.room_of_listener()) {
            self.set_pressed(listener, true);
        }
        if nears_end(self.head.requests, self.room_of_stack()) {
            self.note_crowd();
        }
    }

    /// The stack has few places for requests left, or none. Without a request it is not crowded:
    /// the last one to go must say that it is no longer.
    pub(crate) fn note_crowd(&mut self) {
        let is_news = self.head.is_crowded == 0 && self.head.requests > 0;
        if is_news && self.head.tcp_defaults.syncookies != 0 {
            self.head.is_crowded = 1;
            self.count(Counter::TcpPressed);
        }
    }

    /// There is one request less.
    pub(crate) fn note_less_crowd(&mut self) {
        if self.head.is_crowded != 0 && self.head.requests <= self.room_of_stack() >> 1 {
            self.head.is_crowded = 0;
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
        if self.head.pressed != 0 && self.requests(listener) <= self.room_of_listener() >> 1 {
            self.set_pressed(listener, false);
        }
    }

    /// A listener becomes pressed, or is no longer. The bit of its port is set while any listener
    /// is pressed that has it: one of IPv6 beside one of IPv4, a group with SO_REUSEPORT, another
    /// port.
    pub(crate) fn set_pressed(&mut self, listener: u32, is_pressed: bool) {
        let bit = pressed_bit(self.port_of(listener));
        let Some(tcb) = self.tcbs.get_mut(listener as usize) else {
            return;
        };
        if (tcb.is_pressed != 0) == is_pressed {
            return;
        }
        tcb.is_pressed = u32::from(is_pressed);
        let at = bit.trailing_zeros() as usize;
        let Some(listeners) = self.head.pressed_listeners.get_mut(at) else {
            return;
        };
        if is_pressed {
            *listeners = listeners.saturating_add(1);
            self.head.pressed |= bit;
            self.count(Counter::TcpPressed);
            return;
        }
        *listeners = listeners.saturating_sub(1);
        if *listeners == 0 {
            self.head.pressed &= !bit;
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
    /// (net/ipv4/inet_connection_sock.c:reqsk_timer_handler). Pressure ends the same way, also
    /// where the backlog is longer than the room.
    pub(crate) fn most_synack_timeouts(&self, listener: u32) -> u8 {
        let mut most = self.head.tcp_defaults.synack_retries;
        let Some(tcb) = self.tcbs.get(listener as usize) else {
            return most;
        };
        let requests = tcb.request_count;
        let has_room = tcb.is_pressed == 0 && self.head.is_crowded == 0;
        if has_room && requests.saturating_mul(2) <= tcb.backlog.max(FEW) {
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
