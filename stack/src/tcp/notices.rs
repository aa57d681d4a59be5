//! Notices: what the error queue of a connection tells of its sends. One that was asked not to copy
//! has copied (SO_EE_ORIGIN_ZEROCOPY); the last byte of one has left, by the host's clock or the
//! NIC's ([`super::departures`]), or was acknowledged (SO_EE_ORIGIN_TIMESTAMPING).
//!
//! Few sockets ask for any, so a control block has one word for it: the connection's
//! [`NoticeQueue`], with two lists. A send *awaits* its notices by the sequence number behind its
//! last byte; [`crate::Stack::settle`] moves what has happened to the notices that are *told*,
//! which the program reads. All of it is in the image: whoever shares the socket shares its error
//! queue, over a fork too.

use super::connection::Connection;
use super::options::TcpOptions;
use super::seq::before;
use super::tcb::TcpState;
use crate::image::NONE;
use crate::stack::Stack;
use crate::types::{EndpointId, Instant, Stale};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most notices of one connection that wait to be read, and most sends that await some. The kernel
/// charges the former against the receive buffer and net.core.optmem_max, 768 bytes each; their
/// defaults take so many.
pub(super) const MOST: u16 = 170;

/// A send's last byte has gone to the queueing discipline (SOF_TIMESTAMPING_TX_SCHED).
pub const TX_SCHED: u32 = 1 << 8;
/// It has gone to the device (SOF_TIMESTAMPING_TX_SOFTWARE).
pub const TX_SOFTWARE: u32 = 1 << 1;
/// It has left, by the NIC's clock (SOF_TIMESTAMPING_TX_HARDWARE). Of NICs that do not tell that,
/// nothing comes.
pub const TX_HARDWARE: u32 = 1;
/// The peer has acknowledged it (SOF_TIMESTAMPING_TX_ACK).
pub const TX_ACK: u32 = 1 << 9;
/// Timestamps name their byte (SOF_TIMESTAMPING_OPT_ID).
pub const OPT_ID: u32 = 1 << 7;
/// Bytes are counted from what was written, not from what was acknowledged
/// (SOF_TIMESTAMPING_OPT_ID_TCP).
pub const OPT_ID_TCP: u32 = 1 << 16;
/// A timestamp comes without its packet (SOF_TIMESTAMPING_OPT_TSONLY).
pub const OPT_TSONLY: u32 = 1 << 11;
/// The host's time comes beside the NIC's (SOF_TIMESTAMPING_OPT_TX_SWHW), not only for want of it.
pub const OPT_TX_SWHW: u32 = 1 << 14;
/// What a send can await here.
const AWAITABLE: u32 = TX_HARDWARE | TX_SCHED | TX_SOFTWARE | TX_ACK;

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NoticeKind {
    /// Sends with MSG_ZEROCOPY were copied and their memory is the program's again.
    Copied = 1,
    /// See [`TX_SCHED`].
    Scheduled = 2,
    /// See [`TX_SOFTWARE`].
    Sent = 3,
    /// See [`TX_ACK`].
    Acknowledged = 4,
    /// See [`TX_HARDWARE`].
    Stamped = 5,
}

/// One notice, as the program reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub kind: NoticeKind,
    /// The first of the sends that it is about, counted from 0. For timestamps 1 when the kernel's
    /// would come with the packet, without [`OPT_TSONLY`].
    pub first: u32,
    /// The last of them. For timestamps the number of the byte, 0 without [`OPT_ID`].
    pub last: u32,
    /// When it happened. Of [`NoticeKind::Stamped`] by the NIC's clock, nanoseconds since 1970.
    pub at: Instant,
}

/// A notice that waits to be read, or that a send awaits.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct NoticeSlot {
    pub(crate) next: u32,
    /// Told: a [`NoticeKind`]. Awaited: what still is, bits of [`AWAITABLE`].
    pub(super) kind: u32,
    /// Told: [`Notice::first`]. Awaited: the sequence number behind the send.
    pub(super) first: u32,
    /// Told: [`Notice::last`]. Awaited: the number of the frame that ends the send, 0 = none yet.
    pub(super) last: u32,
    /// Told: [`Notice::at`]. Awaited, with a number: the connection.
    pub(super) at: u64,
}

/// What the error queue of one connection is at.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct NoticeQueue {
    /// Chain of the free ones.
    next: u32,
    told: List,
    pub(super) awaited: List,
    /// Entries of the two lists.
    tells: u16,
    awaits: u16,
    /// The next send with MSG_ZEROCOPY.
    copies: u32,
    /// Sequence number from which [`OPT_ID`] counts bytes.
    base: u32,
}

