//! Against a tree of files that stands for sysfs: it takes what is written and does nothing.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

const PF: &str = "0000:01:00.0";
const VF: &str = "0000:01:10.0";

/// A card of two functions, eth0 and its only virtual one, in a fake sysfs.
struct FakeSysfs(Machine);

impl FakeSysfs {
    fn new(name: &str) -> Self {
        let sys = std::env::temp_dir().join(format!("bypass-sysfs-{name}-{}", std::process::id()));
        let fake = Self(Machine {
            sys,
            default_routes: BTreeSet::new(),
        });
        for (address, driver) in [(PF, "igb"), (VF, "igbvf"), ("0000:00:01.0", "pcieport")] {
            for file in ["bind", "unbind"] {
                fake.file(&format!("bus/pci/drivers/{driver}/{file}"), "");
            }
            let device = format!("bus/pci/devices/{address}");
            let class = if driver == "pcieport" {
                "0x060400"
            } else {
                "0x020000"
            };
            fake.file(&format!("{device}/class"), class);
            fake.file(&format!("{device}/driver_override"), "(null)");
            fake.link(&format!("{device}/driver"), &format!("drivers/{driver}"));
            fake.link(&format!("{device}/iommu_group"), "iommu_groups/7");
        }
        for (name, below) in [("eth0", PF.to_owned()), ("eth1", format!("{VF}/virtio0"))] {
            let folder = format!("bus/pci/devices/{below}/net/{name}");
            fake.file(&format!("{folder}/ifindex"), "2");
            fake.link(&format!("class/net/{name}"), &format!("../../{folder}"));
        }
        fake.file(&format!("bus/pci/devices/{PF}/sriov_totalvfs"), "7");
        fake.file(&format!("bus/pci/devices/{PF}/sriov_numvfs"), "1");
        fake.link(&format!("bus/pci/devices/{PF}/virtfn0"), VF);
        fake.link(&format!("bus/pci/devices/{VF}/physfn"), PF);
        fake.file("bus/pci/drivers/vfio-pci/bind", "");
        fake.file("bus/pci/drivers_probe", "");
        fake
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.0.sys.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn file(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        symlink(to, self.path(path)).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn which(&self, device: &str, vf: Option<u32>) -> Which {
        let device = device.to_owned();
        Which { device, vf }
    }
}

impl Drop for FakeSysfs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0.sys);
    }
}

fn words(result: Result<(), Failure>) -> (u8, String) {
    let failure = result.unwrap_err();
    (failure.code, failure.message)
}

#[test]
fn functions_are_found_by_address_and_interface() {
    let fake = FakeSysfs::new("found");
    let machine = &fake.0;
    assert_eq!(machine.functions().len(), 2);
    let physical = machine.find("eth0").unwrap();
    assert_eq!(physical.address, PF);
    assert_eq!(machine.find("eth1").unwrap().address, VF);
    assert_eq!((physical.virtuals.len(), physical.most_virtuals), (1, 7));
    let function = fake.which("eth0", Some(0)).find(machine).unwrap();
    assert_eq!(machine.find("01:10.0").unwrap(), function);
    assert_eq!(function.driver.as_deref(), Some("igbvf"));
    assert_eq!(function.physical.as_deref(), Some(PF));
    assert_eq!(function.group.as_deref(), Some("7"));
    let more = fake.which("eth0", Some(1)).find_or_make(machine);
    assert_eq!(more.unwrap_err().message, "eth0 has 1 virtual functions");
    assert!(fake.which("0000:00:01.0", None).find(machine).is_err());
}

#[test]
fn cards_of_ef_vi_are_known_by_their_vendor() {
    let fake = FakeSysfs::new("cards");
    let machine = &fake.0;
    let shown = || object(machine, &machine.find("eth0").unwrap());
    for (vendor, card) in [
        ("0x1924", "ef_vi".into()),
        ("0x10ee", "ef_vi".into()),
        ("0x8086", Value::Null),
    ] {
        fake.file(
            &format!("bus/pci/devices/{PF}/vendor"),
            &format!("{vendor}\n"),
        );
        let shown = shown();
        assert_eq!((&shown["vendor"], &shown["card"]), (&vendor.into(), &card));
        // There is neither a card nor, where tests run, a library.
        let parts = &shown["ef_vi"];
        assert_eq!(parts.is_object(), card == "ef_vi", "{shown}");
        assert!(parts["firmware"].is_null() && parts["firmware_variant"].is_null());
        let is_said = |word| {
            parts[word]
                .as_str()
                .is_some_and(|it| it.contains("libciul"))
        };
        assert!(
            card != "ef_vi" || is_said("library") != is_said("library_error"),
            "{parts}"
        );
    }
}

