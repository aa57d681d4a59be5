//! The report of a program (`bypass_proto::report`): which of its descriptors is which endpoint.
//!
//! It is the program's word: what a descriptor is is checked again when it is used. The daemon
//! writes into it what it has done to a socket, so that `bypassctl explain` tells of it before the
//! program itself has noticed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use bypass_proto::reason::FallThrough;
use bypass_proto::report::{CAPACITY, Header, NAME, PROBE, Record, ReportView, State};
use bypass_stack::EndpointId;
use rustix::fs::OFlags;
use zerocopy::{FromZeros, IntoBytes};

use crate::source::reopen;

/// Largest report that is read.
const MOST: u64 = bypass_proto::report::REPORT_BYTES as u64;

/// The report of one program.
#[derive(Debug)]
pub(super) struct Report {
    file: File,
}

impl Report {
    /// The report of a process; `None` when it has none.
    pub(super) fn of(pid: u32, start_time: u64) -> Option<Self> {
        let wanted = format!("/memfd:{NAME} (deleted)");
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let is_one = |path: &std::path::Path| {
            fs::read_link(path).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        };
        let paths = entries.map(|entry| entry.path());
        // A forked child may have its parent's beside its own.
        paths.filter(|path| is_one(path)).find_map(|path| {
            let report = Self {
                file: reopen(&path, OFlags::RDWR)?,
            };
            (report.view()?.header.start_time == start_time).then_some(report)
        })
    }

    /// A copy of it.
    pub(super) fn view(&self) -> Option<ReportView> {
        let length = self.file.metadata().ok()?.len().min(MOST);
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        ReportView::read(&bytes).ok()
    }

    /// Whether the descriptor is said to be this endpoint's, now.
    pub(super) fn leads_to(&self, fd: i32, endpoint: EndpointId) -> bool {
        self.find(fd).is_some_and(|(_, record)| {
            (record.endpoint_index, record.endpoint_generation)
                == (endpoint.index, endpoint.generation)
        })
    }

    /// Notes who serves a descriptor: the kernel for a reason, or the stack.
    pub(super) fn tell(&self, fd: i32, reason: Option<FallThrough>) {
        if let Some((at, mut record)) = self.find(fd) {
            let state = reason.map_or(State::Accelerated, |_| State::Kernel);
            record.state = state as u8;
            record.reason = reason.map_or(0, |reason| reason as u8);
            record.errno = 0;
            // Without it the tool shows the old reason.
            let _ = self.file.write_all_at(record.as_bytes(), at);
        }
    }

    /// The record of a descriptor and its place in the file.
    fn find(&self, fd: i32) -> Option<(u64, Record)> {
        let home = usize::try_from(fd).ok()? % CAPACITY;
        (home..home + PROBE).find_map(|index| {
            let at = (size_of::<Header>() + index % CAPACITY * size_of::<Record>()) as u64;
            let mut record = Record::new_zeroed();
            self.file.read_exact_at(record.as_mut_bytes(), at).ok()?;
            (record.state().is_some() && record.fd == fd).then_some((at, record))
        })
    }
}
