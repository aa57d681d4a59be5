//! The backend over the stand-in for libciul: each test loads a copy of its own, with its own
//! settings.

#![expect(unsafe_code, reason = "UNSAFETY: calls the stand-in, a C library")]

use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libloading::os::unix::Library;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::calibrate;
use super::genuine;
use super::library::Ciul;
use super::port::{EfViPort, Settings};
use crate::relay::{CardFilter, Port};

/// A copy of the stand-in, removed with the test.
pub(super) struct Fake {
    pub(super) path: PathBuf,
    library: Library,
}

impl Fake {
    pub(super) fn new(settings: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fake-ciul-{}-{number}.so", std::process::id());
        let path = std::env::temp_dir().join(name);
        let own = std::env::current_exe().unwrap();
        std::fs::copy(own.with_file_name("libfake_ciul.so"), &path).unwrap();
        // SAFETY: our own library, whose constructors do nothing.
        let library = unsafe { Library::new(&path) }.unwrap();
        let fake = Self { path, library };
        for (name, value) in settings {
            fake.set(name, value);
        }
        fake
    }

    pub(super) fn set(&self, name: &str, value: &str) {
        type Set = unsafe extern "C" fn(*const c_char, *const c_char);
        // SAFETY: the stand-in's function.
        let set = unsafe { self.library.get::<Set>(b"fake_ciul_set") }.unwrap();
        let [name, value] = [name, value].map(|text| CString::new(text).unwrap());
        // SAFETY: two strings.
        unsafe { set(name.as_ptr(), value.as_ptr()) };
    }

    /// Objects that live.
    pub(super) fn live(&self) -> i64 {
        type Live = unsafe extern "C" fn() -> i64;
        // SAFETY: the stand-in's function.
        let live = unsafe { self.library.get::<Live>(b"fake_ciul_live") }.unwrap();
        // SAFETY: it has no argument.
        unsafe { live() }
    }

    pub(super) fn ciul(&self) -> Ciul {
        Ciul::load(&self.path).unwrap()
    }

    fn open(&self) -> Result<EfViPort, String> {
        EfViPort::with(self.ciul(), "eth9", Settings::default())
    }

    /// The same with times of frames.
    fn open_stamped(&self) -> EfViPort {
        EfViPort::with(self.ciul(), "eth9", STAMPED).unwrap()
    }

