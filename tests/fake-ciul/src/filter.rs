//! Filters: `ef_filter_spec` in an encoding of our own, and what of a frame they look at.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: exports C functions that fill callers' specifications"
)]

use std::collections::HashMap;
use std::ffi::{c_int, c_uint};
use std::sync::{Arc, Mutex};

use crate::config;

/// What a filter matches: an address and port of ours, and of the other end or all zero.
/// IPv4 addresses are mapped ones. Bytes as in the frame, tag apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct Key {
    pub(crate) remote: [u8; 16],
    pub(crate) local: [u8; 16],
    pub(crate) remote_port: [u8; 2],
    pub(crate) local_port: [u8; 2],
    pub(crate) protocol: u16,
    /// VLAN id; 0 = no tag.
    pub(crate) vlan: u16,
}

impl Key {
    /// What a frame is, if it is a whole TCP segment or UDP datagram without IP options.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let mut key = Self::default();
        if let Some([0x81, 0, high, low]) = frame.get(12..16) {
            key.vlan = u16::from_be_bytes([*high, *low]) & 0xfff;
        }
        let frame = frame.get(if key.vlan == 0 { 0 } else { 4 }..)?;
        let ports = match frame.get(12..14)? {
            [8, 0] => {
                let header = frame.get(14..34)?;
                if header[0] != 0x45 || header[6] & 0x3f != 0 || header[7] != 0 {
                    return None;
                }
                key.remote = mapped(header.get(12..16)?);
                key.local = mapped(header.get(16..20)?);
                key.protocol = header[9].into();
                frame.get(34..38)?
            }
            [0x86, 0xdd] => {
                key.remote = frame.get(22..38)?.try_into().ok()?;
                key.local = frame.get(38..54)?.try_into().ok()?;
                key.protocol = frame[20].into();
                frame.get(54..58)?
            }
            _ => return None,
        };
        key.remote_port = [ports[0], ports[1]];
        key.local_port = [ports[2], ports[3]];
        [6, 17].contains(&key.protocol).then_some(key)
    }

    /// The same of any other end.
    pub(crate) fn wild(self) -> Self {
        Self {
            remote: [0; 16],
            remote_port: [0; 2],
            ..self
        }
    }
}

/// What VIs of a set have together.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

/// Filters of a VI or a set, with their ids.
#[derive(Default)]
pub(crate) struct Filters {
    ids: HashMap<Key, i32>,
    last: i32,
}

impl Filters {
    pub(crate) fn add(&mut self, key: Key) -> Result<i32, i32> {
        if self.ids.contains_key(&key) {
            return Err(libc::EEXIST);
        }
        if self.ids.len() >= config::get().filters {
            return Err(libc::EBUSY);
        }
        self.last += 1;
        self.ids.insert(key, self.last);
        Ok(self.last)
    }

    pub(crate) fn remove(&mut self, id: i32) -> Result<Key, i32> {
        let key = self.ids.iter().find(|(_, other)| **other == id);
        let key = *key.ok_or(libc::ENOENT)?.0;
        self.ids.remove(&key);
        Ok(key)
    }

    pub(crate) fn matches(&self, key: &Key) -> bool {
        self.ids.contains_key(key) || self.ids.contains_key(&key.wild())
    }

    pub(crate) fn count(&self) -> usize {
        self.ids.len()
    }
}

fn mapped(address: &[u8]) -> [u8; 16] {
    let mut mapped = [0; 16];
    mapped[10..12].fill(0xff);
    mapped[12..].copy_from_slice(address);
    mapped
}

/// `ef_filter_spec`: 56 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ef_filter_spec {
    kind: u32,
    flags: u32,
    key: Key,
    spare: [u32; 2],
}

const _: () = assert!(size_of::<ef_filter_spec>() == 56);

impl ef_filter_spec {
    /// What it matches; `None` when it says nothing yet.
    pub(crate) fn key(&self) -> Option<Key> {
        if config::get().vendor.is_some() {
            return vendors(&self.words());
        }
        (self.kind == 1).then_some(self.key)
    }

    fn words(&self) -> [u32; 14] {
        // SAFETY: both are plain numbers of the same size.
        unsafe { std::mem::transmute_copy(self) }
    }

