//! Translations of every size, used and dropped as what they are.

use std::sync::Arc;

use iommu_core::testkit::{Computed, RecordingMsi};
use iommu_core::{DeviceTlbCompletion, DeviceTlbInvalidation, Dma, Endpoint, Gpa, Iova, IovaRange, PortSet};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::rig::{MEMORY_BYTES, Memory, SOURCE, copy, until};
use crate::pci::PciFunction;
use crate::svm::spec::{CONTROL_PAGES, Descriptor, PORTAL_PAGES};
use crate::svm::{SvmConfig, SvmFunction};

/// The first gigabyte behind this address is memory, as far as there is any.
const BASE: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

struct Bench {
    function: Arc<SvmFunction<Memory>>,
    memory: Memory,
}

impl Bench {
    fn new(page_bits: u32) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let translator = Arc::new(Computed(move |address: Iova| (Gpa(address.0 - BASE), page_bits)));
        let dma = Dma::new(SOURCE, memory.clone(), translator, Arc::new(PortSet::default()));
        let function =
            SvmFunction::new(SvmConfig::default(), &dma, Arc::new(RecordingMsi::default())).unwrap();
        function.config_write(4, &6_u16.to_le_bytes());
        let word = |at: u16| {
            let mut data = [0; 2];
            function.config_read(at, &mut data);
            u16::from_le_bytes(data)
        };
        let mut at = 0x100;
        while word(at) != 0xf {
            at = word(at + 2) >> 4;
        }
        function.config_write(at + 6, &0x8000_u16.to_le_bytes());
        function.bar_write(0, CONTROL_PAGES, &1_u32.to_le_bytes());
        Self { function, memory }
    }

    fn run(&self, descriptor: &Descriptor) {
        self.memory.write_obj(0_u64, GuestAddress(0)).unwrap();
        let descriptor = Descriptor { flags: 1, record: BASE.into(), ..*descriptor };
        for (at, word) in (PORTAL_PAGES..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
            self.function.bar_write(0, at, word);
        }
        until("record", || self.memory.read_obj::<u8>(GuestAddress(0)).unwrap() != 0);
        assert_eq!(self.memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
    }

    fn requests(&self) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(0, 0x48, &mut data);
        u64::from_le_bytes(data)
    }

    fn invalidate(&self, offset: u64) {
        let invalidation = DeviceTlbInvalidation {
            source: SOURCE,
            pasid: None,
            all_pasids: false,
            range: IovaRange::aligned(BASE + offset, 12),
        };
        assert_eq!(self.function.invalidate_device_tlb(&invalidation), DeviceTlbCompletion::Complete);
    }
}

#[test]
fn size_table() {
    // From 1 to 3 MiB to 5 to 7 MiB, and a record in the first page: (size, requests, again after one page was dropped)
    let rows =
        [("4 KiB", 12, 512 + 512 + 1, 1), ("2 MiB", 21, 4, 1), ("1 GiB", 30, 1, 1), ("more", 39, 1, 1)];
    for (name, page_bits, first, again) in rows {
        let bench = Bench::new(page_bits);
        bench.memory.write_obj(0x1122_3344_u32, GuestAddress(3 * MIB - 4)).unwrap();
        let copies = copy(BASE + MIB, BASE + 5 * MIB, 2 * MIB);
        bench.run(&copies);
        assert_eq!(bench.memory.read_obj::<u32>(GuestAddress(7 * MIB - 4)).unwrap(), 0x1122_3344, "{name}");
        assert_eq!(bench.requests(), first, "{name}");
        if page_bits == 12 {
            // More than a port keeps at once.
            continue;
        }
        bench.run(&copies);
        assert_eq!(bench.requests(), first, "{name}: all of it is kept");
        bench.invalidate(2 * MIB);
        bench.run(&copies);
        assert_eq!(bench.requests(), first + again, "{name}: a part drops the whole");
    }
}
