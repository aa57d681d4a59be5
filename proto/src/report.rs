//! The process report: what a program's shim says about its sockets, for `bypassctl explain`.
//!
//! The shim keeps a memfd named [`NAME`] and writes it on cold paths only (a decision, a close);
//! `bypassctl` copies its bytes through `/proc/PID/fd` and reads the copy.
//!
//! ```text
//! 0        1024                                      1024 + 4096 × 64
//! | Header | Record (home of fd 0) | Record | …       | padding to a page
//! ```
//!
//! A record's home is its fd modulo [`CAPACITY`]; collisions go to the next free record within
//! [`PROBE`]. Every type accepts any bit pattern, and the reader trusts nothing: a torn or damaged
//! report reads as odd values, never as a fault. No synchronisation is in here: the writer
//! serialises its own threads.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::policy::{Address, Protocol, Role};
use crate::reason::FallThrough;

/// Name of the memfd, as `/proc/PID/fd` shows it after `/memfd:`.
pub const NAME: &str = "bypass-report";
/// "BYPREPRT" in memory.
pub const MAGIC: u64 = u64::from_le_bytes(*b"BYPREPRT");
/// Layout version.
pub const VERSION: u32 = 1;
/// Records of a report.
pub const CAPACITY: usize = 4096;
/// Size of a report in bytes: a multiple of the page size.
pub const REPORT_BYTES: usize = 65 * 4096;
/// Records that a search looks at: bounds its time.
pub const PROBE: usize = 64;

/// First bytes of the report.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// Start time of the process in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Process id in its own pid namespace.
    pub pid: u32,
    /// Records that follow.
    pub capacity: u32,
    /// Sockets that found no free record.
    pub overflow: u32,
    /// Path of the program, cut to fit (its end is kept), zero-padded.
    pub program: [u8; 64],
    /// Which configuration is in use, or the message why none is; zero-padded.
    pub config: [u8; 256],
    /// How often each [`FallThrough`] was the answer, by its number.
    pub counts: [u64; 64],
    /// Sockets accelerated since the start.
    pub accelerated: u64,
    /// Zero.
    pub reserved: [u64; 19],
}

/// State of a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The kernel serves the socket; `reason` says why.
    Kernel = 1,
    /// Our stack serves the socket.
    Accelerated = 2,
}

/// One socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Record {
    /// Descriptor number.
    pub fd: i32,
    /// 0 = record free, else a [`State`].
    pub state: u8,
    /// A [`FallThrough`], or 0.
    pub reason: u8,
    /// Index of the rule that decided, -1 = the built-in policy.
    pub rule: i16,
    /// A [`Protocol`], or 0.
    pub protocol: u8,
    /// Address family of the socket: 4, 6, or 0 when it is neither.
    pub family: u8,
    /// A [`Role`], or 0 when no address is fixed yet.
    pub role: u8,
    /// 1 = a TCP connection of the kernel's for whose move into the stack the program is prepared.
    pub may_return: u8,
    /// errno behind [`FallThrough::System`], or 0.
    pub errno: i32,
    /// Local address, IPv4 as v4-mapped; all zero = any.
    pub local: [u8; 16],
    /// Remote address; all zero = none.
    pub remote: [u8; 16],
    /// Host order.
    pub local_port: u16,
    /// Host order; 0 = not connected.
    pub remote_port: u16,
    /// Endpoint in the stack image: slab index.
    pub endpoint_index: u32,
    /// Endpoint generation; 0 = no endpoint.
    pub endpoint_generation: u32,
    /// Zero.
    pub reserved_2: u32,
}

const HEADER_BYTES: usize = size_of::<Header>();
const RECORD_BYTES: usize = size_of::<Record>();
const _: () = assert!(HEADER_BYTES == 1024);
const _: () = assert!(RECORD_BYTES == 64);
const _: () = assert!(HEADER_BYTES + CAPACITY * RECORD_BYTES <= REPORT_BYTES);
const _: () = assert!(REPORT_BYTES.is_multiple_of(4096));

impl Header {
    /// A header of an empty report.
    #[must_use]
    pub fn new(pid: u32, start_time: u64, program: &str) -> Self {
        let mut header = Self {
            magic: MAGIC,
            start_time,
            version: VERSION,
            pid,
            capacity: CAPACITY as u32,
            overflow: 0,
            program: [0; 64],
            config: [0; 256],
            counts: [0; 64],
            accelerated: 0,
            reserved: [0; 19],
        };
        let start = program.len().saturating_sub(header.program.len() - 1);
        copy_text(
            &mut header.program,
            program.as_bytes().get(start..).unwrap_or_default(),
        );
        header
    }

    /// Says which configuration is in use, or why none is.
    pub fn set_config(&mut self, text: &str) {
        copy_text(&mut self.config, text.as_bytes());
    }

    /// Counts one answer.
    pub fn count(&mut self, reason: FallThrough) {
        if let Some(count) = self.counts.get_mut(reason as usize) {
            *count = count.wrapping_add(1);
        }
    }

