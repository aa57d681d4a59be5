//! A connection goes from a stack to the kernel: exec, SCM_RIGHTS, whatever only the kernel can do.
//!
//! All of it happens under the stack's lock: what the connection consists of is copied out, the
//! program's own socket is made into it, its segments are led to the kernel, the endpoint ends, and
//! what was in the rings by then is given to the kernel as if it came now. So the peer sees neither
//! a reset nor a loss, but a pause of some hundred microseconds.

use std::os::fd::OwnedFd;

use bypass_proto::control::Refusal;
use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_stack::wire::{TxChecksum, tcp};
use bypass_stack::{
    CannotMove, ConnectionRecord, EndpointId, Instant, Memory, Part, RxChecksum, Span, TcpOptions,
    TcpState,
};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::bequeath::closed_socket;
use super::counters::Counter;
use super::filters::{Filter, TCP};
use super::foreign::Foreign;
use super::outlet::Outlets;
use super::repair::{self, End, Parcel};
use super::requests::Refused;
use super::rollback::{Member, shadow_of};
use super::server::Server;
use super::sockopt as own;

/// Segments that are given to the kernel after a move at most.
const MOST_LEFT: usize = 256;

impl From<CannotMove> for Refused {
    fn from(why: CannotMove) -> Self {
        match why {
            CannotMove::NoConnection => Errno::NOTCONN.into(),
            CannotMove::Handshake => Errno::ALREADY.into(),
            CannotMove::Full => Refusal::Limit.into(),
        }
    }
}

impl Server {
    /// Makes the shadow of a connection into the connection. `shadow` is asked for it under the
    /// stack's lock.
    pub(super) fn transfer(
        &mut self,
        uid: u32,
        endpoint: EndpointId,
        shadow: impl FnOnce() -> Result<Foreign, Refused>,
    ) -> Result<(), Refused> {
        let stack = self.stacks.get(uid).ok_or(Refusal::Malformed)?;
        let mut locked = stack.lock_for_program()?;
        locked.pump(clock::now());
        let twin = locked.stack().tcp_twin(endpoint, clock::now())?;
        let mut members = Vec::new();
        if let Some(twin) = twin {
            // Only who has both ends needs the other's shadow, and looks for it without the lock.
            drop(locked);
            members = self.holders(uid, &twin);
            locked = stack.lock_for_program()?;
            locked.pump(clock::now());
        }
        let mut ends = Vec::new();
        let moved = self.transfer_of(&mut locked, uid, (endpoint, shadow), &members, &mut ends);
        drop(locked);
        if moved.is_err() && twin.is_some_and(|twin| !twin.is_orphan) {
            // Who has it may not be known yet.
            self.chores.look_for_relatives(uid);
        }
        moved?;
        self.counters
            .add_many(Counter::ConnectionsMoved, ends.len() as u64);
        Foreign::close_later(ends.into_iter().map(|end| end.socket));
        Ok(())
    }

    /// The same for one who has the stack's lock, has just pumped, and counts what has moved. It
    /// gets the ends, moved or not, of which the sockets are to be closed when the lock is given
    /// back. There are two when both ends of the connection are in this stack; the other's shadow
    /// is one of `members`.
    pub(super) fn transfer_of(
        &self,
        locked: &mut Locked<'_>,
        uid: u32,
        (endpoint, shadow): (EndpointId, impl FnOnce() -> Result<Foreign, Refused>),
        members: &[Member],
        ends: &mut Vec<End>,
    ) -> Result<(), Refused> {
        // What waits to be sent leaves first: the peer throws late segments with old timestamps
        // away.
        locked.send();
        let now = clock::now();
        let twin = locked.stack().tcp_twin(endpoint, now)?;
        let end = self.pack(locked, (uid, now), endpoint, |_| shadow())?;
        let local = end.parcel.record.local_ip;
        ends.push(end);
        if let Some(twin) = twin {
            let shadow = |record: &ConnectionRecord| match twin.is_orphan {
                true => Ok(closed_socket(record.local_ip)?.into()),
                false => shadow_of(members, twin.endpoint),
            };
            let mut other = self.pack(locked, (uid, now), twin.endpoint, shadow)?;
            if twin.is_orphan {
                // The daemon, which closes it, does not wait.
                other.parcel.options.set(TcpOptions::LINGER, false);
            }
            ends.push(other);
        }
        if !locked.stack().tcp_may_leave(ends.len() as u32) {
            return Err(Refusal::Limit.into());
        }
        let mut outlets = Outlets::default();
        let flows = locked.flows();
        repair::build(ends, &mut outlets, || {
            for end in ends.iter() {
                let record = &end.parcel.record;
                flows.remove(record.local(), record.remote());
            }
        })?;
        for end in ends.iter() {
            locked.stack().tcp_leave(end.endpoint, now)?;
        }
        for frame in frames_left(locked, now) {
            let _ = outlets.send(local, &frame);
        }
        Ok(())
    }

