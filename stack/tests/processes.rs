//! Processes, holders, waiters, and the recovery after a death inside an update.

mod common;

use bypass_stack::inspect::{Image, ProblemKind};
use bypass_stack::*;
use common::*;
use zerocopy::IntoBytes;

const LOCAL: &str = "198.18.0.1:5000";
const REMOTE: &str = "198.18.0.2:6000";

#[test]
fn the_last_holder_destroys_the_endpoint() {
    let mut rig = Rig::new(CAPS);
    let parent = rig.process;
    let id = rig.open(at(LOCAL), None);
    let mut stack = rig.stack();
    let child = stack.fork_process(parent).unwrap();
    stack.set_process_pid(child, 101, 5);
    assert_eq!(stack.holders(id), [3, 0]);
    assert!(!stack.unhold(id, parent));
    assert!(stack.is_live(id));
    assert_eq!(stack.remove_process(child), 1);
    assert!(!stack.is_live(id));
    rig.check();
    assert_eq!(rig.stack().udp_lookup(at(LOCAL), at(REMOTE)), None);
}

#[test]
fn what_a_process_holds_is_given_back_in_parts() {
    let mut rig = Rig::new(CAPS);
    let parent = rig.process;
    let shared = rig.open(at("198.18.0.1:5000"), None);
    let child = rig.stack().fork_process(parent).unwrap();
    let own: Vec<_> = (5001..5004)
        .map(|port| rig.open(at(&format!("198.18.0.1:{port}")), None))
        .collect();
    let mut stack = rig.stack();
    assert_eq!(stack.unhold_some(child, 0, 8), (0, None), "it is shared");
    assert!(stack.is_live(shared));
    let (orphaned, next) = stack.unhold_some(parent, 0, 2);
    assert_eq!((orphaned, stack.is_live(own[2])), (2, true));
    let (orphaned, next) = stack.unhold_some(parent, next.unwrap(), 8);
    assert_eq!((orphaned, next), (2, None));
    assert!(!stack.is_live(own[2]));
    rig.check();
}

#[test]
fn a_parent_names_its_own_child_once() {
    let mut rig = Rig::new(CAPS);
    let parent = rig.process;
    let mut stack = rig.stack();
    let other = stack.add_process(77, 5, 0).unwrap();
    let child = stack.fork_process(parent).unwrap();
    stack.name_child(other, child, 101);
    assert_eq!(stack.process_pid(child), Some(0), "it is not its child");
    stack.name_child(parent, child, 102);
    stack.name_child(parent, child, 103);
    assert_eq!(stack.process_pid(child), Some(102));
    stack.name_child(parent, ProcessId(255), 1);
}

#[test]
fn closing_frees_what_was_queued() {
    let mut rig = Rig::new(CAPS);
    let process = rig.process;
    let id = rig.open(at(LOCAL), None);
    for _ in 0..5 {
        rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    }
    assert!(rig.stack().unhold(id, process));
    assert_eq!(rig.stack().free_chunks(), CAPS.chunks);
    rig.check();
}

#[test]
fn process_slots_are_128_and_come_back() {
    let mut rig = Rig::new(CAPS);
    let mut stack = rig.stack();
    let all: Vec<_> = (0..200)
        .map_while(|pid| stack.add_process(pid, 0, 0))
        .collect();
    assert_eq!(all.len(), 127);
    assert_eq!(stack.fork_process(all[0]), None);
    assert_eq!(stack.remove_process(all[9]), 0);
    assert_eq!(
        stack.remove_process(all[9]),
        0,
        "a second time changes nothing"
    );
    assert_eq!(stack.add_process(7, 7, 7), Some(all[9]));
    stack.hold(EndpointId::NONE, all[9]);
    stack.set_process_pid(ProcessId(255), 1, 1);
    let image = Image::attach(rig.words.as_bytes()).unwrap();
    let seen = image
        .processes()
        .find(|process| process.id == all[9])
        .unwrap();
    assert_eq!(
        (seen.pid, seen.start_time, seen.uid, seen.generation),
        (7, 7, 7, 2)
    );
    let head = &rig.words.as_bytes()[..HEAD_BYTES];
    let by_head: Vec<_> = inspect::processes(head).unwrap().collect();
    assert_eq!(by_head, image.processes().collect::<Vec<_>>());
    assert!(inspect::processes(&head[1..]).is_err());
    rig.check();
}