    /// A VLAN of the card.
    fn open_vlan(&self, id: u16) -> Result<EfViPort, String> {
        EfViPort::of_card(self.ciul(), "eth9", Some((id, 1400)), Settings::default())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

pub(super) const STAMPED: Settings = Settings {
    timestamps: true,
    queues: 1,
};
pub(super) const RELEASES: [&str; 5] = ["8.1", "9.0.0", "9.0.2", "9.1", "9.2"];
pub(super) const OURS: ([u8; 16], u16) = (
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 0, 1],
    7007,
);

pub(super) fn datagrams() -> CardFilter {
    CardFilter {
        protocol: 17,
        local: OURS,
        remote: None,
    }
}

/// A datagram to 198.18.0.1 from 198.18.0.2:4000 with a number in it.
pub(super) fn frame(port: u16, number: u32) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    bytes.extend([0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    bytes.extend([198, 18, 0, 2, 198, 18, 0, 1]);
    bytes.extend(4000_u16.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 26, 0, 0]);
    bytes.extend(number.to_be_bytes());
    bytes.resize(60, 0);
    bytes
}

pub(super) fn send(port: &mut EfViPort, frame: &[u8]) -> bool {
    // SAFETY: the frame's bytes.
    unsafe { port.send(frame.as_ptr(), frame.len() as u32) }
}

/// Sends numbered datagrams around the loop; those that come back, in their order.
pub(super) fn around(port: &mut EfViPort, count: u32) -> Vec<u32> {
    let mut got = Vec::new();
    let mut take = |port: &mut EfViPort| {
        genuine::turn();
        port.receive(&mut |bytes, _| {
            assert_eq!(bytes.len(), 60);
            got.push(u32::from_be_bytes(bytes[42..46].try_into().unwrap()));
        })
    };
    for number in 0..count {
        while !send(port, &frame(OURS.1, number)) {
            port.flush();
            take(port);
        }
        if number % 16 == 15 {
            port.flush();
            take(port);
        }
    }
    port.flush();
    let mut quiet = 0;
    while quiet < 3 {
        quiet = if take(port) > 0 { 0 } else { quiet + 1 };
    }
    got
}

#[test]
fn each_releases_layout_is_found() {
    for release in RELEASES {
        let fake = Fake::new(&[("LAYOUT", release)]);
        assert_eq!(calibrate::layout(&fake.ciul()).unwrap().name, release);
        let known = super::probe(&fake.path).unwrap();
        assert!(
            known.ends_with(&format!(" ef_vi, layout of {release}")),
            "{known}"
        );
        assert_eq!(fake.live(), 0);
    }
}

#[test]
fn what_was_never_released_is_refused_with_both_answers() {
    let refused = |name| {
        let fake = Fake::new(&[("LAYOUT", name)]);
        calibrate::layout(&fake.ciul()).unwrap_err()
    };
    assert_eq!(
        refused("future"),
        "libciul layout unknown: 10.1.0.7 ef_vi, sizeof 1344: its size is that of no release, \
         its operations are those of no release"
    );
    assert_eq!(
        refused("torn"),
        "libciul layout unknown: 9.1.0.1 ef_vi, sizeof 1312: its size is that of 9.1, its \
         operations are those of 9.2"
    );
}

#[test]
fn datagrams_go_around_in_every_release_and_way_of_receiving() {
    for release in RELEASES {
        for way in ["", "merge", "ref", "prefix0", "timed", "timed,merge"] {
            let fake = Fake::new(&[("LAYOUT", release), ("FAULT", way)]);
            let mut port = fake.open().unwrap();
            assert_eq!(port.facts().mtu, 1500);
            port.add_filter(datagrams()).unwrap();
            // More than the rings have entries, so that all of them go around.
            let got = around(&mut port, 3000);
            assert_eq!(got, (0..3000).collect::<Vec<_>>(), "{release} {way}");
            assert_eq!((port.counts().received, port.counts().sent), (3000, 3000));
            assert_eq!(room(&mut port), 511, "{release} {way}");
            drop(port);
            assert_eq!(fake.live(), 0, "{release} {way}");
        }
    }
}

#[test]
fn only_what_a_filter_matches_comes() {
    let fake = Fake::new(&[]);
    let mut port = fake.open().unwrap();
    assert_eq!(around(&mut port, 10), []);
    port.add_filter(datagrams()).unwrap();
    port.add_filter(datagrams()).unwrap();
    assert_eq!(port.in_card().len(), 1);
    assert_eq!(around(&mut port, 10).len(), 10);
    port.remove_filter(&datagrams());
    assert_eq!(around(&mut port, 10), []);
    let mut theirs = OURS;
    (theirs.0[15], theirs.1) = (2, 4000);
    let full = CardFilter {
        remote: Some(theirs),
        ..datagrams()
    };
    port.add_filter(full).unwrap();
    assert_eq!(around(&mut port, 10).len(), 10);
    port.remove_filter(&full);
    let other = CardFilter {
        remote: Some((theirs.0, 4001)),
        ..full
    };
    port.add_filter(other).unwrap();
    assert_eq!(around(&mut port, 10), []);
    let v6 = CardFilter {
        protocol: 6,
        local: ([0xfd; 16], 80),
        remote: Some(([0xfe; 16], 4000)),
    };
    port.add_filter(v6).unwrap();
    let mixed = CardFilter {
        remote: Some(theirs),
        ..v6
    };
    assert!(port.add_filter(mixed).is_err());
}

/// Whether the descriptor is readable now.
pub(super) fn is_readable(port: &EfViPort) -> bool {
    let fd = port.wait_fd().unwrap();
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() > 0
}

#[test]
fn the_descriptor_is_readable_once_it_is_primed_and_frames_come() {
    let name = format!("pair:{}-wait", std::process::id());
    let fakes = [(); 2].map(|()| Fake::new(&[("WIRE", &name)]));
    let [mut one, mut other] = [&fakes[0], &fakes[1]].map(|fake| fake.open().unwrap());
    one.add_filter(datagrams()).unwrap();
    let cross = |other: &mut EfViPort| {
        assert!(send(other, &frame(OURS.1, 1)));
        other.flush();
    };
    cross(&mut other);
    assert!(!is_readable(&one), "not primed");
    assert!(one.prime());
    assert!(is_readable(&one), "primed after the frame");
    assert_eq!(one.receive(&mut |_, _| ()), 1);
    assert!(!is_readable(&one), "nothing is left");
    cross(&mut other);
    assert!(!is_readable(&one), "not primed again");
    assert_eq!(one.receive(&mut |_, _| ()), 1);
    assert!(one.prime());
    assert!(!is_readable(&one));
    cross(&mut other);
    assert!(is_readable(&one), "primed before the frame");
    drop((one, other));
    assert_eq!(fakes.map(|fake| fake.live()), [0, 0]);
}

#[test]
fn what_fails_is_said_and_nothing_leaks() {
    let table = [
        ("init:ENOMEM", "ef_vi_init: Cannot allocate memory"),
        ("init:EINVAL@2", "ef_vi_init: Invalid argument"),
        ("add:ENOSPC", "ef_vi_add_queue: No space left"),
        ("open:ENOENT", "there is no /dev/sfc_char"),
        ("open:EACCES", "no permission"),
        ("pd:ENODEV", "does not serve this interface"),
        ("pd:ENOMEM", "ef_pd_alloc_by_name"),
        ("alloc:EBUSY", "queues are used up"),
        ("alloc:ELIBACC", "wants a driver with interface 0000"),
        ("alloc:EINVAL", "ef_vi_alloc_from_pd"),
        ("memreg:ENOSPC", "buffer table is used up"),
        ("memreg:EINVAL", "ef_memreg_alloc"),
    ];
    for (fault, wanted) in table {
        let fake = Fake::new(&[("FAULT", fault)]);
        let why = fake.open().unwrap_err();
        assert!(why.contains(wanted), "{fault}: {why}");
        assert_eq!(fake.live(), 0, "{fault}");
        fake.set("FAULT", "");
        assert!(fake.open().is_ok(), "{fault}");
    }
    let fake = Fake::new(&[("FILTERS", "1")]);
    let mut port = fake.open().unwrap();
    port.add_filter(datagrams()).unwrap();
    let second = CardFilter {
        protocol: 6,
        ..datagrams()
    };
    let why = port.add_filter(second).unwrap_err();
    assert!(why.contains("no room for another filter"), "{why}");
    port.remove_filter(&datagrams());
    port.add_filter(second).unwrap();
    for (fault, wanted) in [
        ("filter:EEXIST", "another queue of the card"),
        ("filter:EPROTONOSUPPORT", "no such filters"),
        ("filter:EPERM", "no permission"),
        ("spec:EPROTONOSUPPORT", "no such filters"),
        ("spec:EINVAL", "ef_filter_spec_set: Invalid argument"),
    ] {
        fake.set("FAULT", fault);
        let why = port.add_filter(datagrams()).unwrap_err();
        assert!(why.contains(wanted), "{fault}: {why}");
    }
    fake.set("FAULT", "");
    port.remove_filter(&second);
    port.add_filter(datagrams()).unwrap();
}

/// Waits until a VI is made again.
pub(super) fn mended(port: &mut EfViPort) {
    for _ in 0..1000 {
        port.receive(&mut |_, _| ());
        if port.wait_fd().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the VI is not made again");
}

#[test]
fn a_dead_vi_is_made_again_with_its_filters() {
    for fault in ["reset@20", "oflow@20", "txerr@20", "reset@20,alloc:EBUSY@2"] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let mut port = fake.open().unwrap();
        port.add_filter(datagrams()).unwrap();
        let got = around(&mut port, 32);
        assert!(got.len() < 32, "{fault}");
        mended(&mut port);
        assert_eq!(around(&mut port, 2000).len(), 2000, "{fault}");
        let counts = port.counts();
        let deaths = counts.resets + counts.overflows + counts.tx_errors;
        assert_eq!((deaths, counts.filters_lost), (1, 0), "{fault}");
        drop(port);
        assert_eq!(fake.live(), 0, "{fault}");
    }
}

#[test]
fn a_dead_vi_keeps_its_filters_while_no_other_opens() {
    let again: Vec<String> = (2..6).map(|nth| format!("alloc:EBUSY@{nth}")).collect();
    let fake = Fake::new(&[("FAULT", &format!("reset@20,{}", again.join(",")))]);
    let mut port = fake.open().unwrap();
    port.add_filter(datagrams()).unwrap();
    let live = fake.live();
    around(&mut port, 32);
    while port.wait_fd().is_none() {
        // Handle, domain, VI, registration and filter of the dead one.
        assert_eq!(fake.live(), live);
        std::thread::sleep(Duration::from_millis(1));
        port.receive(&mut |_, _| ());
    }
    assert_eq!(around(&mut port, 100).len(), 100);
    assert_eq!(port.counts().filters_lost, 0);
}

#[test]
fn a_filter_that_is_removed_leaves_a_dead_vi_too() {
    let again: Vec<String> = (2..40).map(|nth| format!("alloc:EBUSY@{nth}")).collect();
    let fake = Fake::new(&[("FAULT", &format!("reset@20,{}", again.join(",")))]);
    let mut port = fake.open().unwrap();
    port.add_filter(datagrams()).unwrap();
    let live = fake.live();
    around(&mut port, 32);
    assert!(port.wait_fd().is_none());
    port.remove_filter(&datagrams());
    assert_eq!(fake.live(), live - 1);
}

#[test]
fn a_dead_vi_makes_room_where_there_is_room_for_one() {
    let fake = Fake::new(&[("FAULT", "reset@20,small")]);
    let mut port = fake.open().unwrap();
    port.add_filter(datagrams()).unwrap();
    around(&mut port, 32);
    mended(&mut port);
    assert_eq!(around(&mut port, 100).len(), 100);
    assert_eq!(port.counts().filters_lost, 0);
}

#[test]
fn the_cards_own_words_for_a_filter_are_told_and_follow_the_vi() {
    for release in RELEASES {
        let fake = Fake::new(&[("LAYOUT", release)]);
        let mut port = fake.open().unwrap();
        assert_eq!(port.in_card(), []);
        let second = CardFilter {
            protocol: 6,
            ..datagrams()
        };
        port.add_filter(datagrams()).unwrap();
        port.add_filter(second).unwrap();
        let told = |port: &EfViPort| {
            let list = port.in_card();
            assert_eq!(list.len(), 2, "{release}");
            assert_eq!([list[0].filter, list[1].filter], [second, datagrams()]);
            assert_eq!(list[0].queue, list[1].queue);
            (list[0].queue, [list[0].cookie, list[1].cookie])
        };
        // The stand-in numbers VIs from 16 on, and a VI's filters from 1 on; all are of kind 1.
        assert_eq!(told(&port), (16, [[2, 1], [1, 1]]), "{release}");
        fake.set("FAULT", "reset@1");
        around(&mut port, 1);
        mended(&mut port);
        assert_eq!(told(&port), (17, [[1, 1], [2, 1]]), "{release}");
        port.remove_filter(&datagrams());
        assert_eq!(port.in_card().len(), 1);
    }
}

#[test]
fn a_vlan_has_its_frames_only_and_they_have_no_tag_here() {
    for release in RELEASES {
        for way in ["", "merge", "ref", "prefix0"] {
            let fake = Fake::new(&[("LAYOUT", release), ("FAULT", way)]);
            let mut port = fake.open_vlan(7).unwrap();
            assert_eq!(port.facts().mtu, 1400);
            port.add_filter(datagrams()).unwrap();
            let got = around(&mut port, 1000);
            assert_eq!(got, (0..1000).collect::<Vec<_>>(), "{release} {way}");
            drop(port);
            assert_eq!(fake.live(), 0, "{release} {way}");
        }
    }
    let ends = |ids: [Option<u16>; 2]| {
        let name = format!("pair:{}-vlan-{ids:?}", std::process::id());
        let fakes = [(); 2].map(|()| Fake::new(&[("WIRE", &name)]));
        let [mut one, mut other] = [0, 1].map(|at: usize| match ids[at] {
            Some(id) => fakes[at].open_vlan(id).unwrap(),
            None => fakes[at].open().unwrap(),
        });
        one.add_filter(datagrams()).unwrap();
        assert!(send(&mut other, &frame(OURS.1, 1)));
        other.flush();
        one.receive(&mut |bytes, _| assert_eq!(bytes, frame(OURS.1, 1)))
    };
    assert_eq!([ends([Some(7), Some(7)]), ends([None, None])], [1, 1]);
    for apart in [[Some(7), Some(8)], [Some(7), None], [None, Some(7)]] {
        assert_eq!(ends(apart), 0, "{apart:?}");
    }
    let fake = Fake::new(&[("FAULT", "vlan:EPROTONOSUPPORT")]);
    let mut port = fake.open_vlan(7).unwrap();
    let why = port.add_filter(datagrams()).unwrap_err();
    assert!(why.contains("no such filters"), "{why}");
}

/// The stand-in's clock is a million seconds ahead.
const AHEAD: u64 = 1_000_000_000_000_000;

/// That clock's time, nanoseconds since 1970.
fn card_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    AHEAD + now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// When the frames have come that go around.
fn stamps(port: &mut EfViPort, count: u32) -> Vec<u64> {
    let mut stamps = Vec::new();
    for number in 0..count {
        assert!(send(port, &frame(OURS.1, number)));
        port.flush();
        port.receive(&mut |_, told| stamps.push(told.stamp));
    }
    stamps
}

#[test]
fn frames_have_the_time_of_the_cards_clock() {
    for release in RELEASES {
        for way in ["", "merge", "ref", "prefix0"] {
            let fake = Fake::new(&[("LAYOUT", release), ("FAULT", way)]);
            let mut port = fake.open_stamped();
            assert!(port.facts().driver.ends_with(", stamping frames"));
            port.add_filter(datagrams()).unwrap();
            let before = card_now();
            let mut stamps = stamps(&mut port, 1000);
            assert_eq!(stamps.len(), 1000, "{release} {way}");
            if way == "prefix0" || way == "ref" && release == "8.1" {
                stamps.dedup();
                assert_eq!(stamps, [0], "{release} {way}");
                continue;
            }
            assert!(stamps.is_sorted(), "{release} {way}");
            let whole = before..card_now();
            let all = stamps.iter().all(|stamp| whole.contains(stamp));
            assert!(all, "{release} {way}: {before} {stamps:?}");
        }
    }
}

#[test]
fn a_card_without_stamps_serves_all_the_same() {
    for fault in ["stamps:EOPNOTSUPP", "stamps:EPERM", "stamps:EINVAL"] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let mut port = fake.open_stamped();
        let driver = port.facts().driver;
        assert!(driver.contains(", which cannot stamp frames ("), "{driver}");
        port.add_filter(datagrams()).unwrap();
        assert_eq!(stamps(&mut port, 100), [0; 100]);
        drop(port);
        assert_eq!(fake.live(), 0, "{fault}");
    }
    // What the card cannot say of some frames, it says of others.
    let fake = Fake::new(&[("FAULT", "stamp:EL2NSYNC@3")]);
    let mut port = fake.open_stamped();
    port.add_filter(datagrams()).unwrap();
    let stamps = stamps(&mut port, 5);
    let known: Vec<bool> = stamps.iter().map(|stamp| *stamp != 0).collect();
    assert_eq!(known, [true, true, false, true, true]);
}

