//! Times of leaving by the NIC's clock: marks of frames, numbers, and what is told of them.

mod common;

use bypass_stack::tcp::notices::{
    OPT_ID, OPT_ID_TCP, OPT_TSONLY, OPT_TX_SWHW, TX_ACK, TX_HARDWARE, TX_SCHED, TX_SOFTWARE,
};
use bypass_stack::wire::tcp::flags;
use bypass_stack::*;
use common::{CAPS, NOW, Rig, TcpFields, at, receive_at, tcp_frame};

const OURS: &str = "198.18.0.1:80";
const PEER: &str = "198.18.0.2:4000";
const NUMBERED: u32 = OPT_ID | OPT_ID_TCP | OPT_TSONLY;
/// A time of the NIC, far from those of the host.
const CARD: u64 = 1 << 60;
const SECOND: u64 = 1_000_000_000;

/// A connection that a listener has accepted.
struct Host {
    rig: Rig,
    id: EndpointId,
    /// The next sequence number that the peer expects.
    first: u32,
    now: Instant,
}

impl Host {
    /// With a NIC that stamps what it sends.
    fn new() -> Self {
        let mut rig = Rig::new(CAPS);
        rig.stack().queue_pairs_mut()[0].flags |= QueuePairInfo::STAMPS_SENT;
        let open = TcpOpen {
            family: Family::V4,
            local: at(OURS),
            process: rig.process,
            options: TcpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        let listener = rig.stack().tcp_listen(&open, 8).unwrap();
        let mut host = Self {
            rig,
            id: listener,
            first: 0,
            now: NOW,
        };
        host.segment(1000, 0, flags::SYN);
        let (frame, syn_ack) = host.next().unwrap();
        host.rig.stack().release_chunk(frame.chunk);
        host.first = u32::from_be_bytes(syn_ack[38..42].try_into().unwrap()).wrapping_add(1);
        host.segment(1001, host.first, flags::ACK);
        let process = host.rig.process;
        host.id = host
            .rig
            .stack()
            .tcp_accept(listener, process, 0)
            .unwrap()
            .unwrap();
        host
    }

    fn segment(&mut self, seq: u32, ack: u32, flags: u16) {
        let fields = TcpFields {
            seq,
            ack,
            flags,
            window: 65_535,
            ..TcpFields::default()
        };
        let bytes = tcp_frame(at(PEER), at(OURS), &fields);
        let (mut stack, packets) = self.rig.both();
        receive_at(&mut stack, packets, &bytes, self.now).expect("a chunk");
        stack.flush(packets, self.now);
        while stack.take_flow_change().is_some() {}
    }

    /// The peer has so many bytes.
    fn acknowledge(&mut self, bytes: u32) {
        self.segment(1001, self.first.wrapping_add(bytes), flags::ACK);
    }

    fn ask(&mut self, flags: u32) {
        let id = self.id;
        self.rig.stack().tcp_set_timestamping(id, flags).unwrap();
    }

    /// Sends a hundred bytes that await these.
    fn send(&mut self, awaited: u32) {
        let (id, now) = (self.id, self.now);
        let (mut stack, packets) = self.rig.both();
        let mut fill = |into: &mut [u8]| into.fill(9);
        let sent = stack.tcp_send(packets, id, 100, false, &mut fill, now);
        assert_eq!(sent, Ok(100));
        stack.tcp_await(id, awaited, now).unwrap();
    }

    /// The next frame for the ring; its chunk is still the NIC's.
    fn next(&mut self) -> Option<(Transmit, Vec<u8>)> {
        let (mut stack, packets) = self.rig.both();
        let frame = stack.poll_transmit(0)?;
        let from = frame.offset as usize;
        let bytes = packets.chunk(frame.chunk)[from..from + frame.len as usize].to_vec();
        Some((frame, bytes))
    }

    /// Numbers of the frames that wait to be sent, whose chunks the NIC gives back.
    fn numbers(&mut self) -> Vec<u32> {
        let mut numbers = Vec::new();
        while let Some((frame, _)) = self.next() {
            self.rig.stack().release_chunk(frame.chunk);
            numbers.push(frame.stamp);
        }
        numbers
    }

    fn left(&mut self, number: u32, at_ns: u64) {
        self.rig.stack().tcp_left(number, at_ns);
        self.rig.check();
    }

    /// What is told: kind, number of the byte, and when by the NIC's clock.
    fn told(&mut self) -> Vec<(NoticeKind, u32, u64)> {
        let id = self.id;
        let mut told = Vec::new();
        while let Some(notice) = self.rig.stack().tcp_take_notice(id).unwrap() {
            let is_stamp = notice.kind == NoticeKind::Stamped;
            let at = if is_stamp { notice.at.0 } else { 0 };
            told.push((notice.kind, notice.last, at));
        }
        told
    }
}

#[test]
fn each_send_has_its_time_and_its_number() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    host.rig
        .stack()
        .tcp_options(host.id)
        .unwrap()
        .set(TcpOptions::NODELAY, true);
    for _ in 0..3 {
        host.send(TX_HARDWARE);
    }
    let numbers = host.numbers();
    assert!(numbers.len() == 3 && !numbers.contains(&0), "{numbers:?}");
    assert_eq!(host.told(), []);
    for (nth, number) in numbers.iter().enumerate() {
        host.left(*number, CARD + nth as u64);
    }
    let stamped = |key, nth| (NoticeKind::Stamped, key, CARD + nth);
    assert_eq!(
        host.told(),
        [stamped(99, 0), stamped(199, 1), stamped(299, 2)]
    );
    // Once each.
    host.left(numbers[1], CARD);
    assert_eq!(host.told(), []);
    // Who does not ask is not told, and his frames have no number.
    host.acknowledge(300);
    host.send(TX_ACK);
    assert_eq!(host.numbers(), [0]);
}

