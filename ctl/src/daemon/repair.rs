//! A kernel socket becomes an established connection (TCP_REPAIR: net/ipv4/tcp.c, tcp_repair of
//! linux/tcp.h). Nothing is sent while it is put together. The peer hears of it when it waits for
//! something: by a window probe at the end.
//!
//! ```text
//!   TCP_REPAIR on        bind takes any port, connect sends nothing
//!   sequence numbers, bind, connect
//!   options              MSS, window scale, SACK, timestamps, timestamp clock
//!   queues               unread data, sent data and the FIN behind it; nothing leaves
//!   windows
//!   the peer's FIN       as a packet over the loopback interface
//!   TCP_REPAIR off       a window probe leaves, if there is need
//!   unsent data, FIN     as any program's
//! ```

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use bypass_stack::wire::TxChecksum;
use bypass_stack::wire::tcp::{self, flags};
use bypass_stack::{ConnectionRecord, EndpointId, IpAddress, SocketAddress, TcpOptions, TcpState};
use rustix::io::Errno;
use rustix::net::{
    SendFlags, Shutdown, bind, connect, connect_unspec, getsockname, send, shutdown, sockopt,
};

use super::dress::dress;
use super::foreign::Foreign;
use super::outlet::Outlets;
use super::sockopt::{self as own, IPPROTO_TCP, Name, SOL_SOCKET};

// linux/tcp.h.
pub(super) const MAXSEG: Name = (IPPROTO_TCP, 2);
pub(super) const REPAIR: Name = (IPPROTO_TCP, 19);
pub(super) const REPAIR_QUEUE: Name = (IPPROTO_TCP, 20);
pub(super) const QUEUE_SEQ: Name = (IPPROTO_TCP, 21);
const REPAIR_OPTIONS: Name = (IPPROTO_TCP, 22);
pub(super) const TIMESTAMP: Name = (IPPROTO_TCP, 24);
pub(super) const REPAIR_WINDOW: Name = (IPPROTO_TCP, 29);
// asm-generic/socket.h.
const REUSEADDR: Name = (SOL_SOCKET, 2);
const REUSEPORT: Name = (SOL_SOCKET, 15);
const SNDBUFFORCE: Name = (SOL_SOCKET, 32);
const RCVBUFFORCE: Name = (SOL_SOCKET, 33);
const TIMESTAMPING: Name = (SOL_SOCKET, 37);
pub(super) const BUF_LOCK: Name = (SOL_SOCKET, 72);
/// Bits of SO_BUF_LOCK.
pub(super) const SNDBUF_LOCK: u32 = 1;
pub(super) const RCVBUF_LOCK: u32 = 2;
/// Values of TCP_REPAIR that end it.
pub(super) const REPAIR_OFF: u32 = 0;
pub(super) const REPAIR_OFF_NO_PROBE: u32 = u32::MAX;
/// Queues of TCP_REPAIR_QUEUE; none is chosen at first. While one is, a send puts its bytes there
/// and succeeds; else it fails.
pub(super) const NO_QUEUE: u32 = 0;
pub(super) const RECV_QUEUE: u32 = 1;
pub(super) const SEND_QUEUE: u32 = 2;
/// Kinds of TCP options (RFC 9293 section 3.2, RFC 7323, RFC 2018).
const KIND_MSS: u32 = 2;
const KIND_WINDOW_SCALE: u32 = 3;
const KIND_SACK_PERMITTED: u32 = 4;
const KIND_TIMESTAMPS: u32 = 8;
/// Bytes that are put into a queue at a time: one allocation of the kernel's each.
const PIECE: usize = 16 * 1024;
/// Bytes that a fresh socket's buffers surely take.
const SMALL: u32 = 16 * 1024;
/// Looks for the peer's FIN to arrive, which the loopback interface may put off.
const LOOKS: u32 = 1000;

/// Everything of a connection.
#[derive(Debug)]
pub(super) struct Parcel {
    /// Numbers and windows.
    pub record: ConnectionRecord,
    /// What the socket's buffers are like.
    pub options: TcpOptions,
    /// Sent and not acknowledged, then not sent.
    pub written: Vec<u8>,
    /// Received and not read.
    pub unread: Vec<u8>,
}