    /// How often this reason was the answer.
    #[must_use]
    pub fn count_of(&self, reason: FallThrough) -> u64 {
        self.counts.get(reason as usize).copied().unwrap_or(0)
    }

    /// The program's path, printable.
    #[must_use]
    pub fn program_text(&self) -> String {
        printable(&self.program)
    }

    /// The configuration's text, printable.
    #[must_use]
    pub fn config_text(&self) -> String {
        printable(&self.config)
    }
}

impl Record {
    /// The state; `None` for a free record and for anything unknown.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        [State::Kernel, State::Accelerated]
            .into_iter()
            .find(|state| *state as u8 == self.state)
    }

    /// Why the kernel serves the socket.
    #[must_use]
    pub fn reason(&self) -> Option<FallThrough> {
        FallThrough::from_number(self.reason)
    }

    /// The rule that decided.
    #[must_use]
    pub fn rule(&self) -> Option<usize> {
        usize::try_from(self.rule).ok()
    }

    /// The protocol.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.protocol)
    }

    /// The call that fixed the address.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        Role::from_number(self.role)
    }

    /// Local address and port.
    #[must_use]
    pub fn local(&self) -> Address {
        Address {
            ip: self.local,
            port: self.local_port,
        }
    }

    /// Remote address and port of a connected socket.
    #[must_use]
    pub fn remote(&self) -> Option<Address> {
        let remote = Address {
            ip: self.remote,
            port: self.remote_port,
        };
        if remote == Address::ANY {
            None
        } else {
            Some(remote)
        }
    }
}

/// Why bytes are no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportError {
    /// Fewer bytes than a report has.
    Size,
    /// The bytes to write to are not aligned to 8.
    Alignment,
    /// The magic number is missing.
    Magic,
    /// Another [`VERSION`].
    Version,
}

/// A report to write, over the mapped memfd.
#[derive(Debug)]
pub struct Report<'a> {
    header: &'a mut Header,
    records: &'a mut [Record],
}

impl<'a> Report<'a> {
    /// Starts an empty report: every byte is written.
    ///
    /// # Errors
    /// [`ReportError::Size`] for fewer than [`REPORT_BYTES`], [`ReportError::Alignment`].
    pub fn create(bytes: &'a mut [u8], header: Header) -> Result<Self, ReportError> {
        bytes.fill(0);
        let report = Self::over(bytes)?;
        *report.header = header;
        Ok(report)
    }

    /// Goes on with a report.
    ///
    /// # Errors
    /// Each [`ReportError`].
    pub fn attach(bytes: &'a mut [u8]) -> Result<Self, ReportError> {
        let report = Self::over(bytes)?;
        check_header(report.header)?;
        Ok(report)
    }

    fn over(bytes: &'a mut [u8]) -> Result<Self, ReportError> {
        if bytes.len() < REPORT_BYTES {
            return Err(ReportError::Size);
        }
        let (header, rest) = Header::mut_from_prefix(bytes).map_err(|_| ReportError::Alignment)?;
        let (records, _) = <[Record]>::mut_from_prefix_with_elems(rest, CAPACITY)
            .map_err(|_| ReportError::Alignment)?;
        Ok(Self { header, records })
    }

    /// The header.
    pub fn header(&mut self) -> &mut Header {
        self.header
    }

    /// The record of this descriptor.
    pub fn find(&mut self, fd: i32) -> Option<&mut Record> {
        let index = self.position(|record| record.state != 0 && record.fd == fd, fd)?;
        self.records.get_mut(index)
    }

    /// Writes the record of `record.fd`, in place of an earlier one of that descriptor. When there
    /// is no room it is counted in [`Header::overflow`] and `false` is the answer.
    pub fn insert(&mut self, record: Record) -> bool {
        let index = self
            .position(|other| other.state != 0 && other.fd == record.fd, record.fd)
            .or_else(|| self.position(|other| other.state == 0, record.fd));
        match index.and_then(|index| self.records.get_mut(index)) {
            Some(slot) => {
                *slot = record;
                true
            }
            None => {
                self.header.overflow = self.header.overflow.saturating_add(1);
                false
            }
        }
    }

    /// Forgets a descriptor; one without a record changes nothing.
    pub fn remove(&mut self, fd: i32) {
        if let Some(record) = self.find(fd) {
            *record = Record::default();
        }
    }

    /// First record within [`PROBE`] of the descriptor's home that fits.
    fn position(&self, fits: impl Fn(&Record) -> bool, fd: i32) -> Option<usize> {
        let home = usize::try_from(fd).ok()? % CAPACITY;
        (home..home + PROBE)
            .map(|index| index % CAPACITY)
            .find(|index| self.records.get(*index).is_some_and(&fits))
    }
}

/// A copy of a report, to read.
#[derive(Clone, Debug)]
pub struct ReportView {
    /// The header; its texts by [`Header::program_text`] and [`Header::config_text`].
    pub header: Header,
    /// The records in use, by descriptor.
    pub records: Vec<Record>,
}

