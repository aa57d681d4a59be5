//! Rules that accelerated packets do not pass: iptables and nftables.

use std::collections::BTreeMap;
use std::fs;

use bypass_backends::netlink;
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::Findings;

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
    match nft_rules() {
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

/// Count of nftables rules by table: nfnetlink, linux/netfilter/nf_tables.h.
fn nft_rules() -> Result<BTreeMap<String, usize>, Errno> {
    /// Subsystem nftables, `NFT_MSG_NEWRULE` and `NFT_MSG_GETRULE`.
    const NEW_RULE: u16 = 10 << 8 | 6;
    const GET_RULE: u16 = 10 << 8 | 7;
    /// Bytes of `struct nfgenmsg`.
    const FIXED: usize = 4;
    /// `NFTA_RULE_TABLE`.
    const TABLE: u16 = 1;
    let mut tables = BTreeMap::new();
    netlink::dump(Some(NETFILTER), GET_RULE, &[0; FIXED], |message| {
        let rule = message
            .body
            .get(FIXED..)
            .filter(|_| message.kind == NEW_RULE);
        if let Some(table) = rule.and_then(|rule| netlink::find(rule, TABLE)) {
            *tables.entry(netlink::text(table)).or_default() += 1;
        }
    })?;
    Ok(tables)
}
