//! A program joins the stack of its user.

use bypass_proto::control::{Refusal, Reply, ReplyKind};
use bypass_proto::policy::Peer;
use bypass_stack::ProcessId;
use rustix::event::epoll;
use rustix::io::Errno;

use super::client::Client;
use super::counters::Counter;
use super::nics;
use super::process::{self, Process};
use super::requests::Refused;
use super::server::{Server, Token};
use super::stacks::{self, StackEntry};
use super::{sockopt, watch};
use crate::source::rtnetlink::LinkInfo;

impl Server {
    /// Gives a program a process slot in the stack of its user, which is made if need be.
    pub(super) fn attach(&mut self, client: &mut Client) -> Result<Reply, Refused> {
        if self.config.error.is_some() || !self.is_allowed(&client.peer) {
            return Err(Refusal::NotAllowed.into());
        }
        let peer = &client.peer;
        let uid = peer.uid;
        if peer.pid == 0 || peer.start_time == 0 {
            // Invisible from here or gone already: its end could not be noticed.
            return Err(Errno::SRCH.into());
        }
        if let Some((number, slot)) = self.watch.find(uid, peer.pid, peer.start_time) {
            let inode = self.stacks.get(uid).map(|stack| stack.inode);
            let is_joined = client.stack == Some(uid)
                || inode.is_some_and(|inode| process::mapped_images(peer.pid).contains(&inode));
            if is_joined {
                client.stack = Some(uid);
                return Ok(self.attached(uid, u32::from(slot.0)));
            }
            // The same process runs another program now.
            self.process_gone(number);
        }
        if self.is_foreign(peer) {
            return Err(Refusal::PidNamespace.into());
        }
        self.ensure_stack(uid)?;
        if self.stacks.get(uid).is_some_and(StackEntry::is_full) {
            // The dead give their places back first; a stack that has none but dead ones ends.
            self.bury_waiting(uid);
            self.ensure_stack(uid)?;
        }
        let slot = self.place(peer)?.ok_or(Refusal::Limit)?;
        // The kernel's own word on who connected, where it gives it (Linux 6.5).
        let pidfd = sockopt::peer_pidfd(&*client).ok();
        let watched = match watch::open(peer.pid, peer.start_time, pidfd, uid, slot) {
            Ok(watched) => watched,
            Err(errno) => {
                self.chores.remove_slot(uid, slot);
                return Err(errno.into());
            }
        };
        let number = self.watch.insert(watched);
        if let Some(watched) = self.watch.get(number) {
            self.listen_to(watched, Token::Process(number))?;
        }
        client.stack = Some(uid);
        if let Some(stack) = self.stacks.get_mut(uid) {
            stack.has_foreign_pids |= !process::shares_pids(client.peer.pid);
        }
        Ok(self.attached(uid, u32::from(slot.0)))
    }

    /// A place for a process in the stack of its user; `None` when all are taken.
    fn place(&self, peer: &Process) -> Result<Option<ProcessId>, Refused> {
        let stack = self.stacks.get(peer.uid).ok_or(Errno::INVAL)?;
        let mut locked = stack.lock()?;
        Ok(locked
            .stack()
            .add_process(peer.pid, peer.start_time, peer.uid))
    }

    /// Whether programs of another pid namespace have the stack of a program's user. They could not
    /// tell each other's threads from dead ones, and would take its lock over from living owners.
    fn is_foreign(&self, peer: &Process) -> bool {
        self.watch
            .iter()
            .filter(|(_, other)| other.uid == peer.uid)
            .any(|(_, other)| process::differ_in_pids(other.pid, peer.pid))
    }

    fn attached(&self, uid: u32, process: u32) -> Reply {
        let chunk_size = self.stacks.get(uid).map_or(0, |stack| stack.chunk_size);
        Reply {
            process,
            chunk_size,
            ..Reply::new(ReplyKind::Attached)
        }
    }

    fn is_allowed(&self, process: &Process) -> bool {
        let policy = &self.config.policy.daemon;
        // Names are looked up only when somebody asks for them.
        let by_name = policy.allow.is_some();
        let user = by_name.then(|| process::user_name(process.uid)).flatten();
        let groups: Vec<String> = if by_name {
            process
                .gids
                .iter()
                .filter_map(|gid| process::group_name(*gid))
                .collect()
        } else {
            Vec::new()
        };
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        policy.allows(&Peer {
            uid: process.uid,
            user: user.as_deref(),
            gids: &process.gids,
            groups: &groups,
            program: &process.program,
        })
    }

    fn ensure_stack(&mut self, uid: u32) -> Result<(), Refused> {
        if self.stacks.get(uid).is_some() {
            return Ok(());
        }
        let policy = &self.config.policy.daemon;
        let fit = || {
            self.mirror.links().filter(|link| {
                let is_port = self.devices.port(link.ifindex).is_some();
                nics::unfit(link, is_port, policy).is_none()
            })
        };
        let is_zero_copy = |link: &LinkInfo| self.config.policy.zero_copy(&link.name);
        let chunk_size = stacks::chunk_size(fit(), is_zero_copy);
        let queues = fit().map(|link| link.rx_queues.clamp(1, 32)).sum();
        let entries = stacks::ring_entries(policy.chunks, queues);
        let stack = StackEntry::make(uid, self.namespace, policy, chunk_size, entries)?;
        // Without it static filters end with this daemon.
        let _ = stack.cplane.save(&self.filters.statics);
        self.counters.add(Counter::StacksMade);
        self.stacks.insert(stack);
        self.unpublished = true;
        self.publish();
        Ok(())
    }

    /// A connection has ended. The program may live on: it has lost interest, or runs another
    /// program now, which has nothing of the stack any more.
    pub(super) fn client_gone(&mut self, client: &Client) {
        // It may be closed later only.
        let _ = epoll::delete(&self.epoll, client);
        for (number, uid) in self.watch.of_pid(client.peer.pid) {
            let inode = self.stacks.get(uid).map_or(0, |stack| stack.inode);
            if !process::mapped_images(client.peer.pid).contains(&inode) {
                self.process_gone(number);
            }
        }
    }
}
