//! Tests of interfaces: driver, MTU, queues, offloads, XDP programs.

use bypass_backends::af_xdp::{self, Interface};
use bypass_backends::netlink;
use bypass_proto::policy::Backend;

use super::facts;
use super::{Findings, card};
use crate::source;
use crate::source::ethtool::{self, Offload};
use crate::source::rtnetlink::{self, LinkInfo};

/// Most MTU: a frame with its headers and the headroom of 256 bytes must fit a chunk of 4096.
const LARGEST_MTU: u32 = 3822;
/// Name of our own XDP program.
const OWN_PROGRAM: &str = "bypass_steer";
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// LRO in `ETHTOOL_GFLAGS`.
const LRO: u32 = 1 << 15;

pub(super) fn test(only: Option<&str>, findings: &mut Findings) {
    let links = match rtnetlink::links() {
        Ok(links) => links,
        Err(errno) => {
            return findings.fail(
                format!("interfaces: no list: {errno}"),
                "allow netlink sockets",
            );
        }
    };
    let daemon = source::interfaces();
    let failed = daemon
        .iter()
        .flatten()
        .filter(|it| it.is_device && it.reason.is_some() && it.given_up.is_none());
    let is_failed = |name: &str| failed.clone().any(|device| device.name == name);
    for device in failed
        .clone()
        .filter(|it| only.is_none_or(|name| it.name == name))
    {
        failed_device(device, findings);
    }
    let wanted = |link: &&LinkInfo| match only {
        Some(name) => link.name == name,
        // Loopback and whatever is not Ethernet is never served: nothing to test.
        None => link.device_type == ETHERNET,
    };
    let mut links = links.iter().filter(wanted).peekable();
    match (links.peek(), only) {
        (None, Some(name)) if !is_failed(name) => {
            findings.fail(
                format!("{name}: no such interface"),
                "see ip link for the names",
            );
        }
        (None, None) => findings.warn(
            "interfaces: no Ethernet interface in this network namespace",
            "run it in the namespace of the programs: ip netns exec NAME bypassctl doctor",
        ),
        _ => {}
    }
    let devices = af_xdp::interfaces();
    for link in links.filter(|link| !is_failed(&link.name)) {
        let device = devices.iter().find(|device| device.name == link.name);
        let seen = daemon
            .iter()
            .flatten()
            .find(|interface| interface.name == link.name);
        one(link, device, seen, findings);
    }
}

/// A device of the configuration whose port could not be opened.
fn failed_device(device: &source::Interface, findings: &mut Findings) {
    let reason = device.reason.as_deref().unwrap_or_default();
    findings.fail(
        format!("{}: DPDK: {reason}", device.name),
        "its sockets stay in the kernel: correct [[device]] in the configuration, or what it \
         names; then bypassctl reload",
    );
}

fn one(
    link: &LinkInfo,
    device: Option<&Interface>,
    daemon: Option<&source::Interface>,
    findings: &mut Findings,
) {
    let name = &link.name;
    if link.device_type != ETHERNET {
        return findings.warn(
            format!("{name}: is not an Ethernet interface"),
            "its traffic stays in the kernel: name another interface",
        );
    }
    if !link.is_up() {
        let todo = format!("to use it: ip link set {name} up");
        return findings.warn(format!("{name}: is down"), &todo);
    }
    if link.master != 0 {
        findings.warn(
            format!("{name}: is a port of a bridge, bond or VRF"),
            "the addresses are the master's: its traffic stays in the kernel",
        );
    }
    let driver = device.map_or("unknown", |device| device.driver.as_str());
    card::test(name, driver, findings);
    if let Some(why) = daemon.and_then(|it| it.given_up.as_ref()) {
        findings.warn(
            format!("{name}: ef_vi: {why}"),
            "the next backend serves it; after a correction: bypassctl reload",
        );
    }
    let of_card = daemon.filter(|it| it.backend.as_deref() == Some(Backend::EfVi.word()));
    if let Some(card) = of_card {
        findings.ok(format!(
            "{name}: a card that ef_vi serves; the interface is the kernel's"
        ));
        mtu(link, findings);
        return served(name, card, findings);
    }
    let of_dpdk = daemon.filter(|it| it.backend.as_deref() == Some(Backend::Dpdk.word()));
    if let Some(port) = of_dpdk {
        findings.ok(format!("{name}: the kernel's side of a DPDK port"));
        mtu(link, findings);
        return served(name, port, findings);
    }
    features(link, driver, findings);
    mtu(link, findings);
    let queues = device.map_or(1, |device| device.queues);
    findings.ok(match daemon.and_then(|it| it.own_queue) {
        Some(own) => format!(
            "{name}: RX queues: {queues}, of which {own} is the stack's alone, by rules in the card"
        ),
        None => format!("{name}: RX queues: {queues}, all of them are served"),
    });
    offloads(name, findings);
    program(link, daemon, findings);
    if let Some(interface) = daemon {
        served(name, interface, findings);
    }
}

