//! Descriptors that others have made, and that are closed where it may take as long as it likes.
//!
//! The last close of a TCP socket with SO_LINGER waits for its peer, each close of a file on a FUSE
//! file system for that file system's server, and the close of a connection for all that lies
//! unread in it. Every local user can have such a descriptor and send it with any message; so the
//! daemon leaves these to threads that do nothing else.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: takes the descriptor out of a value that is being dropped"
)]

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::filters::TCP;
use super::proof::UDP;
use super::sockopt as own;

/// Threads at most: as many closes may take forever before the others wait for them.
const THREADS: usize = 64;
/// Bytes of a thread's stack.
const STACK: usize = 64 << 10;
/// How long the close of a quiet TCP socket is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// States of TCP in which close() does not wait: TCP_CLOSE and TCP_LISTEN.
const QUIET: [u8; 2] = [7, 10];

static CLOSER: Closer = Closer {
    state: Mutex::new(State {
        waiting: VecDeque::new(),
        threads: 0,
        idle: 0,
    }),
    bell: Condvar::new(),
};

/// A descriptor whose close is left to others, unless it is a socket of the kind that clients show
/// us: that one is closed before anything else happens, for a program may bind the address of its
/// socket anew once it has our answer, which a copy that is still open would prevent.
#[derive(Debug)]
pub(super) struct Foreign(ManuallyDrop<OwnedFd>);

/// Descriptors of one user to close, one after the other, and who wants to hear of it.
type Job = (Vec<OwnedFd>, Option<Sender<()>>);

#[derive(Debug)]
struct Closer {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
}

impl Foreign {
    /// The descriptor, to be closed here: it has been found to be one of ours.
    pub(super) fn into_inner(self) -> OwnedFd {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is neither used again nor dropped.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }

    /// Leaves the close of some of one user's to others: connections. Those that wait for their
    /// peers keep nobody.
    pub(super) fn close_later(all: impl IntoIterator<Item = Self>) {
        let waits = |fd: &OwnedFd| sockopt::socket_linger(fd) != Ok(None);
        let all = all.into_iter().map(Self::into_inner);
        let (waiting, others): (Vec<_>, Vec<_>) = all.partition(waits);
        let jobs = waiting.into_iter().map(|one| vec![one]);
        for job in jobs.chain([others]).filter(|job| !job.is_empty()) {
            CLOSER.close((job, None));
        }
    }
}

impl From<OwnedFd> for Foreign {
    fn from(fd: OwnedFd) -> Self {
        Self(ManuallyDrop::new(fd))
    }
}

impl Deref for Foreign {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.0
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: `self` is being dropped, so nobody uses the field again.
        let fd = unsafe { ManuallyDrop::take(&mut self.0) };
        if is_udp(&fd) {
            drop(fd);
        } else if is_quiet_tcp(&fd) {
            // Its owner may change its state meanwhile, so even this one is not closed here.
            let (done, end) = mpsc::channel();
            CLOSER.close((vec![fd], Some(done)));
            let _ = end.recv_timeout(PATIENCE);
        } else {
            CLOSER.close((vec![fd], None));
        }
    }
}

impl Closer {
    fn close(&'static self, job: Job) {
        let mut state = self.state.lock();
        state.waiting.push_back(job);
        if state.waiting.len() > state.idle && state.threads < THREADS {
            let thread = std::thread::Builder::new().stack_size(STACK);
            // Without it the next one to close tries again.
            if thread.spawn(|| self.work()).is_ok() {
                state.threads += 1;
            }
        }
        drop(state);
        self.bell.notify_one();
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some((all, done)) = state.waiting.pop_front() {
                drop(state);
                drop(all);
                drop(done);
                state = self.state.lock();
            } else {
                state.idle += 1;
                self.bell.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

fn is_udp(fd: &OwnedFd) -> bool {
    is_internet(fd, SocketType::DGRAM, UDP)
}

fn is_quiet_tcp(fd: &OwnedFd) -> bool {
    is_internet(fd, SocketType::STREAM, TCP)
        && own::tcp_state(fd).is_ok_and(|state| QUIET.contains(&state))
}

fn is_internet(fd: &OwnedFd, kind: SocketType, protocol: u8) -> bool {
    let families = [AddressFamily::INET, AddressFamily::INET6];
    sockopt::socket_domain(fd).is_ok_and(|domain| families.contains(&domain))
        && sockopt::socket_type(fd) == Ok(kind)
        && sockopt::socket_protocol(fd)
            .ok()
            .flatten()
            .is_some_and(|it| it.as_raw().get() == u32::from(protocol))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Instant;

    use rustix::io::Errno;
    use rustix::net::{SendFlags, send};

    use super::*;

    /// A connection whose last close waits for a peer that does not read.
    fn lingering() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (peer, _) = listener.accept().expect("accept");
        while send(&stream, &[7; 65536], SendFlags::DONTWAIT) != Err(Errno::AGAIN) {}
        let long = Duration::from_secs(1000);
        sockopt::set_socket_linger(&stream, Some(long)).expect("linger");
        (peer, stream.into())
    }

    #[test]
    fn a_close_that_waits_holds_up_nobody() {
        let begun = Instant::now();
        let kept: Vec<TcpStream> = (0..3)
            .map(|_| {
                let (peer, fd) = lingering();
                drop(Foreign::from(fd));
                peer
            })
            .collect();
        let (peer, fd) = lingering();
        drop(Foreign::from(fd));
        // One that does not wait is closed nevertheless.
        let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
        let address = socket.local_addr().expect("address");
        drop(Foreign::from(OwnedFd::from(socket)));
        UdpSocket::bind(address).expect("the address is free");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let address = listener.local_addr().expect("address");
        drop(Foreign::from(OwnedFd::from(listener)));
        while TcpStream::connect(address).is_ok() {
            std::thread::yield_now();
        }
        assert!(begun.elapsed() < Duration::from_secs(500));
        drop((kept, peer));
    }
}
