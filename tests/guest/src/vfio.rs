//! Gives a PCI function to `vfio-pci`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, setrlimit};

const DRIVER: &str = "vfio-pci";
/// Lets a device be assigned although the machine cannot keep its interrupts apart.
const UNSAFE_INTERRUPTS: &str = "/sys/module/iommufd/parameters/allow_unsafe_interrupts";

/// Takes the function away from its driver if it has another one, and gives it to `vfio-pci`; returns the
/// device's node.
///
/// # Errors
/// A driver does not let go, or VFIO does not take it.
pub fn give_to_vfio(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let driver = fs::read_link(folder.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name);
    if driver.is_none_or(|driver| driver != DRIVER) {
        if driver.is_some() {
            fs::write(folder.join("driver/unbind"), &name).context("the driver does not let go")?;
        }
        fs::write(folder.join("driver_override"), DRIVER).context("cannot set driver_override")?;
        fs::write("/sys/bus/pci/drivers_probe", &name).with_context(|| format!("{DRIVER} refused"))?;
    }
    let devices = fs::read_dir(folder.join("vfio-dev"));
    let devices =
        devices.context("no vfio-dev: the kernel needs CONFIG_VFIO_PCI and CONFIG_VFIO_DEVICE_CDEV");
    let device = devices?.flatten().next().context("VFIO made no device")?;
    Ok(Path::new("/dev/vfio/devices").join(device.file_name()))
}

/// Lifts the limit of locked memory, which would bound what can be mapped for a device.
///
/// # Errors
/// This process may not.
pub fn lift_memory_lock() -> Result<()> {
    let limit = Rlimit { current: None, maximum: None };
    setrlimit(Resource::Memlock, limit).context("cannot lift the limit of locked memory")
}

/// Accepts that interrupts are not remapped; true if that was not accepted before.
///
/// # Errors
/// The kernel has no iommufd.
pub fn accept_unsafe_interrupts() -> Result<bool> {
    let before = fs::read_to_string(UNSAFE_INTERRUPTS).context(UNSAFE_INTERRUPTS)?;
    fs::write(UNSAFE_INTERRUPTS, "Y").context(UNSAFE_INTERRUPTS)?;
    Ok(before.trim() != "Y")
}
