//! A card's queue as a port: frames in, frames out, filters, a descriptor to sleep on.
//!
//! Every event has its place here. A VI that is dead (the card was reset, events were lost, sending
//! has stopped) is made again with its filters; what was on its way is lost, as on a wire.
//!
//! ```text
//!   open ──► works ── RESET, OFLOW, TX_ERROR ──► broken ── at once, then with pauses ──► works
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::calibrate;
use super::card;
use super::event::{DISCARDS, Event, RawEvent};
use super::layout::Layout;
use super::library::{Ciul, Cookie};
use super::queue::{ETHERNET, MOST_OF_ONE, Queue};
use super::reason::CiulError;
use super::vlan::{self, Vlan};
use crate::relay::{CardFilter, Facts, InCard, Offloads, Port, Told};

/// Events of one look. With room for two at least.
const EVENTS: usize = 32;
/// Pauses between attempts to make a VI again: the first one, and the longest.
const PAUSES: (Duration, Duration) = (
    Duration::from_millis(1),
    Duration::from_millis(if cfg!(test) { 4 } else { 1000 }),
);
/// How long a dead VI keeps its filters while another cannot be opened: a connection's peer sends
/// again for longer.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 3000 });

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Buffers that came back for nothing, by [`DISCARDS`].
    pub discarded: [u64; DISCARDS.len()],
    /// Frames that found no buffer: events of it.
    pub no_buffer: u64,
    /// Frames longer than a buffer.
    pub too_long: u64,
    /// Frames without the VLAN's tag.
    pub other_vlan: u64,
    /// VIs made again, and why: resets, lost events, stopped transmit queues.
    pub resets: u64,
    /// The same for lost events.
    pub overflows: u64,
    /// The same for transmit queues that have stopped.
    pub tx_errors: u64,
    /// Filters that a VI made again did not get.
    pub filters_lost: u64,
}

/// A queue of a card. Not for several threads.
#[derive(Debug)]
pub struct EfViPort {
    ciul: Arc<Ciul>,
    layout: Layout,
    /// The card's interface.
    interface: String,
    vlan: Option<u16>,
    /// Whether stamps are asked for.
    stamps: bool,
    queue: Option<Queue>,
    /// A dead VI, which keeps its filters until another is opened: what they match must not reach
    /// the kernel meanwhile, which would reset connections that it does not know. When none opens
    /// for [`PATIENCE`], it may be this one's place that is missing.
    dead: Option<Queue>,
    /// Since when there is no VI that works.
    died: Instant,
    /// Until the next attempt but one to open one.
    pause: Duration,
    /// With the card's cookie, while it has the filter.
    filters: BTreeMap<CardFilter, Option<Cookie>>,
    retry: Instant,
    facts: Facts,
    /// VIs that were made.
    epoch: u64,
    counts: Counts,
    events: Box<[RawEvent; EVENTS]>,
    /// A frame whose tag is off.
    room: Vec<u8>,
}

/// A queue, and why it has no stamps that were asked for.
struct Opened {
    queue: Queue,
    refusal: Option<String>,
}

impl Opened {
    /// Opens a queue; without stamps where the card, or its licence, has none.
    fn of(
        ciul: &Arc<Ciul>,
        layout: Layout,
        interface: &str,
        vlan: Option<u16>,
        stamps: bool,
    ) -> Result<Self, CiulError> {
        let open = |stamps| Queue::open(ciul, layout, interface, vlan, stamps);
        let (queue, refusal) = match open(stamps) {
            Err(error) if stamps && error.may_be_of_stamps() => {
                (open(false)?, Some(error.errno.to_string()))
            }
            opened => (opened?, None),
        };
        let is_old = stamps && refusal.is_none() && !queue.has_stamps();
        let refusal = refusal.or_else(|| is_old.then(|| "the library knows none".to_owned()));
        Ok(Self { queue, refusal })
    }
}

/// What a library is: its release, and which layout it has. Nothing is opened.
///
/// # Errors
/// A sentence: it is not installed, or no release's.
pub fn probe(library: &Path) -> Result<String, String> {
    let ciul = Ciul::load(library)?;
    let layout = calibrate::layout(&ciul)?;
    Ok(described(&ciul, layout))
}

fn described(ciul: &Ciul, layout: Layout) -> String {
    format!("libciul {}, layout of {}", ciul.version(), layout.name)
}