/// Sends numbered datagrams around the loop, each third with a number of its departure; what is
/// told of them, oldest first.
fn departures(port: &mut EfViPort, count: u32) -> Vec<(u32, u64)> {
    let mut told = Vec::new();
    for number in 1..=count {
        let bytes = frame(OURS.1, number);
        let asked = if number % 3 == 0 { number } else { 0 };
        // SAFETY: the frame's bytes.
        while !unsafe { port.send_stamped(bytes.as_ptr(), bytes.len() as u32, asked) } {
            port.receive(&mut |_, _| ());
        }
        port.flush();
        port.receive(&mut |_, _| ());
        told.extend(port.departed());
    }
    for _ in 0..24 * count {
        port.receive(&mut |_, _| ());
        told.extend(port.departed());
    }
    let pairs = told.iter().map(|frame| (frame.number, frame.at_ns));
    pairs.collect()
}

#[test]
fn frames_have_the_time_of_their_departure() {
    for release in RELEASES {
        for way in ["", "merge", "ref", "late"] {
            let fake = Fake::new(&[("LAYOUT", release), ("FAULT", way)]);
            let mut port = fake.open_stamped();
            assert!(port.facts().stamps_sent);
            port.add_filter(datagrams()).unwrap();
            let before = card_now() - 3;
            let told = departures(&mut port, 900);
            let (numbers, times): (Vec<u32>, Vec<u64>) = told.into_iter().unzip();
            let asked: Vec<u32> = (1..=300).map(|nth| nth * 3).collect();
            assert_eq!(numbers, asked, "{release} {way}");
            assert!(times.is_sorted(), "{release} {way}");
            let whole = before..card_now();
            let all = times.iter().all(|time| whole.contains(time));
            assert!(all, "{release} {way}: {before} {times:?}");
            assert_eq!(port.counts().sent, 900, "{release} {way}");
            assert_eq!(room(&mut port), 511, "{release} {way}");
        }
    }
    // What the card does not know of a frame is told, too.
    let fake = Fake::new(&[("FAULT", "untimed@3")]);
    let mut port = fake.open_stamped();
    assert_eq!(departures(&mut port, 3), [(3, 0)]);
}