/// What the driver can do, as the kernel says.
fn features(link: &LinkInfo, driver: &str, findings: &mut Findings) {
    let name = &link.name;
    match netlink::xdp_features(link.ifindex) {
        Ok(features) if features.is_native() => {
            let copies = match features.is_zero_copy() {
                true => ", without copies if its [[device]] has zero_copy = true",
                false => "",
            };
            findings.ok(format!("{name}: driver {driver}, native XDP{copies}"));
        }
        Ok(_) => findings.warn(
            format!("{name}: driver {driver} has no native XDP, or not as it is set now"),
            "generic mode serves as fall-back; it is slower",
        ),
        Err(errno) => findings.warn(
            format!("{name}: driver {driver}, the kernel does not tell its XDP features: {errno}"),
            "kernels before 6.3 do not: it shows when a program uses the interface",
        ),
    }
}

fn mtu(link: &LinkInfo, findings: &mut Findings) {
    let what = format!("{}: MTU {} (at most {LARGEST_MTU})", link.name, link.mtu);
    if link.mtu > LARGEST_MTU {
        findings.fail(
            what,
            "lower it with ip link set mtu: a frame must fit one chunk",
        );
    } else {
        findings.ok(what);
    }
}

fn offloads(name: &str, findings: &mut Findings) {
    let flags = ethtool::offload(name, Offload::Flags);
    let lro = flags.map(|flags| flags & LRO);
    let told = [
        ("RX checksum", ethtool::offload(name, Offload::RxChecksum)),
        ("TX checksum", ethtool::offload(name, Offload::TxChecksum)),
        ("TSO", ethtool::offload(name, Offload::SegmentationTcp)),
        ("GRO", ethtool::offload(name, Offload::Gro)),
        ("LRO", lro),
    ];
    let text: Vec<String> = told
        .iter()
        .filter_map(|(what, value)| value.map(|value| (what, value != 0)))
        .map(|(what, on)| format!("{what} {}", if on { "on" } else { "off" }))
        .collect();
    if text.is_empty() {
        return;
    }
    let what = format!("{name}: offloads: {}", text.join(", "));
    if lro.is_some_and(|lro| lro != 0) {
        findings.warn(
            what,
            "drivers refuse XDP with LRO: switch it off with ethtool -K",
        );
    } else {
        findings.ok(what);
    }
}

fn program(link: &LinkInfo, daemon: Option<&source::Interface>, findings: &mut Findings) {
    let name = &link.name;
    let mode = match link.xdp_mode {
        1 => "native",
        2 => "generic",
        3 => "offloaded",
        4 => "several",
        _ => return findings.ok(format!("{name}: no XDP program: free to use")),
    };
    let program = facts::program_name(link.xdp_program);
    let shown = program.as_deref().unwrap_or("name not to be seen");
    let what = format!(
        "{name}: XDP program {} ({shown}) in {mode} mode",
        link.xdp_program
    );
    match program.as_deref() {
        Some(OWN_PROGRAM) if mode == "generic" => {
            findings.warn(
                what,
                "generic mode is slower: a driver with native XDP would help",
            );
        }
        Some(OWN_PROGRAM) => findings.ok(what),
        // Only root sees the name; that the daemon serves the interface says as much.
        None if daemon.is_some_and(|interface| interface.mode.is_some()) => findings.ok(what),
        None => findings.warn(what, "run bypassctl doctor as root to see whose it is"),
        Some(_) => findings.fail(
            what,
            "another program has the interface: detach it, or use another",
        ),
    }
}

/// What the daemon says of the interface.
fn served(name: &str, interface: &source::Interface, findings: &mut Findings) {
    match (&interface.reason, &interface.mode) {
        (Some(reason), _) => {
            let todo = "its sockets stay in the kernel until that changes";
            let log = interface.log.as_ref();
            let todo = log.map_or_else(
                || todo.to_owned(),
                |log| format!("{todo}; the verifier's log: {}", one_line(log)),
            );
            findings.warn(format!("{name}: the daemon says: {reason}"), &todo);
        }
        (None, Some(mode)) => {
            let checksums = match interface.checksums {
                [true, true] => "; its port checks and writes checksums",
                [true, false] => "; its port checks checksums",
                [false, true] => "; its port writes checksums",
                [false, false] => "",
            };
            let copies = if interface.zero_copy {
                ", without copies"
            } else {
                ""
            };
            findings.ok(format!(
                "{name}: the daemon serves it in {mode} mode{copies}{checksums}"
            ));
            if let Some(why) = &interface.copies {
                let todo =
                    "leave zero_copy out of its [[device]], or see what driver and kernel can";
                findings.warn(format!("{name}: {why}"), todo);
            }
            if let Some(why) = &interface.shared {
                let todo = "see its rules and table (ethtool -n, -x), or leave own_queue out of \
                            its [[device]]";
                findings.warn(format!("{name}: {why}"), todo);
            }
            if let Some(why) = &interface.unled {
                let todo = "see the physical function's rules (ethtool -n), or leave \
                            physical_rules out of its [[device]]";
                let told = format!("{name}: no rules elsewhere lead to it: {why}");
                findings.warn(told, todo);
            }
            if let Some(condition) = &interface.condition {
                findings.warn(format!("{name}: it needs more"), condition);
            }
        }
        (None, None) => findings.ok(format!("{name}: the daemon will open it when it is needed")),
    }
}

/// Lines as one, for a table.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" / ")
}
