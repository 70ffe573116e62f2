//! A machine of one endpoint, a list of pages as its IOMMU, and a driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iommu_core::testkit::{ListTranslator, Page, RecordingMsi};
use iommu_core::{
    DeviceTlbCompletion, DeviceTlbInvalidation, Dma, Endpoint, GroupIndex, IovaRange, PageRequestOutcome,
    PageResponse, Pasid, PortSet, ResponseCode, SourceId, VendorData,
};
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

use crate::hooked::{Hook, Hooked};
use crate::pci::PciFunction;
use crate::svm::spec::{
    CONTROL_PAGES, Descriptor, Opcode, PAGE_BYTES, PORTAL_PAGES, Record, Status, WINDOW_PAGES, control,
    global, portal,
};
use crate::svm::{SvmConfig, SvmFunction};

pub(super) type Memory = GuestMemoryMmap<()>;

pub(super) const SOURCE: SourceId = SourceId(0x20);
pub(super) const PASID: Pasid = Pasid::truncate(5);
/// Page of completion records, mapped from the start.
pub(super) const RECORDS: u64 = 0x7f00_0000_0000;
pub(super) const MEMORY_BYTES: usize = 16 << 20;
pub(super) const RECORD: u8 = 1;
pub(super) const INTERRUPT: u8 = 2;
pub(super) const BLOCK: u8 = 4;
pub(super) const FENCE: u8 = 8;

pub(super) struct Rig {
    pub(super) function: Arc<SvmFunction<Memory>>,
    pub(super) iommu: Arc<ListTranslator>,
    pub(super) memory: Memory,
    pub(super) msi: Arc<RecordingMsi>,
    /// Called inside sessions, before every look-up.
    pub(super) on_translate: Hook,
    next_gpa: AtomicU64,
    records_gpa: u64,
    next_record: AtomicU64,
}

