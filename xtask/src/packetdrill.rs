//! `cargo xtask packetdrill PATH`: packetdrill's own scripts against the stack, and their outcome
//! in docs/conformance.md.
//!
//! PATH is a checkout of packetdrill that has been built (`./configure && make packetdrill` in its
//! `gtests/net/packetdrill`, with bison and flex). Nothing of it is in this repository: the scripts
//! are named, and `tests/packetdrill/reasons.txt` says why some fail. Each runs over IPv4 in a
//! network namespace of its own, whose settings it changes; needs root.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bypass_tests::{Result, paths};

use crate::build::cargo;
use crate::progress::step;

/// The file with the outcome, and the lines between which it stands.
const DOCUMENT: &str = "docs/conformance.md";
const BEGIN: &str = "<!-- cargo xtask packetdrill: begin -->\n";
const END: &str = "<!-- cargo xtask packetdrill: end -->\n";
/// Seconds that a script may take; its clock is virtual.
const LIMIT: &str = "20";
/// The namespace of a script: the addresses that its arguments name, ours or its own.
const NAMESPACE: &str = "ip link set lo up && ip tuntap add tun0 mode tun \
    && ip addr add 192.168.0.1/16 dev tun0 && ip addr add 192.168.0.2/16 dev tun0 \
    && ip addr add 192.168.0.3/16 dev tun0 && ip link set tun0 up \
    && ip route add 192.0.2.0/24 via 192.168.0.9 dev tun0 onlink \
    && ip route add 10.248.0.0/16 via 192.168.0.9 dev tun0 onlink && exec \"$@\"";
/// packetdrill's arguments, as its own runner has them for IPv4.
const ARGUMENTS: [&str; 15] = [
    "--ip_version=ipv4",
    "--local_ip=192.168.0.1",
    "--gateway_ip=192.168.0.1",
    "--netmask_ip=255.255.0.0",
    "--remote_ip=192.0.2.1",
    "-D",
    "TFO_COOKIE=3021b9d889017eeb",
    "-D",
    "CODE=host_unreachable",
    "-D",
    "CMSG_LEVEL_IP=SOL_IP",
    "-D",
    "CMSG_TYPE_RECVERR=IP_RECVERR",
    "--tolerance_usecs=20000",
    "--send_omit_free",
];

/// Runs every script whose name contains `only`; writes the outcome when that is all of them and it
/// is what `reasons.txt` says.
///
/// # Errors
/// When packetdrill is not there, or an outcome is not what `reasons.txt` says.
pub(crate) fn run(checkout: &Path, only: Option<&str>) -> Result<()> {
    let program = checkout.join("gtests/net/packetdrill/packetdrill");
    let corpus = checkout.join("gtests/net/tcp");
    if !program.exists() {
        return Err(format!("{} is missing: build packetdrill there", program.display()).into());
    }
    let library = build()?;
    let mut failed = BTreeMap::new();
    let mut count = 0;
    let mut names = Vec::new();
    scripts(&corpus, &corpus, &mut names)?;
    names.sort();
    for name in &names {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        count += 1;
        if let Some(why) = one(&program, &library, &corpus.join(name))? {
            println!("{name}: {why}");
            failed.insert(name.clone(), why);
        }
    }
    println!("{} of {count} scripts pass", count - failed.len());
    let reasons = reasons()?;
    let surprises = surprises(&names, &failed, &reasons, only);
    if !surprises.is_empty() {
        return Err(surprises.join("\n").into());
    }
    if only.is_none() {
        write(&outcome(count, &failed, &reasons, &version(checkout)?))?;
    }
    Ok(())
}

