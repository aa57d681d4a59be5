//! Patterns that a rule matches with: program globs, address prefixes with port ranges, users.
//!
//! Addresses are 16 bytes, IPv4 as v4-mapped IPv6, all zero for "any" of both families; ports are
//! in host order. Every pattern reads from and prints as the text of the configuration file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes before the IPv4 address in a v4-mapped address.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
/// Bits of [`MAPPED`].
const MAPPED_BITS: u8 = 96;

/// An address and a port as a socket has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// IPv6, or v4-mapped IPv4; all zero = any address.
    pub ip: [u8; 16],
    /// Host order; 0 = not fixed yet.
    pub port: u16,
}

impl Address {
    /// Any address, port 0.
    pub const ANY: Self = Self {
        ip: [0; 16],
        port: 0,
    };

    /// An address and a port; 0.0.0.0 and :: both become "any".
    #[must_use]
    pub fn new(ip: IpAddr, port: u16) -> Self {
        Self {
            ip: mapped(ip),
            port,
        }
    }

    /// Whether the address is "any".
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.ip == [0; 16]
    }

    /// The IPv4 address, if it is one.
    #[must_use]
    pub fn v4(&self) -> Option<[u8; 4]> {
        v4_of(&self.ip)
    }

    /// Whether the address is in 127.0.0.0/8 or is ::1.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.v4() {
            Some([first, ..]) => first == 127,
            None => u128::from_be_bytes(self.ip) == 1,
        }
    }

    /// Whether the address is an IPv4 or IPv6 multicast address.
    #[must_use]
    pub fn is_multicast(&self) -> bool {
        match self.v4() {
            Some([first, ..]) => first & 0xf0 == 0xe0,
            None => self.ip[0] == 0xff,
        }
    }

    /// Whether the address is 255.255.255.255. A subnet's own broadcast address cannot be told
    /// from here.
    #[must_use]
    pub fn is_broadcast(&self) -> bool {
        self.v4() == Some([255; 4])
    }
}

impl fmt::Display for Address {
    /// `198.18.0.1:53`, `[2001:db8::1]:53`, `*:53`, `*:*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            f.write_str("*")?;
        } else if let Some(v4) = self.v4() {
            write!(f, "{}", Ipv4Addr::from(v4))?;
        } else {
            write!(f, "[{}]", Ipv6Addr::from(self.ip))?;
        }
        match self.port {
            0 => f.write_str(":*"),
            port => write!(f, ":{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = PatternError;

    /// Reads what [`fmt::Display`] prints: an address without a prefix, with or without a port.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (prefix, port) = split_ports(text)?;
        let prefix: Prefix = prefix.parse()?;
        let port = match port {
            None | Some("*" | "0") => Some(0),
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|ports: &PortRange| ports.first == ports.last)
                .map(|ports| ports.first),
        };
        let (Some(port), true) = (port, prefix.bits == 128 || prefix == Prefix::EVERYTHING) else {
            return Err(PatternError(
                "expected one address and one port, as in 198.18.0.1:53",
            ));
        };
        let any_v4 = prefix.ip == mapped_bytes([0; 4]);
        Ok(Self {
            ip: if any_v4 { [0; 16] } else { prefix.ip },
            port,
        })
    }
}

/// Why a text is no pattern: a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternError(pub &'static str);

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for PatternError {}

/// An address prefix and a port range: `address[/prefix][:port[-port]]`, `*` for any address.
///
/// An IPv6 address that a port follows stands in brackets: `[2001:db8::]/32:53`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressPattern {
    prefix: Prefix,
    ports: PortRange,
}

impl AddressPattern {
    /// Whether the pattern takes this address. "Any" (a socket bound to no address) is taken only
    /// by a prefix of length 0 and by `0.0.0.0` and `::`, port 0 (not fixed yet) only by a pattern
    /// without ports.
    #[must_use]
    pub fn matches(&self, address: &Address) -> bool {
        self.prefix.matches(&address.ip) && self.ports.matches(address.port)
    }
}

impl FromStr for AddressPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (prefix, ports) = split_ports(text)?;
        let ports = match ports {
            None | Some("*") => PortRange::ALL,
            Some(ports) => ports.parse()?,
        };
        Ok(Self {
            prefix: prefix.parse()?,
            ports,
        })
    }
}

impl fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.prefix.fmt(f)?;
        if self.ports == PortRange::ALL {
            Ok(())
        } else {
            write!(f, ":{}", self.ports)
        }
    }
}

impl TryFrom<String> for AddressPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<AddressPattern> for String {
    fn from(pattern: AddressPattern) -> Self {
        pattern.to_string()
    }
}

