//! Rules at the physical function of a card that lead to a virtual one (`ethtool -N … vf N`).
//!
//! ```text
//!            ┌──────────────── card ────────────────┐
//!   wire ──► │ a rule: ours, whatever MAC address   │ ──► virtual function ──► relay
//!            │ the switch: the function's MAC       │ ──► virtual function ──► relay
//!            │ all else                             │ ──► physical function ─► kernel
//!            └──────────────────────────────────────┘
//! ```
//!
//! The switch of the card leads a function whatever is for its MAC address; a rule adds what is for
//! the physical one's, because others know our address by that.
//!
//! The relay's tables decide as ever, so a rule that is refused is no failure. Few cards take
//! rules, and the answer to one that matches nothing says whether this one does.
//!
//! A rule of our shape to the function is ours: who asks for rules there gives it to us. Those that
//! a killed relay has left are kept as far as they are wanted, and go with the first that are.

use std::collections::{BTreeMap, BTreeSet};

use super::port::InCard;
use super::rules::Rules;
use crate::af_xdp::{
    Card, Destination, Ntuple, Rule, enter, interfaces, of_function, try_rule, withdraw,
};

/// Kind of such a rule in [`InCard::cookie`].
pub const PHYSICAL: i32 = 1;

/// See the module.
#[derive(Debug)]
pub struct PhysicalRules {
    card: Box<dyn Card>,
    interface: String,
    to: Destination,
    /// With their places.
    rules: Rules<(Rule, u32)>,
    /// What was there before.
    left: BTreeMap<Rule, u32>,
}

impl PhysicalRules {
    /// Those of the interface of a physical function, to its virtual one of this number.
    ///
    /// # Errors
    /// Why it takes none, in a sentence.
    pub fn open(interface: &str, function: u32) -> Result<Self, String> {
        Self::of(Box::new(Ntuple::new(interface)), interface, function)
    }

    fn of(card: Box<dyn Card>, interface: &str, function: u32) -> Result<Self, String> {
        let to = of_function(function);
        let left = card.rules(to).into_iter();
        let left = left.filter_map(|(place, rule)| Some((rule?, place)));
        let mut left: BTreeMap<Rule, u32> = left.collect();
        // Some cards refuse a second equal one.
        if let Some(place) = left.remove(&Rule::trial(to)) {
            card.remove(place);
        }
        try_rule(&*card, to).map_err(|why| format!("{interface} {why}"))?;
        Ok(Self {
            left,
            card,
            interface: interface.to_owned(),
            to,
            rules: Rules::default(),
        })
    }

    /// The physical function's interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its MAC address: frames that a rule leads may be for that one.
    #[must_use]
    pub fn mac(&self) -> Option<[u8; 6]> {
        let mut all = interfaces().into_iter();
        Some(all.find(|it| it.name == self.interface)?.mac)
    }

    /// Makes these its rules, as far as it takes them, and no others.
    pub(super) fn follow(&mut self, wanted: &BTreeSet<Rule>) {
        let Self { card, to, left, .. } = self;
        let remove = |(rule, place): (Rule, u32)| withdraw(&**card, &rule, place, *to);
        if !wanted.is_empty() {
            // First: the card may have room for few.
            left.extract_if(.., |rule, _| !wanted.contains(rule))
                .for_each(remove);
        }
        let enter = |rule: &Rule| {
            let found = left.remove(rule);
            let found = found.filter(|place| card.has(*place, rule, *to));
            let place = found.or_else(|| enter(&**card, rule, *to).ok());
            place.map(|place| (*rule, place))
        };
        self.rules.follow(wanted, enter, remove);
    }

    /// Removes all.
    pub(super) fn clear(&mut self) {
        self.follow(&BTreeSet::new());
        for (rule, place) in std::mem::take(&mut self.left) {
            withdraw(&*self.card, &rule, place, self.to);
        }
    }

    /// Those that it has still: others enter and remove rules there too.
    pub(super) fn in_card(&self) -> Vec<InCard> {
        let place = |&(_, place): &(Rule, u32)| [place.cast_signed(), PHYSICAL];
        let mut told = self.rules.told(place);
        told.retain(|it| {
            let place = it.cookie[0].cast_unsigned();
            self.card.has(place, &it.filter, self.to)
        });
        told
    }
}

