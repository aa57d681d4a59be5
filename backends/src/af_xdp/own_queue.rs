//! A queue that is a stack's alone: RSS passes it by, and rules in the card lead the stack's flows
//! to it, so that other traffic costs the stack nothing and the stack's costs other traffic
//! nothing.
//!
//! ```text
//!             ┌───────────── card ─────────────┐
//!   NIC ────► │ rules (ntuple): our flows      │ ──► the last queue ──► the stack
//!             │ RSS table, without that queue  │ ──► the others ──────► the kernel
//!             └────────────────────────────────┘
//! ```
//!
//! Few cards take rules, and some of those that do not say so only when they get one: igb counts
//! its rules and has none. So a rule that matches nothing is tried first, and the table is written
//! when the card has taken it. What is refused later is the socket's matter: it stays in the
//! kernel.
//!
//! When the stack leaves, its rules go and the table is as it was, unless somebody else has written
//! one meanwhile. A daemon that ends while programs go on, or is killed, leaves both for the next
//! one, which keeps the rules that its filters want and enters what is missing. It does not know
//! the table of before: it gives the driver's own back.
//!
//! Whose a rule is, no card tells. So a queue that somebody else's rules lead to is not taken, and
//! a rule is removed only where the card still has it as it was entered.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::nic::FilterKey;
use super::program::{Flow, Listener};

/// Where a rule leads, as the kernel writes it: the number of a queue; above it that of a virtual
/// function of the card, plus one (`ethtool_get_flow_spec_ring_vf` of linux/ethtool.h).
pub(crate) type Destination = u64;

/// The first queue of a virtual function.
pub(crate) fn of_function(number: u32) -> Destination {
    (Destination::from(number) + 1) << 32
}

/// What a rule matches, whole: a protocol, an address and port of ours, perhaps another end's.
/// Addresses of IPv4 are mapped ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// 6 or 17.
    pub protocol: u8,
    /// Our address and port.
    pub local: ([u8; 16], u16),
    /// The other end's; `None` = any.
    pub remote: Option<([u8; 16], u16)>,
}

impl Rule {
    /// Matches nothing that a card gets: the discard port of a loopback address. Functions have one
    /// each: they are tried at one time, and some cards refuse a second equal rule.
    pub(crate) fn trial(to: Destination) -> Self {
        let function = (to >> 32) as u8;
        let local = [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, function, 9,
        ];
        Self {
            protocol: 17,
            local: (local, 9),
            remote: None,
        }
    }

    /// The rule for a filter; `None` for one of any address, which no rule matches whole.
    fn of(filter: &FilterKey) -> Option<Self> {
        let at = |key: &Listener| {
            (key.any == 0).then_some(Self {
                protocol: key.protocol,
                local: (key.ip, key.port),
                remote: None,
            })
        };
        match filter {
            FilterKey::Listener(key) | FilterKey::Grant(key) => at(key),
            FilterKey::Flow(Flow {
                local,
                remote,
                local_port,
                remote_port,
                protocol,
            }) => Some(Self {
                protocol: u8::try_from(*protocol).ok()?,
                local: (*local, *local_port),
                remote: Some((*remote, *remote_port)),
            }),
        }
    }
}

/// What [`enter`] answers for a card that does not tell a rule as it was entered.
const UNTOLD: Errno = Errno::BADMSG;

/// What is asked of a card.
pub(crate) trait Card: Debug + Send + Sync {
    /// The RSS table: a queue for each value of the hash.
    fn table(&self) -> Result<Vec<u32>, Errno>;
    /// Writes it; an empty one is the driver's own.
    fn set_table(&self, table: &[u32]) -> Result<(), Errno>;
    /// Leads a rule's frames to a queue; where the card keeps it.
    fn insert(&self, rule: &Rule, to: Destination) -> Result<u32, Errno>;
    /// Forgets the rule that is kept there.
    fn remove(&self, location: u32);
    /// Whether this rule is kept there and leads to the queue.
    fn has(&self, location: u32, rule: &Rule, to: Destination) -> bool;
    /// Where rules are kept that lead to a queue, and which; `None` for what is no [`Rule`].
    fn rules(&self, to: Destination) -> Vec<(u32, Option<Rule>)>;
}