/// Splits the ports off: behind the last colon outside brackets, unless the text is a bare IPv6
/// address.
fn split_ports(text: &str) -> Result<(&str, Option<&str>), PatternError> {
    if let Some(end) = text.rfind(']') {
        return match text.get(end..).and_then(|tail| tail.find(':')) {
            Some(colon) => Ok((&text[..end + colon], text.get(end + colon + 1..))),
            None => Ok((text, None)),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, tail)) if tail.contains(':') => Ok((text, None)),
        Some((head, tail)) => Ok((head, Some(tail))),
    }
}

/// An address prefix of 0 to 128 bits (an IPv4 prefix of n bits is 96 + n).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    ip: [u8; 16],
    bits: u8,
}

impl Prefix {
    /// `*`: every address of both families.
    const EVERYTHING: Self = Self {
        ip: [0; 16],
        bits: 0,
    };

    fn matches(&self, ip: &[u8; 16]) -> bool {
        if *ip == [0; 16] {
            // "Any" of both families: itself, or the whole of either family.
            let zero = self.ip == [0; 16] || self.ip == mapped_bytes([0; 4]);
            return zero || self.is_whole_v6();
        }
        if self.is_whole_v6() {
            return v4_of(ip).is_none();
        }
        let differing = u128::from_be_bytes(self.ip) ^ u128::from_be_bytes(*ip);
        differing.leading_zeros() >= u32::from(self.bits)
    }

    /// `::/0` is told from `*` by its address, which no address has: ::ffff:0.0.0.0 is IPv4's.
    const WHOLE_V6: Self = Self {
        ip: [0xff; 16],
        bits: 0,
    };

    fn is_whole_v6(&self) -> bool {
        *self == Self::WHOLE_V6
    }
}

impl FromStr for Prefix {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" || text.is_empty() {
            return Ok(Self::EVERYTHING);
        }
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address = match address.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').unwrap_or(address),
            None => address,
        };
        let ip: IpAddr = address.parse().map_err(|_| {
            PatternError("not an address: expected IPv4, IPv6 ([…] before a port) or *")
        })?;
        let (width, base) = if ip.is_ipv4() {
            (32, MAPPED_BITS)
        } else {
            (128, 0)
        };
        let length: u8 = match length {
            None => width,
            Some(digits) => number(digits)
                .and_then(|length| u8::try_from(length).ok())
                .filter(|length| *length <= width)
                .ok_or(PatternError(
                    "the prefix length is 0 to 32 (IPv4) or 0 to 128 (IPv6)",
                ))?,
        };
        if length == 0 && ip.is_ipv6() {
            return Ok(Self::WHOLE_V6);
        }
        let ip = match ip {
            IpAddr::V4(v4) => mapped_bytes(v4.octets()),
            IpAddr::V6(v6) => v6.octets(),
        };
        let bits = base + length;
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        if u128::from_be_bytes(ip) & !mask != 0 {
            return Err(PatternError(
                "the address has bits set behind its prefix length",
            ));
        }
        Ok(Self { ip, bits })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::EVERYTHING {
            return f.write_str("*");
        }
        if self.is_whole_v6() {
            return f.write_str("[::]/0");
        }
        match v4_of(&self.ip) {
            Some(v4) if self.bits == 128 => write!(f, "{}", Ipv4Addr::from(v4)),
            Some(v4) if self.bits >= MAPPED_BITS => {
                write!(f, "{}/{}", Ipv4Addr::from(v4), self.bits - MAPPED_BITS)
            }
            _ if self.bits == 128 => write!(f, "[{}]", Ipv6Addr::from(self.ip)),
            _ => write!(f, "[{}]/{}", Ipv6Addr::from(self.ip), self.bits),
        }
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    fn matches(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |digits| number(digits).and_then(|port| u16::try_from(port).ok());
        match (port(first), port(last)) {
            (Some(first), Some(last)) if 0 < first && first <= last => Ok(Self { first, last }),
            (Some(_), Some(_)) => Err(PatternError("ports are 1 to 65535, the lower one first")),
            _ => Err(PatternError(
                "not a port or a range of ports such as 80-443",
            )),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A program or interface name with `?` (one character) and `*` (any run of characters).
///
/// For programs: with a slash it is compared with the whole path, without with the file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob(String);

impl Glob {
    /// Whether the whole text fits the pattern.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        glob_matches(self.0.as_bytes(), text.as_bytes())
    }

    /// Whether a program of this path (or bare name) fits.
    #[must_use]
    pub fn matches_program(&self, path: &str) -> bool {
        self.matches(if self.0.contains('/') {
            path
        } else {
            file_name(path)
        })
    }

    /// The pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Glob {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError("an empty name matches nothing"));
        }
        Ok(Self(text))
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.0
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The part of a path behind its last slash.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Matches byte by byte; on a mismatch it returns to the last `*` and lets that take one more, so
/// the time is at most pattern length × text length.
fn glob_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, from));
                at += 1;
            }
            Some(b'?') => {
                at += 1;
                from = next_character(text, from);
            }
            Some(byte) if Some(byte) == text.get(from) => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((after, taken)) = star else {
                    return false;
                };
                star = Some((after, taken + 1));
                (at, from) = (after, taken + 1);
            }
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

