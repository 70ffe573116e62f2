//! Builders that lay root, context, PASID and page tables out in guest memory, as a guest's driver would.
//!
//! ```
//! # use vm_memory::{GuestAddress, GuestMemoryMmap};
//! # use iommu_core::{Gpa, SourceId};
//! use iommu_vtd::testkit::{PageSize, Tables, flags};
//! # let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 22)]).unwrap();
//! let tables = Tables::new(&memory, 0x10_0000..0x20_0000);
//! let process = tables.context(SourceId(8)).pasid(5).first_stage(1);
//! process.map(0x7000_0000_0000, 0x30_0000, PageSize::Size4K, flags::USER | flags::WRITE);
//! assert!(tables.latch().enabled());
//! ```
//!
//! Tables are written as 64-bit words, so that a test can also spoil them: every builder says where its
//! entries lie. All panic if the area is used up or is not memory: a test that cannot set up has failed.
#![allow(clippy::expect_used, clippy::panic, reason = "only tests use it")]

use std::cell::Cell;
use std::ops::Range;

use arbitrary_int::{u3, u20, u52};
use iommu_core::{Gpa, Pasid, SourceId};

use crate::memory::TableMemory;
use crate::spec::context::{ContextHigh, ContextLow};
use crate::spec::paging::{self, FirstStageEntry};
use crate::spec::pasid::{
    self, DirectoryEntry, FirstStageMode, PasidWord0, PasidWord1, PasidWord2, TranslationType,
};
use crate::spec::registers::{RootTableAddress, TranslationTableMode};
use crate::spec::root::RootHalf;
use crate::tables::RootLatch;

/// Bits of first-stage entries for [`AddressSpace::map`].
pub mod flags {
    use crate::spec::paging::FirstStageEntry;

    /// U/S.
    pub const USER: u64 = FirstStageEntry::user_mask();
    /// R/W.
    pub const WRITE: u64 = FirstStageEntry::write_mask();
    /// A. Given for a leaf, the tables that lead to it have it too.
    pub const ACCESSED: u64 = FirstStageEntry::accessed_mask();
    /// D.
    pub const DIRTY: u64 = FirstStageEntry::dirty_mask();
    /// EA.
    pub const EXTENDED_ACCESSED: u64 = FirstStageEntry::extended_accessed_mask();
    /// All that a driver sets that does not rely on the hardware to maintain A and D.
    pub const READY: u64 = USER | WRITE | ACCESSED | DIRTY;
}

/// Size of a first-stage page; the value is the level of its leaf entry.
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

/// A root table and the area in which everything else is allocated.
pub struct Tables<'m, M> {
    memory: &'m M,
    next: Cell<u64>,
    end: u64,
    root: Gpa,
}

impl<'m, M: TableMemory> Tables<'m, M> {
    /// An empty root table at the start of `area`, which is page-aligned and belongs to the tables from now on.
    #[must_use]
    pub fn new(memory: &'m M, area: Range<u64>) -> Self {
        let mut tables = Self { memory, next: Cell::new(area.start), end: area.end, root: Gpa(0) };
        tables.root = tables.allocate(1);
        tables
    }

    /// Zeroed pages that follow each other.
    pub fn allocate(&self, pages: u64) -> Gpa {
        let start = self.next.get();
        let end = start + pages * 4096;
        assert!(end <= self.end, "the area of the tables is used up");
        self.next.set(end);
        for page in (start..end).step_by(4096) {
            assert!(self.memory.write(Gpa(page), &[0; 4096]), "the area of the tables is not memory");
        }
        Gpa(start)
    }

