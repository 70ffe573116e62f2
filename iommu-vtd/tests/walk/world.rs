//! One small guest: a function with three bindings, and the requests it makes.

use std::cell::Cell;

use iommu_core::{
    Access, AddressType, Completion, Fault, Gpa, GroupIndex, Iova, PageRequest, Pasid, Request, SourceId,
    Tag, Translation, VendorData,
};
use iommu_vtd::ats::admit_page_request;
use iommu_vtd::memory::TableMemory;
use iommu_vtd::rules::Rules;
use iommu_vtd::spec::context::LegacyTranslationType;
use iommu_vtd::spec::paging;
use iommu_vtd::spec::registers::{Cap, Ecap};
use iommu_vtd::tables::{Context, RootLatch};
use iommu_vtd::testkit::{AddressSpace, ContextBuilder, PageSize, PasidBuilder, Tables, flags};
use iommu_vtd::translate::translate;
use vm_memory::{GuestAddress, GuestMemoryMmap};

pub(crate) const SOURCE: SourceId = SourceId(0x18);
/// Has a first stage with [`PAGE`] mapped to [`OUTPUT`].
pub(crate) const PROCESS: u32 = 5;
/// Passes through.
pub(crate) const IDENTITY: u32 = 6;
pub(crate) const PAGE: u64 = 0x7f12_3456_7000;
pub(crate) const OUTPUT: u64 = 0x1234_5000;
/// Second-stage address of the page of the nested world.
pub(crate) const MIDDLE: u64 = 0x12_3456_7000;
/// What the second-stage addresses of first-stage tables exceed their memory addresses by.
pub(crate) const BIAS: u64 = 0x8_0000_0000;
/// An address at which there is no memory.
pub(crate) const NOWHERE: u64 = 1 << 36;
pub(crate) const HAW: u32 = 46;

/// Everything of this slice: ND=6, FS1GP, FS5LP.
pub(crate) const CAP: u64 = 6 | 1 << 56 | 1 << 60;
/// DT, PT, SC, PRS, SRS, NWFS, EAFS, PSS=19, PASID, SMTS, FSTS, SMPWCS, RPS, RPRIVS.
pub(crate) const ECAP: u64 = 1 << 2
    | 1 << 6
    | 1 << 7
    | 1 << 29
    | 1 << 31
    | 1 << 33
    | 1 << 34
    | 19 << 35
    | 1 << 40
    | 1 << 43
    | 1 << 47
    | 1 << 48
    | 1 << 49
    | 1 << 53;

/// All that translates: the above, SAGAW with all widths, MGAW of 57 bits, ZLR, and large pages of second stages.
pub(crate) const CAP_ALL: u64 = CAP | 0b1110 << 8 | 56 << 16 | 1 << 22 | 0b11 << 34;
/// ... NEST, SSADS, SSTS and ADMS.
pub(crate) const ECAP_ALL: u64 = ECAP | 1 << 26 | 1 << 45 | 1 << 46 | 1 << 52;

pub(crate) type Memory = GuestMemoryMmap;

pub(crate) fn memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

pub(crate) fn rules(cap: u64, ecap: u64) -> Rules {
    Rules::from_registers(HAW, Cap::new_with_raw_value(cap), Ecap::new_with_raw_value(ecap))
}

pub(crate) struct World<'m> {
    pub(crate) memory: &'m Memory,
    pub(crate) tables: Tables<'m, Memory>,
    pub(crate) rules: Cell<Rules>,
    pub(crate) root: Cell<RootLatch>,
    /// Every update of an entry finds it changed.
    pub(crate) restless: Cell<bool>,
    legacy_at: Cell<Gpa>,
}

impl<'m> World<'m> {
    pub(crate) fn new(memory: &'m Memory) -> Self {
        let tables = Tables::new(memory, 0x1000..0x8_0000);
        let context = tables.context(SOURCE);
        let process = context.pasid(PROCESS).first_stage(7);
        process.map(PAGE, OUTPUT, PageSize::Size4K, flags::READY);
        context.pasid(IDENTITY).pass_through(8);
        let kernel = context.without_pasid().first_stage(9);
        kernel.map(PAGE, OUTPUT, PageSize::Size4K, flags::READY);
        let root = Cell::new(tables.latch());
        let rules = Cell::new(rules(CAP, ECAP));
        Self { memory, tables, rules, root, restless: Cell::new(false), legacy_at: Cell::new(Gpa(0)) }
    }

