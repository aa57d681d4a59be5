//! Tests of a Solarflare or AMD card: what of ef_vi is there, whether or not a device names it.

use std::path::Path;

use bypass_backends::ef_vi;

use super::{Findings, facts};

/// What is there of a card.
#[derive(Debug)]
struct Card {
    driver: String,
    firmware: Option<String>,
    has_node: bool,
    /// Release and layout of the library, or what is wrong with it.
    library: Result<String, String>,
}

/// Tests an interface, if it is one of a card.
pub(super) fn test(name: &str, driver: &str, findings: &mut Findings) {
    if ef_vi::check_card(name).is_err() {
        return;
    }
    let card = Card {
        driver: driver.to_owned(),
        firmware: facts::firmware(name),
        has_node: Path::new("/dev/sfc_char").exists(),
        library: ef_vi::probe(Path::new(ef_vi::LIBRARY)),
    };
    card.say(name, findings);
}

impl Card {
    fn say(&self, name: &str, findings: &mut Findings) {
        let firmware = self.firmware.as_deref().unwrap_or("unknown");
        findings.ok(format!(
            "{name}: a Solarflare or AMD card, driver {}, firmware {firmware}",
            self.driver
        ));
        if !self.has_node {
            findings.warn(
                format!("{name}: ef_vi: there is no /dev/sfc_char"),
                "to use the card itself: modprobe sfc_char, of the Onload release of the library",
            );
        }
        match &self.library {
            Ok(library) => findings.ok(format!("{name}: ef_vi: {library}")),
            Err(why) => findings.warn(
                format!("{name}: ef_vi: {why}"),
                "to use the card itself: install the user-level libraries of Onload 8.1, 9.0, 9.1 \
                 or 9.2",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(card: &Card) -> Vec<String> {
        let mut findings = Findings::default();
        card.say("eth1", &mut findings);
        findings.0.iter().map(|it| it.what.clone()).collect()
    }

    #[test]
    fn what_is_there_is_said_and_what_is_missing() {
        let whole = Card {
            driver: "sfc".to_owned(),
            firmware: Some("8.0.0.1015 rx1 tx1".to_owned()),
            has_node: true,
            library: Ok("libciul 9.0.2.140 ef_vi, layout of 9.0.2".to_owned()),
        };
        let first = "eth1: a Solarflare or AMD card, driver sfc, firmware 8.0.0.1015 rx1 tx1";
        let library = "eth1: ef_vi: libciul 9.0.2.140 ef_vi, layout of 9.0.2";
        assert_eq!(said(&whole), [first, library]);
        let bare = Card {
            firmware: None,
            has_node: false,
            library: ef_vi::probe(Path::new("/nowhere/libciul.so.1")),
            ..whole
        };
        let told = said(&bare);
        assert!(told[0].ends_with("firmware unknown"), "{told:?}");
        assert!(told[1].contains("no /dev/sfc_char"), "{told:?}");
        assert!(told[2].contains("is not installed"), "{told:?}");
    }

    #[test]
    fn what_is_no_card_is_passed_over() {
        let mut findings = Findings::default();
        test("lo", "none", &mut findings);
        assert!(findings.0.is_empty());
    }
}
