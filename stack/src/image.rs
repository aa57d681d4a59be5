//! The stack image: layout of the bytes, sizes, and the split into slabs.
//!
//! ```text
//! 0        head      magic, version, capacities, free lists, queue pairs, transmit lists,
//!                    counters, processes, waiters
//! head     ports     buckets: chains of endpoints by local port
//!          flows     buckets: chains of connected endpoints by (remote, local port)
//!          endpoints one `Endpoint` each
//!          chunks    one `ChunkSlot` each
//!          held      a bit per process and endpoint: who has a descriptor of it
//!          ready     one `ReadyLink` per endpoint: the watchers' ready lists
//!          tcbs      one `Tcb` per endpoint: the control blocks of connections and listeners
//!          minis     one `Mini` per endpoint: requests and time waits
//!          mini buckets   chains of minisockets by 4-tuple
//!          segments  one `SegmentSlot` per chunk: what it is on a connection's queue
//!          notice queues, notices   as many as endpoints: what error queues tell of sends
//! ```
//!
//! Rules: no pointer, no `usize`, links are `u32` slab indices with [`NONE`], every type accepts
//! any bit pattern, and enums are stored as integers whose unknown values mean "not in use". The
//! image is native-endian: it never leaves the host. [`LAYOUT_VERSION`] changes with any change of
//! these types or of the counter tables; a view with another version is refused.

use crate::counters::COUNTER_SLOTS;
use crate::holders;
use crate::tcp::TcpDefaults;
use crate::tcp::cookies::Cookies;
use crate::tcp::ended::EndedFilters;
use crate::tcp::flow::FlowChanges;
use crate::tcp::mini::Mini;
use crate::tcp::notices::{NoticeQueue, NoticeSlot, Places};
use crate::tcp::pool::SegmentSlot;
use crate::tcp::ports::LocalPorts;
use crate::tcp::tcb::Tcb;
use crate::tcp::wheel::Wheel;
use crate::types::{IpAddress, PROCESSES, QUEUE_PAIRS, WAITERS, WATCHERS};
use crate::wire::TxChecksum;
use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of an image: "bypassim" in memory.
pub const MAGIC: u64 = u64::from_ne_bytes(*b"bypassim");
/// Version of the layout that this build reads and writes.
pub const LAYOUT_VERSION: u32 = 23;
/// Bit of [`ChunkSlot::queue_pair`]: somebody asks when the frame leaves. Numbers of queue pairs
/// are below it.
pub(crate) const ASKS_TIME: u8 = 1 << 7;
/// Link value: nothing.
pub(crate) const NONE: u32 = u32::MAX;
/// `ReadyLink::next` of an endpoint that is on no ready list.
pub(crate) const UNLISTED: u32 = u32::MAX.wrapping_sub(1);
/// Smallest chunk: holds the headers that we build and one useful payload.
pub const MIN_CHUNK_SIZE: u32 = 256;
/// Largest chunk; offsets and lengths in the image are 16 bits.
pub const MAX_CHUNK_SIZE: u32 = 32768;
/// Most endpoints or chunks of one image; keeps every size far from overflow on any host.
const MAX_SLAB: u32 = 1 << 22;
/// Fewest notices that there is room for.
const LEAST_NOTICES: usize = 256;
/// Image sizes are multiples of the page size.
const PAGE: usize = 4096;
/// Alignment that the bytes of an image need.
const ALIGNMENT: usize = 8;

/// Chunk states (`ChunkSlot::state`). Unknown values are treated as "in no list".
pub(crate) mod chunk_state {
    /// On the free list.
    pub(crate) const FREE: u8 = 0;
    /// Given out: in a fill ring, or on its way there or back.
    pub(crate) const POSTED: u8 = 1;
    /// On the receive queue of endpoint `owner`.
    pub(crate) const QUEUED: u8 = 2;
    /// On the transmit list of queue pair `owner`, or in a TX or completion ring (`owner` none).
    pub(crate) const SENDING: u8 = 3;
    /// On a connection's send queue.
    pub(crate) const RETAINED: u8 = 4;
    /// On a connection's send queue, and being sent as [`SENDING`] says.
    pub(crate) const RETAINED_SENDING: u8 = 5;
    /// On a connection's receive or out-of-order queue.
    pub(crate) const RECEIVED: u8 = 6;

