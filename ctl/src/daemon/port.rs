//! The port of a device of the configuration, as the daemon has it: tables of filters and a queue
//! pair, which it shares with the relay, and a connection to that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use bypass_backends::af_xdp::{FilterKey, NicError};
use bypass_backends::relay::{InCard, Link, RelayNic, Unsteered};
use bypass_proto::policy::Backend;
use bypass_stack::QueuePairInfo;
use rustix::io::Errno;

use super::nics::{Sizes, small_chunks};
use super::stacks::{self, Queue};

/// A relay's port that a stack owns.
#[derive(Debug)]
pub(super) struct Port {
    /// What the relay has told of it.
    pub nic: RelayNic,
    /// The connection to the relay.
    pub link: Arc<Link>,
    /// Bytes of the longest frame that the owner's chunks hold.
    longest: u32,
    /// The owner's table of TCP flows.
    flows: Option<OwnedFd>,
    /// The rings of the open queue.
    rings: Option<OwnedFd>,
}

/// A card that was asked for its filters.
pub(super) struct Asked<'n> {
    link: &'n Link,
    number: u32,
}

impl Asked<'_> {
    /// What it tells by then.
    pub(super) fn filters(&self, until: Instant) -> Option<Vec<InCard>> {
        self.link.filters_in_card(self.number, until).ok()
    }
}

/// What drives a relay's port.
pub(super) fn backend_of(nic: &RelayNic) -> Backend {
    if nic.is_bifurcated {
        Backend::EfVi
    } else {
        Backend::Dpdk
    }
}

fn failed(errno: Errno, what: impl Into<String>) -> NicError {
    let what = what.into();
    NicError { errno, what }
}

impl Port {
    /// A port whose frames have `longest` bytes at most, with the rings of its queue if it is open.
    pub(super) fn new(
        nic: RelayNic,
        link: Arc<Link>,
        longest: u32,
        rings: Option<OwnedFd>,
    ) -> Self {
        Self {
            nic,
            link,
            longest,
            flows: None,
            rings,
        }
    }

    /// What drives it.
    pub(super) fn backend(&self) -> Backend {
        backend_of(&self.nic)
    }

