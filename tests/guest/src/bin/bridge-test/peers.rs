//! The endpoint's own memory where other devices of the guest's would find it. Which page of the host's an address leads
//! to is told by the host's driver, of the tables that it wrote.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use guest::sys::PAGE_BYTES;
use iommu_core::{Domain, DomainId};
use rustix::io::Errno;
use vfio_bridge::function_file::FunctionFile;
use vfio_bridge::memory::SharedMemory;

use crate::rig::{COMMAND, MEMORY_AND_MASTER, Place, Rig};

/// Where the guest sees it, and where it moves it to.
const AT: u64 = 0xc000_0000;
const ELSEWHERE: u64 = 0xc123_4000;
const TABLES: &str = "/sys/kernel/debug/iommu/intel";

/// The host's page that an address of the endpoint's leads to.
fn page_at(place: &Place, address: u64) -> Result<Option<u64>> {
    let path = format!("{TABLES}/{}/domain_translation_struct", place.name());
    let text = fs::read_to_string(&path).context(path)?;
    let start = format!("{:#015x} |", address / PAGE_BYTES);
    let line = text.lines().find(|line| line.starts_with(&start));
    let entry = line.and_then(|line| line.split_whitespace().next_back());
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16);
    let entry = entry.map(hex).transpose().context("a strange table")?;
    Ok(entry.map(|entry| entry & 0x000f_ffff_ffff_f000))
}

/// Where the host has the endpoint's first BAR.
fn first_bar(place: &Place) -> Result<u64> {
    let text = fs::read_to_string(format!("/sys/bus/pci/devices/{}/resource", place.name()))?;
    let start = text.split_whitespace().next().context("no BAR")?;
    u64::from_str_radix(start.trim_start_matches("0x"), 16).context("a strange BAR")
}

struct Peers<'a> {
    place: &'a Place,
    rig: &'a Rig,
    memory: SharedMemory,
    bar: u64,
}

impl Peers<'_> {
    fn share(&self, at: u64) -> Result<Box<dyn Send + Sync>, Option<Errno>> {
        let shared = self.rig.choice.bridge.share(at, &self.memory);
        shared.map_err(|error| Errno::from_io_error(&error.source))
    }

    fn shared(&self, at: u64) -> Result<Box<dyn Send + Sync>> {
        let shared = self.share(at).map_err(|errno| anyhow::anyhow!("not let at {at:#x}: {errno:?}"))?;
        self.leads(at, true, "mapped")?;
        Ok(shared)
    }

    fn refused(&self, at: u64, expected: Errno, what: &str) -> Result<()> {
        let errno = self.share(at).err().flatten();
        ensure!(errno == Some(expected), "{what}: {errno:?} instead of {expected}");
        Ok(())
    }

    fn leads(&self, at: u64, there: bool, what: &str) -> Result<()> {
        let (page, expected) = (page_at(self.place, at)?, there.then_some(self.bar));
        ensure!(page == expected, "{what}: {at:#x} leads to {page:x?} instead of {expected:x?}");
        Ok(())
    }

    fn switch(&self, command: u16) -> Result<()> {
        self.rig.device.write_all_at(&command.to_le_bytes(), COMMAND).context("no configuration space")
    }
}

/// Mapped, moved, taken back by the host when the memory is switched off and when the device is reset, mapped again.
pub(crate) fn device_memory(place: &Place, rig: &Rig) -> Result<()> {
    let function = rig.function()?;
    for (what, bar, range, expected) in [
        ("no such region", 9, 0..PAGE_BYTES, Errno::NODEV),
        ("no whole pages", 0, 0x10..PAGE_BYTES, Errno::INVAL),
        ("beyond the end", 0, 0..1 << 40, Errno::INVAL),
    ] {
        let errno = function.share(bar, range).err();
        ensure!(errno == Some(expected), "{what}: {errno:?} instead of {expected}");
    }
    rig.bind(&Domain::PassThrough { id: DomainId(1) })?;
    let memory = function.share(0, 0..PAGE_BYTES).context("the host makes no dma-buf")?;
    let peers = Peers { place, rig, memory, bar: first_bar(place)? };
    peers.leads(AT, false, "at first")?;
    let held = peers.shared(AT)?;
    peers.refused(AT, Errno::EXIST, "twice")?;
    drop(held);
    peers.leads(AT, false, "taken back")?;
    let held = peers.shared(ELSEWHERE)?;
    peers.leads(AT, false, "moved")?;
    peers.switch(0)?;
    peers.leads(ELSEWHERE, false, "its memory is off")?;
    peers.refused(AT, Errno::NODEV, "its memory is off")?;
    peers.switch(MEMORY_AND_MASTER)?;
    peers.leads(ELSEWHERE, false, "its memory is on again")?;
    drop(held);
    let held = peers.shared(ELSEWHERE)?;
    function.reset().context("the endpoint is not reset")?;
    peers.leads(ELSEWHERE, false, "it was reset")?;
    drop(held);
    peers.switch(MEMORY_AND_MASTER)?;
    drop(peers.shared(ELSEWHERE)?);
    peers.leads(ELSEWHERE, false, "in the end")
}