    /// Whether a NIC has it or will.
    pub(crate) const fn is_sending(state: u8) -> bool {
        matches!(state, SENDING | RETAINED_SENDING)
    }
}

/// Bits of `ProcessSlot::live`.
pub(crate) mod process_state {
    /// The slot is in use.
    pub(crate) const LIVE: u32 = 1;
    /// The process leaves its new sockets to the kernel.
    pub(crate) const RESTS: u32 = 2;
}

/// Endpoint kinds (`Endpoint::kind`).
pub(crate) mod kind {
    /// On the free list.
    pub(crate) const FREE: u8 = 0;
    /// A UDP endpoint.
    pub(crate) const UDP: u8 = 1;
    /// A TCP connection or listener.
    pub(crate) const TCP: u8 = 2;
}

/// Demux tables (`Endpoint::table`).
pub(crate) mod table {
    /// In no table (no port yet).
    pub(crate) const NONE: u8 = 0;
    /// In the `ports` chain of its local port.
    pub(crate) const PORTS: u8 = 1;
    /// In the `flows` chain of its remote address and local port.
    pub(crate) const FLOWS: u8 = 2;
}

/// How many endpoints and chunks an image has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Endpoints, 1 to 4 Mi.
    pub endpoints: u32,
    /// Chunks of packet memory, 1 to 4 Mi.
    pub chunks: u32,
    /// Bytes of a chunk, [`MIN_CHUNK_SIZE`] to [`MAX_CHUNK_SIZE`].
    pub chunk_size: u32,
}

/// Why bytes are no stack image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The capacities are outside their ranges.
    Capacities,
    /// The bytes are fewer than the capacities need.
    Size,
    /// The bytes are not aligned to 8.
    Alignment,
    /// The magic number is missing.
    Magic,
    /// Another [`LAYOUT_VERSION`].
    Version,
}

/// What the stack must know of a queue pair. Written by the owner of the NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct QueuePairInfo {
    /// Interface index.
    pub ifindex: u32,
    /// Queue of the interface.
    pub queue_id: u32,
    /// MAC address of the interface; all zero = do not check frames against it.
    pub mac: [u8; 6],
    /// MTU of the interface in bytes.
    pub mtu: u16,
    /// Bits: [`QueuePairInfo::LIVE`] and the others.
    pub flags: u32,
    /// Which backend drives it; numbered by the runtime.
    pub backend: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Frames handed to [`crate::Stack::handle_frame`].
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames taken by [`crate::Stack::poll_transmit`].
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// How often the driver was told of frames to send.
    pub tx_doorbells: u64,
    /// Changes whenever this entry is given to another queue, so that nobody takes his mapping of
    /// the one before for it.
    pub generation: u32,
    /// Frames that the NIC lost because nobody took them or gave it chunks in time, wrapping; as of
    /// the last look after the RX ring was full ([`crate::Stack::note_missed`]).
    pub rx_missed: u32,
}

impl QueuePairInfo {
    /// The queue pair is in use.
    pub const LIVE: u32 = 1;
    /// Its frames may carry partial checksums (veth with a kernel peer).
    pub const PARTIAL_CHECKSUMS: u32 = 2;
    /// Its XDP program runs in native mode.
    pub const NATIVE: u32 = 4;
    /// It moves frames without a copy.
    pub const ZERO_COPY: u32 = 8;
    /// Before each of its frames is a time by the NIC's clock, or zero.
    pub const STAMPS: u32 = 16;
    /// UDP and TCP checksums are completed behind it: those of frames whose checksum is the sum of
    /// the pseudo-header.
    pub const COMPLETES_CHECKSUMS: u32 = 32;
    /// It tells when frames have left, of which that is asked, by the NIC's clock.
    pub const STAMPS_SENT: u32 = 64;

    /// Whether the queue pair is in use.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.flags & Self::LIVE != 0
    }
}

