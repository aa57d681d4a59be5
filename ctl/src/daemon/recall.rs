//! Connections that the kernel has for a program come (back) to its stack (docs/adr/0011).
//!
//! The program marks those that may ([`super::report::may_return`]): it is prepared for a socket
//! that turns out to be closed, because the connection is an endpoint's. Under the stack's lock
//! their flows are led to the stack, where their segments wait in the ring; when the kernel has
//! finished with those before ([`quiesce`]) each is taken out of its socket ([`super::capture`])
//! and becomes an endpoint. Who sleeps in the kernel is woken by that.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::capture::{self, Stays};
use super::counters::Counter;
use super::foreign::Foreign;
use super::outlet::Outlets;
use super::process;
use super::repair::{self, End, Parcel};
use super::rollback::{MOST_MOVED, Member, WAY, Whom};
use super::server::Server;
use super::sockopt as own;
use super::stacks::StackEntry;
use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_stack::cplane::{self, Lookup};
use bypass_stack::{Cargo, EndpointId, NextHop, SocketAddress, TcpOpen};

/// Connections that come under one lock.
const BATCH: usize = 64;

/// How long all descriptors of the machine are looked through at most (40,000 take 0.7 s).
const LOOK: Duration = Duration::from_secs(5);

/// What became of connections.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// How many came.
    pub came: u32,
    /// How many the kernel keeps, by reason.
    pub stay: BTreeMap<Stays, u32>,
    /// How many were not looked at.
    pub left: u32,
}

/// A connection of a program's and the program.
struct Guest<'a> {
    member: &'a Member,
    fd: i32,
    socket: Foreign,
    ends: (SocketAddress, SocketAddress),
    via: NextHop,
}

impl Server {
    /// Takes connections of the programs that are meant out of the kernel, [`MOST_MOVED`] at most.
    /// `holders` is made when it is needed, once for a request.
    pub(super) fn recall(
        &mut self,
        (uid, whom): (u32, Whom),
        members: &[Member],
        holders: &mut Option<Holders>,
        into: &mut Recalled,
    ) {
        let wanted = |member: &&Member| member.is_meant || matches!(whom, Whom::Port(_));
        let guests: Vec<(&Member, i32)> = members
            .iter()
            .filter(wanted)
            .flat_map(|member| member.guests(whom).map(move |fd| (member, fd)))
            .collect();
        if guests.is_empty() {
            return;
        }
        // Nothing is steered unless the kernel can tell when it has finished with what came before.
        if !can_disconnect() || !quiesce() {
            *into.stay.entry(Stays::Refused).or_default() += guests.len() as u32;
            return;
        }
        let most = MOST_MOVED.saturating_sub(into.came) as usize;
        let holders = holders.get_or_insert_with(Holders::now);
        let mut ready = Vec::new();
        for (member, fd) in guests {
            if ready.len() == most {
                into.left += 1;
                continue;
            }
            match self.look_at(uid, (member, fd), holders) {
                Ok(guest) => ready.push(guest),
                // The program has not noticed the end of it yet, or is about to close it.
                Err(Stays::Gone) => {}
                Err(why) => *into.stay.entry(why).or_default() += 1,
            }
        }
        while !ready.is_empty() {
            let rest = ready.split_off(BATCH.min(ready.len()));
            self.take_batch(uid, ready, into);
            ready = rest;
        }
    }

    /// Whether the connection could come. Nothing changes.
    fn look_at<'a>(
        &self,
        uid: u32,
        (member, fd): (&'a Member, i32),
        holders: &Holders,
    ) -> Result<Guest<'a>, Stays> {
        let socket = member.socket(fd).ok_or(Stays::Gone)?;
        if own::namespace_cookie(&socket) != Ok(self.namespace) {
            return Err(Stays::Way);
        }
        capture::check(&socket)?;
        let ends = capture::ends(&socket).ok_or(Stays::Gone)?;
        if holders.of(&socket) != 1 {
            return Err(Stays::Shared);
        }
        let (local, remote) = ends;
        let stack = self.stacks.get(uid).ok_or(Stays::Way)?;
        let ifindex = own::bound_interface(&socket)?;
        let hash = cplane::flow_hash(&local, &remote);
        let found = cplane::lookup(stack.cplane.table(), remote.ip, local.ip, ifindex, hash);
        let Lookup::Via(via) = found else {
            return Err(Stays::Way);
        };
        if !self.filters.grants_tcp(uid, local) {
            return Err(Stays::Way);
        }
        Ok(Guest {
            member,
            fd,
            socket,
            ends,
            via,
        })
    }

    /// Takes some under one lock.
    fn take_batch(&mut self, uid: u32, guests: Vec<Guest<'_>>, into: &mut Recalled) {
        let Some(Ok(mut locked)) = self.stacks.get(uid).map(StackEntry::lock_for_program) else {
            into.left += guests.len() as u32;
            return;
        };
        locked.pump(clock::now());
        let mut outlets = Outlets::default();
        let mut steered = Vec::new();
        for guest in guests {
            match steer(&mut locked, guest.ends) {
                Ok(()) => steered.push(guest),
                Err(why) => *into.stay.entry(why).or_default() += 1,
            }
        }
        let is_quiet = quiesce();
        let mut came = 0;
        for guest in &steered {
            match take(&mut locked, (guest, is_quiet), &mut outlets) {
                Ok(()) => came += 1,
                Err(why) => *into.stay.entry(why).or_default() += 1,
            }
        }
        locked.count_returned();
        locked.pump(clock::now());
        let is_awaited = locked.is_awaited();
        drop(locked);
        into.came += came;
        self.counters
            .add_many(Counter::ConnectionsRecalled, came.into());
        Foreign::close_later(steered.into_iter().map(|guest| guest.socket));
        if is_awaited {
            std::thread::sleep(WAY);
        }
    }
}

