//! A segment as a line of a script says it, and as text for messages.

use super::words::{Outcome, Words, fit};
use bypass_stack::wire::tcp::{FastOpen, Options, SackBlock, Segment, Timestamps, flags};

/// The flags by name, in the order in which they are printed.
const FLAGS: [(&str, u16); 9] = [
    ("SYN", flags::SYN),
    ("FIN", flags::FIN),
    ("RST", flags::RST),
    ("PSH", flags::PSH),
    ("ACK", flags::ACK),
    ("URG", flags::URG),
    ("ECE", flags::ECE),
    ("CWR", flags::CWR),
    ("AE", flags::AE),
];

/// What a line says; what it does not say is `None`. Numbers are relative to the initial ones.
#[derive(Debug, Clone, Default)]
pub struct Described {
    pub flags: u16,
    /// `PSH` was named, or `!PSH` was.
    pub push: Option<bool>,
    pub seq: Option<u32>,
    /// The number is 0 on the wire: a reset that belongs to nothing.
    pub no_seq: bool,
    pub len: Option<u16>,
    pub ack: Option<u32>,
    pub window: Option<u16>,
    pub urgent: Option<u16>,
    pub mss: Option<Expected<Mss>>,
    pub wscale: Option<Expected<u8>>,
    pub sackok: Option<bool>,
    /// TSval and TSecr; a missing one is any (expected) or the natural one (injected).
    pub timestamps: Option<Expected<(Option<u32>, Option<u32>)>>,
    pub sack: Vec<(u32, u32)>,
    pub ecn: Option<u8>,
    pub fast_open: Option<Expected<Cookie>>,
    /// The option is in the form of the experiment.
    pub is_experimental: bool,
    /// Further frames belong to the same batch.
    pub batch: bool,
}

/// A segment size: a number, or the one that the MTU gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mss {
    Bytes(u16),
    OfMtu,
}

/// A Fast Open option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cookie {
    /// These bytes; none is a request.
    Bytes(Vec<u8>),
    /// Any cookie.
    Any,
    /// The last one that we have sent.
    Known,
}

impl Cookie {
    fn parse(words: &mut Words<'_>) -> Self {
        let word = words.peek().unwrap_or_default();
        let known = match word {
            "*" => Self::Any,
            "known" => Self::Known,
            _ => {
                let digits = word.as_bytes().chunks_exact(2);
                let bytes = digits.map(|two| {
                    let two = std::str::from_utf8(two).unwrap_or_default();
                    u8::from_str_radix(two, 16)
                });
                let bytes: Result<Vec<u8>, _> = bytes.collect();
                match bytes {
                    Ok(bytes) if bytes.len() >= 4 => Self::Bytes(bytes),
                    _ => return Self::Bytes(Vec::new()),
                }
            }
        };
        words.next();
        known
    }
}

/// An option that must be absent, or have a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected<T> {
    Absent,
    Value(T),
}

/// The next words as optional numbers of a timestamp.
fn timestamp(words: &mut Words<'_>) -> Outcome<Option<u32>> {
    match words.peek() {
        Some("*") => {
            words.next();
            Ok(None)
        }
        Some(word) if word.starts_with(|c: char| c.is_ascii_digit()) => {
            words.next();
            fit(word).map(Some)
        }
        _ => Ok(None),
    }
}

impl Described {
    /// Reads the words behind `<` or `>`.
    pub fn parse(words: &mut Words<'_>) -> Outcome<Self> {
        let mut this = Self::default();
        while let Some(word) = words.next() {
            if let Some((name, bit)) = FLAGS.iter().find(|(name, _)| *name == word) {
                this.flags |= bit;
                if *name == "PSH" {
                    this.push = Some(true);
                }
                continue;
            }
            this.take_word(word, words)?;
        }
        Ok(this)
    }

    fn take_word(&mut self, word: &str, words: &mut Words<'_>) -> Outcome<()> {
        match word {
            "!PSH" => self.push = Some(false),
            "seq" if words.peek() == Some("none") => {
                words.next();
                self.no_seq = true;
            }
            "seq" => self.seq = Some(fit(words.want("number")?)?),
            "len" => self.len = Some(fit(words.want("length")?)?),
            "ack" => self.ack = Some(fit(words.want("number")?)?),
            "win" => self.window = Some(fit(words.want("window")?)?),
            "urg" => self.urgent = Some(fit(words.want("pointer")?)?),
            "mss" => {
                self.mss = Some(Expected::Value(match words.want("size")? {
                    "mtu" => Mss::OfMtu,
                    size => Mss::Bytes(fit(size)?),
                }));
            }
            "nomss" => self.mss = Some(Expected::Absent),
            "wscale" => self.wscale = Some(Expected::Value(fit(words.want("shift")?)?)),
            "nowscale" => self.wscale = Some(Expected::Absent),
            "sackok" => self.sackok = Some(true),
            "nosackok" => self.sackok = Some(false),
            "ts" => {
                let value = timestamp(words)?;
                let echo = timestamp(words)?;
                self.timestamps = Some(Expected::Value((value, echo)));
            }
            "nots" => self.timestamps = Some(Expected::Absent),
            "sack" => self.take_blocks(words)?,
            "ect0" => self.ecn = Some(2),
            "ect1" => self.ecn = Some(1),
            "ce" => self.ecn = Some(3),
            "notect" => self.ecn = Some(0),
            "fo" => self.fast_open = Some(Expected::Value(Cookie::parse(words))),
            "foexp" => {
                self.fast_open = Some(Expected::Value(Cookie::parse(words)));
                self.is_experimental = true;
            }
            "nofo" => self.fast_open = Some(Expected::Absent),
            "batch" => self.batch = true,
            _ => return Err(format!("unknown word: {word}")),
        }
        Ok(())
    }

