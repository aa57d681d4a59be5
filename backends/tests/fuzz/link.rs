//! Body for what is read of netlink about an interface. Must not panic and must come to an end.

use bypass_backends::netlink::{
    Attached, attached_of, family_of, features_of, function_mac_of, payload, vlan_of,
};

/// The input is the kernel's answer to one request; its message is read as a link, thrice, as a
/// generic family and as a device. How many said something.
pub fn fuzz_link(data: &[u8]) -> usize {
    let Ok(message) = payload(data) else {
        return 0;
    };
    usize::from(attached_of(message) != Attached::Nothing)
        + usize::from(family_of(message).is_some())
        + usize::from(features_of(message).is_some())
        + usize::from(vlan_of(message).is_some())
        + usize::from(function_mac_of(message, 0).is_some())
}
