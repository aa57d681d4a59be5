//! [`Stack`]: the view of an image through which everything is done; frames in, frames out.
//!
//! The caller holds the stack's lock for as long as it holds a `&mut Stack`. Frames come one at
//! a time through [`Stack::handle_frame`]; frames to send are taken with
//! [`Stack::poll_transmit`]; whom to wake after unlocking is in [`Stack::take_wakeups`].

use crate::counters::{Counter, Counters, DropReason};
use crate::demux::Addresses;
use crate::image::{
    ASKS_TIME, Capacities, ChunkSlot, Endpoint, Head, LAYOUT_VERSION, LayoutError, MAGIC, NONE,
    QueuePairInfo, ReadyLink, UNLISTED, UdpState, chunk_state, image_bytes, split,
    stated_capacities,
};
use crate::receive_buffer::Charge;
use crate::tcp::TcpDefaults;
use crate::tcp::mini::Mini;
use crate::tcp::notices::{NoticeQueue, NoticeSlot};
use crate::tcp::pool::SegmentSlot;
use crate::tcp::tcb::Tcb;
use crate::types::{
    ChunkId, EndpointId, Instant, Memory, QUEUE_PAIRS, SocketAddress, Stale, WaiterSet,
};
use crate::udp::Arrival;
use crate::wire;
use core::cell::Cell;
use zerocopy::FromZeros;

/// A frame from a queue pair's RX ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxFrame {
    /// Chunk that holds it; must be in state Posted.
    pub chunk: ChunkId,
    /// Bytes from the start of the chunk to the frame.
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// Queue pair that received it.
    pub queue_pair: u8,
    /// What is known of its UDP or TCP checksum.
    pub checksum: RxChecksum,
    /// When it was received, nanoseconds of `CLOCK_REALTIME`; 0 = unknown.
    pub timestamp_ns: u64,
}

/// What is known of the UDP or TCP checksum of a frame that came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RxChecksum {
    /// Nothing: it must be right.
    #[default]
    Unknown,
    /// It may cover only the pseudo-header: a veth peer leaves the rest to a card that never comes.
    Partial,
    /// The card has found it right.
    Good,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameOutcome {
    /// The endpoint keeps the chunk.
    Delivered(EndpointId),
    /// It has done its work (an acknowledgement, a handshake); its chunk is free again.
    Handled,
    /// The chunk is free again (unless the reason is [`DropReason::BadChunk`]).
    Dropped(DropReason),
}

/// A frame to put into a TX ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Chunk that holds it, in state Sending until it is released.
    pub chunk: ChunkId,
    /// Bytes from the start of the chunk to the frame.
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// The number by which [`Stack::tcp_left`] is to be told when it has left; 0 = nobody asks.
    pub stamp: u32,
}

/// A stack: the view of one image.
#[derive(Debug)]
pub struct Stack<'a> {
    pub(crate) head: &'a mut Head,
    pub(crate) ports: &'a mut [u32],
    pub(crate) flows: &'a mut [u32],
    pub(crate) endpoints: &'a mut [Endpoint],
    pub(crate) chunks: &'a mut [ChunkSlot],
    pub(crate) held: &'a mut [u64],
    pub(crate) ready: &'a mut [ReadyLink],
    pub(crate) udp: &'a mut [UdpState],
    pub(crate) tcbs: &'a mut [Tcb],
    pub(crate) minis: &'a mut [Mini],
    pub(crate) mini_buckets: &'a mut [u32],
    pub(crate) segments: &'a mut [SegmentSlot],
    pub(crate) notice_queues: &'a mut [NoticeQueue],
    pub(crate) notices: &'a mut [NoticeSlot],
    caps: Capacities,
    /// A look-up met a chain longer than the slab; the next frame rebuilds the tables.
    pub(crate) chain_broken: Cell<bool>,
}