    /// Address of the root table.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.root
    }

    /// What a driver writes into RTADDR for scalable mode.
    #[must_use]
    pub fn root_register(&self) -> RootTableAddress {
        RootTableAddress::new_with_raw_value(self.root.0).with_ttm(TranslationTableMode::Scalable)
    }

    /// The root latched and translation enabled.
    #[must_use]
    pub fn latch(&self) -> RootLatch {
        RootLatch::new(self.root_register().raw_value(), true)
    }

    /// The context entry of `source`. Made at the first call: ATS, PASID and page requests on, RID_PASID 0, and
    /// a directory for PASIDs up to 7FFFh.
    pub fn context(&self, source: SourceId) -> ContextBuilder<'_, 'm, M> {
        let half = RootHalf::locate(self.root, source);
        if !RootHalf::new_with_raw_value(self.word(half)).present() {
            let table = u52::new(self.allocate(1).0 >> 12);
            self.set_word(half, RootHalf::ZERO.with_present(true).with_context_table(table).raw_value());
        }
        let at = ContextLow::locate(Gpa(self.word(half) & !0xfff), source);
        let context = ContextBuilder { tables: self, at };
        if !context.low().present() {
            let low = ContextLow::ZERO
                .with_present(true)
                .with_dte(true)
                .with_paside(true)
                .with_pre(true)
                .with_pdts(u3::new(2))
                .with_directory(u52::new(self.allocate(1).0 >> 12));
            context.edit(|_| low);
        }
        context
    }

    /// Reads a word.
    #[must_use]
    pub fn word(&self, gpa: Gpa) -> u64 {
        self.memory.load(gpa).expect("tables lie in memory")
    }

    /// Writes a word.
    pub fn set_word(&self, gpa: Gpa, word: u64) {
        assert!(self.memory.write(gpa, &word.to_le_bytes()), "tables lie in memory");
    }

    /// A first-stage table of `levels` (4 or 5) that no PASID has yet.
    pub fn address_space(&self, levels: u32) -> AddressSpace<'_, 'm, M> {
        AddressSpace { tables: self, root: self.allocate(1), levels }
    }
}

/// A context entry.
pub struct ContextBuilder<'t, 'm, M> {
    tables: &'t Tables<'m, M>,
    at: Gpa,
}

impl<'t, 'm, M: TableMemory> ContextBuilder<'t, 'm, M> {
    /// Where the entry lies.
    #[must_use]
    pub fn at(&self) -> Gpa {
        self.at
    }

    fn low(&self) -> ContextLow {
        ContextLow::new_with_raw_value(self.tables.word(self.at))
    }

    /// Changes bits 63:0.
    pub fn edit(&self, change: impl FnOnce(ContextLow) -> ContextLow) -> &Self {
        self.tables.set_word(self.at, change(self.low()).raw_value());
        self
    }

    /// Sets the PASID that stands for none.
    pub fn rid_pasid(&self, pasid: u32) -> &Self {
        let at = Gpa(self.at.0 + 8);
        let high = ContextHigh::new_with_raw_value(self.tables.word(at));
        self.tables.set_word(at, high.with_rid_pasid(u20::new(pasid)).raw_value());
        self
    }

    /// The PASID entry that serves requests without PASID.
    #[must_use]
    pub fn without_pasid(&self) -> PasidBuilder<'t, 'm, M> {
        let high = ContextHigh::new_with_raw_value(self.tables.word(Gpa(self.at.0 + 8)));
        self.pasid(high.rid_pasid().value())
    }

    /// The entry of a PASID: all zero until it is given something to do.
    #[must_use]
    pub fn pasid(&self, pasid: u32) -> PasidBuilder<'t, 'm, M> {
        let pasid = Pasid::new(pasid).expect("a PASID has 20 bits");
        let directory = DirectoryEntry::locate(Gpa(self.low().raw_value() & !0xfff), pasid);
        if !DirectoryEntry::new_with_raw_value(self.tables.word(directory)).present() {
            let table = u52::new(self.tables.allocate(1).0 >> 12);
            let entry = DirectoryEntry::ZERO.with_present(true).with_table(table);
            self.tables.set_word(directory, entry.raw_value());
        }
        let at = pasid::locate(Gpa(self.tables.word(directory) & !0xfff), pasid);
        PasidBuilder { tables: self.tables, directory, at }
    }
}

/// A PASID entry.
pub struct PasidBuilder<'t, 'm, M> {
    tables: &'t Tables<'m, M>,
    directory: Gpa,
    at: Gpa,
}

impl<'t, 'm, M: TableMemory> PasidBuilder<'t, 'm, M> {
    /// Where the entry lies.
    #[must_use]
    pub fn at(&self) -> Gpa {
        self.at
    }