    /// The rings of the open queue.
    pub(super) fn rings(&self) -> Option<BorrowedFd<'_>> {
        self.rings.as_ref().map(AsFd::as_fd)
    }

    /// Has TCP flows looked for in the owner's flow table.
    pub(super) fn set_flows(&mut self, table: BorrowedFd<'_>) -> Result<(), NicError> {
        let copy = table.try_clone_to_owned();
        let copy = copy.map_err(|_| failed(Errno::MFILE, "keeping the flow table"))?;
        self.flows = Some(copy);
        Ok(())
    }

    /// Where frames are to stay in chunks, of this size: why they are copied, if they are.
    pub(super) fn copies(&self, chunk_size: u32) -> Option<Option<String>> {
        let asked = self.nic.in_place.as_ref()?;
        Some(match asked {
            Err(why) => Some(format!("frames are copied: {why}")),
            Ok(()) if !stacks::fits_drivers(chunk_size) => Some(small_chunks(chunk_size)),
            Ok(()) => None,
        })
    }

    /// Gives the relay the stack's memory and opens the queue.
    pub(super) fn open_queue(
        &mut self,
        ifindex: u32,
        queue: u32,
        sizes: Sizes<'_>,
    ) -> Result<Queue, NicError> {
        let failed = |errno| failed(errno, "giving the relay the stack's memory");
        let flows = self.flows.as_ref().ok_or_else(|| failed(Errno::INVAL))?;
        let in_place = self.copies(sizes.chunk_size) == Some(None);
        let wanted = (sizes.ring_entries, self.nic.stamps_sent, in_place);
        let opened = self
            .link
            .attach(sizes.packets, sizes.chunk_size, flows.as_fd(), wanted);
        let opened = opened.map_err(failed)?;
        let copy = opened.rings.try_clone().map_err(|_| failed(Errno::MFILE))?;
        self.rings = Some(opened.rings);
        Ok(Queue {
            ifindex,
            queue,
            fd: opened.bell,
            rings: Some(copy),
            backend: self.backend(),
        })
    }

    /// Leads what has this key to the owner's queue.
    pub(super) fn add_filter(&self, key: FilterKey) -> Result<(), NicError> {
        let Self {
            nic, link, longest, ..
        } = self;
        let entered = nic.filters.add(&key, *longest);
        entered.map_err(|errno| failed(errno, "entering the filter"))?;
        if !nic.is_bifurcated {
            // What others send by the other MAC address is the kernel's until then. A relay that is
            // late, or a rule that is refused, leaves it so.
            if self.has_physical() {
                let _ = link.steer();
            }
            return Ok(());
        }
        link.steer().map_err(|why| {
            self.remove_filter(key);
            match why {
                Unsteered::Refused(words) => failed(Errno::NOSPC, words),
                Unsteered::Unanswered(words) => failed(Errno::TIMEDOUT, words),
            }
        })
    }

    /// Leaves it to the kernel again. Nobody waits for the card or its physical function: what
    /// still comes, the relay gives to the kernel.
    pub(super) fn remove_filter(&self, key: FilterKey) {
        self.nic.filters.remove(&key);
        if self.nic.is_bifurcated || self.has_physical() {
            self.link.tell_to_steer();
        }
    }

    /// Asks the card for its own filters; `None` where it has none. A relay that does not answer
    /// shows in other lists.
    pub(super) fn ask_card(&self) -> Option<Asked<'_>> {
        let nic = &self.nic;
        if !(nic.is_bifurcated || nic.rules.is_ok() || self.has_physical()) {
            return None;
        }
        let number = self.link.ask_filters().ok()?;
        let link = &self.link;
        Some(Asked { link, number })
    }

    /// Who matches the frames of a filter, which the card has or not, and its physical function has
    /// or not: they, or software and why.
    pub(super) fn matched_by(&self, is_in_card: bool, is_in_physical: bool) -> String {
        let nic = &self.nic;
        if nic.is_bifurcated {
            return "hardware".to_owned();
        }
        if let Some(Ok(through)) = nic.physical.as_ref().filter(|_| is_in_physical) {
            return format!("the card's rule (through {through})");
        }
        // Its one queue gets every frame, whatever its rules are.
        let said = match &nic.rules {
            _ if is_in_card => "software (the port has a rule)".to_owned(),
            Ok(()) => "software: the port has no rule for it".to_owned(),
            Err(why) => format!("software: {why}"),
        };
        match &nic.physical {
            None => said,
            Some(Ok(through)) => format!("{said}; {through} has no rule for it"),
            Some(Err(why)) => format!("{said}; {why}"),
        }
    }

    /// Why no rules at a physical function lead to it, where the configuration says that they are
    /// to.
    pub(super) fn unled(&self) -> Option<&str> {
        self.nic
            .physical
            .as_ref()?
            .as_ref()
            .err()
            .map(String::as_str)
    }

    /// What its queue pair is: flags of [`QueuePairInfo`].
    pub(super) fn flags(&self) -> u32 {
        let is = |condition, flag| if condition { flag } else { 0 };
        QueuePairInfo::STAMPS
            | is(self.nic.stamps_sent, QueuePairInfo::STAMPS_SENT)
            | is(
                self.nic.offloads.tx_checksums,
                QueuePairInfo::COMPLETES_CHECKSUMS,
            )
    }

    /// What one should know of it, if anything.
    pub(super) fn condition(&self) -> Option<&'static str> {
        (!self.nic.sleeps).then_some(
            "its driver has no interrupts here: an idle relay looks for frames a thousand times a \
             second",
        )
    }

    /// Whether rules elsewhere in the card lead to it.
    fn has_physical(&self) -> bool {
        matches!(self.nic.physical, Some(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use bypass_backends::af_xdp::Listener;
    use bypass_backends::relay::{self, Filters, Offloads};

    use super::*;

    /// A port with a relay that does not answer.
    fn deaf_port(rules: Result<(), &str>, physical: Option<Result<&str, &str>>) -> (Port, OwnedFd) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-deaf-{}-{number}", std::process::id());
        let listener = relay::claim(&name).expect("the address of a relay");
        let link = Arc::new(Link::connect(&name).expect("a relay"));
        let text = |it: &str| it.to_owned();
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let nic = RelayNic {
            stamps_sent: false,
            ifindex: 7,
            driver: text("net_ixgbe_vf"),
            sleeps: false,
            is_bifurcated: false,
            offloads: Offloads::default(),
            rules: rules.map_err(text),
            physical: physical.map(|it| it.map(text).map_err(text)),
            in_place: None,
            filters: Arc::new(Filters::create(1).expect("the tables of filters")),
            board: Arc::new(rustix::fs::memfd_create("board", flags).expect("a board")),
            rings: None,
        };
        (Port::new(nic, link, 2048, None), listener)
    }

    #[test]
    fn a_ports_filters_are_matched_by_software_unless_a_rule_leads_here() {
        let none = Err("Function not implemented");
        let (taken, refused) = (Some(Ok("eth0")), Some(Err("eth0 takes no rules")));
        for (rules, physical, [in_card, in_physical], expected) in [
            (none, None, [false; 2], "software: Function not implemented"),
            (
                Ok(()),
                None,
                [true, false],
                "software (the port has a rule)",
            ),
            (
                Ok(()),
                None,
                [false; 2],
                "software: the port has no rule for it",
            ),
            (none, taken, [false, true], "the card's rule (through eth0)"),
            (
                none,
                taken,
                [false; 2],
                "software: Function not implemented; eth0 has no rule for it",
            ),
            (
                none,
                refused,
                [false; 2],
                "software: Function not implemented; eth0 takes no rules",
            ),
        ] {
            let (mut port, _relay) = deaf_port(rules, physical);
            assert_eq!(port.matched_by(in_card, in_physical), expected);
            port.nic.is_bifurcated = true;
            assert_eq!(port.matched_by(in_card, in_physical), "hardware");
        }
    }

    #[test]
    fn a_relay_that_does_not_answer_holds_up_the_daemon_once() {
        let (port, _relay) = deaf_port(Ok(()), Some(Ok("eth0")));
        let key = |port| FilterKey::Listener(Listener::at([9; 16], port, 17));
        let begun = Instant::now();
        for number in 1..9 {
            port.add_filter(key(number))
                .expect("the relay's tables decide");
        }
        for number in 1..9 {
            port.remove_filter(key(number));
        }
        assert!(port.nic.filters.target(&key(8)).is_none());
        let taken = begun.elapsed();
        assert!(taken < relay::PATIENCE * 6, "{taken:?}");
    }
}
