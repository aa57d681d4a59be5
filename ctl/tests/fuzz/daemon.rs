//! Bodies for what the daemon reads. Must not panic and must come to an end.

use super::netlink::message::{
    LinkInfo, default_rule, errno, messages, parse_address, parse_neighbour, parse_route,
};
use super::proc_text;

/// The input is what the kernel sends over netlink; each message is read as everything. How many
/// there were.
pub fn fuzz_netlink(data: &[u8]) -> usize {
    let mut count = 0;
    for message in messages(data) {
        let _ = errno(&message);
        let _ = LinkInfo::parse(message.body);
        let _ = parse_address(message.body);
        let _ = parse_route(message.body);
        let _ = default_rule(message.body);
        let _ = parse_neighbour(message.body);
        count += 1;
    }
    count
}

/// The input is a file of `/proc`, read as each of them. What was found in it.
pub fn fuzz_proc(data: &[u8]) -> usize {
    let text = String::from_utf8_lossy(data);
    if let Some(stat) = proc_text::stat(&text) {
        assert!(text.contains(stat.name) && !stat.state.is_empty());
    }
    let numbers = ["Uid:", "Gid:", "Groups:", "NSpid:", ""]
        .map(|field| proc_text::numbers(&text, field).len());
    let images = proc_text::mapped(&text, "memfd:bypass-image", "00:01").len();
    usize::from(proc_text::stat(&text).is_some()) + numbers.iter().sum::<usize>() + images
}
