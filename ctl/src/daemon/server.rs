//! The event loop, and the state that everything else works on.
//!
//! One epoll set holds the listening socket, the clients, a pidfd per program and the netlink
//! socket. A round serves each ready client once, so that none starves another; announcements of
//! the kernel and the ends of programs come first. What is due later (sweeps, dumps, the end of an
//! idle daemon) bounds the wait.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bypass_proto::control::{Refusal, Reply, ReplyKind, Request, RequestKind};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::time::Timespec;

use super::client::{Client, Incoming};
use super::counters::{Counter, Counters};
use super::devices::Devices;
use super::filters::Filters;
use super::foreign::Foreign;
use super::icmp::{Ear, Ears};
use super::netlink::mirror::Mirror;
use super::nics::Nics;
use super::opening::Openings;
use super::process::Process;
use super::stacks::Stacks;
use super::sweep::Chores;
use super::watch::Watch;
use super::{Config, DaemonError, DaemonOptions, reload, sockopt as own};

/// Events taken in one round.
const EVENTS: usize = 256;
/// Connections accepted in one round.
const ACCEPTS: usize = 64;
/// Connections above the limit that are kept until their first request, to tell them why.
const SURPLUS: usize = 64;
/// Time between two sweeps.
const SWEEP: Duration = Duration::from_secs(1);
/// How long the daemon stays without clients and programs.
const IDLE: Duration = Duration::from_secs(2);

/// What an event is about; a kind in the upper half, a number in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Netlink,
    Client(u64),
    Process(u64),
    /// User of a stack, index of its queue pair.
    Queue(u32, u8),
    /// SIGHUP.
    Hangup,
    /// ICMP errors of a family.
    Icmp(Ear),
    /// The relay of a device.
    Relay(u64),
}

impl Drop for Server {
    fn drop(&mut self) {
        reload::forget(&self.hangups);
        for (_, nic) in self.nics.iter() {
            let mut programs = self.watch.iter();
            if programs.any(|(_, program)| program.uid == nic.owner) {
                nic.leave_behind();
            }
        }
    }
}

impl Token {
    pub(super) fn data(self) -> EventData {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Netlink => (1, 0),
            Self::Client(number) => (2, number),
            Self::Process(number) => (3, number),
            Self::Hangup => (5, 0),
            Self::Icmp(ear) => (6, ear as u64),
            Self::Relay(index) => (7, index),
            Self::Queue(uid, index) => (4, u64::from(uid) << 8 | u64::from(index)),
        };
        EventData::new_u64(kind << 56 | number)
    }

    fn of(data: EventData) -> Self {
        let value = data.u64();
        let number = value & ((1 << 56) - 1);
        match value >> 56 {
            0 => Self::Listener,
            1 => Self::Netlink,
            2 => Self::Client(number),
            3 => Self::Process(number),
            5 => Self::Hangup,
            7 => Self::Relay(number),
            6 => Self::Icmp(if number == 0 { Ear::V4 } else { Ear::V6 }),
            _ => Self::Queue((number >> 8) as u32, number as u8),
        }
    }
}

/// The daemon's state.
#[derive(Debug)]
pub(super) struct Server {
    pub exit_when_idle: bool,
    pub config: Config,
    /// File that was named for it, if any.
    pub config_path: Option<PathBuf>,
    /// What was wrong with it when it was last read again.
    pub reload_error: Option<String>,
    /// Readable after a SIGHUP.
    pub hangups: OwnedFd,
    pub started: Instant,
    pub epoll: OwnedFd,
    pub clients: HashMap<u64, Client>,
    pub stacks: Stacks,
    pub filters: Filters,
    pub nics: Nics,
    pub openings: Openings,
    pub devices: Devices,
    pub ears: Ears,
    pub mirror: Mirror,
    pub watch: Watch,
    pub counters: Counters,
    pub chores: Chores,
    /// Cookie of the network namespace that is served.
    pub namespace: u64,
    /// Queue pairs changed, so that every control-plane table must be written.
    pub unpublished: bool,
    pub stopping: bool,
    listener: OwnedFd,
    last_client: u64,
    idle_since: Option<Instant>,
    next_sweep: Instant,
}

