//! Deaths: of programs, of daemons, of interfaces.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bypass_proto::control::{QueryKind, Request, RequestKind};
use bypass_runtime::control::Control;

use super::bed::{Bed, promptly, until};
use super::child::Lines;
use super::deputy::counter;
use super::program::{Program, query};
use super::tcp::bound;
use crate::daemon::{DaemonError, DaemonOptions};

fn filters(bed: &Bed) -> usize {
    bed.list(QueryKind::Filters).as_array().map_or(0, Vec::len)
}

pub(super) fn send(bed: &Bed, to: &str, count: usize) {
    bed.outside(|| {
        let sender = UdpSocket::bind("198.18.9.2:0").expect("bind");
        for _ in 0..count {
            sender.send_to(b"datagram", to).expect("send");
        }
    });
}

/// A program with a filter for an address.
pub(super) fn ready(bed: &Bed, address: &str, uid: u32) -> Lines {
    let mut program = Lines::program(bed, address, uid);
    let answer = program.read();
    assert_eq!(answer, "ready", "{}", bed.list(QueryKind::Interfaces));
    program
}

/// A bed with a daemon that can be killed.
pub(super) fn with_daemon_apart() -> (Bed, Lines) {
    let bed = Bed::new();
    let daemon = Lines::daemon(&bed);
    bed.inside(|| until("the daemon answers", || Control::connect().is_ok()));
    (bed, daemon)
}

