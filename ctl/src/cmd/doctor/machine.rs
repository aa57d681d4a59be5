//! Tests of kernel, privileges and limits.

use std::fs;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, getrlimit};

use super::{Findings, facts};

/// Oldest kernel whose AF_XDP has all that is used (bpf_link for XDP, need-wakeup).
const OLDEST: (u32, u32) = (6, 1);
/// Oldest kernel on which the tests of this project have run.
const TESTED: (u32, u32) = (6, 18);
/// Packet memory of one stack with the default limits, in bytes.
const PACKET_MEMORY: u64 = 32 << 20;

/// Capabilities that the daemon uses: number, name. (CAP_BPF and CAP_PERFMON are in SYS_ADMIN.)
const CAPABILITIES: [(u32, &str); 7] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
];
/// `CAP_IPC_LOCK`: locked memory without limit.
const IPC_LOCK: u32 = 14;

pub(super) fn test(findings: &mut Findings) {
    kernel(findings);
    let held = capabilities();
    privileges(held, findings);
    af_xdp(held, findings);
    bpf(findings);
    memlock(held, findings);
}

fn kernel(findings: &mut Findings) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let what = format!("kernel {release}");
    match version(release) {
        version if version < OLDEST => {
            findings.fail(what, "use Linux 6.1 or newer (6.18 is tested)")
        }
        version if version < TESTED => findings.warn(what, "Linux 6.18 is what is tested"),
        _ => findings.ok(what),
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Effective capabilities as a bit mask.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn has(held: u64, number: u32) -> bool {
    held >> number & 1 == 1
}

fn privileges(held: u64, findings: &mut Findings) {
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(number, _)| !has(held, *number))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        findings.ok("capabilities: all that the daemon needs");
    } else {
        findings.warn(
            format!("capabilities: no {}", missing.join(", ")),
            "you are served by a daemon that root has started; as root this tests more",
        );
    }
}

fn af_xdp(held: u64, findings: &mut Findings) {
    match socket_with(
        AddressFamily::XDP,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    ) {
        Ok(_) => findings.ok("AF_XDP: sockets can be made"),
        Err(Errno::PERM) if !has(held, 13) => {
            findings.warn(
                "AF_XDP: not tested, needs CAP_NET_RAW",
                "run bypassctl doctor as root",
            );
        }
        Err(Errno::AFNOSUPPORT) => {
            findings.fail(
                "AF_XDP: this kernel has none",
                "use one with CONFIG_XDP_SOCKETS=y",
            );
        }
        Err(errno) => findings.fail(
            format!("AF_XDP: no socket: {errno}"),
            "look for a seccomp or LSM policy that forbids it",
        ),
    }
}

fn bpf(findings: &mut Findings) {
    match facts::bpf() {
        Ok(()) => findings.ok("BPF: maps can be made"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            findings.warn(
                "BPF: not tested, needs CAP_BPF",
                "run bypassctl doctor as root",
            );
        }
        Err(error) => findings.fail(
            format!("BPF: no map: {error}"),
            "use a kernel with CONFIG_BPF_SYSCALL=y, and no policy that forbids bpf()",
        ),
    }
}

/// Packet memory is charged to RLIMIT_MEMLOCK of whoever registers it.
fn memlock(held: u64, findings: &mut Findings) {
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        _ if has(held, IPC_LOCK) => findings.ok("locked memory: no limit (CAP_IPC_LOCK)"),
        None => findings.ok("locked memory: no limit"),
        Some(bytes) if bytes >= PACKET_MEMORY => {
            findings.ok(format!("locked memory: {} MiB", bytes >> 20));
        }
        Some(bytes) => findings.warn(
            format!(
                "locked memory: {} KiB, too few for a daemon of this user",
                bytes >> 10
            ),
            "start the daemon as root, or with LimitMEMLOCK=infinity",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), (6, 1));
        assert_eq!(version("5.10-rc1"), (5, 10));
        assert_eq!(version("odd"), (0, 0));
    }
}