#[test]
fn a_stack_is_seen_without_a_copy() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    let copy = rig.words.clone();
    let copied = Image::attach(copy.as_bytes()).unwrap();
    let stack = rig.stack();
    let seen = stack.inspect();
    assert_eq!(seen.capacities(), copied.capacities());
    assert_eq!(
        seen.endpoints().collect::<Vec<_>>(),
        copied.endpoints().collect::<Vec<_>>()
    );
    assert_eq!(seen.queued(id).count(), 1);
}

#[test]
fn a_process_that_rests_opens_nothing() {
    let mut rig = Rig::new(CAPS);
    let parent = rig.process;
    let id = rig.open(at(LOCAL), None);
    let mut stack = rig.stack();
    stack.rest_process(parent, true);
    let child = stack.fork_process(parent).unwrap();
    let open = |process| UdpOpen {
        family: Family::V4,
        local: at("198.18.0.1:5001"),
        remote: None,
        process,
        options: UdpOptions::new(),
        shadow_cookie: 0,
        ifindex: 0,
    };
    for process in [parent, child] {
        assert_eq!(stack.udp_open(&open(process)), Err(OpenError::Resting));
    }
    // What it has stays, and may rest in its turn.
    assert!(stack.is_live(id) && !stack.rests(id));
    assert_eq!(stack.rest(id, true), Ok(()));
    assert!(stack.rests(id));
    assert_eq!(stack.rest(id, false), Ok(()));
    assert!(!stack.rests(id) && stack.rest(EndpointId::NONE, true).is_err());
    stack.rest_process(child, false);
    assert!(stack.udp_open(&open(child)).is_ok());
    rig.check();
}

#[test]
fn parked_waiters_are_woken_by_arrivals() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let other = rig.open(at("198.18.0.1:5001"), None);
    let process = rig.process;
    let mut stack = rig.stack();
    let waiters: Vec<_> = (0..70)
        .map(|_| stack.add_waiter(process).unwrap())
        .collect();
    stack.park(id, waiters[3]);
    stack.park(id, waiters[69]);
    stack.park(other, waiters[4]);
    stack.park(other, WaiterId(120));
    assert!(stack.take_wakeups().is_empty());
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    rig.frame(&datagram(at(REMOTE), at("198.18.0.1:9"), b"x"));
    let mut stack = rig.stack();
    let woken: Vec<_> = stack.take_wakeups().iter().collect();
    assert_eq!(woken, [waiters[3], waiters[69]]);
    assert!(stack.take_wakeups().is_empty());
    stack.unpark(id, waiters[3]);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    let mut stack = rig.stack();
    let woken: Vec<_> = stack.take_wakeups().iter().collect();
    assert_eq!(woken, [waiters[69]], "parked until unpark");
    stack.remove_waiter(waiters[69]);
    assert_eq!(stack.waiter_process(waiters[69]), None);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    assert!(rig.stack().take_wakeups().is_empty());
    rig.check();
}

#[test]
fn a_process_takes_its_waiters_along() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let mut stack = rig.stack();
    let second = stack.add_process(5, 5, 5).unwrap();
    let waiter = stack.add_waiter(second).unwrap();
    assert_eq!(stack.waiter_process(waiter), Some(second));
    stack.park(id, waiter);
    stack.remove_process(second);
    assert_eq!(stack.waiter_process(waiter), None);
    assert_eq!(stack.add_waiter(second), None);
    rig.check();
}

