//! A DMA engine that is no PCI function: for remapping units that have devices of the ACPI namespace in scope.
//!
//! It copies from one address to another, both as its unit translates them without PASID, and has no interrupt: a
//! copy is done when the write that starts it returns.

use iommu_core::{Dma, Iova, Port, SESSION_LIMIT_BYTES};
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::bus::BusDevice;

/// `_HID` of its ACPI object.
pub const ACPI_ID: &str = "SVMM0001";
/// Bytes of its register page.
pub const LEN: u64 = 0x1000;

/// Registers: offsets into the page, 32 or 64 bits, little-endian. All but [`reg::CONTROL`] may be read and written in
/// parts.
pub mod reg {
    /// 64 bits, read-only: [`super::IDENTITY`].
    pub const IDENTITY: u64 = 0x00;
    /// 64 bits: where to copy from.
    pub const SOURCE: u64 = 0x08;
    /// 64 bits: where to copy to.
    pub const DESTINATION: u64 = 0x10;
    /// 64 bits: how many bytes, 1 to [`super::MAX_BYTES`].
    pub const LENGTH: u64 = 0x18;
    /// 32 bits, write-only: 1 starts a copy.
    pub const CONTROL: u64 = 0x20;
    /// 32 bits, read-only: a [`super::Status`].
    pub const STATUS: u64 = 0x28;
    /// 64 bits, read-only: the address of the last fault.
    pub const FAULT: u64 = 0x30;
}

/// What [`reg::IDENTITY`] reads.
pub const IDENTITY: u64 = u64::from_le_bytes(*b"SVMMDMA1");
/// Longest copy in bytes.
pub const MAX_BYTES: u64 = 64 << 10;
const _: () = assert!(MAX_BYTES <= SESSION_LIMIT_BYTES as u64);

/// How the last copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// There was none.
    Idle = 0,
    /// All is copied.
    Done = 1,
    /// The source cannot be read; nothing is copied.
    ReadFault = 2,
    /// The destination cannot be written, wholly or in part.
    WriteFault = 3,
    /// The length is 0 or too great.
    BadLength = 4,
}

/// The registers, as 64-bit words.
#[derive(Clone, Copy)]
struct Registers {
    source: u64,
    destination: u64,
    length: u64,
    status: Status,
    fault: u64,
}

/// The engine.
pub struct DmaEngine<M: GuestMemoryBackend> {
    /// Its DMA; taken by the one copy that runs.
    port: Mutex<Port<M>>,
    registers: Mutex<Registers>,
}

impl<M: GuestMemoryBackend + Clone> DmaEngine<M> {
    /// An engine whose memory is `dma`.
    #[must_use]
    pub fn new(dma: &Dma<M>) -> Self {
        let registers = Registers { source: 0, destination: 0, length: 0, status: Status::Idle, fault: 0 };
        Self { port: Mutex::new(dma.port()), registers: Mutex::new(registers) }
    }
}

impl<M: GuestMemoryBackend> DmaEngine<M> {
    fn copy(&self) {
        let wanted = *self.registers.lock();
        let (status, fault) = match usize::try_from(wanted.length) {
            Ok(length @ 1..) if wanted.length <= MAX_BYTES => self.copy_bytes(&wanted, length),
            _ => (Status::BadLength, None),
        };
        let mut registers = self.registers.lock();
        registers.status = status;
        registers.fault = fault.map_or(registers.fault, |address| address.0);
    }

    fn copy_bytes(&self, wanted: &Registers, length: usize) -> (Status, Option<Iova>) {
        let mut port = self.port.lock();
        let mut bytes = vec![0; length];
        let session = port.session(None);
        let read = session.read_slice(&mut bytes, GuestAddress(wanted.source));
        let fault = session.end();
        if read.is_err() || fault.is_some() {
            return (Status::ReadFault, fault.map(|fault| fault.address()));
        }
        let session = port.session(None);
        let written = session.write_slice(&bytes, GuestAddress(wanted.destination));
        let fault = session.end();
        if written.is_err() || fault.is_some() {
            return (Status::WriteFault, fault.map(|fault| fault.address()));
        }
        (Status::Done, None)
    }

    fn word(&self, offset: u64) -> u64 {
        let registers = self.registers.lock();
        match offset & !7 {
            reg::IDENTITY => IDENTITY,
            reg::SOURCE => registers.source,
            reg::DESTINATION => registers.destination,
            reg::LENGTH => registers.length,
            reg::STATUS => u64::from(registers.status as u32),
            reg::FAULT => registers.fault,
            _ => 0,
        }
    }