impl Drop for PhysicalRules {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use rustix::io::Errno;

    use super::*;

    type Entry = (Option<Rule>, Destination);
    type Kept = BTreeMap<u32, Entry>;

    /// A physical function in software with room for so many rules: a double. None that takes rules
    /// was at hand.
    #[derive(Clone, Debug)]
    pub(crate) struct FakePhysical {
        room: u32,
        kept: Arc<Mutex<Kept>>,
        entered: Arc<Mutex<usize>>,
        /// What somebody else enters in the place of the next rule that is.
        rival: Arc<Mutex<Option<Entry>>>,
    }

    impl FakePhysical {
        pub(crate) fn new(room: u32) -> Self {
            Self {
                room,
                kept: Arc::default(),
                entered: Arc::default(),
                rival: Arc::default(),
            }
        }

        pub(crate) fn open(&self, function: u32) -> Result<PhysicalRules, String> {
            PhysicalRules::of(Box::new(self.clone()), "eth0", function)
        }

        /// The ports that are led to a function.
        pub(crate) fn led(&self, function: u32) -> Vec<u16> {
            let rules = self.rules(of_function(function)).into_iter();
            let mut led: Vec<u16> = rules.filter_map(|(_, it)| Some(it?.local.1)).collect();
            led.sort_unstable();
            led
        }

        /// How often a rule was entered since this was asked.
        fn entered(&self) -> usize {
            std::mem::take(&mut *self.entered.lock().unwrap())
        }
    }

    impl Card for FakePhysical {
        fn table(&self) -> Result<Vec<u32>, Errno> {
            Err(Errno::OPNOTSUPP)
        }

        fn set_table(&self, _: &[u32]) -> Result<(), Errno> {
            Err(Errno::OPNOTSUPP)
        }

        fn insert(&self, rule: &Rule, to: Destination) -> Result<u32, Errno> {
            if self.room == 0 {
                return Err(Errno::OPNOTSUPP);
            }
            let mut kept = self.kept.lock().unwrap();
            if kept.values().any(|(known, _)| *known == Some(*rule)) {
                return Err(Errno::EXIST);
            }
            let free = (0..self.room).find(|it| !kept.contains_key(it));
            let place = free.ok_or(Errno::NOSPC)?;
            let theirs = self.rival.lock().unwrap().take();
            kept.insert(place, theirs.unwrap_or((Some(*rule), to)));
            *self.entered.lock().unwrap() += 1;
            Ok(place)
        }

        fn remove(&self, location: u32) {
            assert!(self.kept.lock().unwrap().remove(&location).is_some());
        }

        fn has(&self, location: u32, rule: &Rule, to: Destination) -> bool {
            self.kept.lock().unwrap().get(&location) == Some(&(Some(*rule), to))
        }

        fn rules(&self, to: Destination) -> Vec<(u32, Option<Rule>)> {
            let kept = self.kept.lock().unwrap();
            let there = kept.iter().filter(|(_, (_, its))| *its == to);
            there.map(|(place, (rule, _))| (*place, *rule)).collect()
        }
    }

    fn filters(ports: &[u16]) -> BTreeSet<Rule> {
        let filter = |port: &u16| Rule {
            protocol: 17,
            local: ([9; 16], *port),
            remote: None,
        };
        ports.iter().map(filter).collect()
    }

    #[test]
    fn a_filters_rule_leads_to_its_function_and_goes_with_it() {
        let card = FakePhysical::new(8);
        let [mut first, second] = [0, 1].map(|it| card.open(it).unwrap());
        assert!(card.kept.lock().unwrap().is_empty(), "the trials are gone");
        first.follow(&filters(&[7, 8]));
        assert_eq!((card.led(0), card.led(1)), (vec![7, 8], vec![]));
        let told = first.in_card();
        assert_eq!(told[1].cookie, [1, PHYSICAL]);
        first.follow(&filters(&[8]));
        assert_eq!(card.led(0), [8]);
        drop((first, second));
        assert!(card.kept.lock().unwrap().is_empty());
    }

