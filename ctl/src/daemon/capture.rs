//! A connection of the kernel's as a [`Parcel`]: the reverse of [`super::repair`].
//!
//! ```text
//!   no segment comes any more    its flow leads to the stack's queue
//!   what is unread               by one ordinary recv, when all else has been tried: a thread of
//!                                the program's gets what is before that, or nothing
//!   TCP_REPAIR on                no receive gets anything from here on; sends wait for the stack's
//!                                lock, and those that do not fail while no queue is chosen
//!   numbers, windows, options, what is sent and unsent
//!   connect to nowhere           a closed socket, the shadow; nothing is sent, sleepers wake
//! ```

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bypass_runtime::tcp_options::{self, Shadow};
use bypass_runtime::tcp_settings;
use bypass_stack::{ConnectionRecord, Family, SocketAddress, TcpOptions, TcpState};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, Shutdown, bind, connect_unspec, getpeername, getsockname, recv, shutdown, sockopt,
};

use super::bequeath::closed_socket;
use super::repair::{self, Parcel};
use super::sockopt::{self as own, IPPROTO_TCP, Name, SOL_SOCKET};

// linux/tcp.h.
const INFO: Name = (IPPROTO_TCP, 11);
const ULP: Name = (IPPROTO_TCP, 31);
// asm-generic/socket.h.
const MARK: Name = (SOL_SOCKET, 36);
const TIMESTAMPING: Name = (SOL_SOCKET, 37);
const PEEK_OFF: Name = (SOL_SOCKET, 42);
const ZEROCOPY: Name = (SOL_SOCKET, 60);
/// SIOCINQ, SIOCOUTQ and SIOCOUTQNSD of linux/sockios.h: not read, written and not acknowledged,
/// and not sent.
const INQ: u32 = 0x541b;
const OUTQ: u32 = 0x5411;
const OUTQNSD: u32 = 0x894b;
/// Most bytes of one of its queues: more than that stays in the kernel.
const MOST: u32 = 1 << 20;
/// Most bytes that the program has not read.
const MOST_UNREAD: u32 = 16 << 20;
/// How long a connection is tried of which bytes have been read, while something is sent on it.
const PATIENCE: Duration = Duration::from_millis(5);
/// Bytes of `struct tcp_info` that are read: up to `tcpi_advmss`.
const INFO_BYTES: usize = 88;
/// Bits of `tcpi_options`.
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const WINDOW_SCALE: u8 = 4;
const ECN: u8 = 8;

/// Why a connection stays in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stays {
    /// It is closed, or was never one.
    Gone,
    /// Another descriptor or process has it too.
    Shared,
    /// It is being closed.
    Closing,
    /// No queue of ours has its segments.
    Way,
    /// It has something that only the kernel has.
    Option,
    /// Too much of it waits to be sent.
    Full,
    /// The kernel refuses.
    Refused,
}

impl Stays {
    /// For people.
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::Gone => "closed",
            Self::Shared => "another descriptor or process has it too",
            Self::Closing => "one end has been closed by the program",
            Self::Way => "its segments do not come by a queue of the stack",
            Self::Option => "it uses what only the kernel has",
            Self::Full => "no room for it, or too much waits to be sent",
            Self::Refused => "the kernel refuses (it takes Linux 6.7 or later, without nohz_full)",
        }
    }
}

impl From<Errno> for Stays {
    fn from(_: Errno) -> Self {
        Self::Refused
    }
}

/// Both ends as the kernel knows them.
pub(super) fn ends(socket: &OwnedFd) -> Option<(SocketAddress, SocketAddress)> {
    let address = |name: SocketAddr| SocketAddress::new(name.ip().into(), name.port());
    let local = SocketAddr::try_from(getsockname(socket).ok()?).ok()?;
    let remote = SocketAddr::try_from(getpeername(socket).ok()??).ok()?;
    Some((address(local), address(remote)))
}

/// Whether the connection is one that can be taken as it is. Nothing changes.
pub(super) fn check(socket: &OwnedFd) -> Result<(), Stays> {
    let state = own::tcp_state(socket).map_err(|_| Stays::Gone)?;
    match TcpState::from_byte(state) {
        TcpState::Established | TcpState::CloseWait => {}
        TcpState::Closed | TcpState::Listen => return Err(Stays::Gone),
        _ => return Err(Stays::Closing),
    }
    let is_set = |name| own::number(socket, name).is_ok_and(|value| value != 0);
    let mut text = [0; 16];
    let has_ulp = own::get(socket, ULP, &mut text).is_ok_and(|length| length > 0);
    let peeks = own::number(socket, PEEK_OFF).is_ok_and(|value| value.cast_signed() >= 0);
    if has_ulp || peeks || own::is_owned(socket) {
        return Err(Stays::Option);
    }
    if [MARK, TIMESTAMPING, ZEROCOPY].into_iter().any(is_set) {
        return Err(Stays::Option);
    }
    let wanted = PollFlags::PRI | PollFlags::RDHUP;
    let mut polled = [PollFd::new(socket, wanted)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now))?;
    let [told] = polled.map(|it| it.revents());
    if told.contains(PollFlags::PRI) {
        return Err(Stays::Option);
    }
    // The program reads no more (shutdown with SHUT_RD).
    if told.contains(PollFlags::RDHUP) && state != TcpState::CloseWait as u8 {
        return Err(Stays::Closing);
    }
    if own::waiting(socket, OUTQ)? > MOST {
        return Err(Stays::Full);
    }
    Ok(())
}

