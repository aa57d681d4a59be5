//! RSS table and rules (ntuple) of a card, by ethtool's ioctl; linux/ethtool.h has the structures.
//!
//! `struct ethtool_rxnfc` is 192 bytes: command, flow type, data, then the rule at 16: flow type,
//! what is matched at 20, its mask at 92 (both of 52 bytes and 20 more, of VLAN and MAC address),
//! the queue at 168 and the location at 176. The queue has 64 bits: the upper half names a function
//! of the card. Netlink has no rules (6.18).

use rustix::io::Errno;

use super::netdev;
use super::own_queue::{Card, Destination, Rule};

const ETHTOOL_GRXCLSRLCNT: u32 = 0x2e;
const ETHTOOL_GRXCLSRULE: u32 = 0x2f;
const ETHTOOL_GRXCLSRLALL: u32 = 0x30;
const ETHTOOL_SRXCLSRLDEL: u32 = 0x31;
const ETHTOOL_SRXCLSRLINS: u32 = 0x32;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
const ETHTOOL_SRXFHINDIR: u32 = 0x39;
/// `RX_CLS_LOC_SPECIAL`, in the data of a count: the driver picks places.
const PICKS_PLACES: u32 = 0x8000_0000;
/// `RX_CLS_LOC_ANY`.
const ANY_PLACE: u32 = 0xffff_ffff;
/// Most entries of a table that is believed.
const LARGEST_TABLE: u32 = 4096;
/// Most rules of a card that are believed.
const MOST_RULES: u32 = 65536;

const TCP_V4_FLOW: u32 = 1;
const UDP_V4_FLOW: u32 = 2;
const TCP_V6_FLOW: u32 = 5;
const UDP_V6_FLOW: u32 = 6;
/// In a flow type: VLAN and the like may be matched. Some drivers say it always (ixgbe).
const FLOW_EXT: u32 = 0x8000_0000;
/// What an IPv4 address begins with here.
const V4: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
const TCP: u8 = 6;
const UDP: u8 = 17;

const DATA: usize = 8;
const FLOW: usize = 16;
const MATCHED: usize = 20;
const MASK: usize = 92;
const MASK_BYTES: usize = 72;
const QUEUE: usize = 168;
const LOCATION: usize = 176;
const COUNT: usize = 184;
/// Of the locations that follow a request for all rules.
const LOCATIONS: usize = 188;
const RXNFC: usize = 192;

/// An interface's.
#[derive(Debug)]
pub(crate) struct Ntuple {
    name: String,
}

impl Ntuple {
    pub(crate) fn new(name: &str) -> Self {
        let name = name.to_owned();
        Self { name }
    }

    fn call(&self, command: u32, buffer: &mut [u8]) -> Result<(), Errno> {
        put(buffer, 0, command);
        netdev::ethtool_call(&netdev::query_socket()?, &self.name, buffer)
    }

    /// How many rules there are, and whether the driver picks places.
    fn count(&self) -> Result<(u32, bool), Errno> {
        let mut request = [0; RXNFC];
        self.call(ETHTOOL_GRXCLSRLCNT, &mut request)?;
        let picks = netdev::word(&request, DATA) & PICKS_PLACES != 0;
        Ok((netdev::word(&request, COUNT).min(MOST_RULES), picks))
    }

    /// The places that are taken, and how many there are.
    fn places(&self) -> Result<(Vec<u32>, u32), Errno> {
        let (count, _) = self.count()?;
        let mut request = vec![0; LOCATIONS + 4 * count.max(1) as usize];
        put(&mut request, COUNT, count);
        self.call(ETHTOOL_GRXCLSRLALL, &mut request)?;
        let count = netdev::word(&request, COUNT).min(count) as usize;
        let place = |index: usize| netdev::word(&request, LOCATIONS + 4 * index);
        let all = netdev::word(&request, DATA).min(MOST_RULES);
        Ok(((0..count).map(place).collect(), all))
    }

    /// A place for a new rule: the driver's choice, or the last one that is free.
    fn place(&self) -> Result<u32, Errno> {
        if self.count()?.1 {
            return Ok(ANY_PLACE);
        }
        let (taken, all) = self.places()?;
        free_place(&taken, all)
    }

    /// What is kept in a place and leads there; `Some(None)` when it is no [`Rule`].
    fn led(&self, location: u32, to: Destination) -> Option<Option<Rule>> {
        let mut answer = [0; RXNFC];
        put(&mut answer, LOCATION, location);
        self.call(ETHTOOL_GRXCLSRULE, &mut answer).ok()?;
        leads_to(&answer, to).then(|| read(&answer))
    }
}

