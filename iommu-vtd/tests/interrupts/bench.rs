//! A unit with a remapping table, and what comes out of it.

use std::sync::Arc;

use iommu_core::testkit::RecordingMsi;
use iommu_core::{InterruptRemapper, Msi, SourceId};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = GuestMemoryMmap;

/// The table: up to 65536 entries, 1 MiB.
pub(crate) const TABLE: u64 = 0x20_0000;
/// Another one.
pub(crate) const OTHER_TABLE: u64 = 0x40_0000;
const RING: u64 = 0x1_0000;
const STATUS: u64 = 0x1_3000;

pub(crate) const QIE: u32 = 1 << 26;
pub(crate) const IRE: u32 = 1 << 25;
pub(crate) const SIRTP: u32 = 1 << 24;
pub(crate) const CFI: u32 = 1 << 23;
/// IRTA: 65536 entries.
pub(crate) const ALL_ENTRIES: u64 = 0xf;
/// IRTA: extended mode.
pub(crate) const EIME: u64 = 1 << 11;

pub(crate) const GCMD: u64 = 0x18;
pub(crate) const GSTS: u64 = 0x1c;
pub(crate) const FSTS: u64 = 0x34;
pub(crate) const IRTA: u64 = 0xb8;

/// Who sends.
pub(crate) const SOURCE: SourceId = SourceId::from_bdf(0, 3, 0);

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It arrived as this.
    Arrived(Msi),
    /// It was blocked: reason, source-id, interrupt index.
    Fault(u8, SourceId, u16),
    /// Neither.
    Nothing,
}

pub(crate) struct Bench {
    pub(crate) memory: Memory,
    pub(crate) unit: Arc<Unit<Memory>>,
    /// Interrupts of the unit itself.
    pub(crate) own: Arc<RecordingMsi>,
}

/// A unit that has everything, for 46-bit addresses.
pub(crate) fn profile() -> Profile {
    Profile::full(46)
}

impl Bench {
    /// 16 MiB, a unit after power-on.
    pub(crate) fn new(profile: &Profile) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let own = Arc::new(RecordingMsi::default());
        let capability = Capability::new(profile).unwrap();
        let config = UnitConfig { capability, source: SourceId(0xfff8) };
        let unit = Arc::new(Unit::new(&config, memory.clone(), own.clone()));
        Self { memory, unit, own }
    }

    /// Remapping is on, with a table of all entries; `extended`: with 32-bit destinations.
    pub(crate) fn on(profile: &Profile, extended: bool) -> Self {
        let bench = Self::new(profile);
        bench.set_table(TABLE | ALL_ENTRIES | if extended { EIME } else { 0 }, 0);
        bench.command(IRE);
        bench
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.mmio_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    pub(crate) fn write64(&self, offset: u64, value: u64) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    /// Writes GCMD; the status has it at once.
    pub(crate) fn command(&self, levels: u32) {
        self.write32(GCMD, levels);
        assert_eq!(self.read32(GSTS) & (IRE | CFI | QIE), levels & (IRE | CFI | QIE));
    }

    /// Programs IRTA and has it latched, with these levels.
    pub(crate) fn set_table(&self, register: u64, levels: u32) {
        self.write64(IRTA, register);
        self.write32(GCMD, levels | SIRTP);
        assert_ne!(self.read32(GSTS) & SIRTP, 0, "IRTPS");
    }

    /// Writes an entry, the low half in the low bits.
    pub(crate) fn set_entry(&self, index: u16, entry: u128) {
        self.set_entry_of(TABLE, index, entry);
    }

    pub(crate) fn set_entry_of(&self, table: u64, index: u16, entry: u128) {
        self.memory.write_obj(entry, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    pub(crate) fn word(&self, gpa: u64) -> u64 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    pub(crate) fn set_word(&self, gpa: u64, word: u64) {
        self.memory.write_obj(word, GuestAddress(gpa)).unwrap();
    }

    /// Sends a message, and collects what came of it.
    pub(crate) fn send(&self, source: SourceId, msi: Msi) -> Seen {
        let sink = RecordingMsi::default();
        self.unit.deliver(source, msi, &sink);
        let sent = sink.sent.into_inner();
        let record = self.take_fault();
        match (&sent[..], record) {
            ([], None) => Seen::Nothing,
            ([], Some((reason, source, index))) => Seen::Fault(reason, source, index),
            ([(from, msi)], None) => {
                assert_eq!(*from, source);
                Seen::Arrived(*msi)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The pending record, if there is one; it is cleared. What it says beside (reason, source, index) is as the
    /// manual has it for every interrupt.
    fn take_fault(&self) -> Option<(u8, SourceId, u16)> {
        let status = self.read32(FSTS);
        if status & 2 == 0 {
            return None;
        }
        let at = 0x220 + 16 * u64::from(status >> 8 & 0xff);
        let (low, high) = (self.read64(at), self.read64(at + 8));
        self.write32(at + 12, 1 << 31);
        assert_eq!(self.read32(FSTS) & 3, 0);
        assert_eq!(low & 0x0000_ffff_ffff_ffff, 0, "nothing but the index");
        assert_eq!(high & !(0xff << 32 | 0xffff), 1 << 63, "a write, without PASID and address type");
        let [reason, ..] = (high >> 32).to_le_bytes();
        let [source_low, source_high, ..] = high.to_le_bytes();
        let index = u16::try_from(low >> 48).unwrap();
        Some((reason, SourceId(u16::from_le_bytes([source_low, source_high])), index))
    }

    /// Submits one descriptor and a wait through a fresh queue, which is then switched off again.
    pub(crate) fn submit(&self, descriptor: u64, levels: u32) {
        self.prepare(descriptor, levels);
        self.kick();
        self.command(levels);
    }

    /// Has the tail of the prepared queue written, and finds the wait completed.
    pub(crate) fn kick(&self) {
        self.write32(0x88, 64);
        assert_eq!(self.word(STATUS), 2);
    }

    /// Switches a fresh queue on, with one descriptor and a wait before the tail that [`Self::kick`] writes.
    pub(crate) fn prepare(&self, descriptor: u64, levels: u32) {
        let words = [descriptor, 0, 0, 0, 2 << 32 | 0x25, STATUS, 0, 0];
        for (at, word) in (RING..).step_by(8).zip(words) {
            self.set_word(at, word);
        }
        self.set_word(STATUS, 1);
        self.write64(0x90, RING | 1 << 11 | 1);
        self.write64(0x88, 0);
        self.command(levels | QIE);
    }
}

/// IEC: all entries.
pub(crate) const ALL: u64 = 0x04;

/// IEC: `2^mask` entries around `index`.
pub(crate) fn block(index: u16, mask: u64) -> u64 {
    u64::from(index) << 32 | mask << 27 | 0x14
}

/// The message of an entry, as Linux writes it: with a sub-handle.
pub(crate) fn to_entry(index: u16) -> Msi {
    let index = u64::from(index);
    Msi { address: 0xfee0_0018 | (index & 0x7fff) << 5 | index >> 15 << 2, data: 0 }
}

/// A remapped entry for everyone: present, fixed, edge, with this vector and this physical destination.
pub(crate) fn entry(vector: u8, destination: u32) -> u128 {
    u128::from(destination) << 32 | u128::from(vector) << 16 | 1
}

/// The same as it arrives.
pub(crate) fn arrives(vector: u8, destination: u32) -> Seen {
    let [low, ..] = destination.to_le_bytes();
    let address = u64::from(destination & !0xff) << 32 | 0xfee0_0000 | u64::from(low) << 12;
    Seen::Arrived(Msi { address, data: 0x4000 | u32::from(vector) })
}
