//! Two network namespaces joined by a veth, for one test.
//!
//! ```text
//!   near (the test's thread)                     far (the peer)
//!   198.18.40.1/24  fd98:40::1/64                198.18.40.2/24  fd98:40::2/64
//!        [bktn] ============== veth ============== [bktf]
//! ```
//!
//! Both namespaces are without a name and belong to the test's thread: they go with it, however it
//! ends. [`Bed::far`] runs a closure in the other one; sockets stay where they were made.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: namespaces of a thread, shared memory of a queue"
)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::af_xdp::{AfXdpQueuePair, Interface, Mode, Nic, NicConfig, NicError, PacketMemory};
use crate::api::{QueuePair, Received};

pub(super) const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 40, 1);
pub(super) const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 40, 2);
pub(super) const NEAR6: Ipv6Addr = Ipv6Addr::new(0xfd98, 0x40, 0, 0, 0, 0, 0, 1);
pub(super) const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd98, 0x40, 0, 0, 0, 0, 0, 2);
pub(super) const CHUNK: u32 = 2048;
pub(super) const RING: u32 = 256;
const CHUNKS: u32 = 1024;

/// The joined namespaces.
pub(super) struct Bed {
    near: OwnedFd,
    far: OwnedFd,
    /// Interface indices.
    pub(super) near_index: u32,
    pub(super) far_index: u32,
}

