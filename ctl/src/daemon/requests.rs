//! What clients ask, and who may.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bypass_proto::control::{QueryKind, Refusal, Reply, ReplyKind, Request, RequestKind};
use bypass_stack::{EndpointId, IpAddress, ProcessId};
use rustix::io::Errno;
use rustix::net::sockopt;
use serde_json::json;

use super::client::Client;
use super::counters::Counter;
use super::filters::{Filter, TCP};
use super::foreign::Foreign;
use super::process::{self, Process};
use super::proof;
use super::rollback::Whom;
use super::server::{Server, Token};
use super::stacks::Busy;
use super::statics::StaticFilter;
use super::watch;

/// A refusal with its errno, or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// errno of [`Refusal::System`].
    pub detail: u32,
}

impl Refused {
    /// Not an answer: the request waits for a queue to become free.
    pub(super) fn not_yet() -> Self {
        Errno::INPROGRESS.into()
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, detail: 0 }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self {
            refusal: Refusal::System,
            detail: errno.raw_os_error().unsigned_abs(),
        }
    }
}

impl From<Busy> for Refused {
    fn from(_: Busy) -> Self {
        Errno::BUSY.into()
    }
}

impl Server {
    /// Answers a request. An error means that the connection is of no use any more.
    pub(super) fn handle(
        &mut self,
        client: &mut Client,
        request: &Request,
        fds: Vec<Foreign>,
    ) -> Result<(), Errno> {
        let sequence = request.sequence;
        let answer = match self.answer(client, request, &fds) {
            Ok(answer) => answer,
            Err(refused)
                if refused == Refused::not_yet() && self.openings.has_room(client.number) =>
            {
                self.openings.wait(client.number, *request, fds);
                return Ok(());
            }
            Err(refused) => {
                drop(fds);
                return self.refuse(client, refused.refusal, refused.detail, sequence);
            }
        };
        // Before the reply: once the program has it, it may close its socket and bind the address
        // anew, which a copy that is still open here would prevent.
        drop(fds);
        match answer {
            Answer::None => Ok(()),
            Answer::Reply(reply) => client.reply(Reply { sequence, ..reply }, &[]),
            Answer::Text(text) => client.reply_text(sequence, &text),
            Answer::Stack(reply) => {
                let Some(stack) = client.stack.and_then(|uid| self.stacks.get(uid)) else {
                    return self.refuse(client, Refusal::System, 0, sequence);
                };
                client.reply(Reply { sequence, ..reply }, &stack.shared())
            }
            Answer::Queues(uid, reply) => {
                let Some(stack) = self.stacks.get(uid) else {
                    return self.refuse(client, Refusal::System, 0, sequence);
                };
                let links = self.nics.of_owner(uid).filter_map(|(_, nic)| nic.link());
                let fds: Vec<BorrowedFd<'_>> = stack.queue_fds().chain(links).collect();
                client.reply(Reply { sequence, ..reply }, &fds)
            }
        }
    }

    fn answer(
        &mut self,
        client: &mut Client,
        request: &Request,
        fds: &[Foreign],
    ) -> Result<Answer, Refused> {
        let kind = RequestKind::from_wire(request.kind).ok_or(Refusal::Malformed)?;
        let takes_one = matches!(kind, RequestKind::AddFilter | RequestKind::HandOver);
        if !fds.is_empty() && !takes_one {
            return Err(Refusal::Malformed.into());
        }
        match kind {
            RequestKind::Attach => self.attach(client).map(Answer::Stack),
            RequestKind::QueuePairs => {
                // Whoever finds a port taken asks this, and then for the port again; so does a
                // parent before it forks that finds no place for its child. (And others, who wait
                // until the daemon has done what it was told, or look for new queues.)
                self.bury_waiting(client.stack.unwrap_or(client.peer.uid));
                self.queue_pairs(client)
            }
            RequestKind::AddFilter => self.add_filter(client, request, fds).map(Answer::Reply),
            RequestKind::AddPorts => self.add_ports(client, request).map(Answer::Reply),
            RequestKind::RemoveFilter => self
                .answer_remove_filter(client, request)
                .map(|()| Answer::None),
            RequestKind::HandOver => self.answer_hand_over(client, request, fds),
            RequestKind::Lend => self.lend(client, request).map(Answer::Reply),
            RequestKind::Forked => self.forked(client, request).map(|()| Answer::None),
            RequestKind::Resolve => {
                self.stack_of(client).ok_or(Refusal::Malformed)?;
                self.mirror
                    .resolve(IpAddress(request.remote), request.ifindex);
                Ok(Answer::None)
            }
            RequestKind::Query => self.answer_query(client, request).map(Answer::Text),
            RequestKind::AddStatic => self.add_static(client, request).map(Answer::Reply),
            RequestKind::RemoveStatic => {
                privileged(client)?;
                if self.filters.statics.remove(request.filter).is_none() {
                    return Err(Refusal::Malformed.into());
                }
                self.statics_changed();
                Ok(Answer::Reply(Reply::new(ReplyKind::End)))
            }
            RequestKind::Reload => {
                privileged(client)?;
                let error = self.reload();
                let text = json!({"config": self.config.path, "error": error}).to_string();
                Ok(Answer::Text(text))
            }
            RequestKind::RollBack | RequestKind::TakeBack => {
                privileged(client)?;
                let whom = Whom::of_request(request);
                let done = if kind == RequestKind::RollBack {
                    self.roll_back(whom)
                } else {
                    self.take_back(whom, request.listen != 0)
                };
                Ok(Answer::Text(done.to_json().to_string()))
            }
            RequestKind::Shutdown => {
                privileged(client)?;
                self.stopping = true;
                Ok(Answer::Reply(Reply::new(ReplyKind::End)))
            }
        }
    }