impl<'a> Stack<'a> {
    /// Makes a new, empty stack in these bytes, which must be zero, aligned to 8 and at least
    /// [`image_bytes`] long. `seed` keys the hash tables: give it random bits. What a connection
    /// would use is not touched, so that it takes no memory before.
    pub fn create(bytes: &'a mut [u8], caps: Capacities, seed: u64) -> Result<Self, LayoutError> {
        let mut stack = Self::over(bytes, caps)?;
        stack.head.zero();
        stack.head.endpoint_capacity = caps.endpoints;
        stack.head.chunk_capacity = caps.chunks;
        stack.head.chunk_size = caps.chunk_size;
        stack.head.image_bytes = image_bytes(&caps) as u64;
        stack.head.seed = seed;
        // Nobody is told what was meant for the stack before.
        stack.head.stamped_frames = seed;
        for list in &mut stack.head.transmit {
            list.head = NONE;
            list.tail = NONE;
        }
        stack.ports.fill(NONE);
        stack.flows.fill(NONE);
        let mut next = NONE;
        for (index, endpoint) in stack.endpoints.iter_mut().enumerate().rev() {
            endpoint.zero();
            endpoint.generation = 1;
            endpoint.next = next;
            next = index as u32;
        }
        stack.head.free_endpoint = next;
        for slot in stack.chunks.iter_mut() {
            slot.zero();
        }
        stack.held.fill(0);
        stack.ready.fill(ReadyLink {
            next: UNLISTED,
            previous: NONE,
        });
        stack.rebuild_free_chunks();
        stack.head.tcp_defaults = TcpDefaults::new();
        stack.begin_tcp();
        stack.head.version = LAYOUT_VERSION;
        stack.head.magic = MAGIC;
        Ok(stack)
    }

    /// Views an image that [`Stack::create`] has made. Magic, version and sizes are checked; the
    /// rest of the content may be anything.
    pub fn attach(bytes: &'a mut [u8]) -> Result<Self, LayoutError> {
        let caps = stated_capacities(bytes)?;
        Self::over(bytes, caps)
    }

    fn over(bytes: &'a mut [u8], caps: Capacities) -> Result<Self, LayoutError> {
        let slabs = split(bytes, &caps)?;
        Ok(Self {
            head: slabs.head,
            ports: slabs.ports,
            flows: slabs.flows,
            endpoints: slabs.endpoints,
            chunks: slabs.chunks,
            held: slabs.held,
            ready: slabs.ready,
            udp: slabs.udp,
            tcbs: slabs.tcbs,
            minis: slabs.minis,
            mini_buckets: slabs.mini_buckets,
            segments: slabs.segments,
            notice_queues: slabs.notice_queues,
            notices: slabs.notices,
            caps,
            chain_broken: Cell::new(false),
        })
    }
}