/// The checkout's newest commit and its day.
fn version(checkout: &Path) -> Result<String> {
    let output = Command::new("git")
        .args(["log", "-1", "--format=%h of %cs"])
        .current_dir(checkout)
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The library that packetdrill loads.
fn build() -> Result<PathBuf> {
    step("building libbypass_packetdrill.so", || {
        let arguments = ["build", "--quiet", "--release", "-p", "bypass-packetdrill"];
        if cargo().args(arguments).status()?.success() {
            Ok(paths::target().join("release/libbypass_packetdrill.so"))
        } else {
            Err("the build failed".into())
        }
    })
}

/// The scripts below a folder, by their path in the corpus; not those for IPv6 only.
fn scripts(corpus: &Path, folder: &Path, into: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            scripts(corpus, &path, into)?;
        } else if let Ok(name) = path.strip_prefix(corpus)
            && let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".pkt"))
            && !name.ends_with("v6")
        {
            into.push(format!("{name}.pkt"));
        }
    }
    Ok(())
}

/// Runs one script: why it has failed, if it has.
fn one(program: &Path, library: &Path, script: &Path) -> Result<Option<String>> {
    let mut preload = std::ffi::OsString::from("LD_PRELOAD=");
    preload.push(library);
    let mut so = std::ffi::OsString::from("--so_filename=");
    so.push(library);
    // Ours would go before those of the script.
    let text = fs::read_to_string(script)?;
    let is_own = |argument: &str| {
        let name = argument.split_once('=').map_or(argument, |(name, _)| name);
        text.lines().any(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        })
    };
    let arguments = ARGUMENTS.into_iter().filter(|argument| !is_own(argument));
    let output = Command::new("unshare")
        .args([
            "--net", "sh", "-c", NAMESPACE, "sh", "timeout", LIMIT, "env",
        ])
        .arg(preload)
        .arg(program)
        .arg(so)
        .args(arguments)
        .arg(script)
        .current_dir(script.parent().unwrap_or(script))
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(None);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = errors.lines().rev().find(|line| !line.trim().is_empty());
    Ok(Some(said.unwrap_or("no word").trim().to_owned()))
}

/// Why scripts fail: the beginning of their names, and the reason.
fn reasons() -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(paths::repository().join("tests/packetdrill/reasons.txt"))?;
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, why) = line.split_once(": ").ok_or("a line without a reason")?;
            Ok((name.to_owned(), why.to_owned()))
        })
        .collect()
}

fn reason<'a>(reasons: &'a [(String, String)], name: &str) -> Option<&'a (String, String)> {
    reasons
        .iter()
        .find(|(known, _)| name.starts_with(known.as_str()))
}

/// Failures without a reason, and reasons of scripts that pass.
fn surprises(
    names: &[String],
    failed: &BTreeMap<String, String>,
    reasons: &[(String, String)],
    only: Option<&str>,
) -> Vec<String> {
    let unknown = failed
        .iter()
        .filter(|(name, _)| reason(reasons, name).is_none())
        .map(|(name, _)| format!("{name} fails without a reason in reasons.txt"));
    let idle = reasons
        .iter()
        .filter(|_| only.is_none())
        .filter(|known| {
            let named = |name: &&String| reason(reasons, name) == Some(known);
            !names
                .iter()
                .filter(named)
                .any(|name| failed.contains_key(name))
        })
        .map(|(name, _)| format!("{name} has a reason and does not fail"));
    unknown.chain(idle).collect()
}

/// The outcome in Markdown.
fn outcome(
    count: usize,
    failed: &BTreeMap<String, String>,
    reasons: &[(String, String)],
    version: &str,
) -> String {
    let mut text = format!(
        "packetdrill {version}: {} of {count} scripts of its `gtests/net/tcp` pass. The others:\n\n\
         | scripts | how many | why |\n|---|---|---|\n",
        count - failed.len()
    );
    for known in reasons {
        let with = failed
            .keys()
            .filter(|name| reason(reasons, name) == Some(known));
        let _ = writeln!(text, "| {} | {} | {} |", known.0, with.count(), known.1);
    }
    text
}

/// Puts the outcome into the document.
fn write(outcome: &str) -> Result<()> {
    let path = paths::repository().join(DOCUMENT);
    let text = fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(BEGIN).ok_or("no place for the outcome")?;
    let (_, behind) = rest.split_once(END).ok_or("no end of the outcome")?;
    fs::write(path, format!("{before}{BEGIN}{outcome}{END}{behind}"))?;
    Ok(())
}