impl Server {
    /// A daemon that is ready to serve, with what it could take over from the one before.
    ///
    /// # Errors
    /// [`DaemonError::System`].
    pub(super) fn new(
        options: &DaemonOptions,
        config: Config,
        listener: OwnedFd,
    ) -> Result<Self, DaemonError> {
        let failed = |step| move |errno| DaemonError::System(step, errno);
        let mut counters = Counters::new();
        let mirror =
            Mirror::open(&mut counters).map_err(failed("read links and routes by netlink"))?;
        let namespace =
            own::namespace_cookie(&listener).map_err(failed("identify the network namespace"))?;
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("make an epoll set"))?;
        let hangups = reload::hangups().map_err(failed("make an eventfd"))?;
        let mut server = Self {
            exit_when_idle: options.exit_when_idle,
            config,
            config_path: options.config.clone(),
            reload_error: None,
            hangups,
            started: Instant::now(),
            epoll,
            clients: HashMap::new(),
            stacks: Stacks::default(),
            filters: Filters::default(),
            nics: Nics::default(),
            openings: Openings::default(),
            devices: Devices::default(),
            ears: Ears::open(),
            mirror,
            watch: Watch::default(),
            counters,
            chores: Chores::default(),
            namespace,
            unpublished: false,
            stopping: false,
            listener,
            last_client: 0,
            idle_since: None,
            next_sweep: Instant::now() + SWEEP,
        };
        server
            .listen_to(&server.listener, Token::Listener)
            .and_then(|()| server.listen_to(&server.mirror, Token::Netlink))
            .and_then(|()| server.listen_to(&server.hangups, Token::Hangup))
            .map_err(failed("fill the epoll set"))?;
        for (ear, socket) in server.ears.sockets() {
            let listens = server.listen_to(socket, Token::Icmp(ear));
            listens.map_err(failed("fill the epoll set"))?;
        }
        server.follow_devices();
        server.adopt_stacks();
        Ok(server)
    }

    /// Puts a descriptor into the epoll set.
    pub(super) fn listen_to(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, token.data(), EventFlags::IN)
    }

    /// Serves until told to stop, or idle.
    ///
    /// # Errors
    /// [`DaemonError::System`] when even waiting fails.
    pub(super) fn run(&mut self) -> Result<(), DaemonError> {
        let mut events = Vec::with_capacity(EVENTS);
        while !self.stopping && !self.is_idle_enough() {
            events.clear();
            let timeout = self.timeout();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(DaemonError::System("wait for events", errno)),
            }
            let mut tokens: Vec<(Token, EventFlags)> = events
                .iter()
                .map(|event| (Token::of(event.data), event.flags))
                .collect();
            tokens.sort_by_key(|(token, _)| match token {
                Token::Netlink | Token::Hangup | Token::Relay(_) => 0,
                Token::Process(_) => 1,
                Token::Queue(..) | Token::Icmp(_) => 2,
                Token::Client(_) => 3,
                Token::Listener => 4,
            });
            for (token, flags) in tokens {
                self.on_event(token, flags);
            }
            self.do_what_is_due();
        }
        Ok(())
    }

    fn on_event(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Hangup => self.hung_up(),
            Token::Icmp(ear) => self.hear(ear),
            Token::Relay(index) => self.hear_relay(index),
            Token::Netlink => self.mirror.read_events(&mut self.counters),
            Token::Process(number) => self.process_gone(number),
            Token::Queue(uid, _) => self.queue_event(uid, flags),
            Token::Client(number) => {
                // Taken out meanwhile, so that it and the rest of the state can both be changed.
                let Some(mut client) = self.clients.remove(&number) else {
                    return;
                };
                if self.serve(number, &mut client, flags) {
                    self.clients.insert(number, client);
                } else {
                    self.client_gone(&client);
                }
            }
        }
    }

    fn do_what_is_due(&mut self) {
        self.mirror.refresh_if_due(&mut self.counters);
        self.follow_mirror();
        self.restart_devices();
        let now = Instant::now();
        self.look_at_stacks(now);
        self.continue_openings();
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.sweep();
            self.drop_hopeless_clients();
        } else if self.chores.are_urgent(now) {
            self.do_chores();
        }
        self.publish();
        self.reroute();
    }

    /// Whether anything needs a sweep.
    fn needs_sweep(&self) -> bool {
        !self.watch.is_empty()
            || self.stacks.len() != 0
            || self.clients.values().any(Client::is_stuck)
    }

    fn timeout(&self) -> Option<Timespec> {
        let sweep = self.needs_sweep().then_some(self.next_sweep);
        let idle = self.idle_since.map(|since| since + IDLE);
        let due = [
            sweep,
            idle,
            self.mirror.due(),
            self.chores.due(),
            self.look_due(),
            self.openings.due(),
            self.devices.due(),
        ];
        let first = due.into_iter().flatten().min()?;
        let left = first.saturating_duration_since(Instant::now());
        // Rounded up to a millisecond, or the wait would end just before it is time.
        let milliseconds = left.as_nanos().div_ceil(1_000_000) as i64;
        Some(Timespec {
            tv_sec: milliseconds / 1000,
            tv_nsec: milliseconds % 1000 * 1_000_000,
        })
    }

    /// Whether the daemon may end because nobody has needed it for a while.
    fn is_idle_enough(&mut self) -> bool {
        let is_idle = self.exit_when_idle
            && self.clients.is_empty()
            && self.watch.is_empty()
            && self.stacks.len() == 0
            && self.filters.statics.is_empty()
            && self.devices.is_empty();
        if !is_idle {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        since.elapsed() >= IDLE
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = match accept_with(&self.listener, flags) {
                Ok(fd) => Foreign::from(fd),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => return,
            };
            self.counters.add(Counter::ClientsAccepted);
            let Ok(credentials) = sockopt::socket_peercred(&fd) else {
                continue;
            };
            let uid = credentials.uid.as_raw();
            let pid = credentials.pid.as_raw_nonzero().get().cast_unsigned();
            let limit = self.config.policy.daemon.clients as usize;
            let open = self.clients.len();
            if open >= limit + SURPLUS {
                self.counters.add(Counter::ClientsTurnedAway);
                continue;
            }
            // One user cannot take all places; root has the reserve as well.
            let share = limit - limit / 4;
            let of_user = || {
                self.clients
                    .values()
                    .filter(|known| known.peer.uid == uid)
                    .count()
            };
            let surplus = open >= limit || uid != 0 && open >= share / 2 && of_user() >= share;
            let mut peer = Process::find(pid).unwrap_or_default();
            peer.uid = uid;
            let gid = credentials.gid.as_raw();
            if !peer.gids.contains(&gid) {
                peer.gids.push(gid);
            }
            self.last_client += 1;
            let number = self.last_client;
            if self.listen_to(&fd, Token::Client(number)).is_ok() {
                let client = Client::new(fd, number, peer, surplus);
                self.clients.insert(number, client);
            }
        }
    }

    /// Serves one event of a client; `false` = the connection is over.
    fn serve(&mut self, number: u64, client: &mut Client, flags: EventFlags) -> bool {
        if flags.contains(EventFlags::OUT) {
            if client.flush().is_err() {
                return false;
            }
            if !client.is_stuck() {
                let data = Token::Client(number).data();
                let _ = epoll::modify(&self.epoll, &*client, data, EventFlags::IN);
            }
        }
        if client.is_stuck() {
            return !flags.intersects(EventFlags::ERR | EventFlags::HUP);
        }
        let sent = match client.receive() {
            Incoming::Nothing => return !flags.intersects(EventFlags::ERR | EventFlags::HUP),
            Incoming::Closed => return false,
            Incoming::Rubbish => {
                self.counters.add(Counter::ClientsDropped);
                return false;
            }
            Incoming::Refuse(refusal, sequence) => self.refuse(client, refusal, 0, sequence),
            Incoming::Request(request, _) if client.surplus && !is_control(client, &request) => {
                let _ = self.refuse(client, Refusal::Limit, 0, request.sequence);
                return false;
            }
            Incoming::Request(request, fds) => {
                self.counters.add(Counter::Requests);
                self.handle(client, &request, fds)
            }
        };
        if sent.is_ok() && client.is_stuck() {
            // Nothing more is read before the client has read.
            let data = Token::Client(number).data();
            let _ = epoll::modify(&self.epoll, &*client, data, EventFlags::OUT);
        }
        sent.is_ok()
    }

    /// Tells a client no, and counts it.
    pub(super) fn refuse(
        &mut self,
        client: &mut Client,
        refusal: Refusal,
        detail: u32,
        sequence: u32,
    ) -> Result<(), Errno> {
        self.counters.add(Counter::RequestsRefused);
        self.counters.add(match refusal {
            Refusal::Version => Counter::RefusedVersion,
            Refusal::Malformed => Counter::RefusedMalformed,
            Refusal::NotOwner => Counter::RefusedNotOwner,
            Refusal::NoInterface => Counter::RefusedNoInterface,
            Refusal::QueueBusy => Counter::RefusedQueueBusy,
            Refusal::NotAllowed => Counter::RefusedNotAllowed,
            Refusal::Limit => Counter::RefusedLimit,
            Refusal::System => Counter::RefusedSystem,
            Refusal::Conflict => Counter::RefusedConflict,
            Refusal::PidNamespace => Counter::RefusedPidNamespace,
        });
        let reply = Reply {
            refusal: refusal as u16,
            detail,
            sequence,
            ..Reply::new(ReplyKind::Refused)
        };
        client.reply(reply, &[])
    }

    fn drop_hopeless_clients(&mut self) {
        let hopeless: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.is_hopeless())
            .map(|(number, _)| *number)
            .collect();
        for number in hopeless {
            self.counters.add(Counter::ClientsDropped);
            if let Some(client) = self.clients.remove(&number) {
                self.client_gone(&client);
            }
        }
    }
}

/// Whether this is root looking or intervening, which a full daemon must allow.
fn is_control(client: &Client, request: &Request) -> bool {
    let kind = RequestKind::from_wire(request.kind);
    client.peer.uid == 0
        && matches!(
            kind,
            Some(
                RequestKind::Query
                    | RequestKind::RemoveStatic
                    | RequestKind::Shutdown
                    | RequestKind::Reload
            )
        )
}
