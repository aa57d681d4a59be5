//! UDP endpoints: open, bind and connect, receive queue. Sending is in `send`.
//!
//! A datagram that arrives stays in its chunk; the endpoint's receive queue is a list of chunks,
//! and the one copy is made by the caller at `recv` ([`Stack::udp_front`], then
//! [`Stack::udp_pop`]).
//!
//! Receive buffer: `receive_buffer` has the rules, and as in Linux an empty queue always takes one
//! datagram.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::chunk::next_generation;
use crate::counters::{Counter, DropReason};
use crate::image::{ChunkSlot, NONE, UdpOptions, UdpState, chunk_state, kind};
use crate::receive_buffer::{self, Charge};
use crate::stack::Stack;
use crate::types::{ChunkId, EndpointId, Family, IpAddress, ProcessId, SocketAddress, Stale};
use zerocopy::FromZeros;

/// What [`Stack::udp_open`] needs.
#[derive(Clone, Copy, Debug)]
pub struct UdpOpen {
    /// Which packets it takes.
    pub family: Family,
    /// Local address; any = every local address. Port 0 = not bound yet, receives nothing.
    pub local: SocketAddress,
    /// Remote address if connected.
    pub remote: Option<SocketAddress>,
    /// First holder.
    pub process: ProcessId,
    /// Options.
    pub options: UdpOptions,
    /// The shadow socket's SO_COOKIE, for tools.
    pub shadow_cookie: u64,
    /// SO_BINDTODEVICE's interface, or 0.
    pub ifindex: u32,
}

/// Why no endpoint was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The slab of endpoints is full.
    Full,
    /// The process slot is not in use.
    NoProcess,
    /// The connection's 4-tuple is taken.
    InUse,
    /// The process rests ([`Stack::rest_process`]).
    Resting,
}

/// A received datagram at the head of an endpoint's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Chunk that holds the payload.
    pub chunk: ChunkId,
    /// Bytes from the start of the chunk to the payload.
    pub offset: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Sender.
    pub remote: SocketAddress,
    /// The address it was sent to.
    pub local: IpAddress,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Queue pair it came by, or [`crate::QUEUE_PAIR_HAIRPIN`] for hairpin.
    pub queue_pair: u8,
    /// When it was received, nanoseconds of `CLOCK_REALTIME`.
    pub timestamp_ns: u64,
    /// The endpoint's count of drops when this datagram was queued (SO_RXQ_OVFL).
    pub drops: u32,
}

/// What an endpoint looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpStatus {
    /// Datagrams queued.
    pub queued: u32,
    /// Bytes charged against the receive buffer.
    pub queued_bytes: u32,
    /// Datagrams ever queued, wrapping (an edge for edge-triggered epoll).
    pub arrivals: u32,
    /// Datagrams dropped because the endpoint was full, wrapping.
    pub drops: u32,
    /// Local address.
    pub local: SocketAddress,
    /// Remote address if connected.
    pub remote: Option<SocketAddress>,
    /// The filter that feeds it, as [`Stack::set_filter`] noted it; 0 = none.
    pub filter: u32,
    /// Which packets it takes.
    pub family: Family,
    /// The interface that it is bound to; 0 = any.
    pub ifindex: u32,
}

/// A datagram about to be queued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) remote: SocketAddress,
    pub(crate) local: IpAddress,
    pub(crate) offset: u32,
    pub(crate) len: u16,
    pub(crate) charge: Charge,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) queue_pair: u8,
    pub(crate) timestamp_ns: u64,
}

impl UdpState {
    /// Why it would not take a datagram now; `free` of how many chunks are free.
    #[inline]
    fn refuses(&self, charge: Charge, free: (u32, u32)) -> Option<DropReason> {
        if self.queued == 0 {
            return None;
        }
        let limit = self.options.rcvbuf_bytes;
        receive_buffer::refuses(self.queued, self.queued_bytes, charge, limit, free)
    }
}

