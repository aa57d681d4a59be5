//! The process report: which socket is served by whom and why, for `bypassctl explain`.
//!
//! A memfd that the tool finds through `/proc`. Written only where a decision falls, never on the
//! data path; made at the first socket, so that programs without sockets have none.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: bytes of our own mapping become the report, here only"
)]

use std::cell::Cell;
use std::os::fd::OwnedFd;

use bypass_proto::options::Log;
use bypass_proto::policy::{Protocol, Role};
use bypass_proto::reason::FallThrough;
use bypass_proto::report::{Header, NAME, REPORT_BYTES, Record, Report, State};
use bypass_runtime::map::{Mapping, sealed_memfd};
use bypass_stack::{EndpointId, SocketAddress};
use rustix::io::Errno;

use crate::fdtable::{self, Entry};
use crate::locks::Mutex;
use crate::{config, log, private, process, tcp};

struct Own {
    report: Report<'static>,
    _mapping: Mapping,
    fd: OwnedFd,
}

enum Slot {
    /// No socket yet.
    Unmade,
    /// Memory was refused: nothing is reported.
    Refused,
    Made(Own),
}

static SLOT: Mutex<Slot> = Mutex::new(Slot::Unmade);

fn make() -> Option<Own> {
    let fd = private::hide(sealed_memfd(NAME, REPORT_BYTES).ok()?);
    let mapping = Mapping::new(&fd, true).ok()?;
    // SAFETY: the memfd was made above and the mapping lives beside the reference, in `Own`;
    // readers elsewhere copy and check.
    let bytes = unsafe { std::slice::from_raw_parts_mut(mapping.as_ptr(), mapping.bytes()) };
    let pid = rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned();
    let config = config::get();
    log::complain();
    let mut header = Header::new(pid, start_time(), &config.program);
    match &config.policy {
        Ok(_) => header.set_config(&config.complaints.join("; ")),
        Err(message) => header.set_config(message),
    }
    let report = Report::create(bytes, header).ok()?;
    Some(Own {
        report,
        _mapping: mapping,
        fd,
    })
}

