//! The layout of `struct ef_vi`, release by release, as data.
//!
//! Kept apart from the backend's own table on purpose: what one of them has wrong, the other one
//! shows.

/// Slots of `ops` that this stand-in serves, by their number in the newest release.
pub(crate) mod slot {
    pub(crate) const TRANSMIT: usize = 0;
    pub(crate) const TRANSMIT_PUSH: usize = 3;
    pub(crate) const TRANSMITV_CTPIO: usize = 10;
    pub(crate) const RECEIVE_INIT: usize = 19;
    pub(crate) const RECEIVE_PUSH: usize = 20;
    pub(crate) const RECEIVE_GET_TIMESTAMP: usize = 21;
    pub(crate) const EVENTQ_POLL: usize = 22;
    pub(crate) const EVENTQ_PRIME: usize = 23;
    pub(crate) const EVENTQ_HAS_MANY_EVENTS: usize = 29;
    pub(crate) const TRANSMIT_CTPIO_FALLBACK: usize = 30;
    /// In the newest release only; holds [`EVENTQ_POLL`]'s function once more.
    pub(crate) const FUTURE_EVENTQ_POLL: usize = 34;
    /// No slot of any release.
    pub(crate) const NOBODYS: usize = 99;
}

/// One release. Offsets in bytes.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    pub(crate) version: &'static std::ffi::CStr,
    pub(crate) size: usize,
    pub(crate) flags_bytes: usize,
    pub(crate) rx_buffer_len: usize,
    pub(crate) rx_prefix_len: usize,
    pub(crate) evq_mask: usize,
    pub(crate) txq: usize,
    pub(crate) rxq: usize,
    pub(crate) ep_state: usize,
    pub(crate) vi_flags: usize,
    pub(crate) vi_qs: usize,
    pub(crate) nic_type: usize,
    pub(crate) ops: usize,
    /// Which slots there are, in their order.
    pub(crate) slots: &'static [usize],
    pub(crate) tx_previous: usize,
    pub(crate) tx_added: usize,
    pub(crate) rx_posted: usize,
    pub(crate) rx_added: usize,
    pub(crate) rx_ref: u16,
    /// Whether an event ring is told how many events it may have.
    pub(crate) has_capacity: bool,
}

const ALL: [usize; 35] = {
    let mut all = [0; 35];
    let mut at = 0;
    while at < 35 {
        all[at] = at;
        at += 1;
    }
    all
};

/// 30 slots; three of them are nobody's.
const OF_8_1: [usize; 30] = [
    0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 99,
    99, 99, 30, 31,
];

/// One op more before the poll.
const OF_THE_FUTURE: [usize; 36] = {
    let mut slots = [0; 36];
    let mut at = 0;
    while at < 36 {
        slots[at] = match at {
            0..20 => at,
            20 => slot::NOBODYS,
            _ => at - 1,
        };
        at += 1;
    }
    slots
};

const NEWEST: Layout = Layout {
    name: "9.2",
    version: c" master ef_vi",
    size: 1336,
    flags_bytes: 8,
    rx_buffer_len: 16,
    rx_prefix_len: 20,
    evq_mask: 152,
    txq: 176,
    rxq: 216,
    ep_state: 240,
    vi_flags: 248,
    vi_qs: 280,
    nic_type: 992,
    ops: 1032,
    slots: &ALL,
    tx_previous: 36,
    tx_added: 40,
    rx_posted: 64,
    rx_added: 68,
    rx_ref: 14,
    has_capacity: true,
};

const OF_9_0_2: Layout = Layout {
    name: "9.0.2",
    version: c"9.0.2.140 ef_vi",
    size: 1232,
    flags_bytes: 4,
    evq_mask: 168,
    txq: 184,
    rxq: 224,
    ep_state: 248,
    vi_flags: 256,
    vi_qs: 272,
    nic_type: 920,
    ops: 952,
    slots: ALL.split_at(33).0,
    tx_previous: 32,
    tx_added: 36,
    has_capacity: false,
    ..NEWEST
};

const OF_9_1: Layout = Layout {
    name: "9.1",
    version: c"9.1.0.0 ef_vi",
    size: 1312,
    txq: 168,
    rxq: 208,
    ep_state: 232,
    vi_flags: 240,
    vi_qs: 264,
    nic_type: 976,
    ops: 1016,
    slots: ALL.split_at(34).0,
    tx_previous: 32,
    tx_added: 36,
    has_capacity: false,
    ..NEWEST
};

/// Every layout that `FAKE_CIUL_LAYOUT` knows. The last two were never released.
pub(crate) static LAYOUTS: [Layout; 7] = [
    Layout {
        name: "8.1",
        version: c"8.1.3.40 ef_vi",
        size: 1136,
        flags_bytes: 4,
        rx_buffer_len: 20,
        rx_prefix_len: 24,
        evq_mask: 152,
        txq: 168,
        rxq: 200,
        ep_state: 224,
        vi_flags: 232,
        vi_qs: 248,
        nic_type: 864,
        ops: 888,
        slots: &OF_8_1,
        tx_previous: 32,
        tx_added: 36,
        rx_posted: 56,
        rx_added: 60,
        rx_ref: 15,
        has_capacity: false,
    },
    Layout {
        name: "9.0.0",
        version: c"9.0.0.45 ef_vi",
        size: 1224,
        slots: ALL.split_at(32).0,
        ..OF_9_0_2
    },
    OF_9_0_2,
    OF_9_1,
    NEWEST,
    Layout {
        name: "future",
        version: c"10.1.0.7 ef_vi",
        size: 1344,
        slots: &OF_THE_FUTURE,
        ..NEWEST
    },
    Layout {
        name: "torn",
        version: c"9.1.0.1 ef_vi",
        size: 1312,
        slots: ALL.split_at(34).0,
        ..NEWEST
    },
];
