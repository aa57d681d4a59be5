//! A read-only view of a stack image, for `bypassctl`, the daemon and tests.
//!
//! [`Image::attach`] takes bytes that do not change any more: *copy the image first*, then look.
//! Nothing here panics or loops for long on any bytes; [`Image::check`] says what is wrong with
//! them. A copy taken without the stack's lock may show an update half done, so a tool should
//! look again before it reports a problem.

mod check;
mod check_notices;
mod check_tcp;

pub use check::{Problem, ProblemKind};

use crate::counters::{Counter, Counters, DropReason};
use crate::image::{
    Capacities, Endpoint, Head, LayoutError, NONE, QueuePairInfo, SlabsRef, UdpOptions, UdpState,
    chunk_state, kind, split_ref, stated_capacities, stated_head,
};
use crate::stack::Stack;
use crate::tcp::mini;
use crate::tcp::seq::distance;
use crate::tcp::tcb::Tcb;
use crate::tcp::{PortView, TcpOptions, TcpState, ports};
use crate::types::{
    ChunkId, EndpointId, Family, Instant, ProcessId, QUEUE_PAIRS, SocketAddress, WaiterId,
    WaiterSet, has_bit,
};

/// A view of a copied image.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    slabs: SlabsRef<'a>,
    caps: Capacities,
}

/// One endpoint, as it was when the image was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Its id.
    pub id: EndpointId,
    /// The state of its connection or listener; none for UDP.
    pub tcp: Option<TcpState>,
    /// Which packets it takes.
    pub family: Family,
    /// Local address.
    pub local: SocketAddress,
    /// Remote address if connected.
    pub remote: Option<SocketAddress>,
    /// SO_BINDTODEVICE's interface, or 0.
    pub ifindex: u32,
    /// Datagrams queued.
    pub queued: u32,
    /// Bytes charged against the receive buffer.
    pub queued_bytes: u32,
    /// Datagrams ever queued, wrapping at 32 bits.
    pub arrivals: u32,
    /// Datagrams dropped because the endpoint was full.
    pub drops: u32,
    /// Datagrams received since it was opened.
    pub rx_datagrams: u64,
    /// Datagrams sent since it was opened, hairpin included.
    pub tx_datagrams: u64,
    /// Queues and counts of its connection or listener.
    pub stream: Option<StreamView>,
    /// The filter that feeds it, 0 = none.
    pub filter: u32,
    /// The shadow socket's cookie.
    pub shadow_cookie: u64,
    /// Options.
    pub options: UdpOptions,
    /// Whether it rests ([`crate::Stack::rest`]).
    pub rests: bool,
    /// Processes that hold it, a bit per slot.
    pub holders: [u64; 2],
    /// Waiters parked on it.
    pub waiters: WaiterSet,
}

/// What ss shows of a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamView {
    /// Bytes that the program has not read; of a listener, connections that wait for accept.
    pub recv_queued: u32,
    /// Bytes that the peer has not acknowledged; of a listener, its backlog.
    pub send_queued: u32,
    /// Segments received.
    pub segments_in: u32,
    /// Segments sent.
    pub segments_out: u32,
}

/// A connection of which little is left, or there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MiniView {
    /// Our end.
    pub local: SocketAddress,
    /// The peer's.
    pub remote: SocketAddress,
    /// [`TcpState::TimeWait`] or, of a SYN that was answered, [`TcpState::SynReceived`].
    pub state: TcpState,
}

impl EndpointView {
    /// Whether a process holds the endpoint.
    #[must_use]
    pub fn is_held_by(&self, process: ProcessId) -> bool {
        has_bit(&self.holders, process.0)
    }
}

/// One process of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessView {
    /// Its slot.
    pub id: ProcessId,
    /// Process id, as the daemon sees it; 0 = a fork under way.
    pub pid: u32,
    /// Start time from /proc/PID/stat; of a fork under way, the parent's pid.
    pub start_time: u64,
    /// User id.
    pub uid: u32,
    /// How often the slot was given out.
    pub generation: u32,
}

/// Where the chunks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkCounts {
    /// On the free list.
    pub free: u32,
    /// In fill rings, or on their way.
    pub posted: u32,
    /// On receive queues.
    pub queued: u32,
    /// On transmit lists or in TX and completion rings.
    pub sending: u32,
    /// On connections' send queues.
    pub retained: u32,
    /// On connections' receive and out-of-order queues.
    pub received: u32,
    /// In no known state.
    pub unknown: u32,
}