    /// Where its directory entry lies.
    #[must_use]
    pub fn directory_at(&self) -> Gpa {
        self.directory
    }

    /// Gives the PASID a new, empty first-stage table of four levels; coherent, under domain `domain`.
    pub fn first_stage(&self, domain: u16) -> AddressSpace<'t, 'm, M> {
        let space = self.tables.address_space(4);
        self.attach(domain, &space);
        space
    }

    /// Gives the PASID an existing first-stage table, which others may have too.
    pub fn attach(&self, domain: u16, space: &AddressSpace<'_, '_, M>) -> &Self {
        let mode = if space.levels == 5 { FirstStageMode::FiveLevel } else { FirstStageMode::FourLevel };
        let word2 =
            PasidWord2::ZERO.with_fspm(mode).with_first_stage(u52::new(space.root.0 >> 12)).raw_value();
        self.set(TranslationType::First, domain, word2)
    }

    /// Lets addresses through as they are.
    pub fn pass_through(&self, domain: u16) -> &Self {
        self.set(TranslationType::PassThrough, domain, 0)
    }

    /// Clears "present", as a driver does before it tears down.
    pub fn clear(&self) -> &Self {
        self.edit(0, |word| word & !PasidWord0::present_mask())
    }

    /// Changes one of the eight words.
    pub fn edit(&self, word: u64, change: impl FnOnce(u64) -> u64) -> &Self {
        let at = Gpa(self.at.0 + word * 8);
        self.tables.set_word(at, change(self.tables.word(at)));
        self
    }

    /// "Present" is set last, as a driver does it.
    fn set(&self, kind: TranslationType, domain: u16, word2: u64) -> &Self {
        let word1 = PasidWord1::ZERO.with_did(domain).with_pwsnp(true).raw_value();
        let word0 = PasidWord0::ZERO.with_pgtt(kind).with_present(true).raw_value();
        self.edit(1, |_| word1).edit(2, |_| word2).edit(0, |_| word0)
    }
}

/// A first-stage table.
pub struct AddressSpace<'t, 'm, M> {
    tables: &'t Tables<'m, M>,
    root: Gpa,
    levels: u32,
}

impl<M: TableMemory> AddressSpace<'_, '_, M> {
    /// Address of the top-level table.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.root
    }

    /// Maps one page; tables that are missing are made, present, writable and for users.
    pub fn map(&self, iova: u64, gpa: u64, size: PageSize, flags: u64) -> &Self {
        let mut table = self.root;
        for level in (size.level() + 1..=self.levels).rev() {
            let at = paging::locate(table, iova, level);
            if !FirstStageEntry::new_with_raw_value(self.tables.word(at)).present() {
                let entry = self.tables.allocate(1).0 | FirstStageEntry::present_mask();
                let flags = flags::USER | flags::WRITE | flags & flags::ACCESSED;
                self.tables.set_word(at, entry | flags);
            }
            table = Gpa(self.tables.word(at) & FirstStageEntry::address_mask());
        }
        let at = paging::locate(table, iova, size.level());
        let leaf = gpa & !(size.bytes() - 1) | flags | FirstStageEntry::present_mask();
        let page_size = if size == PageSize::Size4K { 0 } else { FirstStageEntry::page_size_mask() };
        self.tables.set_word(at, leaf | page_size);
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
            let at = paging::locate(table, iova, above);
            table = Gpa(self.tables.word(at) & FirstStageEntry::address_mask());
        }
        paging::locate(table, iova, level)
    }

    /// The entry of `level` for `iova`.
    #[must_use]
    pub fn entry(&self, iova: u64, level: u32) -> FirstStageEntry {
        FirstStageEntry::new_with_raw_value(self.tables.word(self.entry_at(iova, level)))
    }

    /// Changes the entry of `level` for `iova`.
    pub fn edit(&self, iova: u64, level: u32, change: impl FnOnce(u64) -> u64) -> &Self {
        let at = self.entry_at(iova, level);
        self.tables.set_word(at, change(self.tables.word(at)));
        self
    }
}
