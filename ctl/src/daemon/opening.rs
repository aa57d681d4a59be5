//! Interfaces whose queues are not all free yet, and requests that wait for them.
//!
//! The kernel frees a queue some milliseconds after its owner has died, and until then a bind fails
//! with EBUSY. The daemon does not wait: it keeps what it has of the interface, puts the request
//! aside and tries again until [`PATIENCE`] is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bypass_proto::control::Request;

use super::foreign::Foreign;
use super::nics::OpenNic;
use super::server::Server;
use super::stacks::Queue;

/// How long a queue may be somebody else's.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(25);
/// Requests of one client that may wait; the library has one at a time.
const WAITING: usize = 8;
/// Time until an interface is opened again whose stack's lock was busy.
const AGAIN: Duration = Duration::from_millis(250);

/// An interface with the program attached and some of its queues open.
#[derive(Debug)]
pub(super) struct Opening {
    /// The interface.
    pub nic: OpenNic,
    /// Its first queues.
    pub queues: Vec<Queue>,
    begun: Instant,
    tried: Instant,
}

impl Opening {
    /// An interface with no queue open.
    pub(super) fn new(nic: OpenNic) -> Self {
        let now = Instant::now();
        Self {
            nic,
            queues: Vec::new(),
            begun: now,
            tried: now,
        }
    }

    /// Whether a queue that is busy may become free yet.
    pub(super) fn has_patience(&self) -> bool {
        self.begun.elapsed() < PATIENCE
    }

    /// Notes an attempt.
    pub(super) fn tried(self) -> Self {
        Self {
            tried: Instant::now(),
            ..self
        }
    }
}

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Openings {
    /// By interface index.
    interfaces: BTreeMap<u32, Opening>,
    requests: Vec<(u64, Request, Vec<Foreign>)>,
    /// When filters are looked at again because a stack's lock was busy.
    again: Option<Instant>,
}

/// What became of an interface that is on its way.
#[derive(Debug)]
pub(super) enum Pending {
    /// It is nowhere yet.
    None,
    /// It is another stack's, or was tried a moment ago.
    NotNow,
    /// It may be tried again.
    Ready(Box<Opening>),
}

impl Openings {
    /// Keeps an interface for the next attempt.
    pub(super) fn keep(&mut self, ifindex: u32, opening: Opening) {
        self.interfaces.insert(ifindex, opening);
    }

    /// Whose stack an interface is being opened for.
    pub(super) fn owner(&self, ifindex: u32) -> Option<u32> {
        self.interfaces
            .get(&ifindex)
            .map(|opening| opening.nic.owner)
    }

    /// Takes an interface out for an attempt.
    pub(super) fn take(&mut self, ifindex: u32) -> Pending {
        match self.interfaces.get(&ifindex) {
            None => Pending::None,
            Some(opening) if opening.tried.elapsed() < RETRY => Pending::NotNow,
            Some(_) => self
                .interfaces
                .remove(&ifindex)
                .map_or(Pending::None, |opening| Pending::Ready(Box::new(opening))),
        }
    }

    /// Notes that a stack's lock was busy: no event may tell when it is not.
    pub(super) fn try_again(&mut self) {
        self.again.get_or_insert_with(|| Instant::now() + AGAIN);
    }

    /// Forgets what is on its way for a stack that ends.
    pub(super) fn forget(&mut self, uid: u32) {
        self.interfaces
            .retain(|_, opening| opening.nic.owner != uid);
    }

    /// Whether one more request of a client may wait.
    pub(super) fn has_room(&self, client: u64) -> bool {
        let of_client = self.requests.iter().filter(|(owner, ..)| *owner == client);
        of_client.count() < WAITING
    }

    /// Puts a client's request aside.
    pub(super) fn wait(&mut self, client: u64, request: Request, fds: Vec<Foreign>) {
        self.requests.push((client, request, fds));
    }

    /// When the next attempt is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let next = self
            .interfaces
            .values()
            .map(|opening| opening.tried + RETRY);
        let now = (!self.requests.is_empty()).then(Instant::now);
        [next.min(), now, self.again].into_iter().flatten().min()
    }
}

impl Server {
    /// Tries again what waits for queues.
    pub(super) fn continue_openings(&mut self) {
        if self.openings.due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        for (number, request, fds) in std::mem::take(&mut self.openings.requests) {
            let Some(mut client) = self.clients.remove(&number) else {
                continue;
            };
            if self.handle(&mut client, &request, fds).is_ok() {
                self.clients.insert(number, client);
            } else {
                self.client_gone(&client);
            }
        }
        let now = Instant::now();
        let is_again = self.openings.again.take_if(|at| *at <= now).is_some();
        if is_again || !self.openings.interfaces.is_empty() {
            // For filters that other interfaces serve meanwhile.
            self.reconcile_all();
        }
        // Nobody wants these any more.
        self.openings
            .interfaces
            .retain(|_, opening| opening.begun.elapsed() < 2 * PATIENCE);
    }
}