/// Only what comes has times, where that is all that there are; and none without asking.
#[test]
fn a_card_without_times_of_departures_stamps_what_comes() {
    let fake = Fake::new(&[("FAULT", "departures:EOPNOTSUPP")]);
    let mut port = fake.open_stamped();
    let facts = port.facts();
    assert!(!facts.stamps_sent);
    let words = ", stamping frames, but none that it sends (";
    assert!(facts.driver.contains(words), "{}", facts.driver);
    port.add_filter(datagrams()).unwrap();
    assert!(stamps(&mut port, 100).iter().all(|stamp| *stamp > AHEAD));
    assert_eq!(departures(&mut port, 100), []);
    let mut port = fake.open().unwrap();
    assert!(!port.facts().stamps_sent);
    assert_eq!(departures(&mut port, 100), []);
}

/// What a VI had on its way when it died has left without a time; the next one's has its own.
#[test]
fn departures_of_a_dead_vi_are_not_told() {
    for fault in ["reset@50", "oflow@50", "txerr@50", "late,txerr@50"] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let mut port = fake.open_stamped();
        port.add_filter(datagrams()).unwrap();
        let told = departures(&mut port, 900);
        assert!(told.iter().all(|(_, at)| *at > AHEAD), "{fault}: {told:?}");
        let numbers: Vec<u32> = told.iter().map(|(number, _)| *number).collect();
        assert!(
            numbers.is_sorted() && numbers.ends_with(&[897, 900]),
            "{fault}: {numbers:?}"
        );
        assert!(
            (250..300).contains(&numbers.len()),
            "{fault}: {}",
            numbers.len()
        );
    }
}

