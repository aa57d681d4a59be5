//! A set of VIs over the stand-in for libciul, which spreads flows over it by a hash.

use std::collections::BTreeMap;
use std::time::Duration;

use super::port::{EfViPort, Settings};
use super::tests::{
    Fake, OURS, RELEASES, around, datagrams, each_may_fail, frame, is_readable, mended, send,
};
use crate::relay::{CardFilter, Port};

const FOUR: Settings = Settings {
    timestamps: false,
    queues: 4,
};
const FLOWS: u16 = 64;
/// Datagrams of each flow.
const EACH: u32 = 30;

fn open(fake: &Fake) -> Result<EfViPort, String> {
    EfViPort::with(fake.ciul(), "eth9", FOUR)
}

/// A datagram of a flow.
fn of_flow(flow: u16, number: u32) -> Vec<u8> {
    let mut frame = frame(OURS.1, number);
    frame[34..36].copy_from_slice(&(4000 + flow).to_be_bytes());
    frame
}

/// Sends so many datagrams of each flow around the loop; what has come of each, in its order.
fn around_in_flows(port: &mut EfViPort, count: u32) -> BTreeMap<u16, Vec<u32>> {
    let mut got: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    let mut take = |port: &mut EfViPort| {
        port.receive(&mut |bytes, _| {
            let flow = u16::from_be_bytes([bytes[34], bytes[35]]) - 4000;
            let number = u32::from_be_bytes(bytes[42..46].try_into().unwrap());
            got.entry(flow).or_default().push(number);
        })
    };
    for number in 0..count {
        for flow in 0..FLOWS {
            let mut tries = 0..1000;
            while !send(port, &of_flow(flow, number)) {
                assert!(tries.next().is_some(), "flow {flow} has no room");
                port.flush();
                take(port);
            }
        }
        port.flush();
        take(port);
    }
    let mut quiet = 0;
    while quiet < 50 {
        quiet = if take(port) > 0 { 0 } else { quiet + 1 };
    }
    got
}

/// That each flow has come whole.
fn check_flows(port: &mut EfViPort, what: &str) {
    let got = around_in_flows(port, EACH);
    assert_eq!(got.len(), usize::from(FLOWS), "{what}");
    let whole: Vec<u32> = (0..EACH).collect();
    for (flow, numbers) in got {
        assert_eq!(numbers, whole, "{what}: flow {flow}");
    }
}

#[test]
fn each_vi_has_its_flows_and_each_flow_its_order() {
    for release in RELEASES {
        for way in ["", "merge", "ref", "prefix0", "late"] {
            let fake = Fake::new(&[("LAYOUT", release), ("FAULT", way)]);
            let what = format!("{release} {way}");
            let mut port = open(&fake).unwrap();
            assert!(port.facts().driver.ends_with(", 4 queues"), "{what}");
            port.add_filter(datagrams()).unwrap();
            check_flows(&mut port, &what);
            // Its own frames, and completions of others: one flow would have left three without.
            let read = port.read();
            let each = read.iter().all(|bytes| way == "ref" || *bytes > 300);
            assert!(read.len() == 4 && each, "{what}: {read:?}");
            assert_eq!(port.counts().received, u64::from(EACH) * 64, "{what}");
            drop(port);
            assert_eq!(fake.live(), 0, "{what}");
        }
    }
}

#[test]
fn filters_are_the_sets() {
    let fake = Fake::new(&[("FILTERS", "2")]);
    let mut port = open(&fake).unwrap();
    assert_eq!(around(&mut port, 10), []);
    let second = CardFilter {
        protocol: 6,
        ..datagrams()
    };
    port.add_filter(datagrams()).unwrap();
    port.add_filter(second).unwrap();
    let listed = port.in_card();
    // The set's first queue stands for all.
    let told: Vec<_> = listed.iter().map(|it| (it.queue, it.cookie)).collect();
    assert_eq!(told, [(16, [2, 1]), (16, [1, 1])]);
    let third = CardFilter {
        local: (OURS.0, 7),
        ..second
    };
    let why = port.add_filter(third).unwrap_err();
    assert!(why.contains("no room for another filter"), "{why}");
    port.remove_filter(&second);
    port.add_filter(third).unwrap();
    port.remove_filter(&datagrams());
    assert_eq!(around(&mut port, 10), []);
    drop(port);
    assert_eq!(fake.live(), 0);
}

#[test]
fn the_descriptor_is_readable_for_each_vi() {
    let name = format!("pair:{}-set", std::process::id());
    let fakes = [(); 2].map(|()| Fake::new(&[("WIRE", &name)]));
    let (mut one, mut other) = (open(&fakes[0]).unwrap(), open(&fakes[1]).unwrap());
    one.add_filter(datagrams()).unwrap();
    for flow in 0..FLOWS {
        assert!(one.prime());
        assert!(!is_readable(&one), "nothing has come");
        assert!(send(&mut other, &of_flow(flow, 1)));
        other.flush();
        assert!(is_readable(&one), "{flow}");
        assert_eq!(one.receive(&mut |_, _| ()), 1, "{flow}");
    }
    // Several at once: what one VI's look has brought for another is not slept on.
    // (As many as the datagram sockets of this wire take.)
    for first in 0..FLOWS {
        let flows = (0..8).map(|more| (first + 9 * more) % FLOWS);
        flows.for_each(|flow| assert!(send(&mut other, &of_flow(flow, 1))));
        other.flush();
        let mut got = 0;
        while got < 8 {
            assert!(one.prime());
            assert!(is_readable(&one), "{got} of {first}");
            got += one.receive(&mut |_, _| ());
        }
        assert_eq!(got, 8);
    }
    drop((one, other));
    assert_eq!(fakes.map(|fake| fake.live()), [0, 0]);
}

