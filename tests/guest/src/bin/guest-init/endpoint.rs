//! Gives the SVM endpoint to a driver. `uio_pci_generic_sva` has no id table of its own, and `vfio-pci` none at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const DEVICES: &str = "/sys/bus/pci/devices";
/// Name under which `uio_pci_generic_sva` registers with the PCI core.
const DRIVER: &str = "uio_pci_sva";
const VENDOR: &str = "0x1af4";
const DEVICE: &str = "0x10f0";

/// Binds every SVM endpoint by `bind`, which says what node it has become; returns one line per endpoint, to be printed.
pub(crate) fn bind_all(bind: impl Fn(&Path) -> Result<PathBuf>) -> Vec<String> {
    let folders = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let endpoints = folders.map(|entry| entry.path()).filter(|path| is_endpoint(path));
    endpoints
        .map(|path| match bind(&path) {
            Ok(node) => format!("{} is {}", name(&path), node.display()),
            Err(error) => format!("{}: {error:#}", name(&path)),
        })
        .collect()
}

fn is_endpoint(path: &Path) -> bool {
    let has =
        |file: &str, value: &str| fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == value);
    has("vendor", VENDOR) && has("device", DEVICE)
}

/// Gives an endpoint to `uio_pci_generic_sva`.
pub(crate) fn give_to_uio(path: &Path) -> Result<PathBuf> {
    if !path.join("driver").exists() {
        fs::write(path.join("driver_override"), DRIVER).context("cannot set driver_override")?;
        fs::write("/sys/bus/pci/drivers_probe", name(path)).context("the driver refused")?;
    }
    let Ok(folders) = fs::read_dir(path.join("uio")) else {
        bail!("no driver {DRIVER}: the kernel needs CONFIG_UIO_PCI_GENERIC_SVA");
    };
    let node = folders.flatten().next().context("the driver made no uio device")?;
    Ok(Path::new("/dev").join(node.file_name()))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
