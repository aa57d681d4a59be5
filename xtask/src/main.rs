//! `cargo xtask`: the one developer command.
//!
//! `demo` shows the product on this machine, `test` prepares the machine and runs every test, `ci`
//! adds format, lints and the instruction gate, `bench` measures kernel against shim, `tidy` checks
//! the rules that no compiler knows, `packetdrill` runs its scripts against the stack,
//! `testbed` opens a shell between two namespaces. Everything
//! that needs a network makes its own namespaces and removes them.

mod bench;
mod build;
mod cargo_tests;
mod codegen;
mod demo;
mod guest;
mod hardware;
mod measure;
mod packages;
mod packetdrill;
mod progress;
mod shell;
mod table;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use bypass_tests::Result;

use hardware::Hardware;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, tests, measures and shows bypass"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show the bypass at work: name server, packet receiver and ping-pong, kernel against shim
    Demo {
        /// Print one JSON object instead of the table
        #[arg(long)]
        json: bool,
        /// Length of each measurement in seconds
        #[arg(long, default_value_t = 3)]
        seconds: u32,
    },
    /// Prepare the machine, build, and run every test
    Test {
        /// Only the groups with these names (unit, abi, conformance, e2e, guest)
        groups: Vec<String>,
        /// All scenes of programs that a card does not change, on the stand-in of one by ef_vi
        #[arg(long, conflicts_with = "groups")]
        card: bool,
        #[command(flatten)]
        hardware: Hardware,
    },
    /// Boot an emulated machine with a card and run programs over its virtual function by DPDK
    Guest {
        /// The whole socket conformance set too, and AF_XDP on cards: takes long
        #[arg(long)]
        all: bool,
    },
    /// What a change must pass: format, lints, tidy, tests, instruction counts
    Ci,
    /// Measure speed, processor time or instructions, kernel and shim in turns
    Bench {
        /// Which one
        name: bench::Name,
        /// Print one JSON object instead of the table
        #[arg(long)]
        json: bool,
        /// Rounds; kernel and shim take turns in each
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// stack-udp, stack-tcp, ef-vi: write the figures as the new reference
        #[arg(long)]
        record: bool,
    },
    /// Open a shell on the server side of a test bed
    Testbed {
        /// Queues of the veth
        #[arg(long, default_value_t = 1)]
        queues: u32,
        #[command(flatten)]
        link: shell::Link,
    },
    /// Make generated files again: bytecode, docs/compat.md
    Codegen {
        /// Only compare with the committed one
        #[arg(long)]
        check: bool,
    },
    /// Run packetdrill's scripts against the stack, in virtual time
    Packetdrill {
        /// A checkout of packetdrill that has been built
        path: std::path::PathBuf,
        /// Only the scripts whose names contain this
        only: Option<String>,
    },
    /// Check module docs, unsafe code, dependencies, words and line width
    Tidy,
}

fn main() -> ExitCode {
    let done: Result<()> = match Arguments::parse().task {
        Task::Demo { json, seconds } => demo::run(json, seconds),
        Task::Guest { all } => guest::run(all),
        Task::Test {
            groups,
            card,
            hardware,
        } => match hardware.run() {
            Some(done) => done,
            None if card => test::on_card(),
            None => test::run(&groups),
        },
        Task::Ci => test::ci(),
        Task::Bench {
            name,
            json,
            rounds,
            record,
        } => bench::run(name, json, rounds, record),
        Task::Testbed { queues, link } => shell::run(queues, &link),
        Task::Codegen { check } => codegen::run(check).and_then(|()| codegen::compat(check)),
        Task::Packetdrill { path, only } => packetdrill::run(&path, only.as_deref()),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
