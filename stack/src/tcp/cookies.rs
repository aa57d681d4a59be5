//! What connections of ours have learnt of their peers for Fast Open: cookies with the MSS that was
//! told beside them (net/ipv4/tcp_metrics.c), and that something on a path does not carry it
//! (net/ipv4/tcp_fastopen.c:tcp_fastopen_active_disable).

use crate::types::{Instant, IpAddress};
use crate::wire::tcp::FastOpen;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Peers that are remembered; one more takes the place of the one that was asked for longest ago.
const PEERS: usize = 128;
/// The longest pause, in doublings of the first.
const DOUBLINGS: u32 = 6;

/// The form in which a peer is asked for a cookie, in the order in which they are tried
/// ([`Known::form`]).
pub(crate) mod form {
    /// That of RFC 7413.
    pub(crate) const USUAL: u8 = 0;
    /// The experiment's, because the usual one was not answered.
    pub(crate) const EXPERIMENT: u8 = 1;
    /// The usual one again, because neither was.
    pub(crate) const USUAL_AGAIN: u8 = 2;
}

/// What is known of a peer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Known {
    /// Both ends: a peer's cookie is for one address of ours.
    local: IpAddress,
    remote: IpAddress,
    cookie: [u8; 16],
    /// When it was last asked for or told, in such events; 0 = the entry is free.
    used: u32,
    /// The MSS of its last SYN-ACK, bytes; 0 = unknown.
    mss: u16,
    /// Bytes of the cookie, 0 = none.
    len: u8,
    /// Of [`form`]; with a cookie only whether that was an experimental one.
    form: u8,
}

/// The peers, and the pauses of Fast Open.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Cookies {
    peers: [Known; PEERS],
    /// Events of [`Known::used`].
    uses: u32,
    /// When the last pause began, seconds.
    paused_s: u32,
    /// Pauses since one has proved unneeded.
    pauses: u32,
}

/// Both ends of a connection: ours, the peer's.
pub(crate) type Ends = (IpAddress, IpAddress);

impl Cookies {
    fn find(&mut self, (local, remote): Ends) -> Option<&mut Known> {
        self.uses = self.uses.wrapping_add(1).max(1);
        let uses = self.uses;
        let found = self
            .peers
            .iter_mut()
            .find(|known| known.used != 0 && known.remote == remote && known.local == local)?;
        found.used = uses;
        Some(found)
    }

    /// The cookie for a peer, or how to ask for one, and the MSS that it last told (0 = unknown).
    pub(crate) fn of(&mut self, ends: Ends) -> (FastOpen, u16) {
        let Some(known) = self.find(ends) else {
            return (FastOpen::request(false), 0);
        };
        let is_experimental = known.form == form::EXPERIMENT;
        let cookie = known.cookie.get(..usize::from(known.len));
        let cookie = cookie.and_then(|cookie| FastOpen::new(cookie, is_experimental));
        (
            cookie.unwrap_or_else(|| FastOpen::request(is_experimental)),
            known.mss,
        )
    }

    /// A SYN-ACK has told an MSS (0 = none) and perhaps a cookie; without one `next` says in which
    /// form to ask next.
    pub(crate) fn learn(&mut self, ends: Ends, mss: u16, offered: Option<&FastOpen>, next: u8) {
        if self.find(ends).is_none() {
            self.add(ends);
        }
        let Some(known) = self.find(ends) else {
            return;
        };
        if mss != 0 {
            known.mss = mss;
        }
        match offered.map(|offered| (offered.cookie(), offered.is_experimental)) {
            Some((cookie @ [_, ..], is_experimental)) => {
                for (place, byte) in known.cookie.iter_mut().zip(cookie) {
                    *place = *byte;
                }
                known.len = cookie.len() as u8;
                known.form = u8::from(is_experimental);
            }
            _ if known.len == 0 => known.form = known.form.max(next),
            _ => {}
        }
    }