/// Waits until a program has so many datagrams: the sender may have to resolve the address first.
pub(super) fn wait_for(program: &mut Lines, queued: &str) {
    let begun = Instant::now();
    while program.ask("queued") != queued {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "not {queued} in time"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the program has an XDP program on the server's interface.
fn is_attached(bed: &Bed) -> bool {
    let shown = bed.show("link show dmns");
    shown.contains("xdp")
}

#[test]
fn a_killed_programs_filters_are_gone_at_once() {
    let bed = Bed::with_daemon();
    let mut keeper = ready(&bed, "198.18.9.1:7001", 0);
    promptly(|| {
        let mut victim = ready(&bed, "198.18.9.1:7002", 0);
        assert_eq!(filters(&bed), 2);
        let begun = Instant::now();
        victim.kill();
        until("the filter is gone", || filters(&bed) == 1);
        begun.elapsed()
    });
    send(&bed, "198.18.9.1:7001", 2);
    wait_for(&mut keeper, "2");
    assert!(is_attached(&bed));
    keeper.kill();
    until("nothing is attached", || !is_attached(&bed));
    assert_eq!(
        bed.list(QueryKind::Stacks).as_array().map(Vec::len),
        Some(0)
    );
}

#[test]
fn a_program_that_dies_with_the_lock_costs_only_its_own() {
    let bed = Bed::with_daemon();
    let mut keeper = ready(&bed, "198.18.9.1:7001", 0);
    promptly(|| {
        let mut victim = ready(&bed, "198.18.9.1:7002", 0);
        assert_eq!(victim.ask("lock"), "locked");
        let begun = Instant::now();
        victim.kill();
        until("the filter is gone", || filters(&bed) == 1);
        begun.elapsed()
    });
    send(&bed, "198.18.9.1:7001", 3);
    wait_for(&mut keeper, "3");
}

#[test]
fn a_stopped_lock_owner_does_not_stop_the_daemon() {
    let bed = Bed::with_daemon();
    let mut owner = ready(&bed, "198.18.9.1:7001", 0);
    assert_eq!(owner.ask("lock"), "locked");
    let mut late = Lines::program(&bed, "198.18.9.1:7002", 0);
    assert!(late.read().contains("System"), "refused");
    promptly(|| {
        let begun = Instant::now();
        assert_eq!(filters(&bed), 1);
        begun.elapsed()
    });
    owner.kill();
    until("nothing is attached", || !is_attached(&bed));
}

#[test]
fn another_program_in_the_same_process_has_nothing() {
    let bed = Bed::with_daemon();
    let _keeper = ready(&bed, "198.18.9.1:7001", 0);
    let mut victim = ready(&bed, "198.18.9.1:7002", 0);
    victim.tell("exec");
    until("the filter is gone", || filters(&bed) == 1);
    assert!(std::path::Path::new(&format!("/proc/{}", victim.id())).exists());
}

#[test]
fn an_endpoint_that_is_gone_takes_its_filter_along() {
    let bed = Bed::with_daemon();
    let mut program = ready(&bed, "198.18.9.1:7001", 0);
    assert_eq!(program.ask("close"), "closed");
    until("the filter is swept", || filters(&bed) == 0);
}

#[test]
fn the_next_daemon_takes_over() {
    let (mut bed, mut first) = with_daemon_apart();
    let mut program = ready(&bed, "[::]:7001", 65534);
    let stacks = bed.list(QueryKind::Stacks);
    first.kill();
    send(&bed, "198.18.9.1:7001", 2);
    wait_for(&mut program, "2");
    assert!(is_attached(&bed), "the program keeps the link");

    bed.start_daemon();
    let again = bed.list(QueryKind::Stacks);
    assert_eq!(again[0]["state"], "adopted");
    for field in ["id", "uid", "processes", "filters"] {
        assert_eq!(again[0][field], stacks[0][field], "{field}");
    }
    assert_eq!(again[0]["queue_pairs"][0]["mode"], "native");
    assert_eq!(filters(&bed), 1);
    send(&bed, "198.18.9.1:7001", 2);
    wait_for(&mut program, "4");
    assert_eq!(bed.list(QueryKind::Filters)[0]["packets"], 4);

    let mut second = ready(&bed, "198.18.9.1:7002", 65534);
    send(&bed, "198.18.9.1:7002", 1);
    wait_for(&mut second, "1");
    second.kill();
    program.kill();
    until("nothing is attached", || !is_attached(&bed));
}

#[test]
fn nothing_is_adopted_that_was_not_granted() {
    let (mut bed, mut first) = with_daemon_apart();
    let mut program = Lines::program(&bed, "198.18.9.1:7001", 65534);
    assert_eq!(
        program.read(),
        "ready",
        "{}",
        bed.list(QueryKind::Interfaces)
    );
    // The program writes another address into its image.
    assert_eq!(program.ask("forge 198.18.9.1:7053"), "forged");
    first.kill();
    bed.start_daemon();
    assert_eq!(bed.list(QueryKind::Stacks)[0]["state"], "adopted");
    assert_eq!(filters(&bed), 0);
}

#[test]
fn an_idle_daemon_ends_and_a_second_one_is_told() {
    let mut bed = Bed::new();
    let options = DaemonOptions {
        foreground: true,
        exit_when_idle: true,
        ..DaemonOptions::default()
    };
    bed.start(options.clone());
    let second = bed.inside(|| crate::daemon::run(&options));
    assert!(matches!(second, Err(DaemonError::Running)), "{second:?}");
    let mut program = ready(&bed, "198.18.9.1:7001", 0);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(filters(&bed), 1, "it stays while a program lives");
    let begun = Instant::now();
    program.kill();
    assert!(bed.wait().expect("daemon").is_ok());
    assert!(
        begun.elapsed() > Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn filters_follow_addresses_and_interfaces() {
    let bed = Bed::with_daemon();
    let mut program = ready(&bed, "0.0.0.0:7001", 0);
    send(&bed, "198.18.9.1:7001", 1);
    wait_for(&mut program, "1");
    bed.ip("addr add 198.18.9.3/32 dev dmns");
    let begun = Instant::now();
    while program.ask("queued") == "1" {
        // Until the entry is there the kernel gets them.
        send(&bed, "198.18.9.3:7001", 1);
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    bed.ip("addr del 198.18.9.1/24 dev dmns");
    bed.ip("link set dmns mtu 3000");
    until("larger frames than chunks hold are the kernel's", || {
        let stack = &bed.list(QueryKind::Stacks)[0];
        stack["queue_pairs"][0]["mtu"] == 1774
    });
    assert_eq!(bed.list(QueryKind::Filters)[0]["interface"], "dmns");
    bed.ip("link set dmns mtu 1400");
    bed.ip("link del dmns");
    until("the interface is gone", || {
        bed.list(QueryKind::Filters)[0]["interface"].is_null()
    });
    assert_eq!(
        bed.list(QueryKind::Stacks)[0]["queue_pairs"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
}

#[test]
fn an_interface_that_comes_back_is_mapped_anew() {
    let bed = Bed::with_daemon();
    let mut program = ready(&bed, "0.0.0.0:7001", 65534);
    let stack = || bed.list(QueryKind::Stacks)[0].clone();
    let before = stack();
    for count in 1..4 {
        bed.ip("link del dmns");
        until("the interface is gone", || {
            bed.list(QueryKind::Filters)[0]["interface"].is_null()
        });
        bed.add_veth();
        until("it is back", || {
            bed.list(QueryKind::Filters)[0]["interface"] == "dmns"
        });
        // Under the number of the one before, which the program still has mapped.
        assert_eq!(stack()["queue_pairs"][0]["index"], 0);
        assert_eq!(program.ask("map"), "1");
        send(&bed, "198.18.9.1:7001", 1);
        wait_for(&mut program, &count.to_string());
    }
    // Three are with the socket; rings that are gone keep none.
    let free = |stack: &serde_json::Value| stack["chunks_free"].as_u64().expect("number");
    assert!(free(&stack()) >= free(&before) - 3, "{}", free(&stack()));
}

#[test]
fn a_child_goes_on_with_its_parents_sockets() {
    let bed = Bed::with_daemon();
    let mut parent = ready(&bed, "198.18.9.1:7001", 0);
    let slot = parent.ask("fork");
    // Whoever the child is: a process that lives on.
    let mut child = Command::new("sleep").arg("100").spawn().expect("spawn");
    assert_eq!(parent.ask(&format!("forked {slot} {}", child.id())), "told");
    until("both are known", || {
        bed.list(QueryKind::Stacks)[0]["processes"]
            .as_array()
            .map(Vec::len)
            == Some(2)
    });
    parent.kill();
    until("the parent is gone", || {
        bed.list(QueryKind::Stacks)[0]["processes"]
            .as_array()
            .map(Vec::len)
            == Some(1)
    });
    assert_eq!(filters(&bed), 1);
    assert_eq!(bed.list(QueryKind::Filters)[0]["owner"]["program"], "sleep");
    child.kill().expect("kill");
    until("nothing is attached", || !is_attached(&bed));
    child.wait().expect("wait");
}

#[test]
fn ports_of_the_dead_are_free_for_who_asks() {
    let bed = Bed::with_daemon();
    let mut parent = ready(&bed, "198.18.9.1:7002", 0);
    let connection = "connection 198.18.9.1:7002 198.18.9.2:5001";
    assert_eq!(parent.ask(connection), "true");
    let slot = parent.ask("fork");
    let mut child = Command::new("sleep").arg("100").spawn().expect("spawn");
    assert_eq!(parent.ask(&format!("forked {slot} {}", child.id())), "told");
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        until("all are known", || {
            query(QueryKind::Stacks)[0]["processes"]
                .as_array()
                .is_some_and(|all| all.len() == 3)
        });
        let busy = || counter(&bed, "stack_locks_busy");
        let (locked, before) = (program.attachment.lock().expect("lock"), busy());
        child.kill().expect("kill");
        child.wait().expect("wait");
        until("the child's slot waits", || busy() > before);
        parent.kill();
        drop(locked);
        let request = Request::new(RequestKind::QueuePairs);
        program.control.ask(request, None).expect("answer");
        bound("198.18.9.1:7002").expect("the port is free");
    });
}

/// Places for processes are all those of dead ones that nobody has told of: who asks finds some
/// free, and so does who starts.
#[test]
fn places_of_the_dead_are_free_for_who_needs_one() {
    let bed = Bed::with_daemon();
    let dead = dead_process();
    let mut program = bed.inside(|| Program::join().expect("join"));
    fill_places(&program, dead);
    let request = Request::new(RequestKind::QueuePairs);
    program.control.ask(request, None).expect("answer");
    assert_eq!(free_places(&program), 127);
    fill_places(&program, dead);
    let _late = ready(&bed, "198.18.9.1:7002", 0);
}

/// Number of a process that has ended.
fn dead_process() -> u32 {
    let mut dead = Command::new("true").spawn().expect("spawn");
    dead.wait().expect("wait");
    dead.id()
}

/// Takes all places for processes of a program's stack that are free, for the process `pid`.
fn fill_places(program: &Program, pid: u32) {
    let mut locked = program.attachment.lock().expect("lock");
    while let Some(slot) = locked.stack().fork_process(program.process) {
        locked.stack().set_process_pid(slot, pid, 0);
    }
    assert_eq!(locked.stack().free_processes(), 0);
}

fn free_places(program: &Program) -> usize {
    let mut locked = program.attachment.lock().expect("lock");
    locked.stack().free_processes()
}

/// The same while somebody keeps the stack's lock for longer than the daemon waits for what no
/// program needs. (One of five attempts: the lock may be kept for too long by a busy machine.)
#[test]
fn places_of_the_dead_are_free_after_a_lock_that_is_kept() {
    let bed = Bed::with_daemon();
    let dead = dead_process();
    let mut program = bed.inside(|| Program::join().expect("join"));
    for _ in 0..5 {
        fill_places(&program, dead);
        let Program {
            control,
            attachment,
            ..
        } = &mut program;
        let locked = attachment.lock().expect("lock");
        std::thread::scope(|scope| {
            let request = Request::new(RequestKind::QueuePairs);
            let asked = scope.spawn(move || control.ask(request, None).map(drop));
            std::thread::sleep(Duration::from_millis(25));
            drop(locked);
            asked.join().expect("thread").expect("answer");
        });
        if free_places(&program) == 127 {
            return;
        }
        until("they are free later", || free_places(&program) == 127);
        std::thread::sleep(Duration::from_secs(1));
    }
    panic!("none was free at once");
}

/// All places name, again and again, one process, which has nothing of the stack and so many
/// mappings that nobody should look through them 127 times.
#[test]
fn places_that_name_one_process_cost_one_look() {
    let bed = Bed::with_daemon();
    let mut program = bed.inside(|| Program::join().expect("join"));
    let mut large = Command::new("python3")
        .args(["-IS", "-c", LARGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut line = String::new();
    let mut output = BufReader::new(large.stdout.take().expect("output"));
    output.read_line(&mut line).expect("mappings");
    promptly(|| {
        fill_places(&program, large.id());
        let begun = Instant::now();
        let request = Request::new(RequestKind::QueuePairs);
        program.control.ask(request, None).expect("answer");
        assert_eq!(free_places(&program), 127);
        begun.elapsed()
    });
    large.kill().expect("kill");
    large.wait().expect("wait");
}

/// Neighbours that differ in what they allow stay mappings of their own.
const LARGE: &str = "import mmap, sys
all = [mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, 1 + i % 2 * 2) for i in range(20000)]
print(flush=True)
sys.stdin.read()";

/// Whoever asks while the dead of a stack, its own or another's, wait for a lock that is kept.
#[test]
fn who_asks_again_does_not_wait_again_for_the_dead() {
    for uid in [0, 65534] {
        let bed = Bed::with_daemon();
        let mut owner = ready(&bed, "198.18.9.1:7001", uid);
        let mut victim = ready(&bed, "198.18.9.1:7002", uid);
        bed.inside(|| {
            let mut program = Program::join().expect("join");
            assert_eq!(owner.ask("lock"), "locked");
            let busy = || counter(&bed, "stack_locks_busy");
            let before = busy();
            victim.kill();
            until("its slot waits", || busy() > before);
            promptly(|| {
                let begun = Instant::now();
                for _ in 0..10 {
                    let request = Request::new(RequestKind::QueuePairs);
                    program.control.ask(request, None).expect("answer");
                }
                begun.elapsed()
            });
        });
    }
}

#[test]
fn a_child_that_was_never_born_holds_nothing_for_long() {
    let bed = Bed::with_daemon();
    let mut parent = ready(&bed, "198.18.9.1:7001", 0);
    parent.ask("fork");
    parent.kill();
    std::thread::sleep(Duration::from_secs(4));
    until("nothing is attached", || !is_attached(&bed));
}

#[test]
fn rubbish_in_an_image_hurts_only_its_own_stack() {
    let bed = Bed::with_daemon();
    let mut vandal = ready(&bed, "198.18.9.1:7001", 65534);
    for _ in 0..3 {
        assert_eq!(vandal.ask("scribble"), "scribbled");
        for kind in [QueryKind::Stacks, QueryKind::Filters, QueryKind::Interfaces] {
            assert!(bed.list(kind).is_array());
        }
        let mut late = Lines::program(&bed, "198.18.9.1:7002", 65534);
        let _ = late.child_output();
        std::thread::sleep(Duration::from_millis(1100));
    }
    vandal.kill();
    until("nothing is attached", || !is_attached(&bed));
    let _next = ready(&bed, "198.18.9.1:7001", 65534);
}

#[test]
fn rules_leave_routing_to_the_kernel() {
    use bypass_stack::IpAddress;
    use bypass_stack::cplane::{CplaneReason, Lookup, lookup};
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let program = Program::join().expect("join");
        let peer = IpAddress::from_v4([198, 18, 9, 2]);
        let ask = || {
            program
                .cplane
                .read(|table| lookup(table, peer, IpAddress::UNSPECIFIED, 0, 0))
        };
        let by_rules = Some(Lookup::Kernel(CplaneReason::PolicyRules));
        assert_ne!(ask(), by_rules);
        bed.ip("rule add fwmark 7 table 100");
        until("the rule is seen", || ask() == by_rules);
        bed.ip("rule del fwmark 7 table 100");
        until("it is gone", || ask() != by_rules);
        bed.ip("route add 198.18.77.0/24 via 198.18.9.2");
        let far = IpAddress::from_v4([198, 18, 77, 1]);
        let far = || {
            program
                .cplane
                .read(|table| lookup(table, far, IpAddress::UNSPECIFIED, 0, 0))
        };
        let no_route = Some(Lookup::Kernel(CplaneReason::NoRoute));
        until("the route is seen", || far() != no_route);
        bed.ip("link set dmns down");
        until("its end is seen", || far() == no_route);
    });
}
