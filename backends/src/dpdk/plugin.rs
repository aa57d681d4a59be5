//! `libbypass_dpdk.so` (plugin.c), opened at run time: one port of DPDK.
//!
//! The table is checked before anything of it is called: another version or size is refused. What
//! DPDK says when something fails comes as it is, its lines joined.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: calls through the plugin's table; frames it lends become slices"
)]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::relay::{CardFilter, Facts, InCard, InPlace, Lent, Memory, Offloads, Port, Rules, Told};

/// Name of the library.
pub const LIBRARY: &str = "libbypass_dpdk.so";
/// Version of the table; plugin.c has the same.
const ABI: u32 = 6;
/// Frames of one burst.
const BURST: usize = 64;
/// Most statistics of a port.
const STATISTICS: usize = 264;
/// RX_CHECKSUMS and TX_CHECKSUMS of plugin.c.
const OFFLOADS: (u32, u32) = (1, 2);
/// CHECKSUM_GOOD of plugin.c.
const CHECKSUM_GOOD: u32 = 1;
/// KEPT of plugin.c.
const KEPT: u32 = 2;
/// NO_CHUNK of plugin.c.
const NO_CHUNK: u32 = u32::MAX;
/// IN_PLACE of plugin.c.
const MOST_SENDING: usize = 1023;

/// `struct facts`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct RawFacts {
    mac: [u8; 6],
    mtu: u16,
    wait_fd: i32,
    offloads: u32,
    driver: [u8; 32],
    copies: [u8; 96],
}

/// `struct frame`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct RawFrame {
    bytes: *const u8,
    length: u32,
    flags: u32,
    chunk: u32,
    spare: u32,
}

impl RawFrame {
    const NONE: Self = Self {
        bytes: std::ptr::null(),
        length: 0,
        flags: 0,
        chunk: NO_CHUNK,
        spare: 0,
    };

    fn told(&self) -> Told {
        Told {
            stamp: 0,
            is_checksum_good: self.flags & CHECKSUM_GOOD != 0,
        }
    }
}

/// `struct rule`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct RawRule {
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
    protocol: u8,
    is_v4: u8,
    has_remote: u8,
    spare: u8,
}

const _: () = {
    use std::mem::offset_of;
    // plugin.c says the same of its own.
    assert!(size_of::<RawRule>() == 40 && offset_of!(RawRule, remote) == 16);
    assert!(offset_of!(RawRule, local_port) == 32 && offset_of!(RawRule, remote_port) == 34);
    assert!(offset_of!(RawRule, protocol) == 36 && offset_of!(RawRule, is_v4) == 37);
    assert!(offset_of!(RawRule, has_remote) == 38);
};

impl From<&CardFilter> for RawRule {
    fn from(filter: &CardFilter) -> Self {
        const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let (local, local_port) = filter.local;
        let (remote, remote_port) = filter.remote.unwrap_or_default();
        Self {
            local,
            remote,
            local_port,
            remote_port,
            protocol: filter.protocol,
            is_v4: local.starts_with(&MAPPED).into(),
            has_remote: filter.remote.is_some().into(),
            spare: 0,
        }
    }
}

/// `struct statistic`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawStatistic {
    name: [u8; 64],
    value: u64,
}

/// `struct table`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Table {
    abi: u32,
    size: u32,
    version: unsafe extern "C" fn() -> *const c_char,
    words: unsafe extern "C" fn() -> *const c_char,
    start: unsafe extern "C" fn(i32, *mut *mut c_char) -> i32,
    open: unsafe extern "C" fn(*mut RawFacts, i32) -> i32,
    receive: unsafe extern "C" fn(*mut RawFrame, u32) -> u32,
    release: unsafe extern "C" fn(*const RawFrame),
    send: unsafe extern "C" fn(*const u8, u32) -> i32,
    flush: unsafe extern "C" fn() -> u32,
    statistics: unsafe extern "C" fn(*mut RawStatistic, u32) -> u32,
    is_lost: unsafe extern "C" fn() -> i32,
    flow_create: unsafe extern "C" fn(*const RawRule) -> *mut c_void,
    flow_destroy: unsafe extern "C" fn(*mut c_void),
    answer_to: unsafe extern "C" fn(*const u8),
    close: unsafe extern "C" fn(),
    adopt: unsafe extern "C" fn(*mut u8, u64, u32, u32) -> i32,
    disown: unsafe extern "C" fn(),
    is_left: unsafe extern "C" fn(i32) -> i32,
    wants: unsafe extern "C" fn() -> u32,
    supply: unsafe extern "C" fn(*const u32, u32),
    send_chunk: unsafe extern "C" fn(*mut u8, u32, u32) -> i32,
    completed: unsafe extern "C" fn(*mut u32, u32) -> u32,
}

