//! Body for what is read of rtnetlink. Must not panic and must come to an end.

use bypass_backends::netlink::{messages, read_part};

use super::rtnetlink::{LinkInfo, default_rule, parse_address, parse_neighbour, parse_route};

/// The input is what the kernel sends over netlink; each message is read as everything. How many
/// there were.
pub fn fuzz_netlink(data: &[u8]) -> usize {
    let mut count = 0;
    for message in messages(data) {
        let _ = message.result();
        let _ = LinkInfo::parse(message.body);
        let _ = parse_address(message.body);
        let _ = parse_route(message.body);
        let _ = default_rule(message.body);
        let _ = parse_neighbour(message.body);
        count += 1;
    }
    let mut given = 0;
    let is_over = read_part(data, |_| given += 1).is_some();
    assert!(given == count || is_over);
    count
}