impl Parcel {
    /// The bytes of both queues, sent, unsent; `None` when the record does not agree with them.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        let record = &self.record;
        let distance = |from: u32, to: u32| to.wrapping_sub(from) as usize;
        let sent = distance(record.snd_una, record.snd_nxt);
        let sound = distance(record.snd_una, record.write_seq) == self.written.len()
            && distance(record.copied_seq, record.rcv_nxt) == self.unread.len();
        self.written.split_at_checked(sent).filter(|_| sound)
    }
}

/// A closed socket and the connection that it becomes.
#[derive(Debug)]
pub(super) struct End {
    /// The connection's endpoint.
    pub endpoint: EndpointId,
    /// The socket.
    pub socket: Foreign,
    /// The connection.
    pub parcel: Parcel,
}

/// Makes connections of closed sockets, up to the moment at which their segments may come: then
/// `ready` is called, which leads them there. Two that are the ends of one connection are made
/// together: whichever came first would be answered with a reset.
///
/// # Errors
/// What the kernel refuses; the sockets are closed as before.
pub(super) fn build(
    ends: &[End],
    outlets: &mut Outlets,
    ready: impl FnOnce(),
) -> Result<(), Errno> {
    if let Err(errno) = assemble(ends, outlets) {
        ends.iter().for_each(End::undo);
        return Err(errno);
    }
    ready();
    for end in ends {
        let _ = put(&end.socket, REPAIR, end_of_repair(&end.parcel.record));
    }
    ends.iter().for_each(finish);
    Ok(())
}

/// First everything that makes a connection, then what a connection must be there for.
fn assemble(ends: &[End], outlets: &mut Outlets) -> Result<(), Errno> {
    for End { socket, parcel, .. } in ends {
        let (sent, _) = parcel.split().ok_or(Errno::PROTO)?;
        dress(socket, &parcel.options);
        put(socket, REPAIR, 1)?;
        connection(socket, parcel, sent)?;
    }
    ends.iter().try_for_each(|end| fins(end, outlets))
}

impl End {
    /// The socket is closed again. In repair mode nobody is told of it.
    fn undo(&self) {
        let _ = connect_unspec(&self.socket);
        let _ = sockopt::socket_error(&self.socket);
        let _ = put(&self.socket, REPAIR, REPAIR_OFF);
    }
}

/// How repair mode ends: with a window probe when the peer's bytes are not acknowledged yet, which
/// it does by the way, or when the peer has closed its window, which it asks for; else without.
fn end_of_repair(record: &ConnectionRecord) -> u32 {
    let is_quiet = record.rcv_wup == record.rcv_nxt && record.snd_wnd != 0;
    if is_quiet {
        REPAIR_OFF_NO_PROBE
    } else {
        REPAIR_OFF
    }
}

pub(super) fn put(socket: &OwnedFd, name: Name, value: u32) -> Result<(), Errno> {
    own::set(socket, name, &value.to_ne_bytes())
}

/// The connection, established.
fn connection(socket: &OwnedFd, parcel: &Parcel, sent: &[u8]) -> Result<(), Errno> {
    let record = &parcel.record;
    make_room(socket, parcel)?;
    for (queue, seq) in [
        (RECV_QUEUE, record.copied_seq),
        (SEND_QUEUE, record.snd_una),
    ] {
        put(socket, REPAIR_QUEUE, queue)?;
        put(socket, QUEUE_SEQ, seq)?;
    }
    // connect takes the peer's MSS from here, which then bounds every segment.
    put(socket, MAXSEG, u32::from(record.mss_clamp.clamp(88, 32767)))?;
    join_addresses(socket, record)?;
    negotiated(socket, record)?;
    fill_queue(socket, RECV_QUEUE, &parcel.unread)?;
    fill_queue(socket, SEND_QUEUE, sent)?;
    windows(socket, record)
}