impl ReportView {
    /// Reads a copy of a report's bytes. More records than the bytes hold are not believed.
    ///
    /// # Errors
    /// Each [`ReportError`] but [`ReportError::Alignment`].
    pub fn read(bytes: &[u8]) -> Result<Self, ReportError> {
        let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| ReportError::Size)?;
        check_header(&header)?;
        let capacity = usize::try_from(header.capacity).unwrap_or(0).min(CAPACITY);
        let mut records: Vec<Record> = rest
            .chunks_exact(RECORD_BYTES)
            .take(capacity)
            .filter_map(|bytes| Record::read_from_bytes(bytes).ok())
            .filter(|record| record.state().is_some())
            .collect();
        records.sort_by_key(|record| record.fd);
        Ok(Self { header, records })
    }
}

fn check_header(header: &Header) -> Result<(), ReportError> {
    if header.magic != MAGIC {
        Err(ReportError::Magic)
    } else if header.version != VERSION {
        Err(ReportError::Version)
    } else {
        Ok(())
    }
}

/// Copies as much as fits, leaving at least one zero at the end.
fn copy_text(to: &mut [u8], text: &[u8]) {
    to.fill(0);
    let room = to.len().saturating_sub(1);
    for (to, from) in to.iter_mut().take(room).zip(text) {
        *to = *from;
    }
}

/// Text up to the first zero; what is not UTF-8 or not printable becomes U+FFFD.
fn printable(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let replace = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    String::from_utf8_lossy(text).chars().map(replace).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn aligned() -> Vec<u64> {
        vec![0; REPORT_BYTES / 8]
    }

    fn record(fd: i32) -> Record {
        Record {
            fd,
            state: State::Kernel as u8,
            rule: -1,
            ..Record::default()
        }
    }

    #[test]
    fn a_written_report_is_read_back() {
        let mut memory = aligned();
        let header = Header::new(7, 99, &format!("/{}/server", "x".repeat(80)));
        let mut report = Report::create(memory.as_mut_bytes(), header).expect("memory");
        report
            .header()
            .set_config("line 3, column 1: unknown key\n");
        report.header().count(FallThrough::Loopback);
        for fd in [5, 5 + CAPACITY as i32, 4] {
            assert!(report.insert(record(fd)));
        }
        assert!(report.insert(Record {
            errno: 2,
            ..record(5)
        }));
        report.remove(4);
        let view = ReportView::read(memory.as_bytes()).expect("a report");
        let fds: Vec<_> = view
            .records
            .iter()
            .map(|record| (record.fd, record.errno))
            .collect();
        assert_eq!(fds, [(5, 2), (5 + CAPACITY as i32, 0)]);
        assert_eq!(view.header.count_of(FallThrough::Loopback), 1);
        assert!(view.header.program_text().ends_with("x/server"));
        assert!(
            view.header.config_text().starts_with("line 3") && view.records[0].rule().is_none()
        );
    }

    #[test]
    fn a_full_neighbourhood_is_counted() {
        let mut memory = aligned();
        let mut report =
            Report::create(memory.as_mut_bytes(), Header::new(1, 1, "p")).expect("memory");
        let fd = |turn: usize| i32::try_from(9 + turn * CAPACITY).expect("small");
        assert!((0..PROBE).all(|turn| report.insert(record(fd(turn)))));
        assert!(!report.insert(record(fd(PROBE))) && !report.insert(record(-1)));
        assert_eq!(report.header().overflow, 2);
        report.remove(fd(0));
        assert!(report.find(fd(PROBE - 1)).is_some() && report.insert(record(fd(PROBE))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_fault(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..4096),
            valid in any::<bool>(),
            capacity in any::<u32>(),
        ) {
            if valid && bytes.len() >= HEADER_BYTES {
                bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
                bytes[16..20].copy_from_slice(&VERSION.to_ne_bytes());
                bytes[24..28].copy_from_slice(&capacity.to_ne_bytes());
            }
            if let Ok(view) = ReportView::read(&bytes) {
                let text = view.header.program_text() + &view.header.config_text();
                prop_assert!(!text.contains(char::is_control));
                for record in &view.records {
                    let _ = (record.reason(), record.rule(), record.protocol(), record.role());
                    let _ = (record.local().to_string(), record.remote().map(|a| a.to_string()));
                }
            }
        }

        #[test]
        fn a_damaged_report_is_written_without_a_fault(
            seed in any::<[u64; 8]>(),
            fds in proptest::collection::vec(any::<i32>(), 0..50),
        ) {
            let mut memory = aligned();
            for (index, word) in memory.iter_mut().enumerate() {
                *word = seed[index % 8].rotate_left(index as u32 % 63);
            }
            memory[0] = MAGIC;
            memory.as_mut_bytes()[16..20].copy_from_slice(&VERSION.to_ne_bytes());
            let mut report = Report::attach(memory.as_mut_bytes()).expect("a header");
            for fd in fds {
                report.insert(record(fd));
                report.remove(fd);
            }
        }
    }
}