impl Stack<'_> {
    /// What the image has room for.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        self.caps
    }

    /// How many endpoints can still be made.
    #[must_use]
    pub fn free_endpoints(&self) -> u32 {
        let all = self.endpoints.len() as u32;
        all.saturating_sub(self.head.live_endpoints)
    }

    /// Takes a frame in. Its chunk must be Posted; afterwards it is kept by the endpoint or free.
    ///
    /// An endpoint with parked waiters puts them into [`Stack::take_wakeups`], and those of its
    /// watcher.
    #[inline]
    pub fn handle_frame(
        &mut self,
        memory: &mut impl Memory,
        frame: RxFrame,
        now: Instant,
    ) -> FrameOutcome {
        match self.chunks.get_mut(frame.chunk.0 as usize) {
            Some(slot) if slot.state == chunk_state::POSTED => {
                slot.timestamp_ns = frame.timestamp_ns;
                slot.queue_pair = frame.queue_pair;
            }
            _ => {
                self.count_drop(DropReason::BadChunk);
                return FrameOutcome::Dropped(DropReason::BadChunk);
            }
        }
        let now = self.forward(now);
        self.head.last_frame_ns = now.0;
        match self.receive(memory, frame, now) {
            Ok(outcome) => outcome,
            Err(reason) => {
                self.put_free(frame.chunk.0);
                self.count_drop(reason);
                FrameOutcome::Dropped(reason)
            }
        }
    }

    /// A caller's time, not before the last one's: whoever has read the clock before he got the
    /// lock would make round trips that take less than nothing. A step back of a second and more is
    /// another clock.
    #[inline]
    pub(crate) fn forward(&mut self, now: Instant) -> Instant {
        /// Longer than anybody waits between the clock and the lock.
        const SECOND: u64 = 1_000_000_000;
        let latest = self.head.latest_ns;
        if latest.saturating_sub(now.0) < SECOND {
            self.head.latest_ns = latest.max(now.0);
        } else {
            self.head.latest_ns = now.0;
        }
        Instant(self.head.latest_ns)
    }

    /// Parse, demux, deliver.
    #[inline]
    fn receive(
        &mut self,
        memory: &mut impl Memory,
        frame: RxFrame,
        now: Instant,
    ) -> Result<FrameOutcome, DropReason> {
        let (mac, ifindex) = match self.head.queue_pairs.get_mut(usize::from(frame.queue_pair)) {
            Some(info) => {
                info.rx_packets = info.rx_packets.wrapping_add(1);
                info.rx_bytes = info.rx_bytes.wrapping_add(u64::from(frame.len));
                (info.mac, info.ifindex)
            }
            None => ([0; 6], 0),
        };
        let end = (frame.offset as usize).saturating_add(frame.len as usize);
        let bytes = memory
            .chunk(frame.chunk)
            .get(frame.offset as usize..end)
            .ok_or(DropReason::Truncated)?;
        if wire::tcp::is_tcp(bytes) {
            return self.receive_tcp(memory, frame, now);
        }
        let datagram = wire::parse(bytes, &mac, frame.checksum)?;
        let to = Addresses {
            local: SocketAddress::new(datagram.destination, datagram.destination_port),
            remote: SocketAddress::new(datagram.source, datagram.source_port),
            ifindex,
            is_v4: datagram.destination.is_v4(),
        };
        let found = self.find(&to);
        if self.chain_broken.get() {
            self.rebuild_tables();
        }
        let index = found.ok_or(DropReason::NoEndpoint)?;
        let arrival = Arrival {
            remote: to.remote,
            local: to.local.ip,
            offset: frame
                .offset
                .saturating_add(u32::from(datagram.payload_offset)),
            len: datagram.payload_len,
            charge: Charge::of(datagram.payload_len, to.is_v4),
            tos: datagram.tos,
            ttl: datagram.ttl,
            queue_pair: frame.queue_pair,
            timestamp_ns: frame.timestamp_ns,
        };
        let endpoint = self.deliver(index, frame.chunk, &arrival)?;
        self.count(Counter::DatagramsReceived);
        self.count_by(Counter::BytesReceived, u64::from(datagram.payload_len));
        Ok(FrameOutcome::Delivered(endpoint))
    }

    /// The parked waiters of endpoints that got something since the last call. A waiter stays
    /// parked until [`Stack::unpark`], so it may be named again.
    pub fn take_wakeups(&mut self) -> WaiterSet {
        WaiterSet(core::mem::take(&mut self.head.wakeups))
    }

    /// Whether [`Stack::take_wakeups`] would name anybody.
    #[must_use]
    pub fn has_wakeups(&self) -> bool {
        self.head.wakeups != [0; 2]
    }

    /// The next frame to send on a queue pair, first in first out. Its chunk stays Sending until
    /// [`Stack::release_chunk`].
    pub fn poll_transmit(&mut self, queue_pair: u8) -> Option<Transmit> {
        let list = self.head.transmit.get_mut(usize::from(queue_pair))?;
        if list.head == NONE {
            return None;
        }
        let chunk = ChunkId(list.head);
        let asks_time;
        let mut taken = match self.chunks.get_mut(list.head as usize) {
            Some(slot)
                if chunk_state::is_sending(slot.state) && slot.owner == u32::from(queue_pair) =>
            {
                list.head = slot.next;
                list.count = list.count.saturating_sub(1);
                if list.head == NONE {
                    list.tail = NONE;
                }
                slot.owner = NONE;
                slot.next = NONE;
                asks_time = slot.queue_pair & ASKS_TIME != 0;
                Transmit {
                    chunk,
                    offset: u32::from(slot.offset),
                    len: u32::from(slot.len),
                    stamp: 0,
                }
            }
            _ => {
                list.head = NONE;
                list.tail = NONE;
                list.count = 0;
                self.count(Counter::CorruptList);
                return None;
            }
        };
        if let Some(info) = self.head.queue_pairs.get_mut(usize::from(queue_pair)) {
            info.tx_packets = info.tx_packets.wrapping_add(1);
            info.tx_bytes = info.tx_bytes.wrapping_add(u64::from(taken.len));
        }
        if asks_time {
            taken.stamp = self.number_of_frame(chunk.0);
        }
        Some(taken)
    }

    /// Puts a frame back at the head of its list because the TX ring was full. Return several in
    /// reverse order.
    pub fn untransmit(&mut self, queue_pair: u8, transmit: Transmit) {
        let Some(list) = self.head.transmit.get_mut(usize::from(queue_pair)) else {
            return;
        };
        match self.chunks.get_mut(transmit.chunk.0 as usize) {
            Some(slot) if chunk_state::is_sending(slot.state) && slot.owner == NONE => {
                slot.owner = u32::from(queue_pair);
                if transmit.stamp != 0 {
                    slot.queue_pair = ASKS_TIME;
                }
                slot.next = list.head;
                list.head = transmit.chunk.0;
                list.count = list.count.saturating_add(1);
                if list.tail == NONE {
                    list.tail = transmit.chunk.0;
                }
            }
            _ => {
                self.count(Counter::BadChunk);
                return;
            }
        }
        if let Some(info) = self.head.queue_pairs.get_mut(usize::from(queue_pair)) {
            info.tx_packets = info.tx_packets.wrapping_sub(1);
            info.tx_bytes = info.tx_bytes.wrapping_sub(u64::from(transmit.len));
        }
        self.count(Counter::TransmitReturned);
    }

    /// Whether frames wait to be sent on a queue pair.
    #[must_use]
    pub fn has_transmit(&self, queue_pair: u8) -> bool {
        self.head
            .transmit
            .get(usize::from(queue_pair))
            .is_some_and(|list| list.head != NONE)
    }

    /// Appends a chunk in state Sending, not on a list, to a transmit list. `false` if the queue
    /// pair does not exist.
    pub(crate) fn append_transmit(&mut self, queue_pair: u8, chunk: u32) -> bool {
        self.pool().append_transmit(queue_pair, chunk)
    }

    /// Links every live endpoint anew after a chain was found broken.
    #[cold]
    fn rebuild_tables(&mut self) {
        self.chain_broken.set(false);
        self.count(Counter::CorruptList);
        self.ports.fill(NONE);
        self.flows.fill(NONE);
        self.head.connected_endpoints = 0;
        for index in (0..self.endpoints.len() as u32).rev() {
            let live = self
                .endpoints
                .get_mut(index as usize)
                .is_some_and(|endpoint| {
                    endpoint.table = crate::image::table::NONE;
                    endpoint.is_live()
                });
            if live {
                self.link_endpoint(index);
            }
        }
    }

    /// The queue pairs' table, for the owner of the NICs to fill in. Call
    /// [`Stack::bump_queue_pairs`] after a change.
    pub fn queue_pairs_mut(&mut self) -> &mut [QueuePairInfo; QUEUE_PAIRS] {
        &mut self.head.queue_pairs
    }

    /// The queue pairs' table.
    #[must_use]
    pub fn queue_pairs(&self) -> &[QueuePairInfo; QUEUE_PAIRS] {
        &self.head.queue_pairs
    }

    /// Changes whenever the table of queue pairs changed.
    #[must_use]
    pub fn queue_pairs_generation(&self) -> u32 {
        self.head.queue_pairs_generation
    }

    /// Announces a change of the table of queue pairs.
    pub fn bump_queue_pairs(&mut self) {
        self.head.queue_pairs_generation = self.head.queue_pairs_generation.wrapping_add(1);
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters<'_> {
        Counters {
            counters: &self.head.counters,
            drops: &self.head.drops,
        }
    }

    /// Whether the endpoint still exists.
    #[must_use]
    pub fn is_live(&self, id: EndpointId) -> bool {
        self.endpoint(id).is_ok()
    }

    #[inline]
    pub(crate) fn endpoint(&self, id: EndpointId) -> Result<&Endpoint, Stale> {
        match self.endpoints.get(id.index as usize) {
            Some(found) if found.generation == id.generation && found.is_live() => Ok(found),
            _ => Err(Stale),
        }
    }

    #[inline]
    pub(crate) fn endpoint_mut(&mut self, id: EndpointId) -> Result<&mut Endpoint, Stale> {
        match self.endpoints.get_mut(id.index as usize) {
            Some(found) if found.generation == id.generation && found.is_live() => Ok(found),
            _ => Err(Stale),
        }
    }

    #[inline]
    pub(crate) fn count(&mut self, counter: Counter) {
        self.count_by(counter, 1);
    }

    #[inline]
    pub(crate) fn count_by(&mut self, counter: Counter, amount: u64) {
        if let Some(value) = self.head.counters.get_mut(counter as usize) {
            *value = value.wrapping_add(amount);
        }
    }

    #[inline]
    fn count_drop(&mut self, reason: DropReason) {
        if let Some(value) = self.head.drops.get_mut(reason as usize) {
            *value = value.wrapping_add(1);
        }
    }
}
