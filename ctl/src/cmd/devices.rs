//! `bypassctl devices`: network functions of PCI, given to DPDK and back to the kernel.
//!
//! All of it is sysfs: `sriov_numvfs` makes virtual functions, `driver_override` says which driver
//! may have one, `bind` and `unbind` move it. Nothing is kept elsewhere, so nothing outlives a
//! reboot. It needs root, and no daemon.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bypass_backends::ef_vi;
use bypass_proto::policy::Backend;
use serde_json::{Value, json};

use crate::source::card::Card;
use crate::source::pci::{Function, Machine, VFIO};
use crate::{Failure, render, source};

/// How long a function may take to turn up, or to get its driver.
const PATIENCE: Duration = Duration::from_secs(5);

/// Network functions of PCI: list them, give one to DPDK, give it back.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  bypassctl devices list
  bypassctl devices bind eth0 --vf 0      a virtual function of eth0, made if there is none yet
  bypassctl devices bind 0000:01:10.0
  bypassctl devices unbind eth0 --vf 0    to the kernel's driver again")]
pub enum Devices {
    /// List network functions.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Bind a function to vfio-pci.
    Bind {
        #[command(flatten)]
        which: Which,
        /// Take it even if it carries the default route.
        #[arg(long)]
        force: bool,
    },
    /// Give a function back to the driver of the kernel. Take it out of the daemon's configuration
    /// first: the kernel waits until nobody uses it.
    Unbind {
        #[command(flatten)]
        which: Which,
    },
}

/// A function.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// PCI address or interface.
    device: String,
    /// Its virtual function of this number.
    #[arg(long)]
    vf: Option<u32>,
}

impl Devices {
    /// Does it.
    ///
    /// # Errors
    /// Exit code 3 when there is nothing to do, 1 with what the kernel refuses.
    pub fn execute(&self) -> Result<(), Failure> {
        let machine = Machine::here();
        match self {
            Self::List { json } => list(&machine, *json),
            Self::Bind { which, force } => {
                let function = which.find_or_make(&machine)?;
                take(&machine, &function, *force)?;
                finished(&machine, &function, |now| now == Some(VFIO))
            }
            Self::Unbind { which } => {
                let function = which.find(&machine)?;
                give_back(&machine, &function)?;
                finished(&machine, &function, |now| {
                    now.is_some() && now != Some(VFIO)
                })
            }
        }
    }
}

fn list(machine: &Machine, json: bool) -> Result<(), Failure> {
    let functions = machine.functions();
    // Without a daemon nobody has asked a port.
    let served = source::interfaces().unwrap_or_default();
    let object = |function| {
        let mut object = object(machine, function);
        object["checksums"] = checksums(function, &served).into();
        object
    };
    if json {
        let list = functions.iter().map(object);
        render::json(&list.collect());
        return Ok(());
    }
    if functions.is_empty() {
        return Err(Failure::nothing("there is no network function of PCI"));
    }
    let columns = [
        ("ADDRESS", "address"),
        ("INTERFACES", "names"),
        ("DRIVER", "driver"),
        ("CARD OF", "card"),
        ("FIRMWARE", "ef_vi.firmware"),
        ("VARIANT", "ef_vi.firmware_variant"),
        ("LIBRARY", "ef_vi.library"),
        ("VF OF", "physical"),
        ("VFS", "vfs"),
        ("IOMMU GROUP", "iommu_group"),
        ("CHECKSUMS", "checksums"),
    ];
    let rows = functions.iter().map(|function| {
        let mut row = object(function);
        let names = function.interfaces.iter().map(|name| {
            let route = machine.has_default_route(name);
            name.clone() + if route { " (default route)" } else { "" }
        });
        row["names"] = names.collect::<Vec<_>>().join(" ").into();
        let (now, most) = (function.virtuals.len(), function.most_virtuals);
        row["vfs"] = (most > 0).then(|| format!("{now} of {most}")).into();
        row
    });
    render::objects(&columns, &rows.collect::<Vec<_>>());
    Ok(())
}

/// Which checksums of accelerated traffic the function looks at or writes itself; `None` where no
/// daemon serves it.
fn checksums(function: &Function, served: &[source::Interface]) -> Option<&'static str> {
    let is_its = |it: &&source::Interface| {
        let is_named = function.interfaces.contains(&it.name);
        let is_at = |address: &String| function.is_at(address);
        it.reason.is_none() && (is_named || it.address.as_ref().is_some_and(is_at))
    };
    let its = served.iter().find(is_its)?;
    Some(match its.checksums {
        [true, true] => "RX and TX by the port",
        [true, false] => "RX by the port",
        [false, true] => "TX by the port",
        [false, false] => "software",
    })
}

fn object(machine: &Machine, function: &Function) -> Value {
    let mut interfaces = function.interfaces.iter();
    let is_card = function.vendor.as_deref().is_some_and(ef_vi::is_vendor);
    let card = is_card.then(|| Backend::EfVi.word());
    let parts = is_card.then(|| {
        let interface = function.interfaces.first().map_or("", String::as_str);
        let driver = function.driver.as_deref().unwrap_or_default();
        Card::of(interface, driver).object()
    });
    json!({
        "address": function.address, "interfaces": function.interfaces,
        "vendor": function.vendor, "card": card, "ef_vi": parts,
        "driver": function.driver, "physical": function.physical,
        "virtuals": function.virtuals, "most_virtuals": function.most_virtuals,
        "iommu_group": function.group,
        "default_route": interfaces.any(|name| machine.has_default_route(name)),
    })
}

