//! Rules that a port has taken, beside the relay's own tables.
//!
//! The tables decide: a rule only spares the port's queue what is not ours, where there is more
//! than one. So one that the port refuses is no failure: the relay matches its frames as ever, and
//! says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::port::{CardFilter, InCard};

/// Most new rules that are refused at one time: attempts take the relay's time, and those that are
/// left have their turn with the next.
const REFUSALS: usize = 16;

/// The rules of a port, each of which is known to it as an `H`.
#[derive(Debug)]
pub struct Rules<H> {
    /// With a number; `None` = the port has refused it.
    known: BTreeMap<CardFilter, Option<(i32, H)>>,
    /// Those that it has refused, in the order in which they are tried again.
    refused: VecDeque<CardFilter>,
    /// Number of the last one.
    last: i32,
}

impl<H> Default for Rules<H> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            refused: VecDeque::new(),
            last: 0,
        }
    }
}

impl<H> Rules<H> {
    /// Makes these the port's rules, and no others. One that was refused is tried again only for a
    /// place that has become free, and not behind another refusal.
    pub fn follow(
        &mut self,
        wanted: &BTreeSet<CardFilter>,
        mut create: impl FnMut(&CardFilter) -> Option<H>,
        destroy: impl FnMut(H),
    ) {
        // First: the port may have room for few.
        let gone = self.known.extract_if(.., |it, _| !wanted.contains(it));
        let gone: Vec<H> = gone.filter_map(|(_, rule)| Some(rule?.1)).collect();
        let places = gone.len();
        gone.into_iter().for_each(destroy);
        self.refused.retain(|filter| wanted.contains(filter));
        for _ in 0..places {
            let Some(filter) = self.refused.pop_front() else {
                break;
            };
            if !self.enter(filter, &mut create) {
                break;
            }
        }
        let mut refusals = 0;
        for filter in wanted {
            if refusals < REFUSALS && !self.known.contains_key(filter) {
                refusals += usize::from(!self.enter(*filter, &mut create));
            }
        }
    }

    /// Has the port take one; whether it does.
    fn enter(
        &mut self,
        filter: CardFilter,
        create: &mut impl FnMut(&CardFilter) -> Option<H>,
    ) -> bool {
        self.last = self.last.wrapping_add(1);
        let rule = create(&filter).map(|handle| (self.last, handle));
        let is_taken = rule.is_some();
        if !is_taken {
            self.refused.push_back(filter);
        }
        self.known.insert(filter, rule);
        is_taken
    }

    /// Those that the port has.
    pub fn in_card(&self) -> Vec<InCard> {
        self.taken(|number, _| [number, 0])
    }

    /// The same with cookies of what they are known as.
    pub(super) fn told(&self, cookie: impl Fn(&H) -> [i32; 2]) -> Vec<InCard> {
        self.taken(|_, handle| cookie(handle))
    }

    fn taken(&self, cookie: impl Fn(i32, &H) -> [i32; 2]) -> Vec<InCard> {
        let taken = self.known.iter().filter_map(|(filter, rule)| {
            let (number, handle) = rule.as_ref()?;
            Some(InCard {
                filter: *filter,
                queue: 0,
                cookie: cookie(*number, handle),
            })
        });
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A port in software that has room for so many rules: a double, no driver.
    #[derive(Debug)]
    struct FakePort {
        room: usize,
        rules: RefCell<BTreeSet<CardFilter>>,
    }

    impl FakePort {
        fn create(&self, filter: &CardFilter) -> Option<CardFilter> {
            let mut rules = self.rules.borrow_mut();
            (rules.len() < self.room && rules.insert(*filter)).then_some(*filter)
        }

        fn destroy(&self, filter: CardFilter) {
            assert!(self.rules.borrow_mut().remove(&filter));
        }
    }

    fn filters(ports: &[u16]) -> BTreeSet<CardFilter> {
        let filter = |port: &u16| CardFilter {
            protocol: 17,
            local: ([9; 16], *port),
            remote: None,
        };
        ports.iter().map(filter).collect()
    }

    #[test]
    fn a_port_has_the_rules_that_are_wanted_as_far_as_it_takes_them() {
        let port = FakePort {
            room: 2,
            rules: RefCell::default(),
        };
        let mut rules = Rules::default();
        let mut follow = |ports: &[u16]| {
            let wanted = filters(ports);
            rules.follow(&wanted, |it| port.create(it), |it| port.destroy(it));
            let told: BTreeSet<_> = rules.in_card().iter().map(|it| it.filter).collect();
            assert_eq!(told, *port.rules.borrow());
            told
        };
        assert_eq!(follow(&[1]), filters(&[1]));
        assert_eq!(follow(&[1, 2, 3]), filters(&[1, 2]));
        assert_eq!(follow(&[1, 2, 3]), filters(&[1, 2]));
        assert_eq!(follow(&[1, 3]), filters(&[1, 3]), "there is room again");
        assert_eq!(follow(&[]), filters(&[]));
    }

    #[test]
    fn a_full_port_is_asked_once_for_each_place_that_becomes_free() {
        let port = FakePort {
            room: 2,
            rules: RefCell::default(),
        };
        let mut rules = Rules::default();
        let mut follow = |ports: &[u16]| {
            let mut asked = 0;
            let create = |it: &CardFilter| {
                asked += 1;
                port.create(it)
            };
            rules.follow(&filters(ports), create, |it| port.destroy(it));
            asked
        };
        let all: Vec<u16> = (1..100).collect();
        let attempts = std::iter::from_fn(|| Some(follow(&all)).filter(|asked| *asked > 0));
        let attempts: Vec<usize> = attempts.collect();
        assert!(attempts.iter().all(|asked| *asked <= REFUSALS + 2));
        assert_eq!(attempts.iter().sum::<usize>(), 99, "each once");
        assert_eq!(follow(&all[1..]), 1);
        assert_eq!(*port.rules.borrow(), filters(&[2, 3]));
        assert_eq!(follow(&all[3..]), 2);
        assert_eq!(*port.rules.borrow(), filters(&[4, 5]));
        assert_eq!(follow(&all[5..60]), 2, "some that were refused are gone");
        assert_eq!(*port.rules.borrow(), filters(&[6, 7]));
    }

    #[test]
    fn one_that_is_always_refused_keeps_no_other_from_its_turn() {
        let mut rules = Rules::default();
        let mut room = 1;
        let mut follow = |ports: &[u16], freed: usize| {
            room += freed;
            let create = |it: &CardFilter| {
                let is_taken = it.local.1 != 2 && room > 0;
                room -= usize::from(is_taken);
                is_taken.then_some(())
            };
            rules.follow(&filters(ports), create, drop);
            rules.in_card().iter().map(|it| it.filter.local.1).collect()
        };
        let mut taken: Vec<u16> = follow(&[1, 2, 3, 4], 0);
        assert_eq!(taken, [1]);
        taken = follow(&[2, 3, 4], 1);
        assert_eq!(taken, [], "it was the other's turn");
        taken = follow(&[2, 3, 4, 5], 0);
        assert_eq!(taken, [5]);
        taken = follow(&[2, 3, 4], 1);
        assert_eq!(taken, [3]);
    }
}
