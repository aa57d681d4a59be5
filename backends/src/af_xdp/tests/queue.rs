//! A queue pair on a real XSK: sending, wrapping, waiting, recovery, and its use without privilege.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Uid};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::bed::{Bed, CHUNK, FAR, NEAR, Queue, RING, run};
use super::frame::{UDP, datagram, ethernet, ipv4, udp};
use crate::af_xdp::{
    AfXdpQueuePair, FilterKey, Listener, Mode, Nic, NicConfig, is_zero_copy, ring_doorbell,
};
use crate::api::{QueuePair as _, Received, Severity, Transmit};

const PORT: u16 = 7000;
/// First chunk that `Queue` has not posted.
const SENDING: u32 = 512;

fn listen(nic: &Nic) {
    let listener = Listener::at(NEAR.to_ipv6_mapped().octets(), PORT, UDP);
    nic.add_filter(FilterKey::Listener(listener), 0).unwrap();
}

fn mac_of_far(bed: &Bed) -> [u8; 6] {
    bed.far(crate::af_xdp::interfaces)
        .iter()
        .find(|interface| interface.name == "bktf")
        .unwrap()
        .mac
}

fn frame_to_far(bed: &Bed, nic: &Nic, payload: &[u8]) -> Vec<u8> {
    let from: (IpAddr, u16) = (NEAR.into(), PORT);
    let datagram = udp(from, (FAR.into(), PORT), payload);
    let packet = ipv4(NEAR, FAR, UDP, 0, &[], &datagram);
    ethernet(mac_of_far(bed), nic.interface.mac, 0x0800, &packet)
}

fn all_in_rings(queue: &Queue) -> BTreeSet<u32> {
    let mut chunks = Vec::new();
    queue.pair.in_rings(&mut |chunk| chunks.push(chunk));
    let set: BTreeSet<u32> = chunks.iter().copied().collect();
    assert_eq!(set.len(), chunks.len(), "a chunk is in two rings");
    set
}

#[test]
fn more_frames_than_a_budget_go_with_one_doorbell_and_come_back() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, 0);
    let receiver = bed.far(|| UdpSocket::bind((FAR, PORT))).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let bytes = frame_to_far(&bed, &nic, b"burst");
    for round in 0..5 {
        let frames: Vec<Transmit> = (SENDING..SENDING + RING)
            .map(|chunk| {
                queue.packets.write(chunk, &bytes);
                Transmit {
                    chunk,
                    offset: 0,
                    len: bytes.len() as u32,
                    stamp: 0,
                }
            })
            .collect();
        assert!(!queue.pair.needs_doorbell());
        assert_eq!(queue.pair.submit(&frames), RING as usize, "round {round}");
        assert_eq!(queue.pair.submit(&frames[..1]), 0, "the ring is full");
        assert!(queue.pair.needs_doorbell());
        let before = all_in_rings(&queue);
        assert_eq!(before.len(), 2 * RING as usize);
        queue.pair.ring_doorbell().unwrap();
        assert!(!queue.pair.needs_doorbell());
        let mut done = BTreeSet::new();
        let end = Instant::now() + Duration::from_secs(2);
        while done.len() < RING as usize && Instant::now() < end {
            let mut batch = [0; 64];
            let count = queue.pair.complete(&mut batch);
            done.extend(&batch[..count]);
        }
        assert_eq!(done, (SENDING..SENDING + RING).collect());
        assert_eq!(all_in_rings(&queue).len(), RING as usize);
        let mut text = [0; 16];
        let count = receiver.recv(&mut text).unwrap();
        assert_eq!(&text[..count], b"burst");
        while receiver.set_nonblocking(true).is_ok() && receiver.recv(&mut text).is_ok() {}
        receiver.set_nonblocking(false).unwrap();
    }
}

#[test]
fn a_ring_goes_round_many_times() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, 0);
    listen(&nic);
    let sender = bed.far(|| UdpSocket::bind((FAR, 0))).unwrap();
    let mut number = 0_u32;
    for _ in 0..40 {
        for step in 0..50 {
            let text = (number + step).to_be_bytes();
            sender.send_to(&text, (NEAR, PORT)).unwrap();
        }
        for frame in queue.frames(50, Duration::from_secs(2)) {
            assert_eq!(datagram(&frame).1, number.to_be_bytes());
            number += 1;
        }
    }
    assert_eq!(number, 2000);
}