impl Which {
    /// The function; it must be there.
    fn find(&self, machine: &Machine) -> Result<Function, Failure> {
        let named = self.named(machine)?;
        let Some(index) = self.vf else {
            return Ok(named);
        };
        numbered(machine, &named, index).ok_or_else(|| {
            let count = named.virtuals.len();
            Failure::new(format!("{} has {count} virtual functions", self.device))
        })
    }

    /// The function; a virtual one is made if its physical one has none.
    fn find_or_make(&self, machine: &Machine) -> Result<Function, Failure> {
        if let Some(index) = self.vf {
            let named = self.named(machine)?;
            if named.virtuals.is_empty() {
                make_virtuals(machine, &named, index)?;
            }
        }
        self.find(machine)
    }

    fn named(&self, machine: &Machine) -> Result<Function, Failure> {
        machine.find(&self.device).ok_or_else(|| {
            let why = "no network function of PCI, or not in this network namespace";
            Failure::new(format!("{}: {why}", self.device))
        })
    }
}

fn numbered(machine: &Machine, physical: &Function, index: u32) -> Option<Function> {
    let address = physical.virtuals.get(usize::try_from(index).ok()?)?;
    machine.find(address)
}

/// Makes virtual functions up to this number. (The kernel changes the count from and to 0 only.)
fn make_virtuals(machine: &Machine, physical: &Function, index: u32) -> Result<(), Failure> {
    let (address, most) = (&physical.address, physical.most_virtuals);
    if index >= most {
        return Err(Failure::new(format!(
            "{address} can have {most} virtual functions"
        )));
    }
    let count = (index + 1).to_string();
    let folder = machine.device(address);
    // No driver of the kernel takes the new ones meanwhile: it would make interfaces of them.
    let autoprobe = folder.join("sriov_drivers_autoprobe");
    let before = fs::read_to_string(&autoprobe).ok();
    if before.is_some() {
        write(&autoprobe, "0")?;
    }
    let made = write(&folder.join("sriov_numvfs"), &count);
    if let Some(before) = before {
        write(&autoprobe, before.trim_end())?;
    }
    made?;
    let is_there = || {
        machine
            .find(address)
            .is_some_and(|it| it.virtuals.len() > index as usize)
    };
    wait_until(is_there)
        .then_some(())
        .ok_or_else(|| Failure::new(format!("{address}: no virtual function has turned up")))
}

/// Binds a function to vfio-pci, or leaves it as it was.
fn take(machine: &Machine, function: &Function, force: bool) -> Result<(), Failure> {
    let address = &function.address;
    if function.driver.as_deref() == Some(VFIO) {
        return Err(Failure::nothing(format!("{address} is bound to {VFIO}")));
    }
    let mut interfaces = function.interfaces.iter();
    let routed = interfaces.find(|name| machine.has_default_route(name));
    if let (Some(name), false) = (routed, force) {
        return Err(Failure::new(format!(
            "{name} carries the default route: without it this machine may be out of reach; \
             --force takes it all the same"
        )));
    }
    if function.driver.is_some() && function.interfaces.is_empty() && !force {
        return Err(Failure::new(format!(
            "{address} has no interface in this network namespace, so nobody knows here who uses \
             it; --force takes it all the same"
        )));
    }
    if function.group.is_none() {
        return Err(Failure::new(format!(
            "{address} is behind no IOMMU: turn it on in the firmware and on the kernel's command \
             line (intel_iommu=on)"
        )));
    }
    let bind = machine.driver(VFIO).join("bind");
    if !bind.exists() {
        return Err(Failure::new(format!(
            "{VFIO} is not loaded: modprobe {VFIO}"
        )));
    }
    write(&machine.device(address).join("driver_override"), VFIO)?;
    let moved = unbind(machine, function).and_then(|()| write(&bind, address));
    moved.inspect_err(|_| {
        // The reason is that of the first failure.
        let _ = probe(machine, address);
    })
}

/// Has the kernel choose a function's driver, as before.
fn give_back(machine: &Machine, function: &Function) -> Result<(), Failure> {
    let address = &function.address;
    if function
        .driver
        .as_deref()
        .is_some_and(|driver| driver != VFIO)
    {
        return Err(Failure::nothing(format!(
            "{address} is not bound to {VFIO}"
        )));
    }
    unbind(machine, function)?;
    probe(machine, address)
}

fn unbind(machine: &Machine, function: &Function) -> Result<(), Failure> {
    match &function.driver {
        Some(driver) => write(&machine.driver(driver).join("unbind"), &function.address),
        None => Ok(()),
    }
}

fn probe(machine: &Machine, address: &str) -> Result<(), Failure> {
    write(&machine.device(address).join("driver_override"), "\n")?;
    write(&machine.sys.join("bus/pci/drivers_probe"), address)
}

/// Waits for the driver and tells of it.
fn finished(
    machine: &Machine,
    before: &Function,
    is_right: impl Fn(Option<&str>) -> bool,
) -> Result<(), Failure> {
    let address = &before.address;
    let driver = || machine.find(address).and_then(|function| function.driver);
    let is_bound = wait_until(|| is_right(driver().as_deref()));
    let (was, now) = (before.driver.as_deref().unwrap_or("no driver"), driver());
    let now = now.as_deref().unwrap_or("no driver");
    let told = format!("{address}: {was} -> {now}");
    if !is_bound {
        return Err(Failure::new(told));
    }
    render::line(&told);
    Ok(())
}

fn wait_until(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|error| {
        let text = text.trim_end();
        Failure::new(format!("writing \"{text}\" to {}: {error}", file.display()))
    })
}

#[cfg(test)]
mod tests;