/// The FINs that have been sent, in their order.
fn fins(End { socket, parcel, .. }: &End, outlets: &mut Outlets) -> Result<(), Errno> {
    let record = &parcel.record;
    // The order of the ends: who has sent its FIN second is in LAST_ACK, not in CLOSING.
    let state = TcpState::from_byte(record.state);
    let ours_first = state != TcpState::LastAck;
    let ours = || {
        if !record.has(ConnectionRecord::FIN_SENT) {
            return Ok(());
        }
        // With another queue chosen it would leave.
        put(socket, REPAIR_QUEUE, SEND_QUEUE)?;
        shutdown(socket, Shutdown::Write)
    };
    if ours_first {
        ours()?;
    }
    if record.has(ConnectionRecord::FIN_RECEIVED) {
        take_fin(socket, record, outlets)?;
    }
    if !ours_first {
        ours()?;
    }
    Ok(())
}

/// The buffers hold what was promised, whatever they are limited to; afterwards they grow by
/// themselves, unless the program has set them.
fn make_room(socket: &OwnedFd, parcel: &Parcel) -> Result<(), Errno> {
    let record = &parcel.record;
    let written = parcel.written.len() as u32;
    let told = record.rcv_wup.wrapping_add(record.rcv_wnd);
    let receive = told.wrapping_sub(record.copied_seq);
    if written > SMALL {
        put(socket, SNDBUFFORCE, written.saturating_add(SMALL))?;
    }
    if receive > SMALL && receive < 1 << 30 {
        put(socket, RCVBUFFORCE, receive.saturating_add(SMALL))?;
    }
    let mut locked = 0;
    for (bit, lock) in [
        (TcpOptions::SNDBUF_LOCKED, SNDBUF_LOCK),
        (TcpOptions::RCVBUF_LOCKED, RCVBUF_LOCK),
    ] {
        if parcel.options.has(bit) {
            locked |= lock;
        }
    }
    put(socket, BUF_LOCK, locked)
}

fn join_addresses(socket: &OwnedFd, record: &ConnectionRecord) -> Result<(), Errno> {
    let bound = name(socket)?;
    let (local, remote) = (
        address(&bound, record.local(), record.ifindex),
        address(&bound, record.remote(), record.ifindex),
    );
    let is_local = |bound: SocketAddr| (bound.ip(), bound.port()) == (local.ip(), local.port());
    if bound.port() == 0 {
        bind(socket, &local)?;
    } else if bound.port() != record.local_port {
        return Err(Errno::ADDRNOTAVAIL);
    }
    connect(socket, &remote)?;
    // What was bound to any address has the one of the route now.
    if bound.port() == 0 || is_local(bound) || is_local(name(socket)?) {
        Ok(())
    } else {
        Err(Errno::ADDRNOTAVAIL)
    }
}

fn name(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(getsockname(socket)?).map_err(|_| Errno::PROTO)
}

/// An address as a socket knows it that has such a name.
fn address(name: &SocketAddr, of: SocketAddress, ifindex: u32) -> SocketAddr {
    if name.is_ipv4() {
        return SocketAddr::new(of.ip.into(), of.port);
    }
    let scope = if of.ip.is_link_local_v6() { ifindex } else { 0 };
    let IpAddress(octets) = of.ip;
    SocketAddrV6::new(Ipv6Addr::from(octets), of.port, 0, scope).into()
}

/// What the handshake has agreed on.
fn negotiated(socket: &OwnedFd, record: &ConnectionRecord) -> Result<(), Errno> {
    let mut list = vec![[KIND_MSS, u32::from(record.mss_clamp)]];
    if record.has(ConnectionRecord::SCALING) {
        let both = u32::from(record.snd_wscale) | u32::from(record.rcv_wscale) << 16;
        list.push([KIND_WINDOW_SCALE, both]);
    }
    if record.has(ConnectionRecord::SACK) {
        list.push([KIND_SACK_PERMITTED, 0]);
    }
    if record.has(ConnectionRecord::TIMESTAMPS) {
        list.push([KIND_TIMESTAMPS, 0]);
    }
    let bytes: Vec<u8> = list
        .iter()
        .flatten()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    own::set(socket, REPAIR_OPTIONS, &bytes)?;
    if record.has(ConnectionRecord::TIMESTAMPS) {
        // Since Linux 6.7 the lowest bit says that the clock is in microseconds.
        let clock = record.ts_value.wrapping_add(1) & !1;
        put(socket, TIMESTAMP, clock)?;
    }
    Ok(())
}

