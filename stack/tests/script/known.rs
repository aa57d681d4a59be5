//! Differences between our stack and the kernel that stay, each by a name and as narrow as can be
//! said: a random scenario that ends with one of them is counted, and is no finding.

use super::segment::Described;
use super::words::Words;
use bypass_stack::wire::tcp::flags;

/// A scenario up to the line that the kernel disagrees with.
struct Difference<'a> {
    lines: &'a [String],
    /// What the kernel does in place of the last of them.
    error: &'a str,
}

/// One kind, and how it is recognised.
type Kind = (&'static str, fn(&Difference<'_>) -> bool);

const KINDS: [Kind; 13] = [
    // The kernel offers in the SYN-ACK of crossed SYNs what the peer's SYN has not (RFC 7323
    // section 1.3: only what both have said).
    ("options of a crossed SYN", |found| {
        found.error.contains("differ in: >1 SYN ACK")
            && ["wscale", "sackok", "ts"].contains(&found.fields().next().unwrap_or(""))
            && found.last().is_some_and(|last| last.flags == flags::SYN)
            && found.lines.iter().any(|line| line.starts_with("connect "))
    }),
    // The kernel's orphans in FIN_WAIT_2 answer a reset from outside the window (RFC 9293 section
    // 3.10.7.4: not to be answered).
    ("answer to a reset outside an orphan's window", |found| {
        found.error.starts_with("unexpected: >1 ACK")
            && found
                .last()
                .is_some_and(|last| last.flags & flags::RST != 0)
            && found.lines.iter().any(|line| line == "close S")
    }),
    // The kernel's header prediction takes data without a look at an acknowledgement from long ago
    // (RFC 5961 section 5.2: to be dropped).
    ("data with an ACK from long ago", |found| {
        found.fields().eq(["ack"])
            && found.last().is_some_and(|last| {
                last.flags & !flags::PSH == flags::ACK
                    && last.len.is_some()
                    && last.ack.is_some_and(|ack| (ack as i32) <= 0)
            })
    }),
    // The kernel tells ranges behind the peer's FIN, or with it, once more in its ACK.
    ("SACK blocks behind a FIN", |found| {
        found.fields().eq(["sack"]) && found.segments().any(|said| said.flags & flags::FIN != 0)
    }),
    // The kernel counts on to a second FIN that follows the first one's data.
    ("a FIN behind the FIN", |found| {
        let fins = found.segments().filter(|said| said.flags & flags::FIN != 0);
        let is_told = found.error.starts_with("unexpected: >1 ACK");
        (is_told || found.fields().next() == Some("ack"))
            && fins.count() > 1
            && found
                .last()
                .is_some_and(|last| last.flags & flags::FIN != 0)
    }),
    // The kernel cuts segments to half of the peer's largest window (kernel.txt).
    ("half of the largest window", |found| {
        let mut first = found.segments().take(3);
        found.fields().any(|field| field == "len")
            && found.fields().all(|field| field != "sack")
            && first.any(|said| said.window.is_some_and(|window| window <= 1000))
    }),
    // The kernel's ACK waits longer than a loss probe does (RFC 5681 section 4.2: every second
    // segment is acknowledged at once, also when the program does not read).
    ("a loss probe before a delayed ACK", |found| {
        let data = |text: &str| text.split(' ').any(|word| word == "len");
        found.fields().any(|field| field == "len")
            && found.lines.last().is_some_and(|line| !data(line))
    }),
    // A loss probe that is a retransmission counts as in flight (RFC 6675), the kernel's does not.
    ("a loss probe in flight", |found| {
        let is_data = |line: &&String| line.contains('>') && line.contains(" len ");
        let data = found.lines.iter().filter(is_data);
        let mut numbers: Vec<_> = data.filter_map(|line| line.split(" seq ").nth(1)).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        found.error.starts_with("unexpected: ")
            && found.error.contains(" len ")
            && numbers.len() < all
    }),
    // Data that waited was cut before there were ranges to tell; the kernel cuts it again, ours
    // leaves them to the ACK.
    ("SACK blocks on data that waited", |found| {
        let mut fields = found.fields().filter(|field| *field != "PSH");
        fields.next() == Some("len") && fields.next() == Some("sack")
    }),
    // The kernel takes a byte of the header for the urgent one when a segment begins just behind
    // it.
    ("an urgent byte out of a header", |found| {
        found.error.ends_with("expected !PRI") && found.begins_behind_mark()
    }),
    // The kernel counts the FIN as read with the last byte, and is behind a mark on it.
    ("an urgent byte in place of the FIN", |found| {
        let number = |said: &Described, behind: u32| Some(said.seq?.wrapping_add(behind));
        let fins = found.segments().filter(|said| said.flags & flags::FIN != 0);
        let mut fins = fins.filter_map(|said| number(&said, u32::from(said.len.unwrap_or(0))));
        let marks = found.segments().filter_map(|said| {
            let behind = u32::from(said.urgent?).saturating_sub(1);
            (said.flags & flags::URG != 0).then(|| number(&said, behind))?
        });
        let marks: Vec<_> = marks.collect();
        found.error.ends_with("atmark is 0, expected =1") && fins.any(|fin| marks.contains(&fin))
    }),
    // SIOCOUTQ of a socket whose connect was given up: the kernel has moved its next number on
    // (net/ipv4/tcp.c:tcp_disconnect), ours has sent a SYN.
    ("a connect that was given up", |found| {
        found.error == "unacked is 3, expected =1" && found.segments().next().is_none()
    }),
    // The kernel acknowledges small segments sooner, as it has measured the peer's
    // (net/ipv4/tcp_input.c:tcp_measure_rcv_mss); ours has not delayed for too long.
    ("an ACK that waits", |found| {
        let ends = found.segments().filter_map(|said| {
            let len = said.len.filter(|len| *len > 0)?;
            Some(said.seq?.wrapping_add(u32::from(len)) as i32)
        });
        let plain = found.error.strip_prefix("unexpected: >1 ACK seq ");
        let words: Vec<_> = plain.unwrap_or("").split(' ').collect();
        let told = words.iter().position(|word| *word == "ack");
        let told = told.and_then(|at| words.get(at + 1)?.parse::<i32>().ok());
        told.is_some()
            && told == ends.max()
            && !words.contains(&"len")
            && !words.contains(&"sack")
            && found.segments().all(|said| said.flags & flags::FIN == 0)
    }),
];

