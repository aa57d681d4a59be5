//! Body for the control buffer of a send. Must not panic and must come to an end.

use super::asked::read;

/// The input is a control buffer. How many things it asks for.
pub fn fuzz_control(data: &[u8]) -> usize {
    let asked = read(data);
    usize::from(asked.source.is_some())
        + usize::from(asked.ifindex != 0)
        + usize::from(asked.gso_size.is_some())
        + usize::from(asked.foreign)
}