/// A rule that the card has, and the filters that want it.
#[derive(Debug)]
struct Kept {
    location: u32,
    filters: Vec<FilterKey>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct OwnQueue {
    card: Box<dyn Card>,
    /// Its number.
    pub(super) queue: u32,
    /// The RSS table to give back, empty = the driver's own.
    before: Vec<u32>,
    /// The one in its place. When the card has another, nothing is given back.
    written: Vec<u32>,
    kept: Mutex<BTreeMap<Rule, Kept>>,
    /// Card and rules stay as they are.
    is_left: AtomicBool,
}

impl OwnQueue {
    /// Takes the last of so many queues.
    ///
    /// # Errors
    /// Why there is none, in a sentence; the card has nothing of ours then.
    pub(super) fn take(card: Box<dyn Card>, queues: u32) -> Result<Self, String> {
        let queue = last(queues)?;
        clear(&*card, queue);
        try_last(&*card, queue)?;
        let led = card.rules(queue.into()).len();
        if led > 0 {
            return Err(format!("rules lead to its last queue already ({led})"));
        }
        let failed = |errno| format!("its RSS table cannot be set: {errno}");
        let table = card.table().map_err(failed)?;
        let mut written = without(&table, queue);
        if written != table {
            card.set_table(&written).map_err(failed)?;
            written = card.table().unwrap_or(written);
        }
        let is_usual = table == usual(table.len(), queues);
        let before = if is_usual { Vec::new() } else { table };
        Ok(Self::new(card, queue, before, written))
    }

    /// Takes over a queue that a daemon before this one has taken, with the rules that these
    /// filters want; and of how many the card has no rule and takes none.
    pub(super) fn take_over(
        card: Box<dyn Card>,
        queue: u32,
        filters: &[FilterKey],
    ) -> (Self, usize) {
        let led = card.rules(queue.into()).into_iter();
        let found: BTreeMap<Rule, u32> = led
            .filter_map(|(location, rule)| Some((rule?, location)))
            .collect();
        let written = card.table().unwrap_or_default();
        let is_ours = !written.is_empty() && !written.contains(&queue);
        let before = if is_ours { Vec::new() } else { written.clone() };
        let own = Self::new(card, queue, before, written);
        let mut kept = own.kept();
        for rule in filters.iter().filter_map(Rule::of) {
            if let Some(location) = found.get(&rule) {
                kept.entry(rule).or_insert(Kept {
                    location: *location,
                    filters: Vec::new(),
                });
            }
        }
        drop(kept);
        let refused = filters.iter().filter(|filter| own.lead(filter).is_err());
        let refused = refused.count();
        (own, refused)
    }

    fn new(card: Box<dyn Card>, queue: u32, before: Vec<u32>, written: Vec<u32>) -> Self {
        Self {
            card,
            queue,
            before,
            written,
            kept: Mutex::default(),
            is_left: AtomicBool::new(false),
        }
    }

