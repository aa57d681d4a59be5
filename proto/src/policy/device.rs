//! Devices that a backend drives in a process of its own: what is no interface of the kernel until
//! it makes one of it, or a card whose interface stays the kernel's.
//!
//! ```toml
//! [[device]]
//! name    = "vf0"                    # the interface that the kernel gets for it
//! backend = "dpdk"
//! devargs = "0000:01:10.0"           # PCI address, or a virtual device: "net_af_packet0,iface=eth1"
//! # physical_rules = true            # rules at its physical function lead here too
//!
//! [[device]]
//! name    = "eth1"                   # an interface that there is: of a Solarflare or AMD card
//! backend = "ef_vi"                  # which it is without this; "af_xdp" = it is not to be
//!
//! [[device]]
//! name    = "eth2"                   # an interface that AF_XDP serves in another way
//! backend = "af_xdp"
//! zero_copy = true
//! own_queue = true
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Backend;

/// A `[[device]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Name of its interface in the kernel: its addresses and routes are set there.
    pub name: String,
    /// What drives it: `dpdk`, `ef_vi`, or `af_xdp`, of a card that ef_vi would drive or one with
    /// more to say of it.
    pub backend: Backend,
    /// The device in DPDK's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub devargs: String,
    /// More arguments for DPDK's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eal: Vec<String>,
    /// Of DPDK, a virtual function: rules at its physical one (`ethtool -N … vf N`) lead the
    /// stack's flows to it, if that can, also those for the other's MAC address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub physical_rules: bool,
    /// Of ef_vi: the library; `None` = libciul.so.1 from where libraries are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
    /// Of ef_vi: the card says when each frame has come (SO_TIMESTAMPING), if it can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timestamps: bool,
    /// Of AF_XDP: the driver uses the stack's memory, if it can, for all frames of the interface.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_copy: bool,
    /// Of ef_vi: over how many queues the card spreads the flows (a set of VIs); `None` = one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u32>,
    /// Of AF_XDP: rules in the card lead the stack's flows to a queue that RSS passes by, if it
    /// can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_queue: bool,
    /// The plugin; `None` = the one beside `bypassctl`, or wherever libraries are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<PathBuf>,
}

/// Most queues of a card: each has its packet memory, and is looked at in turn by one thread.
const MOST_QUEUES: u32 = 16;

impl Device {
    /// What is wrong with it, if anything. `earlier` are those before it.
    pub(super) fn check(&self, earlier: &[Self]) -> Result<(), String> {
        let name = &self.name;
        if !super::parse::is_interface_name(name) {
            return Err(format!("`{}` is no interface name", name.escape_debug()));
        }
        if earlier.iter().any(|other| other.name == *name) {
            return Err(format!("there is a device `{name}` already"));
        }
        let has_dpdks = !self.devargs.is_empty()
            || !self.eal.is_empty()
            || self.plugin.is_some()
            || self.physical_rules;
        if self.own_queue && self.backend != Backend::AfXdp {
            return Err("own_queue has a meaning with backend = \"af_xdp\" only".to_owned());
        }
        if self.zero_copy && self.backend == Backend::EfVi {
            return Err(
                "zero_copy has a meaning with backend = \"af_xdp\" or \"dpdk\" only".to_owned(),
            );
        }
        let has_ef_vis = self.library.is_some() || self.timestamps || self.queues.is_some();
        if !self
            .queues
            .is_none_or(|queues| (1..=MOST_QUEUES).contains(&queues))
        {
            return Err(format!("queues must be from 1 to {MOST_QUEUES}"));
        }
        match self.backend {
            Backend::Dpdk if self.devargs.is_empty() => Err("devargs is empty".to_owned()),
            Backend::Dpdk if has_ef_vis => Err(
                "library, timestamps and queues have a meaning with backend = \"ef_vi\" only"
                    .to_owned(),
            ),
            Backend::EfVi if has_dpdks => Err(
                "devargs, eal, plugin and physical_rules have a meaning with backend = \"dpdk\" \
                 only"
                    .to_owned(),
            ),
            Backend::AfXdp if has_dpdks || has_ef_vis => Err(
                "with backend = \"af_xdp\" a device has a name, zero_copy and own_queue only"
                    .to_owned(),
            ),
            Backend::Dpdk | Backend::EfVi | Backend::AfXdp => Ok(()),
            _ => Err("a device's backend must be dpdk, ef_vi or af_xdp".to_owned()),
        }
    }

    /// A card that no configuration names.
    #[must_use]
    pub fn card(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            backend: Backend::EfVi,
            devargs: String::new(),
            eal: Vec::new(),
            physical_rules: false,
            library: None,
            timestamps: false,
            zero_copy: false,
            queues: None,
            own_queue: false,
            plugin: None,
        }
    }
}