#[test]
fn the_kernel_leaves_headroom_and_without_chunks_it_drops() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let packets = super::bed::Packets::new();
    let xsk = nic.open_queue(0, &packets.memory, 64, 0).unwrap();
    let mut pair = AfXdpQueuePair::map(xsk, CHUNK, 64).unwrap();
    assert_eq!(pair.fill_space(), 64);
    assert_eq!(pair.fill(&[17]), 1);
    assert_eq!(pair.fill_space(), 63);
    assert!(!pair.rx_pending());
    listen(&nic);
    let sender = bed.far(|| UdpSocket::bind((FAR, 0))).unwrap();
    for text in [b"one", b"two"] {
        sender.send_to(text, (NEAR, PORT)).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(2);
    while !pair.rx_pending() && Instant::now() < end {
        std::thread::yield_now();
    }
    let mut got = [Received::default(); 4];
    assert_eq!(pair.receive(&mut got), 1);
    assert_eq!((got[0].chunk, got[0].offset), (17, 256));
    assert_eq!(datagram(&packets.read(got[0])).1, b"one");
    assert_eq!(pair.receive(&mut got), 1, "it stays until it is dealt with");
    let mut in_rings = Vec::new();
    pair.in_rings(&mut |chunk| in_rings.push(chunk));
    assert_eq!(in_rings, [17]);
    pair.received(1);
    assert_eq!(pair.receive(&mut got), 0);
}

#[test]
fn a_doorbell_says_when_the_link_is_down_and_when_the_device_is_gone() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, 0);
    let receiver = bed.far(|| UdpSocket::bind((FAR, PORT))).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let bytes = frame_to_far(&bed, &nic, b"later");
    queue.packets.write(SENDING, &bytes);
    let frame = Transmit {
        chunk: SENDING,
        offset: 0,
        len: bytes.len() as u32,
        stamp: 0,
    };
    run("ip link set bktn down");
    assert_eq!(queue.pair.submit(&[frame]), 1);
    let error = queue.pair.ring_doorbell().unwrap_err();
    assert_eq!(
        (error.severity, error.errno),
        (Severity::Restart, Errno::NETDOWN)
    );
    // The frame has waited.
    run("ip link set bktn up");
    queue.pair.ring_doorbell().unwrap();
    let mut text = [0; 16];
    let end = Instant::now() + Duration::from_secs(2);
    let mut arrived = receiver.recv(&mut text);
    while arrived.is_err() && Instant::now() < end {
        assert_eq!(queue.pair.submit(&[frame]), 1);
        queue.pair.ring_doorbell().unwrap();
        arrived = receiver.recv(&mut text);
    }
    assert_eq!(&text[..arrived.unwrap()], b"later");

    run("ip link delete bktn");
    assert_eq!(queue.pair.submit(&[frame]), 1);
    let error = ring_doorbell(queue.pair.wait_fd().unwrap()).unwrap_err();
    assert_eq!(error.severity, Severity::Fatal, "{error}");
}

#[test]
fn a_program_without_privilege_uses_what_it_was_given() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let packets = super::bed::Packets::new();
    let xsk = nic.open_queue(0, &packets.memory, RING, 0).unwrap();
    listen(&nic);
    let sender = bed.far(|| UdpSocket::bind((FAR, 0))).unwrap();
    let receiver = bed.far(|| UdpSocket::bind((FAR, PORT))).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let bytes = frame_to_far(&bed, &nic, b"answer");

    // This thread only; with the uid its capabilities go.
    let nobody = Some(Uid::from_raw(65534));
    rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
    assert!(nic.open_queue(0, &packets.memory, RING, 0).is_err());
    let mut pair = AfXdpQueuePair::map(xsk, CHUNK, RING).unwrap();
    let chunks: Vec<u32> = (0..RING).collect();
    assert_eq!(pair.fill(&chunks), chunks.len());
    let mut queue = Queue { packets, pair };
    sender.send_to(b"question", (NEAR, PORT)).unwrap();
    assert_eq!(datagram(&queue.frame()).1, b"question");
    queue.packets.write(SENDING, &bytes);
    let frame = Transmit {
        chunk: SENDING,
        offset: 0,
        len: bytes.len() as u32,
        stamp: 0,
    };
    assert_eq!(queue.pair.submit(&[frame]), 1);
    queue.pair.ring_doorbell().unwrap();
    let mut text = [0; 16];
    let count = receiver.recv(&mut text).unwrap();
    assert_eq!(&text[..count], b"answer");
}