impl<'a> Image<'a> {
    /// Views a copy of an image, which must be aligned to 8 bytes (any `Vec<u64>` is).
    pub fn attach(bytes: &'a [u8]) -> Result<Self, LayoutError> {
        let caps = stated_capacities(bytes)?;
        Ok(Self {
            slabs: split_ref(bytes, &caps)?,
            caps,
        })
    }

    /// What the image has room for.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        self.caps
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters<'a> {
        Counters {
            counters: &self.slabs.head.counters,
            drops: &self.slabs.head.drops,
        }
    }

    /// Value of a counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters().get(counter)
    }

    /// Frames dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.counters().dropped(reason)
    }

    /// The table of queue pairs; look at [`QueuePairInfo::is_live`].
    #[must_use]
    pub fn queue_pairs(&self) -> &'a [QueuePairInfo; QUEUE_PAIRS] {
        &self.slabs.head.queue_pairs
    }

    /// Changes whenever the table of queue pairs changed.
    #[must_use]
    pub fn queue_pairs_generation(&self) -> u32 {
        self.slabs.head.queue_pairs_generation
    }

    /// Ports that are kept for connections of programs.
    pub fn local_ports(&self) -> impl Iterator<Item = PortView> + use<'a> {
        self.slabs.head.local_ports.views()
    }

    /// Frames that wait on a queue pair's transmit list.
    #[must_use]
    pub fn transmit_count(&self, queue_pair: u8) -> u32 {
        self.slabs
            .head
            .transmit
            .get(usize::from(queue_pair))
            .map_or(0, |list| list.count)
    }

    /// When the last frame came.
    #[must_use]
    pub fn last_frame(&self) -> Instant {
        Instant(self.slabs.head.last_frame_ns)
    }

    /// The live endpoints, in index order.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointView> + use<'a> {
        let slabs = self.slabs;
        self.live()
            .map(move |(index, endpoint)| view(&slabs, index, endpoint))
    }

    /// The endpoint with this id, if it is live.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<EndpointView> {
        let endpoint = self.slabs.endpoints.get(id.index as usize)?;
        (endpoint.is_live() && endpoint.generation == id.generation)
            .then(|| view(&self.slabs, id.index, endpoint))
    }

    /// The minisockets, but for those of connections that another TCP has now.
    pub fn minisockets(&self) -> impl Iterator<Item = MiniView> + use<'a> {
        self.slabs.minis.iter().filter_map(|mini| {
            let state = match mini.kind {
                mini::kind::REQUEST => TcpState::SynReceived,
                mini::kind::TIME_WAIT => TcpState::TimeWait,
                _ => return None,
            };
            Some(MiniView {
                local: mini.local(),
                remote: mini.remote(),
                state,
            })
        })
    }

    /// The processes, in slot order.
    pub fn processes(&self) -> impl Iterator<Item = ProcessView> + use<'a> {
        views(self.slabs.head)
    }

    /// The waiters in use, with their process.
    pub fn waiters(&self) -> impl Iterator<Item = (WaiterId, ProcessId)> + use<'a> {
        let slots = self.slabs.head.waiters.iter().zip(0u8..);
        slots
            .filter(|(slot, _)| slot.live != 0)
            .map(|(slot, index)| (WaiterId(index), ProcessId(slot.process as u8)))
    }

    /// Counts the chunks by state.
    #[must_use]
    pub fn chunks(&self) -> ChunkCounts {
        let mut counts = ChunkCounts::default();
        for slot in self.slabs.chunks {
            let count = match slot.state {
                chunk_state::FREE => &mut counts.free,
                chunk_state::POSTED => &mut counts.posted,
                chunk_state::QUEUED => &mut counts.queued,
                chunk_state::SENDING => &mut counts.sending,
                chunk_state::RETAINED | chunk_state::RETAINED_SENDING => &mut counts.retained,
                chunk_state::RECEIVED => &mut counts.received,
                _ => &mut counts.unknown,
            };
            *count = count.saturating_add(1);
        }
        counts
    }

    /// The chunks queued on an endpoint, oldest first, as far as its queue is sound.
    pub fn queued(&self, id: EndpointId) -> impl Iterator<Item = ChunkId> + use<'a> {
        let chunks = self.slabs.chunks;
        let known = self.slabs.endpoints.get(id.index as usize);
        let known = known.filter(|endpoint| endpoint.kind == kind::UDP);
        let udp = known.and_then(|_| self.slabs.udp.get(id.index as usize));
        let mut next = udp.map_or(NONE, |udp| udp.queue_head);
        (0..chunks.len()).map_while(move |_| {
            let slot = chunks.get(next as usize)?;
            let here = ChunkId(next);
            next = slot.next;
            (slot.state == chunk_state::QUEUED && slot.owner == id.index).then_some(here)
        })
    }

    fn live(&self) -> impl Iterator<Item = (u32, &'a Endpoint)> + use<'a> {
        (0u32..)
            .zip(self.slabs.endpoints)
            .filter(|(_, endpoint)| endpoint.is_live())
    }
}