/// What the stack must know of a UDP socket's options, and room for what the shim keeps with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct UdpOptions {
    /// Receive buffer in bytes as `getsockopt(SO_RCVBUF)` returns it (twice the set value).
    pub rcvbuf_bytes: u32,
    /// Send buffer in bytes as `getsockopt(SO_SNDBUF)` returns it. Not used by the stack.
    pub sndbuf_bytes: u32,
    /// Bits: [`UdpOptions::NONBLOCKING`] and the others.
    pub flags: u32,
    /// Bits that only the shim knows.
    pub shim_flags: u32,
    /// SO_RCVTIMEO in milliseconds, 0 = none. Not used by the stack.
    pub rcvtimeo_ms: u32,
    /// SO_SNDTIMEO in milliseconds, 0 = none. Not used by the stack.
    pub sndtimeo_ms: u32,
    /// IP_TOS of IPv4 datagrams sent.
    pub tos: u8,
    /// IP_TTL of IPv4 datagrams sent; 0 = 64.
    pub ttl: u8,
    /// IPV6_TCLASS of IPv6 datagrams sent.
    pub traffic_class: u8,
    /// IPV6_UNICAST_HOPS of IPv6 datagrams sent; 0 = 64.
    pub hop_limit: u8,
    /// Room for the shim.
    pub shim_words: [u32; 3],
}

/// TTL or hop limit when the option is 0 (Linux's ip_default_ttl).
pub(crate) const DEFAULT_TTL: u8 = 64;

impl UdpOptions {
    /// O_NONBLOCK. Not used by the stack.
    pub const NONBLOCKING: u32 = 1;
    /// SO_REUSEPORT: share datagrams with the other endpoints of the same address that have it.
    pub const REUSE_PORT: u32 = 2;
    /// SO_REUSEADDR. Not used by the stack: the kernel's socket has reserved the port.
    pub const REUSE_ADDR: u32 = 4;
    /// SO_NO_CHECK: IPv4 datagrams are sent without UDP checksum.
    pub const CHECKSUM_OFF: u32 = 8;
    /// Set DF in IPv4 datagrams (Linux's default, IP_PMTUDISC_WANT, sets it).
    pub const DONT_FRAGMENT: u32 = 16;
    /// The endpoint rests ([`crate::Stack::rest`]).
    pub const RESTING: u32 = 32;

    /// Linux's defaults: 212992 byte buffers, TTL 64, DF.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rcvbuf_bytes: 212_992,
            sndbuf_bytes: 212_992,
            flags: Self::DONT_FRAGMENT,
            shim_flags: 0,
            rcvtimeo_ms: 0,
            sndtimeo_ms: 0,
            tos: 0,
            ttl: 0,
            traffic_class: 0,
            hop_limit: 0,
            shim_words: [0; 3],
        }
    }

    /// Whether any of the flag bits is set.
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears flag bits.
    pub const fn set(&mut self, flag: u32, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// IP_TOS and IP_TTL, or what IPv6 has in their place, of a datagram sent.
    #[inline]
    pub(crate) const fn tos_and_ttl(&self, is_v4: bool) -> (u8, u8) {
        let (tos, ttl) = if is_v4 {
            (self.tos, self.ttl)
        } else {
            (self.traffic_class, self.hop_limit)
        };
        (tos, if ttl == 0 { DEFAULT_TTL } else { ttl })
    }
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// One endpoint. The first cache line is all that demux reads.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Endpoint {
    pub(crate) local_ip: IpAddress,
    pub(crate) remote_ip: IpAddress,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) ifindex: u32,
    pub(crate) generation: u32,
    pub(crate) kind: u8,
    pub(crate) family: u8,
    pub(crate) table: u8,
    pub(crate) connected: u8,
    /// Grows with every bind or connect of the stack; the youngest of equals wins.
    pub(crate) bind_order: u32,
    /// Chain of the bucket, or of the free list.
    pub(crate) next: u32,
    pub(crate) previous: u32,
    pub(crate) bucket: u32,

    pub(crate) waiters: [u64; 2],
    pub(crate) filter: u32,
    /// The watcher that hears of this endpoint, plus one; 0 = none.
    pub(crate) watcher: u32,
    pub(crate) shadow_cookie: u64,
}