/// This process's start in clock ticks since boot; 0 when /proc does not tell.
fn start_time() -> u64 {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(
        "/proc/self/stat",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let mut text = [0; 1024];
    let length = file
        .and_then(|file| rustix::io::read(&file, &mut text))
        .unwrap_or(0);
    // The name, field 2, may hold anything; behind its ')' state is field 3, the start field 22.
    let behind = text[..length].rsplit(|&byte| byte == b')').next();
    behind
        .and_then(|text| std::str::from_utf8(text).ok())
        .and_then(|text| text.split_ascii_whitespace().nth(19)?.parse().ok())
        .unwrap_or(0)
}

thread_local! {
    /// errno behind the failure that this thread is about to report. No destructor.
    static CAUSE: Cell<i32> = const { Cell::new(0) };
}

/// [`FallThrough::System`], because of this error: the next [`refused`] of this thread tells it.
pub fn because(errno: Errno) -> FallThrough {
    CAUSE.set(errno.raw_os_error());
    FallThrough::System
}

/// A decision begins: what [`because`] has noted until now belongs to something else.
pub fn begin() {
    CAUSE.set(0);
}

/// What [`because`] has noted on this thread.
pub fn cause() -> i32 {
    CAUSE.get()
}

/// The error behind a reason, where there is one.
fn take_cause(reason: FallThrough) -> i32 {
    let errno = CAUSE.replace(0);
    match reason {
        FallThrough::System | FallThrough::NoDaemon => errno,
        _ => 0,
    }
}

/// Runs `change` on the report, making it at the first use.
fn with(change: impl FnOnce(&mut Report<'static>)) {
    let _guard = process::no_fork();
    let mut slot = SLOT.lock();
    if matches!(*slot, Slot::Unmade) {
        *slot = make().map_or(Slot::Refused, Slot::Made);
    }
    if let Slot::Made(own) = &mut *slot {
        change(&mut own.report);
    }
}

/// A new socket and why the kernel serves it so far.
///
/// `domain` is an `AF_*`.
pub fn born(fd: i32, reason: FallThrough, protocol: u8, domain: i32) {
    with(|report| {
        report.header().count(reason);
        let record = Record {
            fd,
            state: State::Kernel as u8,
            reason: reason as u8,
            rule: -1,
            protocol,
            family: if domain == libc::AF_INET6 { 6 } else { 4 },
            ..Record::default()
        };
        if reason != FallThrough::Undecided {
            // It is the kernel's for good: nothing else will tell of it.
            log::refused(format_args!("{}", Told(&record)), reason, 0);
        }
        report.insert(record);
    });
}

/// What the policy has said; `reason` is `None` for "accelerate".
pub fn note(
    fd: i32,
    reason: Option<FallThrough>,
    rule: Option<usize>,
    protocol: u8,
    role: Role,
    addresses: Option<(SocketAddress, Option<SocketAddress>)>,
) {
    with(|report| {
        // Until its first use a socket that will be accelerated is the kernel's, undecided.
        let reason = reason.unwrap_or(FallThrough::Undecided);
        report.header().count(reason);
        let mut record = Record {
            fd,
            state: State::Kernel as u8,
            reason: reason as u8,
            family: report.find(fd).map_or(0, |born| born.family),
            rule: rule.and_then(|rule| i16::try_from(rule).ok()).unwrap_or(-1),
            protocol,
            role: role as u8,
            ..Record::default()
        };
        if let Some((local, remote)) = addresses {
            place(&mut record, local, remote);
        }
        if reason != FallThrough::Undecided {
            log::refused(format_args!("{}", Told(&record)), reason, 0);
        }
        report.insert(record);
    });
}

fn place(record: &mut Record, local: SocketAddress, remote: Option<SocketAddress>) {
    (record.local, record.local_port) = (local.ip.0, local.port);
    let remote = remote.unwrap_or(SocketAddress::UNSPECIFIED);
    (record.remote, record.remote_port) = (remote.ip.0, remote.port);
    if record.family == 0 {
        // Not made by a call that we saw.
        let is_v4 = local.ip.is_v4() || remote.ip.is_v4();
        record.family = if is_v4 { 4 } else { 6 };
    }
}

/// A connection that an accelerated listener has accepted.
pub fn accepted(fd: i32, endpoint: EndpointId, local: SocketAddress, remote: SocketAddress) {
    with(|report| {
        report.header().accelerated += 1;
        let mut record = Record {
            fd,
            state: State::Accelerated as u8,
            rule: -1,
            protocol: 6,
            role: Role::Listen as u8,
            endpoint_index: endpoint.index,
            endpoint_generation: endpoint.generation,
            ..Record::default()
        };
        place(&mut record, local, Some(remote));
        report.insert(record);
    });
}

/// The socket is accelerated now.
pub fn accelerated(fd: i32, endpoint: EndpointId) {
    with(|report| {
        report.header().accelerated += 1;
        if let Some(record) = report.find(fd) {
            record.state = State::Accelerated as u8;
            record.reason = 0;
            record.errno = 0;
            record.may_return = 0;
            record.endpoint_index = endpoint.index;
            record.endpoint_generation = endpoint.generation;
            log::at(Log::Info, format_args!("{}: accelerated", Told(record)));
        }
    });
}

/// The socket stays with the kernel (again), and why.
pub fn refused(fd: i32, reason: FallThrough) {
    let errno = take_cause(reason);
    with(|report| {
        report.header().count(reason);
        if let Some(record) = report.find(fd) {
            record.state = State::Kernel as u8;
            record.reason = reason as u8;
            record.errno = errno;
            record.may_return = 0;
            record.endpoint_generation = 0;
            log::refused(format_args!("{}", Told(record)), reason, errno);
        }
    });
}

/// A connection has become the kernel's by somebody else's doing, of which the daemon may have said
/// why.
pub fn left(fd: i32, was: EndpointId, why: FallThrough) {
    let mut is_told = true;
    with(|report| {
        if let Some(record) = report.find(fd) {
            let now = (record.endpoint_index, record.endpoint_generation);
            is_told =
                record.state != State::Accelerated as u8 || now != (was.index, was.generation);
        }
    });
    if is_told {
        return;
    }
    refused(fd, why);
    with(|report| {
        if let Some(record) = report.find(fd) {
            record.may_return = u8::from(why == FallThrough::Rollback);
        }
    });
}

/// What the daemon has said of a connection that has left the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel has it, because of a rollback.
    MayReturn,
    /// It is in the stack again, as another endpoint.
    Returned,
    /// The kernel has it, or nothing was said.
    Stays,
}

/// What has become of a descriptor's connection that was this endpoint.
pub fn fate(fd: i32, was: EndpointId) -> Fate {
    let mut fate = Fate::Stays;
    with(|report| {
        let Some(record) = report.find(fd) else {
            return;
        };
        let now = (record.endpoint_index, record.endpoint_generation);
        fate = match record.state() {
            Some(State::Accelerated) if now != (was.index, was.generation) => Fate::Returned,
            Some(State::Kernel) if record.may_return == 1 => Fate::MayReturn,
            _ => Fate::Stays,
        };
    });
    fate
}

/// A connection that the kernel has accepted because its listener rests.
pub fn rests(fd: i32, local: SocketAddress, remote: SocketAddress) {
    with(|report| {
        report.header().count(FallThrough::Rollback);
        let mut record = Record {
            fd,
            state: State::Kernel as u8,
            reason: FallThrough::Rollback as u8,
            rule: -1,
            protocol: 6,
            role: Role::Listen as u8,
            may_return: 1,
            ..Record::default()
        };
        place(&mut record, local, Some(remote));
        report.insert(record);
    });
}

/// A socket in a line for a person.
struct Told<'a>(&'a Record);

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(record) = self;
        let protocol = record.protocol().map_or("socket", Protocol::word);
        write!(f, "fd {} {protocol} {}", record.fd, record.local())?;
        match record.remote() {
            Some(remote) => write!(f, " to {remote}"),
            None => Ok(()),
        }
    }
}

