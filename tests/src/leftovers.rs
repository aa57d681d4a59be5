//! What the bypass must not leave behind: processes, an attached XDP program, memory files.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use crate::testbed::{Side, Testbed};
use crate::{daemon, paths};

/// Everything that is still there, in words. Empty means: nothing is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers(pub Vec<String>);

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("nothing")
        } else {
            f.write_str(&self.0.join("; "))
        }
    }
}

impl Leftovers {
    /// Looks inside a living test bed whose programs have all ended.
    #[must_use]
    pub fn in_testbed(bed: &Testbed) -> Self {
        let mut found = Vec::new();
        for side in [Side::Server, Side::Client] {
            for pid in bed.processes(side) {
                found.push(format!("process {pid} ({})", command_line(pid)));
                found.extend(memory_files(pid));
            }
            let links = bed.ip(side, &["-j", "link", "show"]).unwrap_or_default();
            let links: serde_json::Value = serde_json::from_str(&links).unwrap_or_default();
            for link in links.as_array().into_iter().flatten() {
                if link["xdp"].is_object() {
                    found.push(format!("XDP program on {}", link["ifname"]));
                }
            }
        }
        Self(found)
    }

    /// As [`Leftovers::in_testbed`], but gives the daemon `limit` to become idle, and tells it to
    /// leave then. (By itself it would 2 s later, as in `faults::two_pid_namespaces`.)
    #[must_use]
    pub fn after(bed: &Testbed, limit: Duration) -> Self {
        let deadline = Instant::now() + limit;
        loop {
            let left = Self::in_testbed(bed);
            if left.0.is_empty() || Instant::now() >= deadline {
                return left;
            }
            if bed.processes(Side::Server).into_iter().all(is_idle_daemon) {
                daemon::stop_all(bed);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Looks for what survives a removed test bed: its namespaces and its folder.
    #[must_use]
    pub fn of_removed(namespaces: &[String], folder: &std::path::Path) -> Self {
        let mut found: Vec<String> = namespaces
            .iter()
            .filter(|name| fs::exists(format!("/run/netns/{name}")).unwrap_or(false))
            .map(|name| format!("namespace {name}"))
            .collect();
        if folder.exists() {
            found.push(format!("folder {}", folder.display()));
        }
        Self(found)
    }
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

/// What the descriptors of a process lead to.
fn descriptors(pid: u32) -> Vec<String> {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    fds.flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

fn is_ours(target: &str) -> bool {
    target.starts_with("/memfd:bypass-")
}

/// The memory files of ours that a process holds.
fn memory_files(pid: u32) -> Vec<String> {
    let all = descriptors(pid).into_iter();
    all.filter(|target| is_ours(target))
        .map(|target| format!("memory file {target} in {pid}"))
        .collect()
}

/// Whether a process is a daemon that has no stack, no filter and watches no program.
fn is_idle_daemon(pid: u32) -> bool {
    let is_in_use =
        |target: &String| is_ours(target) || target.contains("[pidfd]") || target.contains("bpf");
    let all = descriptors(pid);
    daemon::runs(pid, &paths::bypassctl()) && !all.is_empty() && !all.iter().any(is_in_use)
}