/// What a UDP endpoint has besides, at the same index: its receive queue and its options.
/// Connections have a [`Tcb`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct UdpState {
    pub(crate) queue_head: u32,
    pub(crate) queue_tail: u32,
    pub(crate) queued: u32,
    pub(crate) queued_bytes: u32,
    pub(crate) arrivals: u32,
    pub(crate) drops: u32,
    pub(crate) rx_datagrams: u64,
    pub(crate) tx_datagrams: u64,
    pub(crate) options: UdpOptions,
}

impl UdpState {
    /// Nothing has come.
    pub(crate) const fn new(options: UdpOptions) -> Self {
        Self {
            queue_head: NONE,
            queue_tail: NONE,
            queued: 0,
            queued_bytes: 0,
            arrivals: 0,
            drops: 0,
            rx_datagrams: 0,
            tx_datagrams: 0,
            options,
        }
    }
}

/// One chunk's bookkeeping: one cache line. The datagram fields are valid while it is queued.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct ChunkSlot {
    pub(crate) next: u32,
    pub(crate) owner: u32,
    pub(crate) offset: u16,
    pub(crate) len: u16,
    pub(crate) state: u8,
    /// Of a received frame. Of one to send [`ASKS_TIME`] or not.
    pub(crate) queue_pair: u8,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) timestamp_ns: u64,
    pub(crate) remote_ip: IpAddress,
    pub(crate) local_ip: IpAddress,
    pub(crate) drops: u32,
    pub(crate) remote_port: u16,
    /// What the datagram costs against the receive buffer, in units of 64 bytes.
    pub(crate) charge: u16,
}

/// First-in-first-out list of chunks to send on one queue pair.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct TransmitList {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) count: u32,
    pub(crate) reserved: u32,
}

/// One process that uses the stack.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct ProcessSlot {
    /// Of a child that has no pid yet: the parent's pid.
    pub(crate) start_time: u64,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) generation: u32,
    pub(crate) live: u32,
}

/// An endpoint's place on its watcher's ready list.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct ReadyLink {
    /// The next endpoint, [`NONE`] at the end, [`UNLISTED`] while it is on no list.
    pub(crate) next: u32,
    pub(crate) previous: u32,
}

/// One epoll set that hears of its endpoints by a list.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct WatcherSlot {
    pub(crate) live: u32,
    pub(crate) process: u32,
    pub(crate) head: u32,
    pub(crate) tail: u32,
    /// Endpoints on the list.
    pub(crate) count: u32,
    /// Endpoints that name this watcher.
    pub(crate) endpoints: u32,
    pub(crate) waiters: [u64; 2],
}

/// One thread or epoll set that may park.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct WaiterSlot {
    pub(crate) live: u32,
    pub(crate) process: u32,
}

/// Words that fill the head up to a whole cache line.
const TAIL: usize = 5;