/// The last of so many places that is not taken. A card that tells of no places refuses the first
/// one in words of its own.
fn free_place(taken: &[u32], all: u32) -> Result<u32, Errno> {
    let mut is_free = vec![true; all.max(1) as usize];
    for place in taken {
        if let Some(it) = is_free.get_mut(*place as usize) {
            *it = false;
        }
    }
    let last = is_free.iter().rposition(|it| *it);
    last.map(|place| place as u32).ok_or(Errno::NOSPC)
}

impl Card for Ntuple {
    fn table(&self) -> Result<Vec<u32>, Errno> {
        let mut head = [0; 8];
        self.call(ETHTOOL_GRXFHINDIR, &mut head)?;
        let size = netdev::word(&head, 4).min(LARGEST_TABLE);
        let mut request = vec![0; 8 + 4 * size as usize];
        put(&mut request, 4, size);
        self.call(ETHTOOL_GRXFHINDIR, &mut request)?;
        let entry = |index: usize| netdev::word(&request, 8 + 4 * index);
        Ok((0..size as usize).map(entry).collect())
    }

    fn set_table(&self, table: &[u32]) -> Result<(), Errno> {
        let mut request = vec![0; 8 + 4 * table.len()];
        put(&mut request, 4, table.len() as u32);
        for (index, queue) in table.iter().enumerate() {
            put(&mut request, 8 + 4 * index, *queue);
        }
        self.call(ETHTOOL_SRXFHINDIR, &mut request)
    }

    fn insert(&self, rule: &Rule, to: Destination) -> Result<u32, Errno> {
        let mut request = written(rule, to, self.place()?);
        self.call(ETHTOOL_SRXCLSRLINS, &mut request)?;
        Ok(netdev::word(&request, LOCATION))
    }

    fn remove(&self, location: u32) {
        let mut request = [0; RXNFC];
        put(&mut request, LOCATION, location);
        // One that is not there is no matter.
        let _ = self.call(ETHTOOL_SRXCLSRLDEL, &mut request);
    }

    fn has(&self, location: u32, rule: &Rule, to: Destination) -> bool {
        self.led(location, to) == Some(Some(*rule))
    }

    fn rules(&self, to: Destination) -> Vec<(u32, Option<Rule>)> {
        let (places, _) = self.places().unwrap_or_default();
        let led = |location| Some((location, self.led(location, to)?));
        places.into_iter().filter_map(led).collect()
    }
}

/// Whether a rule leads there.
fn leads_to(rule: &[u8; RXNFC], to: Destination) -> bool {
    rule[QUEUE..QUEUE + 8] == to.to_ne_bytes()
}

/// The rule that the kernel tells, when it matches what [`written`] writes and no more.
fn read(answer: &[u8; RXNFC]) -> Option<Rule> {
    let (protocol, length) = match netdev::word(answer, FLOW) & !FLOW_EXT {
        TCP_V4_FLOW => (TCP, 4),
        UDP_V4_FLOW => (UDP, 4),
        TCP_V6_FLOW => (TCP, 16),
        UDP_V6_FLOW => (UDP, 16),
        _ => return None,
    };
    let end = |address: usize, port: usize| {
        let matched = &answer[MATCHED..];
        let mut ip = [0; 16];
        ip[..12].copy_from_slice(&V4);
        ip[16 - length..].copy_from_slice(&matched[address..][..length]);
        (ip, u16::from_be_bytes([matched[port], matched[port + 1]]))
    };
    let (local, remote) = (end(length, 2 * length + 2), end(0, 2 * length));
    let rules = [None, Some(remote)].map(|remote| Rule {
        protocol,
        local,
        remote,
    });
    let mask = MASK..MASK + MASK_BYTES;
    let is_it = |rule: &Rule| written(rule, 0, 0)[mask.clone()] == answer[mask.clone()];
    rules.into_iter().find(is_it)
}

/// The request that enters a rule.
fn written(rule: &Rule, to: Destination, location: u32) -> [u8; RXNFC] {
    let (local, _) = &rule.local;
    let is_v4 = local.starts_with(&V4);
    let kind = match (is_v4, rule.protocol == TCP) {
        (true, true) => TCP_V4_FLOW,
        (true, false) => UDP_V4_FLOW,
        (false, true) => TCP_V6_FLOW,
        (false, false) => UDP_V6_FLOW,
    };
    // Source address, destination address, source port, destination port; the sender is the other.
    let length = if is_v4 { 4 } else { 16 };
    let mut request = [0; RXNFC];
    put(&mut request, FLOW, kind);
    let mut matches = |end: &([u8; 16], u16), address: usize, port: usize| {
        let bytes = &end.0[16 - length..];
        let parts = [(address, bytes), (port, &end.1.to_be_bytes()[..])];
        for (at, bytes) in parts {
            request[MATCHED + at..][..bytes.len()].copy_from_slice(bytes);
            request[MASK + at..][..bytes.len()].fill(0xff);
        }
    };
    matches(&rule.local, length, 2 * length + 2);
    if let Some(remote) = &rule.remote {
        matches(remote, 0, 2 * length);
    }
    request[QUEUE..QUEUE + 8].copy_from_slice(&to.to_ne_bytes());
    put(&mut request, LOCATION, location);
    request
}

