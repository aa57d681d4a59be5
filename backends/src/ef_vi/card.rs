//! Whether an interface is one of the cards: looked at before anything is allocated.
//!
//! The driver can be asked for any interface, and libciul then fails inside of itself
//! (dereferencing NULL) for one that is no card of its kind. So it is not asked.

use rustix::fs::{CWD, Mode, OFlags};

/// PCI vendors of the cards: Solarflare, Xilinx (AMD).
const VENDORS: [&str; 2] = ["0x1924", "0x10ee"];

/// Whether a PCI vendor (`0x1924`) makes cards of this kind.
#[must_use]
pub fn is_vendor(vendor: &str) -> bool {
    VENDORS.contains(&vendor)
}

/// Whether an interface is a card, by its PCI vendor.
///
/// # Errors
/// A sentence with what it is instead.
pub fn check(interface: &str) -> Result<(), String> {
    match vendor(interface) {
        Some(vendor) if is_vendor(&vendor) => Ok(()),
        Some(vendor) => Err(format!(
            "{interface} is no Solarflare or AMD card: its PCI vendor is {vendor}"
        )),
        None => Err(format!(
            "{interface} is no Solarflare or AMD card: it has no PCI vendor"
        )),
    }
}

fn vendor(interface: &str) -> Option<String> {
    let path = format!("/sys/class/net/{interface}/device/vendor");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path.as_str(), flags, Mode::empty()).ok()?;
    let mut bytes = [0; 16];
    let length = rustix::io::read(&file, &mut bytes).ok()?;
    let text = String::from_utf8_lossy(bytes.get(..length)?)
        .trim()
        .to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn loopback_is_no_card() {
        let why = super::check("lo").unwrap_err();
        assert!(why.contains("no PCI vendor"), "{why}");
    }
}
