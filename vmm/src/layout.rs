//! The guest's physical memory map and I/O ports, one table each.
//!
//! RAM fills the map from 0 to [`LOW_RAM_LIMIT`] and goes on at [`HIGH_RAM_START`]. Everything a device
//! answers lies between the two.

use devices::bus::BusRange;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Low RAM ends here at the latest (exclusive); the hole for devices begins.
pub(crate) const LOW_RAM_LIMIT: u64 = 3 * GIB;
/// Where RAM goes on that does not fit below [`LOW_RAM_LIMIT`].
pub(crate) const HIGH_RAM_START: u64 = 4 * GIB;

/// 32-bit window for the BARs of PCI functions.
pub(crate) const PCI_MMIO32: BusRange = BusRange { start: LOW_RAM_LIMIT, len: 512 * MIB };
/// PCI Express configuration space of segment 0, buses 0 to 255.
pub(crate) const ECAM: BusRange = BusRange { start: 0xe000_0000, len: 256 * MIB };
/// The IOAPIC's register page.
pub(crate) const IOAPIC: BusRange = BusRange { start: 0xfec0_0000, len: 0x1000 };
/// The IOAPIC's id in MADT and DMAR.
pub(crate) const IOAPIC_ID: u8 = 0;
/// VT-d units at most.
pub(crate) const MAX_UNITS: usize = 8;
/// The register pages of VT-d units, one after the other.
pub(crate) const VTD: BusRange = BusRange { start: 0xfed9_0000, len: VTD_PAGE * MAX_UNITS as u64 };
/// Bytes of one unit's registers.
pub(crate) const VTD_PAGE: u64 = 0x1000;
/// DMA engines outside PCI at most.
pub(crate) const MAX_DMA_ENGINES: usize = 4;
/// The register pages of DMA engines outside PCI, one after the other.
pub(crate) const DMA_ENGINES: BusRange =
    BusRange { start: 0xfeda_0000, len: devices::dma_engine::LEN * MAX_DMA_ENGINES as u64 };
/// Local APIC registers; as DMA target, message-signalled interrupts.
pub(crate) const LOCAL_APIC: BusRange = BusRange { start: 0xfee0_0000, len: MIB };
/// KVM's own: one page of identity map, three pages of task state (both only used by old Intel CPUs).
pub(crate) const KVM_PRIVATE: BusRange = BusRange { start: 0xfffb_c000, len: 0x4000 };

/// Every fixed range between low and high RAM, ascending.
pub(crate) const HOLE: [BusRange; 7] = [PCI_MMIO32, ECAM, IOAPIC, VTD, DMA_ENGINES, LOCAL_APIC, KVM_PRIVATE];

const _: () = {
    let mut end = LOW_RAM_LIMIT;
    let mut i = 0;
    while i < HOLE.len() {
        assert!(HOLE[i].start >= end, "ranges of the hole overlap or are not ascending");
        assert!(HOLE[i].len > 0);
        end = HOLE[i].start + HOLE[i].len;
        i += 1;
    }
    assert!(end <= HIGH_RAM_START, "the hole leaves the first 4 GiB");
};

/// What the loader puts into the first MiB: start (inclusive) and length in bytes.
pub(crate) mod low {
    use super::BusRange;

    /// Global descriptor table of the first vCPU.
    pub(crate) const GDT: BusRange = BusRange { start: 0x500, len: 0x100 };
    /// PVH start info.
    pub(crate) const PVH_START_INFO: BusRange = BusRange { start: 0x6000, len: 0x100 };
    /// PVH module list: the initramfs.
    pub(crate) const PVH_MODULES: BusRange = BusRange { start: 0x6100, len: 0x100 };
    /// PVH memory map.
    pub(crate) const PVH_MEMORY_MAP: BusRange = BusRange { start: 0x6200, len: 0xe00 };
    /// `boot_params` of the Linux boot protocol.
    pub(crate) const ZERO_PAGE: BusRange = BusRange { start: 0x7000, len: 0x1000 };
    /// Stack, grows down from the end.
    pub(crate) const STACK: BusRange = BusRange { start: 0x8000, len: 0x1000 };
    /// Identity map of the first 4 GiB: one page of levels 4 and 3, four of level 2.
    pub(crate) const PAGE_TABLES: BusRange = BusRange { start: 0x9000, len: 0x6000 };
    /// Kernel command line with its final NUL.
    pub(crate) const CMDLINE: BusRange = BusRange { start: 0x2_0000, len: 0x1_0000 };
    /// End (exclusive) of what the guest may use as RAM below 1 MiB.
    pub(crate) const RAM_END: u64 = 0x9_fc00;
    /// ACPI tables, the RSDP first.
    pub(crate) const ACPI: BusRange = BusRange { start: 0xe_0000, len: 0x2_0000 };
    /// End of the first MiB, where kernels are loaded.
    pub(crate) const END: u64 = 0x10_0000;

