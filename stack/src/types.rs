//! Small plain types that the whole crate and its callers share: identifiers, addresses, time,
//! sets of waiters, and access to packet memory.
//!
//! Addresses are 16 bytes everywhere above [`crate::wire`]; an IPv4 address is the v4-mapped IPv6
//! address (RFC 4291 section 2.5.5.2). The unspecified address of both families is all zero, so
//! that "any" is one value. Ports are in host order.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Queue pairs of one stack.
pub const QUEUE_PAIRS: usize = 32;
/// Process slots of one stack.
pub const PROCESSES: usize = 128;
/// Waiter slots of one stack.
pub const WAITERS: usize = 128;
/// Watcher slots of one stack.
pub const WATCHERS: usize = 128;
/// The queue pair that is none: what is sent on it comes back to the same stack (hairpin).
pub const QUEUE_PAIR_HAIRPIN: u8 = QUEUE_PAIRS as u8;

/// A chunk of packet memory, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub u32);

impl ChunkId {
    /// No chunk.
    pub const NONE: Self = Self(u32::MAX);
}

/// An endpoint: slab index and the generation of the slot, so that an id of a destroyed endpoint
/// never reaches its successor. Generation 0 is never live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// Index in the slab of endpoints.
    pub index: u32,
    /// Generation of the slot.
    pub generation: u32,
}

impl EndpointId {
    /// No endpoint.
    pub const NONE: Self = Self {
        index: u32::MAX,
        generation: 0,
    };
}

/// The endpoint of the call does not exist any more (or never did).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// A point in time: nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

/// A span of time in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub u64);

impl Instant {
    /// Time since `earlier`; zero if that is later than `self`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }

    /// The instant `span` later, at most the end of time.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

/// A process slot of the stack, 0 to 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u8);

/// A waiter slot of the stack, 0 to 127: one thread or epoll set that can be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u8);

/// A watcher slot of the stack, 0 to 127: one epoll set with a list of what may be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherId(pub u8);

/// A set of waiters, one bit per slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaiterSet(pub [u64; 2]);

impl WaiterSet {
    /// Whether no waiter is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0, 0]
    }

    /// Adds a waiter; a slot number above 127 changes nothing.
    pub fn insert(&mut self, waiter: WaiterId) {
        set_bit(&mut self.0, waiter.0, true);
    }

    /// Removes a waiter.
    pub fn remove(&mut self, waiter: WaiterId) {
        set_bit(&mut self.0, waiter.0, false);
    }

    /// Whether the waiter is in the set.
    #[must_use]
    pub fn contains(&self, waiter: WaiterId) -> bool {
        has_bit(&self.0, waiter.0)
    }

    /// The waiters in the set, lowest slot first.
    pub fn iter(&self) -> impl Iterator<Item = WaiterId> + use<> {
        let mut words = self.0;
        core::iter::from_fn(move || {
            let [low, high] = &mut words;
            let (word, base) = if *low != 0 { (low, 0u8) } else { (high, 64u8) };
            if *word == 0 {
                return None;
            }
            let bit = word.trailing_zeros() as u8;
            *word &= word.wrapping_sub(1);
            Some(WaiterId(base.wrapping_add(bit)))
        })
    }
}

/// Sets or clears bit `index` of a 128-bit map; out of range changes nothing.
pub(crate) fn set_bit(words: &mut [u64; 2], index: u8, on: bool) {
    let mask = 1u64.wrapping_shl(u32::from(index & 63));
    if let Some(word) = words.get_mut(usize::from(index >> 6)) {
        if on {
            *word |= mask;
        } else {
            *word &= !mask;
        }
    }
}

/// Bit `index` of a 128-bit map; out of range is false.
pub(crate) fn has_bit(words: &[u64; 2], index: u8) -> bool {
    let mask = 1u64.wrapping_shl(u32::from(index & 63));
    words
        .get(usize::from(index >> 6))
        .is_some_and(|word| word & mask != 0)
}

/// An IPv6 address, or an IPv4 address as v4-mapped IPv6; all zero is "any" of both families.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct IpAddress(pub [u8; 16]);