    fn take_blocks(&mut self, words: &mut Words<'_>) -> Outcome<()> {
        while let Some((left, right)) = words.peek().and_then(|word| word.split_once('-')) {
            self.sack.push((fit(left)?, fit(right)?));
            words.next();
        }
        if self.sack.is_empty() {
            return Err("sack without blocks".to_owned());
        }
        Ok(())
    }
}

/// The zero points of one flow's numbers.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    /// Our initial sequence number, once a SYN has shown it.
    pub ours: u32,
    /// The peer's.
    pub peers: u32,
    /// What is to be subtracted from our TSval to have milliseconds of script time.
    pub timestamp: u32,
}

/// What a segment of ours must be, or a message with what differs.
pub fn compare(found: &Segment, wanted: &Described, base: &Base, mss_of_mtu: u16) -> Outcome<()> {
    let mut wrong = Vec::new();
    let mut check = |name: &str, same: bool| {
        if !same {
            wrong.push(name.to_owned());
        }
    };
    let kept = !flags::PSH;
    check("flags", found.flags & kept == wanted.flags & kept);
    let pushed = found.flags & flags::PSH != 0;
    check("PSH", wanted.push.is_none_or(|push| push == pushed));
    let seq = found.seq.wrapping_sub(base.ours);
    let same = wanted.seq.is_none_or(|wanted| wanted == seq);
    check("seq", same && (!wanted.no_seq || found.seq == 0));
    check("len", found.payload_len == wanted.len.unwrap_or(0));
    let ack = found.ack.wrapping_sub(base.peers);
    check("ack", wanted.ack.is_none_or(|wanted| wanted == ack));
    check("win", wanted.window.is_none_or(|w| w == found.window));
    check("urg", wanted.urgent.is_none_or(|u| u == found.urgent));
    check("ecn", wanted.ecn.is_none_or(|e| e == found.tos & 3));
    compare_options(&found.options, wanted, base, mss_of_mtu, &mut check);
    let blocks: Vec<_> = relative_blocks(&found.options, base.peers);
    check("sack", blocks == wanted.sack);
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join(", "))
    }
}

/// What the Fast Open option of a segment of ours must be.
pub fn compare_cookie(found: Option<&FastOpen>, wanted: &Described) -> Outcome<()> {
    let same = match (&wanted.fast_open, found.map(FastOpen::cookie)) {
        (None, _) | (Some(Expected::Absent), None) => true,
        (Some(Expected::Value(Cookie::Bytes(wanted))), Some(found)) => found == wanted,
        (Some(Expected::Value(Cookie::Any)), Some(found)) => !found.is_empty(),
        _ => false,
    };
    let same_form = found.is_none_or(|found| found.is_experimental == wanted.is_experimental);
    if same && (same_form || wanted.fast_open.is_none()) {
        Ok(())
    } else {
        Err(format!("fo {found:?}"))
    }
}

fn compare_options(
    found: &Options,
    wanted: &Described,
    base: &Base,
    mss_of_mtu: u16,
    check: &mut impl FnMut(&str, bool),
) {
    let mss = wanted.mss.is_none_or(|wanted| match wanted {
        Expected::Absent => found.mss.is_none(),
        Expected::Value(Mss::Bytes(bytes)) => found.mss == Some(bytes),
        Expected::Value(Mss::OfMtu) => found.mss == Some(mss_of_mtu),
    });
    check("mss", mss);
    let wscale = wanted.wscale.is_none_or(|wanted| match wanted {
        Expected::Absent => found.window_scale.is_none(),
        Expected::Value(shift) => found.window_scale == Some(shift),
    });
    check("wscale", wscale);
    let sackok = wanted.sackok.is_none_or(|on| on == found.sack_permitted);
    check("sackok", sackok);
    let timestamps = wanted
        .timestamps
        .is_none_or(|wanted| match (wanted, found.timestamps) {
            (Expected::Absent, found) => found.is_none(),
            (Expected::Value(_), None) => false,
            (Expected::Value((value, echo)), Some(found)) => {
                let since = found.value.wrapping_sub(base.timestamp);
                value.is_none_or(|value| value.abs_diff(since) <= 3)
                    && echo.is_none_or(|echo| echo == found.echo)
            }
        });
    check("ts", timestamps);
}

