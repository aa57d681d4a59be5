//! Network functions of PCI, as sysfs shows them: what drives them, and which are virtual ones.
//!
//! Nothing is changed here. Interfaces are those of this network namespace only, because sysfs
//! shows no others (sysfs(5); Documentation/ABI/testing/sysfs-bus-pci).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bypass_backends::netlink::function_mac;

/// First digits of the class of network controllers.
const NETWORK: &str = "0x02";

/// The driver that lets a program drive a function.
pub const VFIO: &str = "vfio-pci";

/// Where the facts are.
#[derive(Debug)]
pub struct Machine {
    /// `/sys`, or in tests a tree that stands for it.
    pub sys: PathBuf,
    /// Interfaces that a default route leads to.
    pub default_routes: BTreeSet<String>,
}

/// One network function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Domain, bus, device and function: `0000:01:10.0`.
    pub address: String,
    /// Number of its vendor: `0x8086`.
    pub vendor: Option<String>,
    /// Driver that it is bound to.
    pub driver: Option<String>,
    /// Its interfaces.
    pub interfaces: Vec<String>,
    /// Address of the physical function, of a virtual one.
    pub physical: Option<String>,
    /// Addresses of its virtual functions by their number.
    pub virtuals: Vec<String>,
    /// How many virtual functions it can have; 0 = it is no SR-IOV function.
    pub most_virtuals: u32,
    /// Number of its IOMMU group; `None` = there is no IOMMU.
    pub group: Option<String>,
}

impl Function {
    /// Whether this is its address (with or without the domain).
    #[must_use]
    pub fn is_at(&self, address: &str) -> bool {
        let short = self.address.strip_prefix("0000:");
        self.address == address || short == Some(address)
    }
}

