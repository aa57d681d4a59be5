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
const ELSEWHERE: [&str; 2] = [
    // The machine of the scripts takes every change: tests/tcp.rs.
    "tcp-flow-changes-lost",
    // A malformed header: tests/segments.rs.
    "tcp-header",
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
    handshake listener close receive send timers recovery attacks ecn info urgent
}