    const ALL: [BusRange; 9] =
        [GDT, PVH_START_INFO, PVH_MODULES, PVH_MEMORY_MAP, ZERO_PAGE, STACK, PAGE_TABLES, CMDLINE, ACPI];

    const _: () = {
        let mut end = 0;
        let mut i = 0;
        while i < ALL.len() {
            assert!(ALL[i].start >= end, "ranges of the first MiB overlap or are not ascending");
            end = ALL[i].start + ALL[i].len;
            i += 1;
        }
        assert!(CMDLINE.start + CMDLINE.len <= RAM_END && ACPI.start + ACPI.len <= END);
    };
}

/// Ports of the I/O space.
pub(crate) mod port {
    use super::BusRange;
    use devices::exit::ExitPort;
    use devices::pci::ConfigPorts;
    use devices::reset::{KeyboardReset, PanicPort, SleepRegisters};

    /// The keyboard controller's command port, which can only reset.
    pub(crate) const KEYBOARD_RESET: BusRange = BusRange { start: KeyboardReset::PORT, len: 1 };
    /// Where a guest program leaves its status.
    pub(crate) const EXIT: BusRange = BusRange { start: ExitPort::PORT, len: ExitPort::LEN };
    /// The first serial port.
    pub(crate) const SERIAL: BusRange =
        BusRange { start: devices::serial::COM1_PORT, len: devices::serial::LEN };
    /// Where a guest reports that it panicked.
    pub(crate) const PANIC: BusRange = BusRange { start: PanicPort::PORT, len: 1 };
    /// ACPI's sleep control and sleep status registers.
    pub(crate) const SLEEP: BusRange = BusRange { start: 0x600, len: SleepRegisters::LEN };
    /// ACPI's reset register.
    pub(crate) const RESET: BusRange = BusRange { start: 0x604, len: 1 };
    /// PCI's configuration ports, with the chipset's reset control between them.
    pub(crate) const PCI_CONFIG: BusRange = BusRange { start: ConfigPorts::PORT, len: ConfigPorts::LEN };
}

/// Global system interrupts.
pub(crate) mod gsi {
    /// Pins of the IOAPIC.
    pub(crate) const PINS: u8 = devices::ioapic::spec::PINS;
    /// The serial port: edge-triggered, active high.
    pub(crate) const SERIAL: u8 = devices::serial::COM1_IRQ;
    /// PCI INTA of device 0; INTx of device d leads to `PCI_FIRST + (d + x) % PCI_COUNT`.
    pub(crate) const PCI_FIRST: u8 = 16;
    /// How many pins the PCI interrupt lines share.
    pub(crate) const PCI_COUNT: u8 = 4;

    /// Where INTA of a device on bus 0 leads.
    pub(crate) const fn of_inta(device: u8) -> u8 {
        PCI_FIRST + device % PCI_COUNT
    }

    const _: () = assert!(PCI_FIRST + PCI_COUNT <= PINS);
}

/// Device numbers on PCI bus 0. Device 0 is the host bridge.
pub(crate) mod slot {
    /// SVM endpoints, DMA engines and assigned devices at most.
    pub(crate) const MAX_ENDPOINTS: usize = 15;
    /// Disks at most.
    pub(crate) const MAX_DISKS: usize = 16;
    /// The first SVM endpoint; the others follow it, then DMA engines, then assigned devices.
    pub(crate) const FIRST_SVM: u8 = 1;
    /// The first disk; the others follow it, to the end of the bus.
    pub(crate) const FIRST_DISK: u8 = 16;

    const _: () = assert!(FIRST_SVM as usize + MAX_ENDPOINTS <= FIRST_DISK as usize);
    const _: () = assert!(FIRST_DISK as usize + MAX_DISKS <= devices::pci::root::DEVICES as usize);
}

/// Requester ids of what is no PCI function: a bus on which there is none.
pub(crate) mod requester {
    use iommu_core::SourceId;

    /// The IOAPIC. Not 0, which Linux takes for "none".
    pub(crate) const IOAPIC: SourceId = SourceId::from_bdf(0xff, 0, 0);
    /// The units' own interrupts, for the log: they are not remapped.
    pub(crate) const UNITS: SourceId = SourceId::from_bdf(0xff, 0x1f, 7);

    /// DMA engine `number` outside PCI, 0 to 3.
    pub(crate) const fn dma_engine(number: u8) -> SourceId {
        SourceId::from_bdf(0xff, 0x10 + number, 0)
    }
}