impl Rig {
    /// Powered on, nothing enabled.
    pub(super) fn cold(config: SvmConfig) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let iommu = ListTranslator::new();
        let msi = Arc::new(RecordingMsi::default());
        let on_translate = Hook::default();
        let hooked = Hooked::new(&iommu, &on_translate);
        let dma = Dma::new(SOURCE, memory.clone(), Arc::new(hooked), Arc::new(PortSet::default()));
        let function = SvmFunction::new(config, &dma, msi.clone()).unwrap();
        let mut rig = Self {
            function,
            iommu,
            memory,
            msi,
            on_translate,
            next_gpa: AtomicU64::new(0x1_0000),
            records_gpa: 0,
            next_record: AtomicU64::new(0),
        };
        rig.records_gpa = rig.map(RECORDS, true);
        rig
    }

    /// As a driver leaves it: everything on, two queues of 8 descriptors enabled for [`PASID`].
    pub(super) fn new() -> Self {
        let rig = Self::cold(SvmConfig { queues: 2, depth_log2: 3, ..SvmConfig::default() });
        rig.bring_up();
        rig
    }

    pub(super) fn bring_up(&self) {
        self.config16(4, 0x6);
        self.set_extended(0x1b, 6, 1);
        self.set_extended(0xf, 6, 0x8000);
        if let Some(pri) = self.extended(0x13) {
            self.function.config_write(pri + 12, &32_u32.to_le_bytes());
            self.config16(pri + 4, 1);
        }
        self.msix();
        let [queues, ..] = self.read32(0x8).to_le_bytes();
        for queue in 0..queues {
            self.write32(control_page(queue) + control::PASID, 1 << 31 | PASID.get());
            self.write32(control_page(queue) + control::IRQ, 1 << 31 | (u32::from(queue) + 1));
            self.write32(control_page(queue), 1);
        }
    }

    /// Vector `n` sends data `n`.
    fn msix(&self) {
        let mut at = [0];
        self.function.config_read(0x34, &mut at);
        while self.config_read16(u16::from(at[0])).to_le_bytes()[0] != 0x11 {
            at[0] = self.config_read16(u16::from(at[0])).to_le_bytes()[1];
        }
        for vector in 0..3_u32 {
            let entry = [0xfee0_0000, 0, vector, 0];
            self.function.bar_write(1, u64::from(vector) * 16, &entry[..2].as_bytes()[..8]);
            self.function.bar_write(1, u64::from(vector) * 16 + 8, &entry[2..].as_bytes()[..8]);
        }
        self.config16(u16::from(at[0]) + 2, 0x8000);
    }

    pub(super) fn config16(&self, offset: u16, value: u16) {
        self.function.config_write(offset, &value.to_le_bytes());
    }

    pub(super) fn config_read16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.function.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Offset of an extended capability.
    pub(super) fn extended(&self, id: u16) -> Option<u16> {
        let mut at = 0x100;
        while at != 0 {
            if self.config_read16(at) == id {
                return Some(at);
            }
            at = self.config_read16(at + 2) >> 4;
        }
        None
    }

    pub(super) fn set_extended(&self, id: u16, register: u16, value: u16) {
        if let Some(at) = self.extended(id) {
            self.config16(at + register, value);
        }
    }

    pub(super) fn pri_status(&self) -> u16 {
        self.config_read16(self.extended(0x13).unwrap() + 6)
    }

    pub(super) fn write32(&self, offset: u64, value: u32) {
        self.function.bar_write(0, offset, &value.to_le_bytes());
    }

    pub(super) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// A fresh page of memory, not mapped.
    pub(super) fn page(&self) -> u64 {
        let gpa = self.next_gpa.fetch_add(0x1000, Ordering::Relaxed);
        assert!(gpa < MEMORY_BYTES as u64, "out of pages");
        gpa
    }

    pub(super) fn map_to(&self, iova: u64, gpa: u64, write: bool) {
        self.iommu.map(Page { pasid: Some(PASID), iova, gpa, write });
    }

    /// Maps a fresh page and returns where it is.
    pub(super) fn map(&self, iova: u64, write: bool) -> u64 {
        let gpa = self.page();
        self.map_to(iova, gpa, write);
        gpa
    }

    /// Maps fresh pages in descending order of memory, so that no two of them are contiguous.
    pub(super) fn map_range(&self, iova: u64, pages: u64) {
        for page in (0..pages).rev() {
            self.map(iova + page * 0x1000, true);
        }
    }

    /// Page requests stay unanswered until [`Self::respond`].
    pub(super) fn hold_page_requests(&self) {
        self.iommu.on_page_request(|_, _| PageRequestOutcome::Queued);
    }

    pub(super) fn respond(&self, code: ResponseCode) {
        let request = *self.iommu.page_requests.lock().last().unwrap();
        self.respond_to(request.group, code);
    }

    pub(super) fn respond_to(&self, group: GroupIndex, code: ResponseCode) {
        self.function.page_group_response(&response(group, code));
    }

    pub(super) fn invalidate(&self, iova: u64) {
        let completion = self.function.invalidate_device_tlb(&DeviceTlbInvalidation {
            source: SOURCE,
            pasid: Some(PASID),
            all_pasids: false,
            range: IovaRange::aligned(iova, 12),
        });
        assert_eq!(completion, DeviceTlbCompletion::Complete);
    }

    /// The address of a record of its own, zeroed.
    pub(super) fn record(&self) -> u64 {
        let offset = self.next_record.fetch_add(32, Ordering::Relaxed) % PAGE_BYTES;
        self.memory.write_slice(&[0; 32], GuestAddress(self.records_gpa + offset)).unwrap();
        RECORDS + offset
    }

    pub(super) fn records_at(&self, record: u64) -> u64 {
        self.records_gpa + (record - RECORDS)
    }

    pub(super) fn memory_clear(&self, record: u64) {
        let at = GuestAddress(self.records_gpa + (record - RECORDS));
        self.memory.write_slice(&[0; 32], at).unwrap();
    }

    pub(super) fn read_record(&self, address: u64) -> Record {
        let mut bytes = [0; 32];
        self.memory.read_slice(&mut bytes, GuestAddress(self.records_gpa + (address - RECORDS))).unwrap();
        Record::read_from_bytes(&bytes).unwrap()
    }

    pub(super) fn submit(&self, queue: u8, descriptor: &Descriptor) {
        let portal = portal_page(queue);
        for (index, word) in descriptor.as_bytes().chunks(8).enumerate() {
            self.function.bar_write(0, portal + index as u64 * 8, word);
        }
    }

    /// Puts descriptors, each with a record, into fresh contiguous pages at `array`, and returns the records.
    pub(super) fn put_batch(&self, array: u64, descriptors: &[Descriptor]) -> Vec<u64> {
        let mut records = Vec::new();
        let mut gpa = 0;
        for (index, descriptor) in descriptors.iter().enumerate() {
            let offset = index as u64 * 64;
            if offset.is_multiple_of(PAGE_BYTES) {
                gpa = self.map(array + offset, true);
            }
            let record = self.record();
            let descriptor =
                Descriptor { flags: descriptor.flags | RECORD, record: record.into(), ..*descriptor };
            let at = GuestAddress(gpa + offset % PAGE_BYTES);
            self.memory.write_slice(descriptor.as_bytes(), at).unwrap();
            records.push(record);
        }
        records
    }

    /// Binds a window to a queue and a PASID, and enables it.
    pub(super) fn open_window(&self, window: u8, queue: u8, pasid: Pasid) {
        let at = global::WINDOWS + u64::from(window) * global::WINDOW_BYTES;
        self.write32(at, 0);
        self.write32(at + 4, 1 << 31 | pasid.get());
        self.write32(at, 1 | u32::from(queue) << 8);
    }

    /// Enables a queue as shared.
    pub(super) fn share(&self, queue: u8) {
        self.write32(control_page(queue), 0);
        self.write32(control_page(queue), 3);
    }

    /// Submits through a window, with a record, and returns the record's address and the outcome's code.
    pub(super) fn start_through(&self, window: u8, descriptor: Descriptor) -> (u64, u32) {
        let record = self.record();
        let flags = descriptor.flags | RECORD;
        let descriptor = Descriptor { flags, record: record.into(), ..descriptor };
        for (index, word) in descriptor.as_bytes().chunks(8).enumerate() {
            self.function.bar_write(0, window_page(window) + index as u64 * 8, word);
        }
        (record, self.read32(window_page(window) + portal::OUTCOME) & 0xff)
    }

    /// The state of the last command.
    pub(super) fn command_state(&self) -> u32 {
        self.read32(global::COMMAND_STATUS) & 0xf
    }

    /// Submits with a record, and returns the record's address.
    pub(super) fn start(&self, queue: u8, descriptor: Descriptor) -> u64 {
        let record = self.record();
        let flags = descriptor.flags | RECORD;
        self.submit(queue, &Descriptor { flags, record: record.into(), ..descriptor });
        record
    }

    pub(super) fn wait(&self, record: u64) -> Record {
        let mut found = Record::default();
        until("completion record", || {
            found = self.read_record(record);
            found.status != 0
        });
        found
    }

    pub(super) fn run(&self, descriptor: Descriptor) -> Record {
        self.wait(self.start(0, descriptor))
    }

    pub(super) fn until_waiting(&self, queue: u8) {
        until("queue waits for a page", || self.read32(control_page(queue) + control::STATUS) & 4 != 0);
    }

    pub(super) fn until_page_requests(&self, count: usize) {
        until("page requests", || self.iommu.page_requests.lock().len() >= count);
    }

    pub(super) fn until_idle(&self, queue: u8) {
        until("queue is idle", || self.read32(control_page(queue) + control::STATUS) & 2 == 0);
    }

    /// A NO-OP on this queue succeeds.
    pub(super) fn assert_alive(&self, queue: u8) {
        let record = self.wait(self.start(queue, Descriptor::default()));
        assert_eq!(record.status, Status::Success as u8);
    }

    pub(super) fn free(&self, queue: u8) -> u32 {
        self.read32(portal_page(queue) + portal::FREE)
    }
}

pub(super) fn response(group: GroupIndex, code: ResponseCode) -> PageResponse {
    PageResponse { source: SOURCE, pasid: Some(PASID), group, code, vendor: VendorData::NONE }
}

pub(super) fn control_page(queue: u8) -> u64 {
    CONTROL_PAGES + u64::from(queue) * PAGE_BYTES
}

pub(super) fn portal_page(queue: u8) -> u64 {
    PORTAL_PAGES + u64::from(queue) * PAGE_BYTES
}

pub(super) fn window_page(window: u8) -> u64 {
    WINDOW_PAGES + u64::from(window) * PAGE_BYTES
}

pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "timed out: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

pub(super) fn copy(source: u64, destination: u64, length: u64) -> Descriptor {
    Descriptor {
        opcode: Opcode::Copy as u8,
        flags: BLOCK,
        source: source.into(),
        destination: destination.into(),
        length: length.into(),
        ..Descriptor::default()
    }
}

/// Guards what handlers on worker threads write down.
pub(super) type Notes<T> = Arc<Mutex<Vec<T>>>;
