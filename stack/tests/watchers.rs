//! Readiness and watchers: what an epoll set learns, in which order, and that no list breaks.

mod common;

use bypass_stack::*;
use common::*;

const LOCAL: &str = "198.18.0.1:5000";
const OTHER: &str = "198.18.0.1:5001";
const REMOTE: &str = "198.18.0.2:6000";

fn arrive(rig: &mut Rig, to: &str) {
    rig.frame(&datagram(at(REMOTE), at(to), b"x"));
}

#[test]
fn a_datagram_makes_an_endpoint_readable_and_counts_an_edge() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let idle = rig.stack().readiness(id).unwrap();
    assert_eq!(idle.events, event::OUT | event::WRNORM);
    arrive(&mut rig, LOCAL);
    let ready = rig.stack().readiness(id).unwrap();
    assert_eq!(ready.events, idle.events | event::IN | event::RDNORM);
    assert_ne!(ready.in_edge, idle.in_edge);
    rig.pop(id);
    assert_eq!(rig.stack().readiness(id).unwrap().events, idle.events);
    let process = rig.process;
    rig.stack().unhold(id, process);
    assert_eq!(rig.stack().readiness(id), Err(Stale));
}

#[test]
fn a_watcher_hears_of_each_endpoint_once_and_in_order() {
    let mut rig = Rig::new(CAPS);
    let (one, two) = (rig.open(at(LOCAL), None), rig.open(at(OTHER), None));
    let process = rig.process;
    let mut stack = rig.stack();
    let watcher = stack.add_watcher(process).unwrap();
    assert!(stack.watch(one, watcher) && stack.watch(two, watcher));
    // Watching begins with a look at the present state.
    assert_eq!(stack.take_ready(watcher), Some(one));
    assert_eq!(stack.take_ready(watcher), Some(two));
    assert_eq!(stack.take_ready(watcher), None);
    arrive(&mut rig, OTHER);
    arrive(&mut rig, LOCAL);
    arrive(&mut rig, OTHER);
    let mut stack = rig.stack();
    assert_eq!(stack.ready_count(watcher), 2);
    assert_eq!(stack.first_ready(watcher), Some(two));
    assert_eq!(stack.take_ready(watcher), Some(two));
    stack.return_ready(two, watcher);
    assert_eq!(stack.take_ready(watcher), Some(one));
    assert_eq!(stack.take_ready(watcher), Some(two));
    assert_eq!(stack.ready_count(watcher), 0);
    rig.check();
}

#[test]
fn an_arrival_wakes_the_waiters_of_the_watcher() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let process = rig.process;
    let mut stack = rig.stack();
    let watcher = stack.add_watcher(process).unwrap();
    let waiter = stack.add_waiter(process).unwrap();
    stack.watch(id, watcher);
    stack.take_ready(watcher);
    stack.park_watcher(watcher, waiter);
    assert!(stack.take_wakeups().is_empty());
    arrive(&mut rig, LOCAL);
    assert!(rig.stack().take_wakeups().contains(waiter));
    // Not taken yet, and still every arrival wakes: another thread may have gone to sleep.
    arrive(&mut rig, LOCAL);
    let mut stack = rig.stack();
    assert!(stack.take_wakeups().contains(waiter));
    stack.unpark_watcher(watcher, waiter);
    arrive(&mut rig, LOCAL);
    let mut stack = rig.stack();
    assert!(stack.take_wakeups().is_empty());
    stack.park_watcher(watcher, waiter);
    stack.remove_waiter(waiter);
    rig.check();
    arrive(&mut rig, LOCAL);
    assert!(rig.stack().take_wakeups().is_empty());
}

#[test]
fn an_endpoint_has_one_watcher_until_that_one_ends() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let process = rig.process;
    let mut stack = rig.stack();
    let first = stack.add_watcher(process).unwrap();
    let second = stack.add_watcher(process).unwrap();
    assert!(stack.watch(id, first) && !stack.watch(id, second));
    stack.unwatch(id, second);
    stack.return_ready(id, second);
    assert_eq!(stack.ready_count(second), 0);
    stack.remove_watcher(first);
    assert!(!stack.watch(id, first), "the slot is free");
    assert!(stack.watch(id, second));
    stack.unwatch(id, second);
    assert_eq!(stack.ready_count(second), 0);
    rig.check();
}