/// What has nothing to do with stamps is not tried without: it would work by chance, and for ever.
#[test]
fn a_card_that_is_used_up_is_not_taken_for_one_without_stamps() {
    for errno in ["EBUSY", "ENOSPC", "ENOMEM", "ELIBACC", "ENODEV"] {
        let fake = Fake::new(&[("FAULT", &format!("stamps:{errno}"))]);
        let refused = EfViPort::with(fake.ciul(), "eth9", STAMPED);
        assert!(refused.is_err(), "{errno}");
        assert_eq!(fake.live(), 0, "{errno}");
    }
}

/// Frames have their times behind a reset too, as soon as the card can again.
#[test]
fn a_vi_that_is_made_again_stamps() {
    for fault in ["reset@20", "reset@20,stamps:EBUSY@2"] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let mut port = fake.open_stamped();
        port.add_filter(datagrams()).unwrap();
        around(&mut port, 32);
        mended(&mut port);
        let stamps = stamps(&mut port, 100);
        assert_eq!(stamps.len(), 100, "{fault}");
        assert!(stamps.iter().all(|stamp| *stamp > AHEAD), "{fault}");
    }
}

/// Sends frames around, loses the VI, and takes the filter away; whatever fails in it.
pub(super) fn a_life(port: &mut EfViPort) {
    let is_led = port.add_filter(datagrams()).is_ok();
    for number in 0..100 {
        let _ = send(port, &frame(OURS.1, number));
        port.flush();
        port.receive(&mut |_, _| ());
        let _ = port.prime();
    }
    mended(port);
    if is_led {
        port.remove_filter(&datagrams());
    }
    let _ = port.add_filter(datagrams());
}

