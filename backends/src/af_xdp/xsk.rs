//! AF_XDP sockets: made and bound by the daemon, kicked by whoever sends.
//!
//! ```text
//!   socket ─► register packet memory ─► size four rings ─► bind (interface, queue) ─► XSKMAP
//! ```
//!
//! Each XSK registers the packet memory for itself (its own UMEM over the same pages), because a
//! queue of another interface needs its own fill and completion ring anyway. Copy mode, unless the
//! configuration asks for another thing: in zero-copy mode the kernel's own frames come into our
//! chunks too, where the stack's programs can read them, and a stack that does not take its frames
//! stops the kernel's (docs/adr/0026-zero-copy.md).

#![expect(unsafe_code, reason = "UNSAFETY: setsockopt by its system call")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XdpOptionsFlags, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};

use super::error::{self, NicError, failed};
use super::syscall::{self, syscall};
use super::umem::PacketMemory;
use crate::api::{QueueError, Severity};

/// How long a bind is repeated: the kernel frees a queue some milliseconds after its owner died.
pub(super) const BIND_PATIENCE: Duration = Duration::from_secs(1);
/// Longest pause between two binds.
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// Frames that one doorbell may send (kernels before 6.18: 32).
const TX_BUDGET: u32 = 256;
/// Bytes of sent frames that the kernel may hold for us: a full TX ring and what the driver has.
const SEND_BUFFER: usize = 16 << 20;
/// Most portions of one doorbell: a ring of 2048 entries in portions of 32.
const MOST_PORTIONS: u32 = 64;
/// Most frames that the device may throw away in one doorbell: more than a ring has.
const MOST_DROPS: u32 = 4096;
/// `SOL_XDP`.
const SOL_XDP: usize = 283;
/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h.
const MAX_TX_SKB_BUDGET: usize = 9;

/// An XSK that is bound.
#[derive(Debug)]
pub struct OpenedQueue {
    /// Its descriptor.
    pub fd: OwnedFd,
    /// Why the kernel copies frames, where it was asked not to.
    pub refused: Option<Errno>,
}

/// Makes an XSK with rings of `ring_entries` over the packet memory and binds it to a queue; with
/// `zero_copy` so that the driver uses that memory, where it can.
///
/// # Errors
/// `EBUSY` when another process keeps the queue; see [`NicError`].
pub(super) fn open(
    ifindex: u32,
    queue_id: u32,
    memory: &PacketMemory,
    ring_entries: u32,
    zero_copy: bool,
    patience: Duration,
) -> Result<OpenedQueue, NicError> {
    let fd = socket_with(
        AddressFamily::XDP,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("making an AF_XDP socket (CAP_NET_RAW is needed)"))?;
    let registration = XdpUmemReg {
        addr: memory.address as u64,
        len: memory.bytes as u64,
        chunk_size: memory.chunk_size,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    sockopt::set_xdp_umem_reg(&fd, registration)
        .map_err(|errno| error::register(memory.bytes, memory.chunk_size, errno))?;
    sockopt::set_xdp_umem_fill_ring_size(&fd, ring_entries)
        .and_then(|()| sockopt::set_xdp_umem_completion_ring_size(&fd, ring_entries))
        .and_then(|()| sockopt::set_xdp_rx_ring_size(&fd, ring_entries))
        .and_then(|()| sockopt::set_xdp_tx_ring_size(&fd, ring_entries))
        .map_err(failed("sizing the rings of an AF_XDP socket"))?;
    // Best effort, both: smaller limits cost system calls, not frames.
    if sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
    }
    let _ = set_tx_budget(&fd, TX_BUDGET.min(ring_entries));
    let refused = bind_either(&fd, ifindex, queue_id, zero_copy, patience)
        .map_err(|errno| error::bind(ifindex, queue_id, errno))?;
    Ok(OpenedQueue { fd, refused })
}

/// Binds without copies if that is wanted and can be had, else with; why not without.
fn bind_either(
    fd: &OwnedFd,
    ifindex: u32,
    queue_id: u32,
    zero_copy: bool,
    patience: Duration,
) -> Result<Option<Errno>, Errno> {
    let bind = |how| {
        let flags = how | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        bind_patiently(fd, &SocketAddrXdp::new(flags, ifindex, queue_id), patience)
    };
    let mut refused = None;
    if zero_copy {
        match bind(SocketAddrXdpFlags::XDP_ZEROCOPY) {
            Ok(()) => return Ok(None),
            // These say nothing of copies.
            Err(errno @ (Errno::BUSY | Errno::NODEV | Errno::NETDOWN)) => return Err(errno),
            Err(errno) => refused = Some(errno),
        }
    }
    bind(SocketAddrXdpFlags::XDP_COPY).map(|()| refused)
}

