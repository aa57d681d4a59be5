//! A queue pair from the descriptors that the daemon gives for it, whatever drives it.

use std::os::fd::{BorrowedFd, OwnedFd};

use bypass_backends::QueuePair;
use bypass_backends::af_xdp::AfXdpQueuePair;
use bypass_backends::relay::RelayQueuePair;
use rustix::io::Errno;

/// Maps a queue pair: of AF_XDP the XSK is all; of DPDK the rings come beside its descriptor.
///
/// # Errors
/// `EINVAL` when it is none, or has other sizes; what the kernel answers.
pub fn map(
    fd: OwnedFd,
    rings: Option<BorrowedFd<'_>>,
    chunk_size: u32,
    ring_entries: u32,
) -> Result<Box<dyn QueuePair>, Errno> {
    Ok(match rings {
        Some(rings) => Box::new(RelayQueuePair::map(fd, rings, ring_entries)?),
        None => Box::new(AfXdpQueuePair::map(fd, chunk_size, ring_entries)?),
    })
}