/// The head of the image.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Head {
    pub(crate) magic: u64,
    pub(crate) version: u32,
    pub(crate) endpoint_capacity: u32,
    pub(crate) chunk_capacity: u32,
    pub(crate) chunk_size: u32,
    pub(crate) image_bytes: u64,
    pub(crate) seed: u64,
    pub(crate) last_frame_ns: u64,
    pub(crate) wakeups: [u64; 2],

    pub(crate) free_chunk: u32,
    pub(crate) free_chunks: u32,
    pub(crate) free_endpoint: u32,
    pub(crate) live_endpoints: u32,
    /// Endpoints in the `flows` table; zero lets demux skip it.
    pub(crate) connected_endpoints: u32,
    pub(crate) bind_order: u32,
    pub(crate) ipv4_id: u32,
    pub(crate) queue_pairs_generation: u32,
    /// Ports whose new connections the kernel should have: see [`crate::Stack::pressed`].
    pub(crate) pressed: u64,
    /// The stack as a whole has few places left for requests: 0 or 1.
    pub(crate) is_crowded: u32,
    /// Minisockets that were ever used, the first ones of the slab: the others are on no list.
    pub(crate) used_minis: u32,
    /// The process slots in use.
    pub(crate) live_processes: [u64; 2],
    /// Key of timestamp offsets; 0 = as for everything else.
    pub(crate) timestamp_seed: u64,
    /// The latest time that any caller has told.
    pub(crate) latest_ns: u64,

    pub(crate) counters: [u64; COUNTER_SLOTS],
    pub(crate) drops: [u64; COUNTER_SLOTS],
    pub(crate) queue_pairs: [QueuePairInfo; QUEUE_PAIRS],
    /// One per queue pair, and that of [`crate::QUEUE_PAIR_HAIRPIN`].
    pub(crate) transmit: [TransmitList; QUEUE_PAIRS + 1],
    pub(crate) waiters: [WaiterSlot; WAITERS],
    pub(crate) processes: [ProcessSlot; PROCESSES],
    pub(crate) watchers: [WatcherSlot; WATCHERS],

    pub(crate) tcp_defaults: TcpDefaults,
    pub(crate) cookies: Cookies,
    pub(crate) flush_head: u32,
    pub(crate) free_mini: u32,
    pub(crate) live_minis: u32,
    /// Chunks on the receive sides of connections, and on their send queues.
    pub(crate) received_chunks: u32,
    pub(crate) retained_chunks: u32,
    /// Where the search for a time wait to end goes on.
    pub(crate) mini_hand: u32,
    /// Minisockets that are requests, of all listeners, and that are time waits.
    pub(crate) requests: u32,
    pub(crate) time_waits: u32,
    pub(crate) flow_changes: FlowChanges,
    pub(crate) ended: EndedFilters,
    pub(crate) wheel: Wheel,
    pub(crate) local_ports: LocalPorts,
    /// Listeners that are pressed, by the bit of their port in `pressed`.
    pub(crate) pressed_listeners: [u32; 64],
    pub(crate) notice_queues: Places,
    pub(crate) notices: Places,
    /// The last of the frames whose times of leaving were asked for, wrapping.
    pub(crate) stamped_frames: u64,
    pub(crate) tail: [u64; TAIL],
}

impl Head {
    /// Whether a queue pair tells when frames have left.
    pub(crate) fn stamps_sent(&self, queue_pair: u8) -> bool {
        let info = self.queue_pairs.get(usize::from(queue_pair));
        info.is_some_and(|info| info.flags & QueuePairInfo::STAMPS_SENT != 0)
    }

    /// How much of its checksums a frame for this queue pair has.
    #[inline(always)]
    pub(crate) fn tx_checksum(&self, queue_pair: u8) -> TxChecksum {
        match self.queue_pairs.get(usize::from(queue_pair)) {
            Some(info) if info.flags & QueuePairInfo::COMPLETES_CHECKSUMS != 0 => {
                TxChecksum::Pseudo
            }
            _ => TxChecksum::Whole,
        }
    }
}

const _: () = {
    assert!(size_of::<Endpoint>() == 96);
    assert!(size_of::<UdpState>() == 80);
    assert!(size_of::<ChunkSlot>() == 64);
    assert!(size_of::<QueuePairInfo>() == 72);
    assert!(size_of::<UdpOptions>() == 40);
    assert!(size_of::<Head>().is_multiple_of(64));
    assert!(align_of::<Head>() == ALIGNMENT);
};

/// Byte counts of the parts of an image.
struct Sizes {
    buckets: usize,
    endpoints: usize,
    chunks: usize,
    held: usize,
    ready: usize,
    udp: usize,
    tcbs: usize,
    minis: usize,
    segments: usize,
    notice_queues: usize,
    notices: usize,
    total: usize,
}

