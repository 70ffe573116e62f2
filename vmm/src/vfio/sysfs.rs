//! What sysfs says about a device of the host's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Complaint;

/// Devices that vfio-pci refuses unless it is told otherwise (its `vfio_pci_denylist`), by vendor and device.
const DENIED: [(u16, u16); 8] = [
    (0x8086, 0x0435),
    (0x8086, 0x0443),
    (0x8086, 0x0b25),
    (0x8086, 0x0cfe),
    (0x8086, 0x19e2),
    (0x8086, 0x19e3),
    (0x8086, 0x37c8),
    (0x8086, 0x37c9),
];

/// The driver that assigned devices are bound to.
const DRIVER: &str = "vfio-pci";

/// The host's PCI devices as sysfs has them.
pub(crate) struct Sysfs {
    /// `/sys/bus/pci/devices`, or what a test has in its place.
    devices: PathBuf,
    /// `/dev/vfio/devices`.
    files: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { devices: "/sys/bus/pci/devices".into(), files: "/dev/vfio/devices".into() }
    }
}

impl Sysfs {
    /// Whether VFIO has the device at `address`.
    ///
    /// # Errors
    /// No such device, none that can be assigned, or another driver has it.
    pub(crate) fn check(&self, address: &str) -> Result<(), Complaint> {
        let thing = format!("--vfio {address}");
        let folder = self.devices.join(address);
        if !folder.exists() {
            return Err(Complaint::new(
                thing,
                "there is no such PCI device",
                "give one that `lspci -D` lists",
            ));
        }
        if let Some(kind) = bridge(&folder) {
            let reason = format!("the device is a {kind}");
            return Err(Complaint::new(thing, reason, "give an endpoint: bridges cannot be assigned"));
        }
        let driver = link_name(&folder.join("driver"));
        // A variant for one kind of device is as good.
        if driver.as_ref().is_some_and(|driver| driver.contains("vfio")) {
            return Ok(());
        }
        Err(self.not_bound(&thing, address, driver.as_deref()))
    }

    /// The file by which a device that VFIO has can be had. Kernels without `CONFIG_VFIO_DEVICE_CDEV` have none.
    pub(crate) fn device_file(&self, address: &str) -> Option<PathBuf> {
        let entries = fs::read_dir(self.devices.join(address).join("vfio-dev")).ok()?.flatten();
        let mut names = entries.map(|entry| entry.file_name());
        names.find(|name| name.to_string_lossy().starts_with("vfio")).map(|name| self.files.join(name))
    }

    /// The legacy file of the IOMMU group that a device is in.
    pub(crate) fn group_file(&self, address: &str) -> Option<PathBuf> {
        let group = link_name(&self.devices.join(address).join("iommu_group"))?;
        Some(self.files.parent()?.join(group))
    }

    fn not_bound(&self, thing: &str, address: &str, driver: Option<&str>) -> Complaint {
        let reason = match driver {
            Some(driver) => format!("the device is bound to {driver}, not to {DRIVER}"),
            None => format!("the device is not bound to {DRIVER}"),
        };
        let folder = self.devices.join(address);
        let unbind = driver.map(|_| format!(" && echo {address} > {}/driver/unbind", folder.display()));
        let denied =
            if DENIED.contains(&ids(&folder)) { "modprobe vfio-pci disable_denylist=1 && " } else { "" };
        let remedy = format!(
            "as root: {denied}echo {DRIVER} > {}/driver_override{} && echo {address} > /sys/bus/pci/drivers_probe",
            folder.display(),
            unbind.unwrap_or_default()
        );
        Complaint::new(thing, reason, remedy)
    }

    /// The address of the device whose file this is.
    pub(crate) fn address_of(&self, file: &Path) -> Option<String> {
        let name = file.file_name()?;
        let entries = fs::read_dir(&self.devices).ok()?.flatten();
        let mut found = entries.filter(|entry| entry.path().join("vfio-dev").join(name).exists());
        found.next().map(|entry| entry.file_name().to_string_lossy().into_owned())
    }

    /// Other devices of the same IOMMU group that a driver of the host's holds: (address, driver), in order.
    pub(crate) fn held_with(&self, address: &str) -> Vec<(String, String)> {
        let group = self.devices.join(address).join("iommu_group/devices");
        let members = fs::read_dir(group).ok().into_iter().flatten().flatten();
        let mut held: Vec<_> = members
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|other| other != address)
            .filter_map(|other| Some((link_name(&self.devices.join(&other).join("driver"))?, other)))
            // Ports do no DMA; VFIO lets their driver be.
            .filter(|(driver, _)| !driver.contains("vfio") && driver != "pcieport")
            .map(|(driver, other)| (other, driver))
            .collect();
        held.sort();
        held
    }
}

fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

fn number(file: &Path) -> Option<u32> {
    u32::from_str_radix(fs::read_to_string(file).ok()?.trim().trim_start_matches("0x"), 16).ok()
}

/// Vendor and device; 0 for what is not known.
fn ids(folder: &Path) -> (u16, u16) {
    let id = |name| number(&folder.join(name)).and_then(|id| id.try_into().ok()).unwrap_or(0);
    (id("vendor"), id("device"))
}

