//! Gives a PCI function to `uio_pci_generic_sva`, which has no id table of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Name under which `uio_pci_generic_sva` registers with the PCI core.
const DRIVER: &str = "uio_pci_sva";

/// Gives a function to the driver, if it has none; returns the device's node.
///
/// # Errors
/// The driver is not there, or does not take it.
pub fn give_to_uio(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !path.join("driver").exists() {
        fs::write(path.join("driver_override"), DRIVER).context("cannot set driver_override")?;
        fs::write("/sys/bus/pci/drivers_probe", &*name).context("the driver refused")?;
    }
    let Ok(folders) = fs::read_dir(path.join("uio")) else {
        bail!("no driver {DRIVER}: the kernel needs CONFIG_UIO_PCI_GENERIC_SVA");
    };
    let node = folders.flatten().next().context("the driver made no uio device")?;
    Ok(Path::new("/dev").join(node.file_name()))
}
