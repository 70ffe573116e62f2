//! Pages that lie next to each other for the device, and anywhere in memory.

use anyhow::Result;
use guest::model::Random;
use guest::sys::PAGE;

use crate::memory::{Memory, Pages};
use crate::tables::{READ_WRITE, Tables};

/// A stretch of a device's addresses and the pages behind it, in the order of these addresses.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The first address.
    pub(crate) address: u64,
    /// A page each.
    pub(crate) pages: Vec<Pages>,
}

impl View {
    /// `count` fresh pages of random bytes in random order.
    pub(crate) fn random(memory: &Memory, address: u64, count: usize, random: &mut Random) -> Result<Self> {
        let (pages, _) = memory.random(count, random)?;
        let mut pages: Vec<Pages> = pages.each().collect();
        for index in (1..pages.len()).rev() {
            pages.swap(index, random.below(index + 1));
        }
        Ok(Self { address, pages })
    }

    /// Consecutive fresh pages of random bytes, seen at their own addresses: no first stage is in between.
    pub(crate) fn plain(memory: &Memory, count: usize, random: &mut Random) -> Result<Self> {
        let (pages, _) = memory.random(count, random)?;
        Ok(Self { address: pages.address, pages: pages.each().collect() })
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Address of a page of it.
    pub(crate) fn page(&self, index: usize) -> u64 {
        self.address + (index * PAGE) as u64
    }

    /// Maps it.
    pub(crate) fn show(&self, tables: &mut Tables<'_>) -> Result<()> {
        for (index, page) in self.pages.iter().enumerate() {
            tables.map(self.page(index), page.address, READ_WRITE)?;
        }
        Ok(())
    }

    /// The CPU's view.
    pub(crate) fn read(&self, memory: &Memory) -> Vec<u8> {
        self.pages.iter().flat_map(|page| memory.read(page)).collect()
    }

    /// Stores bytes by the CPU.
    pub(crate) fn write(&self, memory: &Memory, bytes: &[u8]) {
        for (page, bytes) in self.pages.iter().zip(bytes.chunks(PAGE)) {
            memory.write(page, bytes);
        }
    }
}