#[test]
fn where_no_set_is_to_be_had_one_queue_serves() {
    for (fault, why) in [
        ("set:EBUSY", "queues are used up"),
        ("set:ENOSPC", "queues are used up"),
        ("set:EOPNOTSUPP", "no sets of queues"),
        ("set:EINVAL", "ef_vi_set_alloc_from_pd"),
        ("member:EBUSY", "queues are used up"),
        ("member:ENOSPC@3", "queues are used up"),
        ("member:EOPNOTSUPP@2", "no sets of queues"),
        ("memreg:ENOSPC@4", "buffer table is used up"),
        ("open:ENOMEM@3", "ef_driver_open"),
        ("small", "queues are used up"),
    ] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let mut port = open(&fake).unwrap();
        let driver = port.facts().driver;
        let is_told = driver.contains(", one queue instead of 4 (") && driver.contains(why);
        assert!(is_told, "{fault}: {driver}");
        // Handle, domain, VI, registration.
        assert_eq!(fake.live(), 4, "{fault}");
        port.add_filter(datagrams()).unwrap();
        check_flows(&mut port, fault);
        drop(port);
        assert_eq!(fake.live(), 0, "{fault}");
    }
}

#[test]
fn a_set_and_stamps_are_refused_each_for_itself() {
    for (fault, wanted) in [
        ("", ", 4 queues, stamping frames"),
        (
            "stamps:EOPNOTSUPP",
            ", 4 queues, which cannot stamp frames (",
        ),
        ("member:EOPNOTSUPP", "), stamping frames"),
        ("member:EBUSY", "), stamping frames"),
        ("set:EPERM,stamps:EPERM", "), which cannot stamp frames ("),
    ] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let settings = Settings {
            timestamps: true,
            ..FOUR
        };
        let port = EfViPort::with(fake.ciul(), "eth9", settings).unwrap();
        let driver = port.facts().driver;
        assert!(driver.contains(wanted), "{fault}: {driver}");
        drop(port);
        assert_eq!(fake.live(), 0, "{fault}");
    }
}

fn queues(port: &EfViPort) -> u64 {
    let mut numbers = port.statistics().into_iter();
    numbers.find(|(name, _)| name == "queues").unwrap().1
}

/// One VI dies, and all are made again, with the filters of the set.
#[test]
fn a_dead_vi_takes_its_set_with_it() {
    for fault in [
        "reset@20",
        "oflow@20",
        "txerr@20",
        "reset@20,set:EBUSY@2",
        "oflow@20,member:ENOSPC@7,memreg:EBUSY@6",
    ] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let mut port = open(&fake).unwrap();
        port.add_filter(datagrams()).unwrap();
        let got: usize = around_in_flows(&mut port, 2).values().map(Vec::len).sum();
        assert!(got < 2 * usize::from(FLOWS), "{fault}");
        mended(&mut port);
        check_flows(&mut port, fault);
        let counts = port.counts();
        let deaths = counts.resets + counts.overflows + counts.tx_errors;
        assert_eq!((deaths, counts.filters_lost), (1, 0), "{fault}");
        assert_eq!(queues(&port), 4, "{fault}");
        drop(port);
        assert_eq!(fake.live(), 0, "{fault}");
    }
}

/// When no set is to be had for long, one queue serves behind a reset as well.
#[test]
fn a_dead_set_makes_room_for_one() {
    let fake = Fake::new(&[("FAULT", "reset@1,set:EBUSY@2")]);
    let mut port = open(&fake).unwrap();
    port.add_filter(datagrams()).unwrap();
    around(&mut port, 1);
    fake.set("FAULT", "set:EBUSY");
    let begun = std::time::Instant::now();
    mended(&mut port);
    assert!(begun.elapsed() > Duration::from_millis(300), "not at once");
    assert_eq!((queues(&port), port.counts().filters_lost), (1, 0));
    check_flows(&mut port, "one");
    drop(port);
    assert_eq!(fake.live(), 0);
}

#[test]
fn any_call_of_a_set_may_fail_at_any_time() {
    let calls = [
        ("open", 1),
        ("pd", 1),
        ("set", 1),
        ("member", 1),
        ("member", 2),
        ("memreg", 2),
        ("filter", 1),
        ("unfilter", 1),
        ("prime", 1),
        ("complete", 1),
        ("free", 1),
    ];
    let two = Settings { queues: 2, ..FOUR };
    let open = |fake: &Fake| EfViPort::with(fake.ciul(), "eth9", two);
    each_may_fail("", &calls, &[], open);
}