impl Stack<'_> {
    /// Opens an endpoint, held by `open.process`.
    pub fn udp_open(&mut self, open: &UdpOpen) -> Result<EndpointId, OpenError> {
        self.may_open(open.process)?;
        let index = self.take_endpoint(kind::UDP).ok_or(OpenError::Full)?;
        let endpoint = self
            .endpoints
            .get_mut(index as usize)
            .ok_or(OpenError::Full)?;
        endpoint.family = open.family as u8;
        endpoint.ifindex = open.ifindex;
        endpoint.shadow_cookie = open.shadow_cookie;
        let generation = endpoint.generation;
        *self.udp.get_mut(index as usize).ok_or(OpenError::Full)? = UdpState::new(open.options);
        self.set_holder(index, open.process, true);
        let id = EndpointId { index, generation };
        let _ = self.udp_rebind(id, open.local, open.remote);
        Ok(id)
    }

    /// Takes an endpoint off the free list, empty and in no table. `None` (counted) when there is
    /// none.
    pub(crate) fn take_endpoint(&mut self, kind: u8) -> Option<u32> {
        let index = self.head.free_endpoint;
        let order = self.head.bind_order.wrapping_add(1);
        match self.endpoints.get_mut(index as usize) {
            Some(endpoint) if endpoint.kind == kind::FREE => {
                let generation = endpoint.generation.max(1);
                self.head.free_endpoint = endpoint.next;
                endpoint.zero();
                endpoint.kind = kind;
                endpoint.generation = generation;
                endpoint.next = NONE;
                endpoint.previous = NONE;
                endpoint.bind_order = order;
            }
            _ => {
                if index != NONE {
                    self.head.free_endpoint = NONE;
                    self.count(Counter::CorruptList);
                }
                self.count(Counter::EndpointsFull);
                return None;
            }
        }
        self.head.live_endpoints = self.head.live_endpoints.saturating_add(1);
        self.count(Counter::EndpointsOpened);
        Some(index)
    }

    /// Gives an endpoint other addresses: bind, connect (again), or `remote` none to dissolve the
    /// association. Datagrams already queued stay, as in Linux.
    pub fn udp_rebind(
        &mut self,
        id: EndpointId,
        local: SocketAddress,
        remote: Option<SocketAddress>,
    ) -> Result<(), Stale> {
        self.endpoint(id)?;
        self.unlink_endpoint(id.index);
        let order = self.head.bind_order.wrapping_add(1);
        self.head.bind_order = order;
        let endpoint = self.endpoint_mut(id)?;
        endpoint.local_ip = local.ip;
        endpoint.local_port = local.port;
        let connected = remote.unwrap_or(SocketAddress::UNSPECIFIED);
        endpoint.remote_ip = connected.ip;
        endpoint.remote_port = connected.port;
        endpoint.connected = u8::from(remote.is_some());
        endpoint.bind_order = order;
        self.link_endpoint(id.index);
        Ok(())
    }

    /// Changes SO_BINDTODEVICE: 0 = any interface.
    pub fn udp_bind_device(&mut self, id: EndpointId, ifindex: u32) -> Result<(), Stale> {
        self.endpoint_mut(id)?.ifindex = ifindex;
        Ok(())
    }

    /// Changes the family (IPV6_V6ONLY may change until bind).
    pub fn udp_family(&mut self, id: EndpointId, family: Family) -> Result<(), Stale> {
        self.endpoint_mut(id)?.family = family as u8;
        Ok(())
    }

    /// The options, to read or change; a change acts on the next datagram.
    pub fn udp_options(&mut self, id: EndpointId) -> Result<&mut UdpOptions, Stale> {
        Ok(&mut self.udp_state(id)?.options)
    }

    /// The datagram at the head of the receive queue.
    #[inline]
    pub fn udp_front(&self, id: EndpointId) -> Result<Option<Datagram>, Stale> {
        let head = self.udp_of(id)?.queue_head;
        Ok(self.queued(id.index, head).map(|slot| Datagram {
            chunk: ChunkId(head),
            offset: u32::from(slot.offset),
            len: u32::from(slot.len),
            remote: SocketAddress::new(slot.remote_ip, slot.remote_port),
            local: slot.local_ip,
            tos: slot.tos,
            ttl: slot.ttl,
            queue_pair: slot.queue_pair,
            timestamp_ns: slot.timestamp_ns,
            drops: slot.drops,
        }))
    }

    /// Takes the head of the receive queue off and frees its chunk. Nothing queued: no effect.
    #[inline]
    pub fn udp_pop(&mut self, id: EndpointId) -> Result<(), Stale> {
        let head = self.udp_of(id)?.queue_head;
        if head == NONE {
            return Ok(());
        }
        let Some((next, charge)) = self
            .queued(id.index, head)
            .map(|slot| (slot.next, Charge(slot.charge).bytes()))
        else {
            self.count(Counter::CorruptList);
            return self.forget_queue(id);
        };
        let udp = self.udp.get_mut(id.index as usize).ok_or(Stale)?;
        udp.queue_head = next;
        udp.queued = udp.queued.saturating_sub(1);
        udp.queued_bytes = udp.queued_bytes.saturating_sub(charge);
        if next == NONE {
            udp.queue_tail = NONE;
            udp.queued = 0;
            udp.queued_bytes = 0;
        }
        // Off the queue first, so that a death in between does not break it.
        compiler_fence(Ordering::Release);
        self.put_free(head);
        Ok(())
    }

    /// What the endpoint looks like. A broken queue counts as empty.
    pub fn udp_status(&self, id: EndpointId) -> Result<UdpStatus, Stale> {
        let endpoint = self.endpoint(id)?;
        let udp = self.udp_of(id)?;
        let readable = self.queued(id.index, udp.queue_head).is_some();
        let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
        Ok(UdpStatus {
            queued: if readable { udp.queued.max(1) } else { 0 },
            queued_bytes: if readable { udp.queued_bytes } else { 0 },
            arrivals: udp.arrivals,
            drops: udp.drops,
            local: SocketAddress::new(endpoint.local_ip, endpoint.local_port),
            remote: (endpoint.connected != 0).then_some(remote),
            filter: endpoint.filter,
            family: Family::from_byte(endpoint.family),
            ifindex: endpoint.ifindex,
        })
    }

    /// Notes which filter feeds the endpoint; 0 = none. A stale id is ignored.
    pub fn set_filter(&mut self, id: EndpointId, filter: u32) {
        if let Ok(endpoint) = self.endpoint_mut(id) {
            endpoint.filter = filter;
        }
    }

    /// Why an endpoint would not take a datagram now.
    #[inline]
    pub(crate) fn refuses(&self, index: u32, charge: Charge) -> Option<DropReason> {
        let free = (self.head.free_chunks, self.chunks.len() as u32);
        self.udp.get(index as usize)?.refuses(charge, free)
    }

    /// Notes how many frames a queue pair's NIC has lost since it was opened, wrapping.
    ///
    /// Whose they were nobody knows. When only one endpoint has ever received anything they are
    /// counted as its drops, as the kernel counts what finds no room in a socket's buffer.
    #[cold]
    pub fn note_missed(&mut self, queue_pair: u8, total: u32) {
        let Some(info) = self.head.queue_pairs.get_mut(usize::from(queue_pair)) else {
            return;
        };
        let more = total.wrapping_sub(info.rx_missed);
        info.rx_missed = total;
        let all = self.endpoints.iter().zip(self.udp.iter_mut());
        let mut receivers = all
            .filter(|(endpoint, udp)| endpoint.kind == kind::UDP && udp.rx_datagrams > 0)
            .map(|(_, udp)| udp);
        if let (Some(only), None) = (receivers.next(), receivers.next()) {
            only.drops = only.drops.wrapping_add(more);
        }
    }

    /// Counts datagrams that the caller had the kernel cut out of one large send.
    pub fn count_datagrams_by_gso(&mut self, datagrams: u64) {
        self.count_by(Counter::DatagramsByGso, datagrams);
    }

    #[cold]
    pub(crate) fn count_endpoint_drop(&mut self, index: u32) {
        if let Some(udp) = self.udp.get_mut(index as usize) {
            udp.drops = udp.drops.wrapping_add(1);
        }
    }

    /// Puts a datagram on an endpoint's receive queue; its chunk is in no list. On an error the
    /// chunk is still the caller's.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        index: u32,
        chunk: ChunkId,
        arrival: &Arrival,
    ) -> Result<EndpointId, DropReason> {
        let free = (self.head.free_chunks, self.chunks.len() as u32);
        let Some(udp) = self.udp.get_mut(index as usize) else {
            return Err(DropReason::Corrupt);
        };
        if let Some(reason) = udp.refuses(arrival.charge, free) {
            udp.drops = udp.drops.wrapping_add(1);
            return Err(reason);
        }
        let Some(slot) = self.chunks.get_mut(chunk.0 as usize) else {
            return Err(DropReason::Corrupt);
        };
        let before = slot.state;
        slot.next = NONE;
        slot.owner = index;
        slot.state = chunk_state::QUEUED;
        slot.offset = arrival.offset as u16;
        slot.len = arrival.len;
        slot.queue_pair = arrival.queue_pair;
        slot.tos = arrival.tos;
        slot.ttl = arrival.ttl;
        slot.timestamp_ns = arrival.timestamp_ns;
        slot.remote_ip = arrival.remote.ip;
        slot.remote_port = arrival.remote.port;
        slot.local_ip = arrival.local;
        slot.drops = udp.drops;
        slot.charge = arrival.charge.0;
        // Whoever is killed here leaves a queue whose datagrams are whole: a recovery keeps them.
        compiler_fence(Ordering::Release);

        if udp.queue_head == NONE {
            udp.queue_head = chunk.0;
            udp.queued = 0;
            udp.queued_bytes = 0;
        } else {
            match self.chunks.get_mut(udp.queue_tail as usize) {
                Some(tail) if tail.state == chunk_state::QUEUED && tail.owner == index => {
                    tail.next = chunk.0;
                }
                _ => {
                    if let Some(slot) = self.chunks.get_mut(chunk.0 as usize) {
                        slot.state = before;
                    }
                    return Err(DropReason::Corrupt);
                }
            }
        }
        udp.queue_tail = chunk.0;
        udp.queued = udp.queued.saturating_add(1);
        udp.queued_bytes = udp.queued_bytes.saturating_add(arrival.charge.bytes());
        udp.arrivals = udp.arrivals.wrapping_add(1);
        udp.rx_datagrams = udp.rx_datagrams.wrapping_add(1);
        let generation = self
            .endpoints
            .get(index as usize)
            .map_or(0, |it| it.generation);
        self.notify(index);
        Ok(EndpointId { index, generation })
    }

    /// Destroys an endpoint: out of the tables, its queued chunks free, its slot free.
    pub(crate) fn destroy(&mut self, id: EndpointId) {
        if self.endpoint(id).is_err() {
            return;
        }
        self.unlink_endpoint(id.index);
        self.end_watch(id.index);
        self.drop_notices(id.index);
        for _ in 0..self.chunks.len() {
            match self.udp_state(id) {
                Ok(udp) if udp.queue_head != NONE => {
                    let _ = self.udp_pop(id);
                }
                _ => break,
            }
        }
        self.clear_holders(id.index);
        let free = self.head.free_endpoint;
        if let Ok(endpoint) = self.endpoint_mut(id) {
            endpoint.generation = next_generation(id.generation);
            endpoint.kind = kind::FREE;
            endpoint.waiters = [0, 0];
            endpoint.next = free;
            self.head.free_endpoint = id.index;
        }
        self.head.live_endpoints = self.head.live_endpoints.saturating_sub(1);
        self.count(Counter::EndpointsDestroyed);
    }

    /// The chunk's slot, if it really is queued on this endpoint.
    #[inline]
    fn queued(&self, endpoint: u32, chunk: u32) -> Option<&ChunkSlot> {
        self.chunks
            .get(chunk as usize)
            .filter(|slot| slot.state == chunk_state::QUEUED && slot.owner == endpoint)
    }

    /// Makes a broken receive queue empty. Its chunks are lost until a recovery.
    #[cold]
    fn forget_queue(&mut self, id: EndpointId) -> Result<(), Stale> {
        let udp = self.udp_state(id)?;
        udp.queue_head = NONE;
        udp.queue_tail = NONE;
        udp.queued = 0;
        udp.queued_bytes = 0;
        Ok(())
    }

    /// What a UDP endpoint has of its own.
    #[inline]
    pub(crate) fn udp_of(&self, id: EndpointId) -> Result<&UdpState, Stale> {
        if self.endpoint(id)?.kind != kind::UDP {
            return Err(Stale);
        }
        self.udp.get(id.index as usize).ok_or(Stale)
    }

    /// The same, to change.
    #[inline]
    pub(crate) fn udp_state(&mut self, id: EndpointId) -> Result<&mut UdpState, Stale> {
        if self.endpoint(id)?.kind != kind::UDP {
            return Err(Stale);
        }
        self.udp.get_mut(id.index as usize).ok_or(Stale)
    }
}
