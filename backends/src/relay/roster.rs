//! The filters of a card as the relay tells them to the daemon: a memfd with a line for each,
//! `PROTOCOL LOCAL REMOTE QUEUE NUMBER KIND`.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::port::{CardFilter, End, InCard};

/// Largest roster in bytes: more than all tables of filters have.
const MOST: u64 = 16 << 20;

fn word((ip, port): End) -> SocketAddrV6 {
    SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, 0)
}

fn end(word: &str) -> Option<End> {
    let address: SocketAddrV6 = word.parse().ok()?;
    Some((address.ip().octets(), address.port()))
}

/// Writes them down.
///
/// # Errors
/// What the kernel answers.
pub(super) fn write(filters: &[InCard]) -> Result<OwnedFd, Errno> {
    let mut text = String::new();
    for InCard {
        filter,
        queue,
        cookie,
    } in filters
    {
        let (local, remote) = (word(filter.local), word(filter.remote.unwrap_or_default()));
        let (protocol, [number, kind]) = (filter.protocol, cookie);
        text += &format!("{protocol} {local} {remote} {queue} {number} {kind}\n");
    }
    let roster = rustix::fs::memfd_create("bypass-roster", MemfdFlags::CLOEXEC)?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(&roster, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    rustix::fs::seek(&roster, rustix::fs::SeekFrom::Start(0))?;
    Ok(roster)
}

/// Reads them; lines that are none are passed over.
pub(super) fn read(roster: OwnedFd) -> Vec<InCard> {
    let mut text = String::new();
    // What cannot be read is as if it were not there.
    let _ = File::from(roster).take(MOST).read_to_string(&mut text);
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<InCard> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let filter = CardFilter {
        protocol: next()?.parse().ok()?,
        local: end(next()?)?,
        remote: end(next()?).map(|remote| (remote.1 != 0).then_some(remote))?,
    };
    Some(InCard {
        filter,
        queue: next()?.parse().ok()?,
        cookie: [next()?.parse().ok()?, next()?.parse().ok()?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mapped = |last| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 0, last];
        let wild = InCard {
            filter: CardFilter {
                protocol: 17,
                local: (mapped(1), 53),
                remote: None,
            },
            queue: 16,
            cookie: [-7, 1],
        };
        let full = InCard {
            filter: CardFilter {
                protocol: 6,
                local: ([0xfd; 16], 80),
                remote: Some(([0xfe; 16], 4000)),
            },
            queue: u32::MAX,
            cookie: [i32::MAX, 0],
        };
        assert_eq!(read(write(&[]).unwrap()), []);
        let roster = write(&[wild, full]).unwrap();
        assert_eq!(read(roster), [wild, full]);
        for bad in ["", "17", "17 x [::]:0 1 2 3", "17 [::1]:5 [::]:0 1 2"] {
            assert_eq!(line(bad), None, "{bad}");
        }
    }
}
