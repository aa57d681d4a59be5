//! `bypassctl rollback` and `adopt`: sockets of running programs go to the kernel and come back.
//!
//! The programs need not call anything. A *connection* is handed over as [`super::transfer`] says,
//! with its shadow taken out of the program by its report and pidfd_getfd. A *listener* or *UDP
//! socket* rests: its steering ends, so that the kernel's own socket, the shadow, gets what comes
//! from then on; what has come before, connections to accept and datagrams, the program still finds
//! in the endpoint, first. To take one back is to steer to it again.
//!
//! New sockets stay with the kernel: those of a program by a mark in its slot of the image, which
//! forked children inherit, those of a port by a static filter.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use bypass_proto::control::{Refusal, Request};
use bypass_proto::reason::FallThrough;
use bypass_proto::report::{Record, ReportView};
use bypass_runtime::clock;
use bypass_stack::inspect::{EndpointView, Image};
use bypass_stack::{EndpointId, ProcessId, SocketAddress, TcpState, Twin};
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use serde_json::{Value, json};

use super::capture::Stays;
use super::counters::Counter;
use super::filters::{TCP, Wish};
use super::foreign::Foreign;
use super::process;
use super::proof::UDP;
use super::recall::Recalled;
use super::repair::End;
use super::report::{self, Report};
use super::requests::Refused;
use super::server::Server;
use super::stacks::StackEntry;
use super::statics::{Purpose, StaticFilter};
use super::watch::Watched;

/// Connections that one request moves, so that others are served between two.
pub(super) const MOST_MOVED: u32 = 256;
/// For how long the stack's lock is kept while connections move: so long their peers wait.
const SLICE: Duration = Duration::from_micros(500);
/// For how long the programs have the stack, and this processor, to themselves then: a lock that is
/// taken again at once is ours before any of them has woken, and whoever is only runnable would
/// wait for the end of our turn.
pub(super) const WAY: Duration = Duration::from_micros(100);
/// Generations of processes that are looked through for an ancestor.
const DEPTH: u32 = 32;

/// Whose sockets are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// Everybody's.
    All,
    /// A process's and those of what it has forked.
    Process(u32),
    /// Those with this local port.
    Port(u16),
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    processes: u32,
    connections: u32,
    listeners: u32,
    udp: u32,
    left: u32,
    /// Connections that the kernel keeps, by reason.
    stay: BTreeMap<Stays, u32>,
}

/// A process that takes part in a stack, with what it says of its descriptors.
pub(super) struct Member {
    slot: ProcessId,
    /// Whether it was named.
    pub is_meant: bool,
    pidfd: Option<OwnedFd>,
    report: Option<Report>,
    /// Descriptors and their endpoints, by these.
    claims: Vec<(i32, EndpointId)>,
}

impl Whom {
    /// What a request means.
    pub(super) fn of_request(request: &Request) -> Self {
        match (request.pid, request.local_port) {
            (0, 0) => Self::All,
            (0, port) => Self::Port(port),
            (pid, _) => Self::Process(pid),
        }
    }

    fn means(self, endpoint: &EndpointView, members: &[Member]) -> bool {
        match self {
            Self::Port(port) => endpoint.local.port == port,
            Self::All | Self::Process(_) => members
                .iter()
                .any(|member| member.is_meant && endpoint.is_held_by(member.slot)),
        }
    }
}

impl Done {
    /// As `bypassctl` reads it.
    pub(super) fn to_json(&self) -> Value {
        let stay = self.stay.iter().map(|(why, count)| (why.sentence(), count));
        let stay: BTreeMap<_, _> = stay.collect();
        json!({
            "processes": self.processes, "connections": self.connections,
            "listeners": self.listeners, "udp": self.udp, "left": self.left,
            "stay": stay,
        })
    }
}