#[test]
fn recovery_keeps_endpoints_and_their_datagrams() {
    let mut rig = Rig::new(CAPS);
    let process = rig.process;
    let id = rig.open(at(LOCAL), None);
    let connected = rig.open(at(LOCAL), Some(at(REMOTE)));
    let abandoned = rig.open(at("198.18.0.1:5001"), None);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    rig.frame(&datagram(at("198.18.0.2:6001"), at(LOCAL), b"x"));
    let (mut stack, packets) = rig.both();
    for _ in 0..3 {
        stack
            .udp_send(packets, id, at(REMOTE), &via(LOCAL), 1, |_| {})
            .unwrap();
    }
    let in_ring = [
        stack.poll_transmit(0).unwrap().chunk,
        stack.take_chunk().unwrap(),
    ];
    let _ = (abandoned, process);
    // Somebody died with the lists in any state.
    scribble(&mut rig);
    rig.recover(&in_ring);
    rig.check();
    let mut stack = rig.stack();
    assert_eq!(stack.free_chunks(), CAPS.chunks - 4);
    assert_eq!(stack.udp_lookup(at(LOCAL), at(REMOTE)), Some(connected));
    assert_eq!(stack.udp_lookup(at(LOCAL), at("198.18.0.2:6001")), Some(id));
    for chunk in in_ring {
        stack.release_chunk(chunk);
    }
    for endpoint in [id, connected] {
        assert_eq!(stack.udp_status(endpoint).unwrap().queued, 1);
        stack.udp_pop(endpoint).unwrap();
        assert_eq!(stack.udp_front(endpoint), Ok(None));
    }
    assert_eq!(stack.free_chunks(), CAPS.chunks);
    assert_eq!(stack.counters().get(Counter::Recoveries), 1);
    assert_eq!(stack.counters().get(Counter::RecoveredDatagrams), 2);
    let outcome = rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    assert_eq!(outcome, FrameOutcome::Delivered(connected));
    rig.check();
}

/// Who dies in the middle of an update takes nothing of others along: not when one of their
/// datagrams is still in a ring (it is received again), nor with the queue of somebody who is gone.
#[test]
fn recovery_keeps_whole_queues_in_order() {
    let mut rig = Rig::new(CAPS);
    let (id, process) = (rig.open(at(LOCAL), None), rig.process);
    let mut stack = rig.stack();
    let doomed = stack.add_process(5, 5, 5).unwrap();
    let waiter = stack.add_waiter(process).unwrap();
    let _gone = stack
        .udp_open(&udp_open(doomed, at("198.18.0.1:5001"), None))
        .unwrap();
    for byte in 0..5u8 {
        rig.frame(&datagram(at(REMOTE), at(LOCAL), &[byte]));
        rig.frame(&datagram(at(REMOTE), at("198.18.0.1:5001"), &[byte]));
    }
    let queued = |rig: &Rig| {
        let image = Image::attach(rig.words.as_bytes()).unwrap();
        image.queued(id).collect::<Vec<_>>()
    };
    let before = queued(&rig);
    let mut stack = rig.stack();
    stack.park(id, waiter);
    stack.take_wakeups();
    scribble(&mut rig);
    rig.recover(&before[4..]);
    rig.check();
    assert_eq!(queued(&rig), before[..4]);
    assert!(!rig.stack().take_wakeups().is_empty(), "who waits is told");
    rig.stack().remove_process(doomed);
    rig.check();
}