fn relative_blocks(options: &Options, base: u32) -> Vec<(u32, u32)> {
    options
        .sack_blocks()
        .iter()
        .map(|block| {
            (
                block.left.wrapping_sub(base),
                block.right.wrapping_sub(base),
            )
        })
        .collect()
}

/// A segment of ours in the words of a script.
pub fn show(found: &Segment, base: &Base) -> String {
    let mut words: Vec<String> = FLAGS
        .iter()
        .filter(|(_, bit)| found.flags & bit != 0)
        .map(|(name, _)| (*name).to_owned())
        .collect();
    if found.flags & flags::RST != 0 && found.seq == 0 {
        words.push("seq none".to_owned());
    } else {
        words.push(format!("seq {}", found.seq.wrapping_sub(base.ours)));
    }
    if found.payload_len > 0 {
        words.push(format!("len {}", found.payload_len));
    }
    if found.flags & flags::ACK != 0 {
        words.push(format!("ack {}", found.ack.wrapping_sub(base.peers)));
    }
    words.push(format!("win {}", found.window));
    if found.urgent != 0 {
        words.push(format!("urg {}", found.urgent));
    }
    if let Some(mss) = found.options.mss {
        words.push(format!("mss {mss}"));
    }
    if let Some(shift) = found.options.window_scale {
        words.push(format!("wscale {shift}"));
    }
    if found.options.sack_permitted {
        words.push("sackok".to_owned());
    }
    if let Some(Timestamps { value, echo }) = found.options.timestamps {
        words.push(format!("ts {} {echo}", value.wrapping_sub(base.timestamp)));
    }
    let blocks = relative_blocks(&found.options, base.peers);
    if !blocks.is_empty() {
        words.push("sack".to_owned());
        words.extend(blocks.iter().map(|(left, right)| format!("{left}-{right}")));
    }
    words.push(["notect", "ect1", "ect0", "ce"][usize::from(found.tos & 3)].to_owned());
    words.join(" ")
}

/// A segment of ours as an expectation that says all: also what it lacks, but no TSval.
pub fn describe(found: &Segment, base: &Base) -> String {
    let mut text = show(found, base);
    if let Some(Timestamps { value, echo }) = found.options.timestamps {
        let value = value.wrapping_sub(base.timestamp);
        text = text.replace(&format!("ts {value} {echo}"), &format!("ts * {echo}"));
    } else {
        text.push_str(" nots");
    }
    if found.flags & flags::SYN != 0 {
        let lacks = [
            (found.options.mss.is_none(), " nomss"),
            (found.options.window_scale.is_none(), " nowscale"),
            (!found.options.sack_permitted, " nosackok"),
        ];
        lacks
            .iter()
            .filter(|(lacks, _)| *lacks)
            .for_each(|(_, word)| text.push_str(word));
    }
    text
}

/// The bytes of the options of an injected segment.
pub fn option_bytes(said: &Described, base: &Base, timestamps: Option<(u32, u32)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(Expected::Value(Mss::Bytes(size))) = said.mss {
        bytes.extend([2, 4]);
        bytes.extend(size.to_be_bytes());
    }
    if said.sackok == Some(true) {
        bytes.extend([4, 2]);
    }
    if let Some((value, echo)) = timestamps {
        bytes.extend([8, 10]);
        bytes.extend(value.to_be_bytes());
        bytes.extend(echo.to_be_bytes());
    }
    if let Some(Expected::Value(shift)) = said.wscale {
        bytes.extend([3, 3, shift]);
    }
    if !said.sack.is_empty() {
        bytes.extend([5, 2 + 8 * said.sack.len() as u8]);
        for (left, right) in &said.sack {
            let block = SackBlock {
                left: base.ours.wrapping_add(*left),
                right: base.ours.wrapping_add(*right),
            };
            bytes.extend(block.left.to_be_bytes());
            bytes.extend(block.right.to_be_bytes());
        }
    }
    if let Some(Expected::Value(Cookie::Bytes(cookie))) = &said.fast_open {
        if said.is_experimental {
            bytes.extend([254, 4 + cookie.len() as u8, 0xf9, 0x89]);
        } else {
            bytes.extend([34, 2 + cookie.len() as u8]);
        }
        bytes.extend(cookie);
    }
    while bytes.len() % 4 != 0 {
        bytes.push(1);
    }
    bytes
}
