//! The endpoint as the kernel shows it: sysfs, and the uio device of `uio_pci_generic_sva`.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::regs::BAR_BYTES;
use super::{Endpoint, Registers, Session};
use crate::sys::Bar;

const DEVICES: &str = "/sys/bus/pci/devices";

/// The first SVM endpoint of this machine: its folder in sysfs.
///
/// # Errors
/// There is none.
pub fn find() -> Result<PathBuf> {
    let folders = fs::read_dir(DEVICES).with_context(|| format!("cannot read {DEVICES}"))?;
    let mut folders: Vec<PathBuf> = folders.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let endpoint = folders.into_iter().find(|folder| {
        let is =
            |file: &str, id: &str| fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim() == id);
        is("vendor", "0x1af4") && is("device", "0x10f0")
    });
    endpoint.context("no SVM endpoint 1af4:10f0: start svmm with --svm")
}

/// An endpoint on the PCI bus, bound to the uio driver.
pub struct PciEndpoint {
    folder: PathBuf,
    node: PathBuf,
}

impl PciEndpoint {
    /// The first SVM endpoint of this machine.
    ///
    /// # Errors
    /// There is none, or it has another driver.
    pub fn find() -> Result<Self> {
        let folder = find()?;
        let Some(node) = fs::read_dir(folder.join("uio")).ok().and_then(|mut nodes| nodes.next()) else {
            bail!("{} is not bound to the driver uio_pci_sva", folder.display());
        };
        let node = Path::new("/dev").join(node?.file_name());
        Ok(Self { folder, node })
    }
}

impl Endpoint for PciEndpoint {
    fn open(&self) -> Result<Session> {
        let node = &self.node;
        let open = OpenOptions::new().read(true).write(true).open(node);
        let file =
            open.with_context(|| format!("cannot bind this address space through {}", node.display()))?;
        let registers =
            Bar::map(&file, 0, BAR_BYTES).with_context(|| format!("cannot map {}", node.display()))?;
        let text = fs::read_to_string(self.folder.join("pasid")).context("the driver shows no pasid")?;
        let pasid = text.trim().parse().with_context(|| format!("the driver shows the pasid {text:?}"))?;
        Ok(Session { registers: Arc::new(registers), pasid, interrupts: file })
    }

    fn peek(&self) -> Result<Arc<dyn Registers>> {
        let path = self.folder.join("resource0");
        let open = OpenOptions::new().read(true).write(true).open(&path);
        let file = open.with_context(|| format!("cannot open {}", path.display()))?;
        let bar = Bar::map(&file, 0, BAR_BYTES).with_context(|| format!("cannot map {}", path.display()))?;
        Ok(Arc::new(bar))
    }

    fn config(&self) -> Result<ConfigSpace> {
        let path = self.folder.join("config");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(bytes.len() == 4096, "{} shows {} bytes, not 4096", path.display(), bytes.len());
        Ok(ConfigSpace { bytes })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn again(&self) -> Result<Box<dyn Endpoint>> {
        Ok(Box::new(Self { folder: self.folder.clone(), node: self.node.clone() }))
    }

    fn arguments(&self) -> Vec<OsString> {
        Vec::new()
    }
}

/// A function's configuration space.
pub struct ConfigSpace {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// From the bytes as the function shows them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// 16 bits at an offset; zero beyond the end.
    pub fn word(&self, offset: usize) -> u16 {
        let byte = |at: usize| self.bytes.get(at).copied().unwrap_or(0);
        u16::from_le_bytes([byte(offset), byte(offset + 1)])
    }

    /// Where the extended capability `id` starts.
    pub fn extended_capability(&self, id: u16) -> Option<usize> {
        const FIRST: usize = 0x100;
        /// More capabilities than the space has room for are a loop.
        const MOST: usize = (4096 - FIRST) / 8;
        let mut offset = FIRST;
        for _ in 0..MOST {
            if offset < FIRST {
                return None;
            }
            if self.word(offset) == id {
                return Some(offset);
            }
            offset = usize::from(self.word(offset + 2) >> 4);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_capabilities_are_a_list_that_may_be_broken() {
        let space = |links: &[(usize, u16, u16)]| {
            let mut bytes = vec![0; 4096];
            for (at, id, next) in links {
                bytes[*at..at + 2].copy_from_slice(&id.to_le_bytes());
                bytes[at + 2..at + 4].copy_from_slice(&((next << 4) | 1).to_le_bytes());
            }
            ConfigSpace::new(bytes)
        };
        let good = space(&[(0x100, 0xf, 0x140), (0x140, 0x1b, 0)]);
        assert_eq!(good.extended_capability(0xf), Some(0x100));
        assert_eq!(good.extended_capability(0x1b), Some(0x140));
        assert_eq!(good.extended_capability(0x13), None);
        let endless = space(&[(0x100, 0xf, 0x140), (0x140, 0x1b, 0x100)]);
        assert_eq!(endless.extended_capability(0x13), None);
    }
}