impl EfViPort {
    /// Takes a queue of a card by the library at this path, or of this name.
    ///
    /// # Errors
    /// A sentence: what is absent, or does not fit.
    ///
    /// A VLAN interface on a card is a port with the card's frames of that VLAN.
    ///
    /// `stamps`: the card is to say when each frame has come. One that cannot is opened without.
    pub fn open(library: &Path, interface: &str, stamps: bool) -> Result<Self, String> {
        Self::with(Ciul::load(library)?, interface, stamps)
    }

    /// The same with a library that is loaded.
    ///
    /// # Errors
    /// The same.
    pub fn with(ciul: Ciul, interface: &str, stamps: bool) -> Result<Self, String> {
        match Vlan::of(interface)? {
            Some(vlan) => Self::of_card(ciul, &vlan.card, Some((vlan.id, vlan.mtu)), stamps),
            None => Self::of_card(ciul, interface, None, stamps),
        }
    }

    /// Takes a queue of a card, or of a VLAN with an id and an MTU there.
    pub(super) fn of_card(
        ciul: Ciul,
        interface: &str,
        vlan: Option<(u16, u32)>,
        stamps: bool,
    ) -> Result<Self, String> {
        let layout = calibrate::layout(&ciul)?;
        if !ciul.is_stand_in {
            card::check(interface)?;
        }
        let ciul = Arc::new(ciul);
        let told = |error: CiulError| told(&ciul, &error);
        let id = vlan.map(|(id, _)| id);
        let opened = Opened::of(&ciul, layout, interface, id, stamps);
        let Opened { mut queue, refusal } = opened.map_err(told)?;
        let (mac, mtu) = queue.facts().map_err(told)?;
        let mtu = vlan.map_or(mtu, |(_, own)| own.min(mtu));
        let tag = vlan.map_or(0, |_| vlan::BYTES as u32);
        if mtu.saturating_add(ETHERNET + tag) > queue.longest() {
            return Err(format!(
                "an MTU of {mtu} bytes is more than a buffer of the card takes ({} with headers)",
                queue.longest()
            ));
        }
        let mut driver = described(&ciul, layout);
        driver += &match (stamps, refusal) {
            (true, None) => ", stamping frames".to_owned(),
            (true, Some(why)) => format!(", which cannot stamp frames ({why})"),
            (false, _) => String::new(),
        };
        Ok(Self {
            layout,
            interface: interface.to_owned(),
            vlan: id,
            stamps,
            queue: Some(queue),
            dead: None,
            filters: BTreeMap::new(),
            died: Instant::now(),
            pause: PAUSES.0,
            retry: Instant::now(),
            facts: Facts {
                mac,
                // Less than a buffer has bytes.
                mtu: mtu as u16,
                driver,
                is_bifurcated: true,
                offloads: Offloads::default(),
            },
            epoch: 1,
            counts: Counts::default(),
            events: Box::new([RawEvent::NONE; EVENTS]),
            room: Vec::new(),
            ciul,
        })
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn open_again(&self) -> Result<Queue, CiulError> {
        let (ciul, name) = (&self.ciul, &self.interface);
        let opened = Opened::of(ciul, self.layout, name, self.vlan, self.stamps)?;
        Ok(opened.queue)
    }

    /// Makes the VI again, if it is dead.
    fn mend(&mut self) {
        if self.queue.is_some() || Instant::now() < self.retry {
            return;
        }
        let mut opened = self.open_again();
        if opened.is_err() && self.died.elapsed() >= PATIENCE && self.dead.take().is_some() {
            opened = self.open_again();
        }
        let Ok(mut queue) = opened else {
            self.retry = Instant::now() + self.pause;
            self.pause = (self.pause * 2).min(PAUSES.1);
            return;
        };
        for (filter, cookie) in &mut self.filters {
            let mut added = queue.add_filter(filter);
            if let (Err(_), Some(dead), Some(old)) = (&added, &mut self.dead, *cookie) {
                // Cards that know a filter once only, or have no room for another.
                dead.remove_filter(&old);
                added = queue.add_filter(filter);
            }
            *cookie = added.ok();
            self.counts.filters_lost += u64::from(cookie.is_none());
        }
        self.dead = None;
        self.queue = Some(queue);
        self.epoch += 1;
    }

    /// Leads matching frames to this port, and no longer to the kernel.
    ///
    /// # Errors
    /// A sentence: what the card has no room for, or no knowledge of.
    pub fn add_filter(&mut self, filter: CardFilter) -> Result<(), String> {
        if self.filters.contains_key(&filter) {
            return Ok(());
        }
        let Some(queue) = &mut self.queue else {
            return Err("the card was reset a moment ago".to_owned());
        };
        let cookie = queue
            .add_filter(&filter)
            .map_err(|error| told(&self.ciul, &error))?;
        self.filters.insert(filter, Some(cookie));
        Ok(())
    }

    /// Leaves matching frames to the kernel again.
    pub fn remove_filter(&mut self, filter: &CardFilter) {
        let cookie = self.filters.remove(filter).flatten();
        // A dead VI's filters are still in the card.
        let queue = self.queue.as_mut().or(self.dead.as_mut());
        if let (Some(queue), Some(cookie)) = (queue, cookie) {
            queue.remove_filter(&cookie);
        }
    }
}

impl EfViPort {
    /// One look at the events; frames as they are on the wire.
    fn receive_as_is(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize {
        if self.queue.as_ref().is_some_and(Queue::has_stamps) {
            self.look::<true>(each)
        } else {
            self.look::<false>(each)
        }
    }

    /// The same of a card that stamps frames, or does not.
    fn look<const STAMPS: bool>(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize {
        self.mend();
        let Self {
            queue,
            dead,
            counts,
            ..
        } = self;
        let Some(alive) = queue else { return 0 };
        let before = counts.received;
        let count = alive.poll(&mut *self.events);
        let mut events = self.events[..count].iter();
        let rx_ref = self.layout.rx_ref;
        let is_alive = events.all(|event| match event.whole_frame() {
            Some((id, bytes)) => {
                counts.take_frame::<STAMPS>(alive, id, bytes, each);
                true
            }
            None => counts.take(alive, event, rx_ref, each),
        });
        if is_alive {
            alive.push_posted();
        } else {
            // What is left of a dead VI's events is of no use.
            *dead = queue.take();
            self.died = Instant::now();
            (self.retry, self.pause) = (self.died, PAUSES.0);
        }
        (counts.received - before) as usize
    }
}

impl Port for EfViPort {
    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize {
        let Some(id) = self.vlan else {
            return self.receive_as_is(each);
        };
        let mut room = std::mem::take(&mut self.room);
        let mut others = 0;
        let count =
            self.receive_as_is(&mut |frame, told| match vlan::untag(frame, id, &mut room) {
                Some(frame) => each(frame, told),
                None => others += 1,
            });
        self.room = room;
        self.counts.other_vlan += others;
        count
    }

    #[expect(
        unsafe_code,
        reason = "UNSAFETY: passes on bytes that others may change"
    )]
    unsafe fn send(&mut self, bytes: *const u8, length: u32) -> bool {
        let Some(queue) = &mut self.queue else {
            // A dead card's frames are lost.
            return true;
        };
        // SAFETY: the caller's word.
        unsafe { queue.send(bytes, length) }
    }