/// The processes of a stack, in slot order, by a copy of the image's first [`HEAD_BYTES`].
///
/// # Errors
/// When it is not the beginning of an image.
///
/// [`HEAD_BYTES`]: crate::HEAD_BYTES
pub fn processes(head: &[u8]) -> Result<impl Iterator<Item = ProcessView>, LayoutError> {
    stated_head(head).map(views)
}

fn views(head: &Head) -> impl Iterator<Item = ProcessView> {
    let slots = head.processes.iter().zip(0u8..);
    slots
        .filter(|(slot, _)| slot.live != 0)
        .map(|(slot, index)| ProcessView {
            id: ProcessId(index),
            pid: slot.pid,
            start_time: slot.start_time,
            uid: slot.uid,
            generation: slot.generation,
        })
}

impl Stack<'_> {
    /// The same view of a stack whose lock is held, without a copy: nothing changes meanwhile.
    #[must_use]
    pub fn inspect(&self) -> Image<'_> {
        Image {
            slabs: SlabsRef {
                head: self.head,
                ports: self.ports,
                flows: self.flows,
                endpoints: self.endpoints,
                chunks: self.chunks,
                held: self.held,
                ready: self.ready,
                udp: self.udp,
                tcbs: self.tcbs,
                minis: self.minis,
                segments: self.segments,
                notice_queues: self.notice_queues,
                notices: self.notices,
            },
            caps: self.capacities(),
        }
    }
}

/// An endpoint's view.
fn view(slabs: &SlabsRef<'_>, index: u32, endpoint: &Endpoint) -> EndpointView {
    let tcb = slabs.tcbs.get(index as usize);
    let tcb = tcb.filter(|_| endpoint.kind == kind::TCP);
    let nothing = UdpState::new(UdpOptions::new());
    let udp = slabs.udp.get(index as usize);
    let udp = udp
        .filter(|_| endpoint.kind == kind::UDP)
        .unwrap_or(&nothing);
    let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
    EndpointView {
        id: EndpointId {
            index,
            generation: endpoint.generation,
        },
        tcp: tcb.map(Tcb::state),
        family: Family::from_byte(endpoint.family),
        local: SocketAddress::new(endpoint.local_ip, endpoint.local_port),
        remote: (endpoint.connected != 0).then_some(remote),
        ifindex: endpoint.ifindex,
        queued: udp.queued,
        queued_bytes: udp.queued_bytes,
        arrivals: udp.arrivals,
        drops: udp.drops,
        rx_datagrams: udp.rx_datagrams,
        tx_datagrams: udp.tx_datagrams,
        stream: tcb.map(stream),
        filter: if ports::place_of(endpoint.filter).is_some() {
            0
        } else {
            endpoint.filter
        },
        shadow_cookie: endpoint.shadow_cookie,
        options: udp.options,
        rests: match tcb {
            Some(tcb) => tcb.options.has(TcpOptions::RESTING),
            None => udp.options.has(UdpOptions::RESTING),
        },
        holders: slabs.holders(index),
        waiters: WaiterSet(endpoint.waiters),
    }
}

fn stream(tcb: &Tcb) -> StreamView {
    let (recv_queued, send_queued) = if tcb.state() == TcpState::Listen {
        (tcb.accept_count, tcb.backlog)
    } else {
        (tcb.rx_bytes, distance(tcb.snd_una, tcb.write_seq))
    };
    StreamView {
        recv_queued,
        send_queued,
        segments_in: tcb.segs_in,
        segments_out: tcb.segs_out,
    }
}
