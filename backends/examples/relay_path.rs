//! Frames through the relay and its queue pair, over a port that is nothing but memory, and how
//! many.
//!
//! In: a burst of the port, steering, the copy into a chunk, the RX ring, the bell, and the stack's
//! side of it all. Out: the TX ring, the port, the completion ring.
//!
//! `in-place` and `out-in-place` are the same without copies: the port puts frames into chunks.
//!
//! For instruction counts: `valgrind --tool=callgrind target/release/examples/relay_path in 100000`
//! (or `out`). No time is taken here. It needs CAP_NET_RAW for the relay's way to the kernel, which
//! is not used.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bypass_backends::af_xdp::{FilterKey, FlowTable, Listener};
use bypass_backends::relay::{
    Answer, Facts, InPlace, Lent, Link, Memory, Offloads, Port, Relay, RelayQueuePair, Told, claim,
};
use bypass_backends::{QueuePair, Received, Transmit};
use rustix::fs::{MemfdFlags, SealFlags};

const CHUNK: u32 = 4096;
const ENTRIES: u32 = 1024;
const BURST: usize = 64;
const UDP: u8 = 17;
/// An IPv4 header without options, after those of Ethernet, and UDP with 64 bytes of payload.
const PACKET: u16 = 20 + 8 + 64;
const LOCAL: [u8; 4] = [198, 18, 0, 1];
const REMOTE: [u8; 4] = [198, 18, 0, 2];
const PORT: u16 = 7007;

/// A port that always has a burst of the same frame, or none, and takes everything.
#[derive(Debug)]
struct MemoryPort {
    frame: Vec<u8>,
    burst: usize,
    is_in_place: bool,
    memory: Option<Rc<Memory>>,
    headroom: u32,
    stock: Vec<u32>,
    left: Vec<u32>,
}