/// The library, loaded: DPDK is in this process, and no port of it yet.
#[derive(Debug)]
pub struct Plugin {
    table: Table,
    /// Keeps the code.
    _library: Library,
}

impl Plugin {
    /// Loads the library at a path, or of this name from where libraries are.
    ///
    /// # Errors
    /// A sentence: the loader's own words (the library or DPDK is absent), or that it is of another
    /// version.
    pub fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: its constructors, and those of DPDK's drivers, register themselves and do nothing
        // else.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| loaders_words(&error))?;
        let other = || format!("{} is not of this version", path.display());
        // SAFETY: the symbol is looked at as its first two words; every version has those.
        let head = unsafe { library.get::<*const [u32; 2]>(b"bypass_dpdk\0") };
        let head = head.map_err(|_| other())?;
        // SAFETY: the address of a static of at least eight bytes.
        let [abi, size] = unsafe { **head };
        if abi != ABI || size as usize != size_of::<Table>() {
            return Err(format!(
                "{}: its table has version {abi}, not {ABI}",
                other()
            ));
        }
        // SAFETY: version and size say that it is this table, which is never written.
        let table = unsafe { (*head).cast::<Table>().read() };
        Ok(Self {
            table,
            _library: library,
        })
    }

    /// DPDK's version, as it says it.
    #[must_use]
    pub fn version(&self) -> String {
        // SAFETY: a string of the library.
        unsafe { text((self.table.version)()) }
    }

    /// Initialises DPDK's environment with these arguments (without the program's name) and opens
    /// the first port that comes of them, without copies if that is asked for and its driver can.
    /// Once in a process, on the thread that then uses the port.
    ///
    /// # Errors
    /// DPDK's own words.
    pub fn open(self, arguments: &[String], in_place: bool) -> Result<DpdkPort, String> {
        let strings: Vec<CString> = std::iter::once("bypass")
            .chain(arguments.iter().map(String::as_str))
            .filter_map(|argument| CString::new(argument).ok())
            .collect();
        // DPDK keeps pointers to them.
        let mut pointers: Vec<*mut c_char> = strings.into_iter().map(CString::into_raw).collect();
        let count = pointers.len() as i32;
        pointers.push(std::ptr::null_mut());
        let arguments = Box::leak(pointers.into_boxed_slice()).as_mut_ptr();
        // SAFETY: an argument vector that lives as long as the process.
        if unsafe { (self.table.start)(count, arguments) } != 0 {
            return Err(self.words("initialising DPDK failed"));
        }
        // SAFETY: integers.
        let mut facts: RawFacts = unsafe { std::mem::zeroed() };
        // SAFETY: writes `facts`.
        if unsafe { (self.table.open)(&raw mut facts, in_place.into()) } != 0 {
            return Err(self.words("opening the port failed"));
        }
        let copies = until_nul(&facts.copies);
        let is_possible = copies.is_empty().then_some(()).ok_or(copies);
        let no_rules = self.try_rule().err();
        Ok(DpdkPort {
            rules: Rules::default(),
            facts: Facts {
                stamps_sent: false,
                no_rules,
                mac: facts.mac,
                mtu: facts.mtu,
                driver: until_nul(&facts.driver),
                in_place: in_place.then_some(is_possible),
                is_bifurcated: false,
                offloads: Offloads {
                    rx_checksums: facts.offloads & OFFLOADS.0 != 0,
                    tx_checksums: facts.offloads & OFFLOADS.1 != 0,
                },
            },
            regions: Vec::new(),
            is_in_place: false,
            wait_fd: (facts.wait_fd >= 0).then_some(facts.wait_fd),
            plugin: self,
        })
    }

    /// Whether the port takes rules: one that matches nothing it gets.
    fn try_rule(&self) -> Result<(), String> {
        let local = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 9];
        let trial = CardFilter {
            protocol: 17,
            local: (local, 9),
            remote: None,
        };
        self.create_flow(&trial).map(|flow| self.destroy_flow(flow))
    }

    fn create_flow(&self, filter: &CardFilter) -> Result<usize, String> {
        // What was said before is of other matters.
        let _ = self.words("");
        let rule = RawRule::from(filter);
        // SAFETY: reads the rule.
        let flow = unsafe { (self.table.flow_create)(&raw const rule) };
        if flow.is_null() {
            return Err(self.words("it refuses"));
        }
        Ok(flow.expose_provenance())
    }

    fn destroy_flow(&self, flow: usize) {
        // SAFETY: `create_flow` has made it, and it is destroyed once.
        unsafe { (self.table.flow_destroy)(std::ptr::with_exposed_provenance_mut(flow)) }
    }

    /// What DPDK has said, on one line; else `otherwise`.
    fn words(&self, otherwise: &str) -> String {
        // SAFETY: a string of the library, which it changes only when it is called.
        let said = sentence(&unsafe { text((self.table.words)()) });
        if said.is_empty() {
            otherwise.to_owned()
        } else {
            said
        }
    }
}

