//! A stack's table of TCP flows, written without a system call.
//!
//! A BPF array that programs map and the steering program reads. It is hashed: a flow has two
//! buckets of eight places, and lies in one of them.
//!
//! ```text
//!   bucket   | tag × 8 | header | flow × 8 |      576 bytes; header: only in the first bucket
//!   tag      0 = free, else bits of the hash: published last, taken back first
//!   flow     | local 16 | remote 16 | ports 4, 4 spare | owner 8 | packets 8 | bytes 8 |
//! ```
//!
//! One word of the header marks ports. In a stack's table: too many connections to them are half
//! open, and their SYNs are the kernel's.
//!
//! The steering program looks into a stack's table only for a local address and port that the
//! daemon has granted to this stack, so what a program writes here is a matter of its own stack.
//! With at least one and a half places for each flow, both buckets of a flow are practically never
//! full; a table that is nevertheless says so.
//!
//! Whoever writes holds the stack lock. Each write is whole: a writer that dies leaves a free
//! place or a published flow, and the table needs no recovery.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: a shared mapping becomes atomics, here only"
)]

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;

use super::bpf::{self, MapShape};
use super::unforked::Unforked;

/// Places of a bucket.
const BUCKET_FLOWS: usize = 8;
/// "BYPFLOWS" in memory.
const MAGIC: u64 = u64::from_le_bytes(*b"BYPFLOWS");
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_F_MMAPABLE` (Linux 5.5).
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_INNER_MAP` (Linux 5.10): in a map of maps the number of entries may differ.
const INNER_MAP: u32 = 1 << 12;
/// A page: what is mapped to read the header.
const PAGE: usize = 4096;
/// Most buckets: the hash has twenty bits for each.
const MOST_BUCKETS: u32 = 1 << 20;

/// What the table does with a word. The model has its own.
trait Word<T> {
    fn load(&self, order: Ordering) -> T;
    fn store(&self, value: T, order: Ordering);
}

impl Word<u32> for AtomicU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
}

impl Word<u64> for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
}

/// One flow in memory: a cache line, `struct tcp_flow` of steer.bpf.c.
#[repr(C)]
struct Place<Long = AtomicU64> {
    key: [Long; 5],
    owner: Long,
    packets: Long,
    bytes: Long,
}

/// `struct bucket` of steer.bpf.c.
#[repr(C)]
struct Bucket<Short = AtomicU32, Long = AtomicU64> {
    tags: [Short; BUCKET_FLOWS],
    /// Magic number, seed, buckets, marked ports.
    header: [Long; 4],
    places: [Place<Long>; BUCKET_FLOWS],
}

const _: () = assert!(size_of::<Bucket>() == 576);
const _: () = assert!(size_of::<Bucket>() <= PAGE);

/// A TCP connection as its segments name it, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlow {
    /// Local address, v4-mapped.
    pub local: [u8; 16],
    /// Remote address, v4-mapped.
    pub remote: [u8; 16],
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order.
    pub remote_port: u16,
}

/// A flow as it lies in a table: `struct flow_key` of steer.bpf.c, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowKey([u64; 5]);

impl FlowKey {
    /// The halves of both addresses as they lie in memory, and ports in host order.
    pub(crate) fn new(local: [u64; 2], remote: [u64; 2], ports: [u16; 2]) -> Self {
        let [local_port, remote_port] = ports.map(u64::from);
        let ports = local_port | remote_port << 16;
        Self([local[0], local[1], remote[0], remote[1], ports])
    }

    /// The same without a remote end.
    pub(crate) fn of_local(self) -> Self {
        let Self([one, two, .., ports]) = self;
        Self([one, two, 0, 0, ports & 0xffff])
    }

    fn flow(self) -> TcpFlow {
        let Self([one, two, three, four, ports]) = self;
        TcpFlow {
            local: whole(one, two),
            remote: whole(three, four),
            local_port: ports as u16,
            remote_port: (ports >> 16) as u16,
        }
    }
}

impl From<&TcpFlow> for FlowKey {
    fn from(flow: &TcpFlow) -> Self {
        let ports = [flow.local_port, flow.remote_port];
        Self::new(halves(&flow.local), halves(&flow.remote), ports)
    }
}

/// An address as it lies in memory.
pub(crate) fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let half = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    [half(&bytes[..8]), half(&bytes[8..])]
}

