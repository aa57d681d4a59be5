//! One stack, its wire and its clock.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;

use bypass_runtime::tcp_settings;
use bypass_stack::wire::tcp::{self, Headers, Options, flags};
use bypass_stack::wire::{TxChecksum, icmp};
use bypass_stack::{
    Capacities, ChunkId, DropReason, EndpointId, FrameOutcome, Instant, Memory, ProcessId,
    QueuePairInfo, RxChecksum, RxFrame, Stack, image_bytes,
};
use zerocopy::IntoBytes;

use crate::bursts::{Bursts, pieces};
use crate::kernel;
use crate::ready::EpollSet;

/// Ours and the peer's, in front of packets that have no Ethernet header in a script.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The peer's.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Where the clock begins, in nanoseconds.
const BEGIN: u64 = 1_000_000_000_000;
const CAPACITIES: Capacities = Capacities {
    endpoints: 64,
    chunks: 8192,
    chunk_size: 2048,
};

/// Packet memory in a vector.
#[derive(Debug)]
pub struct Packets(Vec<u8>);

fn range(id: ChunkId) -> std::ops::Range<usize> {
    let size = CAPACITIES.chunk_size as usize;
    let start = (id.0 as usize).saturating_mul(size);
    start..start.saturating_add(size)
}

impl Memory for Packets {
    fn chunk_size(&self) -> usize {
        CAPACITIES.chunk_size as usize
    }

    fn chunk(&self, id: ChunkId) -> &[u8] {
        self.0.get(range(id)).unwrap_or(&[])
    }

    fn chunk_mut(&mut self, id: ChunkId) -> &mut [u8] {
        self.0.get_mut(range(id)).unwrap_or(&mut [])
    }
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nothing yet: the kernel's socket knows where it is bound.
    Fresh,
    /// It listens.
    Listener(EndpointId),
    /// It has, or had, a connection.
    Connection {
        /// In the stack.
        id: EndpointId,
        /// connect has been called and its end was not told yet.
        connecting: bool,
    },
}

impl Socket {
    /// Its endpoint.
    #[must_use]
    pub fn id(self) -> Option<EndpointId> {
        match self {
            Self::Fresh => None,
            Self::Listener(id) | Self::Connection { id, .. } => Some(id),
        }
    }
}

/// Everything.
#[derive(Debug)]
pub struct World {
    words: Vec<u64>,
    packets: Packets,
    /// The one that holds every endpoint.
    pub process: ProcessId,
    /// Nanoseconds.
    pub now: u64,
    /// By descriptor.
    pub sockets: BTreeMap<c_int, Socket>,
    /// By descriptor.
    pub sets: BTreeMap<c_int, EpollSet>,
    /// Packets that have left, and when.
    pub sent: VecDeque<(Vec<u8>, u64)>,
    /// When calls that wait give up.
    pub deadlines: Vec<u64>,
    bursts: Bursts,
}

impl World {
    /// A world without sockets, at the beginning of time.
    #[must_use]
    pub fn new() -> Option<Self> {
        let mut words = vec![0; image_bytes(&CAPACITIES) / 8];
        let mut stack = Stack::create(words.as_mut_bytes(), CAPACITIES, 0x5eed).ok()?;
        let process = stack.add_process(1, 1, 0)?;
        if let Some(info) = stack.queue_pairs_mut().first_mut() {
            info.ifindex = 1;
            info.mac = MAC;
            info.mtu = 1500;
            info.flags = QueuePairInfo::LIVE;
        }
        stack.bump_queue_pairs();
        let bytes = CAPACITIES.chunk_size as usize * CAPACITIES.chunks as usize;
        Some(Self {
            words,
            packets: Packets(vec![0; bytes]),
            process,
            now: BEGIN,
            sockets: BTreeMap::new(),
            sets: BTreeMap::new(),
            sent: VecDeque::new(),
            deadlines: Vec::new(),
            bursts: Bursts::default(),
        })
    }

