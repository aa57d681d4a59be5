//! Filters in the card: which datagrams and segments are led to our queue.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: hands addresses to the library's setters"
)]

use std::ffi::c_int;

use super::library::{Functions, Specification};
use crate::relay::CardFilter;

fn v4(address: &[u8; 16]) -> Option<u32> {
    let (head, tail) = address.split_last_chunk::<4>()?;
    let is_mapped = *head == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    is_mapped.then(|| u32::from_ne_bytes(*tail))
}

fn port(port: u16) -> c_int {
    port.to_be().into()
}

/// The library's specification of a filter, of frames with the tag of a VLAN if there is one.
///
/// # Errors
/// errno.
pub(super) fn specify(
    filter: &CardFilter,
    vlan: Option<u16>,
    functions: &Functions,
) -> Result<Specification, i32> {
    let mut made = Specification([0; 56]);
    let spec = &raw mut made;
    // SAFETY: writes a specification, which has this size in all releases.
    unsafe { (functions.ef_filter_spec_init)(spec, 0) };
    let (protocol, local) = (c_int::from(filter.protocol), port(filter.local.1));
    let (ours, theirs) = (
        v4(&filter.local.0),
        filter.remote.map(|(ip, port)| (v4(&ip), ip, port)),
    );
    let address = &raw const filter.local.0;
    // SAFETY: an initialised specification; the addresses live for the call.
    let answer = unsafe {
        match (ours, theirs) {
            (Some(ip), None) => (functions.ef_filter_spec_set_ip4_local)(spec, protocol, ip, local),
            (Some(ip), Some((Some(other), _, their_port))) => {
                let remote = port(their_port);
                let set = functions.ef_filter_spec_set_ip4_full;
                set(spec, protocol, ip, local, other, remote)
            }
            (None, None) => {
                (functions.ef_filter_spec_set_ip6_local)(spec, protocol, address, local)
            }
            (None, Some((None, other, their_port))) => {
                let remote = port(their_port);
                let set = functions.ef_filter_spec_set_ip6_full;
                set(spec, protocol, address, local, &raw const other, remote)
            }
            // Two families.
            _ => -22,
        }
    };
    let answer = match (answer, vlan) {
        // SAFETY: an initialised specification.
        (0, Some(id)) => unsafe { (functions.ef_filter_spec_set_vlan)(spec, id.into()) },
        _ => answer,
    };
    match answer {
        0 => Ok(made),
        errno => Err(-errno),
    }
}