fn whole(one: u64, two: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&one.to_ne_bytes());
    bytes[8..].copy_from_slice(&two.to_ne_bytes());
    bytes
}

/// A flow that is steered, as it was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// Its place in the table.
    pub slot: u32,
    /// The flow.
    pub flow: TcpFlow,
    /// What [`FlowTable::insert`] was told.
    pub owner: u64,
    /// Frames redirected since it was entered.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Both buckets of a flow are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

impl std::fmt::Display for TableFull {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the flow table is full")
    }
}

impl std::error::Error for TableFull {}

/// What the steering program must know of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Buckets less one.
    pub(super) mask: u32,
    /// Seed of the hash.
    pub(super) seed: u64,
}

/// A mapped flow table.
#[derive(Debug)]
pub struct FlowTable {
    buckets: Arc<Unforked>,
    geometry: Geometry,
}

/// Makes the map of a table, without a header.
pub(super) fn create_empty(buckets: u32) -> Result<OwnedFd, Errno> {
    let shape = MapShape {
        kind: ARRAY,
        key_size: 4,
        value_size: size_of::<Bucket>() as u32,
        entries: buckets,
        flags: MMAPABLE | INNER_MAP,
    };
    bpf::create_map(FlowTable::NAME, shape, None)
}

impl FlowTable {
    /// Name of the map, as `bpftool map` shows it.
    pub const NAME: &str = "bypass_flows";

    /// Makes a table for so many flows (daemon). `seed` is random, so that nobody outside can
    /// choose ports that fill one bucket.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF, `ENOMEM`, `EINVAL` for more than five million flows.
    pub fn create(flows: u32, seed: u64) -> Result<OwnedFd, Errno> {
        let places = u64::from(flows) * 3 / 2;
        let buckets = places.div_ceil(BUCKET_FLOWS as u64).next_power_of_two();
        let buckets = u32::try_from(buckets).unwrap_or(u32::MAX);
        if buckets > MOST_BUCKETS {
            return Err(Errno::INVAL);
        }
        let fd = create_empty(buckets)?;
        let mask = buckets - 1;
        let table = Self::map_as(&fd, Geometry { mask, seed })?;
        let [magic, seed_word, count, _] = &table.bucket(0).header;
        seed_word.store(seed, Ordering::Relaxed);
        count.store(u64::from(buckets), Ordering::Relaxed);
        magic.store(MAGIC, Ordering::Release);
        Ok(fd)
    }

    /// Whether a descriptor from somewhere is a map as a flow table is one, so that it may be
    /// mapped. (A file could be cut under the mapping.)
    #[must_use]
    pub fn is_one(fd: impl AsFd) -> bool {
        bpf::map_info(fd.as_fd()).is_ok_and(|(name, shape)| {
            let value_size = size_of::<Bucket>() as u32;
            name == Self::NAME && (shape.kind, shape.value_size) == (ARRAY, value_size)
        })
    }

    /// Maps a table. The descriptor comes from the daemon, or [`Self::is_one`].
    ///
    /// # Errors
    /// `EINVAL` when it is none; what `mmap` answers (`EPERM` for a map that may not be written).
    pub fn map(fd: impl AsFd) -> Result<Self, Errno> {
        let first = Self::map_bytes(&fd, PAGE, Geometry { mask: 0, seed: 0 })?;
        let [magic, seed, count, _] = &first.bucket(0).header;
        let is_one = magic.load(Ordering::Acquire) == MAGIC;
        let seed = seed.load(Ordering::Relaxed);
        let count = u32::try_from(count.load(Ordering::Relaxed)).unwrap_or(0);
        if !is_one || !count.is_power_of_two() || count > MOST_BUCKETS {
            return Err(Errno::INVAL);
        }
        let mask = count - 1;
        Self::map_as(fd, Geometry { mask, seed })
    }

    fn map_as(fd: impl AsFd, geometry: Geometry) -> Result<Self, Errno> {
        let bytes = (geometry.mask as usize + 1) * size_of::<Bucket>();
        Self::map_bytes(fd, bytes.next_multiple_of(PAGE), geometry)
    }

