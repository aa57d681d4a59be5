//! Rules that accelerated packets do not pass: iptables and nftables.

use std::fs;

use rustix::io::Errno;

use super::{Findings, netlink};

const TODO: &str = "accelerated packets skip such rules: keep ports that need them in the kernel by a \
                    rule of bypass.toml";

pub(super) fn test(findings: &mut Findings) {
    for (file, tool) in [
        ("ip_tables_names", "iptables"),
        ("ip6_tables_names", "ip6tables"),
    ] {
        let tables = fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
        let tables: Vec<&str> = tables.split_whitespace().collect();
        if !tables.is_empty() {
            findings.warn(
                format!("firewall: {tool} has tables: {}", tables.join(", ")),
                TODO,
            );
        }
    }
    match netlink::nft_rules() {
        Ok(tables) if tables.is_empty() => findings.ok("firewall: no nftables rules"),
        Ok(tables) => {
            let rules: usize = tables.values().sum();
            let names: Vec<&str> = tables.keys().map(String::as_str).collect();
            findings.warn(
                format!("firewall: {rules} nftables rules in {}", names.join(", ")),
                TODO,
            );
        }
        Err(Errno::PERM) => {
            findings.warn(
                "firewall: nftables not tested",
                "run bypassctl doctor as root",
            );
        }
        // A kernel without nftables (or its module not loaded) has no rules.
        Err(_) => findings.ok("firewall: no nftables in this kernel"),
    }
}