fn new_namespace() -> OwnedFd {
    // SAFETY: a new network namespace for this thread changes no memory and no open descriptor.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .expect("these tests make network namespaces: run them as root");
    rustix::fs::open(
        "/proc/thread-self/ns/net",
        OFlags::RDONLY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap()
}

/// Runs a command in the thread's namespace.
pub(super) fn run(line: &str) {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn interface(name: &str) -> Interface {
    crate::af_xdp::interfaces()
        .into_iter()
        .find(|interface| interface.name == name)
        .unwrap()
}

impl Bed {
    /// With one queue.
    pub(super) fn new() -> Self {
        Self::with_queues(1)
    }

    /// With `queues` RX and TX queues at both ends.
    pub(super) fn with_queues(queues: u32) -> Self {
        let near = new_namespace();
        let far = new_namespace();
        let mut bed = Self {
            near,
            far,
            near_index: 0,
            far_index: 0,
        };
        bed.enter(&bed.near);
        let far_fd = format!("/proc/{}/fd/{}", std::process::id(), bed.far.as_raw_fd());
        let count = format!("numtxqueues {queues} numrxqueues {queues}");
        run(&format!(
            "ip link add bktn {count} type veth peer name bktf netns {far_fd} {count}"
        ));
        bed.near_index = configure("bktn", NEAR, NEAR6);
        bed.far_index = bed.far(|| configure("bktf", FAR, FAR6));
        bed.wait_for_carrier();
        bed
    }

    /// An interface is up at once, but sends only when its carrier has been noticed.
    fn wait_for_carrier(&self) {
        let end = Instant::now() + Duration::from_secs(5);
        let is_up = |name: &str| {
            let output = Command::new("ip")
                .args(["-o", "link", "show", name])
                .output();
            String::from_utf8_lossy(&output.unwrap().stdout).contains("LOWER_UP")
        };
        while !(is_up("bktn") && self.far(|| is_up("bktf"))) {
            assert!(Instant::now() < end, "no carrier");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn enter(&self, namespace: &OwnedFd) {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Runs `work` in the far namespace.
    pub(super) fn far<T>(&self, work: impl FnOnce() -> T) -> T {
        self.enter(&self.far);
        let result = work();
        self.enter(&self.near);
        result
    }

    /// The near interface, with the program attached. One that was there before may stay for a
    /// moment: what another test forks has its descriptor until it executes something.
    pub(super) fn nic(&self, mode: Mode) -> Nic {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match self.try_nic(mode) {
                Err(error) if error.errno == Errno::EXIST && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    pub(super) fn try_nic(&self, mode: Mode) -> Result<Nic, NicError> {
        Nic::open(NicConfig {
            ifindex: self.near_index,
            mode,
            chunk_size: CHUNK,
        })
    }
}

fn configure(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> u32 {
    run("ip link set lo up");
    run(&format!("ip address add {v4}/24 dev {name}"));
    run(&format!("ip address add {v6}/64 dev {name} nodad"));
    run(&format!("ip link set {name} up"));
    interface(name).ifindex
}

/// Packet memory: a memfd, mapped.
pub(super) struct Packets {
    pub(super) memory: PacketMemory,
}

impl Packets {
    pub(super) fn new() -> Self {
        let fd = rustix::fs::memfd_create("bkt-packets", MemfdFlags::CLOEXEC).unwrap();
        let bytes = (CHUNKS * CHUNK) as usize;
        rustix::fs::ftruncate(&fd, bytes as u64).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint replaces nothing.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }
        .unwrap();
        let memory = PacketMemory {
            address: address.cast(),
            bytes,
            chunk_size: CHUNK,
        };
        Self { memory }
    }

    fn place(&self, chunk: u32, offset: u32, len: usize) -> *mut u8 {
        let start = (chunk * CHUNK + offset) as usize;
        assert!(start + len <= self.memory.bytes);
        // SAFETY: inside of the mapping, as just asserted.
        unsafe { self.memory.address.add(start) }
    }

    pub(super) fn read(&self, frame: Received) -> Vec<u8> {
        let mut bytes = vec![0; frame.len as usize];
        let from = self.place(frame.chunk, frame.offset, bytes.len());
        // SAFETY: the mapping has these bytes, and the chunk is ours: it has been received.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    pub(super) fn write(&self, chunk: u32, bytes: &[u8]) {
        let to = self.place(chunk, 0, bytes.len());
        // SAFETY: the mapping has room for them, and the chunk is ours: it is in no ring.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; no reference into it exists.
        let _ = unsafe { munmap(self.memory.address.cast(), self.memory.bytes) };
    }
}

/// A queue that is served: memory, rings, chunks 0..RING posted.
pub(super) struct Queue {
    pub(super) packets: Packets,
    pub(super) pair: AfXdpQueuePair,
}

impl Queue {
    pub(super) fn open(nic: &Nic, queue_id: u32, slot: u32) -> Self {
        let packets = Packets::new();
        let xsk = nic
            .open_queue(queue_id, &packets.memory, RING, slot)
            .unwrap();
        let mut pair = AfXdpQueuePair::map(xsk, CHUNK, RING).unwrap();
        let chunks: Vec<u32> = (0..RING).collect();
        assert_eq!(pair.fill(&chunks), chunks.len());
        Self { packets, pair }
    }

    /// Frames that come until `count` are there or `wait` is over. Their chunks are posted again.
    pub(super) fn frames(&mut self, count: usize, wait: Duration) -> Vec<Vec<u8>> {
        let end = Instant::now() + wait;
        let mut frames = Vec::new();
        let mut batch = [Received::default(); 16];
        loop {
            let got = self.pair.receive(&mut batch);
            self.pair.received(got);
            for &frame in &batch[..got] {
                frames.push(self.packets.read(frame));
                assert_eq!(self.pair.fill(&[frame.chunk]), 1);
            }
            if frames.len() >= count {
                return frames;
            }
            if got == 0 && !self.wait_readable(end) {
                return frames;
            }
        }
    }

    fn wait_readable(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: 0,
            tv_nsec: left.min(Duration::from_millis(999)).as_nanos() as i64,
        };
        let fd = self.pair.wait_fd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&left)).unwrap() > 0 || Instant::now() < end
    }

    /// One frame that must come.
    pub(super) fn frame(&mut self) -> Vec<u8> {
        let mut frames = self.frames(1, Duration::from_secs(5));
        assert_eq!(frames.len(), 1, "no frame came");
        frames.remove(0)
    }

    /// Nothing comes for a while.
    pub(super) fn assert_silent(&mut self) {
        let frames = self.frames(1, Duration::from_millis(150));
        assert!(frames.is_empty(), "a frame came: {:02x?}", frames[0]);
    }
}
