//! poll and epoll over sockets of ours.

use std::collections::VecDeque;
use std::ffi::c_int;

use bypass_stack::{Readiness, event};
use libc::{EPOLLERR, EPOLLET, EPOLLEXCLUSIVE, EPOLLHUP, EPOLLONESHOT, epoll_event};

use crate::kernel::Answer;
use crate::turns::{wait, with};
use crate::world::{Socket, World};

/// Readiness of a descriptor; `None`: none of ours.
fn readiness(world: &mut World, fd: c_int) -> Option<Readiness> {
    match world.sockets.get(&fd)?.id() {
        Some(id) => world.stack().readiness(id).ok(),
        // A socket without a connection (net/ipv4/tcp.c:tcp_poll in TCP_CLOSE).
        None => Some(Readiness {
            events: event::OUT | event::WRNORM | event::HUP,
            in_edge: 0,
            out_edge: 0,
        }),
    }
}

/// When a wait of so many milliseconds ends; negative = never.
fn deadline(timeout: c_int) -> Option<u64> {
    let ms = u64::try_from(timeout).ok()?;
    with(|world| world.now + ms * 1_000_000)
}

/// poll(2): fills the results in; how many have one.
pub fn poll(entries: &mut [libc::pollfd], timeout: c_int) -> usize {
    wait(deadline(timeout), |world| {
        let mut count = 0;
        for entry in &mut *entries {
            let events = readiness(world, entry.fd).map(|found| found.events);
            let wanted = entry.events | libc::POLLERR | libc::POLLHUP;
            let found = events.map_or(libc::POLLNVAL, |events| events as i16 & wanted);
            entry.revents = found;
            count += usize::from(found != 0);
        }
        (count > 0).then_some(count)
    })
    .unwrap_or(0)
}

/// A member of an epoll set.
#[derive(Debug)]
struct Member {
    fd: c_int,
    /// As the program has set them.
    events: u32,
    data: u64,
    /// Edges that were told, `None` = none yet.
    told: Option<(u32, u32)>,
    /// EPOLLONESHOT has fired.
    rests: bool,
}

/// An epoll set: its members, who was told last at the end.
#[derive(Debug, Default)]
pub struct EpollSet(VecDeque<Member>);

impl EpollSet {
    /// The descriptor was closed.
    pub fn forget(&mut self, fd: c_int) {
        self.0.retain(|member| member.fd != fd);
    }
}

/// epoll_ctl(2).
///
/// # Errors
/// As the kernel's.
pub fn control(set: c_int, op: c_int, fd: c_int, event: epoll_event) -> Answer {
    with(|world| {
        if !world.sockets.contains_key(&fd) {
            return Err(libc::EBADF);
        }
        let set = world.sets.get_mut(&set).ok_or(libc::EINVAL)?;
        let place = set.0.iter().position(|member| member.fd == fd);
        let member = Member {
            fd,
            events: event.events,
            data: event.u64,
            told: None,
            rests: false,
        };
        match (op, place) {
            (libc::EPOLL_CTL_ADD, None) => set.0.push_back(member),
            (libc::EPOLL_CTL_ADD, Some(_)) => return Err(libc::EEXIST),
            (_, None) => return Err(libc::ENOENT),
            (libc::EPOLL_CTL_MOD, Some(place)) => {
                let exclusive = EPOLLEXCLUSIVE as u32;
                if (set.0[place].events | event.events) & exclusive != 0 {
                    return Err(libc::EINVAL);
                }
                set.0[place] = member;
            }
            (libc::EPOLL_CTL_DEL, Some(place)) => {
                set.0.remove(place);
            }
            _ => return Err(libc::EINVAL),
        }
        Ok(0)
    })
    .unwrap_or(Err(libc::EBADF))
}

/// epoll_wait(2): fills events in; how many.
///
/// # Errors
/// As the kernel's.
pub fn epoll_wait(set: c_int, into: &mut [epoll_event], timeout: c_int) -> Answer {
    if into.is_empty() || !with(|world| world.sets.contains_key(&set)).unwrap_or(false) {
        return Err(libc::EINVAL);
    }
    let count = wait(deadline(timeout), |world| {
        let mut members = std::mem::take(&mut world.sets.get_mut(&set)?.0);
        let mut count = 0;
        for _ in 0..members.len() {
            let Some(mut member) = members.pop_front() else {
                break;
            };
            let events = told(world, &mut member);
            if events != 0 && count < into.len() {
                into[count] = epoll_event {
                    events,
                    u64: member.data,
                };
                count += 1;
            }
            members.push_back(member);
        }
        world.sets.get_mut(&set)?.0 = members;
        (count > 0).then_some(count)
    });
    Ok(count.unwrap_or(0) as isize)
}

/// What a member has to tell.
fn told(world: &mut World, member: &mut Member) -> u32 {
    let Some(now) = readiness(world, member.fd).filter(|_| !member.rests) else {
        return 0;
    };
    let wanted = member.events | (EPOLLERR | EPOLLHUP) as u32;
    let events = now.events & wanted;
    if member.events & EPOLLET as u32 != 0 {
        let edges = (now.in_edge, now.out_edge);
        if member.told.replace(edges) == Some(edges) {
            return 0;
        }
    }
    if events != 0 && member.events & EPOLLONESHOT as u32 != 0 {
        member.rests = true;
    }
    events
}

/// Whether the descriptor has an endpoint or may get one.
#[must_use]
pub fn is_ours(fd: c_int) -> bool {
    with(|world| matches!(world.sockets.get(&fd), Some(Socket::Fresh | _))).unwrap_or(false)
}