    /// Gives [`PROCESS`] a second stage with [`PAGE`] mapped to [`OUTPUT`].
    pub(crate) fn second(&self) {
        self.registers(CAP_ALL, ECAP_ALL);
        let space = self.tables.second_space(4);
        space.map(PAGE, OUTPUT, PageSize::Size4K, flags::SECOND);
        self.pasid(PROCESS).attach(7, &space);
    }

    /// Gives [`PROCESS`] a first stage that maps [`PAGE`] to [`MIDDLE`], over a second stage that maps this to
    /// [`OUTPUT`], and the first stage's tables to where they are.
    pub(crate) fn nested(&self) {
        self.registers(CAP_ALL, ECAP_ALL);
        let inner = self.tables.inner_space(4, BIAS);
        inner.map(PAGE, MIDDLE, PageSize::Size4K, flags::READY);
        let outer = self.tables.second_space(4);
        outer.map(MIDDLE, OUTPUT, PageSize::Size4K, flags::SECOND);
        map_tables(&inner, &outer, PAGE, 1);
        self.pasid(PROCESS).nest(7, &inner, &outer);
    }

    /// Legacy tables in which [`SOURCE`] has a second stage with [`PAGE`] mapped to [`OUTPUT`].
    pub(crate) fn legacy(&self) {
        self.registers(CAP_ALL, ECAP_ALL);
        let tables = Tables::new(self.memory, 0x8_0000..0x10_0000);
        let space = tables.second_space(4);
        space.map(PAGE, OUTPUT, PageSize::Size4K, flags::SECOND);
        self.legacy_at.set(tables.legacy_context(SOURCE, LegacyTranslationType::DeviceTlb, 11, &space));
        self.root.set(RootLatch::new(tables.root().0, true));
    }

    /// Where the legacy context entry of [`SOURCE`] lies.
    pub(crate) fn legacy_at(&self) -> Gpa {
        self.legacy_at.get()
    }

    pub(crate) fn registers(&self, cap: u64, ecap: u64) {
        self.rules.set(rules(cap, ecap));
    }

    /// What TTM says.
    pub(crate) fn mode(&self, ttm: u64) {
        self.root.set(RootLatch::new(self.tables.root().0 | ttm << 10, true));
    }

    pub(crate) fn context(&self) -> ContextBuilder<'_, 'm, Memory> {
        self.tables.context(SOURCE)
    }

    pub(crate) fn pasid(&self, pasid: u32) -> PasidBuilder<'_, 'm, Memory> {
        self.context().pasid(pasid)
    }

    /// Gives a PASID a new first stage with one page.
    pub(crate) fn map(
        &self,
        pasid: u32,
        iova: u64,
        gpa: u64,
        size: PageSize,
    ) -> AddressSpace<'_, 'm, Memory> {
        let space = self.pasid(pasid).first_stage(7);
        space.map(iova, gpa, size, flags::READY);
        space
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Translation, Fault> {
        let (rules, root) = (self.rules.get(), self.root.get());
        if self.restless.get() {
            let memory = Restless(self.memory);
            return translate(&Context { memory: &memory, rules: &rules, root }, request);
        }
        translate(&Context { memory: self.memory, rules: &rules, root }, request)
    }

    pub(crate) fn page_request(&self, request: &Request) -> Result<Tag, Fault> {
        let rules = self.rules.get();
        let page_request = PageRequest {
            source: request.source,
            pasid: request.pasid,
            address: request.address,
            read: true,
            write: request.access.is_write(),
            execute: request.execute,
            privileged: request.privileged,
            last: true,
            group: GroupIndex::truncate(1),
            vendor: VendorData::NONE,
        };
        admit_page_request(
            &Context { memory: self.memory, rules: &rules, root: self.root.get() },
            &page_request,
        )
    }
}

/// Maps the first-stage tables on the way to the leaf of `level` for `address` in the second stage.
pub(crate) fn map_tables(
    inner: &AddressSpace<'_, '_, Memory>,
    outer: &AddressSpace<'_, '_, Memory>,
    address: u64,
    level: u32,
) {
    for level in level..=inner.levels() {
        let table = inner.entry_at(address, level).0 & !0xfff;
        outer.map(table + BIAS, table, PageSize::Size4K, flags::SECOND);
    }
}

/// Memory in which another CPU changes an entry whenever it is about to be updated.
struct Restless<'m>(&'m Memory);

