//! Takes frames from the kernel that a filter matches: what the card of a hidden queue does.
//!
//! A program at the interface's tcx ingress drops them after packet sockets have seen them. It is
//! attached by a link, so that it goes with the process, as filters of a card do.
//!
//! ```text
//!   key = (remote, local, ports, protocol, VLAN);         in the map? ─► drop
//!   the same with remote zero;                            in the map? ─► drop
//!   everything else                                                   ─► the kernel
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: makes bpf calls, for which libc has no types"
)]

use std::ffi::c_long;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::filter::Key;
use crate::wire::errno;

const MAP_CREATE: c_long = 0;
const MAP_UPDATE: c_long = 2;
const MAP_DELETE: c_long = 3;
const PROG_LOAD: c_long = 5;
const LINK_CREATE: c_long = 28;
const MAP_HASH: u32 = 1;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const MOST: u32 = 4096;

/// The program, at work while this lives.
pub(crate) struct Thief {
    map: OwnedFd,
    _link: OwnedFd,
}

fn bpf<T>(command: c_long, attribute: &mut T) -> Result<c_long, i32> {
    let place = &raw mut *attribute;
    // SAFETY: attributes are whole, and what they point to lives for the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, place, size_of::<T>()) } {
        -1 => Err(errno()),
        answer => Ok(answer),
    }
}

fn make<T>(command: c_long, attribute: &mut T) -> Result<OwnedFd, i32> {
    let fd = bpf(command, attribute)?;
    // SAFETY: the command has made a descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: *const Key,
    value: *const u32,
    flags: u64,
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: *const u64,
    license: *const u8,
    log: [u64; 3],
    more: [u64; 8],
}

impl Thief {
    pub(crate) fn attach(ifindex: u32) -> Result<Self, i32> {
        let mut shape = [MAP_HASH, size_of::<Key>() as u32, 4, MOST, 0];
        let map = make(MAP_CREATE, &mut shape)?;
        let code = program(map.as_raw_fd());
        let mut load = Load {
            kind: SCHED_CLS,
            count: code.len() as u32,
            instructions: code.as_ptr(),
            license: c"Dual MIT/GPL".as_ptr().cast(),
            log: [0; 3],
            more: [0; 8],
        };
        let program = make(PROG_LOAD, &mut load)?;
        let mut link = [
            program.as_raw_fd() as u32,
            ifindex,
            TCX_INGRESS,
            0,
            0,
            0,
            0,
            0,
        ];
        let link = make(LINK_CREATE, &mut link)?;
        Ok(Self { map, _link: link })
    }

    fn element(&self, key: &Key, value: *const u32) -> Element {
        Element {
            map: self.map.as_raw_fd() as u32,
            pad: 0,
            key,
            value,
            flags: 0,
        }
    }

    pub(crate) fn add(&self, key: &Key) {
        let added = bpf(MAP_UPDATE, &mut self.element(key, &1));
        added.expect("fake libciul: entering a filter");
    }

    pub(crate) fn remove(&self, key: &Key) {
        let removed = bpf(MAP_DELETE, &mut self.element(key, std::ptr::null()));
        removed.expect("fake libciul: removing a filter");
    }
}