    /// A client gives a filter of its stack back.
    fn answer_remove_filter(
        &mut self,
        client: &mut Client,
        request: &Request,
    ) -> Result<(), Refused> {
        let uid = self.stack_of(client).ok_or(Refusal::Malformed)?;
        let filter = self.filters.get(request.filter);
        if filter.is_some_and(|filter| filter.uid == uid) {
            self.counters.add(Counter::FiltersRemoved);
            self.retire_filter(request.filter);
        }
        Ok(())
    }

    /// Connections of the client's stack become the kernel's: those of a filter, or the one whose
    /// shadow came along.
    fn answer_hand_over(
        &mut self,
        client: &mut Client,
        request: &Request,
        fds: &[Foreign],
    ) -> Result<Answer, Refused> {
        let uid = self.stack_of(client).ok_or(Refusal::Malformed)?;
        let count = match fds {
            [] => self.hand_over(uid, request.filter)?,
            [shadow] => {
                let copy = || Ok(shadow.try_clone().map_err(|_| Errno::MFILE)?.into());
                self.transfer(uid, endpoint_of(request), copy)?;
                1
            }
            _ => return Err(Refusal::Malformed.into()),
        };
        Ok(Answer::Reply(Reply {
            count,
            ..Reply::new(ReplyKind::End)
        }))
    }

    /// The socket of an endpoint's filters is lent from now on, or no longer.
    fn lend(&mut self, client: &mut Client, request: &Request) -> Result<Reply, Refused> {
        let uid = self.stack_of(client).ok_or(Refusal::Malformed)?;
        let endpoint = endpoint_of(request);
        for id in self.filters.set_lent(uid, endpoint, request.listen == 0) {
            self.reconcile(id);
        }
        Ok(Reply::new(ReplyKind::End))
    }

    /// What the tool asks for, as JSON.
    fn answer_query(&mut self, client: &mut Client, request: &Request) -> Result<String, Refused> {
        let kinds = [
            QueryKind::Filters,
            QueryKind::Stacks,
            QueryKind::Daemon,
            QueryKind::Interfaces,
        ];
        let query = kinds.into_iter().find(|kind| *kind as u32 == request.query);
        let query = query.ok_or(Refusal::Malformed)?;
        if query == QueryKind::Interfaces && self.sees_foreign_programs() {
            // The kernel announces no program that goes with its last link.
            self.mirror.refresh_now(&mut self.counters);
            self.follow_mirror();
        }
        Ok(self.query(query, client.peer.uid).to_string())
    }

    /// Whether the mirror shows XDP programs on interfaces that are not open.
    fn sees_foreign_programs(&self) -> bool {
        let mut links = self.mirror.links();
        links.any(|link| link.xdp_program != 0 && self.nics.get(link.ifindex).is_none())
    }

    fn queue_pairs(&mut self, client: &mut Client) -> Result<Answer, Refused> {
        let uid = self.stack_of(client).ok_or(Refusal::Malformed)?;
        let stack = self.stacks.get(uid).ok_or(Refusal::Malformed)?;
        let reply = Reply {
            count: stack.queues().len() as u32,
            ring_entries: stack.ring_entries,
            ..Reply::new(ReplyKind::QueuePairs)
        };
        Ok(Answer::Queues(uid, reply))
    }

    /// The stack that a client's requests mean: the one it has attached to on this connection, or
    /// the one whose image its process has mapped. (A forked child that has changed its user since
    /// goes on with its parent's stack.)
    pub(super) fn stack_of(&mut self, client: &mut Client) -> Option<u32> {
        if let Some(uid) = client.stack.filter(|uid| self.stacks.get(*uid).is_some()) {
            return Some(uid);
        }
        let pid = client.peer.pid;
        let inodes = process::mapped_images(pid);
        let stack = inodes
            .into_iter()
            .find_map(|inode| self.stacks.by_inode(inode))?;
        let uid = stack.uid;
        client.stack = Some(uid);
        if self.watch.find(uid, pid, client.peer.start_time).is_none() {
            self.find_relatives(uid);
        }
        Some(uid)
    }