    fn remove(&self, rule: &Rule, location: u32) {
        withdraw(&*self.card, rule, location, self.queue.into());
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<Rule, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads a filter's frames to the queue.
    ///
    /// # Errors
    /// As of [`enter`].
    pub(super) fn lead(&self, filter: &FilterKey) -> Result<(), Errno> {
        let rule = Rule::of(filter).ok_or(Errno::OPNOTSUPP)?;
        let mut kept = self.kept();
        if let Some(known) = kept.get_mut(&rule) {
            if !known.filters.contains(filter) {
                known.filters.push(*filter);
            }
            return Ok(());
        }
        let location = enter(&*self.card, &rule, self.queue.into())?;
        let filters = vec![*filter];
        kept.insert(rule, Kept { location, filters });
        Ok(())
    }

    /// Leads them no more, when no other filter wants the same; one that is not led is no error.
    pub(super) fn leave(&self, filter: &FilterKey) {
        let mut kept = self.kept();
        let Some(rule) = Rule::of(filter) else {
            return;
        };
        let Some(known) = kept.get_mut(&rule) else {
            return;
        };
        known.filters.retain(|other| other != filter);
        if known.filters.is_empty() {
            self.remove(&rule, known.location);
            kept.remove(&rule);
        }
    }

    /// The rules that the card has, with their places.
    pub(super) fn rules(&self) -> Vec<(Rule, u32)> {
        let kept = self.kept();
        let rules = kept.iter().map(|(rule, known)| (*rule, known.location));
        rules.collect()
    }

    /// Leaves everything in the card: programs go on without this daemon.
    pub(super) fn leave_behind(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }
}

impl Drop for OwnQueue {
    fn drop(&mut self) {
        if self.is_left.load(Ordering::Relaxed) {
            return;
        }
        for (rule, location) in self.rules() {
            self.remove(&rule, location);
        }
        let is_still_ours = self.card.table().as_ref() == Ok(&self.written);
        if is_still_ours && self.before != self.written {
            // A card that is gone has no table.
            let _ = self.card.set_table(&self.before);
        }
    }
}

/// Why a card gives nobody a queue for himself, if that shows without changing its table.
pub(super) fn refusal(card: &dyn Card, queues: u32) -> Option<String> {
    last(queues).and_then(|queue| try_last(card, queue)).err()
}

/// The last of so many queues.
fn last(queues: u32) -> Result<u32, String> {
    let queue = queues.checked_sub(1).filter(|last| *last > 0);
    queue.ok_or_else(|| "it has one queue only".to_owned())
}

fn try_last(card: &dyn Card, queue: u32) -> Result<(), String> {
    try_rule(card, queue.into()).map_err(|why| format!("it {why}"))
}

/// Removes what a daemon has left that was killed, and its programs with it.
fn clear(card: &dyn Card, queue: u32) {
    let is_left = card.table().is_ok_and(|it| is_left_over(&it, queue));
    for (location, rule) in card.rules(queue.into()) {
        if rule.is_some_and(|rule| is_left || rule == Rule::trial(queue.into())) {
            card.remove(location);
        }
    }
    if is_left {
        // A table that cannot be set stays.
        let _ = card.set_table(&[]);
    }
}

/// Enters a rule that matches nothing and removes it again.
///
/// # Errors
/// What follows the card's name in a sentence.
pub(crate) fn try_rule(card: &dyn Card, to: Destination) -> Result<(), String> {
    let trial = Rule::trial(to);
    let location = enter(card, &trial, to).map_err(|errno| match errno == UNTOLD {
        true => "does not tell its rules (ntuple) as they were entered".to_owned(),
        false => format!("takes no rules (ntuple): {errno}"),
    })?;
    withdraw(card, &trial, location, to);
    Ok(())
}

/// Enters a rule and reads it back: a place is chosen first and taken then, and a driver that is
/// told a place may replace what another program has put there meanwhile. (Who comes second does
/// not see that he has replaced one.)
///
/// # Errors
/// The card's: of most `ENOSPC` when it has no room, `EOPNOTSUPP` for what it cannot match;
/// [`UNTOLD`].
pub(crate) fn enter(card: &dyn Card, rule: &Rule, to: Destination) -> Result<u32, Errno> {
    let first = card.insert(rule, to)?;
    if card.has(first, rule, to) {
        return Ok(first);
    }
    let second = card.insert(rule, to).ok();
    // A card that tells the second one told the first as well: another's is there.
    if let Some(place) = second.filter(|place| card.has(*place, rule, to)) {
        return Ok(place);
    }
    card.remove(first);
    second.into_iter().for_each(|place| card.remove(place));
    Err(UNTOLD)
}

/// Removes a rule, where the card still has it: places are used again.
pub(crate) fn withdraw(card: &dyn Card, rule: &Rule, location: u32, to: Destination) {
    if card.has(location, rule, to) {
        card.remove(location);
    }
}

/// The table of so many entries that the kernel has drivers begin with.
fn usual(entries: usize, queues: u32) -> Vec<u32> {
    (0..queues).cycle().take(entries).collect()
}

/// Whether a table is what the usual one becomes without its last queue, and is no usual one of
/// fewer queues.
fn is_left_over(table: &[u32], queue: u32) -> bool {
    let ours = without(&usual(table.len(), queue + 1), queue);
    table == ours && table != usual(table.len(), queue)
}

/// The table with the others in the place of a queue, in turns.
fn without(table: &[u32], queue: u32) -> Vec<u32> {
    let mut others: Vec<u32> = table.iter().copied().filter(|it| *it != queue).collect();
    others.sort_unstable();
    others.dedup();
    if others.is_empty() {
        others = (0..queue).collect();
    }
    let mut turns = others.iter().copied().cycle();
    let mut other = || turns.next().unwrap_or(0);
    let entry = |it: &u32| if *it == queue { other() } else { *it };
    table.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;

    /// What a card in software has. No emulated card takes rules.
    #[derive(Debug, Default)]
    struct State {
        table: Vec<u32>,
        /// `None` = of another shape than ours.
        rules: BTreeMap<u32, (Option<Rule>, u32)>,
        /// Rules that were ever entered.
        entered: usize,
        /// Rules that it has room for.
        room: usize,
        refuses_tables: bool,
        /// The kernel's flag for a table that somebody has written.
        is_configured: bool,
        /// Tells rules in other words than they were entered.
        forgets: bool,
    }

    /// A card in software: a double, no driver.
    #[derive(Clone, Debug, Default)]
    struct FakeCard(Arc<Mutex<State>>);

    impl FakeCard {
        fn new(table: &[u32], room: usize) -> Self {
            let state = State {
                table: table.to_vec(),
                room,
                ..State::default()
            };
            Self(Arc::new(Mutex::new(state)))
        }

        fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap()
        }

        /// The queues that it brings a frame to: of a rule, or any that RSS knows.
        fn queues(&self, rule: &Rule) -> BTreeSet<u32> {
            let state = self.state();
            let led = state
                .rules
                .values()
                .find(|(known, _)| *known == Some(*rule));
            let everywhere = || state.table.iter().copied().collect();
            led.map_or_else(everywhere, |(_, queue)| BTreeSet::from([*queue]))
        }
    }

