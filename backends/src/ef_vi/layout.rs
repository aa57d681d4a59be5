//! The layout of `struct ef_vi`, release by release.
//!
//! libciul's soname has been the same since 2020 while the structure changed, so no name and no
//! version says which layout a library has: [`super::calibrate`] observes it, and only what agrees
//! with one row of this table as a whole is used.

/// Offsets in bytes of one release, and what else differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The release.
    pub(super) name: &'static str,
    /// Size of the structure.
    pub(super) size: usize,
    /// Bytes of `enum ef_vi_flags`.
    pub(super) flags_bytes: usize,
    pub(super) rx_buffer_len: usize,
    pub(super) rx_prefix_len: usize,
    /// Bytes of the event ring, minus one.
    pub(super) evq_mask: usize,
    /// The transmit queue, which begins with its mask.
    pub(super) txq: usize,
    /// The receive queue, likewise.
    pub(super) rxq: usize,
    /// Pointer to the state.
    pub(super) ep_state: usize,
    pub(super) vi_flags: usize,
    /// Architecture, variant, revision, flags: a byte each.
    pub(super) nic_type: usize,
    /// `ops.transmit`, the first one.
    pub(super) ops: usize,
    /// `ops.transmitv_ctpio`.
    pub(super) transmitv_ctpio: usize,
    pub(super) receive_init: usize,
    pub(super) receive_push: usize,
    pub(super) eventq_poll: usize,
    pub(super) transmit_ctpio_fallback: usize,
    /// Whether `ops.receive_get_timestamp` is there, before the poll.
    pub(super) has_timestamp: bool,
    /// Whether an event ring is told how many events it may have (the last argument of
    /// `ef_vi_init_evq`), and answers so. Others answer what its size leaves.
    pub(super) has_capacity: bool,
    /// In the state: descriptors pushed, added and done, one after the other.
    pub(super) tx_previous: usize,
    pub(super) tx_added: usize,
    pub(super) rx_posted: usize,
    pub(super) rx_added: usize,
    /// `EF_EVENT_TYPE_RX_REF`; `RX_REF_DISCARD` is the next one.
    pub(super) rx_ref: u16,
}

const OF_8_1: Layout = Layout {
    name: "8.1",
    size: 1136,
    flags_bytes: 4,
    rx_buffer_len: 20,
    rx_prefix_len: 24,
    evq_mask: 152,
    txq: 168,
    rxq: 200,
    ep_state: 224,
    vi_flags: 232,
    nic_type: 864,
    ops: 888,
    transmitv_ctpio: 952,
    receive_init: 1024,
    receive_push: 1032,
    eventq_poll: 1040,
    transmit_ctpio_fallback: 1112,
    has_timestamp: false,
    has_capacity: false,
    tx_previous: 32,
    tx_added: 36,
    rx_posted: 56,
    rx_added: 60,
    rx_ref: 15,
};

const OF_9_0_0: Layout = Layout {
    name: "9.0.0",
    size: 1224,
    flags_bytes: 4,
    rx_buffer_len: 16,
    rx_prefix_len: 20,
    evq_mask: 168,
    txq: 184,
    rxq: 224,
    ep_state: 248,
    vi_flags: 256,
    nic_type: 920,
    ops: 952,
    transmitv_ctpio: 1032,
    receive_init: 1104,
    receive_push: 1112,
    eventq_poll: 1128,
    transmit_ctpio_fallback: 1192,
    has_timestamp: true,
    has_capacity: false,
    tx_previous: 32,
    tx_added: 36,
    rx_posted: 64,
    rx_added: 68,
    rx_ref: 14,
};

const OF_9_0_2: Layout = Layout {
    name: "9.0.2",
    size: 1232,
    ..OF_9_0_0
};

const OF_9_1: Layout = Layout {
    name: "9.1",
    size: 1312,
    flags_bytes: 8,
    evq_mask: 152,
    txq: 168,
    rxq: 208,
    ep_state: 232,
    vi_flags: 240,
    nic_type: 976,
    ops: 1016,
    transmitv_ctpio: 1096,
    receive_init: 1168,
    receive_push: 1176,
    eventq_poll: 1192,
    transmit_ctpio_fallback: 1256,
    ..OF_9_0_0
};

const OF_9_2: Layout = Layout {
    name: "9.2",
    size: 1336,
    evq_mask: 152,
    txq: 176,
    rxq: 216,
    ep_state: 240,
    vi_flags: 248,
    nic_type: 992,
    ops: 1032,
    transmitv_ctpio: 1112,
    receive_init: 1184,
    receive_push: 1192,
    eventq_poll: 1208,
    transmit_ctpio_fallback: 1272,
    has_capacity: true,
    tx_previous: 36,
    tx_added: 40,
    ..OF_9_1
};

/// Every release whose layout is known.
pub(super) const LAYOUTS: [Layout; 5] = [OF_8_1, OF_9_0_0, OF_9_0_2, OF_9_1, OF_9_2];

impl Layout {
    /// `ops.transmit_push`.
    pub(super) fn transmit_push(&self) -> usize {
        self.ops + 24
    }

    /// `ops.eventq_prime`.
    #[cfg(test)]
    pub(super) fn eventq_prime(&self) -> usize {
        self.eventq_poll + 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_releases_look_alike() {
        for (at, one) in LAYOUTS.iter().enumerate() {
            for other in &LAYOUTS[at + 1..] {
                assert_ne!(one.size, other.size, "{} and {}", one.name, other.name);
            }
            assert!(one.eventq_prime() < one.size && one.receive_push < one.eventq_poll);
        }
    }
}