impl Sizes {
    /// The sizes for these capacities, which the caller has checked.
    fn of(caps: &Capacities) -> Self {
        // Within MAX_SLAB nothing here can overflow, not even with a 32-bit `usize`.
        let count = (caps.endpoints as usize)
            .saturating_mul(2)
            .next_power_of_two()
            .max(16);
        let buckets = count.saturating_mul(size_of::<u32>());
        let endpoints = (caps.endpoints as usize).saturating_mul(size_of::<Endpoint>());
        let chunks = (caps.chunks as usize).saturating_mul(size_of::<ChunkSlot>());
        let held = holders::words(caps.endpoints as usize).saturating_mul(size_of::<u64>());
        let ready = (caps.endpoints as usize).saturating_mul(size_of::<ReadyLink>());
        let udp = (caps.endpoints as usize).saturating_mul(size_of::<UdpState>());
        let tcbs = (caps.endpoints as usize).saturating_mul(size_of::<Tcb>());
        let minis = (caps.endpoints as usize).saturating_mul(size_of::<Mini>());
        let segments = (caps.chunks as usize).saturating_mul(size_of::<SegmentSlot>());
        let notice_queues = (caps.endpoints as usize).saturating_mul(size_of::<NoticeQueue>());
        let count = (caps.endpoints as usize).max(LEAST_NOTICES);
        let notices = count.saturating_mul(size_of::<NoticeSlot>());
        let total = [
            size_of::<Head>(),
            buckets,
            buckets,
            endpoints,
            chunks,
            held,
            ready,
            udp,
            tcbs,
            minis,
            segments,
            notice_queues,
            notices,
            buckets,
        ]
        .into_iter()
        .fold(0usize, usize::saturating_add)
        .checked_next_multiple_of(PAGE)
        .unwrap_or(usize::MAX);
        Self {
            buckets,
            endpoints,
            chunks,
            held,
            ready,
            udp,
            tcbs,
            minis,
            segments,
            notice_queues,
            notices,
            total,
        }
    }
}

impl Capacities {
    /// Whether the capacities are inside their ranges.
    #[must_use]
    pub fn are_valid(&self) -> bool {
        (1..=MAX_SLAB).contains(&self.endpoints)
            && (1..=MAX_SLAB).contains(&self.chunks)
            && (MIN_CHUNK_SIZE..=MAX_CHUNK_SIZE).contains(&self.chunk_size)
    }
}

/// Bytes that an image of these capacities takes, a multiple of 4096. Zero if the capacities are
/// outside their ranges.
#[must_use]
pub fn image_bytes(caps: &Capacities) -> usize {
    if caps.are_valid() {
        Sizes::of(caps).total
    } else {
        0
    }
}

/// The slabs of an image, to change.
#[derive(Debug)]
pub(crate) struct Slabs<'a> {
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
}

/// The slabs of an image, to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlabsRef<'a> {
    pub(crate) head: &'a Head,
    pub(crate) ports: &'a [u32],
    pub(crate) flows: &'a [u32],
    pub(crate) endpoints: &'a [Endpoint],
    pub(crate) chunks: &'a [ChunkSlot],
    pub(crate) held: &'a [u64],
    pub(crate) ready: &'a [ReadyLink],
    pub(crate) udp: &'a [UdpState],
    pub(crate) tcbs: &'a [Tcb],
    pub(crate) minis: &'a [Mini],
    pub(crate) segments: &'a [SegmentSlot],
    pub(crate) notice_queues: &'a [NoticeQueue],
    pub(crate) notices: &'a [NoticeSlot],
}

/// Splits bytes into slabs by these capacities, whatever their content.
pub(crate) fn split<'a>(bytes: &'a mut [u8], caps: &Capacities) -> Result<Slabs<'a>, LayoutError> {
    check_place(bytes, caps)?;
    let sizes = Sizes::of(caps);
    let (head, mut rest) = bytes
        .split_at_mut_checked(size_of::<Head>())
        .ok_or(LayoutError::Size)?;
    let rest = &mut rest;
    Ok(Slabs {
        head: Head::mut_from_bytes(head).map_err(|_| LayoutError::Alignment)?,
        ports: cut(rest, sizes.buckets)?,
        flows: cut(rest, sizes.buckets)?,
        endpoints: cut(rest, sizes.endpoints)?,
        chunks: cut(rest, sizes.chunks)?,
        held: cut(rest, sizes.held)?,
        ready: cut(rest, sizes.ready)?,
        udp: cut(rest, sizes.udp)?,
        tcbs: cut(rest, sizes.tcbs)?,
        minis: cut(rest, sizes.minis)?,
        segments: cut(rest, sizes.segments)?,
        notice_queues: cut(rest, sizes.notice_queues)?,
        notices: cut(rest, sizes.notices)?,
        mini_buckets: cut(rest, sizes.buckets)?,
    })
}

/// Cuts so many bytes off the front, as a slab.
fn cut<'a, T>(rest: &mut &'a mut [u8], bytes: usize) -> Result<&'a mut [T], LayoutError>
where
    T: FromBytes + IntoBytes + KnownLayout,
{
    let (slab, behind) = core::mem::take(rest)
        .split_at_mut_checked(bytes)
        .ok_or(LayoutError::Size)?;
    *rest = behind;
    <[T]>::mut_from_bytes(slab).map_err(|_| LayoutError::Alignment)
}

