//! The daemon's side of a port: what the relay has told of it, its filters, and its queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::control::{Kind, Message, connect_to};
use super::port::{InCard, Offloads};
use super::rings::Pair;
use super::roster;
use super::steering::Filters;
use super::worker::timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How long a relay has to answer: it looks at the daemon between two bursts.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// How long one that has not answered in time is not waited for again: the daemon has others.
const RESENTMENT: Duration = Duration::from_secs(1);

const LATE: &str = "the relay does not answer";

/// A connection to a relay that has said nothing yet, or has a port.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// Questions that were asked.
    asked: AtomicU32,
    /// Until then it is not waited for.
    resented: Mutex<Option<Instant>>,
}

/// What a relay says first.
#[derive(Debug)]
pub enum Answer {
    /// It has a port.
    Ready(RelayNic),
    /// It has none, in the words of what drives it.
    Failed(String),
}

/// A port of a relay.
#[derive(Clone, Debug)]
pub struct RelayNic {
    /// Interface index of its face in the kernel.
    pub ifindex: u32,
    /// Name of its driver.
    pub driver: String,
    /// Whether the relay sleeps until frames come.
    pub sleeps: bool,
    /// Whether the card itself has filters, which follow with [`Link::steer`].
    pub is_bifurcated: bool,
    /// What the port does with checksums.
    pub offloads: Offloads,
    /// Whether it tells when frames have left.
    pub stamps_sent: bool,
    /// Why a port that is not bifurcated takes no rules, if it does not.
    pub rules: Result<(), String>,
    /// The interface at which there are rules that lead to the port (see
    /// [`super::PhysicalRules`]), or why there are none; `None` = nobody has asked for them.
    pub physical: Option<Result<String, String>>,
    /// Whether frames can stay in the stack's chunks, or why not; `None` = nobody has asked for it,
    /// or the relay is an older one.
    pub in_place: Option<Result<(), String>>,
    /// Its filters, which the relay reads.
    pub filters: Arc<Filters>,
    /// What it has counted, see [`super::read_board`].
    pub board: Arc<OwnedFd>,
    /// The rings of the stack that had it before this daemon came.
    pub rings: Option<Arc<OwnedFd>>,
}

/// The stack's side of a queue pair that was opened.
#[derive(Debug)]
pub struct OpenQueue {
    /// The rings.
    pub rings: OwnedFd,
    /// The stack's end of the bell.
    pub bell: OwnedFd,
}

impl Link {
    /// Connects to the relay of a device.
    ///
    /// # Errors
    /// `ECONNREFUSED` when there is none.
    pub fn connect(device: &str) -> Result<Self, Errno> {
        let socket = connect_to(device)?;
        Ok(Self {
            socket,
            asked: AtomicU32::new(0),
            resented: Mutex::default(),
        })
    }

    /// What the relay says; `None` = nothing new.
    ///
    /// # Errors
    /// `ECONNRESET` when it is gone.
    pub fn hear(&self) -> Result<Option<Answer>, Errno> {
        let (message, fds) = match Message::receive(&self.socket) {
            Err(Errno::AGAIN) => return Ok(None),
            answer => answer?,
        };
        match message.kind() {
            Some(Kind::Ready) => nic(&message, fds).map(|nic| Some(Answer::Ready(nic))),
            Some(Kind::Failed) => Ok(Some(Answer::Failed(message.text()))),
            _ => Ok(None),
        }
    }