    #[test]
    fn a_function_that_refuses_is_named_with_its_reason() {
        let said = FakePhysical::new(0).open(0).unwrap_err();
        assert!(
            said.starts_with("eth0 takes no rules (ntuple): Operation not"),
            "{said}"
        );
        let loopback = PhysicalRules::open("lo", 0).unwrap_err();
        assert!(loopback.starts_with("lo takes no rules"), "{loopback}");
    }

    #[test]
    fn a_full_one_has_what_it_has_room_for() {
        let card = FakePhysical::new(1);
        let mut rules = card.open(0).unwrap();
        rules.follow(&filters(&[7, 8]));
        assert_eq!((card.led(0), rules.in_card().len()), (vec![7], 1));
    }

    #[test]
    fn what_a_killed_relay_has_left_is_kept_as_far_as_it_is_wanted() {
        let card = FakePhysical::new(4);
        let mut killed = card.open(2).unwrap();
        killed.follow(&filters(&[7, 8]));
        std::mem::forget(killed);
        let strange = (None, of_function(2));
        card.kept.lock().unwrap().insert(9, strange);
        let mut next = card.open(2).unwrap();
        next.follow(&filters(&[]));
        assert_eq!(card.led(2), [7, 8], "nobody has asked for anything yet");
        card.entered();
        next.follow(&filters(&[8]));
        assert_eq!((card.led(2), card.entered()), (vec![8], 0));
        drop(next);
        assert_eq!(*card.kept.lock().unwrap(), BTreeMap::from([(9, strange)]));
        let mut killed = card.open(2).unwrap();
        killed.follow(&filters(&[7]));
        std::mem::forget(killed);
        drop(card.open(2).unwrap());
        assert_eq!(card.led(2), [], "nobody came");
    }

    #[test]
    fn a_trial_that_a_killed_relay_has_left_is_no_obstacle() {
        let card = FakePhysical::new(4);
        let [own, others] = [0, 1].map(|number| {
            let to = of_function(number);
            (Some(Rule::trial(to)), to)
        });
        *card.kept.lock().unwrap() = BTreeMap::from([(0, own), (1, others)]);
        drop(card.open(0).unwrap());
        assert_eq!(*card.kept.lock().unwrap(), BTreeMap::from([(1, others)]));
    }

    #[test]
    fn a_rule_whose_place_somebody_else_takes_gets_another() {
        let card = FakePhysical::new(4);
        let to = of_function(1);
        let [trial, theirs] = [Some(Rule::trial(to)), None].map(|rule| (rule, to));
        *card.rival.lock().unwrap() = Some(trial);
        let mut rules = card.open(0).unwrap();
        assert_eq!(*card.kept.lock().unwrap(), BTreeMap::from([(0, trial)]));
        *card.rival.lock().unwrap() = Some(theirs);
        rules.follow(&filters(&[7]));
        assert_eq!(card.led(0), [7]);
        assert_eq!(rules.in_card()[0].cookie, [2, PHYSICAL]);
        drop(rules);
        let others = BTreeMap::from([(0, trial), (1, theirs)]);
        assert_eq!(*card.kept.lock().unwrap(), others);
    }

    #[test]
    fn a_rule_that_somebody_has_removed_is_not_told_and_not_believed() {
        let card = FakePhysical::new(4);
        let mut killed = card.open(0).unwrap();
        killed.follow(&filters(&[7]));
        std::mem::forget(killed);
        let mut next = card.open(0).unwrap();
        card.remove(0);
        next.follow(&filters(&[7]));
        assert_eq!((card.led(0), next.in_card().len()), (vec![7], 1));
        card.remove(0);
        assert_eq!(next.in_card(), []);
    }

    #[test]
    fn a_place_that_somebody_else_has_now_is_left_alone() {
        let card = FakePhysical::new(4);
        let mut rules = card.open(0).unwrap();
        rules.follow(&filters(&[7]));
        let theirs = (None, 3);
        card.kept.lock().unwrap().insert(0, theirs);
        drop(rules);
        assert_eq!(*card.kept.lock().unwrap(), BTreeMap::from([(0, theirs)]));
    }
}