/// The socket's addresses have changed.
pub fn addresses(fd: i32, local: SocketAddress, remote: Option<SocketAddress>) {
    with(|report| {
        if let Some(record) = report.find(fd) {
            place(record, local, remote);
        }
    });
}

/// A duplicate has the same record.
pub fn duplicated(old: i32, new: i32) {
    with(|report| {
        if let Some(mut record) = report.find(old).copied() {
            record.fd = new;
            report.insert(record);
        }
    });
}

/// The descriptor is closed.
pub fn closed(fd: i32) {
    with(|report| report.remove(fd));
}

/// The child reports for itself what it has of the parent's sockets.
pub fn after_fork_in_child() {
    let mut slot = SLOT.lock();
    let Slot::Made(mut parents) = std::mem::replace(&mut *slot, Slot::Unmade) else {
        return;
    };
    let records = inherited(&mut parents.report);
    private::close(parents.fd);
    if records.is_empty() {
        return;
    }
    *slot = make().map_or(Slot::Refused, Slot::Made);
    if let Slot::Made(own) = &mut *slot {
        for record in records {
            own.report.insert(record);
        }
    }
}

/// The records of this process, which has just been forked. The parent goes on with its report: it
/// may have closed a descriptor by now, and have another socket on its number. This process's table
/// is of the moment of the fork, so it decides which number is which endpoint.
fn inherited(parents: &mut Report<'static>) -> Vec<Record> {
    let of_kernel: Vec<Record> = (0..bypass_proto::report::CAPACITY as i32)
        .filter_map(|fd| parents.find(fd).copied())
        .filter(|record| record.endpoint_generation == 0)
        .filter(|record| fdtable::look(record.fd).endpoint().is_none())
        .collect();
    let ours = fdtable::entries(0, u32::MAX - 1)
        .filter_map(|(fd, entry)| Some((fd, entry, entry.endpoint()?)));
    // More of them would find no room.
    let ours = ours
        .take(bypass_proto::report::CAPACITY)
        .map(|(fd, entry, id)| {
            let said = parents.find(fd).copied();
            let is_same = |it: &Record| {
                (it.endpoint_index, it.endpoint_generation) == (id.index, id.generation)
            };
            said.filter(is_same).unwrap_or_else(|| found(fd, entry, id))
        });
    ours.chain(of_kernel).collect()
}

/// The record of an accelerated socket, as far as its endpoint tells.
fn found(fd: i32, entry: Entry, endpoint: EndpointId) -> Record {
    let is_datagrams = matches!(entry, Entry::Udp(_));
    let mut record = Record {
        fd,
        state: State::Accelerated as u8,
        rule: -1,
        protocol: if is_datagrams { 17 } else { 6 },
        role: if is_datagrams {
            Role::Bind
        } else {
            Role::Listen
        } as u8,
        endpoint_index: endpoint.index,
        endpoint_generation: endpoint.generation,
        ..Record::default()
    };
    let addresses = tcp::with_stack(|_, locked, _| {
        let stack = locked.stack();
        if is_datagrams {
            let status = stack.udp_status(endpoint);
            status.map(|status| (status.local, status.remote))
        } else {
            let status = stack.tcp_status(endpoint);
            status.map(|status| (status.local, Some(status.remote)))
        }
    });
    if let Some(Ok((local, remote))) = addresses {
        place(&mut record, local, remote);
    }
    record
}
