//! A card's queues as a port: frames in, frames out, filters, a descriptor to sleep on.
//!
//! Every event has its place here. A VI that is dead (the card was reset, events were lost, sending
//! has stopped) is made again with its filters, and with it the others of its set; what was on its
//! way is lost, as on a wire.
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
use super::group::{Group, Plan};
use super::layout::Layout;
use super::library::{Ciul, Cookie};
use super::queue::{ETHERNET, MOST_OF_ONE, Queue};
use super::reason::CiulError;
use super::vlan::{self, Vlan};
use crate::relay::{CardFilter, Departure, Facts, InCard, Offloads, Port, Told};

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
    /// The same for lost events: by the card, or because the library cannot tell what one is of.
    pub overflows: u64,
    /// The same for transmit queues that have stopped.
    pub tx_errors: u64,
    /// Filters that a VI made again did not get.
    pub filters_lost: u64,
}

/// What is wished of a card, and done without where it cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The card says when each frame has come, and has left.
    pub timestamps: bool,
    /// Over how many queues it spreads the flows.
    pub queues: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timestamps: false,
            queues: 1,
        }
    }
}

/// Queues of a card. Not for several threads.
#[derive(Debug)]
pub struct EfViPort {
    ciul: Arc<Ciul>,
    layout: Layout,
    /// The card's interface.
    interface: String,
    /// What is opened again. Its set is one that the card has room for.
    plan: Plan,
    group: Option<Group>,
    /// Dead VIs, which keep their filters until others are opened: what they match must not reach
    /// the kernel meanwhile, which would reset connections that it does not know. When none opens
    /// for [`PATIENCE`], it may be their place that is missing.
    dead: Option<Group>,
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

/// Queues, and why they are not all that was wished.
struct Opened {
    group: Group,
    no_stamps: Option<String>,
    no_departures: Option<String>,
    no_set: Option<String>,
}

impl Opened {
    /// Opens queues; without stamps of what is sent, or any, where the card, or its licence, has
    /// none, and one only where no set of them is to be had, if that may be.
    fn of(
        ciul: &Arc<Ciul>,
        layout: Layout,
        interface: &str,
        wished: Plan,
        may_be_one: bool,
    ) -> Result<Self, CiulError> {
        let mut plan = wished;
        let (mut no_stamps, mut no_departures, mut no_set) = (None, None, None);
        let group = loop {
            match Group::open(ciul, layout, interface, plan) {
                Err(error) if plan.departures && error.may_be_of_stamps() => {
                    plan.departures = false;
                    no_departures = Some(error.errno.to_string());
                }
                Err(error) if plan.stamps && error.may_be_of_stamps() => {
                    plan.stamps = false;
                    no_stamps = Some(error.errno.to_string());
                }
                Err(error) if may_be_one && plan.queues > 1 => {
                    // It may be the set whose stamps were refused.
                    plan = Plan {
                        queues: 1,
                        ..wished
                    };
                    (no_stamps, no_departures) = (None, None);
                    no_set = Some(error.to_string());
                }
                opened => break opened?,
            }
        };
        if plan.stamps && !group.has_stamps() {
            no_stamps = Some("the library knows none".to_owned());
        }
        Ok(Self {
            group,
            no_stamps,
            no_departures,
            no_set,
        })
    }