impl NoticeQueue {
    const EMPTY: Self = Self {
        next: NONE,
        told: List::EMPTY,
        awaited: List::EMPTY,
        tells: 0,
        awaits: 0,
        copies: 0,
        base: 0,
    };

    /// First, last and number of what is told, and of what is awaited.
    pub(crate) fn lists(&self) -> [(u32, u32, u16); 2] {
        [
            (self.told.head, self.told.tail, self.tells),
            (self.awaited.head, self.awaited.tail, self.awaits),
        ]
    }
}

/// A list of notices, first in, first out.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct List {
    pub(super) head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
    };

    fn append(&mut self, slots: &mut [NoticeSlot], index: u32) {
        match slots.get_mut(self.tail as usize) {
            Some(last) if self.head != NONE => last.next = index,
            _ => self.head = index,
        }
        self.tail = index;
    }

    fn take_first(&mut self, slots: &[NoticeSlot]) -> Option<(u32, NoticeSlot)> {
        let index = self.head;
        let slot = *slots.get(index as usize)?;
        self.head = slot.next;
        if slot.next == NONE {
            self.tail = NONE;
        }
        Some((index, slot))
    }
}

/// Which places of a slab are taken. It is not written before it is needed, so that it costs no
/// memory where nobody asks for notices.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Places {
    /// The first of those that were given back.
    pub(crate) free: u32,
    /// How many were ever taken: those behind them are untouched.
    pub(crate) used: u32,
}

/// An entry of a slab with [`Places`].
pub(crate) trait Place: Copy {
    fn next(&self) -> u32;
    fn link(&mut self, next: u32);
}

impl Place for NoticeSlot {
    fn next(&self) -> u32 {
        self.next
    }

    fn link(&mut self, next: u32) {
        self.next = next;
    }
}

impl Place for NoticeQueue {
    fn next(&self) -> u32 {
        self.next
    }

    fn link(&mut self, next: u32) {
        self.next = next;
    }
}

impl Places {
    /// All are free.
    pub(crate) const NEW: Self = Self {
        free: NONE,
        used: 0,
    };

    /// Takes a place for `what`; `None` when the slab is full.
    fn take<T: Place>(&mut self, slab: &mut [T], what: T) -> Option<u32> {
        let index = if self.free == NONE {
            self.used
        } else {
            self.free
        };
        let place = slab.get_mut(index as usize)?;
        if self.free == NONE {
            self.used = self.used.saturating_add(1);
        } else {
            self.free = place.next();
        }
        *place = what;
        place.link(NONE);
        Some(index)
    }

    fn has_room<T>(&self, slab: &[T]) -> bool {
        self.free != NONE || (self.used as usize) < slab.len()
    }

    fn give_back<T: Place>(&mut self, slab: &mut [T], index: u32) {
        if let Some(place) = slab.get_mut(index as usize) {
            place.link(self.free);
            self.free = index;
        }
    }
}

impl Connection<'_> {
    /// There is a notice to read: as after an error, whoever waits for anything hears of it
    /// (net/core/sock.c:sock_def_error_report).
    fn notice_edge(&mut self) {
        self.readable_edge();
        self.writable_edge();
    }
}

