//! Devices that are no interface of the kernel until a backend makes one of them.
//!
//! ```toml
//! [[device]]
//! name    = "vf0"                    # the interface that the kernel gets for it
//! backend = "dpdk"
//! devargs = "0000:01:10.0"           # PCI address, or a virtual device: "net_af_packet0,iface=eth1"
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
    /// What drives it: `dpdk`.
    pub backend: Backend,
    /// The device in DPDK's words.
    pub devargs: String,
    /// More arguments for DPDK's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eal: Vec<String>,
    /// The plugin; `None` = the one beside `bypassctl`, or wherever libraries are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<PathBuf>,
}

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
        if self.backend != Backend::Dpdk {
            return Err("a device's backend must be dpdk".to_owned());
        }
        if self.devargs.is_empty() {
            return Err("devargs is empty".to_owned());
        }
        Ok(())
    }
}