    fn room(&self) -> usize {
        // A dead card's frames are lost.
        self.queue.as_ref().map_or(usize::MAX, Queue::room)
    }

    fn flush(&mut self) -> u32 {
        if let Some(queue) = &mut self.queue {
            queue.flush();
        }
        0
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let counts = self.counts;
        let numbers = [
            ("received", counts.received),
            ("sent", counts.sent),
            ("no-buffer", counts.no_buffer),
            ("too-long", counts.too_long),
            ("other-vlan", counts.other_vlan),
            ("resets", counts.resets),
            ("overflows", counts.overflows),
            ("tx-errors", counts.tx_errors),
            ("filters", self.filters.len() as u64),
            ("filters-lost", counts.filters_lost),
        ];
        let discarded = DISCARDS.iter().zip(counts.discarded);
        let discarded = discarded.map(|(why, count)| (format!("discarded: {why}"), count));
        let numbers = numbers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        numbers.chain(discarded).collect()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref().map(Queue::fd)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn prime(&mut self) -> bool {
        self.queue
            .as_mut()
            .is_some_and(|queue| queue.prime().is_ok())
    }

    fn lead(&mut self, wanted: &BTreeSet<CardFilter>) -> Result<(), String> {
        let known = self.filters.keys().copied();
        let gone: Vec<CardFilter> = known.filter(|known| !wanted.contains(known)).collect();
        for filter in &gone {
            self.remove_filter(filter);
        }
        let mut answer = Ok(());
        for filter in wanted {
            let added = self.add_filter(*filter);
            answer = answer.and(added);
        }
        answer
    }

    fn in_card(&self) -> Vec<InCard> {
        let Some(queue) = &self.queue else {
            return Vec::new();
        };
        let there = self.filters.iter().filter_map(|(filter, cookie)| {
            Some(InCard {
                filter: *filter,
                queue: queue.number(),
                cookie: (*cookie)?.words(),
            })
        });
        there.collect()
    }
}

fn told(ciul: &Ciul, error: &CiulError) -> String {
    if error.errno == rustix::io::Errno::LIBACC {
        let (version, wanted) = (ciul.version(), ciul.driver_interface());
        return format!("{error}: libciul {version} wants a driver with interface {wanted}");
    }
    error.to_string()
}

impl Counts {
    /// Takes a whole frame.
    fn take_frame<const STAMPS: bool>(
        &mut self,
        queue: &mut Queue,
        id: u32,
        bytes: u16,
        each: &mut dyn FnMut(&[u8], Told),
    ) {
        let stamp = if STAMPS { queue.stamp(id) } else { 0 };
        match queue.frame(id, bytes) {
            Some(frame) => {
                self.received += 1;
                each(
                    frame,
                    Told {
                        stamp,
                        ..Told::default()
                    },
                );
            }
            None => self.too_long += 1,
        }
        queue.post(id);
    }