fn bind_patiently(fd: &OwnedFd, address: &SocketAddrXdp, patience: Duration) -> Result<(), Errno> {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_millis(1);
    loop {
        match bind(fd, address) {
            Err(Errno::BUSY) if waited < patience => {
                let time = rustix::time::Timespec {
                    tv_sec: 0,
                    tv_nsec: pause.subsec_nanos().into(),
                };
                let _ = rustix::thread::nanosleep(&time);
                waited += pause;
                pause = (pause * 2).min(BIND_PAUSE);
            }
            answer => return answer,
        }
    }
}

/// Whether the driver uses the packet memory of a bound XSK itself.
#[must_use]
pub fn is_zero_copy(fd: BorrowedFd<'_>) -> bool {
    let options = sockopt::xdp_options(fd);
    options.is_ok_and(|options| options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
}

/// Has a driver without copies look for chunks in the fill ring, and take frames again that it had
/// no room for. In copy mode the kernel has nothing to do.
pub(super) fn wake_receiver(fd: BorrowedFd<'_>) {
    // What it cannot do now, link down for one, is done with the next frames.
    let _ = recv(fd, &mut [0_u8; 0][..], RecvFlags::DONTWAIT);
}

/// Frames that one doorbell may send in copy mode.
fn set_tx_budget(fd: &OwnedFd, frames: u32) -> Result<(), Errno> {
    let arguments = [
        fd.as_raw_fd().cast_unsigned() as usize,
        SOL_XDP,
        MAX_TX_SKB_BUDGET,
        (&raw const frames) as usize,
        size_of::<u32>(),
    ];
    // SAFETY: setsockopt reads four bytes of `frames`, which outlives the call.
    unsafe { syscall(syscall::SETSOCKOPT, arguments) }.map(drop)
}

/// Has the driver send what is in the TX ring of an XSK, in portions of its budget. Needs no lock:
/// two callers at once cost a system call, no more.
///
/// Frames that it cannot take now (completion ring or send buffer full) stay in the ring and go
/// with the next doorbell; the caller takes completions back before that.
///
/// # Errors
/// [`Severity::Restart`] while the link is down: the frames wait in the ring.
/// [`Severity::Fatal`] when the device is gone or the descriptor is no bound XSK.
pub fn ring_doorbell(fd: BorrowedFd<'_>) -> Result<(), QueueError> {
    ring_while(fd, || None)
}

/// [`ring_doorbell`] for one who sees the TX ring: `left` says how many frames are in it, and no
/// call is repeated that has taken none.
pub(super) fn ring_while(
    fd: BorrowedFd<'_>,
    left: impl Fn() -> Option<u32>,
) -> Result<(), QueueError> {
    let (mut portions, mut drops) = (0, 0);
    while portions < MOST_PORTIONS && drops < MOST_DROPS {
        let before = left();
        match send(fd, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            // All of the ring is sent, or without copies on its way.
            Ok(_) => return Ok(()),
            // The budget is used up, or there is no room for completions.
            Err(Errno::AGAIN | Errno::INTR) => portions += 1,
            // The device had no room, threw one frame away and completed it. The call ends there:
            // without another one the rest of the ring would wait for the next burst.
            Err(Errno::BUSY) => drops += 1,
            // The kernel has no memory for copies now.
            Err(Errno::NOBUFS | Errno::NOMEM) => return Ok(()),
            Err(errno) => return Err(refused(errno)),
        }
        if before.is_some_and(|before| left().is_some_and(|left| left == 0 || left >= before)) {
            return Ok(());
        }
    }
    Ok(())
}

fn refused(errno: Errno) -> QueueError {
    QueueError {
        severity: if errno == Errno::NETDOWN {
            Severity::Restart
        } else {
            Severity::Fatal
        },
        operation: "doorbell",
        errno,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_doorbell_on_no_xsk_is_fatal() {
        let file = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let error = ring_doorbell(file.as_fd()).unwrap_err();
        assert_eq!(error.severity, Severity::Fatal);
        assert_eq!(error.errno, Errno::NOTSOCK);
    }
}