/// What kind of bridge a device is, if it is one.
fn bridge(folder: &Path) -> Option<&'static str> {
    match number(&folder.join("class"))? >> 8 {
        0x0600 => Some("host bridge"),
        0x0604 => Some("PCI bridge"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const ADDRESS: &str = "0000:6a:01.0";

    struct Tree {
        folder: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn sysfs(&self) -> Sysfs {
            Sysfs { devices: self.folder.path().join("devices"), files: "/dev/vfio/devices".into() }
        }

        fn device(&self, address: &str, class: &str, driver: Option<&str>) {
            let folder = self.folder.path().join("devices").join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("class"), class).unwrap();
            if let Some(driver) = driver {
                symlink(Path::new("../../drivers").join(driver), folder.join("driver")).unwrap();
            }
        }

        fn file(&self, address: &str, name: &str) {
            fs::create_dir_all(self.folder.path().join("devices").join(address).join("vfio-dev").join(name))
                .unwrap();
        }

        fn group(&self, address: &str, members: &[&str]) {
            let folder = self.folder.path().join("devices").join(address).join("iommu_group/devices");
            members.iter().for_each(|member| fs::create_dir_all(folder.join(member)).unwrap());
        }
    }

    #[test]
    fn a_bound_device_has_a_file() {
        let tree = Tree::new();
        tree.device(ADDRESS, "0x088000\n", Some("vfio-pci"));
        tree.file(ADDRESS, "vfio12");
        let path = PathBuf::from("/dev/vfio/devices/vfio12");
        assert_eq!(tree.sysfs().check(ADDRESS), Ok(()));
        assert_eq!(tree.sysfs().device_file(ADDRESS), Some(path.clone()));
        assert_eq!(tree.sysfs().address_of(&path).as_deref(), Some(ADDRESS));
        assert_eq!(tree.sysfs().address_of("/dev/vfio/devices/vfio1".as_ref()), None);
    }

    /// (name, class, driver, what is said)
    #[test]
    fn others_are_named_with_reason_and_remedy() {
        let endpoint = "0x088000";
        for (name, class, driver, expected) in [
            ("host bridge", "0x060000", None, "the device is a host bridge; give an endpoint"),
            ("PCI bridge", "0x060400", Some("pcieport"), "the device is a PCI bridge"),
            ("no driver", endpoint, None, "not bound to vfio-pci; as root: echo vfio-pci > "),
            (
                "another driver",
                endpoint,
                Some("idxd"),
                "bound to idxd, not to vfio-pci; as root: echo vfio-pci > ",
            ),
        ] {
            let tree = Tree::new();
            tree.device(ADDRESS, class, driver);
            let complaint = tree.sysfs().check(ADDRESS).unwrap_err().to_string();
            assert!(complaint.contains(expected), "{name}: {complaint}");
            assert_eq!(complaint.contains("/driver/unbind"), driver == Some("idxd"), "{name}: {complaint}");
        }
        let complaint = Tree::new().sysfs().check(ADDRESS).unwrap_err().to_string();
        assert!(complaint.starts_with("--vfio 0000:6a:01.0: there is no such PCI device"), "{complaint}");
    }

    #[test]
    fn denied_devices_take_one_step_more() {
        let tree = Tree::new();
        tree.device(ADDRESS, "0x088000", Some("idxd"));
        let folder = tree.folder.path().join("devices").join(ADDRESS);
        for (device, expected) in [("0x0b25\n", true), ("0x0b26\n", false)] {
            fs::write(folder.join("vendor"), "0x8086\n").unwrap();
            fs::write(folder.join("device"), device).unwrap();
            let complaint = tree.sysfs().check(ADDRESS).unwrap_err();
            assert_eq!(complaint.remedy.contains("disable_denylist=1"), expected, "{complaint}");
        }
    }

    #[test]
    fn files_are_those_of_the_device_and_of_its_group() {
        let tree = Tree::new();
        tree.device(ADDRESS, "0x088000", Some("mlx5_vfio_pci"));
        assert_eq!(tree.sysfs().check(ADDRESS), Ok(()), "a variant");
        assert_eq!((tree.sysfs().device_file(ADDRESS), tree.sysfs().group_file(ADDRESS)), (None, None));
        symlink("../../groups/17", tree.folder.path().join("devices").join(ADDRESS).join("iommu_group"))
            .unwrap();
        assert_eq!(tree.sysfs().group_file(ADDRESS), Some("/dev/vfio/17".into()));
    }

    #[test]
    fn what_holds_a_group_is_named() {
        let tree = Tree::new();
        for (address, driver) in [
            (ADDRESS, Some("vfio-pci")),
            ("0000:6a:00.0", Some("pcieport")),
            ("0000:6a:02.0", Some("idxd")),
            ("0000:6a:03.0", None),
            ("0000:6a:04.0", Some("vfio-pci")),
        ] {
            tree.device(address, "0x088000", driver);
        }
        let all = [ADDRESS, "0000:6a:00.0", "0000:6a:02.0", "0000:6a:03.0", "0000:6a:04.0"];
        tree.group(ADDRESS, &all);
        assert_eq!(tree.sysfs().held_with(ADDRESS), [("0000:6a:02.0".to_owned(), "idxd".to_owned())]);
        assert_eq!(tree.sysfs().held_with("0000:00:00.0"), []);
    }
}
