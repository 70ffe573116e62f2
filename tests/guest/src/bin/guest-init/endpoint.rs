//! Gives the SVM endpoint, and the DMA engine where it is to be assigned, to a driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

const DEVICES: &str = "/sys/bus/pci/devices";

/// A kind of function: its vendor and its device id, as sysfs has them.
pub(crate) struct Kind(&'static str, &'static str);

/// The SVM endpoint.
pub(crate) const ENDPOINT: Kind = Kind("0x1af4", "0x10f0");
/// The DMA engine, which a driver of the kernel takes first.
pub(crate) const ENGINE: Kind = Kind("0x8086", "0x2021");

/// Binds every function of these kinds by `bind`, which says what node it has become; returns one line for each, to be
/// printed.
pub(crate) fn bind_all(kinds: &[Kind], bind: impl Fn(&Path) -> Result<PathBuf>) -> Vec<String> {
    find(kinds)
        .into_iter()
        .map(|path| match bind(&path) {
            Ok(node) => format!("{} is {}", name(&path), node.display()),
            Err(error) => format!("{}: {error:#}", name(&path)),
        })
        .collect()
}

/// How long an endpoint is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the first SVM endpoint reads as ones. The status of that: 0, or 1 if it never does.
pub(crate) fn wait_until_gone() -> u32 {
    let Some(endpoint) = find(&[ENDPOINT]).into_iter().next() else {
        println!("guest-init: there is no endpoint");
        return 1;
    };
    println!("guest-init: waits until {} is gone", name(&endpoint));
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let gone = fs::read(endpoint.join("config")).is_ok_and(|bytes| bytes.starts_with(&[0xff; 4]));
        if gone {
            println!("guest-init: {} is gone", name(&endpoint));
            return 0;
        }
        thread::sleep(Duration::from_millis(20));
    }
    println!("guest-init: {} stays", name(&endpoint));
    1
}

/// Drivers that come get no interrupts for functions of this kind.
pub(crate) fn forbid_interrupts(kind: &'static Kind) {
    for path in find(std::slice::from_ref(kind)) {
        if let Err(error) = fs::write(path.join("msi_bus"), "0") {
            println!("guest-init: {} keeps its interrupts: {error}", path.display());
        }
    }
}

/// Every function of these kinds.
fn find(kinds: &[Kind]) -> Vec<PathBuf> {
    let folders = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let mut paths: Vec<_> = folders.map(|entry| entry.path()).collect();
    paths.sort();
    paths.retain(|path| kinds.iter().any(|kind| kind.is(path)));
    paths
}

impl Kind {
    fn is(&self, path: &Path) -> bool {
        let has = |file: &str, value: &str| {
            fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == value)
        };
        has("vendor", self.0) && has("device", self.1)
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
