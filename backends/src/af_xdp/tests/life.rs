//! Opening, refusing, dying, taking over.

use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::bed::{Bed, CHUNK, FAR, NEAR, Packets, Queue, RING, run};
use super::frame::{UDP, datagram};
use crate::af_xdp::{
    AfXdpQueuePair, FilterKey, Listener, Mode, Nic, NicConfig, QUEUES_PER_SLOT, SLOTS,
};
use crate::netlink::{XdpFeatures, xdp_features};

const PORT: u16 = 7000;

fn filter() -> FilterKey {
    FilterKey::Listener(Listener::at(NEAR.to_ipv6_mapped().octets(), PORT, UDP))
}

fn receives(socket: &UdpSocket) -> bool {
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    socket.recv(&mut [0; 64]).is_ok()
}

#[test]
fn a_queue_has_one_owner_and_is_free_again_soon_after() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let packets = Packets::new();
    let first = nic.open_queue(0, &packets.memory, RING, 0).unwrap();
    let begin = Instant::now();
    let error = nic.open_queue(0, &packets.memory, RING, 1).unwrap_err();
    assert_eq!(error.errno, Errno::BUSY);
    assert!(error.to_string().contains("another process has it"));
    assert!((900..10_000).contains(&begin.elapsed().as_millis()));
    // A mapping keeps it as the descriptor does.
    let pair = AfXdpQueuePair::map(first, CHUNK, RING).unwrap();
    drop(pair);
    let begin = Instant::now();
    nic.open_queue(0, &packets.memory, RING, 1).unwrap();
    // It has not waited as long as for one that stays taken.
    assert!(begin.elapsed() < Duration::from_millis(900));
}

#[test]
fn queues_and_slots_that_are_not_there_are_refused() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let packets = Packets::new();
    for (queue, slot) in [
        (1, 0),
        (QUEUES_PER_SLOT, 0),
        (0, SLOTS),
        (u32::MAX, u32::MAX),
    ] {
        let error = nic.open_queue(queue, &packets.memory, RING, slot);
        assert_eq!(error.unwrap_err().errno, Errno::INVAL, "{queue} {slot}");
    }
    nic.open_queue(0, &packets.memory, RING, SLOTS - 1).unwrap();
}

/// Gives a descriptor to a program that does nothing, and drops it here.
fn hand_over(holder: &mut Command, fd: OwnedFd) {
    fcntl_setfd(&fd, FdFlags::empty()).unwrap();
    // The child inherits the number; ours closes with the test's thread.
    holder.env(format!("BKT_FD_{}", fd.as_raw_fd()), "");
    std::mem::forget(fd);
}

#[test]
fn when_the_last_holder_is_killed_the_kernel_has_its_traffic_back() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    nic.add_filter(filter(), 0).unwrap();
    let queue = Queue::open(&nic, 0, 0);
    let shadow = UdpSocket::bind((NEAR, PORT)).unwrap();
    let sender = bed.far(|| UdpSocket::bind((FAR, 0))).unwrap();

    // A child holds copies of link and XSK; the daemon and its mappings go.
    let link = nic.link().try_clone_to_owned().unwrap();
    let wait = crate::api::QueuePair::wait_fd(&queue.pair).unwrap();
    let xsk = wait.try_clone_to_owned().unwrap();
    let numbers = [link.as_raw_fd(), xsk.as_raw_fd()];
    let mut command = Command::new("sleep");
    command.arg("60");
    hand_over(&mut command, link);
    hand_over(&mut command, xsk);
    let mut holder = command.spawn().unwrap();
    for number in numbers {
        close(number);
    }
    drop((nic, queue));
    sender.send_to(b"held", (NEAR, PORT)).unwrap();
    assert!(!receives(&shadow), "the holder's queue has it");

    holder.kill().unwrap();
    holder.wait().unwrap();
    sender.send_to(b"free", (NEAR, PORT)).unwrap();
    assert!(receives(&shadow), "nothing steers any more");
    let nic = bed.nic(Mode::Native);
    Queue::open(&nic, 0, 0);
}

#[expect(
    unsafe_code,
    reason = "UNSAFETY: closes what `hand_over` has forgotten"
)]
fn close(number: i32) {
    // SAFETY: `hand_over` has forgotten this descriptor, so nobody else owns it.
    unsafe { rustix::io::close(number) };
}