    fn set_byte(&self, offset: u64, byte: u8) {
        let mut registers = self.registers.lock();
        let word = match offset & !7 {
            reg::SOURCE => &mut registers.source,
            reg::DESTINATION => &mut registers.destination,
            reg::LENGTH => &mut registers.length,
            _ => return,
        };
        let shift = 8 * (offset % 8);
        *word = *word & !(0xff << shift) | u64::from(byte) << shift;
    }
}

impl<M: GuestMemoryBackend + Send + Sync> BusDevice for DmaEngine<M> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (address, byte) in (offset..).zip(data) {
            *byte = (self.word(address) >> (8 * (address % 8))).to_le_bytes()[0];
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == reg::CONTROL {
            if data.first() == Some(&1) {
                self.copy();
            }
            return;
        }
        for (address, byte) in (offset..).zip(data) {
            self.set_byte(address, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_core::SourceId;
    use iommu_core::testkit::{ListTranslator, Page};
    use std::sync::Arc;
    use vm_memory::GuestMemoryMmap;

    struct Rig {
        engine: DmaEngine<GuestMemoryMmap>,
        memory: GuestMemoryMmap,
        unit: Arc<ListTranslator>,
    }

    impl Rig {
        /// Two pages, 0x1000 and 0x2000, that the device sees at 0xa000 (read-only) and 0xb000.
        fn new() -> Self {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
            let unit = ListTranslator::new();
            unit.map(Page { pasid: None, iova: 0xa000, gpa: 0x1000, write: false });
            unit.map(Page { pasid: None, iova: 0xb000, gpa: 0x2000, write: true });
            let dma = Dma::new(SourceId(0xff10), memory.clone(), unit.clone(), Arc::default());
            Self { engine: DmaEngine::new(&dma), memory, unit }
        }

        fn read(&self, offset: u64) -> u64 {
            let mut data = [0; 8];
            self.engine.read(offset, &mut data);
            u64::from_le_bytes(data)
        }

        fn copy(&self, source: u64, destination: u64, length: u64) -> (u64, u64) {
            for (offset, value) in
                [(reg::SOURCE, source), (reg::DESTINATION, destination), (reg::LENGTH, length)]
            {
                self.engine.write(offset, &value.to_le_bytes());
            }
            self.engine.write(reg::CONTROL, &[1, 0, 0, 0]);
            (self.read(reg::STATUS), self.read(reg::FAULT))
        }
    }

    /// (name, source, destination, length, status and address of the fault)
    #[test]
    fn copies_end_with_a_status() {
        for (name, source, destination, length, expected) in [
            ("all", 0xa000, 0xb000, 0x1000, (1, 0)),
            ("some", 0xa123, 0xbffe, 2, (1, 0)),
            ("source not mapped", 0xc000, 0xb000, 1, (2, 0xc000)),
            ("source ends", 0xbff0, 0xb000, 0x20, (2, 0xc000)),
            ("destination read-only", 0xa000, 0xa800, 1, (3, 0xa800)),
            ("destination ends", 0xa000, 0xbff0, 0x20, (3, 0xc000)),
            ("nothing", 0xa000, 0xb000, 0, (4, 0)),
            ("too much", 0xa000, 0xb000, MAX_BYTES + 1, (4, 0)),
            ("far too much", 0xa000, 0xb000, u64::MAX, (4, 0)),
            ("top of the space", u64::MAX, 0xb000, 2, (2, u64::MAX)),
        ] {
            let rig = Rig::new();
            rig.memory.write_slice(&[7; 0x1000], GuestAddress(0x1000)).unwrap();
            assert_eq!(rig.copy(source, destination, length), expected, "{name}");
            let arrived: u8 = rig.memory.read_obj(GuestAddress(destination - 0x9000)).unwrap();
            assert_eq!(arrived == 7, matches!(expected.0, 1) || name.starts_with("destination"), "{name}");
            assert_eq!(rig.unit.faults.lock().len(), usize::from(matches!(expected.0, 2 | 3)), "{name}");
        }
    }

    #[test]
    fn registers_take_any_access() {
        let rig = Rig::new();
        assert_eq!(rig.read(reg::IDENTITY), IDENTITY);
        rig.engine.write(reg::SOURCE + 3, &[1, 2, 3, 4, 5, 6]);
        assert_eq!((rig.read(reg::SOURCE), rig.read(reg::DESTINATION)), (0x0504_0302_0100_0000, 6));
        for offset in 0..0x100 {
            rig.engine.write(offset, &[0xff; 8]);
            rig.read(offset);
        }
        assert_eq!(rig.read(reg::STATUS), 0, "nothing but a 1 starts a copy");
        assert_eq!((rig.read(reg::IDENTITY), rig.read(0x800)), (IDENTITY, 0));
    }
}