impl Server {
    /// Hands sockets to the kernel. Connections beyond [`MOST_MOVED`], those whose handshake is not
    /// over and those that no report tells of are left; the caller asks again.
    pub(super) fn roll_back(&mut self, whom: Whom) -> Done {
        let mut done = Done::default();
        if let Whom::Port(port) = whom {
            self.keep_port(port);
        }
        for uid in self.users() {
            let members = self.members(uid, whom, true);
            done.processes += members.iter().filter(|it| it.is_meant).count() as u32;
            let mut connections = Vec::new();
            for endpoint in self.meant(uid, whom, &members) {
                match endpoint.tcp {
                    None | Some(TcpState::Listen) => {
                        if endpoint.rests || !self.rest(uid, endpoint.id, true) {
                            continue;
                        }
                        tell(&members, endpoint.id, Some(FallThrough::Rollback));
                        let count = match endpoint.tcp {
                            None => &mut done.udp,
                            Some(_) => &mut done.listeners,
                        };
                        *count += 1;
                    }
                    // It has ended, or has not begun.
                    Some(TcpState::Closed) => {}
                    Some(_) => connections.push(endpoint.id),
                }
            }
            let most = MOST_MOVED - done.connections;
            let why = FallThrough::Rollback;
            let moved = self.move_all(uid, (&connections, most), &members, why);
            done.connections += moved;
            done.left += connections.len() as u32 - moved;
        }
        done
    }

    /// Hands so many of the connections over at most, a few under one lock, and lets the programs
    /// have it between; how many.
    pub(super) fn move_all(
        &mut self,
        uid: u32,
        (endpoints, most): (&[EndpointId], u32),
        members: &[Member],
        why: FallThrough,
    ) -> u32 {
        let mut endpoints = endpoints.iter().copied().peekable();
        let mut count = 0;
        let mut twins = Vec::new();
        while count < most && endpoints.peek().is_some() {
            let stack = self.stacks.get(uid);
            let Some(Ok(mut locked)) = stack.map(StackEntry::lock_for_program) else {
                break;
            };
            let end = Instant::now() + SLICE;
            locked.pump(clock::now());
            let (mut moved, mut refused) = (Vec::new(), Vec::new());
            for endpoint in endpoints.by_ref() {
                let shadow = || shadow_of(members, endpoint);
                let mut ends = Vec::new();
                let all = (endpoint, shadow);
                let done = self.transfer_of(&mut locked, uid, all, members, &mut ends);
                count += u32::from(done.is_ok() || twins.contains(&endpoint));
                if done.is_ok() {
                    // Before the program can notice: it asks for the reason then.
                    tell_all(members, &ends, why);
                    twins.extend(ends.iter().skip(1).map(|twin| twin.endpoint));
                    moved.extend(ends);
                } else {
                    refused.extend(ends);
                }
                if Instant::now() >= end || count >= most {
                    break;
                }
            }
            drop(locked);
            drop(refused);
            self.counters
                .add_many(Counter::ConnectionsMoved, moved.len() as u64);
            Foreign::close_later(moved.into_iter().map(|end| end.socket));
            std::thread::sleep(WAY);
        }
        count
    }

    /// Lets programs have new accelerated sockets again, steers to those that rest, and takes
    /// connections back if these are meant too.
    pub(super) fn take_back(&mut self, whom: Whom, connections: bool) -> Done {
        let mut done = Done::default();
        if let Whom::Port(port) = whom {
            self.free_port(port);
        }
        let mut holders = None;
        for uid in self.users() {
            let members = self.members(uid, whom, false);
            done.processes += members.iter().filter(|it| it.is_meant).count() as u32;
            for endpoint in self.meant(uid, whom, &members) {
                if endpoint.rests && self.rest(uid, endpoint.id, false) {
                    tell(&members, endpoint.id, None);
                    match endpoint.tcp {
                        None => done.udp += 1,
                        Some(_) => done.listeners += 1,
                    }
                }
            }
            if !connections {
                continue;
            }
            let mut recalled = Recalled {
                came: done.connections,
                ..Recalled::default()
            };
            self.recall((uid, whom), &members, &mut holders, &mut recalled);
            done.connections = recalled.came;
            done.left += recalled.left;
            for (why, count) in recalled.stay {
                *done.stay.entry(why).or_default() += count;
            }
        }
        done
    }

    fn users(&self) -> Vec<u32> {
        self.stacks.iter().map(|stack| stack.uid).collect()
    }

