//! Tests of a Solarflare or AMD card: what of ef_vi is there, whether or not a device names it.

use bypass_backends::ef_vi;

use super::Findings;
use crate::source::card::Card;

/// Tests an interface, if it is one of a card.
pub(super) fn test(name: &str, driver: &str, findings: &mut Findings) {
    if ef_vi::check_card(name).is_ok() {
        say(&Card::of(name, driver), name, findings);
    }
}

fn say(card: &Card, name: &str, findings: &mut Findings) {
    let version = |text: &Option<String>| {
        let text = text.as_deref();
        text.map_or_else(String::new, |text| format!(" {text}"))
    };
    let firmware = card.info.firmware.as_deref().unwrap_or("unknown");
    let variant = card.variant();
    let variant = variant.map_or_else(String::new, |variant| format!(" ({variant})"));
    findings.ok(format!(
        "{name}: a Solarflare or AMD card, driver {}{}, firmware {firmware}{variant}",
        card.driver,
        version(&card.info.version),
    ));
    if card.has_node {
        findings.ok(format!(
            "{name}: ef_vi: /dev/sfc_char of the driver sfc_char{}",
            version(&card.node_version)
        ));
    } else {
        findings.warn(
            format!("{name}: ef_vi: there is no /dev/sfc_char"),
            "to use the card itself: modprobe sfc_char, of the Onload release of the library",
        );
    }
    match &card.library {
        Ok(library) => findings.ok(format!("{name}: ef_vi: {library}")),
        Err(why) => findings.warn(
            format!("{name}: ef_vi: {why}"),
            "to use the card itself: install the user-level libraries of Onload 8.1, 9.0, 9.1 or \
             9.2",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::source::ethtool::DriverInfo;

    fn said(card: &Card) -> Vec<String> {
        let mut findings = Findings::default();
        say(card, "eth1", &mut findings);
        findings.0.iter().map(|it| it.what.clone()).collect()
    }

    #[test]
    fn what_is_there_is_said_and_what_is_missing() {
        let whole = Card {
            driver: "sfc".to_owned(),
            info: DriverInfo {
                version: Some("6.0.1.1005".to_owned()),
                firmware: Some("8.0.0.1015 rx1 tx1".to_owned()),
            },
            has_node: true,
            node_version: Some("9.0.2.140".to_owned()),
            library: Ok("libciul 9.0.2.140 ef_vi, layout of 9.0.2".to_owned()),
        };
        let first = "eth1: a Solarflare or AMD card, driver sfc 6.0.1.1005, \
                     firmware 8.0.0.1015 rx1 tx1 (ultra low latency)";
        let node = "eth1: ef_vi: /dev/sfc_char of the driver sfc_char 9.0.2.140";
        let library = "eth1: ef_vi: libciul 9.0.2.140 ef_vi, layout of 9.0.2";
        assert_eq!(said(&whole), [first, node, library]);
        let bare = Card {
            info: DriverInfo::default(),
            has_node: false,
            node_version: None,
            library: ef_vi::probe(Path::new("/nowhere/libciul.so.1")),
            ..whole
        };
        let told = said(&bare);
        assert!(
            told[0].ends_with("driver sfc, firmware unknown"),
            "{told:?}"
        );
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