/// Splits bytes into slabs to read. The same as [`split`].
pub(crate) fn split_ref<'a>(
    bytes: &'a [u8],
    caps: &Capacities,
) -> Result<SlabsRef<'a>, LayoutError> {
    check_place(bytes, caps)?;
    let sizes = Sizes::of(caps);
    let (head, mut rest) = bytes
        .split_at_checked(size_of::<Head>())
        .ok_or(LayoutError::Size)?;
    let rest = &mut rest;
    Ok(SlabsRef {
        head: Head::ref_from_bytes(head).map_err(|_| LayoutError::Alignment)?,
        ports: cut_ref(rest, sizes.buckets)?,
        flows: cut_ref(rest, sizes.buckets)?,
        endpoints: cut_ref(rest, sizes.endpoints)?,
        chunks: cut_ref(rest, sizes.chunks)?,
        held: cut_ref(rest, sizes.held)?,
        ready: cut_ref(rest, sizes.ready)?,
        udp: cut_ref(rest, sizes.udp)?,
        tcbs: cut_ref(rest, sizes.tcbs)?,
        minis: cut_ref(rest, sizes.minis)?,
        segments: cut_ref(rest, sizes.segments)?,
        notice_queues: cut_ref(rest, sizes.notice_queues)?,
        notices: cut_ref(rest, sizes.notices)?,
    })
}

/// [`cut`], to read.
fn cut_ref<'a, T>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [T], LayoutError>
where
    T: FromBytes + KnownLayout + Immutable,
{
    let (slab, behind) = rest.split_at_checked(bytes).ok_or(LayoutError::Size)?;
    *rest = behind;
    <[T]>::ref_from_bytes(slab).map_err(|_| LayoutError::Alignment)
}

/// The capacities that the head of these bytes states, after checking magic, version and sizes.
pub(crate) fn stated_capacities(bytes: &[u8]) -> Result<Capacities, LayoutError> {
    let caps = stated(bytes)?;
    check_place(bytes, &caps)?;
    Ok(caps)
}

/// Bytes of the head of an image, which says how long that is.
pub const HEAD_BYTES: usize = size_of::<Head>();

/// How many bytes an image has by the word of its beginning, [`HEAD_BYTES`] or more of it.
///
/// # Errors
/// When it is not the beginning of an image.
pub fn stated_bytes(beginning: &[u8]) -> Result<usize, LayoutError> {
    stated(beginning).map(|caps| image_bytes(&caps))
}

/// The head of an image, if it says that it is one of this version.
pub(crate) fn stated_head(bytes: &[u8]) -> Result<&Head, LayoutError> {
    let (head, _) = bytes
        .split_at_checked(size_of::<Head>())
        .ok_or(LayoutError::Size)?;
    let head = Head::ref_from_bytes(head).map_err(|_| LayoutError::Alignment)?;
    if head.magic != MAGIC {
        return Err(LayoutError::Magic);
    }
    if head.version != LAYOUT_VERSION {
        return Err(LayoutError::Version);
    }
    Ok(head)
}

fn stated(bytes: &[u8]) -> Result<Capacities, LayoutError> {
    let head = stated_head(bytes)?;
    let caps = Capacities {
        endpoints: head.endpoint_capacity,
        chunks: head.chunk_capacity,
        chunk_size: head.chunk_size,
    };
    if !caps.are_valid() {
        return Err(LayoutError::Capacities);
    }
    if head.image_bytes != image_bytes(&caps) as u64 {
        return Err(LayoutError::Size);
    }
    Ok(caps)
}

/// Checks that capacities are in range and that the bytes are enough for them.
fn check_place(bytes: &[u8], caps: &Capacities) -> Result<(), LayoutError> {
    if !caps.are_valid() {
        return Err(LayoutError::Capacities);
    }
    if bytes.len() < Sizes::of(caps).total {
        return Err(LayoutError::Size);
    }
    if !bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        return Err(LayoutError::Alignment);
    }
    Ok(())
}