    /// The processes of a stack. Those that are meant are marked: whether new sockets of theirs
    /// stay with the kernel.
    fn members(&mut self, uid: u32, whom: Whom, rest: bool) -> Vec<Member> {
        self.find_relatives(uid);
        let watched = self.watch.iter().filter(|(_, it)| it.uid == uid);
        let members: Vec<Member> = watched
            .map(|(_, it)| Member {
                is_meant: match whom {
                    Whom::All => true,
                    Whom::Process(pid) => descends(it.pid, pid),
                    Whom::Port(_) => false,
                },
                ..Member::of(it)
            })
            .collect();
        if let Some(stack) = self.stacks.get(uid)
            && let Ok(mut locked) = stack.lock_for_program()
        {
            for member in members.iter().filter(|it| it.is_meant) {
                locked.stack().rest_process(member.slot, rest);
            }
        }
        members
    }

    /// The processes of a stack that are known, none of them meant.
    pub(super) fn known_members(&self, uid: u32) -> Vec<Member> {
        let watched = self.watch.iter().map(|(_, it)| it);
        watched.filter(|it| it.uid == uid).map(Member::of).collect()
    }

    /// The processes that are known to have the other end of a connection.
    pub(super) fn holders(&self, uid: u32, twin: &Twin) -> Vec<Member> {
        let watched = self.watch.iter().map(|(_, it)| it);
        let holders = watched.filter(|it| it.uid == uid && twin.is_held_by(it.slot));
        holders.map(Member::of).collect()
    }

    /// The endpoints that are meant, as they are now.
    fn meant(&self, uid: u32, whom: Whom, members: &[Member]) -> Vec<EndpointView> {
        let Some(stack) = self.stacks.get(uid) else {
            return Vec::new();
        };
        let pick = |image: Image<'_>| {
            let held = |endpoint: &EndpointView| endpoint.holders != [0, 0];
            let endpoints = image.endpoints().filter(held);
            endpoints
                .filter(|endpoint| whom.means(endpoint, members))
                .collect()
        };
        if let Ok(mut locked) = stack.lock_for_program() {
            return pick(locked.stack().inspect());
        }
        let bytes = stack.copy_image().unwrap_or_default();
        Image::attach(&bytes).map_or_else(|_| Vec::new(), pick)
    }

    /// Whether the endpoint rests from now on, or does not any more.
    fn rest(&mut self, uid: u32, endpoint: EndpointId, on: bool) -> bool {
        let is_done = self.stacks.get(uid).is_some_and(|stack| {
            stack
                .lock_for_program()
                .is_ok_and(|mut locked| locked.stack().rest(endpoint, on).is_ok())
        });
        if is_done {
            let is_its =
                |filter: &super::filters::Filter| (filter.uid, filter.endpoint) == (uid, endpoint);
            for id in self.filters.ids(is_its) {
                self.filters.set_resting(id, on);
                self.reconcile(id);
            }
        }
        is_done
    }

    /// New sockets of a local port stay with the kernel.
    fn keep_port(&mut self, port: u16) {
        for protocol in [TCP, UDP] {
            let wish = any_address(port, protocol);
            let is_kept = |it: &StaticFilter| it.purpose == Purpose::Keep && it.wish == wish;
            if !self.filters.statics.iter().any(is_kept) {
                let id = self.filters.new_id();
                let purpose = Purpose::Keep;
                let _ = self
                    .filters
                    .statics
                    .insert(StaticFilter { id, wish, purpose });
            }
        }
        self.statics_changed();
    }

    /// Takes back what [`Self::keep_port`] has done.
    fn free_port(&mut self, port: u16) {
        for protocol in [TCP, UDP] {
            let wish = any_address(port, protocol);
            let is_kept = |it: &&StaticFilter| it.purpose == Purpose::Keep && it.wish == wish;
            let kept = self.filters.statics.iter().find(is_kept);
            if let Some(id) = kept.map(|it| it.id) {
                self.filters.statics.remove(id);
            }
        }
        self.statics_changed();
    }
}

/// What a report says of descriptors and endpoints, in the order of the latter.
fn claims(report: &ReportView) -> Vec<(i32, EndpointId)> {
    let records = report.records.iter();
    let records = records.filter(|it| it.endpoint_generation != 0);
    let claim = |it: &Record| {
        let endpoint = EndpointId {
            index: it.endpoint_index,
            generation: it.endpoint_generation,
        };
        (it.fd, endpoint)
    };
    let mut claims: Vec<_> = records.map(claim).collect();
    claims.sort_unstable_by_key(|(_, endpoint)| endpoint.index);
    claims
}