/// The kind of a difference, if it is known: `nth` is the line that differs.
pub fn kind(script: &[String], nth: usize, error: &str) -> Option<&'static str> {
    // What nobody expects is noticed before the next line is done.
    let done = nth + usize::from(!error.starts_with("unexpected: "));
    let lines = script.get(..done).unwrap_or(script);
    let found = Difference { lines, error };
    let mut kinds = KINDS.iter();
    kinds.find(|(_, is)| is(&found)).map(|(name, _)| *name)
}

impl Difference<'_> {
    /// What differs in a segment of ours.
    fn fields(&self) -> impl Iterator<Item = &str> {
        let fields = self.error.split_once(" differ in: ");
        fields.into_iter().flat_map(|(names, _)| names.split(", "))
    }

    /// The peer's segments.
    fn segments(&self) -> impl DoubleEndedIterator<Item = Described> {
        let sent = self.lines.iter().filter_map(|line| line.strip_prefix("< "));
        sent.filter_map(|line| Described::parse(&mut Words::of(line)).ok())
    }

    fn last(&self) -> Option<Described> {
        self.segments().next_back()
    }

    /// Whether a segment begins behind an urgent byte, by less than headers can be long.
    fn begins_behind_mark(&self) -> bool {
        let urgent = self
            .segments()
            .filter(|said| said.flags & flags::URG != 0)
            .filter_map(|said| {
                let behind = u32::from(said.urgent?.max(1));
                Some(said.seq?.wrapping_add(behind))
            });
        let marks: Vec<_> = urgent.collect();
        self.segments().filter_map(|said| said.seq).any(|seq| {
            let mut behind = marks.iter().map(|mark| seq.wrapping_sub(*mark));
            behind.any(|bytes| bytes < 60)
        })
    }
}