/// What the libraries' sources and the drivers behind them answer, and more: a call may fail with
/// any of them.
const ERRNOS: [Errno; 27] = [
    Errno::PERM,
    Errno::NOENT,
    Errno::INTR,
    Errno::IO,
    Errno::NXIO,
    Errno::AGAIN,
    Errno::NOMEM,
    Errno::ACCESS,
    Errno::FAULT,
    Errno::BUSY,
    Errno::EXIST,
    Errno::NODEV,
    Errno::INVAL,
    Errno::MFILE,
    Errno::NOSPC,
    Errno::NOSYS,
    Errno::NODATA,
    Errno::PROTO,
    Errno::BADMSG,
    Errno::LIBACC,
    Errno::PROTONOSUPPORT,
    Errno::OPNOTSUPP,
    Errno::NOBUFS,
    Errno::TIMEDOUT,
    Errno::ALREADY,
    Errno::L2NSYNC,
    Errno::NOTCONN,
];

/// Each of these calls fails, the first, second or third time, with each of [`ERRNOS`], on a card
/// of this way: what is open goes on, and nothing is left. The card is reset after fifty frames,
/// which makes everything twice. Calls that are `needed` for a port at all fail it the first time
/// only.
pub(super) fn each_may_fail(
    way: &str,
    calls: &[(&str, u32)],
    needed: &[&str],
    open: impl Fn(&Fake) -> Result<EfViPort, String>,
) {
    let fake = Fake::new(&[]);
    for (call, first) in calls {
        let times = ERRNOS.map(Errno::raw_os_error).into_iter();
        for (errno, nth) in times.flat_map(|errno| (0..3).map(move |nth| (errno, nth))) {
            let what = format!("{way},reset@50,{call}:{errno}@{}", first + nth);
            fake.set("FAULT", &what);
            let mut port = open(&fake).ok();
            let is_needed = needed.contains(call) && nth == 0;
            assert_eq!(port.is_none(), is_needed, "{what}");
            if let Some(port) = &mut port {
                a_life(port);
                fake.set("FAULT", way);
                let _ = port.add_filter(datagrams());
                // One more death: that a library cannot tell what an event is of may show now.
                around(port, 100);
                mended(port);
                assert_eq!(around(port, 100).len(), 100, "{what}");
            }
            drop(port);
            assert_eq!(fake.live(), 0, "{what}");
        }
    }
}