    /// Gives the port to a stack: one queue pair over its packet memory, with rings of `entries`,
    /// one of departures among them or not, and frames that stay in its chunks or are copied.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn attach(
        &self,
        packets: BorrowedFd<'_>,
        chunk_size: u32,
        flows: BorrowedFd<'_>,
        (entries, departs, in_place): (u32, bool, bool),
    ) -> Result<OpenQueue, Errno> {
        let pair = Pair::create(entries, departs, in_place)?;
        let message = Message {
            chunk_size,
            entries,
            ..Message::new(Kind::Attach)
        };
        let fds = [packets, flows, pair.rings.as_fd(), pair.relay.as_fd()];
        message.send(&self.socket, &fds)?;
        Ok(OpenQueue {
            rings: pair.rings,
            bell: pair.stack,
        })
    }

    /// Takes the port from its stack: everything is the kernel's.
    pub fn detach(&self) {
        // A relay that is gone has no stack.
        let _ = Message::new(Kind::Detach).send(&self.socket, &[]);
    }

    /// Has the card's filters follow the tables, and waits until they do; of a relay that was late
    /// within the last second, not at all.
    ///
    /// # Errors
    /// A sentence: the card's, or that the relay does not answer in time.
    pub fn steer(&self) -> Result<(), Unsteered> {
        let answer = self.steered().map_err(Unsteered::Unanswered)?;
        match answer.text() {
            words if words.is_empty() => Ok(()),
            words => Err(Unsteered::Refused(words)),
        }
    }

    fn steered(&self) -> Result<Message, String> {
        let number = self.ask(Kind::Steer)?;
        let mut resented = self.resented.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if resented.is_some_and(|until| now < until) {
            return Err(LATE.to_owned());
        }
        let answer = self.answer(number, Kind::Steered, now + PATIENCE);
        let is_late = answer.as_ref().is_err_and(|words| words == LATE);
        *resented = is_late.then(|| Instant::now() + RESENTMENT);
        Ok(answer?.0)
    }

    /// Has them follow the tables, and does not wait. (A relay that has no room for another
    /// question has one before it that it has not read.)
    pub fn tell_to_steer(&self) {
        let _ = self.ask(Kind::Steer);
    }

    /// Asks for the filters that the card has now: the number of the question. Several relays are
    /// asked first, and then waited for together.
    ///
    /// # Errors
    /// A sentence: that the relay is gone.
    pub fn ask_filters(&self) -> Result<u32, String> {
        self.ask(Kind::List)
    }

    /// The answer to such a question.
    ///
    /// # Errors
    /// A sentence: that there is none by then.
    pub fn filters_in_card(&self, number: u32, until: Instant) -> Result<Vec<InCard>, String> {
        let (_, mut fds) = self.answer(number, Kind::Listed, until)?;
        Ok(fds.pop().map(roster::read).unwrap_or_default())
    }

    fn ask(&self, what: Kind) -> Result<u32, String> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let asked = Message {
            number,
            ..Message::new(what)
        };
        asked.send(&self.socket, &[]).map_err(failed)?;
        Ok(number)
    }

    /// Waits for the answer of this kind to a question.
    fn answer(
        &self,
        number: u32,
        wanted: Kind,
        until: Instant,
    ) -> Result<(Message, Vec<OwnedFd>), String> {
        let mut left = until.saturating_duration_since(Instant::now());
        loop {
            let mut waiting = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut waiting, Some(&timespec(left))) {
                Err(Errno::INTR) => continue,
                Ok(0) => return Err(LATE.to_owned()),
                other => other.map_err(failed)?,
            };
            let (message, fds) = Message::receive(&self.socket).map_err(failed)?;
            // Answers to what was given up go by.
            if message.kind() == Some(wanted) && message.number == number {
                return Ok((message, fds));
            }
            // However much it has to say.
            left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LATE.to_owned());
            }
        }
    }

    /// Has the relay end.
    pub fn end(&self) {
        let _ = Message::new(Kind::End).send(&self.socket, &[]);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Why the card does not lead what the tables do, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsteered {
    /// The card's word.
    Refused(String),
    /// The relay does not answer, or is gone.
    Unanswered(String),
}

fn failed(errno: Errno) -> String {
    format!("asking the relay for a filter: {errno}")
}

fn nic(message: &Message, fds: Vec<OwnedFd>) -> Result<RelayNic, Errno> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or(Errno::PROTO);
    let filters = Filters::map([next()?, next()?, next()?])?;
    let board = Arc::new(next()?);
    Ok(RelayNic {
        ifindex: message.ifindex,
        driver: message.text(),
        rules: rules(message),
        physical: physical(message),
        in_place: in_place(message),
        sleeps: message.sleeps != 0,
        is_bifurcated: message.is_bifurcated != 0,
        offloads: Offloads {
            rx_checksums: message.rx_checksums != 0,
            tx_checksums: message.tx_checksums != 0,
        },
        stamps_sent: message.stamps_sent != 0,
        filters: Arc::new(filters),
        board,
        rings: fds.next().map(Arc::new),
    })
}

