//! What `/proc` says of processes and users.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Every process of this network namespace that this user may look into, by number.
pub fn in_this_namespace() -> Vec<u32> {
    let own = namespace("thread-self");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| own.is_some() && namespace(&pid.to_string()) == own)
        .collect();
    pids.sort_unstable();
    pids
}

fn namespace(process: &str) -> Option<u64> {
    let facts = fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
    Some(facts.ino())
}

/// Whether there is such a process.
pub fn exists(pid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok()
}

/// The number that a process has in its own pid namespace.
pub fn own_pid(pid: u32) -> Option<u32> {
    status(pid, "NSpid:")?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.to_owned())
}

/// File name of the program, the kernel's name for it where that is hidden, "-" when it is gone. A
/// link by which it was started counts: redis-server is one to redis-check-rdb.
pub fn program(pid: u32) -> String {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok();
    let comm = comm.as_deref().map(String::from_utf8_lossy);
    let comm = comm.as_deref().map(str::trim);
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let name = path.as_deref().and_then(|path| path.file_name()?.to_str());
    match (name, comm) {
        (Some(_), Some(comm)) if path.as_deref().is_some_and(|path| is_link_to(comm, path)) => {
            comm.to_owned()
        }
        (Some(name), _) => name.trim_end_matches(" (deleted)").to_owned(),
        (None, comm) => comm.unwrap_or("-").to_owned(),
    }
}

/// Whether `name` is a link beside the file that leads to it.
fn is_link_to(name: &str, file: &Path) -> bool {
    let plain = !name.is_empty() && !name.contains('/');
    plain && fs::canonicalize(file.with_file_name(name)).is_ok_and(|found| found == *file)
}

/// Whether libbypass.so is loaded; `None` when that may not be seen.
pub fn has_library(pid: u32) -> Option<bool> {
    let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    Some(maps.lines().any(|line| line.contains("/libbypass.so")))
}

/// Name of a user, from /etc/passwd.
pub fn user_name(uid: u32) -> Option<String> {
    users()
        .find(|(_, number)| *number == uid)
        .map(|(name, _)| name)
}

/// Every name and number of /etc/passwd.
pub fn users() -> impl Iterator<Item = (String, u32)> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entries: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        })
        .collect();
    entries.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let own = std::process::id();
        assert!(in_this_namespace().contains(&own) && exists(own));
        assert!(own_pid(own).is_some());
        assert_eq!(has_library(own), Some(false));
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(program(0), "-");
        let shell = fs::canonicalize("/bin/sh").expect("a shell");
        assert!(is_link_to("sh", &shell) && !is_link_to("cat", &shell));
    }
}