    fn set(
        &mut self,
        protocol: c_int,
        local: ([u8; 16], c_int),
        remote: ([u8; 16], c_int),
    ) -> c_int {
        if let Err(errno) = config::check("spec") {
            return -errno;
        }
        if ![6, 17].contains(&protocol) {
            return -libc::EPROTONOSUPPORT;
        }
        if self.kind != 0 {
            return -libc::EINVAL;
        }
        // Ports come in network order.
        let bytes = |port: c_int| (port as u16).to_ne_bytes();
        self.kind = 1;
        self.key = Key {
            remote: remote.0,
            local: local.0,
            remote_port: bytes(remote.1),
            local_port: bytes(local.1),
            protocol: protocol as u16,
            vlan: self.key.vlan,
        };
        0
    }
}

/// What a specification says that the vendor's setters have written: the kinds, flags, protocol,
/// addresses and ports. (Seen in the seven releases that were looked at.)
fn vendors(words: &[u32; 14]) -> Option<Key> {
    const IP4: u32 = 0x2;
    const VLAN: u32 = 0x10;
    const IP6: u32 = 0x4000;
    let port = |at: usize| (words[at] as u16).to_ne_bytes();
    let v6 = |at: usize| {
        let mut bytes = [0; 16];
        let words = words[at..at + 4].iter().flat_map(|word| word.to_ne_bytes());
        bytes
            .iter_mut()
            .zip(words)
            .for_each(|(to, from)| *to = from);
        bytes
    };
    let is_tagged = words[0] & VLAN != 0;
    let key = Key {
        protocol: words[2] as u16,
        vlan: if is_tagged { words[7] as u16 } else { 0 },
        ..Key::default()
    };
    match words[0] & !VLAN {
        IP4 => Some(Key {
            local: v4(words[3]),
            local_port: port(4),
            // A filter of any other end has no address at all.
            remote: if words[5] == 0 { [0; 16] } else { v4(words[5]) },
            remote_port: port(6),
            ..key
        }),
        IP6 => Some(Key {
            local: v6(3),
            local_port: port(8),
            remote: v6(9),
            remote_port: port(13),
            ..key
        }),
        _ => None,
    }
}

const ANY: ([u8; 16], c_int) = ([0; 16], 0);

fn v4(address: u32) -> [u8; 16] {
    mapped(&address.to_ne_bytes())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_filter_spec_init(spec: *mut ef_filter_spec, flags: c_uint) {
    let empty = ef_filter_spec {
        kind: 0,
        flags,
        key: Key::default(),
        spare: [0; 2],
    };
    // SAFETY: the caller's place.
    unsafe { spec.write(empty) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_filter_spec_set_vlan(spec: *mut ef_filter_spec, id: c_int) -> c_int {
    if let Err(errno) = config::check("vlan") {
        return -errno;
    }
    // SAFETY: the caller's specification.
    unsafe { (*spec).key.vlan = id as u16 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_filter_spec_set_ip4_local(
    spec: *mut ef_filter_spec,
    protocol: c_int,
    host: u32,
    port: c_int,
) -> c_int {
    // SAFETY: the caller's specification.
    unsafe { (*spec).set(protocol, (v4(host), port), ANY) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_filter_spec_set_ip4_full(
    spec: *mut ef_filter_spec,
    protocol: c_int,
    host: u32,
    port: c_int,
    rhost: u32,
    rport: c_int,
) -> c_int {
    // SAFETY: the caller's specification.
    unsafe { (*spec).set(protocol, (v4(host), port), (v4(rhost), rport)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_filter_spec_set_ip6_local(
    spec: *mut ef_filter_spec,
    protocol: c_int,
    host: *const [u8; 16],
    port: c_int,
) -> c_int {
    // SAFETY: the caller's specification and address.
    unsafe { (*spec).set(protocol, (*host, port), ANY) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_filter_spec_set_ip6_full(
    spec: *mut ef_filter_spec,
    protocol: c_int,
    host: *const [u8; 16],
    port: c_int,
    rhost: *const [u8; 16],
    rport: c_int,
) -> c_int {
    // SAFETY: the caller's specification and addresses.
    unsafe { (*spec).set(protocol, (*host, port), (*rhost, rport)) }
}
