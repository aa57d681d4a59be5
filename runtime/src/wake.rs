//! Waking a waiter that sleeps in another thread or process.
//!
//! A waiter of a stack sleeps on an abstract UNIX datagram socket whose name is made of the image's
//! identity and the waiter's slot; whoever delivered something to an endpoint that the waiter has
//! parked on sends it one byte, after giving the stack lock back. Names need no descriptor to be
//! passed between processes; a byte too many only makes a waiter look once more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bypass_stack::WaiterId;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recv,
    sendto, socket_with,
};

/// The address of a waiter.
fn address(image: u64, waiter: WaiterId) -> Result<SocketAddrUnix, Errno> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut name = *b"bypass-wake-________________-__";
    for (place, byte) in name[12..28].iter_mut().enumerate() {
        *byte = DIGITS[(image >> (60 - 4 * place)) as usize & 15];
    }
    name[29] = DIGITS[usize::from(waiter.0 >> 4)];
    name[30] = DIGITS[usize::from(waiter.0 & 15)];
    SocketAddrUnix::new_abstract_name(&name)
}

fn datagram_socket() -> Result<OwnedFd, Errno> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// The socket on which one waiter sleeps.
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
}

impl Bell {
    /// Makes the waiter's socket.
    ///
    /// # Errors
    /// `EADDRINUSE` when somebody has the name; else what `socket` and `bind` answer.
    pub fn new(image: u64, waiter: WaiterId) -> Result<Self, Errno> {
        let fd = datagram_socket()?;
        bind(&fd, &address(image, waiter)?)?;
        Ok(Self { fd })
    }

    /// Made from a descriptor that was moved out of the program's way.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The descriptor itself.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Takes every byte that is waiting.
    pub fn drain(&self) {
        let mut byte = [0_u8; 8];
        while recv(&self.fd, &mut byte, RecvFlags::DONTWAIT).is_ok() {}
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sends wake-ups.
#[derive(Debug)]
pub struct Ringer {
    fd: OwnedFd,
}

impl Ringer {
    /// A sender of wake-ups.
    ///
    /// # Errors
    /// What `socket` answers.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            fd: datagram_socket()?,
        })
    }

    /// Made from a descriptor that was moved out of the program's way.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The descriptor itself.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Wakes one waiter. A waiter that is gone, or that has bytes waiting already, needs none.
    pub fn wake(&self, image: u64, waiter: WaiterId) {
        if let Ok(address) = address(image, waiter) {
            let _ = sendto(
                &self.fd,
                &[1],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                &address,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_heard_once() {
        let image = rustix::process::getpid().as_raw_nonzero().get() as u64;
        let bell = Bell::new(image, WaiterId(200)).expect("bell");
        Ringer::new().expect("ringer").wake(image, WaiterId(200));
        let mut byte = [0_u8; 8];
        assert_eq!(
            recv(&bell, &mut byte, RecvFlags::DONTWAIT).map(|(n, _)| n),
            Ok(1)
        );
        bell.drain();
        assert_eq!(
            recv(&bell, &mut byte, RecvFlags::DONTWAIT).map(|(n, _)| n),
            Err(Errno::AGAIN)
        );
    }
}
