//! Rules that a port has taken, beside the relay's own tables.
//!
//! The tables decide: a rule only spares the port's queue what is not ours, where there is more
//! than one. So one that the port refuses is no failure: the relay matches its frames as ever, and
//! says so.

use std::collections::{BTreeMap, BTreeSet};

use super::port::{CardFilter, InCard};

/// By filter; `None` = the port has refused it. A rule is known to the port as an `H`.
#[derive(Debug)]
pub struct Rules<H>(BTreeMap<CardFilter, Option<(i32, H)>>, i32);

impl<H> Default for Rules<H> {
    fn default() -> Self {
        Self(BTreeMap::new(), 0)
    }
}

impl<H> Rules<H> {
    /// Makes these the port's rules, and no others.
    pub fn follow(
        &mut self,
        wanted: &BTreeSet<CardFilter>,
        mut create: impl FnMut(&CardFilter) -> Option<H>,
        destroy: impl FnMut(H),
    ) {
        // First: the port may have room for few.
        let gone = self.0.extract_if(.., |filter, _| !wanted.contains(filter));
        let gone: Vec<H> = gone.filter_map(|(_, rule)| Some(rule?.1)).collect();
        let has_room = !gone.is_empty();
        gone.into_iter().for_each(destroy);
        for filter in wanted {
            let known = self.0.get(filter);
            if known.is_some_and(|rule| rule.is_some() || !has_room) {
                continue;
            }
            self.1 = self.1.wrapping_add(1);
            let number = self.1;
            let rule = create(filter).map(|handle| (number, handle));
            self.0.insert(*filter, rule);
        }
    }

    /// Those that the port has.
    pub fn in_card(&self) -> Vec<InCard> {
        let taken = self.0.iter().filter_map(|(filter, rule)| {
            let (number, _) = rule.as_ref()?;
            Some(InCard {
                filter: *filter,
                queue: 0,
                cookie: [*number, 0],
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
}