#[test]
fn a_destroyed_endpoint_leaves_the_list() {
    let mut rig = Rig::new(CAPS);
    let process = rig.process;
    let ids: Vec<_> = (0..3)
        .map(|port| rig.open(at(&format!("198.18.0.1:{}", 5000 + port)), None))
        .collect();
    let mut stack = rig.stack();
    let watcher = stack.add_watcher(process).unwrap();
    for &id in &ids {
        assert!(stack.watch(id, watcher));
    }
    stack.unhold(ids[1], process);
    assert_eq!(stack.take_ready(watcher), Some(ids[0]));
    assert_eq!(stack.take_ready(watcher), Some(ids[2]));
    assert_eq!(stack.take_ready(watcher), None);
    rig.check();
}

#[test]
fn a_dead_process_gives_its_watchers_back() {
    let mut rig = Rig::new(CAPS);
    let id = rig.open(at(LOCAL), None);
    let parent = rig.process;
    let mut stack = rig.stack();
    let child = stack.fork_process(parent).unwrap();
    let theirs = stack.add_watcher(child).unwrap();
    let ours = stack.add_watcher(parent).unwrap();
    assert!(stack.watch(id, theirs) && !stack.watch(id, ours));
    stack.remove_process(child);
    assert_eq!(stack.watcher_process(theirs), None);
    assert!(stack.watch(id, ours));
    rig.check();
    let mut stack = rig.stack();
    let all: Vec<_> = (0..WATCHERS)
        .map_while(|_| stack.add_watcher(parent))
        .collect();
    assert_eq!(all.len(), WATCHERS - 1);
    assert_eq!(stack.add_watcher(ProcessId(99)), None);
}

#[test]
fn a_recovery_loses_no_readiness() {
    let mut rig = Rig::new(CAPS);
    let (one, two) = (rig.open(at(LOCAL), None), rig.open(at(OTHER), None));
    let process = rig.process;
    let mut stack = rig.stack();
    let watcher = stack.add_watcher(process).unwrap();
    assert!(stack.watch(one, watcher) && stack.watch(two, watcher));
    while stack.take_ready(watcher).is_some() {}
    rig.recover(&[]);
    let stack = rig.stack();
    assert_eq!(stack.ready_count(watcher), 2);
    rig.check();
}

/// Random calls against a model of the list: a queue of the endpoints that were told of.
#[test]
fn random_operations_keep_the_list_a_queue() {
    for seed in 1..200 {
        let mut random = Random(seed);
        let mut rig = Rig::new(CAPS);
        let process = rig.process;
        let watcher = rig.stack().add_watcher(process).unwrap();
        let mut live: Vec<(EndpointId, u16)> = Vec::new();
        let mut model: Vec<EndpointId> = Vec::new();
        for step in 0..300_u64 {
            let pick = |random: &mut Random, live: &[(EndpointId, u16)]| {
                live.get(random.below(live.len().max(1) as u64) as usize)
                    .copied()
            };
            match random.below(6) {
                0 if live.len() < 6 => {
                    let port = 5000 + (step as u16);
                    let id = rig.open(at(&format!("198.18.0.1:{port}")), None);
                    assert!(rig.stack().watch(id, watcher));
                    live.push((id, port));
                    model.push(id);
                }
                1 => {
                    if let Some((id, _)) = pick(&mut random, &live) {
                        rig.stack().unhold(id, process);
                        live.retain(|(other, _)| *other != id);
                        model.retain(|other| *other != id);
                    }
                }
                2 => {
                    if let Some((id, port)) = pick(&mut random, &live) {
                        arrive(&mut rig, &format!("198.18.0.1:{port}"));
                        rig.pop(id);
                        if !model.contains(&id) {
                            model.push(id);
                        }
                    }
                }
                3 => {
                    if let Some((id, _)) = pick(&mut random, &live) {
                        rig.stack().unwatch(id, watcher);
                        rig.stack().watch(id, watcher);
                        model.retain(|other| *other != id);
                        model.push(id);
                    }
                }
                _ => {
                    let expected = (!model.is_empty()).then(|| model.remove(0));
                    assert_eq!(rig.stack().take_ready(watcher), expected, "seed {seed}");
                }
            }
            rig.check();
        }
    }
}