    /// `bytes` is at least a page and enough for the buckets of the geometry.
    fn map_bytes(fd: impl AsFd, bytes: usize, geometry: Geometry) -> Result<Self, Errno> {
        let buckets = Arc::new(Unforked::map(fd, bytes)?);
        Ok(Self { buckets, geometry })
    }

    /// From now on a fork leaves the mapping out, whose page table costs it more than all other
    /// memory of a program. What is given back tells whether it is here.
    ///
    /// # Safety
    /// `fd` is what was mapped, and stays open in this process and its children as long as the
    /// table lives. In a child [`Unforked::mend`] succeeds before the table is used.
    ///
    /// # Errors
    /// What `madvise` answers, `EBUSY` when somebody has been given it before; the mapping is
    /// inherited as it was.
    pub unsafe fn leave_out_of_forks(&mut self, fd: RawFd) -> Result<Arc<Unforked>, Errno> {
        let buckets = Arc::get_mut(&mut self.buckets).ok_or(Errno::BUSY)?;
        // SAFETY: as promised.
        unsafe { buckets.leave_out_of_forks(fd) }?;
        Ok(Arc::clone(&self.buckets))
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Most flows: its places, of which a third should stay free.
    #[must_use]
    pub fn places(&self) -> u32 {
        (self.geometry.mask + 1) * BUCKET_FLOWS as u32
    }

    fn bucket(&self, index: u32) -> &Bucket {
        let index = (index & self.geometry.mask) as usize;
        // SAFETY: `map_bytes` was given enough bytes for every index up to the mask; the mapping
        // is page aligned and lives as long as `self`; atomics are valid for any bits.
        unsafe { self.buckets.address().cast::<Bucket>().add(index).as_ref() }
    }

    /// `find_flow` of steer.bpf.c does the same: tag and the two buckets.
    fn hash(&self, key: &FlowKey) -> (u32, [u32; 2]) {
        let Geometry { mask, seed } = self.geometry;
        let hash = key.0.iter().fold(seed, |hash, word| {
            let hash = (hash ^ word).wrapping_mul(seed | 1);
            hash ^ hash >> 32
        });
        let tag = (hash >> 32) as u32 | 1;
        (tag, [hash as u32 & mask, (hash >> 20) as u32 & mask])
    }

    /// Where a flow is. Not inlined: steering has it at five places.
    #[inline(never)]
    fn find_key(&self, key: &FlowKey) -> Option<u32> {
        let (tag, [one, two]) = self.hash(key);
        for index in [one, two] {
            if let Some(place) = self.bucket(index).find(tag, key) {
                return Some(slot(index, place));
            }
        }
        None
    }

    /// Marks ports, and no others: a bit for each, as [`Self::is_marked`] looks for it. What a mark
    /// says is a matter of who looks: in a stack's table, that the SYNs of the port are the
    /// kernel's. Costs a load when it says nothing new.
    pub fn mark(&self, ports: u64) {
        let [_, _, _, marked] = &self.bucket(0).header;
        if marked.load(Ordering::Relaxed) != ports {
            marked.store(ports, Ordering::Release);
        }
    }

    /// Whether [`Self::mark`] has named a port. Some share a bit.
    #[must_use]
    pub fn is_marked(&self, port: u16) -> bool {
        let [_, _, _, marked] = &self.bucket(0).header;
        marked.load(Ordering::Relaxed) >> port_bit(port) & 1 != 0
    }

    /// Where a flow is.
    #[must_use]
    pub fn find(&self, flow: &TcpFlow) -> Option<u32> {
        self.find_key(&flow.into())
    }

    /// Whether a flow is there.
    pub(crate) fn holds(&self, key: &FlowKey) -> bool {
        self.find_key(key).is_some()
    }

    /// The owner of a flow, if it is there. Counts a frame of it, as the steering program does, if
    /// `is_led` says of the owner that the frame goes there. Where two count in one table (a stack
    /// with two ports) a count may be lost: it is for people.
    #[inline(always)]
    pub(crate) fn count(
        &self,
        key: &FlowKey,
        bytes: u64,
        is_led: impl FnOnce(u64) -> bool,
    ) -> Option<u64> {
        let (bucket, place) = self.at(self.find_key(key)?)?;
        let entry = &bucket.places[place];
        let owner = entry.owner.load(Ordering::Relaxed);
        if is_led(owner) {
            let add = |to: &AtomicU64, more| {
                to.store(
                    to.load(Ordering::Relaxed).wrapping_add(more),
                    Ordering::Relaxed,
                );
            };
            add(&entry.packets, 1);
            add(&entry.bytes, bytes);
        }
        Some(owner)
    }

    /// Steers a flow to the stack; its place. One that is there already stays, with the new owner.
    /// `owner` is for whoever cleans up: the connection's endpoint, see
    /// `bypass_stack::EndpointId`.
    ///
    /// # Errors
    /// [`TableFull`].
    pub fn insert(&self, flow: &TcpFlow, owner: u64) -> Result<u32, TableFull> {
        let key = FlowKey::from(flow);
        if let Some(slot) = self.find_key(&key)
            && let Some((bucket, place)) = self.at(slot)
        {
            bucket.places[place].owner.store(owner, Ordering::Relaxed);
            return Ok(slot);
        }
        let (tag, [one, two]) = self.hash(&key);
        let index = if self.bucket(two).free() > self.bucket(one).free() {
            two
        } else {
            one
        };
        let place = self.bucket(index).enter(tag, &key, owner);
        Ok(slot(index, place.ok_or(TableFull)?))
    }

    /// Leaves a flow to the kernel again; whether it was there.
    pub fn remove(&self, flow: &TcpFlow) -> bool {
        let found = self.find(flow).and_then(|slot| self.at(slot));
        if let Some((bucket, place)) = found {
            bucket.leave(place);
        }
        found.is_some()
    }

    /// Leaves the flow in a place to the kernel again, if it is this owner's; whether it was.
    pub fn remove_slot(&self, slot: u32, owner: u64) -> bool {
        let Some((bucket, place)) = self.at(slot) else {
            return false;
        };
        let is_its = bucket.tags[place].load(Ordering::Relaxed) != 0
            && bucket.places[place].owner.load(Ordering::Relaxed) == owner;
        if is_its {
            bucket.leave(place);
        }
        is_its
    }

    fn at(&self, slot: u32) -> Option<(&Bucket, usize)> {
        let place = slot as usize % BUCKET_FLOWS;
        let bucket = self.bucket(slot / BUCKET_FLOWS as u32);
        (slot < self.places()).then_some((bucket, place))
    }

    /// What is in a place.
    #[must_use]
    pub fn entry(&self, slot: u32) -> Option<FlowEntry> {
        let (bucket, place) = self.at(slot)?;
        if bucket.tags[place].load(Ordering::Acquire) == 0 {
            return None;
        }
        let entry = &bucket.places[place];
        Some(FlowEntry {
            slot,
            flow: entry.key().flow(),
            owner: entry.owner.load(Ordering::Relaxed),
            packets: entry.packets.load(Ordering::Relaxed),
            bytes: entry.bytes.load(Ordering::Relaxed),
        })
    }

    /// Every flow. Without the stack lock some may be missing, or be read half.
    pub fn entries(&self) -> impl Iterator<Item = FlowEntry> {
        (0..self.places()).filter_map(|slot| self.entry(slot))
    }
}

/// Number of the bit that stands for a port among those of [`FlowTable::mark`].
pub(crate) fn port_bit(port: u16) -> u32 {
    u32::from((port ^ port >> 6) & 63)
}

fn slot(bucket: u32, place: usize) -> u32 {
    bucket * BUCKET_FLOWS as u32 + place as u32
}

impl<Long: Word<u64>> Place<Long> {
    fn key(&self) -> FlowKey {
        FlowKey(self.key.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// Without a branch for each word: what has the tag is nearly always it.
    fn is_of(&self, key: &FlowKey) -> bool {
        let words = self.key.iter().zip(key.0);
        let differs = words.fold(0, |bits, (word, it)| {
            bits | word.load(Ordering::Relaxed) ^ it
        });
        differs == 0
    }
}

impl<Short: Word<u32>, Long: Word<u64>> Bucket<Short, Long> {
    /// Where a flow is: places are looked at whose tag is its own.
    #[inline(always)]
    fn find(&self, tag: u32, key: &FlowKey) -> Option<usize> {
        let mut places = self.tags.iter().zip(&self.places);
        places.position(|(it, place)| it.load(Ordering::Acquire) == tag && place.is_of(key))
    }

    fn free(&self) -> usize {
        let tags = self.tags.iter();
        tags.filter(|tag| tag.load(Ordering::Relaxed) == 0).count()
    }

    /// Enters a flow that is not there; its place, if there is one.
    fn enter(&self, tag: u32, key: &FlowKey, owner: u64) -> Option<usize> {
        let is_free = |tag: &Short| tag.load(Ordering::Relaxed) == 0;
        let place = self.tags.iter().position(is_free)?;
        let entry = &self.places[place];
        for (to, word) in entry.key.iter().zip(key.0) {
            to.store(word, Ordering::Relaxed);
        }
        entry.owner.store(owner, Ordering::Relaxed);
        entry.packets.store(0, Ordering::Relaxed);
        entry.bytes.store(0, Ordering::Relaxed);
        self.tags[place].store(tag, Ordering::Release);
        Some(place)
    }

    /// Takes the flow in a place out.
    fn leave(&self, place: usize) {
        self.tags[place].store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn flow(remote_port: u16, host: u8) -> TcpFlow {
        let v4 = |last| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 40, last];
        TcpFlow {
            local: v4(1),
            remote: v4(host),
            local_port: 80,
            remote_port,
        }
    }

    fn table(flows: u32) -> (OwnedFd, FlowTable) {
        let fd = FlowTable::create(flows, 0x1234_5678_9abc_def0).expect("these tests need CAP_BPF");
        let table = FlowTable::map(&fd).unwrap();
        (fd, table)
    }

    #[test]
    fn a_flow_comes_and_goes_once() {
        let (fd, table) = table(100);
        let other = FlowTable::map(&fd).unwrap();
        let slot = table.insert(&flow(5000, 2), 7).unwrap();
        assert_eq!(table.insert(&flow(5000, 2), 8), Ok(slot));
        let entry = other.entry(slot).unwrap();
        assert_eq!((entry.flow, entry.owner), (flow(5000, 2), 8));
        assert_eq!(other.find(&flow(5001, 2)), None);
        assert!(!other.remove_slot(slot, 7));
        assert!(other.remove_slot(slot, 8) && !other.remove_slot(slot, 8));
        assert_eq!(table.find(&flow(5000, 2)), None);
        table.insert(&flow(5000, 2), 9).unwrap();
        assert!(table.remove(&flow(5000, 2)) && !table.remove(&flow(5000, 2)));
        assert_eq!(table.entries().count(), 0);
    }

    #[test]
    fn it_holds_what_it_was_made_for_and_says_when_it_is_full() {
        let (_fd, table) = table(20_000);
        let mut known = HashMap::new();
        for number in 0..20_000_u32 {
            let flow = flow((number >> 3) as u16, number as u8 & 7);
            let slot = table.insert(&flow, number.into()).unwrap();
            assert_eq!(known.insert(slot, flow), None);
        }
        for entry in table.entries() {
            assert_eq!(known.remove(&entry.slot), Some(entry.flow));
            assert_eq!(table.find(&entry.flow), Some(entry.slot));
        }
        assert!(known.is_empty());
        let mut number = 0_u32;
        while table
            .insert(&flow(number as u16, 200 + (number >> 16) as u8), 0)
            .is_ok()
        {
            number += 1;
            assert!(number < table.places());
        }
        assert_eq!(table.entries().count(), 20_000 + number as usize);
    }

    #[test]
    fn any_slot_and_any_content_is_harmless() {
        let (fd, table) = table(8);
        for slot in [table.places(), u32::MAX] {
            assert_eq!(table.entry(slot), None);
            assert!(!table.remove_slot(slot, 0));
        }
        // The header says more than there is.
        let [_, _, count, _] = &table.bucket(0).header;
        count.store(1 << 20, Ordering::Relaxed);
        assert_eq!(FlowTable::map(&fd).unwrap_err(), Errno::INVAL);
        count.store(3, Ordering::Relaxed);
        assert_eq!(FlowTable::map(&fd).unwrap_err(), Errno::INVAL);
        let file = std::fs::File::open("/dev/zero").unwrap();
        assert!(FlowTable::is_one(&fd) && !FlowTable::is_one(file));
        assert_eq!(FlowTable::create(u32::MAX, 0).unwrap_err(), Errno::INVAL);
    }
}

/// Every order in which whoever has the stack's lock writes and the steering program reads, by
/// loom.
///
/// Listeners that share a port are a chain in the image and change under that lock
/// (`runtime/src/lock.rs` has its model); what has begun is pinned by its flow here, and is looked
/// for without a lock. Not claimed: that a flow which never was is not found while one with its 31
/// bits of hash goes and another comes in its place. That costs a frame of a stranger.
#[cfg(test)]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, AtomicU64};

    type Modelled = Bucket<AtomicU32, AtomicU64>;

    impl Word<u32> for AtomicU32 {
        fn load(&self, order: Ordering) -> u32 {
            self.load(order)
        }

        fn store(&self, value: u32, order: Ordering) {
            self.store(value, order);
        }
    }

    impl Word<u64> for AtomicU64 {
        fn load(&self, order: Ordering) -> u64 {
            self.load(order)
        }

        fn store(&self, value: u64, order: Ordering) {
            self.store(value, order);
        }
    }

    fn empty() -> Modelled {
        let long = || AtomicU64::new(0);
        Bucket {
            tags: std::array::from_fn(|_| AtomicU32::new(0)),
            header: std::array::from_fn(|_| long()),
            places: std::array::from_fn(|_| Place {
                key: std::array::from_fn(|_| long()),
                owner: long(),
                packets: long(),
                bytes: long(),
            }),
        }
    }

    /// Flows that stay, go and come, with their tags; the number is the owner, too.
    const STAYS: u64 = 1;
    const GOES: u64 = 2;
    const COMES: u64 = 3;

    fn tag(flow: u64) -> u32 {
        flow as u32 * 2 + 1
    }

    /// One flow goes and another comes in its place, by `enter`, while the steering program looks.
    fn every_order(
        enter: impl Fn(&Modelled) + Copy + Send + Sync + 'static,
        look: impl Fn(&Modelled, usize) + Send + Sync + 'static,
    ) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let bucket = Arc::new(empty());
            let gone = bucket.enter(tag(GOES), &FlowKey([GOES; 5]), GOES).unwrap();
            let stays = bucket
                .enter(tag(STAYS), &FlowKey([STAYS; 5]), STAYS)
                .unwrap();
            let writer = Arc::clone(&bucket);
            let writer = loom::thread::spawn(move || {
                writer.leave(gone);
                enter(&writer);
            });
            look(&bucket, stays);
            writer.join().unwrap();
            assert_eq!(bucket.find(tag(GOES), &FlowKey([GOES; 5])), None);
            assert_eq!(bucket.find(tag(COMES), &FlowKey([COMES; 5])), Some(gone));
        });
    }

    fn enters(bucket: &Modelled) {
        bucket
            .enter(tag(COMES), &FlowKey([COMES; 5]), COMES)
            .unwrap();
    }

    /// Who is found is whole.
    fn finds_whole(bucket: &Modelled, _: usize) {
        if let Some(place) = bucket.find(tag(COMES), &FlowKey([COMES; 5])) {
            let owner = bucket.places[place].owner.load(Ordering::Relaxed);
            assert_eq!(owner, COMES, "half of another");
        }
    }

    #[test]
    fn who_stays_is_found_while_others_come_and_go() {
        every_order(enters, |bucket, stays| {
            assert_eq!(bucket.find(tag(STAYS), &FlowKey([STAYS; 5])), Some(stays));
        });
    }

    #[test]
    fn who_has_come_is_found_whole() {
        every_order(enters, finds_whole);
    }

    #[test]
    fn who_never_was_is_not_found_in_the_midst_of_a_change() {
        let half = FlowKey([GOES, GOES, COMES, COMES, COMES]);
        every_order(enters, move |bucket, _| {
            assert_eq!(bucket.find(tag(COMES), &half), None);
        });
    }

    #[test]
    #[should_panic(expected = "half of another")]
    fn the_tag_must_come_last() {
        let too_early = |bucket: &Modelled| {
            let place = bucket
                .tags
                .iter()
                .position(|tag| tag.load(Ordering::Relaxed) == 0);
            let place = place.unwrap();
            bucket.tags[place].store(tag(COMES), Ordering::Release);
            let entry = &bucket.places[place];
            for to in &entry.key {
                to.store(COMES, Ordering::Relaxed);
            }
            entry.owner.store(COMES, Ordering::Relaxed);
        };
        every_order(too_early, finds_whole);
    }
}
