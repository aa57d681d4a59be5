//! Copies of the memfds that accelerated programs hold: stack images and process reports.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bypass_proto::report::{self, REPORT_BYTES, ReportView};
use bypass_runtime::image;
use rustix::fs::{MemfdFlags, Mode, OFlags, fstat, memfd_create};
use zerocopy::IntoBytes;

use super::process;

/// A memfd of ours that some process holds.
#[derive(Debug)]
pub struct Held {
    /// A process that holds it.
    pub pid: u32,
    path: PathBuf,
    inode: u64,
}

impl Held {
    /// Opens the file again for reading, if the descriptor still is that file.
    fn open(&self) -> Option<File> {
        let file = reopen(&self.path, OFlags::RDONLY)?;
        let same = file.metadata().ok()?.ino() == self.inode;
        same.then_some(file)
    }

    /// A copy of a stack image.
    pub fn read_image(&self) -> Option<ImageCopy> {
        let file = self.open()?;
        let mut header = [0_u64; 2];
        file.read_exact_at(header.as_mut_bytes(), 0).ok()?;
        Some(ImageCopy {
            id: header[1],
            stack: image::copy_stack(&file).ok()?,
        })
    }

    fn read_report(&self) -> Option<ReportView> {
        let mut bytes = Vec::new();
        let file = self.open()?;
        file.take(REPORT_BYTES as u64)
            .read_to_end(&mut bytes)
            .ok()?;
        ReportView::read(&bytes).ok()
    }
}

/// A stack image as it was when it was copied.
#[derive(Debug)]
pub struct ImageCopy {
    /// The image's random identity.
    pub id: u64,
    stack: Vec<u8>,
}

impl ImageCopy {
    /// The stack's bytes.
    pub fn stack(&self) -> &[u8] {
        &self.stack
    }

    /// The identity as everything prints it.
    pub fn name(&self) -> String {
        format!("{:016x}", self.id)
    }
}

/// The device on which all memfds are, and nothing else.
pub fn memfd_device() -> u64 {
    static DEVICE: OnceLock<u64> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let probe = memfd_create("bypass-probe", MemfdFlags::CLOEXEC);
        probe.and_then(fstat).map_or(0, |stat| stat.st_dev)
    })
}

/// Opens again what a link in `/proc/PID/fd` leads to, if that is a memfd.
///
/// Its name proves nothing: in a mount namespace of his own a user can give it to any file that he
/// can see, and opening a device or a file of FUSE may do anything.
pub fn reopen(link: &Path, mode: OFlags) -> Option<File> {
    let place = rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    if fstat(&place).ok()?.st_dev != memfd_device() {
        return None;
    }
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let file = rustix::fs::open(path, mode | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some(file.into())
}

/// Memfds with this name that these processes hold, each once, with the first holder.
pub fn memfds(name: &str, pids: &[u32]) -> Vec<Held> {
    let wanted = format!("/memfd:{name} (deleted)");
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for &pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if fs::read_link(&path).is_ok_and(|target| target.as_os_str() == wanted.as_str())
                && let Ok(facts) = fs::metadata(&path)
                && seen.insert((facts.dev(), facts.ino()))
            {
                found.push(Held {
                    pid,
                    path,
                    inode: facts.ino(),
                });
            }
        }
    }
    found
}

/// The reports of these processes: process id as seen from here, and what it says. A report that
/// a process holds only because it was inherited is its parent's and left out.
pub fn reports(pids: &[u32]) -> Vec<(u32, ReportView)> {
    let mut found = Vec::new();
    for &pid in pids {
        for held in memfds(report::NAME, &[pid]) {
            let Some(view) = held.read_report() else {
                continue;
            };
            if Some(view.header.pid) == process::own_pid(pid) {
                found.push((pid, view));
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use bypass_proto::report::{Header, Report};

    fn memfd(name: &str, content: &[u8]) -> File {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.write_all_at(content, 0).expect("room");
        file
    }

    fn own() -> u32 {
        std::process::id()
    }

    #[test]
    fn a_report_is_found_and_one_of_another_process_is_not() {
        let mut words = vec![0_u64; REPORT_BYTES / 8];
        Report::create(words.as_mut_bytes(), Header::new(own() + 1, 0, "parent")).expect("room");
        let _inherited = memfd(report::NAME, words.as_bytes());
        let _garbage = memfd(report::NAME, b"garbage");
        assert!(reports(&[own()]).is_empty());
        Report::create(words.as_mut_bytes(), Header::new(own(), 0, "own")).expect("room");
        let _own = memfd(report::NAME, words.as_bytes());
        let found = reports(&[own()]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.header.program_text(), "own");
    }

    #[test]
    fn only_memfds_are_opened_again() {
        let file = memfd("bypass-test", b"x");
        let null = File::open("/dev/null").expect("null");
        let opened = [&file, &null].map(|fd| {
            let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
            reopen(Path::new(&link), OFlags::RDWR).is_some()
        });
        assert_eq!(opened, [true, false]);
    }

    #[test]
    fn images_of_any_size_are_copied_or_refused() {
        let name = "bypass-image-test";
        let _small = memfd(name, &[7; 100]);
        let file = memfd(name, &[7; image::STACK_OFFSET + bypass_stack::HEAD_BYTES]);
        file.set_len(1 << 40).expect("a hole");
        let found = memfds(name, &[own()]);
        let copies: Vec<_> = found.iter().filter_map(Held::read_image).collect();
        assert_eq!((found.len(), copies.len()), (2, 1));
        // It is none: its head is all that is looked at.
        assert!(copies[0].stack() == [7; bypass_stack::HEAD_BYTES]);
        assert_eq!(copies[0].name(), "0707070707070707");
        drop(file);
        assert!(found.iter().filter_map(Held::read_image).next().is_none());
    }

    #[test]
    fn an_image_is_copied_as_it_is() {
        let capacities = bypass_stack::Capacities {
            endpoints: 100,
            chunks: 1000,
            chunk_size: 2048,
        };
        let (fd, _image) = image::Image::create(capacities, 0x17).expect("memory");
        let file = File::from(fd);
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).expect("readable");
        let stack = bytes.split_off(image::STACK_OFFSET);
        let found = memfds(image::NAME, &[own()]);
        let copies = found.iter().filter_map(Held::read_image);
        let copy = copies.into_iter().find(|copy| copy.id == 0x17);
        assert!(copy.expect("found").stack() == stack);
    }
}
