//! Gives the SVM endpoints to a driver.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

const DEVICES: &str = "/sys/bus/pci/devices";
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

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
