//! The steering program: its maps, their keys and values, and how it is loaded.
//!
//! The bytecode is `bpf/steer.bpf.o`, built from `bpf/steer.bpf.c` by `cargo xtask codegen`; the C
//! file says what it does. It is loaded without a BPF library: the object file is read, a map is
//! made for each entry of its section `maps`, the maps' descriptors are put into the instructions
//! that name them, and the kernel gets the result.
//!
//! ```text
//!   flows      UDP 5-tuple        ─┐
//!   listeners  address, port      ─┴► Target { slot, most, packets, bytes }
//!   grants     address, port      ──► Grant { slot, … }: which stack may claim TCP flows there
//!   tables     slot               ──► the stack's own table of TCP flows (flow_table.rs)
//!   xsks       slot * 64 + RX queue ─► XSK
//!   counters   COUNTERS, per CPU
//! ```

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::bpf::{self, CounterMap, Map, MapShape};
use super::error::NicError;
use super::flow_table;

/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
const ARRAY_OF_MAPS: u32 = 12;
/// `BPF_MAP_TYPE_XSKMAP`.
const XSKMAP: u32 = 17;

/// The committed bytecode.
static OBJECT: &[u8] = include_bytes!("bpf/steer.bpf.o");

/// Copy that is aligned as an ELF file must be.
fn aligned_object() -> Vec<u64> {
    let mut words = vec![0_u64; OBJECT.len().div_ceil(8)];
    words.as_mut_bytes()[..OBJECT.len()].copy_from_slice(OBJECT);
    words
}

/// Key of the `listeners` and `grants` maps.
///
/// A grant is of one address. A listener for any address takes whatever frames the interface sees,
/// also those that the host would forward: on a router, write one entry for each local address
/// instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Listener {
    /// Local address, v4-mapped; all zero = any.
    pub ip: [u8; 16],
    /// Local port, host order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// With `ip` all zero the IP version (4 or 6), else 0. So an IPv4 socket never takes IPv6
    /// frames, an IPV6_V6ONLY socket never IPv4 ones, and a dual-stack socket has two entries.
    pub any: u8,
}

impl Listener {
    /// Frames to one local address (v4-mapped), port and protocol.
    #[must_use]
    pub fn at(ip: [u8; 16], port: u16, protocol: u8) -> Self {
        Self {
            ip,
            port,
            protocol,
            any: 0,
        }
    }

    /// IPv4 frames to any address.
    #[must_use]
    pub fn any_v4(port: u16, protocol: u8) -> Self {
        Self {
            any: 4,
            ..Self::at([0; 16], port, protocol)
        }
    }

    /// IPv6 frames to any address.
    #[must_use]
    pub fn any_v6(port: u16, protocol: u8) -> Self {
        Self {
            any: 6,
            ..Self::at([0; 16], port, protocol)
        }
    }
}

/// Key of the `flows` map, which is for UDP: TCP flows are in the tables of the stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Flow {
    /// Local address, v4-mapped.
    pub local: [u8; 16],
    /// Remote address, v4-mapped.
    pub remote: [u8; 16],
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u32,
}

/// Value of the `flows` and `listeners` maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Target {
    /// Slot in the `xsks` map: the stack.
    pub slot: u32,
    /// Bytes of the longest frame that goes there; longer ones, and with 0 all, pass to the kernel.
    pub most: u32,
    /// Frames redirected.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Value of the `grants` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Grant {
    /// Slot in the `xsks` and `tables` maps: the stack.
    pub(super) slot: u32,
    /// Buckets of its table less one.
    pub(super) mask: u32,
    /// Frames redirected by flows of this address and port.
    pub(super) packets: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Seed of the table's hash.
    pub(super) seed: u64,
}

/// The program's own counters, in the order of `enum reason` in the C file: name and sentence.
pub const COUNTERS: [(&str, &str); 15] = [
    (
        "redirected",
        "Frames that matched a filter and went to its queue.",
    ),
    (
        "unmatched",
        "Frames that matched no filter and went to the kernel.",
    ),
    (
        "kept",
        "Frames that matched a filter which keeps them in the kernel.",
    ),
    (
        "empty-slot",
        "Frames that matched a filter whose stack has no XSK on that RX queue (any more).",
    ),
    (
        "not-ip",
        "Frames that are neither IPv4 nor IPv6 (ARP and others).",
    ),
    ("vlan", "Frames with a VLAN tag."),
    ("group", "Broadcast and multicast frames."),
    ("truncated", "Frames shorter than their headers."),
    (
        "options",
        "IPv4 packets with options, IPv6 packets with extension headers.",
    ),
    ("fragment", "Fragments."),
    (
        "icmp",
        "ICMP and ICMPv6 packets, neighbour discovery included.",
    ),
    (
        "other-protocol",
        "Packets that are neither UDP nor TCP nor ICMP.",
    ),
    (
        "no-flow",
        "TCP segments to an address and port of a stack that are of none of its flows and begin \
         none.",
    ),
    (
        "too-long",
        "Frames that matched a filter whose stack's chunks are too small for them.",
    ),
    (
        "pressed",
        "SYNs left to the kernel, which has SYN cookies, because too many connections of the \
         listener are half open.",
    ),
];