/// Takes the connection out of its socket, and whether that is a closed one with its name then; if
/// it is not, the caller gives the connection back. Its segments must have ceased to come. Beside
/// an error the socket has it; but one that was read from and cannot be taken is reset.
pub(super) fn take(socket: &OwnedFd) -> Result<(Parcel, Result<(), Stays>), Stays> {
    let is_reused = sockopt::socket_reuseaddr(socket)?;
    let name = SocketAddr::try_from(getsockname(socket)?)?;
    let parcel = freeze_and_read(socket)?;
    if let Err(why) = connect_unspec(socket) {
        thaw(socket);
        if !parcel.unread.is_empty() {
            reset(socket);
        }
        return Err(why.into());
    }
    let closed = becomes_shadow(socket, name);
    // Repair mode has taken it.
    let _ = sockopt::set_socket_reuseaddr(socket, is_reused);
    Ok((parcel, closed))
}

/// Binds the socket, which has been disconnected, to its name again and ends repair mode. The
/// program must not have used that to get a port that another has.
fn becomes_shadow(socket: &OwnedFd, name: SocketAddr) -> Result<(), Stays> {
    for _ in 0..4 {
        // Who has not bound it himself has lost the port, which its name goes on to tell
        // (net/ipv4/tcp.c:tcp_set_state). Who has is answered EINVAL; if it was to any address,
        // that is its name again (tcp_disconnect).
        let bound = bind(socket, &name);
        let off = repair::put(socket, repair::REPAIR, repair::REPAIR_OFF_NO_PROBE).is_ok();
        let is_closed = own::tcp_state(socket) == Ok(TcpState::Closed as u8);
        let now = getsockname(socket).and_then(SocketAddr::try_from);
        let is_named = now.is_ok_and(|now| match bound {
            Ok(()) => now == name,
            Err(Errno::INVAL) => {
                now == name || (now.ip().is_unspecified() && now.port() == name.port())
            }
            Err(_) => false,
        });
        if off && is_closed && is_named {
            return Ok(());
        }
        // It is listening, or connected.
        let _ = connect_unspec(socket);
    }
    thaw(socket);
    Err(Stays::Refused)
}

/// Everything of a connection on which no call has an effect from here on. What has been read
/// cannot be put back: so everything that may fail is tried before.
fn freeze_and_read(socket: &OwnedFd) -> Result<Parcel, Stays> {
    let options = options(socket);
    let parcel = freeze(socket, options, Vec::new())?;
    if own::waiting(socket, INQ) == Ok(0) {
        return Ok(parcel);
    }
    thaw(socket);
    let unread = drain(socket)?;
    let is_read = !unread.is_empty();
    let parcel = freeze(socket, options, unread);
    if parcel.is_err() && is_read {
        reset(socket);
    }
    parcel
}

/// What is frozen, or an error and the connection goes on in the kernel.
fn freeze(socket: &OwnedFd, options: TcpOptions, unread: Vec<u8>) -> Result<Parcel, Stays> {
    repair::put(socket, repair::REPAIR, 1)?;
    let patience = if unread.is_empty() {
        Duration::ZERO
    } else {
        PATIENCE
    };
    let end = Instant::now() + patience;
    let mut parcel = copy(socket, options, &unread);
    let mut more = 0..3;
    while matches!(parcel, Err(Errno::AGAIN)) && (more.next().is_some() || Instant::now() < end) {
        parcel = copy(socket, options, &unread);
    }
    if parcel.is_err() {
        thaw(socket);
    }
    Ok(Parcel { unread, ..parcel? })
}

/// Ends a connection of which bytes are lost: its program must not read on behind them.
fn reset(socket: &OwnedFd) {
    if connect_unspec(socket).is_err() {
        let _ = shutdown(socket, Shutdown::Both);
    }
}

/// The connection goes on in the kernel.
fn thaw(socket: &OwnedFd) {
    let _ = repair::put(socket, repair::REPAIR, repair::REPAIR_OFF_NO_PROBE);
}