/// Start of the character behind the one at `from` (UTF-8 continuation bytes are skipped).
fn next_character(text: &[u8], from: usize) -> usize {
    let tail = text.iter().skip(from + 1);
    from + 1 + tail.take_while(|byte| **byte & 0xc0 == 0x80).count()
}

/// Whether a rule's user (name or decimal number) is this one.
pub(super) fn same_user(wanted: &str, uid: u32, name: Option<&str>) -> bool {
    name == Some(wanted) || number(wanted) == Some(uid)
}

/// A decimal number without sign or spaces.
fn number(digits: &str) -> Option<u32> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

fn mapped_bytes(v4: [u8; 4]) -> [u8; 16] {
    let mut ip = [0; 16];
    ip[..12].copy_from_slice(&MAPPED);
    ip[12..].copy_from_slice(&v4);
    ip
}

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => [0; 16],
        IpAddr::V4(v4) => mapped_bytes(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn v4_of(ip: &[u8; 16]) -> Option<[u8; 4]> {
    if ip.starts_with(&MAPPED) {
        ip.last_chunk::<4>().copied()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(pattern: &str) -> Glob {
        Glob::try_from(pattern.to_owned()).expect("a pattern")
    }

    #[test]
    fn globs_match_names_and_paths() {
        for (pattern, path, fits) in [
            ("nginx", "/usr/sbin/nginx", true),
            ("nginx", "nginx", true),
            ("nginx", "/usr/sbin/nginx2", false),
            ("ng*x", "/usr/sbin/nginx", true),
            ("n?inx", "nginx", true),
            ("n?inx", "ninx", false),
            ("*", "/any/thing", true),
            ("/opt/*/bin/*", "/opt/a/b/bin/server", true),
            ("/opt/*/bin/*", "/usr/bin/server", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("caf?", "café", true),
            ("**", "x", true),
        ] {
            assert_eq!(
                glob(pattern).matches_program(path),
                fits,
                "{pattern} on {path}"
            );
        }
    }

    #[test]
    fn address_patterns_match() {
        let at = |text: &str| text.parse::<Address>().expect(text);
        for (pattern, address, fits) in [
            ("0.0.0.0/0:80-443", "198.18.0.1:80", true),
            ("0.0.0.0/0:80-443", "198.18.0.1:444", false),
            ("0.0.0.0/0:80-443", "*:80", true),
            ("0.0.0.0/0", "[fd00::1]:80", false),
            ("[::]/0", "[fd00::1]:80", true),
            ("::/0", "198.18.0.1:80", false),
            ("::/0", "*:80", true),
            ("*:53", "[fd00::1]:53", true),
            (":53", "198.18.0.1:53", true),
            ("198.18.0.0/15", "198.19.255.255:1", true),
            ("198.18.0.0/15", "198.20.0.0:1", false),
            ("198.18.0.0/15", "*:1", false),
            ("0.0.0.0:53", "*:53", true),
            ("0.0.0.0:53", "198.18.0.1:53", false),
            ("64:ff9b::/96", "*:53", false),
            ("198.18.0.1:53", "198.18.0.1", false),
            ("198.18.0.1", "198.18.0.1", true),
            ("[2001:db8::]/32:53", "[2001:db8:1::1]:53", true),
            ("2001:db8::/32", "[2001:db9::1]:53", false),
        ] {
            let parsed: AddressPattern = pattern.parse().expect(pattern);
            assert_eq!(parsed.matches(&at(address)), fits, "{pattern} on {address}");
            let again: AddressPattern = parsed.to_string().parse().expect("printed form");
            assert_eq!(again, parsed, "{pattern} prints as {parsed}");
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for text in [
            "198.18.0",
            "198.18.0.1/33",
            "fd00::/129",
            "198.18.0.1:0",
            "198.18.0.1:9-3",
            "198.18.0.1:65536",
            "198.18.0.1:x",
            "[fd00::1",
            "eth0",
            "198.18.0.1/15",
            "1.2.3.4:+5",
            "[1.2.3.4]x:5",
            "198.18.0.1:",
        ] {
            assert!(text.parse::<AddressPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_classified() {
        let at = |text: &str| text.parse::<Address>().expect(text);
        assert!(at("127.1.2.3:1").is_loopback() && at("[::1]:1").is_loopback());
        assert!(at("224.0.0.1:1").is_multicast() && at("[ff02::1]:1").is_multicast());
        assert!(at("255.255.255.255:1").is_broadcast() && !at("*:1").is_loopback());
        assert_eq!(at("0.0.0.0:53"), at("[::]:53"));
        assert_eq!(at("*:53").to_string(), "*:53");
        assert_eq!(Address::ANY.to_string(), "*:*");
    }
}
