//! Bodies for what `bypassctl doctor` reads. Must not panic and must come to an end.

use super::netlink::{link, read, table_of};

/// The input is one datagram of a netlink dump; each message is read as a link and as an nftables
/// rule. How many said something.
pub fn fuzz_dump(data: &[u8]) -> usize {
    let mut count = 0;
    let _ = read(data, &mut |_, body| {
        count += usize::from(link(body).is_some()) + usize::from(table_of(body).is_some());
    });
    count
}
