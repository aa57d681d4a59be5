//! `cargo xtask testbed`: a shell on the server side, for trying things by hand.

use std::process::Command;

use bypass_tests::testbed::{Options, Side, Testbed};
use bypass_tests::{Result, paths};

/// Opens the shell; the test bed goes when it ends.
///
/// # Errors
/// When the test bed cannot be made.
pub(crate) fn run(queues: u32) -> Result<()> {
    let bed = Testbed::with(Options {
        queues,
        ..Options::default()
    })?;
    let (server, client) = (bed.namespace(Side::Server), bed.namespace(Side::Client));
    println!(
        "server side  {server}  {}  {}",
        bed.ipv4(Side::Server),
        bed.ipv6(Side::Server)
    );
    println!(
        "client side  {client}  {}  {}",
        bed.ipv4(Side::Client),
        bed.ipv6(Side::Client)
    );
    println!("in another shell: ip netns exec {client} PROGRAM");
    println!("here: LD_PRELOAD={} PROGRAM", paths::shim().display());
    println!("the namespaces go when this shell ends");
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    Command::new("ip")
        .args(["netns", "exec", &server])
        .arg(shell)
        .status()?;
    Ok(())
}
