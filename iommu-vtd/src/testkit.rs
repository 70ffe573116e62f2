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

mod space;

use std::cell::Cell;
use std::ops::Range;

use arbitrary_int::{u3, u20, u52};
use iommu_core::{Gpa, Pasid, SourceId};

pub use self::space::{AddressSpace, PageSize, Stage, flags};
use crate::memory::TableMemory;
use crate::spec::context::{
    ContextHigh, ContextLow, LegacyContextHigh, LegacyContextLow, LegacyTranslationType,
};
use crate::spec::pasid::{
    self, DirectoryEntry, FirstStageMode, PasidWord0, PasidWord1, PasidWord2, TranslationType,
};
use crate::spec::registers::{RootTableAddress, TranslationTableMode};
use crate::spec::root::RootHalf;
use crate::tables::RootLatch;

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
        AddressSpace::new(self, Stage::First, levels, 0)
    }

    /// A first-stage table for nesting: its tables lie where a second stage maps their addresses plus `bias` to,
    /// which is what its entries say.
    pub fn inner_space(&self, levels: u32, bias: u64) -> AddressSpace<'_, 'm, M> {
        AddressSpace::new(self, Stage::First, levels, bias)
    }

    /// A second-stage table of `levels` (3 to 5) that nobody has yet.
    pub fn second_space(&self, levels: u32) -> AddressSpace<'_, 'm, M> {
        AddressSpace::new(self, Stage::Second, levels, 0)
    }

    /// Makes the legacy-mode context entry of `source`. A root table serves one mode only.
    pub fn legacy_context(
        &self,
        source: SourceId,
        kind: LegacyTranslationType,
        domain: u16,
        space: &AddressSpace<'_, '_, M>,
    ) -> Gpa {
        let root = RootHalf::locate_legacy(self.root, source);
        if !RootHalf::new_with_raw_value(self.word(root)).present() {
            let table = u52::new(self.allocate(1).0 >> 12);
            self.set_word(root, RootHalf::ZERO.with_present(true).with_context_table(table).raw_value());
        }
        let at = LegacyContextLow::locate(Gpa(self.word(root) & !0xfff), source);
        let high = LegacyContextHigh::ZERO.with_did(domain).with_aw(space.width());
        let low = LegacyContextLow::ZERO
            .with_present(true)
            .with_tt(kind)
            .with_second_stage(u52::new(space.root().0 >> 12));
        self.set_word(Gpa(at.0 + 8), high.raw_value());
        self.set_word(at, low.raw_value());
        at
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

    /// Gives the PASID an existing table of either stage, which others may have too.
    pub fn attach(&self, domain: u16, space: &AddressSpace<'_, '_, M>) -> &Self {
        match space.stage() {
            Stage::First => self.set(TranslationType::First, domain, 0, first_word(space)),
            Stage::Second => self.set(TranslationType::Second, domain, second_word(space), 0),
        }
    }

    /// Nests a first stage over a second.
    pub fn nest(
        &self,
        domain: u16,
        inner: &AddressSpace<'_, '_, M>,
        outer: &AddressSpace<'_, '_, M>,
    ) -> &Self {
        self.set(TranslationType::Nested, domain, second_word(outer), first_word(inner))
    }

    /// Lets addresses through as they are.
    pub fn pass_through(&self, domain: u16) -> &Self {
        self.set(TranslationType::PassThrough, domain, 0, 0)
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
    fn set(&self, kind: TranslationType, domain: u16, word0: u64, word2: u64) -> &Self {
        let word1 = PasidWord1::ZERO.with_did(domain).with_pwsnp(true).raw_value();
        let word0 = PasidWord0::new_with_raw_value(word0).with_pgtt(kind).with_present(true).raw_value();
        self.edit(1, |_| word1).edit(2, |_| word2).edit(0, |_| word0)
    }
}

fn first_word<M: TableMemory>(space: &AddressSpace<'_, '_, M>) -> u64 {
    let mode = if space.levels() == 5 { FirstStageMode::FiveLevel } else { FirstStageMode::FourLevel };
    PasidWord2::ZERO.with_fspm(mode).with_first_stage(u52::new(space.address().0 >> 12)).raw_value()
}

fn second_word<M: TableMemory>(space: &AddressSpace<'_, '_, M>) -> u64 {
    let root = u52::new(space.root().0 >> 12);
    PasidWord0::ZERO.with_aw(space.width()).with_second_stage(root).raw_value()
}
