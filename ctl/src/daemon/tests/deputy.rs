//! The daemon in the place of programs that do not call, and beside those that mean it no good.

use std::time::{Duration, Instant};

use bypass_proto::control::QueryKind;

use super::bed::{Bed, PROMPTLY, promptly};
use super::child::Lines;
use super::life::{ready, send, with_daemon_apart};

pub(super) fn counter(bed: &Bed, name: &str) -> u64 {
    let daemon = bed.list(QueryKind::Daemon);
    let counters = daemon["counters"].as_array().expect("counters");
    let found = counters.iter().find(|one| one["name"] == name);
    found.expect("counter")["value"].as_u64().expect("number")
}

#[test]
fn frames_are_taken_in_for_a_program_that_does_not_call() {
    let bed = Bed::with_daemon();
    let mut program = ready(&bed, "198.18.9.1:7001", 65534);
    // In more than one go: the queue must be watched again after the first.
    for count in 1..4 {
        send(&bed, "198.18.9.1:7001", 10);
        let wanted = (count * 10).to_string();
        let begun = Instant::now();
        while program.ask("held") != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "{count}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(counter(&bed, "stacks_pumped") >= 1);
    assert_eq!(counter(&bed, "frames_pumped"), 30);
}

#[test]
fn a_daemon_with_nothing_to_do_sleeps() {
    let (bed, daemon) = with_daemon_apart();
    let mut program = ready(&bed, "198.18.9.1:7001", 0);
    send(&bed, "198.18.9.1:7001", 10);
    let begun = Instant::now();
    while program.ask("held") != "10" {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(1));
    }
    // The last look at the empty queue.
    std::thread::sleep(Duration::from_millis(100));
    let before = daemon.wake_ups();
    std::thread::sleep(Duration::from_secs(2));
    // One a second sweeps.
    let woken = daemon.wake_ups() - before;
    assert!(woken <= 10, "{woken} times in two seconds");
}

#[test]
fn timers_run_for_a_program_that_does_not_call() {
    let bed = Bed::with_daemon();
    let mut program = ready(&bed, "198.18.9.1:7001", 65534);
    // Nobody answers, so no frame tells the daemon of it: two SYNs more, one second after another.
    let flow = "connect 198.18.9.1:7002 198.18.9.77:80";
    assert_eq!(program.ask(flow), "connecting");
    let begun = Instant::now();
    while program.ask("retransmits") != "2" {
        assert!(begun.elapsed() < Duration::from_secs(20), "not sent again");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(counter(&bed, "stacks_pumped") >= 2);
}

#[test]
fn no_lock_word_stops_the_daemon() {
    const WAITERS: u32 = 1 << 31;
    let (bed, daemon) = with_daemon_apart();
    let mut vandal = ready(&bed, "198.18.9.1:7001", 65534);
    let mut words = vec![WAITERS, u32::MAX, 0x3fff_ffff, 1, 1 | WAITERS, vandal.id()];
    words.extend(daemon.threads().iter().flat_map(|id| [*id, *id | WAITERS]));
    for word in words {
        assert_eq!(vandal.ask(&format!("word {word}")), "written");
        send(&bed, "198.18.9.1:7001", 3);
        let begun = Instant::now();
        for kind in [QueryKind::Stacks, QueryKind::Filters, QueryKind::Daemon] {
            assert!(!bed.list(kind).is_null());
        }
        let mut late = Lines::program(&bed, "198.18.9.1:7002", 65534);
        assert!(!late.child_output().is_empty());
        let mut other = Lines::program(&bed, "198.18.9.1:7003", 65533);
        assert!(other.read().contains("QueueBusy"), "others are served");
        assert!(
            begun.elapsed() < PROMPTLY * 50,
            "{word:x}: {:?}",
            begun.elapsed()
        );
        promptly(|| {
            let begun = Instant::now();
            assert!(bed.list(QueryKind::Filters).is_array());
            begun.elapsed()
        });
    }
}