#[test]
fn another_program_is_in_the_way() {
    let bed = Bed::new();
    let _first = bed.nic(Mode::Native);
    let error = bed.try_nic(Mode::Native).unwrap_err();
    assert_eq!(error.errno, Errno::BUSY);
    assert!(
        error
            .to_string()
            .contains("another XDP program is attached")
    );
    let error = bed.try_nic(Mode::Generic).unwrap_err();
    assert!(matches!(error.errno, Errno::BUSY | Errno::EXIST), "{error}");
}

#[test]
fn the_other_end_may_have_any_mtu() {
    let bed = Bed::new();
    bed.far(|| run("ip link set bktf mtu 9000"));
    let _nic = bed.nic(Mode::Native);
    bed.far(|| run("ip link set bktf mtu 16000"));
}

#[test]
fn auto_falls_back_to_generic_where_the_driver_has_no_xdp() {
    let bed = Bed::new();
    run("ip link add bktb type bridge");
    run("ip link set bktb up");
    let bridge = crate::af_xdp::interfaces()
        .into_iter()
        .find(|interface| interface.name == "bktb")
        .unwrap();
    let config = |mode| NicConfig {
        ifindex: bridge.ifindex,
        mode,
        chunk_size: CHUNK,
    };
    // (Kernels before 6.3 do not say.)
    let is_native = |ifindex| xdp_features(ifindex).is_ok_and(XdpFeatures::is_native);
    assert!(is_native(bed.near_index) && !is_native(bridge.ifindex));
    assert!(Nic::open(config(Mode::Native)).is_err());
    let nic = Nic::open(config(Mode::Auto)).unwrap();
    assert_eq!(nic.mode, Mode::Generic);
    assert!(nic.condition().unwrap().contains("lro"));
    assert!(!nic.has_partial_checksums());
    drop(bed);
    let gone = Nic::open(NicConfig {
        ifindex: 0x7fff_fff0,
        mode: Mode::Auto,
        chunk_size: CHUNK,
    });
    assert_eq!(gone.unwrap_err().errno, Errno::NODEV);
}

#[test]
fn a_new_daemon_takes_over_by_the_link() {
    let bed = Bed::new();
    for mode in [Mode::Native, Mode::Generic] {
        let nic = bed.nic(mode);
        nic.add_filter(filter(), 0).unwrap();
        let mut queue = Queue::open(&nic, 0, 0);
        let sender = bed.far(|| UdpSocket::bind((FAR, 0))).unwrap();
        sender.send_to(b"before", (NEAR, PORT)).unwrap();
        assert_eq!(datagram(&queue.frame()).1, b"before");

        let link = nic.link().try_clone_to_owned().unwrap();
        drop(nic);
        let nic = Nic::from_link(link, CHUNK).unwrap();
        assert_eq!(nic.mode, mode);
        assert_eq!(nic.interface.name, "bktn");
        assert_eq!(nic.filters(), [filter()]);
        assert_eq!(nic.filter_counters(filter()).packets, 1);
        sender.send_to(b"after", (NEAR, PORT)).unwrap();
        assert_eq!(datagram(&queue.frame()).1, b"after");
        assert_eq!(nic.counters()[0], 2);
        nic.remove_filter(filter());
        assert!(nic.filters().is_empty());
    }
}

#[test]
fn what_is_no_link_of_ours_is_not_taken_over() {
    let bed = Bed::new();
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(
        Nic::from_link(file.into(), CHUNK).unwrap_err().errno,
        Errno::INVAL
    );
    // The interface is gone, the link is left.
    let nic = bed.nic(Mode::Native);
    let link = nic.link().as_fd().try_clone_to_owned().unwrap();
    run("ip link delete bktn");
    let error = Nic::from_link(link, CHUNK).unwrap_err();
    assert!(matches!(error.errno, Errno::NODEV | Errno::NXIO), "{error}");
}

#[test]
fn many_filters_are_listed_once_each() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let key = |port| FilterKey::Listener(Listener::at([9; 16], port, UDP));
    for port in 0..3000 {
        nic.add_filter(key(port), 0).unwrap();
    }
    let listed = nic.filters();
    assert_eq!(listed.len(), 3000);
    assert!((0..3000).all(|port| listed.contains(&key(port))));
    for port in 0..3000 {
        nic.remove_filter(key(port));
    }
    assert!(nic.filters().is_empty());
}