    impl Card for FakeCard {
        fn table(&self) -> Result<Vec<u32>, Errno> {
            Ok(self.state().table.clone())
        }

        fn set_table(&self, table: &[u32]) -> Result<(), Errno> {
            let mut state = self.state();
            if state.refuses_tables {
                return Err(Errno::OPNOTSUPP);
            }
            state.table = match table {
                [] => usual(state.table.len(), 4),
                table => table.to_vec(),
            };
            state.is_configured = !table.is_empty();
            Ok(())
        }

        fn insert(&self, rule: &Rule, to: Destination) -> Result<u32, Errno> {
            let queue = u32::try_from(to).unwrap();
            let mut state = self.state();
            if state.room == 0 {
                return Err(Errno::OPNOTSUPP);
            }
            let free = (0..state.room as u32).find(|it| !state.rules.contains_key(it));
            let location = free.ok_or(Errno::NOSPC)?;
            state.rules.insert(location, (Some(*rule), queue));
            state.entered += 1;
            Ok(location)
        }

        fn remove(&self, location: u32) {
            assert!(self.state().rules.remove(&location).is_some());
        }

        fn has(&self, location: u32, rule: &Rule, to: Destination) -> bool {
            let queue = u32::try_from(to).unwrap();
            let state = self.state();
            !state.forgets && state.rules.get(&location) == Some(&(Some(*rule), queue))
        }

        fn rules(&self, to: Destination) -> Vec<(u32, Option<Rule>)> {
            let queue = u32::try_from(to).unwrap();
            let state = self.state();
            let there = state.rules.iter().filter(|(_, (_, to))| *to == queue);
            there
                .map(|(location, (rule, _))| (*location, *rule))
                .collect()
        }
    }

    fn key(port: u16, protocol: u8) -> Listener {
        Listener::at([9; 16], port, protocol)
    }

    fn rule(port: u16, protocol: u8) -> Rule {
        Rule::of(&FilterKey::Listener(key(port, protocol))).unwrap()
    }