impl IpAddress {
    /// The unspecified ("any") address of IPv4 and IPv6.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// An IPv4 address; 0.0.0.0 becomes [`IpAddress::UNSPECIFIED`].
    #[must_use]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        if u32::from_ne_bytes(octets) == 0 {
            Self::UNSPECIFIED
        } else {
            Self::mapped(octets)
        }
    }

    /// The v4-mapped form without the exception for 0.0.0.0 (route prefixes need it).
    #[must_use]
    pub const fn mapped(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Whether this is an IPv4 address. The unspecified address is not.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        let (high, low) = self.words();
        high == 0 && low.to_ne_bytes().first_chunk::<4>() == Some(&[0, 0, 0xff, 0xff])
    }

    /// The four octets, if this is an IPv4 address.
    #[must_use]
    pub fn to_v4(&self) -> Option<[u8; 4]> {
        if self.is_v4() {
            self.0.last_chunk::<4>().copied()
        } else {
            None
        }
    }

    /// The octets of an address that is known to be IPv4.
    #[inline]
    pub(crate) fn last_four(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }

    /// Whether this is "any".
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        self.words() == (0, 0)
    }

    /// Whether this is an IPv4 or IPv6 multicast address.
    #[must_use]
    pub fn is_multicast(&self) -> bool {
        match self.to_v4() {
            Some([first, ..]) => first & 0xf0 == 0xe0,
            None => self.0[0] == 0xff,
        }
    }

    /// Whether this is 255.255.255.255.
    #[must_use]
    pub fn is_limited_broadcast(&self) -> bool {
        self.to_v4() == Some([255; 4])
    }

    /// Whether this is in 127.0.0.0/8 or `::1`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.to_v4() {
            Some([first, ..]) => first == 127,
            None => u128::from_be_bytes(self.0) == 1,
        }
    }

    /// Whether this is in `fe80::/10`.
    #[must_use]
    pub fn is_link_local_v6(&self) -> bool {
        let [first, second, ..] = self.0;
        first == 0xfe && second & 0xc0 == 0x80
    }

    /// Whether the first `bits` bits (of 128; an IPv4 prefix of n bits is 96 + n) are `prefix`'s.
    #[must_use]
    pub fn in_prefix(&self, prefix: &Self, bits: u8) -> bool {
        let differing = u128::from_be_bytes(self.0) ^ u128::from_be_bytes(prefix.0);
        differing.leading_zeros() >= u32::from(bits.min(128))
    }

    /// The two 64-bit halves in native byte order, for comparing and hashing.
    pub(crate) fn words(&self) -> (u64, u64) {
        let value = u128::from_ne_bytes(self.0);
        if cfg!(target_endian = "little") {
            (value as u64, (value >> 64) as u64)
        } else {
            ((value >> 64) as u64, value as u64)
        }
    }
}

impl From<IpAddr> for IpAddress {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<IpAddress> for IpAddr {
    fn from(address: IpAddress) -> Self {
        match address.to_v4() {
            Some(octets) => Self::V4(Ipv4Addr::from(octets)),
            None => Self::V6(Ipv6Addr::from(address.0)),
        }
    }
}

impl fmt::Display for IpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for IpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketAddress {
    /// The address.
    pub ip: IpAddress,
    /// The port in host order.
    pub port: u16,
}

impl SocketAddress {
    /// Any address, port 0.
    pub const UNSPECIFIED: Self = Self {
        ip: IpAddress::UNSPECIFIED,
        port: 0,
    };

    /// An address and a port.
    #[must_use]
    pub const fn new(ip: IpAddress, port: u16) -> Self {
        Self { ip, port }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::SocketAddr::new(self.ip.into(), self.port).fmt(f)
    }
}

/// Which packets an endpoint takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// AF_INET: IPv4 only.
    V4 = 1,
    /// AF_INET6 with IPV6_V6ONLY: IPv6 only.
    V6 = 2,
    /// AF_INET6 without IPV6_V6ONLY: both.
    Dual = 3,
}

impl Family {
    /// The family stored as this byte; anything unknown is the narrowest reading, `V4`.
    pub(crate) fn from_byte(byte: u8) -> Self {
        match byte {
            2 => Self::V6,
            3 => Self::Dual,
            _ => Self::V4,
        }
    }
}

/// Bytes from the start of a chunk to when its frame has come by the clock of a NIC that stamps,
/// nanoseconds since 1970 in the host's order, 0 = not known: right before the frame, in the
/// headroom that AF_XDP leaves too.
pub const STAMP_AT: usize = 256 - size_of::<u64>();

/// Packet memory: equal chunks, by index.
///
/// An id out of range gives an empty slice, never a panic.
pub trait Memory {
    /// Bytes of one chunk.
    fn chunk_size(&self) -> usize;
    /// The bytes of a chunk.
    fn chunk(&self, id: ChunkId) -> &[u8];
    /// The bytes of a chunk, to write.
    fn chunk_mut(&mut self, id: ChunkId) -> &mut [u8];

    /// An expected segment or write of TCP has taken the short way, which leaves no other trace:
    /// for the tests of it. Does nothing, which costs nothing, unless somebody implements it.
    #[doc(hidden)]
    #[inline(always)]
    fn note_short_way(&mut self) {}
}
