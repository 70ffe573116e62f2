//! Shared virtual memory from bind to unbind, through ports: DMA, device-TLB, page requests, drain.

use std::sync::Arc;

use iommu_core::{
    Access, Completion, DeviceTlbCompletion, DeviceTlbInvalidation, DmaFault, Endpoint, GroupIndex, Iova,
    PageRequest, PageRequestOutcome, PageResponse, Pasid, PortSet, Request, ResponseCode, Translator,
    VendorData,
};
use iommu_vtd::testkit::{PageSize, flags};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{
    Driver, ENDPOINT, FAULT_EVENT, FSTS, Machine, Memory, PAGE_EVENT, PAGE_QUEUE, PQH, PQT, PRS, TE, desc,
};

const PASID: Option<Pasid> = Pasid::new(1);
/// The domain id that Linux gives to every process.
const PROCESS: u16 = 1;
const VIRTUAL: u64 = 0x7f12_3456_7000;
const FRAME: u64 = 0x80_0000;

/// An endpoint with a device-TLB. To show that the unit holds no lock it asks for a page whenever it is told to
/// invalidate or gets an answer.
struct AtsEndpoint {
    unit: Arc<Unit<Memory>>,
    device_tlb: PortSet,
    responses: Mutex<Vec<PageResponse>>,
    /// Made from within [`Endpoint::invalidate_device_tlb`].
    late: Mutex<Option<PageRequest>>,
}

impl AtsEndpoint {
    fn attached(machine: &Machine) -> Arc<Self> {
        let endpoint = Arc::new(Self {
            unit: machine.unit.clone(),
            device_tlb: PortSet::default(),
            responses: Mutex::default(),
            late: Mutex::default(),
        });
        machine.attach(&endpoint);
        endpoint
    }
}

impl Endpoint for AtsEndpoint {
    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        let completion = self.device_tlb.invalidate_device_tlb(invalidation);
        if let Some(request) = self.late.lock().take() {
            self.unit.page_request(&request);
        }
        completion
    }

    fn page_group_response(&self, response: &PageResponse) {
        let request = Request::translation(ENDPOINT, response.pasid, Iova(VIRTUAL), false);
        assert!(self.unit.translate(&request).is_ok());
        self.responses.lock().push(*response);
    }
}

pub(crate) fn page_request(address: u64, group: u16) -> PageRequest {
    PageRequest {
        source: ENDPOINT,
        pasid: PASID,
        address: Iova(address),
        read: true,
        write: true,
        execute: false,
        privileged: false,
        last: true,
        group: GroupIndex::truncate(group),
        vendor: VendorData::NONE,
    }
}

/// Bind, a fault served by a page request, unmap, and the next fault.
#[test]
fn a_device_shares_a_process() {
    let machine = Machine::new();
    let (driver, tables) = Driver::booted(&machine);
    let context = tables.context(ENDPOINT);
    context.without_pasid().first_stage(2);
    let endpoint = AtsEndpoint::attached(&machine);
    let mut port = machine.dma().device_tlb_port(&endpoint.device_tlb);

    // Bind: with caching mode off there is no event, so nothing may have been remembered from before.
    assert!(port.session(PASID).translate(Iova(VIRTUAL), Access::Write).is_err());
    let process = context.pasid(1).first_stage(PROCESS);
    let missing = DmaFault::Missing { address: Iova(VIRTUAL), access: Access::Write };
    assert_eq!(port.session(PASID).translate(Iova(VIRTUAL), Access::Write), Err(missing));
    assert_eq!(machine.read32(FSTS), 0, "a miss of a translation request is not a fault");

    // The page request, as the guest's interrupt handler finds it.
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, 7)), PageRequestOutcome::Queued);
    assert_eq!(machine.interrupts(), [PAGE_EVENT]);
    machine.write32(PRS, 1);
    assert_eq!((machine.read64(PQT), machine.read64(PQH)), (32, 0));
    assert_eq!(machine.word(PAGE_QUEUE), 1 << 32 | u64::from(ENDPOINT.0) << 16 | 0x101);
    assert_eq!(machine.word(PAGE_QUEUE + 8), VIRTUAL | 7 << 3 | 7);
    machine.write64(PQH, 32);
    process.map(VIRTUAL, FRAME, PageSize::Size4K, flags::USER | flags::WRITE);
    driver.submit(&[desc::response(1, 7, 0)]);
    let response = endpoint.responses.lock()[0];
    assert_eq!((response.pasid, response.group.get(), response.code), (PASID, 7, ResponseCode::Success));

    // The retry, and what it leaves behind.
    let session = port.session(PASID);
    session.write_slice(&[1, 2, 3], GuestAddress(VIRTUAL + 8)).unwrap();
    assert_eq!(session.end(), None);
    assert_eq!(machine.word(FRAME + 8), 0x03_0201);
    let leaf = process.entry(VIRTUAL, 1);
    assert!(leaf.accessed() && leaf.dirty());

    // Unmap: nothing stale is used once the wait is done.
    process.unmap(VIRTUAL, PageSize::Size4K);
    driver.submit(&[desc::pasid_iotlb_page(1, 1, VIRTUAL), desc::device_tlb_page(1, VIRTUAL)]);
    assert_eq!(port.session(PASID).translate(Iova(VIRTUAL), Access::Write), Err(missing));
    assert_eq!((machine.read32(FSTS), machine.interrupts()), (0, vec![]));
}