    /// A connection with all that it consists of, and its shadow.
    fn pack(
        &self,
        locked: &mut Locked<'_>,
        (uid, now): (u32, Instant),
        endpoint: EndpointId,
        shadow: impl FnOnce(&ConnectionRecord) -> Result<Foreign, Refused>,
    ) -> Result<End, Refused> {
        let record = locked.stack().tcp_record(endpoint, now)?;
        // What an image says is not believed: the address is one whose flows were granted.
        let granted = |filter: &Filter| filter.uid == uid && filter.wish.grants(record.local());
        if self.filters.ids(granted).is_empty() {
            return Err(Refusal::NotOwner.into());
        }
        let socket = shadow(&record)?;
        self.check_shadow(&socket)?;
        // Of the end that the kernel's connection had when it came here.
        let _ = sockopt::socket_error(&socket);
        let parcel = Parcel {
            record,
            options: *locked
                .stack()
                .tcp_options(endpoint)
                .map_err(|_| Errno::NOTCONN)?,
            written: bytes(locked, endpoint, Part::Written),
            unread: bytes(locked, endpoint, Part::Unread),
        };
        Ok(End {
            endpoint,
            socket,
            parcel,
        })
    }

    /// A TCP socket of this namespace that is neither connected nor listens.
    fn check_shadow(&self, shadow: &OwnedFd) -> Result<(), Refused> {
        let protocol = sockopt::socket_protocol(shadow).map_err(|_| Refusal::Malformed)?;
        if protocol.is_none_or(|it| it.as_raw().get() != u32::from(TCP)) {
            return Err(Refusal::Malformed.into());
        }
        if own::namespace_cookie(shadow) != Ok(self.namespace) {
            return Err(Refusal::NotOwner.into());
        }
        // A raw socket, whose protocol may be TCP too, has no state.
        let state = own::tcp_state(shadow).map_err(|_| Refusal::Malformed)?;
        if state == TcpState::Closed as u8 {
            Ok(())
        } else {
            Err(Errno::ISCONN.into())
        }
    }
}

/// The bytes of one of a connection's queues.
fn bytes(locked: &mut Locked<'_>, endpoint: EndpointId, part: Part) -> Vec<u8> {
    let mut spans: Vec<Span> = Vec::new();
    let _ = locked
        .stack()
        .tcp_part(endpoint, part, &mut |span| spans.push(span));
    let mut bytes = Vec::new();
    for span in spans {
        let start = span.offset as usize;
        let chunk = locked.packets().chunk(span.chunk);
        bytes.extend_from_slice(
            chunk
                .get(start..start + span.len as usize)
                .unwrap_or_default(),
        );
    }
    bytes
}

/// The segments of connections that have left, which are still in the rings, with whole checksums.
fn frames_left(locked: &mut Locked<'_>, now: Instant) -> Vec<Vec<u8>> {
    let mut left = Vec::new();
    locked.pump_left(now, &mut |frame| {
        if left.len() < MOST_LEFT {
            left.extend(whole(frame));
        }
    });
    left
}

/// The frame once more. (Between veth devices the checksum of one that was received is not whole.)
fn whole(frame: &[u8]) -> Option<Vec<u8>> {
    let segment = tcp::parse(frame, &[0; 6], RxChecksum::Partial).ok()?;
    let start = usize::from(segment.payload_offset);
    let payload = frame.get(start..start + usize::from(segment.payload_len))?;
    let headers = tcp::Headers {
        source_mac: [0; 6],
        destination_mac: [0; 6],
        source: segment.source,
        destination: segment.destination,
        source_port: segment.source_port,
        destination_port: segment.destination_port,
        seq: segment.seq,
        ack: segment.ack,
        flags: segment.flags,
        window: segment.window,
        urgent: segment.urgent,
        tos: segment.tos,
        ttl: segment.ttl.max(1),
        ipv4_id: 0,
        options: segment.options,
        checksum: TxChecksum::Whole,
    };
    let is_v4 = segment.destination.is_v4();
    let mut bytes = vec![0; tcp::headers_len(is_v4, &segment.options)];
    bytes.extend_from_slice(payload);
    tcp::emit(&mut bytes, &headers);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use bypass_stack::IpAddress;

    use super::*;

    #[test]
    fn a_frame_with_half_a_checksum_becomes_whole() {
        let headers = tcp::Headers {
            source_mac: [2; 6],
            destination_mac: [4; 6],
            source: IpAddress::from_v4([198, 18, 0, 2]),
            destination: IpAddress::from_v4([198, 18, 0, 1]),
            source_port: 40_000,
            destination_port: 80,
            seq: 17,
            ack: 18,
            flags: tcp::flags::ACK | tcp::flags::PSH,
            window: 501,
            urgent: 0,
            tos: 0,
            ttl: 64,
            ipv4_id: 7,
            options: tcp::Options {
                timestamps: Some(tcp::Timestamps { value: 1, echo: 2 }),
                ..tcp::Options::default()
            },
            checksum: TxChecksum::Whole,
        };
        let mut frame = vec![0; tcp::headers_len(true, &headers.options)];
        frame.extend_from_slice(b"payload");
        tcp::emit(&mut frame, &headers);
        let again = whole(&frame).expect("a segment");
        let segment = tcp::parse(&again, &[0; 6], RxChecksum::Unknown).expect("a whole checksum");
        assert_eq!((segment.seq, segment.ack, segment.window), (17, 18, 501));
        assert_eq!(segment.options, headers.options);
        assert!(again.ends_with(b"payload"));
    }
}
