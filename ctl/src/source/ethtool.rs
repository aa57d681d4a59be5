//! What ethtool's ioctl tells of an interface.

#![expect(unsafe_code, reason = "UNSAFETY: ioctl() takes pointers to structures")]

use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Offloads that ethtool's old single-value commands read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// `ETHTOOL_GRXCSUM`.
    RxChecksum = 0x14,
    /// `ETHTOOL_GTXCSUM`.
    TxChecksum = 0x16,
    /// `ETHTOOL_GTSO`.
    SegmentationTcp = 0x1e,
    /// `ETHTOOL_GGRO`.
    Gro = 0x2b,
    /// `ETHTOOL_GFLAGS`: bit 15 is LRO.
    Flags = 0x25,
}

/// Value of an offload of an interface; `None` when the driver does not say.
pub fn offload(interface: &str, offload: Offload) -> Option<u32> {
    // struct ethtool_value: command, data.
    let mut value = [offload as u32, 0];
    ethtool(interface, &mut value)?;
    Some(value[1])
}

/// What a driver says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverInfo {
    /// Its release.
    pub version: Option<String>,
    /// Version of the card's firmware.
    pub firmware: Option<String>,
}

/// What the driver of an interface says of itself; nothing when there is none.
pub fn driver_info(interface: &str) -> DriverInfo {
    /// `ETHTOOL_GDRVINFO`, and the words of a struct ethtool_drvinfo.
    const COMMAND: u32 = 3;
    const WORDS: usize = 49;
    /// Offset and size of its version, and of the firmware's.
    const VERSION: std::ops::Range<usize> = 36..68;
    const FIRMWARE: std::ops::Range<usize> = 68..100;
    let mut info = [0; WORDS];
    info[0] = COMMAND;
    if ethtool(interface, &mut info).is_none() {
        return DriverInfo::default();
    }
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = |at: std::ops::Range<usize>| {
        let text = bytes.get(at)?.split(|byte| *byte == 0).next()?;
        let text = String::from_utf8_lossy(text).trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    DriverInfo {
        version: text(VERSION),
        firmware: text(FIRMWARE),
    }
}

/// Gives an interface's driver one of ethtool's commands, whose structure is `words`.
fn ethtool<const WORDS: usize>(interface: &str, words: &mut [u32; WORDS]) -> Option<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.ok()?;
    // struct ifreq: 16 bytes of name, then a union of 24 bytes that begins with the pointer.
    let mut request = [0_u64; 5];
    let mut name = [0_u8; 16];
    for (to, from) in name.iter_mut().take(15).zip(interface.bytes()) {
        *to = from;
    }
    for (word, bytes) in request.iter_mut().zip(name.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().ok()?);
    }
    request[2] = words.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: the request has the size of a struct ifreq and points at the live structure of the
    // command in its first word, as large as callers say, which is all that it writes.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, request.as_mut_ptr()) };
    // The kernel wrote it behind the compiler's back.
    // SAFETY: an initialised array.
    *words = unsafe { std::ptr::read_volatile(&raw const *words) };
    (answer == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_missing_interface_has_is_unknown() {
        assert_eq!(offload("no-such-if", Offload::Gro), None);
        assert_eq!(driver_info("no-such-if"), DriverInfo::default());
        // Loopback has a driver, and no firmware.
        assert_eq!(driver_info("lo").firmware, None);
    }
}
