//! Runs the packet scripts of `tests/tcp_scripts`: every script over IPv4 and over IPv6.

mod common;
mod script;

use bypass_stack::{Counter, DropReason};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tcp_scripts")
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

/// Runs the scripts of a topic; fails with the first error of each that fails.
fn topic(name: &str) {
    let only = std::env::var("SCRIPT").ok();
    let mut failed = Vec::new();
    let scripts = sorted(&root().join(name));
    assert!(!scripts.is_empty());
    for script in &scripts {
        let text = script.display().to_string();
        if only.as_ref().is_some_and(|only| !text.contains(only)) {
            continue;
        }
        for is_v4 in [true, false] {
            failed.extend(script::run(script, is_v4).err());
        }
    }
    assert!(failed.is_empty(), "\n{}\n", failed.join("\n"));
}

/// What no script reaches, and where it is tested instead.
const ELSEWHERE: [&str; 4] = [
    // The machine of the scripts takes every change: tests/tcp.rs.
    "tcp-flow-changes-lost",
    // A malformed header: tests/segments.rs.
    "tcp-header",
    // A connection moves away: tests/tcp.rs.
    "tcp-handed-over",
    "tcp-left",
];

/// Every counter and every reason for a drop of TCP is a mark: some script takes it.
#[test]
fn every_mark_is_taken() {
    let folders = sorted(&root()).into_iter().filter(|path| path.is_dir());
    let taken: std::collections::BTreeSet<_> = folders
        .flat_map(|folder| sorted(&folder))
        .flat_map(|path| script::run(&path, true).unwrap_or_default())
        .collect();
    let events = Counter::ALL.iter().map(|which| which.name());
    let drops = DropReason::ALL.iter().map(|which| which.name());
    let missing: Vec<_> = events
        .chain(drops)
        .filter(|name| name.starts_with("tcp-") && !taken.contains(name))
        .filter(|name| !ELSEWHERE.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// What `kernel.txt` says: scripts that are not run against the kernel, with the reason.
fn not_for_the_kernel() -> std::collections::BTreeMap<String, String> {
    let text = std::fs::read_to_string(root().join("kernel.txt")).unwrap();
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(": ").expect("name and reason"))
        .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        .collect()
}

/// How often a script may fail against the kernel: its timers run in real time, and on a machine
/// that stands still for a moment they come before the script's next line. What the kernel does
/// otherwise than the script says fails every time.
const TRIES: usize = 6;

/// The kernel of this host does what the scripts say, except those of `kernel.txt`. Needs root and
/// `/dev/net/tun`. `SCRIPT=name` runs only some, `BYPASS_ALL=1` also those that are excepted.
#[test]
fn the_kernel_agrees() {
    let excepted = not_for_the_kernel();
    let only = std::env::var("SCRIPT").ok();
    let all = std::env::var_os("BYPASS_ALL").is_some();
    let folders = sorted(&root()).into_iter().filter(|path| path.is_dir());
    let scripts: Vec<_> = folders.flat_map(|folder| sorted(&folder)).collect();
    let name = |path: &Path| {
        let name = path.strip_prefix(root()).unwrap().with_extension("");
        name.to_str().unwrap().to_owned()
    };
    for known in excepted.keys() {
        assert!(scripts.iter().any(|path| name(path) == *known), "{known}");
    }
    let wanted: Vec<_> = scripts
        .iter()
        .filter(|path| all || !excepted.contains_key(&name(path)))
        .filter(|path| only.as_ref().is_none_or(|only| name(path).contains(only)))
        .flat_map(|path| [(path, true), (path, false)])
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let next = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                while let Some((path, is_v4)) = wanted.get(next()) {
                    let mut tries = (0..TRIES).map(|_| script::kernel::run(path, *is_v4));
                    let last = tries.find(Result::is_ok);
                    if last.is_none() {
                        let error = script::kernel::run(path, *is_v4);
                        failed.lock().unwrap().extend(error.err());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "\n{}\n", failed.join("\n"));
}

/// The kernel of this host does what our stack does in these random scenarios; needs what
/// `the_kernel_agrees` needs.
#[test]
fn the_kernel_agrees_in_some_random_scenarios() {
    let report = script::differential::run(SOME);
    assert!(report.found.is_empty(), "\n{}\n", report.found.join("\n\n"));
    assert!(report.agreed >= 290, "known: {:?}", report.known);
}

/// Scenarios of every run, of which none ends with a difference that is not known.
const SOME: std::ops::Range<u64> = 101..401;

/// The same for any scenarios: `BYPASS_ROUNDS=n` runs so many, from `BYPASS_SEED` on. What differs
/// is printed as a script.
#[test]
#[ignore = "2,000 of them take a while: run by hand"]
fn the_kernel_agrees_in_random_scenarios() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let first: u64 = number("BYPASS_SEED").unwrap_or(1);
    let rounds = number("BYPASS_ROUNDS").unwrap_or(ROUNDS);
    let report = script::differential::run(first..first + rounds);
    println!(
        "{} of {rounds} agree; known: {:?}",
        report.agreed, report.known
    );
    assert!(report.found.is_empty(), "\n{}\n", report.found.join("\n\n"));
}

/// How many random scenarios a usual run tries.
const ROUNDS: u64 = 2000;

macro_rules! topics {
    ($($name:ident)*) => {
        $(#[test] fn $name() { topic(stringify!($name)); })*

        #[test]
        fn every_topic_is_run() {
            let folders: Vec<_> = sorted(&root())
                .into_iter()
                .filter(|path| path.is_dir())
                .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
                .collect();
            let mut run = vec![$(stringify!($name).to_owned()),*];
            run.sort();
            assert_eq!(folders, run);
        }
    };
}

topics! {
    fast_connect fast_open handshake listener close receive send timers recovery attacks ecn info
    urgent
}
