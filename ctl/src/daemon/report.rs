//! The report of a program (`bypass_proto::report`): which of its descriptors is which endpoint.
//!
//! It is the program's word: what a descriptor is is checked again when it is used. The daemon
//! writes into it what it has done to a socket, so that `bypassctl explain` tells of it before the
//! program itself has noticed.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bypass_proto::policy::Protocol;
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

/// The descriptors of a process by its folder in /proc, highest first.
fn numbers_from_the_top(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    numbers
}

impl Report {
    /// The report of a process; `None` when it has none. `place`: which descriptor it was when it
    /// was last found, which spares a look at all others.
    pub(super) fn of(pid: u32, start_time: u64, place: &Cell<Option<u32>>) -> Option<Self> {
        let folder = format!("/proc/{pid}/fd");
        // Libraries' own descriptors are above the program's, which are many, and each look costs.
        let numbers = std::iter::once_with(|| numbers_from_the_top(&folder)).flatten();
        let find = |number: u32| {
            let report = Self::at(&folder, number, start_time)?;
            Some((number, report))
        };
        let (number, report) = place.take().into_iter().chain(numbers).find_map(find)?;
        place.set(Some(number));
        Some(report)
    }

    /// The report behind a descriptor. (A forked child may have its parent's beside its own.)
    fn at(folder: &str, number: u32, start_time: u64) -> Option<Self> {
        let path = Path::new(folder).join(number.to_string());
        let wanted = format!("/memfd:{NAME} (deleted)");
        if fs::read_link(&path).ok()?.as_os_str() != wanted.as_str() {
            return None;
        }
        let report = Self {
            file: reopen(&path, OFlags::RDWR)?,
        };
        (report.view()?.header.start_time == start_time).then_some(report)
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
            let is_connection = record.protocol() == Some(Protocol::Tcp) && record.remote_port != 0;
            let is_back = is_connection && reason == Some(FallThrough::Rollback);
            record.may_return = is_back.into();
            // Without it the tool shows the old reason.
            let _ = self.file.write_all_at(record.as_bytes(), at);
        }
    }

    /// Whether the kernel serves the descriptor's connection since a rollback, or because it was
    /// accepted after one.
    pub(super) fn may_return(&self, fd: i32) -> bool {
        self.find(fd).is_some_and(|(_, record)| may_return(&record))
    }

    /// Notes that the stack serves a descriptor, as this endpoint.
    pub(super) fn tell_returned(&self, fd: i32, endpoint: EndpointId) {
        if let Some((at, mut record)) = self.find(fd) {
            record.state = State::Accelerated as u8;
            (record.reason, record.errno, record.may_return) = (0, 0, 0);
            record.endpoint_index = endpoint.index;
            record.endpoint_generation = endpoint.generation;
            // Without it a rollback waits until the program has noticed.
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

/// Whether a record is of a connection that may come (back) to the stack.
pub(super) fn may_return(record: &Record) -> bool {
    record.state() == Some(State::Kernel) && record.may_return == 1
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use bypass_proto::report::{MAGIC, VERSION};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::daemon::process;

    #[test]
    fn a_report_is_found_where_it_was_and_where_it_is_not_any_more() {
        let pid = std::process::id();
        let (start_time, _) = process::start_time(pid).expect("a start time");
        let report = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC).expect("memfd"));
        let mut header = Header::new_zeroed();
        (header.magic, header.version) = (MAGIC, VERSION);
        header.start_time = start_time;
        report.write_all_at(header.as_bytes(), 0).expect("header");
        let number = report.as_raw_fd().cast_unsigned();
        let other = File::open("/dev/null").expect("a file");
        for place in [None, Some(number), Some(other.as_raw_fd().cast_unsigned())] {
            let place = Cell::new(place);
            assert!(Report::of(pid, start_time, &place).is_some());
            assert_eq!(place.get(), Some(number));
            // Another process had the pid then.
            assert!(Report::of(pid, start_time + 1, &place).is_none());
            assert_eq!(place.get(), None);
        }
    }
}