impl Machine {
    /// The one that we are on.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (v4, v6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
        Self {
            sys: "/sys".into(),
            default_routes: default_routes(&v4, &v6),
        }
    }

    /// Every network function, by address.
    #[must_use]
    pub fn functions(&self) -> Vec<Function> {
        let mut addresses = names(&self.sys.join("bus/pci/devices"));
        addresses.retain(|address| {
            word(&self.device(address).join("class")).is_some_and(|it| it.starts_with(NETWORK))
        });
        addresses.into_iter().map(|it| self.function(it)).collect()
    }

    /// The function with this address (with or without the domain) or interface.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Function> {
        self.functions().into_iter().find(|function| {
            let is_there = |it: &String| it == name;
            function.is_at(name) || function.interfaces.iter().any(is_there)
        })
    }

    /// What keeps DPDK from the device at an address (with or without the domain), whatever its
    /// class is; `None` = nothing that shows here.
    #[must_use]
    pub fn obstacle(&self, address: &str) -> Option<String> {
        let long = format!("0000:{address}");
        let all = names(&self.sys.join("bus/pci/devices"));
        let Some(address) = all
            .iter()
            .find(|it| [address, &long].contains(&it.as_str()))
        else {
            return Some(format!("there is no device at {address}: lspci lists them"));
        };
        let device = self.function(address.clone());
        let driver = device.driver.as_deref().unwrap_or("no driver");
        if driver == VFIO {
            return None;
        }
        let iommu = match device.group {
            None => ", and there is no IOMMU for it",
            Some(_) => "",
        };
        let loaded = if self.driver(VFIO).exists() {
            ""
        } else {
            "modprobe vfio-pci, then "
        };
        Some(format!(
            "{address} is bound to {driver}, not to {VFIO}{iommu}: {loaded}bypassctl devices bind \
             {address}"
        ))
    }

    /// The MAC address that the physical function has for a virtual one (its address with or
    /// without the domain); `None` = it tells none, or its driver is not the kernel's.
    #[must_use]
    pub fn given_mac(&self, address: &str) -> Option<[u8; 6]> {
        let (name, number) = self.physical(address)?;
        let ifindex = word(&self.sys.join("class/net").join(name).join("ifindex"))?;
        function_mac(ifindex.parse().ok()?, number).ok().flatten()
    }

    /// The interface of the physical function of a virtual one (its address with or without the
    /// domain), and its number there.
    #[must_use]
    pub fn physical(&self, address: &str) -> Option<(String, u32)> {
        let function = self.find(address)?;
        let physical = self.function(function.physical?);
        let mut numbers = (0..).zip(&physical.virtuals);
        let (number, _) = numbers.find(|(_, virtual_)| **virtual_ == function.address)?;
        Some((physical.interfaces.first()?.clone(), number))
    }

    /// Folder of a function.
    #[must_use]
    pub fn device(&self, address: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address)
    }

    /// Folder of a driver.
    #[must_use]
    pub fn driver(&self, name: &str) -> PathBuf {
        self.sys.join("bus/pci/drivers").join(name)
    }

    /// Whether a default route leads to an interface, or to one that is made of it (a bond, a
    /// bridge, a VLAN).
    #[must_use]
    pub fn has_default_route(&self, interface: &str) -> bool {
        let folder = self.sys.join("class/net").join(interface);
        let upper = names(&folder);
        let mut upper = upper.iter().filter_map(|name| name.strip_prefix("upper_"));
        self.default_routes.contains(interface) || upper.any(|it| self.has_default_route(it))
    }

    /// Interfaces whose path in sysfs leads by a function: of virtio a device is between them.
    fn interfaces(&self, address: &str) -> Vec<String> {
        let folder = self.sys.join("class/net");
        let mut names = names(&folder);
        names.retain(|name| {
            let path = fs::read_link(folder.join(name)).unwrap_or_default();
            path.iter().any(|part| part == address)
        });
        names
    }

    fn function(&self, address: String) -> Function {
        let folder = self.device(&address);
        let virtuals = (0..).map_while(|index| target(&folder.join(format!("virtfn{index}"))));
        Function {
            vendor: word(&folder.join("vendor")),
            driver: target(&folder.join("driver")),
            interfaces: self.interfaces(&address),
            physical: target(&folder.join("physfn")),
            virtuals: virtuals.collect(),
            most_virtuals: word(&folder.join("sriov_totalvfs"))
                .and_then(|most| most.parse().ok())
                .unwrap_or(0),
            group: target(&folder.join("iommu_group")),
            address,
        }
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// Last part of what a link leads to.
fn target(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

fn word(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

/// Interfaces of the default routes in `/proc/net/route` and `/proc/net/ipv6_route`. (Those of the
/// latter that refuse are at `lo`.)
fn default_routes(v4: &str, v6: &str) -> BTreeSet<String> {
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let fields: Vec<String> = fields(line);
        let is_default = fields.get(1)? == "00000000" && fields.get(7)? == "00000000";
        is_default.then(|| fields[0].clone())
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<String> = fields(line);
        let interface = fields.get(9).filter(|name| *name != "lo")?;
        let is_default = fields[0].bytes().all(|digit| digit == b'0') && fields[1] == "00";
        is_default.then(|| interface.clone())
    });
    v4.chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_the_domain_out() {
        let function = |address: &str| Function {
            address: address.to_owned(),
            ..Function::default()
        };
        let (first, second) = (function("0000:01:10.0"), function("0001:01:10.0"));
        assert!(first.is_at("0000:01:10.0") && first.is_at("01:10.0"));
        assert!(!first.is_at("1:10.0") && !second.is_at("01:10.0"));
    }

    #[test]
    fn default_routes_are_those_of_prefix_length_zero() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
                  eth2\t00000000\t0100000A\t0003\t0\t0\t0\t00000080\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let v6 = [("eth3", "00"), ("lo", "00"), ("eth4", "08")]
            .map(|(name, length)| {
                format!("{zero} {length} {zero} 00 {zero} 00000400 1 0 00000003 {name}\n")
            })
            .concat();
        let found: Vec<String> = default_routes(v4, &v6).into_iter().collect();
        assert_eq!(found, ["eth0", "eth3"]);
        assert_eq!(default_routes("", "rubbish\n").len(), 0);
    }
}
