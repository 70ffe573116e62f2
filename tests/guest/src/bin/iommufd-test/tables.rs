//! First-stage tables as a guest would write them: x86-64 page tables in the memory that devices see.

use anyhow::{Context, Result, ensure};
use guest::sys::PAGE_BYTES;

use crate::memory::{Memory, Pages};
use crate::sys::VtdS1;

/// Present.
pub(crate) const PRESENT: u64 = 1;
/// Writes are allowed.
pub(crate) const WRITE: u64 = 1 << 1;
/// Requests without privilege are allowed.
pub(crate) const USER: u64 = 1 << 2;
/// Was used.
pub(crate) const ACCESSED: u64 = 1 << 5;
/// Was written.
pub(crate) const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Rights of an ordinary page.
pub(crate) const READ_WRITE: u64 = PRESENT | WRITE | USER;
/// Rights of a page that is not to be written.
pub(crate) const READ_ONLY: u64 = PRESENT | USER;

/// Size of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

impl Leaf {
    fn level(self) -> u32 {
        match self {
            Self::Small => 1,
            Self::Large => 2,
            Self::Huge => 3,
        }
    }

    /// Bytes.
    pub(crate) fn bytes(self) -> u64 {
        PAGE_BYTES << (9 * (self.level() - 1))
    }
}

/// One address space of a device.
#[derive(Clone, Debug)]
pub(crate) struct Tables<'a> {
    memory: &'a Memory,
    root: Pages,
    levels: u32,
    /// Every table, the root first.
    tables: Vec<Pages>,
    /// Set in every entry from the start: with accessed and dirty, nothing is left for the device to update.
    preset: u64,
}

impl<'a> Tables<'a> {
    /// Nothing mapped; 4 or 5 levels.
    pub(crate) fn new(memory: &'a Memory, levels: u32) -> Result<Self> {
        let root = memory.take(1)?;
        Ok(Self { memory, tables: vec![root.clone()], root, levels, preset: 0 })
    }

    /// As [`Tables::new`], with accessed and dirty set in everything that is mapped later.
    pub(crate) fn settled(memory: &'a Memory, levels: u32) -> Result<Self> {
        Ok(Self { preset: ACCESSED | DIRTY, ..Self::new(memory, levels)? })
    }

    /// What the kernel wants to know of it.
    pub(crate) fn describe(&self) -> VtdS1 {
        let address_width = self.levels * 9 + 12;
        VtdS1 { flags: 0, root: self.root.address, address_width, reserved: 0 }
    }

    /// The pages that hold tables.
    pub(crate) fn tables(&self) -> &[Pages] {
        &self.tables
    }

    /// Maps one leaf.
    pub(crate) fn map_leaf(&mut self, at: u64, to: u64, leaf: Leaf, rights: u64) -> Result<()> {
        ensure!(to.is_multiple_of(leaf.bytes()), "{to:#x} is not aligned to {leaf:?}");
        let large = if leaf == Leaf::Small { 0 } else { LARGE };
        let table = self.table(at, leaf.level())?;
        self.memory.store(&table, index(at, leaf.level()), to | rights | large | self.preset);
        Ok(())
    }

    /// Maps a page.
    pub(crate) fn map(&mut self, at: u64, to: u64, rights: u64) -> Result<()> {
        self.map_leaf(at, to, Leaf::Small, rights)
    }

    /// Takes a page away.
    pub(crate) fn unmap(&mut self, at: u64) -> Result<()> {
        let table = self.table(at, 1)?;
        self.memory.store(&table, index(at, 1), 0);
        Ok(())
    }

    /// Puts an empty table in the place of the page table on the way to an address.
    pub(crate) fn renew_table(&mut self, at: u64) -> Result<()> {
        let above = self.table(at, 2)?;
        self.memory.store(&above, index(at, 2), 0);
        self.table(at, 1).map(drop)
    }

    /// The entry at `level` on the way to an address, counted from 1 for the page table.
    pub(crate) fn entry(&self, at: u64, level: u32) -> Result<u64> {
        let mut table = self.root.clone();
        for upper in (level + 1..=self.levels).rev() {
            let entry = self.memory.load(&table, index(at, upper));
            ensure!(entry & PRESENT != 0, "{at:#x} has no table below level {upper}");
            table = self.memory.find(entry & ADDRESS)?;
        }
        Ok(self.memory.load(&table, index(at, level)))
    }

    /// The table of `level` on the way to an address, made if there is none.
    fn table(&mut self, at: u64, level: u32) -> Result<Pages> {
        let mut table = self.root.clone();
        for upper in (level + 1..=self.levels).rev() {
            let entry = self.memory.load(&table, index(at, upper));
            table = if entry & PRESENT == 0 {
                let new = self.memory.take(1).context("no memory for a table")?;
                let accessed = self.preset & ACCESSED;
                self.memory.store(&table, index(at, upper), new.address | READ_WRITE | accessed);
                self.tables.push(new.clone());
                new
            } else {
                ensure!(entry & LARGE == 0, "{at:#x} is in a large page");
                self.memory.find(entry & ADDRESS)?
            };
        }
        Ok(table)
    }
}

fn index(at: u64, level: u32) -> usize {
    usize::try_from(at >> (12 + 9 * (level - 1)) & 0x1ff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_where_the_processor_looks() {
        let memory = Memory::new(600, 0x1_0000_0000, false).unwrap();
        for (levels, at, width) in [(4, 0x7fff_0020_3000_u64, 48), (5, 0x007f_ff80_0040_5000, 57)] {
            let mut tables = Tables::new(&memory, levels).unwrap();
            let page = memory.take(1).unwrap();
            tables.map(at, page.address, READ_ONLY).unwrap();
            assert_eq!(tables.entry(at, 1).unwrap(), page.address | READ_ONLY);
            assert_eq!(tables.describe().address_width, width);
            let top = memory.load(&tables.root, usize::try_from(at >> (width - 9)).unwrap());
            assert_eq!(top, tables.entry(at, levels).unwrap());
            assert_eq!(top & 0xfff, READ_WRITE);
            assert_eq!(tables.tables().len(), usize::try_from(levels).unwrap());
        }
        let mut settled = Tables::settled(&memory, 4).unwrap();
        settled.map_leaf(0x4000_0000, 0x1_0020_0000, Leaf::Large, READ_WRITE).unwrap();
        assert_eq!(settled.entry(0x4000_0000, 2).unwrap(), 0x1_0020_0000 | 0xe7);
        assert_eq!(settled.entry(0x4000_0000, 3).unwrap() & 0xfff, 0x27);
    }
}