/// What can be read, by one call. It keeps the socket's lock to its end, so that no thread of the
/// program's reads from the middle (net/ipv4/tcp.c:tcp_recvmsg).
fn drain(socket: &OwnedFd) -> Result<Vec<u8>, Stays> {
    // Nothing should come any more; a buffer that is not touched costs nothing.
    const SLACK: usize = 1 << 20;
    let is_closing = own::tcp_state(socket)? == TcpState::CloseWait as u8;
    let waiting = own::waiting(socket, INQ)?;
    if waiting > MOST_UNREAD {
        return Err(Stays::Full);
    }
    let mut bytes = Vec::with_capacity(waiting as usize + SLACK);
    loop {
        match recv(socket, spare_capacity(&mut bytes), RecvFlags::DONTWAIT) {
            // The peer's end, or the program reads no more.
            Ok((_, 0)) if !is_closing => return Err(Stays::Closing),
            Ok(_) | Err(Errno::AGAIN) => return Ok(bytes),
            Err(Errno::INTR) => {}
            Err(_) => return Err(Stays::Gone),
        }
    }
}

/// What a frozen connection consists of, without what is unread. EAGAIN: something has been sent
/// meanwhile.
fn copy(socket: &OwnedFd, options: TcpOptions, unread: &[u8]) -> Result<Parcel, Errno> {
    let (local, remote) = ends(socket).ok_or(Errno::NOTCONN)?;
    let info = Info::of(socket)?;
    let state = TcpState::from_byte(info.state);
    // The program may have said since that it sends no more. Each FIN is a byte to the kernel.
    let (fin, our_fin) = match state {
        TcpState::Established => (0, 0),
        TcpState::CloseWait => (1, 0),
        TcpState::FinWait1 | TcpState::FinWait2 => (0, 1),
        TcpState::LastAck => (1, 1),
        _ => return Err(Errno::NOTCONN),
    };
    let rcv_nxt = seq(socket, repair::RECV_QUEUE)?.wrapping_sub(fin);
    let (written, write_seq) = written(socket, our_fin)?;
    let unsent = own::waiting(socket, OUTQNSD)?;
    let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = windows(socket)?;
    // The end of the window that was told stays where it is.
    let told_fin = u32::from(fin == 1 && rcv_wup.wrapping_sub(rcv_nxt) == 1);
    let mut flags = info.negotiated();
    if fin == 1 {
        flags |= ConnectionRecord::FIN_RECEIVED;
    }
    if our_fin == 1 {
        flags |= ConnectionRecord::SEND_SHUT;
    }
    if our_fin == 1 && unsent == 0 {
        flags |= ConnectionRecord::FIN_SENT;
    }
    let record = ConnectionRecord {
        local_ip: local.ip,
        remote_ip: remote.ip,
        local_port: local.port,
        remote_port: remote.port,
        flags,
        snd_una: write_seq.wrapping_sub(written.len() as u32),
        snd_nxt: write_seq.wrapping_sub(unsent.saturating_sub(our_fin)),
        write_seq,
        snd_wl1,
        snd_wnd,
        max_window,
        copied_seq: rcv_nxt.wrapping_sub(unread.len() as u32),
        rcv_nxt,
        rcv_wup: rcv_wup.wrapping_sub(told_fin),
        rcv_wnd: rcv_wnd.saturating_add(told_fin),
        ts_value: timestamp(socket, flags)?,
        ts_recent: 0,
        mss_clamp: own::number(socket, repair::MAXSEG)?.min(0xffff) as u16,
        advertised_mss: info.advertised_mss,
        snd_wscale: info.scales & 15,
        rcv_wscale: info.scales >> 4,
        state: state as u8,
        family: family(socket)? as u8,
        srtt_us: info.srtt_us,
        ifindex: own::bound_interface(socket)?,
    };
    Ok(Parcel {
        record,
        options,
        written,
        unread: Vec::new(),
    })
}

/// Its timestamp clock. The kernel leaves out the lowest bit, and the next segment must not be
/// older than its last one (RFC 7323 section 5.3).
fn timestamp(socket: &OwnedFd, flags: u32) -> Result<u32, Errno> {
    let clock = own::number(socket, repair::TIMESTAMP)?;
    if clock & 1 == 1 && flags & ConnectionRecord::TIMESTAMPS != 0 {
        // It is in microseconds.
        return Err(Errno::NOSYS);
    }
    Ok(clock.wrapping_add(2))
}

/// What TCP_INFO tells.
struct Info {
    state: u8,
    options: u8,
    scales: u8,
    srtt_us: u32,
    advertised_mss: u16,
}