    fn add(&mut self, (local, remote): Ends) {
        let uses = self.uses;
        let oldest = self
            .peers
            .iter_mut()
            .max_by_key(|known| (known.used == 0, uses.wrapping_sub(known.used)));
        if let Some(place) = oldest {
            *place = Known {
                local,
                remote,
                cookie: [0; 16],
                used: uses,
                mss: 0,
                len: 0,
                form: form::USUAL,
            };
        }
    }

    /// Begins a pause: longer each time, until one has proved unneeded.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.paused_s = seconds(now);
        self.pauses = self.pauses.saturating_add(1);
    }

    /// Whether Fast Open pauses, when its first pause is so many seconds; `None`: it never has.
    pub(crate) fn pauses(&self, first_s: u32, now: Instant) -> Option<bool> {
        let doublings = self.pauses.checked_sub(1)?.min(DOUBLINGS);
        let span = u64::from(first_s) << doublings;
        Some(u64::from(seconds(now).wrapping_sub(self.paused_s)) < span)
    }

    /// A connection with Fast Open has got data from its peer.
    pub(crate) fn has_proved(&mut self) {
        self.pauses = 0;
    }
}

fn seconds(now: Instant) -> u32 {
    (now.0 / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn ends(last: u8) -> Ends {
        let at = IpAddress::from_v4;
        (at([198, 18, 0, 1]), at([198, 18, 1, last]))
    }

    #[test]
    fn cookies_are_for_both_ends_and_the_last_one_counts() {
        let mut cookies = Cookies::new_zeroed();
        assert_eq!(cookies.of(ends(1)), (FastOpen::request(false), 0));
        let first = FastOpen::new(&[1; 16], true).unwrap();
        cookies.learn(ends(1), 1460, Some(&first), form::USUAL);
        assert_eq!(cookies.of(ends(1)), (first, 1460));
        assert_eq!(cookies.of((ends(1).1, ends(1).0)).1, 0);
        // A cookie of an impossible length, or none, changes only the MSS.
        cookies.learn(ends(1), 940, None, form::EXPERIMENT);
        assert_eq!(cookies.of(ends(1)), (first, 940));
        let second = FastOpen::new(&[2; 4], false).unwrap();
        cookies.learn(ends(1), 0, Some(&second), form::USUAL);
        assert_eq!(cookies.of(ends(1)), (second, 940));
    }

    #[test]
    fn who_does_not_answer_is_asked_in_the_other_form_once() {
        let mut cookies = Cookies::new_zeroed();
        for (next, asks) in [
            (form::USUAL, false),
            (form::EXPERIMENT, true),
            (form::USUAL_AGAIN, false),
            (form::EXPERIMENT, false),
        ] {
            cookies.learn(ends(1), 1460, None, next);
            assert_eq!(cookies.of(ends(1)).0, FastOpen::request(asks));
        }
    }

    #[test]
    fn the_peer_that_was_asked_for_longest_ago_is_forgotten() {
        let mut cookies = Cookies::new_zeroed();
        for last in 0..PEERS as u8 {
            cookies.learn(ends(last), 1000, None, form::USUAL);
        }
        assert_eq!(cookies.of(ends(0)).1, 1000);
        cookies.learn(ends(255), 1000, None, form::USUAL);
        assert_eq!(cookies.of(ends(0)).1, 1000);
        assert_eq!(cookies.of(ends(1)).1, 0);
    }

    #[test]
    fn pauses_double() {
        let mut cookies = Cookies::new_zeroed();
        let at = |seconds: u64| Instant(seconds * 1_000_000_000);
        assert_eq!(cookies.pauses(10, at(0)), None);
        let mut now = 1000;
        for span in [10, 20, 40, 80, 160, 320, 640, 640] {
            cookies.pause(at(now));
            assert_eq!(cookies.pauses(10, at(now + span - 1)), Some(true));
            assert_eq!(cookies.pauses(10, at(now + span)), Some(false));
            now += 1000;
        }
        cookies.has_proved();
        assert_eq!(cookies.pauses(10, at(0)), None);
    }
}