/// What Linux does when a process lets go: clear, invalidate, drain.
#[test]
fn unbind_drains() {
    let machine = Machine::new();
    let (driver, tables) = Driver::booted(&machine);
    let context = tables.context(ENDPOINT);
    context.without_pasid().first_stage(2);
    let entry = context.pasid(1);
    entry.first_stage(PROCESS).map(VIRTUAL, FRAME, PageSize::Size4K, flags::READY);
    let endpoint = AtsEndpoint::attached(&machine);
    let mut port = machine.dma().device_tlb_port(&endpoint.device_tlb);
    assert!(port.session(PASID).translate(Iova(VIRTUAL), Access::Write).is_ok());

    // A request that the device makes while it is told to invalidate is in the queue when the wait is done.
    *endpoint.late.lock() = Some(page_request(VIRTUAL, 9));
    driver.submit_with(&[desc::FENCE, desc::pasid_iotlb_all(2, 1), desc::device_tlb_all(1)], desc::DRAIN);
    assert_eq!((machine.read64(PQT), machine.interrupts()), (32, vec![PAGE_EVENT]));
    assert_eq!(endpoint.device_tlb.cached(), 0);

    entry.clear();
    driver.submit(&[desc::pasid_cache(1, 1)]);
    driver.submit(&[desc::pasid_iotlb_all(1, 1)]);
    driver.submit(&[desc::device_tlb_all(1)]);
    assert!(port.session(PASID).translate(Iova(VIRTUAL), Access::Write).is_err());
    assert_eq!(machine.read32(FSTS), 0);
    // A stray page request is answered by the unit, and told.
    let outcome = machine.unit.page_request(&page_request(VIRTUAL, 9));
    assert_eq!(outcome, PageRequestOutcome::Answered(ResponseCode::Invalid));
    assert_eq!(machine.interrupts(), [FAULT_EVENT]);
    assert_eq!(machine.read64(0x220), VIRTUAL & 0xffff_ffff_ffff);
    assert_eq!(machine.read64(0x228), 0x8000_0159_9000_0000 | u64::from(ENDPOINT.0), "page request, 59h");
    // Surplus answers harm nobody.
    driver.submit(&[desc::response(1, 9, 1), desc::response(1, 9, 1)]);
}

/// (name, PASID of the requests)
#[test]
fn no_device_tlb_outlives_translation() {
    for (name, pasid) in [("process", PASID), ("buffers", None)] {
        let machine = Machine::new();
        let (driver, tables) = Driver::booted(&machine);
        let context = tables.context(ENDPOINT);
        let space = context.without_pasid().first_stage(2);
        context.pasid(1).attach(PROCESS, &space);
        space.map(VIRTUAL, FRAME, PageSize::Size4K, flags::READY);
        let endpoint = AtsEndpoint::attached(&machine);
        let mut port = machine.dma().device_tlb_port(&endpoint.device_tlb);
        assert!(port.session(pasid).translate(Iova(VIRTUAL), Access::Write).is_ok(), "{name}");
        driver.level(TE, false);
        let refused = port.session(pasid).translate(Iova(VIRTUAL), Access::Write);
        assert!(matches!(refused, Err(DmaFault::Refused(_))), "{name}: {refused:?}");
        assert_eq!(machine.read32(FSTS), 0, "{name}: nobody to tell");
        driver.level(TE, true);
        assert!(port.session(pasid).translate(Iova(VIRTUAL), Access::Write).is_ok(), "{name}");
    }
}

