//! A block device, and what sysfs says of it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Alignment of memory for direct I/O; sectors would do.
const ALIGNMENT: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(60);

/// A block device.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) name: String,
    pub(crate) sectors: u64,
    pub(crate) id: String,
    /// Type of its IOMMU group; none: any that translates.
    pub(crate) group: Option<String>,
}

impl Disk {
    /// Waits for the disk: its driver may still be at work.
    pub(crate) fn find(name: &str, sectors: u64, id: &str, group: Option<String>) -> Result<Self> {
        let disk = Self { name: name.to_owned(), sectors, id: id.to_owned(), group };
        disk.wait()?;
        Ok(disk)
    }

    /// Another disk, with the same contents and no id of interest.
    pub(crate) fn named(name: Option<&String>, sectors: u64) -> Self {
        Self { name: name.cloned().unwrap_or_default(), sectors, id: String::new(), group: None }
    }

    /// Until its device file is there.
    pub(crate) fn wait(&self) -> Result<()> {
        let start = Instant::now();
        while !self.path().exists() {
            ensure!(start.elapsed() < PATIENCE, "{} does not appear", self.name);
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/dev").join(&self.name)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sectors * 512
    }

    /// For requests that leave the page cache aside.
    pub(crate) fn direct(&self) -> Result<File> {
        let opened = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(self.path());
        opened.with_context(|| format!("cannot open {} for direct I/O", self.name))
    }

    /// A file of the block layer's about the disk.
    pub(crate) fn attribute(&self, name: &str) -> Result<String> {
        let path = format!("/sys/block/{}/{name}", self.name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(text.trim().to_owned())
    }

    /// The folder of its virtio device.
    pub(crate) fn virtio(&self) -> Result<PathBuf> {
        Ok(fs::canonicalize(format!("/sys/block/{}/device", self.name))?)
    }

    /// The folder of its PCI function.
    pub(crate) fn function(&self) -> Result<PathBuf> {
        Ok(self.virtio()?.parent().context("a virtio device without a parent")?.to_owned())
    }
}

/// Memory whose `range` is aligned as direct I/O needs it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Reads `len` bytes at `offset` as one request, if the kernel does not cut it.
pub(crate) fn read(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut memory = Aligned::new(len);
    file.read_exact_at(memory.get(), offset).with_context(|| format!("read of {len} at {offset:#x}"))?;
    Ok(memory.get().to_vec())
}

/// Writes as one request, if the kernel does not cut it.
pub(crate) fn write(file: &File, offset: u64, data: &[u8]) -> Result<()> {
    let mut memory = Aligned::new(data.len());
    memory.get().copy_from_slice(data);
    let len = data.len();
    file.write_all_at(memory.get(), offset).with_context(|| format!("write of {len} at {offset:#x}"))
}

/// Nothing if they are equal; else where they differ first.
pub(crate) fn same(found: &[u8], expected: &[u8], offset: u64) -> Result<()> {
    let different = found.iter().zip(expected).position(|(a, b)| a != b);
    let at = different.map_or(0, |at| offset + at as u64);
    ensure!(found.len() == expected.len() && different.is_none(), "contents differ from {at:#x} on");
    Ok(())
}