impl Member {
    fn of(watched: &Watched) -> Self {
        let report = Report::of(watched.pid, watched.start_time, &watched.report);
        let view = report.as_ref().and_then(Report::view);
        Self {
            slot: watched.slot,
            is_meant: false,
            pidfd: watched.as_fd().try_clone_to_owned().ok(),
            claims: view.map_or_else(Vec::new, |view| claims(&view)),
            report,
        }
    }

    /// Its slot.
    pub(super) fn slot(&self) -> ProcessId {
        self.slot
    }

    /// Its descriptors of connections that the kernel has and that may come to the stack.
    pub(super) fn guests(&self, whom: Whom) -> impl Iterator<Item = i32> + use<> {
        let view = self.report.as_ref().and_then(Report::view);
        let records = view.map_or_else(Vec::new, |view| view.records);
        let guests = records.into_iter().filter(report::may_return);
        let guests = guests.filter(move |record| match whom {
            Whom::Port(port) => record.local_port == port,
            Whom::All | Whom::Process(_) => true,
        });
        guests.map(|record| record.fd)
    }

    /// What is behind a descriptor.
    pub(super) fn socket(&self, fd: i32) -> Option<Foreign> {
        let pidfd = self.pidfd.as_ref()?;
        let socket = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).ok()?;
        Some(Foreign::from(socket))
    }

    /// Whether a descriptor still is that of such a connection.
    pub(super) fn may_return(&self, fd: i32) -> bool {
        let report = self.report.as_ref();
        report.is_some_and(|report| report.may_return(fd))
    }

    /// The stack serves it.
    pub(super) fn tell_returned(&self, fd: i32, endpoint: EndpointId) {
        if let Some(report) = &self.report {
            report.tell_returned(fd, endpoint);
        }
    }

    /// The descriptors that are said to be an endpoint's.
    fn claimed(&self, endpoint: EndpointId) -> impl Iterator<Item = i32> {
        let first = self
            .claims
            .partition_point(|(_, it)| it.index < endpoint.index);
        let claims = self.claims.iter().skip(first);
        let claims = claims.take_while(move |(_, it)| it.index == endpoint.index);
        claims
            .filter(move |(_, it)| *it == endpoint)
            .map(|(fd, _)| *fd)
    }

    /// The shadow of an endpoint, out of the process. Called under the stack's lock: while it is
    /// held nobody can let go of the endpoint, and so its number is nobody else's.
    fn shadow(&self, fd: i32, endpoint: EndpointId) -> Result<Foreign, Refused> {
        let (Some(pidfd), Some(report)) = (&self.pidfd, &self.report) else {
            return Err(Errno::SRCH.into());
        };
        let shadow = Foreign::from(pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty())?);
        if report.leads_to(fd, endpoint) {
            Ok(shadow)
        } else {
            Err(Errno::BADF.into())
        }
    }
}

/// The shadow of a connection, of any process that has it.
pub(super) fn shadow_of(members: &[Member], endpoint: EndpointId) -> Result<Foreign, Refused> {
    let mut refused = Refusal::Malformed.into();
    for member in members {
        for fd in member.claimed(endpoint) {
            match member.shadow(fd, endpoint) {
                Ok(shadow) => return Ok(shadow),
                Err(why) => refused = why,
            }
        }
    }
    Err(refused)
}

/// Writes into the reports who serves an endpoint's descriptors.
fn tell(members: &[Member], endpoint: EndpointId, reason: Option<FallThrough>) {
    for member in members {
        for fd in member.claimed(endpoint) {
            if let Some(report) = &member.report
                && report.leads_to(fd, endpoint)
            {
                report.tell(fd, reason);
            }
        }
    }
}

fn tell_all(members: &[Member], ends: &[End], why: FallThrough) {
    for end in ends {
        tell(members, end.endpoint, Some(why));
    }
}

/// Everything that comes to a port.
fn any_address(port: u16, protocol: u8) -> Wish {
    Wish {
        local: SocketAddress {
            port,
            ..SocketAddress::UNSPECIFIED
        },
        remote: SocketAddress::UNSPECIFIED,
        protocol,
        v4: true,
        v6: true,
        ifindex: 0,
        listens: true,
    }
}

/// Whether a process is this one or was forked, over however many generations, by it.
fn descends(pid: u32, from: u32) -> bool {
    let mut pid = pid;
    for _ in 0..DEPTH {
        if pid == from {
            return true;
        }
        match process::parent(pid) {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}
