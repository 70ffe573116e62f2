//! Page tables of either stage.

use arbitrary_int::u3;
use iommu_core::Gpa;

use super::Tables;
use crate::memory::TableMemory;
use crate::spec::paging::{self, FirstStageEntry, SecondStageEntry};

/// Bits of entries for [`AddressSpace::map`].
pub mod flags {
    use crate::spec::paging::{FirstStageEntry, SecondStageEntry};

    /// First stage: U/S.
    pub const USER: u64 = FirstStageEntry::user_mask();
    /// First stage: R/W.
    pub const WRITE: u64 = FirstStageEntry::write_mask();
    /// First stage: A. Given for a leaf, the tables that lead to it have it too.
    pub const ACCESSED: u64 = FirstStageEntry::accessed_mask();
    /// First stage: D.
    pub const DIRTY: u64 = FirstStageEntry::dirty_mask();
    /// First stage: EA.
    pub const EXTENDED_ACCESSED: u64 = FirstStageEntry::extended_accessed_mask();
    /// First stage: all that a driver sets that does not rely on the hardware to maintain A and D.
    pub const READY: u64 = USER | WRITE | ACCESSED | DIRTY;

    /// Second stage: R.
    pub const SECOND_READ: u64 = SecondStageEntry::read_mask();
    /// Second stage: W.
    pub const SECOND_WRITE: u64 = SecondStageEntry::write_mask();
    /// Second stage: A. Given for a leaf, the tables that lead to it have it too.
    pub const SECOND_ACCESSED: u64 = SecondStageEntry::accessed_mask();
    /// Second stage: D.
    pub const SECOND_DIRTY: u64 = SecondStageEntry::dirty_mask();
    /// Second stage: R and W.
    pub const SECOND: u64 = SECOND_READ | SECOND_WRITE;
}

/// Size of a page; the value is the level of its leaf entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Size4K = 1,
    /// 2 MiB.
    Size2M = 2,
    /// 1 GiB.
    Size1G = 3,
}

impl PageSize {
    /// Level of the leaf entry.
    #[must_use]
    pub const fn level(self) -> u32 {
        self as u32
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << paging::page_bits(self.level())
    }
}

/// Format of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// x86-64 paging.
    First,
    /// Second-stage paging.
    Second,
}

impl Stage {
    /// What a leaf has besides the flags that are asked for.
    const fn leaf(self) -> u64 {
        match self {
            Self::First => FirstStageEntry::present_mask(),
            Self::Second => 0,
        }
    }

    /// What a table entry has, and what it takes over from the flags of a leaf.
    const fn table(self) -> (u64, u64) {
        match self {
            Self::First => (FirstStageEntry::present_mask() | flags::USER | flags::WRITE, flags::ACCESSED),
            Self::Second => (flags::SECOND, flags::SECOND_ACCESSED),
        }
    }

    /// An entry without any of these is not present.
    const fn present(self) -> u64 {
        match self {
            Self::First => FirstStageEntry::present_mask(),
            Self::Second => flags::SECOND,
        }
    }
}

/// A page table.
pub struct AddressSpace<'t, 'm, M> {
    tables: &'t Tables<'m, M>,
    stage: Stage,
    root: Gpa,
    levels: u32,
    bias: u64,
}

impl<'t, 'm, M: TableMemory> AddressSpace<'t, 'm, M> {
    pub(super) fn new(tables: &'t Tables<'m, M>, stage: Stage, levels: u32, bias: u64) -> Self {
        Self { tables, stage, root: tables.allocate(1), levels, bias }
    }

    /// Where the top-level table lies in memory.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.root
    }

    /// What entries call the top-level table: [`Self::root`], but for the tables of a nested first stage.
    #[must_use]
    pub fn address(&self) -> Gpa {
        Gpa(self.root.0 + self.bias)
    }

    /// Number of levels.
    #[must_use]
    pub fn levels(&self) -> u32 {
        self.levels
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// What AW says of a second stage.
    pub(super) fn width(&self) -> u3 {
        u3::from_u32(self.levels - 2)
    }

    /// Maps one page; tables that are missing are made and allow everything.
    pub fn map(&self, iova: u64, gpa: u64, size: PageSize, flags: u64) -> &Self {
        let (always, inherited) = self.stage.table();
        let mut table = self.root;
        for level in (size.level() + 1..=self.levels).rev() {
            let at = paging::locate(table, iova, level);
            if self.tables.word(at) & self.stage.present() == 0 {
                let entry = self.tables.allocate(1).0 + self.bias;
                self.tables.set_word(at, entry | always | flags & inherited);
            }
            table = self.next(at);
        }
        let at = paging::locate(table, iova, size.level());
        let page_size = if size == PageSize::Size4K { 0 } else { FirstStageEntry::page_size_mask() };
        let leaf = gpa & !(size.bytes() - 1) | flags | self.stage.leaf() | page_size;
        self.tables.set_word(at, leaf);
        self
    }

    /// Makes the page at `iova` not present.
    pub fn unmap(&self, iova: u64, size: PageSize) -> &Self {
        self.tables.set_word(self.entry_at(iova, size.level()), 0);
        self
    }

    /// Where the entry of `level` for `iova` lies; the tables above it exist.
    #[must_use]
    pub fn entry_at(&self, iova: u64, level: u32) -> Gpa {
        let mut table = self.root;
        for above in (level + 1..=self.levels).rev() {
            table = self.next(paging::locate(table, iova, above));
        }
        paging::locate(table, iova, level)
    }

    fn next(&self, at: Gpa) -> Gpa {
        Gpa((self.tables.word(at) & FirstStageEntry::address_mask()).wrapping_sub(self.bias))
    }

    /// The entry of `level` for `iova` of a first stage.
    #[must_use]
    pub fn entry(&self, iova: u64, level: u32) -> FirstStageEntry {
        FirstStageEntry::new_with_raw_value(self.tables.word(self.entry_at(iova, level)))
    }

    /// The entry of `level` for `iova` of a second stage.
    #[must_use]
    pub fn second_entry(&self, iova: u64, level: u32) -> SecondStageEntry {
        SecondStageEntry::new_with_raw_value(self.tables.word(self.entry_at(iova, level)))
    }

    /// Changes the entry of `level` for `iova`.
    pub fn edit(&self, iova: u64, level: u32, change: impl FnOnce(u64) -> u64) -> &Self {
        let at = self.entry_at(iova, level);
        self.tables.set_word(at, change(self.tables.word(at)));
        self
    }
}