const OPENING: [&str; 6] = ["open", "pd", "alloc", "memreg", "mac", "mtu"];

#[test]
fn any_call_that_opens_may_fail_at_any_time() {
    each_may_fail("", &OPENING.map(|call| (call, 1)), &OPENING, Fake::open);
}

#[test]
fn any_call_may_fail_at_any_time() {
    // The calibration posts and sends too: those after it are meant.
    let calls = [
        ("filter", 1),
        ("spec", 1),
        ("unfilter", 1),
        ("prime", 1),
        ("receive", 10),
        ("transmit", 3),
        ("complete", 1),
        ("free", 1),
    ];
    each_may_fail("", &calls, &OPENING, Fake::open);
    let on_vlan = |fake: &Fake| fake.open_vlan(7);
    each_may_fail("", &[("vlan", 1)], &OPENING, on_vlan);
}

#[test]
fn any_call_of_other_ways_may_fail_at_any_time() {
    let merged = [("unbundle", 1), ("bytes", 1), ("complete", 1)];
    each_may_fail("merge", &merged, &OPENING, Fake::open);
    // A packet that is not to be had is given back all the same: the stand-in counts them.
    let lent = [("lend", 1), ("transmit", 3), ("complete", 1), ("free", 1)];
    each_may_fail("ref", &lent, &OPENING, Fake::open);
    let stamped = |fake: &Fake| Ok(fake.open_stamped());
    each_may_fail("", &[("stamp", 1)], &OPENING, stamped);
}

/// What the calibration cannot do refuses the library: before anything is opened.
#[test]
fn any_call_of_the_calibration_may_fail() {
    let fake = Fake::new(&[]);
    let posts = (1..=9).map(|nth| ("receive", nth));
    let calls = [
        ("init", 1),
        ("init", 2),
        ("add", 1),
        ("transmit", 1),
        ("transmit", 2),
    ];
    for (call, nth) in calls.into_iter().chain(posts) {
        for errno in ERRNOS.map(Errno::raw_os_error) {
            let what = format!("{call}:{errno}@{nth}");
            fake.set("FAULT", &what);
            let why = fake.open().unwrap_err();
            let is_said = ["layout unknown", "layout of libciul is not known"];
            assert!(
                is_said.iter().any(|words| why.contains(words)),
                "{what}: {why}"
            );
            assert_eq!(fake.live(), 0, "{what}");
        }
    }
}

/// Buffers that cannot be posted for a while are not lost: the ring has all of them again.
#[test]
fn what_could_not_be_posted_is_posted_later() {
    let fake = Fake::new(&[]);
    let mut port = fake.open().unwrap();
    port.add_filter(datagrams()).unwrap();
    for errno in ["EAGAIN", "EINVAL"] {
        fake.set("FAULT", &format!("receive:{errno}"));
        assert!(around(&mut port, 600).len() <= 504, "{errno}");
        fake.set("FAULT", "");
        // What is still on the wire.
        around(&mut port, 0);
        assert_eq!(around(&mut port, 1000).len(), 1000, "{errno}");
    }
    // All 504 at once.
    (0..504).for_each(|number| assert!(send(&mut port, &frame(OURS.1, number))));
    port.flush();
    let mut count = 0;
    (0..100).for_each(|_| count += port.receive(&mut |_, _| ()));
    assert_eq!(count, 504);
}