    /// The stack, to look at.
    ///
    /// # Panics
    /// If the image is none, which it is since `new`.
    pub fn stack(&mut self) -> Stack<'_> {
        Stack::attach(self.words.as_mut_bytes()).expect("the image was made here")
    }

    /// Does something with the stack, and what a holder of its lock does before it lets go.
    ///
    /// # Panics
    /// As [`World::stack`].
    pub fn with<T>(&mut self, act: impl FnOnce(&mut Stack<'_>, &mut Packets, Instant) -> T) -> T {
        let now = Instant(self.now);
        let packets = &mut self.packets;
        let mut stack = Stack::attach(self.words.as_mut_bytes()).expect("the image was made here");
        let result = act(&mut stack, packets, now);
        stack.flush(packets, now);
        while stack.take_flow_change().is_some() {}
        while stack.take_ended().is_some() {}
        let ids = self.sockets.values().filter_map(|socket| socket.id());
        self.bursts.note_sizes(ids.filter_map(|id| {
            let port = stack.tcp_status(id).ok()?.remote.port;
            Some((port, stack.tcp_info(id, now).ok()?))
        }));
        while let Some(frame) = stack.poll_transmit(0) {
            let start = frame.offset as usize + ETHERNET;
            let end = (frame.offset + frame.len) as usize;
            let bytes = packets.chunk(frame.chunk).get(start..end);
            let bytes = bytes.unwrap_or_default().to_vec();
            let last = self.sent.back_mut().filter(|(_, at)| *at == now.0);
            if !last.is_some_and(|(last, _)| self.bursts.join(last, &bytes)) {
                self.bursts.first(&bytes);
                self.sent.push_back((bytes, now.0));
            }
            stack.release_chunk(frame.chunk);
        }
        result
    }

    /// A chunk's bytes.
    #[must_use]
    pub fn bytes(&self, chunk: ChunkId) -> &[u8] {
        self.packets.chunk(chunk)
    }

    /// The host's settings as they are now: scripts change them.
    pub fn follow_settings(&mut self) {
        let mut stack = self.stack();
        tcp_settings::read(stack.tcp_defaults_mut());
    }

    /// The MTU of the device that the namespace has.
    pub fn follow_mtu(&mut self) {
        if let Some(mtu) = kernel::device_mtu()
            && let Some(info) = self.stack().queue_pairs_mut().first_mut()
        {
            info.mtu = mtu;
        }
    }

    /// A packet from the peer.
    pub fn receive(&mut self, packet: &[u8]) {
        let is_v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
        let protocol = packet.get(if is_v4 { 9 } else { 6 }).copied();
        let error = match protocol {
            Some(1) if is_v4 => icmp::parse_v4(packet),
            Some(58) => packet.get(40..).and_then(icmp::parse_v6),
            _ => {
                let kind = if is_v4 { [8, 0] } else { [0x86, 0xdd] };
                let frame = [&MAC[..], &PEER_MAC, &kind, packet].concat();
                self.frames(&pieces(frame));
                return;
            }
        };
        if let Some(error) = error {
            self.with(|stack, packets, now| stack.tcp_icmp(packets, &error, now));
        }
    }

    /// Frames that arrive together.
    fn frames(&mut self, frames: &[Vec<u8>]) {
        let outcome = self.with(|stack, packets, now| {
            let mut last = None;
            for frame in frames {
                let chunk = stack.take_chunk()?;
                let room = packets.chunk_mut(chunk).get_mut(192..192 + frame.len());
                let Some(room) = room else {
                    stack.release_chunk(chunk);
                    return None;
                };
                room.copy_from_slice(frame);
                let frame = RxFrame {
                    chunk,
                    offset: 192,
                    len: frame.len() as u32,
                    queue_pair: 0,
                    checksum: RxChecksum::Unknown,
                    timestamp_ns: 0,
                };
                last = Some(stack.handle_frame(packets, frame, now));
            }
            last
        });
        if let [.., frame] = frames
            && outcome == Some(FrameOutcome::Dropped(DropReason::NoEndpoint))
        {
            self.refuse(frame);
        }
    }

    /// A segment for nobody: its reset, which is the kernel's to send
    /// (RFC 9293 section 3.10.7.1).
    fn refuse(&mut self, frame: &[u8]) {
        let Ok(found) = tcp::parse(frame, &MAC, RxChecksum::Unknown) else {
            return;
        };
        if found.flags & flags::RST != 0 {
            return;
        }
        let taken = u32::from(found.payload_len)
            + u32::from(found.flags & flags::SYN != 0)
            + u32::from(found.flags & flags::FIN != 0);
        let (seq, ack, flags) = if found.flags & flags::ACK != 0 {
            (found.ack, 0, flags::RST)
        } else {
            (0, found.seq.wrapping_add(taken), flags::RST | flags::ACK)
        };
        let headers = Headers {
            source_mac: MAC,
            destination_mac: PEER_MAC,
            source: found.destination,
            destination: found.source,
            source_port: found.destination_port,
            destination_port: found.source_port,
            seq,
            ack,
            flags,
            window: 0,
            urgent: 0,
            tos: 0,
            ttl: 64,
            ipv4_id: 0,
            options: Options::default(),
            checksum: TxChecksum::Whole,
        };
        let mut frame = vec![0; tcp::headers_len(found.destination.is_v4(), &headers.options)];
        tcp::emit(&mut frame, &headers);
        self.sent.push_back((frame.split_off(ETHERNET), self.now));
    }

    /// When something happens next of itself: a timer, or a call that gives up.
    pub fn next_event(&mut self) -> Option<u64> {
        let timer = self.stack().next_deadline().map(|at| at.0);
        timer
            .into_iter()
            .chain(self.deadlines.iter().copied())
            .min()
    }

    /// Lets time pass up to the next event, or up to `until` when that is earlier. Whether there
    /// was an event.
    pub fn pass(&mut self, until: u64) -> bool {
        match self.next_event().filter(|next| *next <= until) {
            Some(next) => {
                self.now = self.now.max(next);
                self.with(|stack, packets, now| stack.run_timers(packets, now));
                true
            }
            None => {
                self.now = self.now.max(until);
                false
            }
        }
    }
}
