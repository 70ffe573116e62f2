//! Kernel modules that the image carries for kernels that are not built for these tests.

use std::fs;
use std::io::ErrorKind;

use crate::sys;

const FOLDER: &str = "/lib/modules";

/// Loads what `/lib/modules/order` lists; returns a line for each that the kernel refuses.
pub(crate) fn load_all() -> Vec<String> {
    let order = fs::read_to_string(format!("{FOLDER}/order")).unwrap_or_default();
    order.lines().filter_map(load).collect()
}

fn load(name: &str) -> Option<String> {
    let path = format!("{FOLDER}/{name}");
    match fs::File::open(&path).and_then(|file| sys::load_module(&file)) {
        Ok(()) => None,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
        Err(error) => Some(format!("{path}: {error}")),
    }
}