/// What the loader says: the error's cause, not that there is one.
fn loaders_words(error: &libloading::Error) -> String {
    let cause = std::error::Error::source(error);
    sentence(&cause.map_or_else(|| error.to_string(), ToString::to_string))
}

/// Lines as one.
fn sentence(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// A string in a field, which ends with NUL.
fn until_nul(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(field.get(..end.unwrap_or(0)).unwrap_or_default()).into_owned()
}

/// # Safety
/// A string that ends with NUL and stays while it is copied.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: the caller's word.
    unsafe { CStr::from_ptr(string) }
        .to_string_lossy()
        .into_owned()
}

/// A started port with one queue pair. Not for several threads.
#[derive(Debug)]
pub struct DpdkPort {
    facts: Facts,
    /// Descriptor that is readable while frames wait; `None` = it must be polled.
    wait_fd: Option<i32>,
    rules: Rules<usize>,
    /// Memory of stacks that the card may have something of, by the plugin's number for it.
    regions: Vec<(i32, Rc<Memory>)>,
    /// The last of them is the stack's that has the port.
    is_in_place: bool,
    plugin: Plugin,
}

impl DpdkPort {
    /// Takes frames for this MAC address for its own: rules elsewhere in the card lead them here.
    pub fn answer_to(&mut self, mac: [u8; 6]) {
        // SAFETY: reads six bytes.
        unsafe { (self.plugin.table.answer_to)(mac.as_ptr()) }
    }

    /// Gives memory of stacks that are gone back, as soon as the card has nothing of it.
    #[cold]
    fn forget_regions(&mut self) {
        let is_left = self.plugin.table.is_left;
        // SAFETY: a number that `adopt` has given, and was not given back yet.
        self.regions
            .retain(|(number, _)| unsafe { is_left(*number) } == 0);
    }
}

impl Port for DpdkPort {
    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the driver's descriptor, which it keeps open as long as the port is.
        self.wait_fd.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize {
        if self.regions.len() > usize::from(self.is_in_place) {
            self.forget_regions();
        }
        let mut frames = [RawFrame::NONE; BURST];
        // SAFETY: there is room for as many.
        let count = unsafe { (self.plugin.table.receive)(frames.as_mut_ptr(), BURST as u32) };
        let frames = frames.get(..count as usize).unwrap_or_default();
        for frame in frames {
            // SAFETY: the frame is ours until the burst is released, and nobody writes to it.
            let bytes = unsafe { std::slice::from_raw_parts(frame.bytes, frame.length as usize) };
            each(bytes, frame.told());
        }
        // SAFETY: no slice of them is left.
        unsafe { (self.plugin.table.release)(frames.as_ptr()) };
        frames.len()
    }

    unsafe fn send(&mut self, bytes: *const u8, length: u32) -> bool {
        // SAFETY: reads `length` bytes, no more.
        unsafe { (self.plugin.table.send)(bytes, length) == 0 }
    }

    fn flush(&mut self) -> u32 {
        // SAFETY: nothing to keep.
        unsafe { (self.plugin.table.flush)() }
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        const NONE: RawStatistic = RawStatistic {
            name: [0; 64],
            value: 0,
        };
        let mut values = vec![NONE; STATISTICS];
        // SAFETY: there is room for as many.
        let count =
            unsafe { (self.plugin.table.statistics)(values.as_mut_ptr(), STATISTICS as u32) };
        values.truncate(count as usize);
        let named = values
            .iter()
            .map(|statistic| (until_nul(&statistic.name), statistic.value));
        named.collect()
    }