/// Puts bytes into a queue.
fn fill_queue(socket: &OwnedFd, queue: u32, bytes: &[u8]) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    put(socket, REPAIR_QUEUE, queue)?;
    fill(socket, bytes)
}

/// Sends bytes, in repair mode into the queue that is chosen.
fn fill(socket: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let piece = rest.get(..PIECE).unwrap_or(rest);
        let taken = send(socket, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(())
}

fn windows(socket: &OwnedFd, record: &ConnectionRecord) -> Result<(), Errno> {
    let window = [
        record.snd_wl1,
        record.snd_wnd,
        record.max_window,
        record.rcv_wnd,
        record.rcv_wup,
    ];
    let bytes: Vec<u8> = window.iter().flat_map(|word| word.to_ne_bytes()).collect();
    own::set(socket, REPAIR_WINDOW, &bytes)
}

/// The peer's FIN, which has come, comes once more.
fn take_fin(
    socket: &OwnedFd,
    record: &ConnectionRecord,
    outlets: &mut Outlets,
) -> Result<(), Errno> {
    let before = own::tcp_state(socket)?;
    let timestamps = record
        .has(ConnectionRecord::TIMESTAMPS)
        .then_some(tcp::Timestamps {
            value: record.ts_recent,
            echo: 0,
        });
    let headers = tcp::Headers {
        source_mac: [0; 6],
        destination_mac: [0; 6],
        source: record.remote_ip,
        destination: record.local_ip,
        source_port: record.remote_port,
        destination_port: record.local_port,
        seq: record.rcv_nxt,
        ack: record.snd_una,
        flags: flags::FIN | flags::ACK,
        window: (record.snd_wnd >> record.snd_wscale.min(14)).min(0xffff) as u16,
        urgent: 0,
        tos: 0,
        ttl: 64,
        ipv4_id: 0,
        options: tcp::Options {
            timestamps,
            ..tcp::Options::default()
        },
        checksum: TxChecksum::Whole,
    };
    let mut frame = vec![0; tcp::headers_len(record.local_ip.is_v4(), &headers.options)];
    tcp::emit(&mut frame, &headers);
    outlets.send(record.local_ip, &frame)?;
    for _ in 0..LOOKS {
        if own::tcp_state(socket)? != before {
            return Ok(());
        }
        std::thread::yield_now();
    }
    Err(Errno::TIMEDOUT)
}

/// The connection lives; what fails from here on is seen by the program as on any socket.
fn finish(End { socket, parcel, .. }: &End) {
    let (record, options) = (&parcel.record, &parcel.options);
    if let Some((_, unsent)) = parcel.split() {
        let _ = fill(socket, unsent);
    }
    if record.has(ConnectionRecord::SEND_SHUT) && !record.has(ConnectionRecord::FIN_SENT) {
        let _ = shutdown(socket, Shutdown::Write);
    }
    if record.has(ConnectionRecord::RECEIVE_SHUT) && !record.has(ConnectionRecord::FIN_RECEIVED) {
        let _ = shutdown(socket, Shutdown::Read);
    }
    let _ = put(socket, MAXSEG, u32::from(options.max_seg));
    // What counts bytes needs a connection. Repair mode has taken SO_REUSEADDR.
    for (name, value) in [
        (TIMESTAMPING, options.timestamping),
        (REUSEADDR, options.has(TcpOptions::REUSE_ADDR).into()),
        (REUSEPORT, options.has(TcpOptions::REUSE_PORT).into()),
    ] {
        if value != 0 {
            let _ = put(socket, name, value);
        }
    }
}