/// Types of events that say nothing of a buffer, known or not: a frame that none cares for, words
/// of programs, packets in streams, alternatives, copies. (Type 15 of 9.x and 16 of 8.1 are lent
/// packets.)
#[test]
fn events_of_any_type_do_no_harm() {
    for release in RELEASES {
        for kind in [4, 5, 7, 8, 10, 13, 17, 18, 100, 65_535] {
            let fake = Fake::new(&[("LAYOUT", release), ("FAULT", &format!("event:{kind}@5"))]);
            let mut port = fake.open().unwrap();
            port.add_filter(datagrams()).unwrap();
            assert_eq!(around(&mut port, 1000).len(), 1000, "{release} {kind}");
            let counts = port.counts();
            assert_eq!(counts.no_buffer, u64::from(kind == 4), "{release} {kind}");
            // 7 is the completion of one frame, with its time: of none of ours here.
            assert_eq!(counts.sent, 1000 + u64::from(kind == 7), "{release} {kind}");
            assert_eq!(room(&mut port), 511, "{release} {kind}");
        }
    }
}

#[test]
fn a_full_ring_takes_no_more_and_loses_nothing() {
    let fake = Fake::new(&[]);
    let mut port = fake.open().unwrap();
    port.add_filter(datagrams()).unwrap();
    let taken = (0..600).filter(|number| send(&mut port, &frame(OURS.1, *number)));
    assert_eq!(taken.count(), 511);
    port.flush();
    let mut numbers = Vec::new();
    while port.receive(&mut |bytes, _| numbers.push(bytes[45])) > 0 {}
    let sent: Vec<u8> = (0..511_u32).map(|number| number.to_be_bytes()[3]).collect();
    assert_eq!(numbers, sent);
}

/// What a port with nothing on its way takes at once: as many frames as it has buffers for.
fn room(port: &mut EfViPort) -> usize {
    (0..600)
        .filter(|number| send(port, &frame(OURS.1, *number)))
        .count()
}

#[test]
fn completions_may_be_late_and_in_bundles() {
    for release in RELEASES {
        for way in ["late", "late,merge", "late,ref", "late,prefix0"] {
            let fake = Fake::new(&[("LAYOUT", release), ("FAULT", way)]);
            let mut port = fake.open().unwrap();
            port.add_filter(datagrams()).unwrap();
            let got = around(&mut port, 3000);
            assert_eq!(got, (0..3000).collect::<Vec<_>>(), "{release} {way}");
            assert!(port.counts().sent < 3000, "{release} {way}: not late");
            for _ in 0..100 * 24 {
                port.receive(&mut |_, _| ());
            }
            // Each buffer is back, once.
            assert_eq!(port.counts().sent, 3000, "{release} {way}");
            assert_eq!(room(&mut port), 511, "{release} {way}");
            drop(port);
            assert_eq!(fake.live(), 0, "{release} {way}");
        }
    }
}

/// What a VI that dies has not told of, the next one does not wait for.
#[test]
fn a_vi_may_die_with_completions_on_their_way() {
    for fault in ["late,reset@300", "late,txerr@300"] {
        let fake = Fake::new(&[("FAULT", fault)]);
        let mut port = fake.open().unwrap();
        port.add_filter(datagrams()).unwrap();
        around(&mut port, 320);
        mended(&mut port);
        assert_eq!(room(&mut port), 511, "{fault}");
    }
}

#[test]
fn frames_of_no_use_are_counted_and_their_buffers_posted_again() {
    for way in ["discard@5", "discard"] {
        let fake = Fake::new(&[("FAULT", way)]);
        let mut port = fake.open().unwrap();
        port.add_filter(datagrams()).unwrap();
        let bad = if way == "discard" { 2000 } else { 1 };
        let got = around(&mut port, 2000).len();
        // Looks without a frame are no end here.
        for _ in 0..1000 {
            port.receive(&mut |_, _| ());
        }
        assert_eq!(got, 2000 - bad);
        assert_eq!(port.counts().discarded[2], bad as u64);
    }
}

#[test]
fn a_library_that_is_absent_or_another_is_refused_in_words() {
    let absent =
        EfViPort::open("/nowhere/libciul.so.1".as_ref(), "lo", Settings::default()).unwrap_err();
    assert!(absent.contains("is not installed"), "{absent}");
    let another = EfViPort::open("libc.so.6".as_ref(), "lo", Settings::default()).unwrap_err();
    assert_eq!(another, "libc.so.6 has no ef_driver_open");
}