impl Port for MemoryPort {
    fn facts(&self) -> Facts {
        Facts {
            mac: [2, 0x18, 0, 0, 0, 1],
            mtu: 1500,
            driver: "memory".to_owned(),
            // Else the relay makes a device.
            is_bifurcated: true,
            stamps_sent: false,
            no_rules: None,
            in_place: self.is_in_place.then_some(Ok(())),
            offloads: Offloads::default(),
        }
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize {
        for _ in 0..self.burst {
            each(&self.frame, Told::default());
        }
        self.burst
    }

    #[expect(unsafe_code, reason = "UNSAFETY: the trait's; nothing is read here")]
    unsafe fn send(&mut self, _bytes: *const u8, _length: u32) -> bool {
        true
    }

    fn flush(&mut self) -> u32 {
        0
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_place(&mut self) -> Option<&mut dyn InPlace> {
        self.is_in_place.then_some(self)
    }
}

impl InPlace for MemoryPort {
    fn adopt(&mut self, memory: Rc<Memory>, headroom: u32) -> Result<(), String> {
        let (base, _, chunk_size) = memory.range();
        for chunk in 0..ENTRIES {
            let to = base.wrapping_add((chunk * chunk_size + headroom) as usize);
            #[expect(unsafe_code, reason = "UNSAFETY: what a card would do")]
            // SAFETY: behind the headroom of a chunk.
            unsafe {
                std::ptr::copy_nonoverlapping(self.frame.as_ptr(), to, self.frame.len());
            }
        }
        (self.memory, self.headroom) = (Some(memory), headroom);
        Ok(())
    }

    fn disown(&mut self) {}

    fn wants(&self) -> usize {
        self.burst - self.stock.len()
    }

    fn supply(&mut self, chunks: &[u32]) {
        self.stock.extend_from_slice(chunks);
    }

    fn lend(&mut self, each: &mut dyn FnMut(Lent) -> bool) -> usize {
        let (base, _, size) = self.memory.as_ref().unwrap().range();
        for chunk in self.stock.drain(..) {
            let frame = Lent {
                bytes: base.wrapping_add((chunk * size + self.headroom) as usize),
                length: self.frame.len() as u32,
                chunk: Some(chunk),
                told: Told::default(),
            };
            assert!(each(frame));
        }
        self.burst
    }

    fn most_sending(&self) -> usize {
        BURST
    }

    #[expect(unsafe_code, reason = "UNSAFETY: the trait's; nothing is read here")]
    unsafe fn send_chunk(&mut self, _bytes: *mut u8, _length: u32, chunk: u32) -> bool {
        self.left.push(chunk);
        true
    }

    fn completed(&mut self, into: &mut [u32]) -> usize {
        let count = self.left.len().min(into.len());
        for (place, chunk) in into.iter_mut().zip(self.left.drain(..count)) {
            *place = chunk;
        }
        count
    }
}

fn frame() -> Vec<u8> {
    let [high, low] = PORT.to_be_bytes();
    let mut frame = [2, 0x18, 0, 0, 0, 1, 2, 0x18, 0, 0, 0, 2, 8, 0].to_vec();
    frame.extend([0x45, 0]);
    frame.extend(PACKET.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
    frame.extend([REMOTE, LOCAL].concat());
    frame.extend([0x30, 0x39, high, low]);
    frame.extend((PACKET - 20).to_be_bytes());
    frame.resize(14 + usize::from(PACKET), 0);
    frame
}

fn packet_memory() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("packets", flags).unwrap();
    rustix::fs::ftruncate(&memory, u64::from(CHUNK * ENTRIES)).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
    memory
}

/// A relay over the port, and the stack's side of its queue pair.
fn open(burst: usize, is_in_place: bool) -> (Relay, RelayQueuePair) {
    let device = format!("relay-path-{}", std::process::id());
    let port = MemoryPort {
        frame: frame(),
        burst,
        is_in_place,
        memory: None,
        headroom: 0,
        stock: Vec::with_capacity(BURST),
        left: Vec::with_capacity(BURST),
    };
    let listener = claim(&device).unwrap();
    let mut relay = Relay::new("lo", Box::new(port), listener, 1).unwrap();
    let link = Link::connect(&device).unwrap();
    relay.attend();
    let Some(Answer::Ready(nic)) = link.hear().unwrap() else {
        panic!("the relay says nothing");
    };
    let mut local = [0; 16];
    local[10..].copy_from_slice(&[[255, 255].as_slice(), &LOCAL].concat());
    let filter = FilterKey::Listener(Listener::at(local, PORT, UDP));
    nic.filters.add(&filter, CHUNK).unwrap();
    let flows = FlowTable::create(16, 1).unwrap();
    let memory = packet_memory();
    let queue = link
        .attach(
            memory.as_fd(),
            CHUNK,
            flows.as_fd(),
            (ENTRIES, false, is_in_place),
        )
        .unwrap();
    relay.attend();
    let pair = RelayQueuePair::map(queue.bell, queue.rings.as_fd(), ENTRIES).unwrap();
    (relay, pair)
}

#[inline(never)]
fn take_in(relay: &mut Relay, pair: &mut RelayQueuePair, chunks: &mut [u32; BURST]) {
    assert_eq!(pair.fill(chunks), BURST);
    assert_eq!(relay.turn(), BURST);
    let mut received = [Received::default(); BURST];
    assert_eq!(pair.receive(&mut received), BURST);
    for (chunk, frame) in chunks.iter_mut().zip(&received) {
        *chunk = frame.chunk;
    }
    pair.received(BURST);
}

#[inline(never)]
fn send_out(relay: &mut Relay, pair: &mut RelayQueuePair, chunks: &mut [u32; BURST]) {
    let frames = chunks.map(|chunk| Transmit {
        chunk,
        offset: 256,
        len: 14 + u32::from(PACKET),
        stamp: 0,
    });
    assert_eq!(pair.submit(&frames), BURST);
    assert!(!pair.needs_doorbell());
    assert_eq!(relay.turn(), BURST);
    assert_eq!(pair.complete(chunks), BURST);
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (is_in, is_in_place) = match arguments.get(1).map(String::as_str) {
        Some("in") => (true, false),
        Some("out") => (false, false),
        Some("in-place") => (true, true),
        Some("out-in-place") => (false, true),
        _ => panic!("in, out, in-place or out-in-place"),
    };
    let count: usize = arguments.get(2).map_or(100_000, |it| it.parse().unwrap());
    let (mut relay, mut pair) = open(if is_in { BURST } else { 0 }, is_in_place);
    let mut chunks: [u32; BURST] = std::array::from_fn(|index| index as u32);
    let bursts = count / BURST;
    for _ in 0..bursts {
        let turn = if is_in { take_in } else { send_out };
        turn(&mut relay, &mut pair, &mut chunks);
    }
    println!("{}", bursts * BURST);
}