/// The driver's own buffers: requests without PASID, cached by the unit's side.
#[test]
fn dma_without_pasid_is_invalidated_by_the_pasid_that_stands_for_it() {
    let machine = Machine::new();
    let (driver, tables) = Driver::booted(&machine);
    let buffers = tables.context(ENDPOINT).without_pasid().first_stage(2);
    buffers.map(0x5000, FRAME, PageSize::Size4K, flags::READY);
    let mut port = machine.dma().port();
    let session = port.session(None);
    session.write_slice(&[9], GuestAddress(0x5000)).unwrap();
    assert_eq!(session.end(), None);
    buffers.unmap(0x5000, PageSize::Size4K);
    driver.submit(&[desc::pasid_iotlb_page(2, 1, 0x5000)]);
    assert!(port.session(None).translate(Iova(0x5000), Access::Write).is_ok(), "another PASID");
    driver.submit(&[desc::pasid_iotlb_page(2, 0, 0x5000)]);
    let session = port.session(None);
    let fault = session.translate(Iova(0x5000), Access::Write).unwrap_err();
    let DmaFault::Refused(fault) = fault else { panic!("{fault:?}") };
    assert_eq!((fault.reason.code, fault.completion), (0x71, Completion::UnsupportedRequest));
    assert_eq!(machine.read32(FSTS), 0, "reported after the session");
    drop(session);
    assert_eq!((machine.read32(FSTS), machine.interrupts()), (2, vec![FAULT_EVENT]));
    assert_eq!(machine.read64(0x228), 0x8000_0071_0000_0000 | u64::from(ENDPOINT.0));
}

/// The retry after a page request must see what the guest changed, so the old translation goes before the
/// request is queued; and only that.
#[test]
fn a_page_request_drops_the_page_it_asks_for() {
    let machine = Machine::new();
    let (_driver, tables) = Driver::booted(&machine);
    let process = tables.context(ENDPOINT).pasid(1).first_stage(PROCESS);
    process.map(VIRTUAL, FRAME, PageSize::Size4K, flags::READY);
    process.map(VIRTUAL + 0x1000, FRAME, PageSize::Size4K, flags::READY);
    let mut port = machine.dma().port();
    for address in [VIRTUAL, VIRTUAL + 0x1000] {
        assert!(port.session(PASID).translate(Iova(address), Access::Read).is_ok());
    }
    assert_eq!(machine.unit.ports().cached(), 2);
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL + 8, 1)), PageRequestOutcome::Queued);
    assert_eq!(machine.unit.ports().cached(), 1);
}

/// Records go round the registers; switching translation off starts again with the first.
#[test]
fn fault_records_start_over_with_translation() {
    let machine = Machine::new();
    let (driver, tables) = Driver::booted(&machine);
    tables.context(ENDPOINT).without_pasid().first_stage(2);
    let fault_at = |address| {
        let request = Request::untranslated(ENDPOINT, None, Iova(address), Access::Read);
        machine.unit.report(&machine.unit.translate(&request).unwrap_err());
        let index = u64::from(machine.read32(FSTS) >> 8);
        assert_eq!(machine.read64(0x220 + 16 * index), address);
        machine.write32(0x22c + 16 * index, 1 << 31);
        index
    };
    assert_eq!((fault_at(0x1000), fault_at(0x2000)), (0, 1));
    driver.level(TE, false);
    driver.level(TE, true);
    assert_eq!(fault_at(0x3000), 0);
}

/// A page that may only be written, and has not been: a read of no bytes (a flush) goes ahead, and is asked for
/// each time, because nothing else may use the answer.
#[test]
fn a_flush_of_a_page_that_is_only_written() {
    let mut machine = Machine::new();
    let profile = Profile { second_stage: true, second_stage_dirty: true, ..Profile::svm(46) };
    let config =
        UnitConfig { capability: Capability::new(&profile).unwrap(), source: iommu_core::SourceId(0) };
    machine.unit = Arc::new(Unit::new(&config, machine.memory.clone(), machine.msi.clone()));
    let (_driver, tables) = Driver::booted(&machine);
    let space = tables.second_space(4);
    space.map(VIRTUAL, FRAME, PageSize::Size4K, flags::SECOND_WRITE);
    tables.context(ENDPOINT).pasid(1).attach(PROCESS, &space).edit(0, |word| word | 1 << 9);
    let mut port = machine.dma().port();
    for (name, access, allowed) in [
        ("flush", Access::ZeroLengthRead, true),
        ("read", Access::Read, false),
        ("flush again", Access::ZeroLengthRead, true),
        ("write", Access::Write, true),
        ("flush of a dirty page", Access::ZeroLengthRead, true),
    ] {
        let session = port.session(PASID);
        let hit = session.translate(Iova(VIRTUAL), access);
        assert_eq!(hit.is_ok_and(|hit| hit.gpa.0 == FRAME), allowed, "{name}: {hit:?}");
    }
    assert_eq!(space.second_entry(VIRTUAL, 1).raw_value() & flags::SECOND_DIRTY, flags::SECOND_DIRTY);
}
