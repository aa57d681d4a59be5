//! `cargo xtask test` and `cargo xtask ci`.

use bypass_tests::{Result, paths};

use crate::build::cargo;
use crate::cargo_tests::{self, Tally};
use crate::progress::step;
use crate::{bench, build, codegen, guest, packages, tidy};

/// A group of tests: its name, the arguments of `cargo test`, and variables for it.
struct Group {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// In this order: cheap ones first. Two at a time where a test bed is quiet most of the time, one
/// at a time where a test loads the machine or measures time.
const GROUPS: &[Group] = &[
    Group {
        name: "unit",
        arguments: &["--workspace", "--exclude", "bypass-tests"],
        environment: &[],
    },
    Group {
        name: "unit",
        arguments: &["-p", "bypass-tests", "--lib"],
        environment: &[],
    },
    Group {
        name: "abi",
        arguments: &["-p", "bypass-tests", "--test", "abi"],
        environment: &[],
    },
    Group {
        name: "conformance",
        arguments: &[
            "-p",
            "bypass-tests",
            "--test",
            "conformance",
            "--",
            "--test-threads=2",
        ],
        environment: &[],
    },
    // A few of them on a DPDK port (net_tap): all take half an hour there.
    Group {
        name: "conformance",
        arguments: &[
            "-p",
            "bypass-tests",
            "--test",
            "conformance",
            "--",
            "--test-threads=2",
            "--exact",
            "udp_demux::shim",
            "vectors_runs::shim",
            "options_tos_ttl_on_the_wire::shim",
            "sizes_udp_gro_joined::shim",
            "process_both::shim",
            "tcp_bulk_in::shim",
            "tcp_epoll_threads::shim",
        ],
        environment: &[("BYPASS_TEST_BACKEND", "dpdk")],
    },
    Group {
        name: "e2e",
        arguments: &[
            "-p",
            "bypass-tests",
            "--test",
            "e2e",
            "--",
            "--test-threads=2",
            "--skip",
            "alone::",
        ],
        environment: &[],
    },
    Group {
        name: "e2e",
        arguments: &[
            "-p",
            "bypass-tests",
            "--test",
            "e2e",
            "--",
            "--test-threads=1",
            "alone::",
        ],
        environment: &[],
    },
];

/// Prepares the machine, builds, runs the tests; ends with the line `N passed, N failed`.
///
/// # Errors
/// When a test failed or a step before the tests did.
pub(crate) fn run(groups: &[String]) -> Result<()> {
    all(groups)?.end()
}

/// The end-to-end scenes of programs with the server's interface as a card by ef_vi (libciul's
/// stand-in): those of CI and all others. Ten minutes.
///
/// # Errors
/// As [`run`].
pub(crate) fn on_card() -> Result<()> {
    packages::install_missing()?;
    build::release()?;
    let scenes = ["-p", "bypass-tests", "--test", "e2e", "--", "shim"];
    let others = [
        "--test-threads=1",
        "--skip",
        "dpdk_port::",
        "--skip",
        "ef_vi_",
    ];
    let environment = [
        ("BYPASS_TEST_REQUIRE_SHIM", "1"),
        ("BYPASS_TEST_BACKEND", "ef_vi"),
    ];
    let tally = step("e2e tests on a card's stand-in", || {
        cargo_tests::run(&[&scenes[..], &others].concat(), &environment)
    })?;
    tally.end()
}

fn all(groups: &[String]) -> Result<Tally> {
    let wanted = |name: &str| groups.is_empty() || groups.iter().any(|group| group == name);
    packages::install_missing()?;
    let mut guest = wanted("guest").then(guest::Beside::prepare);
    build::release()?;
    let mut tally = Tally::default();
    if wanted("unit") {
        tally.check("tidy", step("tidy", tidy::run));
        tally.check("bytecode", step("bytecode", || codegen::run(true)));
        tally.check("compat.md", step("compat.md", || codegen::compat(true)));
        tally.check("instruction counts", bench::instructions_gate());
    }
    // Once it is written the shim's column must run: a skip would be no test.
    let environment: &[(&str, &str)] =
        if paths::repository().join("preload/src/symbols.rs").exists() {
            &[("BYPASS_TEST_REQUIRE_SHIM", "1")]
        } else {
            &[]
        };
    for group in GROUPS.iter().filter(|group| wanted(group.name)) {
        let what = format!(
            "{} tests: cargo test {}",
            group.name,
            group.arguments.join(" ")
        );
        // Which wait for most of their time, and measure little.
        let beside = guest.take_if(|_| group.name == "conformance");
        beside.iter().for_each(guest::Beside::boot);
        let environment = [environment, group.environment].concat();
        tally.add(step(&what, || {
            cargo_tests::run(group.arguments, &environment)
        })?);
        beside.into_iter().for_each(|guest| tally.add(guest.end()));
    }
    guest.into_iter().for_each(|guest| tally.add(guest.end()));
    if wanted("unit") {
        tally.add(netstack3()?);
    }
    Ok(tally)
}

/// The simulation with netstack3 at the other end. Its crates name Rust 1.97 and compile with ours,
/// so they stay out of the workspace, whose other crates are to say what they need.
fn netstack3() -> Result<Tally> {
    let manifest = ["--locked", "--manifest-path", "tests/netstack3/Cargo.toml"];
    let here = ["--target", "x86_64-unknown-linux-gnu"];
    let fetched = cargo().arg("fetch").args(manifest).args(here).output()?;
    if !fetched.status.success() {
        let why = String::from_utf8_lossy(&fetched.stderr).into_owned();
        let mut tally = Tally::default();
        // What cargo says of every transfer that has failed; not of a lock file that is stale.
        if why.contains("failed to download from") {
            println!("netstack3: skipped, the network does not give its crates:\n{why}");
        } else {
            tally.check("netstack3: cargo fetch", Err(why.into()));
        }
        return Ok(tally);
    }
    let arguments = [&manifest[..], &["--ignore-rust-version"]].concat();
    step("netstack3: cargo test --ignore-rust-version", || {
        cargo_tests::run(&arguments, &[])
    })
}

/// The fuzz targets, no members of the workspace: to run they need nightly Rust, not to compile.
const FUZZ: &str = "fuzz/Cargo.toml";

/// Everything that a change must pass.
///
/// # Errors
/// When something failed.
pub(crate) fn ci() -> Result<()> {
    let mut tally = Tally::default();
    let checks: [(&str, &[&str]); 4] = [
        ("format", &["fmt", "--all", "--check"]),
        (
            "lints",
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-Dwarnings",
            ],
        ),
        (
            "fuzz targets",
            &["check", "--quiet", "--offline", "--manifest-path", FUZZ],
        ),
        (
            "licences and sources",
            &["deny", "--offline", "check", "licenses", "bans", "sources"],
        ),
    ];
    for (name, arguments) in checks {
        let missing = match name {
            "fuzz targets" => missing_crates(&["--manifest-path", FUZZ]),
            "licences and sources" => missing_for_deny(),
            _ => None,
        };
        if let Some(missing) = missing {
            println!("{name}: skipped, {missing}");
            continue;
        }
        let result = step(name, || -> Result<()> {
            let status = cargo().args(arguments).status()?;
            if status.success() {
                Ok(())
            } else {
                Err(format!("{status}").into())
            }
        });
        tally.check(name, result);
    }
    tally.add(all(&[])?);
    tally.end()
}

/// What `cargo deny --offline` lacks here, if anything: it looks at every platform's dependencies,
/// and a machine without network may have fetched those of its own only.
fn missing_for_deny() -> Option<String> {
    let runs = |arguments: &[&str]| cargo().args(arguments).output();
    if !runs(&["deny", "--version"]).is_ok_and(|run| run.status.success()) {
        return Some("cargo-deny is not installed".to_owned());
    }
    missing_crates(&["--all-features"])
}

/// What cargo's cache lacks here, if anything, of what these arguments of `cargo metadata` ask for.
fn missing_crates(arguments: &[&str]) -> Option<String> {
    let metadata = ["metadata", "--offline", "--format-version=1"];
    match cargo().args(metadata).args(arguments).output() {
        Ok(run) if run.status.success() => None,
        Ok(run) => {
            let text = String::from_utf8_lossy(&run.stderr).into_owned();
            let why = text.lines().find_map(|line| line.strip_prefix("error: "));
            let why = why.unwrap_or("cargo metadata fails");
            Some(format!("crates are missing in cargo's cache: {why}"))
        }
        Err(error) => Some(error.to_string()),
    }
}
