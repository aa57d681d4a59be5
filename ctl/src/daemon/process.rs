//! What /proc says of a process.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{fstat, major, minor};

use super::proc_text;
use crate::source::memfd_device;

/// A process as the daemon knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    /// In the daemon's pid namespace; 0 = not visible from it.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat; tells two processes with one pid apart.
    pub start_time: u64,
    /// Effective user.
    pub uid: u32,
    /// Effective group and supplementary groups.
    pub gids: Vec<u32>,
    /// Path of the program; a name in brackets when it has none.
    pub program: String,
}

impl Process {
    /// Looks a process up. `None` when it is gone (a zombie is).
    pub(super) fn find(pid: u32) -> Option<Self> {
        let (start_time, name) = start_time(pid)?;
        let status = text(format!("/proc/{pid}/status"))?;
        let numbers = |field| proc_text::numbers(&status, field);
        let uid = *numbers("Uid:").get(1)?;
        let mut gids: Vec<u32> = numbers("Gid:").get(1).copied().into_iter().collect();
        gids.extend(numbers("Groups:"));
        let program = fs::read_link(format!("/proc/{pid}/exe"))
            .map_or_else(|_| format!("[{name}]"), |path| path_text(&path));
        Some(Self {
            pid,
            start_time,
            uid,
            gids,
            program,
        })
    }

    /// Name of the program without its folder.
    pub(super) fn name(&self) -> &str {
        self.program.rsplit('/').next().unwrap_or_default()
    }
}

fn path_text(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    text.strip_suffix(" (deleted)").unwrap_or(&text).to_owned()
}

/// Start time and name of a living process or thread.
pub(super) fn start_time(pid: u32) -> Option<(u64, String)> {
    let text = text(format!("/proc/{pid}/stat"))?;
    let stat = proc_text::stat(&text)?;
    let is_dead = matches!(stat.state, "Z" | "X" | "x");
    (!is_dead).then(|| (stat.start_time, stat.name.to_owned()))
}

/// A file of `/proc`. Names in it are whatever programs have made them: cut off in the middle of a
/// character, for one.
fn text(path: String) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The process that has forked this one, or whoever has inherited it.
pub(super) fn parent(pid: u32) -> Option<u32> {
    let text = text(format!("/proc/{pid}/stat"))?;
    proc_text::stat(&text).map(|stat| stat.parent)
}

/// Every process but this one.
pub(super) fn others() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|pid| *pid != std::process::id())
}

/// Inodes of the stack images that a process has mapped now. An exec leaves none.
pub(super) fn mapped_images(pid: u32) -> Vec<u64> {
    let maps = text(format!("/proc/{pid}/maps")).unwrap_or_default();
    let wanted = format!("/memfd:{}", bypass_runtime::image::NAME);
    let device = memfd_device();
    let memfds = format!("{:02x}:{:02x}", major(device), minor(device));
    proc_text::mapped(&maps, &wanted, &memfds)
}

/// Identity of an open file inside its file system.
pub(super) fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).map_or(0, |stat| stat.st_ino)
}

/// The calling thread's network namespace, and that of a process, as inode numbers.
pub(super) fn own_namespace() -> Option<u64> {
    namespace("/proc/thread-self/ns/net".into())
}

/// See [`own_namespace`].
pub(super) fn namespace_of(pid: u32) -> Option<u64> {
    namespace(format!("/proc/{pid}/ns/net").into())
}

fn namespace(path: PathBuf) -> Option<u64> {
    rustix::fs::stat(path).ok().map(|stat| stat.st_ino)
}

/// Whether a process numbers processes as the daemon does.
pub(super) fn shares_pids(pid: u32) -> bool {
    let own = namespace("/proc/self/ns/pid".into());
    namespace(format!("/proc/{pid}/ns/pid").into()) == own
}

/// Whether two processes are known to number processes differently. One that is gone is not.
pub(super) fn differ_in_pids(one: u32, two: u32) -> bool {
    let of = |pid| namespace(format!("/proc/{pid}/ns/pid").into());
    of(one).zip(of(two)).is_some_and(|(one, two)| one != two)
}

/// The daemon's number of a child of `parent`, which `parent` itself numbers `pid`.
pub(super) fn child_of(parent: u32, pid: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten();
    let children = tasks.flat_map(|task| {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect::<Vec<u32>>()
    });
    let mut children = children;
    // From the outermost namespace to the innermost.
    let names = |child: &u32| {
        let status = text(format!("/proc/{child}/status")).unwrap_or_default();
        let numbers = proc_text::numbers(&status, "NSpid:");
        numbers.iter().skip(1).any(|number| *number == pid)
    };
    children.find(names)
}

/// Name of a user, from /etc/passwd.
pub(super) fn user_name(uid: u32) -> Option<String> {
    name_in("/etc/passwd", uid)
}

/// Name of a group, from /etc/group.
pub(super) fn group_name(gid: u32) -> Option<String> {
    name_in("/etc/group", gid)
}

/// Both files: name, password, number, then whatever.
fn name_in(path: &str, number: u32) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use bypass_runtime::image::NAME;
    use bypass_runtime::map::Mapping;
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_process_may_call_itself_anything() {
        let named = std::thread::spawn(|| {
            fs::write("/proc/thread-self/comm", b"a) \xff(\xc3").expect("any name");
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            start_time(thread.cast_unsigned()).expect("it lives").1
        });
        assert_eq!(named.join().expect("thread"), "a) \u{fffd}(\u{fffd}");
    }

    #[test]
    fn only_memfds_are_images() {
        let image = memfd_create(NAME, MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&image, 4096).expect("size");
        let path = std::env::temp_dir().join(format!("memfd:{NAME}.{}", std::process::id()));
        let forged = fs::File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .expect("file");
        fs::remove_file(&path).expect("removed");
        forged.set_len(4096).expect("size");
        let forged = forged.into();
        let _mapped = [&image, &forged].map(|fd| Mapping::new(fd, false).expect("mapping"));
        let found = mapped_images(std::process::id());
        assert!(found.contains(&inode(&image)) && !found.contains(&inode(&forged)));
    }
}