    fn lead(&mut self, wanted: &BTreeSet<CardFilter>) -> Result<(), String> {
        if self.facts.no_rules.is_none() {
            let plugin = &self.plugin;
            let destroy = |flow| plugin.destroy_flow(flow);
            self.rules
                .follow(wanted, |filter| plugin.create_flow(filter).ok(), destroy);
        }
        // What the port does not match, the relay does.
        Ok(())
    }

    fn in_card(&self) -> Vec<InCard> {
        self.rules.in_card()
    }

    fn is_lost(&self) -> bool {
        // SAFETY: reads a flag.
        unsafe { (self.plugin.table.is_lost)() != 0 }
    }

    fn in_place(&mut self) -> Option<&mut dyn InPlace> {
        matches!(self.facts.in_place, Some(Ok(()))).then_some(self)
    }
}

impl InPlace for DpdkPort {
    fn adopt(&mut self, memory: Rc<Memory>, headroom: u32) -> Result<(), String> {
        self.forget_regions();
        let _ = self.plugin.words("");
        let (base, bytes, chunk_size) = memory.range();
        // SAFETY: mapped, as `regions` keeps it until the card has nothing of it.
        let number = unsafe { (self.plugin.table.adopt)(base, bytes as u64, chunk_size, headroom) };
        if number < 0 {
            return Err(self.plugin.words("the port cannot have the stack's memory"));
        }
        self.regions.push((number, memory));
        self.is_in_place = true;
        Ok(())
    }

    fn disown(&mut self) {
        self.is_in_place = false;
        // SAFETY: nothing to keep.
        unsafe { (self.plugin.table.disown)() };
        self.forget_regions();
    }

    fn wants(&self) -> usize {
        // SAFETY: reads a count.
        unsafe { (self.plugin.table.wants)() as usize }
    }

    fn supply(&mut self, chunks: &[u32]) {
        // SAFETY: reads as many, which are in the memory; there is room for what is wanted.
        unsafe { (self.plugin.table.supply)(chunks.as_ptr(), chunks.len() as u32) }
    }

    fn lend(&mut self, each: &mut dyn FnMut(Lent) -> bool) -> usize {
        if self.regions.len() > 1 {
            self.forget_regions();
        }
        let mut frames = [RawFrame::NONE; BURST];
        // SAFETY: there is room for as many.
        let count = unsafe { (self.plugin.table.receive)(frames.as_mut_ptr(), BURST as u32) };
        let frames = frames.get_mut(..count as usize).unwrap_or_default();
        for frame in &mut *frames {
            let is_kept = each(Lent {
                bytes: frame.bytes,
                length: frame.length,
                chunk: (frame.chunk != NO_CHUNK).then_some(frame.chunk),
                told: frame.told(),
            });
            if is_kept && frame.chunk != NO_CHUNK {
                frame.flags |= KEPT;
            }
        }
        // SAFETY: the burst's frames; nothing of the others is used any more.
        unsafe { (self.plugin.table.release)(frames.as_ptr()) };
        frames.len()
    }

    fn most_sending(&self) -> usize {
        MOST_SENDING
    }

    unsafe fn send_chunk(&mut self, bytes: *mut u8, length: u32, chunk: u32) -> bool {
        // SAFETY: the caller's word: as many bytes of that chunk, which stays mapped.
        unsafe { (self.plugin.table.send_chunk)(bytes, length, chunk) == 0 }
    }

    fn completed(&mut self, into: &mut [u32]) -> usize {
        // SAFETY: there is room for as many.
        unsafe { (self.plugin.table.completed)(into.as_mut_ptr(), into.len() as u32) as usize }
    }
}

impl Drop for DpdkPort {
    fn drop(&mut self) {
        // SAFETY: the port is not used any more, nor is the library; the stack's memory is unmapped
        // after that.
        unsafe { (self.plugin.table.close)() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_absent_or_another_is_refused_in_words() {
        let absent = Plugin::load(Path::new("/nowhere/libbypass_dpdk.so")).unwrap_err();
        assert!(absent.contains("No such file"), "{absent}");
        let another = Plugin::load(Path::new("libc.so.6")).unwrap_err();
        assert_eq!(another, "libc.so.6 is not of this version");
    }
}
