//! Runs the packet scripts of `tests/tcp_scripts`: every script over IPv4 and over IPv6.

mod common;
mod script;

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
    handshake listener close receive send timers recovery attacks ecn info
}