impl TableMemory for Restless<'_> {
    type Hint<'a>
        = ()
    where
        Self: 'a;

    fn load_words_near<const N: usize>(&self, gpa: Gpa, (): &mut ()) -> Option<[u64; N]> {
        self.0.load_words(gpa)
    }
    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        let word = TableMemory::load(self.0, gpa)?;
        TableMemory::write(self.0, gpa, &(word ^ 1 << 52).to_le_bytes());
        self.0.compare_exchange(gpa, old, new)
    }
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        TableMemory::read(self.0, gpa, buffer)
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        TableMemory::write(self.0, gpa, bytes)
    }
}

/// Changes a word.
pub(crate) fn edit(world: &World<'_>, at: Gpa, change: impl FnOnce(u64) -> u64) {
    world.tables.set_word(at, change(world.tables.word(at)));
}

/// Walks down from `table` of level `from`; entries say `bias` more than is true.
fn entry_at(world: &World<'_>, table: u64, (from, level): (u32, u32), (address, bias): (u64, u64)) -> Gpa {
    let mut table = table - bias;
    for above in (level + 1..=from).rev() {
        let entry = world.tables.word(paging::locate(Gpa(table), address, above));
        table = (entry & 0xf_ffff_ffff_f000) - bias;
    }
    paging::locate(Gpa(table), address, level)
}

/// Where the first-stage entry of [`PROCESS`] lies.
pub(crate) fn first_at(world: &World<'_>, address: u64, level: u32) -> Gpa {
    let entry = world.pasid(PROCESS).at();
    let word = world.tables.word(Gpa(entry.0 + 16));
    let nested = world.tables.word(entry) >> 6 & 7 == 3;
    let levels = if word & 4 == 0 { 4 } else { 5 };
    entry_at(world, word & !0xfff, (levels, level), (address, if nested { BIAS } else { 0 }))
}

/// Where the second-stage entry of [`PROCESS`] lies.
pub(crate) fn second_at(world: &World<'_>, address: u64, level: u32) -> Gpa {
    let word = world.tables.word(world.pasid(PROCESS).at());
    let levels = u32::try_from(word >> 2 & 7).unwrap() + 2;
    entry_at(world, word & !0xfff, (levels, level), (address, 0))
}

/// Where the second-stage entry of the legacy context entry lies.
pub(crate) fn legacy_second_at(world: &World<'_>, address: u64, level: u32) -> Gpa {
    let root = world.tables.word(world.legacy_at()) & !0xfff;
    entry_at(world, root, (4, level), (address, 0))
}

/// A write to [`PAGE`] by [`PROCESS`]; rows change what they need.
pub(crate) fn write() -> Request {
    Request::untranslated(SOURCE, Some(Pasid::truncate(PROCESS)), Iova(PAGE), Access::Write)
}

pub(crate) fn read() -> Request {
    Request { access: Access::Read, ..write() }
}

/// The same as a translation request.
pub(crate) fn translation(request: Request, no_write: bool) -> Request {
    Request { address_type: AddressType::Translation { no_write }, ..request }
}

pub(crate) fn translated(request: Request) -> Request {
    Request { address_type: AddressType::Translated, ..request }
}

pub(crate) fn with_pasid(request: Request, pasid: u32) -> Request {
    Request { pasid: Some(Pasid::truncate(pasid)), ..request }
}

pub(crate) fn without_pasid(request: Request) -> Request {
    Request { pasid: None, ..request }
}

pub(crate) fn at(request: Request, address: u64) -> Request {
    Request { address: Iova(address), ..request }
}

/// (code, completion, recorded).
pub(crate) fn fault(result: Result<Translation, Fault>) -> Option<(u16, Completion, bool)> {
    result.err().map(|fault| (fault.reason.code, fault.completion, fault.log))
}

/// Code of the fault, 0 for none.
pub(crate) fn code(result: Result<Translation, Fault>) -> u16 {
    result.map_or_else(|fault| fault.reason.code, |_| 0)
}