/// Leads a flow to the stack, which does not answer with a reset what comes of one that is not
/// taken then.
fn steer(
    locked: &mut Locked<'_>,
    (local, remote): (SocketAddress, SocketAddress),
) -> Result<(), Stays> {
    let stack = locked.stack();
    if stack.has_flow(local, remote) {
        return Err(Stays::Way);
    }
    if !stack.tcp_keep_out(local, remote, clock::now()) {
        return Err(Stays::Full);
    }
    let flows = locked.flows();
    let led = flows.insert(local, remote, EndpointId::NONE);
    led.map(drop).map_err(|_| Stays::Full)
}

/// Takes one, whose segments come to the stack already. Beside an error the kernel has it, or
/// what it has refused to make again is closed.
fn take(
    locked: &mut Locked<'_>,
    (guest, is_quiet): (&Guest<'_>, bool),
    outlets: &mut Outlets,
) -> Result<(), Stays> {
    let (local, remote) = guest.ends;
    let moved = match is_quiet {
        true => take_steered(locked, guest, outlets),
        false => Err(Stays::Refused),
    };
    match moved {
        Ok(endpoint) => guest.member.tell_returned(guest.fd, endpoint),
        Err(_) => {
            locked.flows().remove(local, remote);
        }
    }
    moved.map(drop)
}

fn take_steered(
    locked: &mut Locked<'_>,
    guest: &Guest<'_>,
    outlets: &mut Outlets,
) -> Result<EndpointId, Stays> {
    // Under the lock: who closes it, or passes it on, says so first and waits for the lock then.
    if !guest.member.may_return(guest.fd) || capture::ends(&guest.socket) != Some(guest.ends) {
        return Err(Stays::Gone);
    }
    let cookie = own::cookie(&guest.socket)?;
    // The number may be another connection's by now.
    let now = guest.member.socket(guest.fd).ok_or(Stays::Gone)?;
    let is_same = own::cookie(&now) == Ok(cookie);
    Foreign::close_later([now]);
    if !is_same {
        return Err(Stays::Gone);
    }
    // Its options may be others than when it was looked at.
    capture::check(&guest.socket)?;
    let (parcel, closed) = capture::take(&guest.socket)?;
    let imported = closed.and_then(|()| import(locked, guest, &parcel, cookie));
    if imported.is_err() {
        give_back(locked, guest, parcel, outlets);
    }
    imported
}

/// Makes a connection an endpoint of its program's.
fn import(
    locked: &mut Locked<'_>,
    guest: &Guest<'_>,
    parcel: &Parcel,
    cookie: u64,
) -> Result<EndpointId, Stays> {
    let record = &parcel.record;
    let (sent, unsent) = parcel.split().ok_or(Stays::Refused)?;
    let open = TcpOpen {
        family: record.family(),
        local: record.local(),
        process: guest.member.slot(),
        options: parcel.options,
        shadow_cookie: cookie,
        ifindex: record.ifindex,
    };
    let cargo = Cargo {
        sent,
        unsent,
        unread: &parcel.unread,
    };
    let (stack, packets) = locked.parts();
    stack
        .tcp_import(packets, &open, (record, cargo), &guest.via, clock::now())
        .map_err(|_| Stays::Full)
}

/// Makes the socket the connection again.
fn give_back(locked: &Locked<'_>, guest: &Guest<'_>, parcel: Parcel, outlets: &mut Outlets) {
    let Ok(copy) = guest.socket.try_clone() else {
        return;
    };
    let ends = [End {
        endpoint: EndpointId::NONE,
        socket: copy.into(),
        parcel,
    }];
    let (local, remote) = guest.ends;
    let ready = || {
        locked.flows().remove(local, remote);
    };
    let _ = repair::build(&ends, outlets, ready);
    Foreign::close_later(ends.into_iter().map(|end| end.socket));
}

/// Waits until the kernel has finished with every frame that it has begun with: it has them in
/// its hands within sections that RCU waits for (membarrier(2), MEMBARRIER_CMD_GLOBAL). Whether
/// that is so.
fn quiesce() -> bool {
    use rustix::thread::{MembarrierCommand, membarrier};
    membarrier(MembarrierCommand::Global).is_ok()
}

/// Whether a socket can be disconnected while threads wait on it (Linux 6.7).
fn can_disconnect() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map(|part| part.parse().ok());
        let mut next = || numbers.next().flatten().unwrap_or(0_u32);
        (next(), next()) >= (6, 7)
    })
}

/// How many descriptors of other processes there are for each socket.
#[derive(Debug)]
pub(super) struct Holders(HashMap<u64, u32>);

impl Holders {
    /// Those of which nothing is known by the deadline count as shared.
    fn now() -> Self {
        let end = Instant::now() + LOOK;
        let mut counts = HashMap::new();
        for pid in process::others() {
            if Instant::now() > end {
                return Self(HashMap::new());
            }
            let folder = format!("/proc/{pid}/fd");
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in entries.take_while(|_| Instant::now() < end) {
                let target = fs::read_link(entry.path()).unwrap_or_default();
                let text = target.to_string_lossy();
                let inode = text.strip_prefix("socket:[");
                let inode = inode.and_then(|text| text.strip_suffix(']')?.parse().ok());
                if let Some(inode) = inode {
                    *counts.entry(inode).or_default() += 1;
                }
            }
        }
        Self(counts)
    }

    fn of(&self, socket: &OwnedFd) -> u32 {
        self.0.get(&process::inode(socket)).copied().unwrap_or(0)
    }
}