impl Stack<'_> {
    /// A send with MSG_ZEROCOPY has copied all its bytes: tells it, by one notice with those of the
    /// sends before it that were not read yet (net/core/skbuff.c:skb_zerocopy_notify_extend).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_copied(&mut self, id: EndpointId, now: Instant) -> Result<(), Stale> {
        self.tcp(id)?;
        let now = self.forward(now);
        let Some(queue) = self.notice_queue_mut(id.index) else {
            return Ok(());
        };
        let number = queue.copies;
        queue.copies = number.wrapping_add(1);
        let tail = queue.told.tail;
        // A range of all numbers there are would look like none.
        let joins = |last: &&mut NoticeSlot| {
            last.kind == NoticeKind::Copied as u32
                && last.last.wrapping_add(1) == number
                && last.first != number
        };
        match self.notices.get_mut(tail as usize).filter(joins) {
            Some(last) => {
                last.last = number;
                self.report_notice(id.index);
            }
            None => self.tell(id.index, NoticeKind::Copied, (number, number), now),
        }
        Ok(())
    }

    /// Whether the error queue has room for what one more send has to tell.
    #[must_use]
    pub fn tcp_may_notice(&mut self, id: EndpointId) -> bool {
        let is_there = self.tcp(id).is_ok() && self.head.notices.has_room(self.notices);
        let queue = self.notice_queue_mut(id.index).filter(|_| is_there);
        queue.is_some_and(|queue| queue.tells < MOST)
    }

    /// The send that has just ended awaits these timestamps: [`TX_SCHED`], [`TX_SOFTWARE`],
    /// [`TX_ACK`], [`TX_HARDWARE`]. To be called before its frames are taken to be sent: the NIC
    /// does not tell of what it has.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_await(&mut self, id: EndpointId, asked: u32, now: Instant) -> Result<(), Stale> {
        let end = self.tcp(id)?.tcb.write_seq;
        let kind = self.awaitable(id.index, asked & AWAITABLE);
        let awaits = NoticeSlot {
            next: NONE,
            kind,
            first: end,
            last: 0,
            at: 0,
        };
        if awaits.kind == 0 || self.notice_queue_mut(id.index).is_none() {
            return Ok(());
        }
        self.make_room(id.index);
        let number = self.notice_number(id.index);
        let queue = self.notice_queues.get_mut(number as usize);
        if let Some(queue) = queue.filter(|queue| queue.awaits < MOST)
            && let Some(place) = self.head.notices.take(self.notices, awaits)
        {
            queue.awaited.append(self.notices, place);
            queue.awaits = queue.awaits.saturating_add(1);
            let options = &mut self.tcp(id)?.tcb.options;
            options.set(TcpOptions::AWAITS, true);
            if kind & TX_HARDWARE != 0 {
                options.set(TcpOptions::AWAITS_CARD, true);
            }
        }
        self.settle(id.index, now);
        Ok(())
    }

    /// SO_TIMESTAMPING of a connection; with [`OPT_ID`] new among the flags bytes are counted from
    /// here (net/core/sock.c:sock_set_timestamping).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_set_timestamping(&mut self, id: EndpointId, flags: u32) -> Result<(), Stale> {
        let connection = self.tcp(id)?;
        let tcb = connection.tcb;
        let old = core::mem::replace(&mut tcb.options.timestamping, flags);
        let base = if flags & OPT_ID_TCP != 0 {
            tcb.write_seq
        } else {
            tcb.snd_una
        };
        if flags & !old & OPT_ID != 0
            && let Some(queue) = self.notice_queue_mut(id.index)
        {
            queue.base = base;
        }
        Ok(())
    }

    /// Takes the first notice off the error queue. When there are more, they are reported again
    /// (net/core/skbuff.c:sock_dequeue_err_skb).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_take_notice(&mut self, id: EndpointId) -> Result<Option<Notice>, Stale> {
        self.tcp(id)?;
        let number = self.notice_number(id.index);
        let Some(queue) = self.notice_queues.get_mut(number as usize) else {
            return Ok(None);
        };
        let Some((index, slot)) = queue.told.take_first(self.notices) else {
            return Ok(None);
        };
        queue.tells = queue.tells.saturating_sub(1);
        let more = queue.told.head != NONE;
        self.head.notices.give_back(self.notices, index);
        if more {
            self.report_notice(id.index);
        }
        let kind = match slot.kind {
            1 => NoticeKind::Copied,
            2 => NoticeKind::Scheduled,
            3 => NoticeKind::Sent,
            5 => NoticeKind::Stamped,
            _ => NoticeKind::Acknowledged,
        };
        Ok(Some(Notice {
            kind,
            first: slot.first,
            last: slot.last,
            at: Instant(slot.at),
        }))
    }

    /// Whether there is something to read in the error queue.
    pub(crate) fn has_notices(&self, index: u32) -> bool {
        let queue = self.notice_queue(index);
        queue.is_some_and(|queue| queue.told.head != NONE)
    }

    /// Tells what has happened since the last step of what sends await.
    #[cold]
    pub(crate) fn settle_notices(&mut self, index: u32, now: Instant) {
        let Some(tcb) = self.tcbs.get(index as usize) else {
            return;
        };
        let (sent, acked) = (tcb.snd_nxt, tcb.snd_una);
        let Some(&queue) = self.notice_queue(index) else {
            return;
        };
        let mut place = queue.awaited.head;
        for _ in 0..MOST {
            let Some(slot) = self.notices.get_mut(place as usize) else {
                break;
            };
            let end = slot.first;
            let due = if !before(acked, end) {
                slot.kind & !TX_HARDWARE
            } else if !before(sent, end) {
                slot.kind & (TX_SCHED | TX_SOFTWARE)
            } else {
                break;
            };
            slot.kind &= !due;
            place = slot.next;
            for (bit, kind) in [
                (TX_SCHED, NoticeKind::Scheduled),
                (TX_SOFTWARE, NoticeKind::Sent),
                (TX_ACK, NoticeKind::Acknowledged),
            ] {
                if due & bit != 0 {
                    self.tell_of_send(index, kind, end, now);
                }
            }
        }
        self.end_awaits(index);
    }

    /// Tells of the send that ends before this sequence number.
    pub(super) fn tell_of_send(&mut self, index: u32, kind: NoticeKind, end: u32, at: Instant) {
        let flags = self.tcbs.get(index as usize);
        let flags = flags.map_or(0, |tcb| tcb.options.timestamping);
        let base = self.notice_queue(index).map_or(0, |queue| queue.base);
        let key = if flags & OPT_ID == 0 {
            0
        } else {
            end.wrapping_sub(1).wrapping_sub(base)
        };
        let with_packet = u32::from(flags & OPT_TSONLY == 0);
        self.tell(index, kind, (with_packet, key), at);
    }

    /// Forgets the sends at the front of the list that await nothing any more. When the connection
    /// has ended that is all of them but those that have left: the NIC tells when.
    pub(super) fn end_awaits(&mut self, index: u32) {
        let tcb = self.tcbs.get(index as usize);
        let closed = tcb.is_some_and(|tcb| tcb.state() == TcpState::Closed);
        let number = self.notice_number(index);
        let Some(queue) = self.notice_queues.get_mut(number as usize) else {
            return;
        };
        for _ in 0..MOST {
            let first = self.notices.get(queue.awaited.head as usize);
            let waits = |slot: &NoticeSlot| match closed {
                true => slot.kind & TX_HARDWARE != 0 && slot.last != 0,
                false => slot.kind != 0,
            };
            if first.is_none_or(waits) {
                break;
            }
            if let Some((place, _)) = queue.awaited.take_first(self.notices) {
                self.head.notices.give_back(self.notices, place);
                queue.awaits = queue.awaits.saturating_sub(1);
            }
        }
        if queue.awaited.head == NONE
            && let Some(tcb) = self.tcbs.get_mut(index as usize)
        {
            let bits = TcpOptions::AWAITS | TcpOptions::AWAITS_CARD;
            tcb.options.set(bits, false);
        }
    }

    /// Appends a notice to those to read, if there is room.
    fn tell(&mut self, index: u32, kind: NoticeKind, (first, last): (u32, u32), now: Instant) {
        let number = self.notice_number(index);
        let notice = NoticeSlot {
            next: NONE,
            kind: kind as u32,
            first,
            last,
            at: now.0,
        };
        let queue = self.notice_queues.get_mut(number as usize);
        if let Some(queue) = queue.filter(|queue| queue.tells < MOST)
            && let Some(place) = self.head.notices.take(self.notices, notice)
        {
            queue.told.append(self.notices, place);
            queue.tells = queue.tells.saturating_add(1);
            self.report_notice(index);
        }
    }

    fn report_notice(&mut self, index: u32) {
        if let Some(mut connection) = self.connection(index) {
            connection.notice_edge();
        }
    }

    /// Which place the connection's queue has; [`NONE`] = it has none.
    pub(super) fn notice_number(&self, index: u32) -> u32 {
        let tcb = self.tcbs.get(index as usize);
        tcb.map_or(NONE, |tcb| tcb.notices.wrapping_sub(1))
    }

    /// The connection's queue, if it has one.
    pub(super) fn notice_queue(&self, index: u32) -> Option<&NoticeQueue> {
        self.notice_queues.get(self.notice_number(index) as usize)
    }

    /// The connection's queue, which is made if there is none; `None` when there is no room.
    fn notice_queue_mut(&mut self, index: u32) -> Option<&mut NoticeQueue> {
        let mut number = self.notice_number(index);
        if number == NONE {
            let queues = &mut self.head.notice_queues;
            number = queues.take(self.notice_queues, NoticeQueue::EMPTY)?;
            self.tcbs.get_mut(index as usize)?.notices = number.wrapping_add(1);
        }
        self.notice_queues.get_mut(number as usize)
    }

    /// The connection's endpoint ends: nobody can read its notices any more.
    pub(crate) fn drop_notices(&mut self, index: u32) {
        let Some(tcb) = self.tcbs.get_mut(index as usize) else {
            return;
        };
        if tcb.notices == 0 {
            return;
        }
        let number = core::mem::take(&mut tcb.notices).wrapping_sub(1);
        let Some(queue) = self.notice_queues.get_mut(number as usize) else {
            return;
        };
        let mut lists = [queue.told, queue.awaited];
        *queue = NoticeQueue::EMPTY;
        for list in &mut lists {
            for _ in 0..MOST {
                let Some((place, _)) = list.take_first(self.notices) else {
                    break;
                };
                self.head.notices.give_back(self.notices, place);
            }
        }
        self.head
            .notice_queues
            .give_back(self.notice_queues, number);
    }
}
