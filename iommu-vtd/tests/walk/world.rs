//! One small guest: a function with three bindings, and the requests it makes.

use std::cell::Cell;

use iommu_core::{
    Access, AddressType, Completion, Fault, GroupIndex, Iova, PageRequest, Pasid, Request, SourceId, Tag,
    Translation, VendorData,
};
use iommu_vtd::ats::admit_page_request;
use iommu_vtd::rules::Rules;
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
}

impl<'m> World<'m> {
    pub(crate) fn new(memory: &'m Memory) -> Self {
        let tables = Tables::new(memory, 0x1000..0x10_0000);
        let context = tables.context(SOURCE);
        let process = context.pasid(PROCESS).first_stage(7);
        process.map(PAGE, OUTPUT, PageSize::Size4K, flags::READY);
        context.pasid(IDENTITY).pass_through(8);
        let kernel = context.without_pasid().first_stage(9);
        kernel.map(PAGE, OUTPUT, PageSize::Size4K, flags::READY);
        let root = Cell::new(tables.latch());
        Self { memory, tables, rules: Cell::new(rules(CAP, ECAP)), root }
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
        let rules = self.rules.get();
        translate(&Context { memory: self.memory, rules: &rules, root: self.root.get() }, request)
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
