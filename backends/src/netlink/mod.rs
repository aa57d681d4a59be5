//! Netlink: messages and their attributes, and asking the kernel.
//!
//! A message is a header, a fixed part that depends on its type, then attributes, each padded to
//! 4 bytes; an attribute's value may be attributes again. Numbers are in host order, except
//! addresses.
//!
//! ```text
//!   0     4      6       8          12     16
//!   | len | kind | flags | sequence | port | fixed part | len kind value | len kind value | …
//! ```
//!
//! Nothing here panics on any bytes: what is too short ends the iteration. netlink(7), and
//! linux/netlink.h has the numbers.

mod link;

pub use link::{Attached, VlanLink, XdpFeatures, attached, function_mac, vlan, xdp_features};
#[doc(hidden)]
pub use link::{attached_of, family_of, features_of, function_mac_of, vlan_of};

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with, sockopt,
};

/// NLMSG_ERROR: a refusal, or an acknowledgement with error 0.
pub const ERROR: u16 = 2;
/// NLMSG_DONE: the end of a dump.
pub const DONE: u16 = 3;
/// NLM_F_REQUEST.
pub const REQUEST: u16 = 1;
/// NLM_F_DUMP.
pub const DUMP: u16 = 0x300;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Attribute type without the flags in its two highest bits.
const TYPE_MASK: u16 = 0x3fff;
/// Largest error number, as messages have it (MAX_ERRNO of linux/err.h): rustix takes no other
/// number for one.
const LARGEST_ERRNO: i32 = -4095;
/// Bytes of one answer, or of one part of a dump, at most.
const ANSWER: usize = 256 * 1024;
/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// One message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type: [`DONE`], [`ERROR`], or a number of the protocol.
    pub kind: u16,
    /// NLM_F_*.
    pub flags: u16,
    /// Number of the request that it answers.
    pub sequence: u32,
    /// Everything behind the header.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// The error of a message that is an [`ERROR`] or a [`DONE`].
    ///
    /// # Errors
    /// The kernel's; `EBADMSG` for a number that is none.
    pub fn result(&self) -> Result<(), Errno> {
        match word(self.body, 0).map_or(0, u32::cast_signed) {
            code @ LARGEST_ERRNO..0 => Err(Errno::from_raw_os_error(-code)),
            // A dump may end with a count.
            code if code == 0 || self.kind == DONE => Ok(()),
            _ => Err(Errno::BADMSG),
        }
    }
}

/// The messages of one datagram, as far as they are whole.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = word(bytes, 0)? as usize;
        let message = Message {
            kind: half(bytes, 4)?,
            flags: half(bytes, 6)?,
            sequence: word(bytes, 8)?,
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A whole message to the kernel.
#[must_use]
pub fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// Attributes, as far as they are whole: type without flag bits, value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
#[must_use]
pub fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut found = attributes(bytes).filter(|(kind, _)| *kind == wanted);
    found.next().map(|(_, value)| value)
}

/// A whole attribute, padded.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Two bytes as a number.
#[must_use]
pub fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Four bytes as a number.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A string, up to its NUL if it has one.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// A socket for requests, and what was sent on it. (NETLINK_ROUTE is protocol 0, which rustix calls
/// none.)
fn send(protocol: Option<Protocol>, message: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, message, SendFlags::empty(), &kernel)?;
    Ok(socket)
}

/// Sends one request and takes the kernel's one answer: a datagram, for [`payload`].
///
/// # Errors
/// What the kernel answers to the socket or the request; `EAGAIN` when it does not answer.
pub fn ask(protocol: Option<Protocol>, kind: u16, body: &[u8]) -> Result<Vec<u8>, Errno> {
    let socket = send(protocol, &request(kind, REQUEST, 0, body))?;
    let mut answer = vec![0; ANSWER];
    let (count, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(count);
    Ok(answer)
}

/// What follows the header of an answer.
///
/// # Errors
/// The error that it is; `EBADMSG` for what is no message.
pub fn payload(answer: &[u8]) -> Result<&[u8], Errno> {
    let message = messages(answer).next().ok_or(Errno::BADMSG)?;
    if message.kind == ERROR {
        message.result().and(Err(Errno::BADMSG))
    } else {
        Ok(message.body)
    }
}

/// Asks for everything that a request names: `each` gets the messages.
///
/// # Errors
/// As [`ask`], and the error that ends the dump.
pub fn dump(
    protocol: Option<Protocol>,
    kind: u16,
    body: &[u8],
    mut each: impl FnMut(&Message<'_>),
) -> Result<(), Errno> {
    let socket = send(protocol, &request(kind, REQUEST | DUMP, 0, body))?;
    let mut part = vec![0; ANSWER];
    loop {
        let (count, _) = recv(&socket, &mut part[..], RecvFlags::empty())?;
        if let Some(end) = read_part(part.get(..count).unwrap_or_default(), &mut each) {
            return end;
        }
    }
}

/// Gives `each` the messages of one part of a dump; how it ended, if this is the last part.
#[doc(hidden)]
pub fn read_part(part: &[u8], mut each: impl FnMut(&Message<'_>)) -> Option<Result<(), Errno>> {
    if part.is_empty() {
        return Some(Ok(()));
    }
    for message in messages(part) {
        match message.kind {
            ERROR | DONE => return Some(message.result()),
            _ => each(&message),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_is_its_message_or_its_error() {
        let answer = |kind, code: i32| request(kind, 0, 0, &code.to_ne_bytes());
        assert_eq!(payload(&answer(16, 7)), Ok(&7_i32.to_ne_bytes()[..]));
        for (code, errno) in [
            (-19, Errno::NODEV),
            (0, Errno::BADMSG),
            (-4096, Errno::BADMSG),
        ] {
            assert_eq!(payload(&answer(ERROR, code)), Err(errno));
        }
        assert_eq!(payload(&answer(16, 7)[..19]), Err(Errno::BADMSG));
    }

    #[test]
    fn a_dump_ends_with_done_or_an_error_and_nothing_behind_it_counts() {
        let part = |last: Option<(u16, i32)>| {
            let mut bytes = [request(16, 0, 1, &[1]), vec![0; 3], request(17, 0, 1, &[])].concat();
            if let Some((kind, code)) = last {
                bytes.extend(request(kind, 0, 1, &code.to_ne_bytes()));
                bytes.extend(request(18, 0, 1, &[]));
            }
            bytes
        };
        for (last, end) in [
            (None, None),
            (Some((DONE, 0)), Some(Ok(()))),
            (Some((DONE, 7)), Some(Ok(()))),
            (Some((DONE, -4)), Some(Err(Errno::INTR))),
            (Some((ERROR, -1)), Some(Err(Errno::PERM))),
        ] {
            let mut kinds = Vec::new();
            let found = read_part(&part(last), |message| kinds.push(message.kind));
            assert_eq!((found, kinds), (end, vec![16, 17]), "{last:?}");
        }
        assert_eq!(read_part(&[], |_| ()), Some(Ok(())));
        assert_eq!(read_part(&[1; 9], |_| ()), None);
    }

    proptest! {
        #[test]
        fn an_attribute_is_found_behind_others(
            kind in 1..TYPE_MASK,
            value in prop::collection::vec(any::<u8>(), 0..9),
            other in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let bytes = [attribute(kind - 1, &other), attribute(kind, &value)].concat();
            prop_assert_eq!(find(&bytes, kind), Some(&value[..]));
        }
    }
}