/// Whether the port takes rules, or why not; an older relay does not say.
fn rules(message: &Message) -> Result<(), String> {
    if message.has_rules == 1 {
        return Ok(());
    }
    let why = message.part(1);
    Err(if why.is_empty() {
        "its relay enters no rules".to_owned()
    } else {
        why
    })
}

fn in_place(message: &Message) -> Option<Result<(), String>> {
    let [is_possible, why] = [4, 5].map(|number| message.part(number));
    let refused = (!why.is_empty()).then_some(Err(why));
    refused.or_else(|| (!is_possible.is_empty()).then_some(Ok(())))
}

fn physical(message: &Message) -> Option<Result<String, String>> {
    let [through, refused] = [2, 3].map(|number| Some(message.part(number)));
    let told = |it: &String| !it.is_empty();
    through
        .filter(told)
        .map(Ok)
        .or_else(|| refused.filter(told).map(Err))
}

#[cfg(test)]
mod tests {
    use super::super::control::{accept_daemon, claim};
    use super::*;

    #[test]
    fn a_relay_that_does_not_speak_of_rules_has_none() {
        let mut message = Message::new(Kind::Ready).with_text("net_tap");
        assert_eq!(rules(&message), Err("its relay enters no rules".to_owned()));
        message = message.with_text("net_tap\0Function not implemented");
        let why = "Function not implemented".to_owned();
        assert_eq!(
            (rules(&message), message.text()),
            (Err(why), "net_tap".to_owned())
        );
        message.has_rules = 1;
        assert_eq!(rules(&message), Ok(()));
        let long = Message::new(Kind::Ready).with_text(&"x".repeat(5000));
        assert!(rules(&long).is_err());
        assert_eq!((physical(&message), physical(&long)), (None, None));
        for (text, expected) in [
            ("net_ixgbe_vf\0\0eth0\0", Ok("eth0".to_owned())),
            ("net_ixgbe_vf\0\0\0no", Err("no".to_owned())),
        ] {
            message = Message::new(Kind::Ready).with_text(text);
            assert_eq!(physical(&message), Some(expected));
        }
    }

    #[test]
    fn a_relay_that_is_late_is_waited_for_once() {
        let name = format!("test-late-{}", std::process::id());
        let _listener = claim(&name).unwrap();
        let link = Link::connect(&name).unwrap();
        let begun = Instant::now();
        for _ in 0..8 {
            assert_eq!(link.steer(), Err(Unsteered::Unanswered(LATE.to_owned())));
        }
        // Twice, should the second pass meanwhile.
        let taken = begun.elapsed();
        assert!(taken >= PATIENCE && taken < PATIENCE * 6, "{taken:?}");
    }

    #[test]
    fn a_card_that_does_not_answer_keeps_nobody_from_anothers_answer() {
        let names = ["deaf", "live"].map(|which| format!("test-{which}-{}", std::process::id()));
        let listeners = [0, 1].map(|at: usize| claim(&names[at]).unwrap());
        let links = [0, 1].map(|at: usize| Link::connect(&names[at]).unwrap());
        let relays = [0, 1].map(|at: usize| accept_daemon(&listeners[at]).unwrap());
        let numbers = [0, 1].map(|at: usize| links[at].ask_filters().unwrap());
        let answer = Message {
            number: numbers[1],
            ..Message::new(Kind::Listed)
        };
        let roster = roster::write(&[]).unwrap();
        answer.send(&relays[1], &[roster.as_fd()]).unwrap();
        let until = Instant::now();
        assert!(links[0].filters_in_card(numbers[0], until).is_err());
        assert_eq!(links[1].filters_in_card(numbers[1], until), Ok(Vec::new()));
    }
}