    /// Answers any other event, of a release whose RX_REF has this number; whether the VI lives.
    fn take(
        &mut self,
        queue: &mut Queue,
        event: &RawEvent,
        rx_ref: u16,
        each: &mut dyn FnMut(&[u8], Told),
    ) -> bool {
        match event.read(rx_ref) {
            Event::Part { id } => {
                self.too_long += 1;
                queue.post(id);
            }
            Event::Discarded { id, why } => {
                self.discard(why, 1);
                queue.post(id);
            }
            Event::Merged { why } => self.take_merged(queue, event, why, each),
            Event::Lent { packet, bytes } => {
                let used = queue.with_lent(packet, bytes, |frame, stamp| {
                    each(
                        frame,
                        Told {
                            stamp,
                            ..Told::default()
                        },
                    );
                });
                self.received += u64::from(used.is_some());
                queue.release(packet);
            }
            Event::LentBad { packet } => {
                self.discard(u16::MAX, 1);
                queue.release(packet);
            }
            Event::Sent => self.sent += queue.unbundle_tx(event) as u64,
            Event::SentAt { id } => {
                self.sent += 1;
                queue.sent(id);
            }
            Event::NoBuffer => self.no_buffer += 1,
            Event::TxError { .. } => return dead(&mut self.tx_errors),
            Event::Overflow => return dead(&mut self.overflows),
            Event::Reset => return dead(&mut self.resets),
            Event::Other => {}
        }
        true
    }

    fn discard(&mut self, why: u16, buffers: usize) {
        const OTHER: usize = 6;
        let known = usize::from(why) < DISCARDS.len();
        let why = if known { usize::from(why) } else { OTHER };
        self.discarded[why] += buffers as u64;
    }

    fn take_merged(
        &mut self,
        queue: &mut Queue,
        event: &RawEvent,
        why: Option<u16>,
        each: &mut dyn FnMut(&[u8], Told),
    ) {
        let mut ids = [0; MOST_OF_ONE];
        let count = queue.unbundle_rx(event, &mut ids).min(MOST_OF_ONE);
        if let Some(why) = why {
            self.discard(why, count);
        }
        for id in &ids[..count] {
            let bytes = queue.merged_bytes(*id).filter(|_| why.is_none());
            let stamp = queue.stamp(*id);
            match bytes.and_then(|bytes| queue.frame(*id, bytes)) {
                Some(frame) => {
                    self.received += 1;
                    each(
                        frame,
                        Told {
                            stamp,
                            ..Told::default()
                        },
                    );
                }
                None => self.too_long += u64::from(why.is_none()),
            }
            queue.post(*id);
        }
    }
}

/// Counts a VI that does not live.
fn dead(count: &mut u64) -> bool {
    *count += 1;
    false
}