    /// What of the wishes was fulfilled, for people.
    fn describe(&self, wished: Plan) -> String {
        let set = match &self.no_set {
            Some(why) => format!(", one queue instead of {} ({why})", wished.queues),
            None if wished.queues > 1 => format!(", {} queues", wished.queues),
            None => String::new(),
        };
        let stamps = match (&self.no_stamps, &self.no_departures) {
            (Some(why), _) => format!(", which cannot stamp frames ({why})"),
            (_, Some(why)) => format!(", stamping frames, but none that it sends ({why})"),
            _ if wished.stamps => ", stamping frames".to_owned(),
            _ => String::new(),
        };
        set + &stamps
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
    /// Takes queues of a card by the library at this path, or of this name.
    ///
    /// A VLAN interface on a card is a port with the card's frames of that VLAN.
    ///
    /// # Errors
    /// A sentence: what is absent, or does not fit.
    pub fn open(library: &Path, interface: &str, settings: Settings) -> Result<Self, String> {
        Self::with(Ciul::load(library)?, interface, settings)
    }

    /// The same with a library that is loaded.
    ///
    /// # Errors
    /// The same.
    pub fn with(ciul: Ciul, interface: &str, settings: Settings) -> Result<Self, String> {
        match Vlan::of(interface)? {
            Some(vlan) => Self::of_card(ciul, &vlan.card, Some((vlan.id, vlan.mtu)), settings),
            None => Self::of_card(ciul, interface, None, settings),
        }
    }

    /// Takes queues of a card, or of a VLAN with an id and an MTU there.
    pub(super) fn of_card(
        ciul: Ciul,
        interface: &str,
        vlan: Option<(u16, u32)>,
        settings: Settings,
    ) -> Result<Self, String> {
        let layout = calibrate::layout(&ciul)?;
        if !ciul.is_stand_in {
            card::check(interface)?;
        }
        let ciul = Arc::new(ciul);
        let plan = Plan {
            vlan: vlan.map(|(id, _)| id),
            stamps: settings.timestamps,
            departures: settings.timestamps,
            queues: settings.queues,
        };
        let opened = Opened::of(&ciul, layout, interface, plan, true);
        let mut opened = opened.map_err(|error| told(&ciul, &error))?;
        let facts = opened.group.first().facts();
        let (mac, mtu) = facts.map_err(|error| told(&ciul, &error))?;
        let mtu = vlan.map_or(mtu, |(_, own)| own.min(mtu));
        let tag = vlan.map_or(0, |_| vlan::BYTES as u32);
        let longest = opened.group.first().longest();
        if mtu.saturating_add(ETHERNET + tag) > longest {
            return Err(format!(
                "an MTU of {mtu} bytes is more than a buffer of the card takes ({longest} with \
                 headers)"
            ));
        }
        let facts = Facts {
            mac,
            // Less than a buffer has bytes.
            mtu: mtu as u16,
            driver: described(&ciul, layout) + &opened.describe(plan),
            is_bifurcated: true,
            stamps_sent: opened.group.tells_departures(),
            no_rules: None,
            in_place: None,
            offloads: Offloads::default(),
        };
        let plan = Plan {
            queues: opened.group.count() as u32,
            ..plan
        };
        Ok(Self::of_group(
            ciul,
            layout,
            interface,
            plan,
            opened.group,
            facts,
        ))
    }

    fn of_group(
        ciul: Arc<Ciul>,
        layout: Layout,
        interface: &str,
        plan: Plan,
        group: Group,
        facts: Facts,
    ) -> Self {
        Self {
            ciul,
            layout,
            interface: interface.to_owned(),
            plan,
            group: Some(group),
            dead: None,
            filters: BTreeMap::new(),
            died: Instant::now(),
            pause: PAUSES.0,
            retry: Instant::now(),
            facts,
            epoch: 1,
            counts: Counts::default(),
            events: Box::new([RawEvent::NONE; EVENTS]),
            room: Vec::new(),
        }
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes of events that each VI has read.
    #[cfg(test)]
    pub(super) fn read(&self) -> Vec<u32> {
        self.group.as_ref().map_or_else(Vec::new, Group::read)
    }

    fn open_again(&self) -> Result<Group, CiulError> {
        let (ciul, name) = (&self.ciul, &self.interface);
        // A set is not given up for the places that its dead ones may have.
        let may_be_one = self.dead.is_none();
        let opened = Opened::of(ciul, self.layout, name, self.plan, may_be_one)?;
        Ok(opened.group)
    }

    /// Makes the VIs again, if they are dead.
    fn mend(&mut self) {
        if self.group.is_some() || Instant::now() < self.retry {
            return;
        }
        let mut opened = self.open_again();
        if opened.is_err() && self.died.elapsed() >= PATIENCE && self.dead.take().is_some() {
            opened = self.open_again();
        }
        let Ok(mut group) = opened else {
            self.retry = Instant::now() + self.pause;
            self.pause = (self.pause * 2).min(PAUSES.1);
            return;
        };
        for (filter, cookie) in &mut self.filters {
            let mut added = group.add_filter(filter);
            if let (Err(_), Some(dead), Some(old)) = (&added, &mut self.dead, *cookie) {
                // Cards that know a filter once only, or have no room for another.
                dead.remove_filter(&old);
                added = group.add_filter(filter);
            }
            *cookie = added.ok();
            self.counts.filters_lost += u64::from(cookie.is_none());
        }
        self.dead = None;
        self.group = Some(group);
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
        let Some(group) = &mut self.group else {
            return Err("the card was reset a moment ago".to_owned());
        };
        let cookie = group
            .add_filter(&filter)
            .map_err(|error| told(&self.ciul, &error))?;
        self.filters.insert(filter, Some(cookie));
        Ok(())
    }

    /// Leaves matching frames to the kernel again.
    pub fn remove_filter(&mut self, filter: &CardFilter) {
        let cookie = self.filters.remove(filter).flatten();
        // The filters of the dead are still in the card.
        let group = self.group.as_mut().or(self.dead.as_mut());
        if let (Some(group), Some(cookie)) = (group, cookie) {
            group.remove_filter(&cookie);
        }
    }
}

impl EfViPort {
    /// One look at the events; frames as they are on the wire.
    fn receive_as_is(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize {
        self.mend();
        let Some(group) = &self.group else { return 0 };
        let has_stamps = group.has_stamps();
        for _ in 0..group.count() {
            let frames = if has_stamps {
                self.look::<true>(each)
            } else {
                self.look::<false>(each)
            };
            // The others have their turn with the next look.
            if frames > 0 {
                return frames;
            }
        }
        0
    }

    /// One look at the next VI, of a card that stamps frames, or does not.
    fn look<const STAMPS: bool>(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize {
        let Self { group, counts, .. } = self;
        let Some(alive) = group.as_mut().map(Group::in_turn) else {
            return 0;
        };
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
            self.dead = group.take();
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
        let Some(id) = self.plan.vlan else {
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
        let Some(group) = &mut self.group else {
            // A dead card's frames are lost.
            return true;
        };
        // SAFETY: the caller's word.
        unsafe { group.send(bytes, length) }
    }

    #[expect(
        unsafe_code,
        reason = "UNSAFETY: passes on bytes that others may change"
    )]
    unsafe fn send_stamped(&mut self, bytes: *const u8, length: u32, number: u32) -> bool {
        let Some(group) = &mut self.group else {
            // A dead card's frames are lost.
            return true;
        };
        // SAFETY: the caller's word.
        unsafe { group.send_stamped(bytes, length, number) }
    }

    fn departed(&mut self) -> Vec<Departure> {
        let group = self.group.as_mut();
        group.map_or_else(Vec::new, Group::take_departed)
    }

    fn room(&self) -> usize {
        // A dead card's frames are lost.
        self.group.as_ref().map_or(usize::MAX, Group::room)
    }

    fn flush(&mut self) -> u32 {
        if let Some(group) = &mut self.group {
            group.flush();
        }
        0
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let counts = self.counts;
        let numbers = [
            ("queues", self.group.as_ref().map_or(0, Group::count) as u64),
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
        self.group.as_ref().map(Group::fd)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn prime(&mut self) -> bool {
        self.group
            .as_mut()
            .is_some_and(|group| group.prime().is_ok())
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
        let Some(group) = &self.group else {
            return Vec::new();
        };
        let there = self.filters.iter().filter_map(|(filter, cookie)| {
            Some(InCard {
                filter: *filter,
                queue: group.number(),
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
            Event::Merged { why } => return self.take_merged(queue, event, why, each),
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
            Event::Sent => match queue.unbundle_tx(event) {
                Some(count) => self.sent += count as u64,
                None => return dead(&mut self.overflows),
            },
            Event::SentAt { id, at_ns } => {
                self.sent += 1;
                queue.sent_at(id, at_ns);
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
    ) -> bool {
        let mut ids = [0; MOST_OF_ONE];
        let Some(count) = queue.unbundle_rx(event, &mut ids) else {
            return dead(&mut self.overflows);
        };
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
        true
    }
}

/// Counts a VI that does not live.
fn dead(count: &mut u64) -> bool {
    *count += 1;
    false
}
