//! A unit in a toy machine: a function shares a process's address space, and asks for the page that it misses.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};

use iommu_core::{
    DeviceTlbCompletion, DeviceTlbInvalidation, Dma, DmaFault, Endpoint, GroupIndex, Msi, MsiSink,
    PageRequest, PageResponse, Pasid, PortSet, SourceId, Translator, VendorData,
};
use iommu_vtd::testkit::{PageSize, Tables, flags};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const NIC: SourceId = SourceId::from_bdf(0, 3, 0);
const PASID: Option<Pasid> = Pasid::new(1);
const BUFFER: GuestAddress = GuestAddress(0x7f00_0000_5000);

/// Where the unit's own interrupts go: in a machine, to its local APICs.
struct Apics;
impl MsiSink for Apics {
    fn send(&self, source: SourceId, msi: Msi) {
        println!("interrupt of {source}: {msi:x?}");
    }
}

/// What the unit has to tell a function: what to forget, and how its page requests were answered.
struct Nic(PortSet, Sender<PageResponse>);
impl Endpoint for Nic {
    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.0.invalidate_device_tlb(invalidation)
    }
    fn page_group_response(&self, response: &PageResponse) {
        let _ = self.1.send(*response);
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The machine: memory, a unit to whose register page a bus leads, and a function behind the unit.
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)])?;
    let config = UnitConfig { capability: Capability::new(&Profile::svm(46))?, source: SourceId(0) };
    let unit = Arc::new(Unit::new(&config, memory.clone(), Arc::new(Apics)));
    let register = |offset: u64, value: u64| unit.mmio_write(offset, &value.to_le_bytes());
    let (answers, answered) = channel();
    let nic = Arc::new(Nic(PortSet::default(), answers));
    unit.attach_endpoint(NIC, Arc::downgrade(&nic) as Weak<dyn Endpoint>);
    let dma = Dma::new(NIC, memory.clone(), unit.clone(), unit.ports());
    let mut port = dma.device_tlb_port(&nic.0);

    // The guest's driver: tables, both queues, the event of page requests, then all of it switched on.
    let tables = Tables::new(&memory, 0x10_0000..0x20_0000);
    let process = tables.context(NIC).pasid(1).first_stage(1);
    register(0x20, tables.root_register().raw_value());
    for (offset, value) in [(0x90, 0x1_0800), (0xd0, 0x2_0000), (0xe0, 0x31 << 32), (0xe8, 0xfee0_0000)] {
        register(offset, value);
    }
    unit.mmio_write(0x18, &0xc400_0000_u32.to_le_bytes());

    // The function is to write, has no translation, and asks. Nobody waits while a session is open.
    let session = port.session(PASID);
    assert!(!session.check_range(BUFFER, 8, Permissions::Write));
    let Some(DmaFault::Missing { address, .. }) = session.end() else { return Err("no miss".into()) };
    let (group, vendor, last) = (GroupIndex::truncate(7), VendorData::NONE, true);
    let (read, write, execute, privileged, source, pasid) = (true, true, false, false, NIC, PASID);
    #[rustfmt::skip]
    let ask = PageRequest { source, pasid, address, read, write, execute, privileged, last, group, vendor };
    println!("{:?}", unit.page_request(&ask));

    // The guest hears of it, maps the page, and answers through the invalidation queue.
    process.map(BUFFER.0, 0x80_0000, PageSize::Size4K, flags::READY);
    memory
        .write_obj::<[u64; 2]>([1 << 32 | u64::from(NIC.0) << 16 | 0x19, 7 << 3], GuestAddress(0x1_0000))?;
    register(0x88, 32);
    println!("answered: {:?}", answered.recv()?.code);

    port.session(PASID).write_obj(42_u64, BUFFER)?;
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x80_0000))?, 42);
    Ok(())
}
