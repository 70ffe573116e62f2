//! FADT, MADT and MCFG (ACPI 6.5 §5.2.9, §5.2.12; PCI Firmware 3.3 §4.1.2).

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;
use devices::reset::{ResetRegister, SleepRegisters};
use iommu_vtd::dmar;
use zerocopy::{Immutable, IntoBytes};

use super::{HEADER, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::cpus::Cpus;
use crate::layout::{ECAM, IOAPIC, IOAPIC_ID, LOCAL_APIC, port};

/// IA-PC boot flags (§5.2.9.3): no VGA, no CMOS clock. Neither 8042 (bit 1) nor other legacy devices (bit 0).
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// The FADT: hardware-reduced, with sleep registers and a reset register.
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let byte_port = |port: u64| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = byte_port(port::RESET.start);
    fadt.reset_value = ResetRegister::VALUE;
    fadt.sleep_control_reg = byte_port(port::SLEEP.start);
    fadt.sleep_status_reg = byte_port(port::SLEEP.start + SleepRegisters::STATUS);
    bytes(&fadt.finalize())
}

/// The MADT: one local APIC structure per CPU, the IOAPIC, and LINT1 as NMI.
///
/// A CPU's number in the DSDT and elsewhere (its UID) counts from 0, whatever its APIC id.
pub(super) fn madt(cpus: Cpus) -> Vec<u8> {
    let address = u32::try_from(LOCAL_APIC.start).unwrap_or(0);
    let controller = LocalInterruptController::Address(address);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, controller);
    for (uid, id) in (0..).zip(cpus.ids()) {
        // Ids from 255 on need the x2APIC structure.
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(id)) if u32::from(id) < Cpus::FIRST_WIDE_ID => {
                madt.add_structure(ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled));
            }
            _ => madt.add_structure(LocalX2Apic::new(uid, id)),
        }
    }
    madt.add_structure(IoApic::new(IOAPIC_ID, u32::try_from(IOAPIC.start).unwrap_or(0), 0));
    madt.add_structure(LocalApicNmi::all_cpus_lint1());
    bytes(&madt)
}

/// The MCFG: ECAM of segment 0.
pub(super) fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, u8::MAX);
    bytes(&mcfg)
}

/// The DMAR table around `body`.
pub(super) fn dmar(body: &[u8]) -> Vec<u8> {
    let mut sdt = Sdt::new(dmar::SIGNATURE, HEADER, dmar::REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}

/// Processor Local x2APIC structure (§5.2.12.12).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: [u8; 2],
    id: [u8; 4],
    flags: [u8; 4],
    uid: [u8; 4],
}

impl LocalX2Apic {
    fn new(uid: u32, id: u32) -> Self {
        let (id, uid) = (id.to_le_bytes(), uid.to_le_bytes());
        Self { kind: 9, length: 16, reserved: [0; 2], id, flags: 1u32.to_le_bytes(), uid }
    }
}

/// Local APIC NMI structure (§5.2.12.7).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor: u8,
    flags: [u8; 2],
    lint: u8,
}

impl LocalApicNmi {
    fn all_cpus_lint1() -> Self {
        Self { kind: 4, length: 6, processor: 0xff, flags: [0; 2], lint: 1 }
    }
}

/// Structures are their bytes.
macro_rules! as_bytes {
    ($($structure:ty),*) => {$(
        impl acpi_tables::Aml for $structure {
            fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
                sink.vec(IntoBytes::as_bytes(self));
            }
        }
    )*};
}
as_bytes!(LocalX2Apic, LocalApicNmi);