#[test]
fn sizes_are_checked() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let packets = super::bed::Packets::new();
    let open = || nic.open_queue(0, &packets.memory, RING, 0).unwrap();
    assert!(AfXdpQueuePair::map(open(), CHUNK, 100).is_err());
    assert!(AfXdpQueuePair::map(open(), 3000, RING).is_err());
    // More entries than the ring has.
    assert!(AfXdpQueuePair::map(open(), CHUNK, 1 << 16).is_err());
    let error = nic.open_queue(0, &packets.memory, 100, 0).unwrap_err();
    assert!(error.to_string().contains("sizing the rings"), "{error}");
}

/// The far end's NAPI thread.
fn napi_thread() -> Option<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.starts_with("napi/bktf"))
    })
    .and_then(Pid::from_raw)
}

#[test]
fn a_doorbell_goes_on_when_the_device_throws_a_frame_away() {
    const ENTRIES: u32 = 512;
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let packets = super::bed::Packets::new();
    let xsk = nic.open_queue(0, &packets.memory, ENTRIES, 0).unwrap();
    let mut pair = AfXdpQueuePair::map(xsk, CHUNK, ENTRIES).unwrap();
    // The other end takes frames from a ring of 256, in a thread that does not run while we do.
    let _far = bed.far(|| {
        let config = NicConfig {
            ifindex: bed.far_index,
            mode: Mode::Native,
            chunk_size: CHUNK,
        };
        let nic = Nic::open(config).unwrap();
        let set = "mount -t sysfs none /sys && echo 1 > /sys/class/net/bktf/threaded";
        let status = Command::new("unshare")
            .args(["-m", "sh", "-c", set])
            .status();
        assert!(status.unwrap().success());
        nic
    });
    let mut one_cpu = CpuSet::new();
    one_cpu.set(0);
    let thread = napi_thread().unwrap();
    sched_setaffinity(Some(thread), &one_cpu).unwrap();
    sched_setaffinity(None, &one_cpu).unwrap();

    let bytes = frame_to_far(&bed, &nic, &[7; 64]);
    packets.write(SENDING, &bytes);
    let frames: Vec<Transmit> = (SENDING..SENDING + ENTRIES)
        .map(|chunk| {
            packets.write(chunk, &bytes);
            Transmit {
                chunk,
                offset: 0,
                len: bytes.len() as u32,
                stamp: 0,
            }
        })
        .collect();
    let dropped = || {
        let output = Command::new("ip")
            .args(["-s", "-j", "link", "show", "bktn"])
            .output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let (_, tx) = text.split_once("\"tx\"").unwrap();
        let (_, dropped) = tx.split_once("\"dropped\":").unwrap();
        let end = dropped.find([',', '}']).unwrap();
        dropped[..end].parse::<u32>().unwrap()
    };
    for _ in 0..20 {
        assert_eq!(pair.submit(&frames), ENTRIES as usize);
        ring_doorbell(pair.wait_fd().unwrap()).unwrap();
        assert!(!pair.needs_doorbell(), "frames are left in the ring");
        let mut done = 0;
        while done < ENTRIES as usize {
            done += pair.complete(&mut [0; 256]);
        }
    }
    assert!(dropped() > 0, "the far end has kept up: nothing is tested");
}

#[test]
fn a_driver_that_cannot_do_without_copies_copies() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native).without_copies(true);
    let packets = super::bed::Packets::new();
    let patience = Duration::from_secs(1);
    let opened = nic.open_queue_within(0, &packets.memory, 64, 0, patience);
    let opened = opened.unwrap();
    assert_eq!(opened.refused, Some(Errno::OPNOTSUPP));
    assert!(!is_zero_copy(opened.fd.as_fd()));
}