    const TABLE: [u32; 8] = [0, 1, 2, 3, 0, 1, 2, 3];

    #[test]
    fn only_what_is_led_comes_to_the_queue_and_the_card_is_as_before_afterwards() {
        let card = FakeCard::new(&TABLE, 8);
        let own = OwnQueue::take(Box::new(card.clone()), 4).unwrap();
        assert!(card.state().rules.is_empty(), "the trial is gone");
        assert_eq!(card.state().table, [0, 1, 2, 0, 0, 1, 2, 1]);
        own.lead(&FilterKey::Listener(key(7, 17))).unwrap();
        assert_eq!(card.queues(&rule(7, 17)), BTreeSet::from([3]));
        assert_eq!(card.queues(&rule(8, 17)), BTreeSet::from([0, 1, 2]));
        assert_eq!(own.rules(), [(rule(7, 17), 0)]);
        drop(own);
        assert_eq!(card.state().table, TABLE);
        assert!(card.state().rules.is_empty());
    }

    #[test]
    fn filters_of_one_address_share_a_rule() {
        let card = FakeCard::new(&TABLE, 2);
        let own = OwnQueue::take(Box::new(card.clone()), 4).unwrap();
        let [listener, grant] = [
            FilterKey::Listener(key(80, 6)),
            FilterKey::Grant(key(80, 6)),
        ];
        own.lead(&listener).unwrap();
        own.lead(&listener).unwrap();
        own.lead(&grant).unwrap();
        assert_eq!(card.state().rules.len(), 1);
        own.leave(&listener);
        assert_eq!(card.queues(&rule(80, 6)), BTreeSet::from([3]));
        own.leave(&grant);
        own.leave(&grant);
        assert!(card.state().rules.is_empty());
    }

    #[test]
    fn a_card_without_rules_tables_or_queues_is_left_as_it_was() {
        let is_refused = |card: &FakeCard, queues, why: &str| {
            let answer = OwnQueue::take(Box::new(card.clone()), queues);
            let said = answer.unwrap_err();
            assert!(said.contains(why), "{said}");
            assert_eq!(card.state().table, TABLE);
            assert!(card.state().rules.is_empty());
        };
        is_refused(&FakeCard::new(&TABLE, 0), 4, "no rules (ntuple): Operation");
        is_refused(&FakeCard::new(&TABLE, 8), 1, "one queue only");
        let told = |room, queues| refusal(&FakeCard::new(&TABLE, room), queues).unwrap_or_default();
        assert!(told(0, 4).contains("no rules (ntuple): Operation"));
        assert_eq!(
            (told(8, 1).as_str(), told(8, 4).as_str()),
            ("it has one queue only", "")
        );
        let rigid = FakeCard::new(&TABLE, 8);
        rigid.state().refuses_tables = true;
        is_refused(&rigid, 4, "RSS table");
    }

    #[test]
    fn a_full_card_refuses_and_keeps_what_it_has() {
        let card = FakeCard::new(&TABLE, 1);
        let own = OwnQueue::take(Box::new(card.clone()), 4).unwrap();
        let [first, second] = [7, 8].map(|port| FilterKey::Listener(key(port, 17)));
        own.lead(&first).unwrap();
        assert_eq!(own.lead(&second), Err(Errno::NOSPC));
        own.leave(&second);
        assert_eq!(card.queues(&rule(7, 17)), BTreeSet::from([3]));
    }

    fn filter(port: u16) -> FilterKey {
        FilterKey::Listener(key(port, 17))
    }

    /// What a daemon leaves that ends while programs go on, or is killed.
    fn left(card: &FakeCard, ports: &[u16]) {
        let own = OwnQueue::take(Box::new(card.clone()), 4).unwrap();
        for port in ports {
            own.lead(&filter(*port)).unwrap();
        }
        own.leave_behind();
        drop(own);
        card.state().entered = 0;
    }

    fn refused(card: &FakeCard) -> String {
        OwnQueue::take(Box::new(card.clone()), 4).unwrap_err()
    }

