//! Frames in bursts out of a DPDK port by the plugin, each looked at and given back, and how many.
//!
//! The port is net_null, which makes frames of 64 bytes out of nothing. For instruction counts:
//! `valgrind --tool=callgrind target/release/examples/port_burst PLUGIN 1000000`. No time is taken
//! here.

use std::path::Path;

use bypass_backends::dpdk::Plugin;
use bypass_backends::relay::Port;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, plugin, count] = arguments.as_slice() else {
        panic!("the plugin and a count");
    };
    let count: usize = count.parse().unwrap();
    let prefix = format!("--file-prefix=burst-{}", std::process::id());
    let environment = [
        "--no-huge",
        "--no-shconf",
        "-m",
        "64",
        "--no-pci",
        "--no-telemetry",
    ];
    let environment = environment.iter().chain(&["--vdev=net_null0"]);
    let mut environment: Vec<String> = environment.map(|word| (*word).to_owned()).collect();
    environment.push(prefix);
    let plugin = Plugin::load(Path::new(plugin)).unwrap();
    let mut port = plugin.open(&environment, false).unwrap();
    let (mut frames, mut bytes) = (0, 0);
    while frames < count {
        frames += port.receive(&mut |frame, _| bytes += frame.len());
    }
    println!("{frames} {bytes}");
}