impl Info {
    fn of(socket: &OwnedFd) -> Result<Self, Errno> {
        let mut info = [0; INFO_BYTES];
        if own::get(socket, INFO, &mut info)? < INFO_BYTES {
            return Err(Errno::NOSYS);
        }
        let word = |at: usize| {
            let bytes = info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let [state, _, _, _, _, options, scales, ..] = info;
        Ok(Self {
            state,
            options,
            scales,
            srtt_us: word(68),
            advertised_mss: word(84).min(0xffff) as u16,
        })
    }

    /// What the handshake has agreed on.
    fn negotiated(&self) -> u32 {
        let mut flags = 0;
        for (bit, flag) in [
            (TIMESTAMPS, ConnectionRecord::TIMESTAMPS),
            (SACK, ConnectionRecord::SACK),
            (WINDOW_SCALE, ConnectionRecord::SCALING),
            (ECN, ConnectionRecord::ECN),
        ] {
            if self.options & bit != 0 {
                flags |= flag;
            }
        }
        flags
    }
}

fn seq(socket: &OwnedFd, queue: u32) -> Result<u32, Errno> {
    repair::put(socket, repair::REPAIR_QUEUE, queue)?;
    let number = own::number(socket, repair::QUEUE_SEQ);
    repair::put(socket, repair::REPAIR_QUEUE, repair::NO_QUEUE)?;
    number
}

/// The bytes of the send queue and the number behind them, without a FIN.
fn written(socket: &OwnedFd, fin: u32) -> Result<(Vec<u8>, u32), Errno> {
    repair::put(socket, repair::REPAIR_QUEUE, repair::SEND_QUEUE)?;
    let length = own::waiting(socket, OUTQ)?.saturating_sub(fin) as usize;
    let mut bytes = Vec::with_capacity(length);
    if length > 0 {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(socket, spare_capacity(&mut bytes), flags)?;
    }
    bytes.truncate(length);
    let end = seq(socket, repair::SEND_QUEUE)?.wrapping_sub(fin);
    // No send succeeds any more. One may have while the queue was chosen.
    let is_all = own::waiting(socket, OUTQ)?.saturating_sub(fin) as usize == bytes.len();
    is_all.then_some((bytes, end)).ok_or(Errno::AGAIN)
}

fn windows(socket: &OwnedFd) -> Result<[u32; 5], Errno> {
    let mut bytes = [[0; 4]; 5];
    let length = own::get(socket, repair::REPAIR_WINDOW, bytes.as_flattened_mut())?;
    let windows = bytes.map(u32::from_ne_bytes);
    (length == 20).then_some(windows).ok_or(Errno::PROTO)
}

/// Which packets a socket takes.
pub(super) fn family(socket: &OwnedFd) -> Result<Family, Errno> {
    if sockopt::socket_domain(socket)? == rustix::net::AddressFamily::INET {
        return Ok(Family::V4);
    }
    Ok(match sockopt::ipv6_v6only(socket)? {
        true => Family::V6,
        false => Family::Dual,
    })
}

/// The options of a live connection. Its buffers have grown by themselves, unless they were set.
fn options(socket: &OwnedFd) -> TcpOptions {
    let mut options = tcp_options::read(&Asked(socket));
    let locked = own::number(socket, repair::BUF_LOCK).unwrap_or(0);
    options.set(TcpOptions::SNDBUF_LOCKED, locked & repair::SNDBUF_LOCK != 0);
    options.set(TcpOptions::RCVBUF_LOCKED, locked & repair::RCVBUF_LOCK != 0);
    // It answers what is in force.
    options.max_seg = 0;
    options
}

/// A socket that is asked for its options.
struct Asked<'a>(&'a OwnedFd);

impl Shadow for Asked<'_> {
    fn option(&self, level: i32, name: i32, into: &mut [u8]) -> Option<usize> {
        own::get(self.0, (level, name), into).ok()
    }

    fn fresh_buffers(&self) -> (i32, i32) {
        static FRESH: OnceLock<(i32, i32)> = OnceLock::new();
        *FRESH.get_or_init(|| {
            let size = |name| {
                let fresh = closed_socket(bypass_stack::IpAddress::UNSPECIFIED).ok()?;
                own::number(&fresh, name).ok()
            };
            let of = |name| size(name).unwrap_or(0).cast_signed();
            (of((SOL_SOCKET, 8)), of((SOL_SOCKET, 7)))
        })
    }

    fn is_nonblocking(&self) -> bool {
        rustix::fs::fcntl_getfl(self.0).is_ok_and(|it| it.contains(rustix::fs::OFlags::NONBLOCK))
    }

    fn notsent_lowat(&self) -> u32 {
        tcp_settings::notsent_lowat().unwrap_or(u32::MAX)
    }
}