    #[test]
    fn the_next_daemon_keeps_the_rules_of_the_one_before() {
        let card = FakeCard::new(&TABLE, 4);
        left(&card, &[7]);
        let strange = (Some(rule(5, 17)), 3);
        card.state().rules.insert(9, strange);
        let (own, refused) = OwnQueue::take_over(Box::new(card.clone()), 3, &[filter(7)]);
        assert_eq!((refused, card.state().entered), (0, 0));
        assert_eq!(card.queues(&rule(7, 17)), BTreeSet::from([3]));
        own.lead(&filter(9)).unwrap();
        drop(own);
        let left = card.state().rules.clone();
        assert_eq!(left, BTreeMap::from([(9, strange)]), "no filter's");
        assert_eq!(card.state().table, TABLE, "the driver's own");
    }

    #[test]
    fn what_the_next_daemon_misses_it_enters_or_counts() {
        let card = FakeCard::new(&TABLE, 2);
        left(&card, &[7]);
        let wanted = [7, 8, 9].map(filter);
        let (own, refused) = OwnQueue::take_over(Box::new(card.clone()), 3, &wanted);
        assert_eq!((refused, card.state().entered), (1, 1));
        assert_eq!(own.rules().len(), 2);
    }

    #[test]
    fn what_a_killed_daemon_left_goes_when_the_queue_is_taken_again() {
        let card = FakeCard::new(&TABLE, 2);
        left(&card, &[7, 8]);
        let own = OwnQueue::take(Box::new(card.clone()), 4).unwrap();
        assert!(card.state().rules.is_empty());
        own.lead(&filter(7)).unwrap();
        drop(own);
        assert_eq!(card.state().table, TABLE);
        assert!(card.state().rules.is_empty());
        left(&card, &[7, 8]);
        card.state().rules.insert(9, (None, 3));
        assert!(refused(&card).contains("rules lead to its last queue already (1)"));
        assert_eq!(card.state().table, TABLE);
        assert_eq!(card.state().rules, BTreeMap::from([(9, (None, 3))]));
    }

    #[test]
    fn a_queue_that_rules_of_others_lead_to_is_not_taken() {
        for table in [&[0, 1, 2, 3], &[0, 1, 2, 0]] {
            for foreign in [Some(rule(7, 17)), None] {
                let card = FakeCard::new(table, 4);
                card.state().rules.insert(2, (foreign, 3));
                let said = refused(&card);
                assert!(
                    said.contains("rules lead to its last queue already (1)"),
                    "{said}"
                );
                assert_eq!(card.state().table, table);
                assert_eq!(card.state().rules.len(), 1);
            }
        }
    }

    #[test]
    fn what_others_have_written_meanwhile_stays() {
        let card = FakeCard::new(&TABLE, 4);
        let own = OwnQueue::take(Box::new(card.clone()), 4).unwrap();
        own.lead(&filter(7)).unwrap();
        let theirs = (Some(rule(8, 17)), 1);
        card.state().rules.insert(0, theirs);
        card.state().table = vec![1; 8];
        drop(own);
        assert_eq!(card.state().table, [1; 8]);
        assert_eq!(card.state().rules, BTreeMap::from([(0, theirs)]));
    }

    #[test]
    fn the_usual_table_is_given_back_as_the_drivers_own() {
        for table in [[3, 0, 1, 2, 3, 0, 1, 2], TABLE] {
            let card = FakeCard::new(&table, 4);
            drop(OwnQueue::take(Box::new(card.clone()), 4).unwrap());
            assert_eq!(card.state().table, table);
            assert_eq!(card.state().is_configured, table != TABLE);
        }
    }

    #[test]
    fn a_card_that_tells_other_rules_than_it_got_is_left_alone() {
        let card = FakeCard::new(&TABLE, 4);
        card.state().forgets = true;
        assert!(refused(&card).contains("does not tell"));
        assert!(card.state().rules.is_empty());
    }

    #[test]
    fn a_table_of_one_queue_becomes_one_of_the_others() {
        assert_eq!(without(&[2, 2, 2], 2), [0, 1, 0]);
        assert_eq!(without(&[], 2), []);
    }
}