/// Small writes behind one on its way leave as one segment, later: each has the time of that.
#[test]
fn what_waits_is_marked_when_it_leaves() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    for _ in 0..3 {
        host.send(TX_HARDWARE);
    }
    let first = host.numbers();
    assert_eq!(first.len(), 1);
    host.left(first[0], CARD);
    host.acknowledge(100);
    let second = host.numbers();
    assert!(second.len() == 1 && second[0] != first[0]);
    host.left(second[0], CARD + 1);
    let stamped = |key, at| (NoticeKind::Stamped, key, at);
    let told = [
        stamped(99, CARD),
        stamped(199, CARD + 1),
        stamped(299, CARD + 1),
    ];
    assert_eq!(host.told(), told);
}

#[test]
fn the_hosts_time_comes_for_want_of_the_nics_or_beside_it() {
    let both = TX_HARDWARE | TX_SOFTWARE | TX_SCHED;
    let (scheduled, sent) = ((NoticeKind::Scheduled, 99, 0), (NoticeKind::Sent, 99, 0));
    for (asked, stamps, awaited) in [
        (0, true, vec![scheduled]),
        (OPT_TX_SWHW, true, vec![scheduled, sent]),
        (0, false, vec![scheduled, sent]),
    ] {
        let mut host = Host::new();
        if !stamps {
            host.rig.stack().queue_pairs_mut()[0].flags = QueuePairInfo::LIVE;
        }
        host.ask(NUMBERED | asked);
        host.send(both);
        assert_eq!(host.told(), awaited);
        let numbers = host.numbers();
        assert_eq!(numbers[0] != 0, stamps);
        host.left(numbers[0], CARD);
        assert_eq!(host.told().len(), usize::from(stamps));
        host.acknowledge(100);
        assert_eq!(host.told(), []);
    }
}

#[test]
fn what_has_left_before_it_is_awaited_has_the_hosts_time() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    host.send(0);
    assert_eq!(host.numbers(), [0]);
    let (id, now) = (host.id, host.now);
    host.rig
        .stack()
        .tcp_await(id, TX_HARDWARE | TX_SOFTWARE, now)
        .unwrap();
    assert_eq!(host.told(), [(NoticeKind::Sent, 99, 0)]);
}

/// The peer is quicker than the NIC's word; also the end of the connection is, while its socket is
/// open.
#[test]
fn a_time_may_come_behind_the_acknowledgement_and_the_end() {
    for ends in [false, true] {
        let mut host = Host::new();
        host.ask(NUMBERED);
        host.send(TX_HARDWARE | TX_ACK);
        let numbers = host.numbers();
        host.acknowledge(100);
        assert_eq!(host.told(), [(NoticeKind::Acknowledged, 99, 0)]);
        if ends {
            host.segment(1001, host.first.wrapping_add(100), flags::RST | flags::ACK);
            let status = host.rig.stack().tcp_status(host.id).unwrap();
            assert_eq!(status.state, TcpState::Closed);
        }
        host.left(numbers[0], CARD);
        assert_eq!(host.told(), [(NoticeKind::Stamped, 99, CARD)]);
    }
}

#[test]
fn a_frame_that_finds_no_room_in_the_ring_keeps_its_number() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    host.send(TX_HARDWARE);
    let (frame, _) = host.next().unwrap();
    host.rig.stack().untransmit(0, frame);
    assert_eq!(host.numbers(), [frame.stamp]);
    host.left(frame.stamp, CARD);
    assert_eq!(host.told(), [(NoticeKind::Stamped, 99, CARD)]);
}