#[test]
fn a_function_goes_to_vfio_and_back() {
    let fake = FakeSysfs::new("moved");
    let machine = &fake.0;
    let function = machine.find(VF).unwrap();
    let device = format!("bus/pci/devices/{VF}");
    take(machine, &function, false).unwrap();
    assert_eq!(fake.read(&format!("{device}/driver_override")), VFIO);
    assert_eq!(fake.read("bus/pci/drivers/igbvf/unbind"), VF);
    assert_eq!(fake.read("bus/pci/drivers/vfio-pci/bind"), VF);
    assert_eq!(fake.read("bus/pci/drivers_probe"), "");

    fs::remove_file(fake.path(&format!("{device}/driver"))).unwrap();
    fake.link(&format!("{device}/driver"), "drivers/vfio-pci");
    let function = machine.find(VF).unwrap();
    assert_eq!(words(take(machine, &function, false)).0, 3);
    give_back(machine, &function).unwrap();
    assert_eq!(fake.read("bus/pci/drivers/vfio-pci/unbind"), VF);
    assert_eq!(fake.read(&format!("{device}/driver_override")), "\n");
    assert_eq!(fake.read("bus/pci/drivers_probe"), VF);
    let physical = machine.find(PF).unwrap();
    assert_eq!(words(give_back(machine, &physical)).0, 3);
}

#[test]
fn what_would_do_harm_is_refused() {
    let mut fake = FakeSysfs::new("refused");
    fake.file("class/net/eth0/upper_bond0/ifindex", "5");
    fake.0.default_routes.insert("bond0".to_owned());
    let physical = fake.0.find(PF).unwrap();
    let (code, why) = words(take(&fake.0, &physical, false));
    assert!(
        code == 1 && why.contains("carries the default route"),
        "{why}"
    );
    assert_eq!(fake.read("bus/pci/drivers/igb/unbind"), "");
    take(&fake.0, &physical, true).unwrap();
    assert_eq!(fake.read("bus/pci/drivers/igb/unbind"), PF);

    let function = fake.0.find(VF).unwrap();
    let behind_none = Function {
        group: None,
        ..function.clone()
    };
    let elsewhere = Function {
        interfaces: Vec::new(),
        ..function.clone()
    };
    let (_, why) = words(take(&fake.0, &elsewhere, false));
    assert!(why.contains("no interface in this"), "{why}");
    let (_, why) = words(take(&fake.0, &behind_none, true));
    assert!(why.contains("no IOMMU"), "{why}");
    fs::remove_file(fake.path("bus/pci/drivers/vfio-pci/bind")).unwrap();
    let (_, why) = words(take(&fake.0, &function, true));
    assert!(why.contains("modprobe vfio-pci"), "{why}");
    assert_eq!(fake.read("bus/pci/drivers/igbvf/unbind"), "");
}

#[test]
fn what_keeps_dpdk_from_a_device_is_told() {
    let fake = FakeSysfs::new("obstacle");
    let machine = &fake.0;
    let why = machine.obstacle("01:10.0").unwrap();
    assert!(
        why.contains("bound to igbvf, not to vfio-pci: bypassctl devices bind 0000:01:10.0"),
        "{why}"
    );
    fs::remove_dir_all(fake.path("bus/pci/drivers/vfio-pci")).unwrap();
    fs::remove_file(fake.path(&format!("bus/pci/devices/{VF}/iommu_group"))).unwrap();
    let why = machine.obstacle(VF).unwrap();
    assert!(
        why.contains("no IOMMU") && why.contains("modprobe vfio-pci"),
        "{why}"
    );
    let why = machine.obstacle("0000:02:00.0").unwrap();
    assert!(why.contains("no device at 0000:02:00.0"), "{why}");
    let link = format!("bus/pci/devices/{VF}/driver");
    fs::remove_file(fake.path(&link)).unwrap();
    fake.link(&link, "drivers/vfio-pci");
    assert_eq!(machine.obstacle(VF), None);
}

#[test]
fn a_bind_that_fails_is_taken_back() {
    let fake = FakeSysfs::new("failed");
    let bind = fake.path("bus/pci/drivers/vfio-pci/bind");
    fs::remove_file(&bind).unwrap();
    fs::create_dir(&bind).unwrap();
    let (_, why) = words(take(&fake.0, &fake.0.find(VF).unwrap(), false));
    assert!(why.contains("vfio-pci/bind"), "{why}");
    let device = format!("bus/pci/devices/{VF}");
    assert_eq!(fake.read(&format!("{device}/driver_override")), "\n");
    assert_eq!(fake.read("bus/pci/drivers_probe"), VF);
}

#[test]
fn whose_checksums_are_is_told_by_interface_or_address() {
    let fake = FakeSysfs::new("checksums");
    let [physical, function] = [PF, VF].map(|address| fake.0.find(address).unwrap());
    let port = source::Interface {
        name: "vf0".to_owned(),
        address: Some(VF.to_owned()),
        checksums: [true, true],
        ..source::Interface::default()
    };
    let kernels = source::Interface {
        name: "eth0".to_owned(),
        ..source::Interface::default()
    };
    let lost = source::Interface {
        reason: Some("its relay has ended".to_owned()),
        ..port.clone()
    };
    let served = [kernels, port];
    assert_eq!(checksums(&function, &served), Some("RX and TX by the port"));
    assert_eq!(checksums(&physical, &served), Some("software"));
    assert_eq!(checksums(&function, &[lost]), None);
    assert_eq!(checksums(&physical, &[]), None);
}