    fn add_filter(
        &mut self,
        client: &mut Client,
        request: &Request,
        fds: &[Foreign],
    ) -> Result<Reply, Refused> {
        let [socket] = fds else {
            return Err(Refusal::Malformed.into());
        };
        let wish = proof::wish(request)?;
        let uid = self.stack_of(client).ok_or(Refusal::Malformed)?;
        proof::check(socket, request, &wish, self.namespace, client.peer.uid)?;
        let pid = client.peer.pid;
        if self.filters.of_process(pid) >= self.config.policy.daemon.filters_per_client {
            return Err(Refusal::Limit.into());
        }
        let endpoint = endpoint_of(request);
        let stack = self.stacks.get(uid).ok_or(Refusal::Malformed)?;
        if !stack.lock()?.stack().is_live(endpoint) {
            return Err(Refusal::Malformed.into());
        }
        let proof = if wish.protocol == TCP {
            let copy = socket.try_clone().map_err(|_| Errno::MFILE)?;
            Some(Arc::new(copy.into()))
        } else {
            None
        };
        let is_users = wish.protocol != TCP && client.peer.uid != 0;
        let cookie = is_users
            .then(|| sockopt::socket_cookie(socket).ok())
            .flatten();
        let id = self.filters.new_id();
        let filter = Filter {
            id,
            uid,
            pid,
            program: client.peer.name().to_owned(),
            endpoint,
            wish,
            entries: Vec::new(),
            rests: false,
            is_lent: false,
            is_port: false,
            may_grow: true,
            proof,
            socket: cookie,
            is_missed: false,
        };
        let count = self.place_filter(filter)?;
        self.counters.add(Counter::FiltersAdded);
        Ok(Reply {
            filter: id,
            count,
            ..Reply::new(ReplyKind::Filter)
        })
    }

    fn add_static(&mut self, client: &Client, request: &Request) -> Result<Reply, Refused> {
        privileged(client)?;
        let wish = proof::wish(request)?;
        let id = self.filters.new_id();
        let filter = StaticFilter::of_request(id, wish, request).ok_or(Refusal::Malformed)?;
        if let Some(filter) = self.filters.statics.same(&filter) {
            return Ok(Reply {
                filter,
                detail: Errno::EXIST.raw_os_error().unsigned_abs(),
                ..Reply::new(ReplyKind::Filter)
            });
        }
        if !self.filters.statics.insert(filter) {
            return Err(Refusal::Limit.into());
        }
        self.statics_changed();
        Ok(Reply {
            filter: id,
            ..Reply::new(ReplyKind::Filter)
        })
    }

    /// Brings everybody's filters in line with the static ones, and writes those down.
    pub(super) fn statics_changed(&mut self) {
        self.reconcile_all();
        for stack in self.stacks.iter() {
            // Without it they end with this daemon.
            let _ = stack.cplane.save(&self.filters.statics);
        }
        // Ports that one of them covers are not kept any more.
        let users: Vec<u32> = self.stacks.iter().map(|stack| stack.uid).collect();
        for uid in users {
            self.sweep_filters(uid);
        }
    }

    /// A program says which process now owns a slot of its stack.
    fn forked(&mut self, client: &mut Client, request: &Request) -> Result<(), Refused> {
        let uid = self.stack_of(client).ok_or(Refusal::Malformed)?;
        let slot = u8::try_from(request.process).map_err(|_| Refusal::Malformed)?;
        let slot = ProcessId(slot);
        let parent = client.peer.pid;
        let pid = if process::shares_pids(parent) {
            Some(request.pid)
        } else {
            process::child_of(parent, request.pid)
        };
        let Some(child) = pid.and_then(Process::find) else {
            // It has ended already; its slot is found by the next look at the image.
            self.chores.look_for_relatives(uid);
            return Ok(());
        };
        if self.watch.find(uid, child.pid, child.start_time).is_some() {
            return Ok(());
        }
        if child.uid != client.peer.uid && client.peer.uid != 0 {
            return Err(Refusal::NotAllowed.into());
        }
        self.watch_process(uid, &child, slot)
    }

    /// Watches a process in a slot of a stack, and writes into the image whose slot it is.
    pub(super) fn watch_process(
        &mut self,
        uid: u32,
        process: &Process,
        slot: ProcessId,
    ) -> Result<(), Refused> {
        let watched = watch::open(process.pid, process.start_time, None, uid, slot)?;
        if let Some(old) = self.watch.of_slot(uid, slot) {
            self.watch.remove(old);
        }
        let number = self.watch.insert(watched);
        if let Some(watched) = self.watch.get(number) {
            self.listen_to(watched, Token::Process(number))?;
        }
        if let Some(stack) = self.stacks.get(uid)
            && let Ok(mut locked) = stack.lock()
        {
            locked
                .stack()
                .set_process_pid(slot, process.pid, process.start_time);
        }
        Ok(())
    }
}

/// What a request is answered with.
enum Answer {
    None,
    Reply(Reply),
    Text(String),
    /// With what an attached program gets.
    Stack(Reply),
    /// With the queue pairs of the stack of this user.
    Queues(u32, Reply),
}

/// The endpoint that a request is about.
fn endpoint_of(request: &Request) -> EndpointId {
    EndpointId {
        index: request.endpoint_index,
        generation: request.endpoint_generation,
    }
}

fn privileged(client: &Client) -> Result<(), Refused> {
    if client.peer.uid == 0 {
        Ok(())
    } else {
        Err(Refusal::NotAllowed.into())
    }
}