/// The program's maps.
#[derive(Debug)]
pub(super) struct Maps {
    /// Value: descriptor of the XSK. User space cannot read it.
    pub(super) xsks: Map<u32, u32>,
    pub(super) listeners: Map<Listener, Target>,
    pub(super) flows: Map<Flow, Target>,
    pub(super) grants: Map<Listener, Grant>,
    /// Value: descriptor of a flow table when written, id of the map when read.
    pub(super) tables: Map<u32, u32>,
    pub(super) counters: CounterMap,
}

impl Maps {
    /// Sorts maps by their names.
    ///
    /// # Errors
    /// `EINVAL` when one is missing or is not what this version makes.
    pub(super) fn from_named(maps: Vec<(String, OwnedFd)>) -> Result<Self, Errno> {
        let (mut xsks, mut listeners, mut flows, mut counters) = (None, None, None, None);
        let (mut grants, mut tables) = (None, None);
        for (name, map) in maps {
            match name.as_str() {
                "xsks" => xsks = Some(Map::new(map, XSKMAP)?),
                "listeners" => listeners = Some(Map::new(map, HASH)?),
                "flows" => flows = Some(Map::new(map, HASH)?),
                "grants" => grants = Some(Map::new(map, HASH)?),
                "tables" => tables = Some(Map::new(map, ARRAY_OF_MAPS)?),
                "counters" => counters = Some(CounterMap::new(map, COUNTERS.len())?),
                _ => {}
            }
        }
        Ok(Self {
            xsks: xsks.ok_or(Errno::INVAL)?,
            listeners: listeners.ok_or(Errno::INVAL)?,
            flows: flows.ok_or(Errno::INVAL)?,
            grants: grants.ok_or(Errno::INVAL)?,
            tables: tables.ok_or(Errno::INVAL)?,
            counters: counters.ok_or(Errno::INVAL)?,
        })
    }
}

/// Makes the maps and loads the program.
pub(super) fn load() -> Result<(OwnedFd, Maps), NicError> {
    let broken = |what: &str| NicError {
        errno: Errno::INVAL,
        what: what.to_owned(),
    };
    let words = aligned_object();
    let bytes = words.as_bytes().get(..OBJECT.len()).unwrap_or_default();
    let file: ElfFile64<'_> =
        ElfFile64::parse(bytes).map_err(|_| broken("reading the program's object file"))?;
    let maps = create_maps(&file)?;
    let section = file
        .section_by_name("xdp")
        .ok_or_else(|| broken("finding section xdp"))?;
    let code = section.data().map_err(|_| broken("reading section xdp"))?;
    let mut instructions: Vec<u64> = code
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default()))
        .collect();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        let name = file
            .symbol_by_index(index)
            .and_then(|symbol| symbol.name().map(str::to_owned))
            .map_err(|_| broken("reading a relocation"))?;
        let (_, map) = maps
            .iter()
            .find(|(map, _)| *map == name)
            .ok_or_else(|| broken("resolving a map"))?;
        relocate(&mut instructions, offset as usize / 8, map.as_fd());
    }
    let program =
        bpf::load_xdp("bypass_steer", &instructions).map_err(|(errno, log)| NicError {
            errno,
            what: if log.is_empty() {
                "loading the XDP program".to_owned()
            } else {
                format!("the verifier refused the XDP program\n{log}")
            },
        })?;
    let maps = Maps::from_named(maps).map_err(|_| broken("finding the program's maps"))?;
    Ok((program, maps))
}

/// Puts a map's descriptor into a 64-bit load (BPF_PSEUDO_MAP_FD).
fn relocate(instructions: &mut [u64], at: usize, map: BorrowedFd<'_>) {
    const PSEUDO_MAP_FD: u64 = 1 << 12;
    if let Some(instruction) = instructions.get_mut(at) {
        let low = *instruction & 0x0000_0000_ffff_0fff;
        *instruction = low | PSEUDO_MAP_FD | u64::from(map.as_raw_fd().cast_unsigned()) << 32;
    }
}

fn create_maps(file: &ElfFile64<'_>) -> Result<Vec<(String, OwnedFd)>, NicError> {
    let broken = || NicError {
        errno: Errno::INVAL,
        what: "reading the map table".to_owned(),
    };
    let section = file.section_by_name("maps").ok_or_else(broken)?;
    let data = section.data().map_err(|_| broken())?;
    let mut maps = Vec::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.section_index() == Some(section.index()))
    {
        let name = symbol.name().map_err(|_| broken())?;
        let at = symbol.address() as usize;
        if name.is_empty() {
            continue; // The section's own symbol.
        }
        let entry = data.get(at..at + 20).ok_or_else(broken)?;
        let word = |index: usize| {
            entry
                .get(index * 4..index * 4 + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        let shape = MapShape {
            kind: word(0),
            key_size: word(1),
            value_size: word(2),
            entries: word(3),
            flags: word(4),
        };
        let failed = |errno| NicError {
            errno,
            what: format!("making map {name} (CAP_BPF is needed)"),
        };
        let inner = if shape.kind == ARRAY_OF_MAPS {
            Some(flow_table::create_empty(1).map_err(failed)?)
        } else {
            None
        };
        let inner = inner.as_ref().map(AsFd::as_fd);
        let map = bpf::create_map(name, shape, inner).map_err(failed)?;
        maps.push((name.to_owned(), map));
    }
    Ok(maps)
}
