//! What is there of a Solarflare or AMD card for ef_vi: drivers, firmware, library.

use std::fs;
use std::path::Path;

use bypass_backends::ef_vi;
use serde_json::{Value, json};

use super::ethtool::{self, DriverInfo};

/// What is there of a card.
#[derive(Clone, Debug)]
pub struct Card {
    /// Driver of its interface.
    pub driver: String,
    /// What that says of itself.
    pub info: DriverInfo,
    /// Whether there is a device for programs.
    pub has_node: bool,
    /// Release of the driver of that, as its module says.
    pub node_version: Option<String>,
    /// Release and layout of the library, or what is wrong with it.
    pub library: Result<String, String>,
}

impl Card {
    /// The card of an interface. The library is opened, the card is not.
    #[must_use]
    pub fn of(interface: &str, driver: &str) -> Self {
        let version = fs::read_to_string("/sys/module/sfc_char/version").ok();
        Self {
            driver: driver.to_owned(),
            info: ethtool::driver_info(interface),
            has_node: Path::new("/dev/sfc_char").exists(),
            node_version: version.map(|version| version.trim().to_owned()),
            library: ef_vi::probe(Path::new(ef_vi::LIBRARY)),
        }
    }

    /// Which of the firmware's variants runs, by the number that the driver puts behind the
    /// version: `8.0.0.1015 rx1 tx1`.
    #[must_use]
    pub fn variant(&self) -> Option<&'static str> {
        let words = self.info.firmware.as_deref()?.split(' ');
        Some(
            match words.filter_map(|word| word.strip_prefix("rx")).next()? {
                "0" => "full feature",
                "1" => "ultra low latency",
                "2" => "packed stream",
                "5" => "rules engine",
                "6" => "DPDK",
                _ => return None,
            },
        )
    }

    /// For lists.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "driver_version": self.info.version, "firmware": self.info.firmware,
            "firmware_variant": self.variant(),
            "device": self.has_node, "device_version": self.node_version,
            "library": self.library.as_ref().ok(), "library_error": self.library.as_ref().err(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_known_by_their_number() {
        let variant = |firmware: Option<&str>| {
            let info = DriverInfo {
                version: None,
                firmware: firmware.map(str::to_owned),
            };
            Card {
                driver: "sfc".to_owned(),
                info,
                has_node: false,
                node_version: None,
                library: Err(String::new()),
            }
            .variant()
        };
        assert_eq!(variant(Some("8.0.0.1015 rx0 tx0")), Some("full feature"));
        assert_eq!(
            variant(Some("8.0.0.1015 rx1 tx1")),
            Some("ultra low latency")
        );
        for other in [
            None,
            Some(""),
            Some("8.0.0.1015"),
            Some("8.0.0.1015 rx? tx?"),
        ] {
            assert_eq!(variant(other), None, "{other:?}");
        }
    }
}