fn put(buffer: &mut [u8], at: usize, value: u32) {
    if let Some(place) = buffer.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::own_queue::of_function;
    use super::*;

    fn mapped(last: [u8; 4]) -> [u8; 16] {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&last);
        address
    }

    /// Offsets of `struct ethtool_rx_flow_spec`: by a C program over linux/ethtool.h.
    #[test]
    fn a_rule_is_written_where_the_kernel_reads_it() {
        let rule = Rule {
            protocol: 17,
            local: (mapped([198, 18, 0, 1]), 53),
            remote: Some((mapped([198, 18, 0, 2]), 0x1234)),
        };
        let request = written(&rule, 3, 7);
        assert_eq!(netdev::word(&request, 16), 2);
        assert_eq!(
            request[20..32],
            [198, 18, 0, 2, 198, 18, 0, 1, 0x12, 0x34, 0, 53]
        );
        assert_eq!(request[92..104], [0xff; 12]);
        assert_eq!(
            (netdev::word(&request, 168), netdev::word(&request, 176)),
            (3, 7)
        );
        let any = written(
            &Rule {
                remote: None,
                ..rule
            },
            3,
            7,
        );
        assert_eq!(any[92..96], [0; 4]);
        assert_eq!(any[96..104], [255, 255, 255, 255, 0, 0, 255, 255]);
        let six = Rule {
            protocol: 6,
            local: ([0x20; 16], 80),
            remote: None,
        };
        let request = written(&six, 1, 0);
        assert_eq!(netdev::word(&request, 16), 5);
        assert_eq!(request[36..52], [0x20; 16]);
        assert_eq!(request[52..56], [0, 0, 0, 80]);
        assert_eq!(request[108..124], [0xff; 16]);
    }

    #[test]
    fn a_rule_is_read_as_it_was_written_and_another_is_none_of_ours() {
        let ends = [(mapped([198, 18, 0, 1]), 53), ([0x20; 16], 80)];
        for (local, protocol) in ends.into_iter().flat_map(|end| [(end, TCP), (end, UDP)]) {
            for remote in [None, Some((local.0, 0x1234))] {
                let rule = Rule {
                    protocol,
                    local,
                    remote,
                };
                let mut told = written(&rule, 3, 7);
                assert!(leads_to(&told, 3) && !leads_to(&told, 2));
                assert_eq!(read(&told), Some(rule));
                told[QUEUE + 4] = 1;
                assert!(!leads_to(&told, 3), "a queue of a virtual function");
                assert!(leads_to(&told, of_function(0) | 3));
                let kind = netdev::word(&told, FLOW);
                put(&mut told, FLOW, kind | FLOW_EXT);
                assert_eq!(read(&told), Some(rule));
                put(&mut told, FLOW, kind | 0x2000_0000);
                assert_eq!(read(&told), None, "FLOW_RSS");
                put(&mut told, FLOW, kind);
                for byte in [MASK + MASK_BYTES - 1, MASK + 144 - 92, MASK] {
                    let was = told[byte];
                    told[byte] = 0x0f;
                    assert_eq!(read(&told), None, "byte {byte}");
                    told[byte] = was;
                }
            }
        }
    }

    #[test]
    fn a_rule_gets_a_place_that_is_free() {
        assert_eq!(free_place(&[], 16), Ok(15));
        assert_eq!(free_place(&[15, 13], 16), Ok(14));
        assert_eq!(free_place(&[15, 99], 16), Ok(14));
        assert_eq!(free_place(&[1, 0], 2), Err(Errno::NOSPC));
        assert_eq!(free_place(&[], 0), Ok(0));
    }

    #[test]
    fn loopback_has_neither_rules_nor_table() {
        let card = Ntuple::new("lo");
        let rule = Rule {
            protocol: 17,
            local: (mapped([127, 0, 0, 1]), 9),
            remote: None,
        };
        assert!(card.insert(&rule, 0).is_err() && card.table().is_err());
        assert!(card.set_table(&[]).is_err() && card.rules(0).is_empty());
    }
}
