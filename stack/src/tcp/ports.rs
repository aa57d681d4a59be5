//! Local ports of connections that programs begin, kept ready for the next ones.
//!
//! The owner of the steering reserves a port with a socket of its own, grants its flows and puts it
//! here; a connect takes one that rests, without a word to the owner, and it rests again when the
//! connection's endpoint has ended. A time wait may go on meanwhile: the port then serves other
//! remote addresses only. The owner takes back what has rested for long (docs/adr/0017).
//!
//! ```text
//!   FREE --add--> RESTS --take--> USED --endpoint ends--> RESTS --reclaim--> FREE
//!                                   `---handed over---------------------------^
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::socket::TcpOpen;
use crate::image::kind;
use crate::stack::Stack;
use crate::types::{EndpointId, Instant, IpAddress, SocketAddress};
use crate::udp::OpenError;

/// Places for ports. One in 28 of the ports that Linux chooses from by default.
pub const PLACES: usize = 1024;
/// The bit of an endpoint's filter which says that the others are a place, not a filter.
const PLACE: u32 = 1 << 31;
/// For so long a port rests before it is used again, as long as there can be more: 60 s, which is
/// TCP_TIMEWAIT_LEN of Linux. The peer's side of the last connection has ended then.
const REST_NS: u64 = 60_000_000_000;
/// A port that nobody has taken for so long since goes back to the kernel.
const IDLE_NS: u64 = REST_NS;

mod state {
    pub(super) const FREE: u32 = 0;
    pub(super) const RESTS: u32 = 1;
    pub(super) const USED: u32 = 2;
}

/// One port.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Place {
    ip: IpAddress,
    /// Until when it rests.
    rested_ns: u64,
    filter: u32,
    port: u16,
    reserved: u16,
    state: u32,
    padding: u32,
}

/// All of them.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct LocalPorts {
    places: [Place; PLACES],
    /// Where the search goes on, so that the port that has rested longest comes first.
    hand: u32,
    /// Places that are not free.
    taken: u32,
}

/// A port as whoever looks at an image sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Its place.
    pub place: u32,
    /// Address and port.
    pub local: SocketAddress,
    /// The owner's filter.
    pub filter: u32,
    /// Whether a connection has it.
    pub is_used: bool,
}

/// Why no port was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPort {
    /// The owner may add some: none has rested long enough.
    Few,
    /// There are as many as there may be, and none serves this remote address now.
    Exhausted,
    /// There was one, but no endpoint.
    Open(OpenError),
}

impl LocalPorts {
    /// Every place, from the hand on.
    fn in_turn(&self) -> impl Iterator<Item = usize> + use<> {
        let start = self.hand as usize % PLACES;
        (start..PLACES).chain(0..start)
    }

    /// Frees a place; its filter.
    fn free(&mut self, index: usize) -> Option<u32> {
        let place = self.places.get_mut(index)?;
        place.state = state::FREE;
        self.taken = self.taken.saturating_sub(1);
        Some(place.filter)
    }

    fn view(&self, index: usize) -> Option<PortView> {
        let place = self.places.get(index)?;
        (place.state != state::FREE).then(|| PortView {
            place: index as u32,
            local: place.local(),
            filter: place.filter,
            is_used: place.state == state::USED,
        })
    }

    pub(crate) fn views(&self) -> impl Iterator<Item = PortView> + '_ {
        (0..PLACES).filter_map(|index| self.view(index))
    }
}

impl Place {
    fn local(&self) -> SocketAddress {
        SocketAddress::new(self.ip, self.port)
    }

    fn has_rested(&self, now: Instant) -> bool {
        now.0 >= self.rested_ns
    }
}

/// The place that an endpoint's filter means.
pub(crate) fn place_of(filter: u32) -> Option<u32> {
    (filter & PLACE != 0).then_some(filter & !PLACE)
}