/// One instruction.
const fn op(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | ((to | from << 4) as u64) << 8
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

/// Instructions with jumps to labels, which come later.
#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    jumps: Vec<(usize, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

/// Where the key is on the stack.
const KEY: i16 = -40;
const HALF: u8 = 0x28;
const BYTE: u8 = 0x30;
const WORD: u8 = 0x20;

impl Assembler {
    fn put(&mut self, instruction: u64) {
        self.code.push(instruction);
    }

    fn label(&mut self, name: &'static str) {
        self.labels.push((name, self.code.len()));
    }

    /// Jump if r`register` == value; or != with code 0x55; always with 0x05.
    fn jump(&mut self, code: u8, register: u8, value: i32, to: &'static str) {
        self.jumps.push((self.code.len(), to));
        self.put(op(code, register, 0, 0, value));
    }

    /// r0 = bytes of the frame, in the host's order.
    fn load(&mut self, size: u8, at: i32) {
        self.put(op(size, 0, 0, 0, at));
    }

    /// Stores r0 in network order: 4 bytes (0x63) or 2 (0x6b).
    fn store(&mut self, code: u8, at: i16) {
        let bits = if code == 0x63 { 32 } else { 16 };
        self.put(op(0xdc, 0, 0, 0, bits));
        self.put(op(code, 10, 0, KEY + at, 0));
    }

    fn clear(&mut self, at: i16) {
        self.put(op(0x7a, 10, 0, KEY + at, 0));
    }

    fn look_up(&mut self, map: i32) {
        self.put(op(0x18, 1, 1, 0, map));
        self.put(0);
        self.put(op(0xbf, 2, 10, 0, 0));
        self.put(op(0x07, 2, 0, 0, KEY.into()));
        self.put(op(0x85, 0, 0, 0, 1));
        self.jump(0x55, 0, 0, "drop");
    }

    fn finish(mut self) -> Vec<u64> {
        for (at, name) in self.jumps {
            let label = self.labels.iter().find(|(label, _)| *label == name);
            let to = label.expect("a label").1;
            let offset = to as i64 - at as i64 - 1;
            self.code[at] |= (offset as u16 as u64) << 16;
        }
        self.code
    }
}

#[expect(clippy::too_many_lines, reason = "the listing of a program")]
fn program(map: i32) -> Vec<u64> {
    const MAPPED: i32 = 0xffff_0000_u32 as i32;
    let mut asm = Assembler::default();
    asm.put(op(0xbf, 6, 1, 0, 0));
    for at in [0, 8, 16, 24, 32] {
        asm.clear(at);
    }
    asm.load(HALF, 12);
    asm.jump(0x15, 0, 0x0800, "v4");
    asm.jump(0x15, 0, 0x86dd, "v6");
    asm.label("first pass");
    asm.put(op(0xb7, 0, 0, 0, -1));
    asm.put(op(0x95, 0, 0, 0, 0));
    asm.label("v4");
    asm.load(BYTE, 14);
    asm.jump(0x55, 0, 0x45, "pass");
    asm.load(HALF, 20);
    asm.put(op(0x57, 0, 0, 0, 0x3fff));
    asm.jump(0x55, 0, 0, "pass");
    asm.load(BYTE, 23);
    asm.put(op(0xbf, 7, 0, 0, 0));
    for (from, to) in [(26, 12), (30, 28)] {
        asm.load(WORD, from);
        asm.store(0x63, to);
        asm.put(op(0x62, 10, 0, KEY + to - 4, MAPPED));
    }
    asm.put(op(0xb7, 8, 0, 0, 34));
    asm.jump(0x05, 0, 0, "ports");
    asm.label("v6");
    asm.load(BYTE, 20);
    asm.put(op(0xbf, 7, 0, 0, 0));
    for word in 0..8 {
        asm.load(WORD, 22 + 4 * i32::from(word));
        asm.store(0x63, 4 * word);
    }
    asm.put(op(0xb7, 8, 0, 0, 54));
    asm.label("ports");
    asm.jump(0x15, 7, 6, "known");
    asm.jump(0x55, 7, 17, "pass");
    asm.label("known");
    // The kernel has taken the tag off: __sk_buff's vlan_present and vlan_tci.
    asm.put(op(0x61, 0, 6, 20, 0));
    asm.jump(0x15, 0, 0, "untagged");
    asm.put(op(0x61, 0, 6, 24, 0));
    asm.put(op(0x57, 0, 0, 0, 0xfff));
    asm.put(op(0x67, 0, 0, 0, 16));
    asm.put(op(0x4f, 7, 0, 0, 0));
    asm.label("untagged");
    asm.put(op(0x63, 10, 7, KEY + 36, 0));
    for (from, to) in [(0, 32), (2, 34)] {
        asm.put(op(0x48, 0, 8, 0, from));
        asm.store(0x6b, to);
    }
    asm.look_up(map);
    asm.clear(0);
    asm.clear(8);
    asm.put(op(0x6a, 10, 0, KEY + 32, 0));
    asm.look_up(map);
    asm.label("pass");
    asm.put(op(0xb7, 0, 0, 0, -1));
    asm.put(op(0x95, 0, 0, 0, 0));
    asm.label("drop");
    asm.put(op(0xb7, 0, 0, 0, 2));
    asm.put(op(0x95, 0, 0, 0, 0));
    asm.finish()
}
