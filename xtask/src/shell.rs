//! `cargo xtask testbed`: a shell on the server side, for trying things by hand.

use std::process::Command;

use bypass_backends::sim::Faults;
use bypass_tests::testbed::{Options, Side, Testbed};
use bypass_tests::{Result, paths};

/// A link with delay and loss in place of the veth; any of these asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::Args)]
pub(crate) struct Link {
    /// Round-trip time of an emulated link in milliseconds
    #[arg(long, default_value_t = 0)]
    rtt_ms: u64,
    /// Frames that it loses, in 1/1024
    #[arg(long, default_value_t = 0)]
    loss: u16,
    /// Its rate in Mbit/s; 0 = no limit
    #[arg(long, default_value_t = 0)]
    mbit: u64,
    /// Frames on the way in a direction, further ones are lost; 0 = no limit
    #[arg(long, default_value_t = 0)]
    frames: u32,
}

impl Link {
    fn faults(self) -> Option<(Faults, u64)> {
        let faults = Faults {
            loss: self.loss,
            delay_ns: self.rtt_ms * 500_000,
            in_flight: self.frames,
            bits_per_second: self.mbit * 1_000_000,
            ..Faults::default()
        };
        (self != Self::default()).then_some((faults, 1))
    }
}

/// Opens the shell; the test bed goes when it ends.
///
/// # Errors
/// When the test bed cannot be made.
pub(crate) fn run(queues: u32, link: &Link) -> Result<()> {
    let bed = Testbed::with(Options {
        queues,
        emulated: link.faults(),
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