impl Stack<'_> {
    /// The owner of the steering adds a port whose flows are granted by `filter`; whether there was
    /// room.
    pub fn port_add(&mut self, local: SocketAddress, filter: u32, now: Instant) -> bool {
        let ports = &mut self.head.local_ports;
        for index in ports.in_turn() {
            let place = ports.places.get_mut(index);
            let Some(place) = place.filter(|place| place.state == state::FREE) else {
                continue;
            };
            *place = Place {
                ip: local.ip,
                rested_ns: now.0,
                filter,
                port: local.port,
                reserved: 0,
                state: state::RESTS,
                padding: 0,
            };
            ports.taken = ports.taken.wrapping_add(1);
            return true;
        }
        false
    }

    /// Opens an endpoint at a port of `open.local.ip` that rests and is free for this remote
    /// address. `urgent`: one that has not rested for long will do.
    ///
    /// # Errors
    /// [`NoPort`]: nothing has changed.
    pub fn tcp_open_any(
        &mut self,
        open: &TcpOpen,
        remote: SocketAddress,
        urgent: bool,
        now: Instant,
    ) -> Result<(EndpointId, SocketAddress), NoPort> {
        let found = self.find_port(open.local.ip, remote, urgent, now)?;
        let (index, local) = found;
        let id = self
            .tcp_open(&TcpOpen { local, ..*open })
            .map_err(NoPort::Open)?;
        self.set_filter(id, PLACE | index);
        self.head.local_ports.hand = index.wrapping_add(1);
        if let Some(place) = self.head.local_ports.places.get_mut(index as usize) {
            place.state = state::USED;
        }
        Ok((id, local))
    }

    /// The first port in turn, which has rested longest or nearly so.
    fn find_port(
        &self,
        ip: IpAddress,
        remote: SocketAddress,
        urgent: bool,
        now: Instant,
    ) -> Result<(u32, SocketAddress), NoPort> {
        let ports = &self.head.local_ports;
        let serves = |index: &usize| {
            let place = ports.places.get(*index);
            place.is_some_and(|place| {
                place.state == state::RESTS
                    && place.ip == ip
                    && self.tcp_is_free(place.local(), remote)
            })
        };
        let found = ports.in_turn().find(serves);
        let found = found.and_then(|index| Some((index, ports.places.get(index)?)));
        let has_room = (ports.taken as usize) < PLACES;
        match found {
            Some((index, place)) if urgent || !has_room || place.has_rested(now) => {
                Ok((index as u32, place.local()))
            }
            None if !has_room => Err(NoPort::Exhausted),
            _ => Err(NoPort::Few),
        }
    }

    /// The endpoint with this port has ended.
    pub(crate) fn port_rests(&mut self, index: u32) {
        let rested_ns = self.head.latest_ns.saturating_add(REST_NS);
        if let Some(place) = self.head.local_ports.places.get_mut(index as usize)
            && place.state == state::USED
        {
            (place.state, place.rested_ns) = (state::RESTS, rested_ns);
        }
    }

    /// The connection of an endpoint goes on in the kernel, with its port.
    pub(crate) fn port_leaves(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.get_mut(index as usize) else {
            return;
        };
        if let Some(place) = place_of(endpoint.filter) {
            endpoint.filter = 0;
            self.head.local_ports.free(place as usize);
        }
    }

    /// A program wants to bind this port itself: takes it out, if it rests. Its filter, which is to
    /// be given back; there may be one for each address.
    pub fn port_forget(&mut self, port: u16) -> Option<u32> {
        let ports = &mut self.head.local_ports;
        let mut places = ports.places.iter();
        let index = places.position(|place| place.state == state::RESTS && place.port == port)?;
        ports.free(index)
    }

    /// The owner takes back resting ports that nobody has needed for long, and those that `is_lost`
    /// says it for: they are not among [`Stack::ports`] any more.
    pub fn ports_reclaim(&mut self, now: Instant, is_lost: impl Fn(&PortView) -> bool) {
        let idle_since = now.0.saturating_sub(IDLE_NS);
        let ports = &mut self.head.local_ports;
        for index in 0..PLACES {
            let place = ports.places.get(index).zip(ports.view(index));
            if place.is_some_and(|(place, view)| {
                place.state == state::RESTS && (place.rested_ns <= idle_since || is_lost(&view))
            }) {
                ports.free(index);
            }
        }
    }

    /// Every port.
    pub fn ports(&self) -> impl Iterator<Item = PortView> + '_ {
        self.head.local_ports.views()
    }

    /// A new owner has granted a port anew, by another filter; `None`: it could not, and the port
    /// is only the connection's that has it.
    pub fn port_adopted(&mut self, index: u32, filter: Option<u32>) {
        let ports = &mut self.head.local_ports;
        match (filter, ports.places.get_mut(index as usize)) {
            (Some(filter), Some(place)) => place.filter = filter,
            _ => {
                ports.free(index as usize);
                let users = self.endpoints.iter_mut();
                users
                    .filter(|endpoint| endpoint.kind == kind::TCP)
                    .filter(|endpoint| place_of(endpoint.filter) == Some(index))
                    .for_each(|user| user.filter = 0);
            }
        }
    }

    /// After the death of the lock's owner: ports are in use by whoever says so.
    pub(crate) fn rebuild_ports(&mut self) {
        let rested_ns = self.head.latest_ns.saturating_add(REST_NS);
        let ports = &mut self.head.local_ports;
        ports.taken = 0;
        for place in &mut ports.places {
            if place.state == state::USED {
                (place.state, place.rested_ns) = (state::RESTS, rested_ns);
            }
            ports.taken = ports
                .taken
                .wrapping_add(u32::from(place.state != state::FREE));
        }
        let users = self.endpoints.iter();
        for endpoint in users.filter(|endpoint| endpoint.kind == kind::TCP) {
            let place = place_of(endpoint.filter);
            if let Some(place) = place.and_then(|index| ports.places.get_mut(index as usize))
                && place.state == state::RESTS
            {
                place.state = state::USED;
            }
        }
    }
}
