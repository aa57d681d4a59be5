//! The steering program: its maps, their keys and values, and how it is loaded.
//!
//! The bytecode is `bpf/steer.bpf.o`, built from `bpf/steer.bpf.c` by `cargo xtask codegen`; the C
//! file
//! says what it does.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::bpf::{self, MapShape};

/// The committed bytecode.
static OBJECT: &[u8] = include_bytes!("bpf/steer.bpf.o");

/// Copy that is aligned as an ELF file must be.
fn aligned_object() -> Vec<u64> {
    let mut words = vec![0_u64; OBJECT.len().div_ceil(8)];
    words.as_mut_bytes()[..OBJECT.len()].copy_from_slice(OBJECT);
    words
}

/// Key of the `listeners` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Listener {
    /// Local address, v4-mapped; all zero = any.
    pub ip: [u8; 16],
    /// Local port, host order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// With `ip` all zero the IP version (4 or 6), else 0.
    pub any: u8,
}

/// Key of the `flows` map.
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

/// Value of both maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Target {
    /// Slot in the `xsks` map: the stack.
    pub slot: u32,
    /// Bits: [`Target::KEEP_IN_KERNEL`].
    pub flags: u32,
    /// Frames redirected.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Target {
    /// Matching frames pass to the kernel.
    pub const KEEP_IN_KERNEL: u32 = 1;
}

/// The program's own counters, in the order of `enum reason` in the C file: name and sentence.
pub const COUNTERS: [(&str, &str); 10] = [
    (
        "redirected",
        "Frames that matched a filter and went to its queue.",
    ),
    (
        "unmatched",
        "Frames that matched no filter and went to the kernel.",
    ),
    (
        "not-ip",
        "Frames that are neither plain IPv4 nor IPv6 (ARP, VLAN tags and others).",
    ),
    ("group", "Broadcast and multicast frames."),
    ("truncated", "Frames shorter than their headers."),
    ("options", "IPv4 packets with options."),
    ("fragment", "IPv4 fragments."),
    (
        "other-protocol",
        "Packets that are neither UDP nor TCP (ICMP and others).",
    ),
    ("kept", "Frames that a static filter keeps in the kernel."),
    ("empty-slot", "Unused."),
];

/// The program's maps.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) xsks: OwnedFd,
    pub(super) listeners: OwnedFd,
    pub(super) flows: OwnedFd,
    pub(super) counters: OwnedFd,
}

impl Maps {
    /// Sorts maps by their names.
    pub(super) fn from_named(maps: Vec<(String, OwnedFd)>) -> Option<Self> {
        let (mut xsks, mut listeners, mut flows, mut counters) = (None, None, None, None);
        for (name, map) in maps {
            match name.as_str() {
                "xsks" => xsks = Some(map),
                "listeners" => listeners = Some(map),
                "flows" => flows = Some(map),
                "counters" => counters = Some(map),
                _ => {}
            }
        }
        Some(Self {
            xsks: xsks?,
            listeners: listeners?,
            flows: flows?,
            counters: counters?,
        })
    }
}

/// Why the program could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The kernel's errno.
    pub errno: Errno,
    /// What was tried, and the verifier's log if there is one.
    pub what: String,
}

/// Makes the maps and loads the program.
pub(super) fn load() -> Result<(OwnedFd, Maps), LoadError> {
    let broken = |what: &str| LoadError {
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
        bpf::load_xdp("bypass_steer", &instructions).map_err(|(errno, log)| LoadError {
            errno,
            what: format!("loading the program\n{log}"),
        })?;
    Ok((
        program,
        Maps::from_named(maps).ok_or_else(|| broken("finding the maps"))?,
    ))
}

/// Puts a map's descriptor into a 64-bit load (BPF_PSEUDO_MAP_FD).
fn relocate(instructions: &mut [u64], at: usize, map: BorrowedFd<'_>) {
    const PSEUDO_MAP_FD: u64 = 1 << 12;
    if let Some(instruction) = instructions.get_mut(at) {
        let low = *instruction & 0x0000_0000_ffff_0fff;
        *instruction = low | PSEUDO_MAP_FD | u64::from(map.as_raw_fd().cast_unsigned()) << 32;
    }
}

fn create_maps(file: &ElfFile64<'_>) -> Result<Vec<(String, OwnedFd)>, LoadError> {
    let broken = || LoadError {
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
        };
        let map = bpf::create_map(name, shape).map_err(|errno| LoadError {
            errno,
            what: format!("making map {name}"),
        })?;
        maps.push((name.to_owned(), map));
    }
    Ok(maps)
}