/// A flow keeps its member of a group, in whatever order the members have their slots.
#[test]
fn recovery_leaves_flows_with_their_members() {
    let mut rig = Rig::new(CAPS);
    let process = rig.process;
    let join = |rig: &mut Rig| {
        let mut open = udp_open(process, at(LOCAL), None);
        open.options.set(UdpOptions::REUSE_PORT, true);
        rig.stack().udp_open(&open).unwrap()
    };
    let first = join(&mut rig);
    for _ in 0..3 {
        join(&mut rig);
    }
    // Its slot is taken again by the newest.
    rig.stack().unhold(first, process);
    join(&mut rig);
    let members = |rig: &mut Rig| -> Vec<_> {
        let remote = |port: u16| SocketAddress::new(at(REMOTE).ip, port);
        let stack = rig.stack();
        (6000..6100)
            .map(|port| stack.udp_lookup(at(LOCAL), remote(port)))
            .collect()
    };
    let before = members(&mut rig);
    rig.recover(&[]);
    assert_eq!(members(&mut rig), before);
    rig.check();
}

/// Breaks free list, transmit list heads and buckets, as a death between two stores could.
fn scribble(rig: &mut Rig) {
    // The head's lists begin behind magic, sizes, seed, time and wake-ups: free_chunk at 64.
    let bytes = rig.words.as_mut_bytes();
    bytes[64..72].fill(0xee);
    assert!(!problems(bytes).is_empty());
}

#[test]
fn check_finds_what_is_broken() {
    let mut rig = Rig::new(CAPS);
    rig.open(at(LOCAL), None);
    rig.frame(&datagram(at(REMOTE), at(LOCAL), b"x"));
    rig.words.as_mut_bytes()[64] ^= 0x55;
    let mut kinds = Vec::new();
    let image = Image::attach(rig.words.as_bytes()).unwrap();
    image.check(&mut |problem| kinds.push(problem.kind));
    assert!(kinds.contains(&ProblemKind::BadIndex) || kinds.contains(&ProblemKind::Count));
    assert!(kinds.contains(&ProblemKind::ChunkLost), "{kinds:?}");
}

#[test]
fn attach_refuses_what_is_no_image() {
    let rig = Rig::new(CAPS);
    let good = rig.words;
    let attach = |words: &mut [u64]| Stack::attach(words.as_mut_bytes()).map(|_| ()).unwrap_err();
    assert_eq!(attach(&mut []), LayoutError::Size);
    let mut words = good.clone();
    words[0] ^= 1;
    assert_eq!(attach(&mut words), LayoutError::Magic);
    let mut words = good.clone();
    words[1] ^= 0x10;
    assert_eq!(attach(&mut words), LayoutError::Version);
    let mut words = good.clone();
    words[1] ^= 1 << 62;
    assert_eq!(attach(&mut words), LayoutError::Capacities);
    let mut words = good.clone();
    words.truncate(good.len() - 1);
    assert_eq!(attach(&mut words), LayoutError::Size);
    let mut words = good.clone();
    words[3] ^= 4096;
    assert_eq!(attach(&mut words), LayoutError::Size);
    let mut words = good.clone();
    words.push(0);
    assert_eq!(
        Stack::attach(&mut words.as_mut_bytes()[1..])
            .map(|_| ())
            .unwrap_err(),
        LayoutError::Alignment
    );
    for caps in [
        Capacities {
            endpoints: 0,
            ..CAPS
        },
        Capacities {
            chunks: u32::MAX,
            ..CAPS
        },
        Capacities {
            chunk_size: 100,
            ..CAPS
        },
    ] {
        assert_eq!(image_bytes(&caps), 0);
        let mut words = good.clone();
        assert!(Stack::create(words.as_mut_bytes(), caps, 1).is_err());
    }
}

#[test]
fn endpoints_are_found_by_their_shadow() {
    let mut rig = Rig::new(CAPS);
    let process = rig.process;
    let open = UdpOpen {
        shadow_cookie: 4711,
        ..udp_open(process, at(LOCAL), None)
    };
    let id = rig.stack().udp_open(&open).unwrap();
    assert_eq!(rig.stack().udp_find(4711), Some(id));
    assert_eq!(rig.stack().udp_find(4712), None);
    assert!(rig.stack().unhold(id, process));
    assert_eq!(rig.stack().udp_find(4711), None);
}