/// The first of its copies of which the NIC tells counts.
#[test]
fn a_segment_that_is_sent_again_takes_its_number_along() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    host.send(TX_HARDWARE);
    let first = host.numbers();
    host.now = Instant(host.now.0 + 2 * SECOND);
    let (mut stack, packets) = host.rig.both();
    stack.run_timers(packets, host.now);
    assert_eq!(host.numbers(), first);
    host.left(first[0], CARD);
    host.left(first[0], CARD + 1);
    assert_eq!(host.told(), [(NoticeKind::Stamped, 99, CARD)]);
    host.now = Instant(host.now.0 + 9 * SECOND);
    let (mut stack, packets) = host.rig.both();
    stack.run_timers(packets, host.now);
    assert_eq!(host.numbers(), [0], "all is told");
}

#[test]
fn a_number_that_comes_twice_ends_no_other_wait() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    host.rig
        .stack()
        .tcp_options(host.id)
        .unwrap()
        .set(TcpOptions::NODELAY, true);
    // The first one is still listed when its number comes again, and then is not.
    for nth in [0, 2] {
        host.send(TX_HARDWARE | TX_ACK);
        host.send(TX_HARDWARE);
        let [first, second] = host.numbers()[..] else {
            panic!("two frames")
        };
        let end = 100 * nth + 99;
        host.left(first, CARD);
        assert_eq!(host.told(), [(NoticeKind::Stamped, end, CARD)]);
        let acknowledged = (NoticeKind::Acknowledged, end, 0);
        if nth == 0 {
            host.acknowledge(100 * nth + 200);
            assert_eq!(host.told(), [acknowledged]);
            host.left(first, CARD + 1);
        } else {
            host.left(first, CARD + 1);
            host.acknowledge(100 * nth + 200);
            assert_eq!(host.told(), [acknowledged]);
        }
        host.left(second, CARD + 2);
        assert_eq!(host.told(), [(NoticeKind::Stamped, end + 100, CARD + 2)]);
    }
}

/// Times that never come (a card that was reset) are not waited for when there is no room, nor
/// when later ones come.
#[test]
fn times_that_are_lost_keep_nobody_waiting() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    let mut last = 0;
    for nth in 1..=400 {
        host.send(TX_HARDWARE | TX_ACK);
        last = host.numbers()[0];
        assert_ne!(last, 0);
        host.acknowledge(100 * nth);
        assert_eq!(host.told(), [(NoticeKind::Acknowledged, 100 * nth - 1, 0)]);
    }
    host.left(last, CARD);
    assert_eq!(host.told(), [(NoticeKind::Stamped, 39_999, CARD)]);
    // With the last one all are: nothing is awaited, nothing marked.
    host.send(0);
    assert_eq!(host.numbers(), [0]);
    // The NIC does not know.
    host.acknowledge(40_100);
    host.send(TX_HARDWARE);
    let number = host.numbers()[0];
    host.left(number, 0);
    host.left(number, CARD);
    assert_eq!(host.told(), []);
}

/// What comes when the connection is gone is nobody's: neither of the next with its place.
#[test]
fn a_time_of_a_connection_that_is_gone_says_nothing() {
    let mut host = Host::new();
    host.ask(NUMBERED);
    host.send(TX_HARDWARE);
    let stale = host.numbers()[0];
    let (id, process, now) = (host.id, host.rig.process, host.now);
    host.segment(1001, host.first, flags::RST | flags::ACK);
    let (mut stack, packets) = host.rig.both();
    stack.tcp_close(packets, id, process, now);
    stack.flush(packets, now);
    assert!(!stack.is_live(id));
    host.left(stale, CARD);
    let mut next = Host::new();
    std::mem::swap(&mut host.rig.words, &mut next.rig.words);
    for number in [stale, 0, 1, u32::MAX, stale ^ 1, stale ^ 1 << 31] {
        host.left(number, CARD);
    }
    host.ask(NUMBERED);
    host.send(TX_HARDWARE);
    host.left(stale ^ 1 << 20, CARD);
    assert_eq!(host.told(), []);
}

/// The lock's owner has died with times on their way: connections are gone, and what comes of
/// theirs, or of chunks of theirs, is nobody's.
#[test]
fn a_recovery_forgets_what_is_awaited() {
    for is_in_ring in [false, true] {
        let mut host = Host::new();
        host.ask(NUMBERED);
        host.send(TX_HARDWARE);
        let mut numbers = vec![1, u32::MAX];
        let mut chunks = Vec::new();
        if is_in_ring {
            let (frame, _) = host.next().unwrap();
            chunks.push(frame.chunk);
            numbers.push(frame.stamp);
        }
        host.rig.recover(&chunks);
        host.rig.check();
        for number in numbers {
            host.left(number, CARD);
        }
        for chunk in chunks {
            host.rig.stack().release_chunk(chunk);
        }
        assert!(host.numbers().iter().all(|number| *number == 0));
        host.rig.check();
    }
}
