//! The DSDT: the PCI host bridge with its windows and interrupts, the serial port, S5.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name,
    Package, PackageBuilder, ResourceTemplate, Return, Scope,
};
use acpi_tables::sdt::Sdt;
use devices::dma_engine;
use devices::reset::SleepRegisters;

use super::{HEADER, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::layout::{DMA_ENGINES, ECAM, PCI_MMIO32, gsi, port};

/// Slots of bus 0 and their INTx pins.
const SLOTS: u32 = 32;
const PINS: u32 = 4;

/// The whole table.
pub(super) fn table(dma_engines: usize) -> Vec<u8> {
    let mut sdt = Sdt::new(*b"DSDT", HEADER, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(&host_bridge());
    sdt.append_slice(&legacy_devices());
    for number in (0..=u8::MAX).take(dma_engines) {
        sdt.append_slice(&dma_engine(number));
    }
    sdt.append_slice(&sleep_state());
    sdt.as_slice().to_vec()
}

/// `\_SB.PCI0`: segment 0, its bus numbers, the window for BARs and the configuration ports.
fn host_bridge() -> Vec<u8> {
    let windows = ResourceTemplate::new(vec![
        &AddressSpace::<u16>::new_bus_number(0, 255),
        &IO::new(short(port::PCI_CONFIG.start), short(port::PCI_CONFIG.start), 1, 8),
        &AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            word(PCI_MMIO32.start),
            word(PCI_MMIO32.start + PCI_MMIO32.len - 1),
            None,
        ),
    ])
    .to_bytes();
    // The ECAM range is a motherboard resource: Linux wants it reserved by some device.
    let ecam =
        ResourceTemplate::new(vec![&Memory32Fixed::new(true, word(ECAM.start), word(ECAM.len))]).to_bytes();
    let bridge = Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_CCA".into(), &1u8),
            &Name::new("_CRS".into(), &Raw(&windows)),
            &Name::new("_PRT".into(), &interrupt_routing()),
            // Whatever control of PCI Express the guest asks for, it gets: there is no firmware to contend with.
            &Method::new("_OSC".into(), 4, false, vec![&Return::new(&Arg(3))]),
        ],
    )
    .to_bytes();
    let motherboard = Device::new(
        "MRES".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C02")), &Name::new("_CRS".into(), &Raw(&ecam))],
    )
    .to_bytes();
    bytes(&Scope::new("_SB_".into(), vec![&Raw(&bridge), &Raw(&motherboard)]))
}

/// `_PRT`: pin x of slot d leads to one of four interrupts, in the customary swizzle.
fn interrupt_routing() -> PackageBuilder {
    let mut package = PackageBuilder::new();
    for slot in 0..SLOTS {
        for pin in 0..PINS {
            let gsi = u32::from(gsi::PCI_FIRST) + (slot + pin) % u32::from(gsi::PCI_COUNT);
            package.add_element(&Package::new(vec![&(slot << 16 | 0xffff), &pin, &0u8, &gsi]));
        }
    }
    package
}

/// The serial port, and the port on which guests report panics.
fn legacy_devices() -> Vec<u8> {
    let serial_resources = ResourceTemplate::new(vec![
        &IO::new(short(port::SERIAL.start), short(port::SERIAL.start), 1, 8),
        &Interrupt::new(true, true, false, false, u32::from(gsi::SERIAL)),
    ])
    .to_bytes();
    let serial = Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &Raw(&serial_resources)),
        ],
    )
    .to_bytes();
    let panic_resources =
        ResourceTemplate::new(vec![&IO::new(short(port::PANIC.start), short(port::PANIC.start), 1, 1)])
            .to_bytes();
    let panic = Device::new(
        "PEVT".into(),
        vec![
            // The id that Linux's pvpanic driver binds to.
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &0xfu8),
            &Name::new("_CRS".into(), &Raw(&panic_resources)),
        ],
    )
    .to_bytes();
    bytes(&Scope::new("_SB_".into(), vec![&Raw(&serial), &Raw(&panic)]))
}

/// The name of DMA engine `number`, 0 to 9.
fn dma_engine_name(number: u8) -> String {
    format!("DMA{number}")
}

/// The full path of DMA engine `number`, 0 to 9, outside PCI.
pub(crate) fn dma_engine_path(number: u8) -> String {
    format!("\\_SB_.{}", dma_engine_name(number))
}

/// A DMA engine outside PCI: its registers. Remapping units know it by its path.
fn dma_engine(number: u8) -> Vec<u8> {
    let start = DMA_ENGINES.start + dma_engine::LEN * u64::from(number);
    let registers =
        ResourceTemplate::new(vec![&Memory32Fixed::new(true, word(start), word(dma_engine::LEN))]).to_bytes();
    let engine = Device::new(
        dma_engine_name(number).as_str().into(),
        vec![
            &Name::new("_HID".into(), &dma_engine::ACPI_ID),
            &Name::new("_UID".into(), &number),
            &Name::new("_CCA".into(), &1u8),
            &Name::new("_CRS".into(), &Raw(&registers)),
        ],
    )
    .to_bytes();
    bytes(&Scope::new("_SB_".into(), vec![&Raw(&engine)]))
}

/// `\_S5`: the value for the sleep control register that powers off.
fn sleep_state() -> Vec<u8> {
    bytes(&Name::new("_S5_".into(), &Package::new(vec![&SleepRegisters::S5_TYPE])))
}

/// AML that is made already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

/// Made of an object whose parts live only in the statement.
trait ToBytes {
    fn to_bytes(&self) -> Vec<u8>;
}

impl<T: Aml> ToBytes for T {
    fn to_bytes(&self) -> Vec<u8> {
        bytes(self)
    }
}

/// Addresses of the hole fit into 32 bits, ports into 16.
fn word(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn short(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(0)
}
