//! What a message becomes by one table entry (§5.1.3 to §5.1.4). **Pure.**

use std::ops::RangeInclusive;

use arbitrary_int::traits::Integer;
use iommu_core::{Gpa, Msi, SourceId};

use crate::capability::Capability;
use crate::spec::interrupt::{
    DeliveryMode, ENTRY_BYTES, EntryHigh, INTERRUPT_PREFIX, InterruptReason, MessageAddress, MessageData,
    POSTED_RESERVED, PostedLow, RemappedLow, SourceValidation, TableAddress, remapped_reserved,
};

/// What the unit offers, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptRules {
    host_bits: u32,
    posting: bool,
}

impl InterruptRules {
    /// The rules of a unit.
    #[must_use]
    pub fn new(capability: &Capability) -> Self {
        Self { host_bits: capability.host_address_width(), posting: capability.cap().pi() }
    }
}

/// What commands have set: how messages are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latch {
    /// Interrupts are remapped (IRES).
    pub enabled: bool,
    /// Messages in compatibility format pass, unless extended mode is on (CFIS).
    pub compatibility: bool,
    /// The table, as SIRTP latched it.
    pub table: TableAddress,
}

impl Latch {
    /// After power-on.
    pub const OFF: Self = Self { enabled: false, compatibility: false, table: TableAddress::DEFAULT };

    /// Number of entries of the table, 2 to 65536.
    #[must_use]
    pub fn entries(&self) -> u32 {
        2 << self.table.s().as_u32()
    }

    /// Destinations have 32 bits (EIME).
    #[must_use]
    pub fn extended(&self) -> bool {
        self.table.eime()
    }
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// It is no interrupt at all, but a write to memory.
    Memory,
    /// It is delivered as it is.
    Unchanged,
    /// By the table entry of this index.
    Entry(u16),
}

/// Why a message is blocked, and which index the record names.
pub type Refusal = (InterruptReason, u16);

/// Decides by the message's format.
///
/// # Errors
/// It is blocked.
pub fn path(latch: &Latch, msi: Msi) -> Result<Path, Refusal> {
    let Ok(address) = u32::try_from(msi.address) else { return Ok(Path::Memory) };
    let address = MessageAddress::new_with_raw_value(address);
    if address.prefix() != INTERRUPT_PREFIX {
        return Ok(Path::Memory);
    }
    if !latch.enabled {
        return Ok(Path::Unchanged);
    }
    if !address.remappable() {
        let passes = latch.compatibility && !latch.extended();
        return if passes { Ok(Path::Unchanged) } else { Err((InterruptReason::Compatibility, 0)) };
    }
    let data = MessageData::new_with_raw_value(msi.data);
    let handle = u32::from(address.handle().value()) | u32::from(address.handle_high()) << 15;
    if !address.shv() {
        return in_table(latch, handle);
    }
    if data.reserved() != 0 {
        return Err((InterruptReason::Request, 0));
    }
    in_table(latch, handle + u32::from(data.subhandle()))
}

/// The record's field has 16 bits; of an index beyond, the upper one is lost.
fn in_table(latch: &Latch, index: u32) -> Result<Path, Refusal> {
    let [low, high, ..] = index.to_le_bytes();
    let named = u16::from_le_bytes([low, high]);
    if index < latch.entries() { Ok(Path::Entry(named)) } else { Err((InterruptReason::Index, named)) }
}

/// Where an entry lies; `None` beyond the physical width.
#[must_use]
pub fn locate(latch: &Latch, rules: &InterruptRules, index: u16) -> Option<Gpa> {
    let base = latch.table.irta().value() << 12;
    let address = base.checked_add(u64::from(index) * ENTRY_BYTES)?;
    (address >> rules.host_bits == 0).then_some(Gpa(address))
}

/// Who may use an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Everyone.
    Any,
    /// Source-ids that equal `id` in the bits that `ignored` leaves.
    Matching {
        /// The source-id.
        id: u16,
        /// Bits not compared.
        ignored: u16,
    },
    /// Functions on these buses.
    Buses(RangeInclusive<u8>),
}

impl Sources {
    /// `None`: the type of validation is reserved.
    fn of(high: EntryHigh) -> Option<Self> {
        match high.svt() {
            SourceValidation::None => Some(Self::Any),
            SourceValidation::Source => {
                let ignored = [0b000, 0b100, 0b110, 0b111][usize::from(high.sq().value())];
                Some(Self::Matching { id: high.sid(), ignored })
            }
            SourceValidation::BusRange => {
                let [first, last] = high.sid().to_be_bytes();
                Some(Self::Buses(first..=last))
            }
            SourceValidation::Reserved => None,
        }
    }

    fn allow(&self, source: SourceId) -> bool {
        match self {
            Self::Any => true,
            Self::Matching { id, ignored } => (id ^ source.0) & !ignored == 0,
            Self::Buses(buses) => buses.contains(&source.bus()),
        }
    }
}

/// An interrupt as it reaches the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Id of the destination: 32 bits in extended mode, else 8.
    pub destination: u32,
    /// The destination is a logical one.
    pub logical: bool,
    /// Redirection hint: to one of the destinations.
    pub hint: bool,
    /// Delivery mode.
    pub delivery: DeliveryMode,
    /// Vector.
    pub vector: u8,
    /// Level-triggered.
    pub level: bool,
}

impl Interrupt {
    /// As a message that is not remapped again: bits 31:8 of the destination are in bits 63:40 of the address.
    #[must_use]
    pub fn message(&self) -> Msi {
        let [low, ..] = self.destination.to_le_bytes();
        let address = 0xfee0_0000
            | u64::from(self.destination & !0xff) << 32
            | u64::from(low) << 12
            | u64::from(self.hint) << 3
            | u64::from(self.logical) << 2;
        let asserted = 1 << 14;
        let data = u32::from(self.vector)
            | u32::from(self.delivery.raw_value().value()) << 8
            | asserted
            | u32::from(self.level) << 15;
        Msi { address, data }
    }
}

/// What a posted entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The posted-interrupt descriptor, aligned to 64 bytes.
    pub descriptor: Gpa,
    /// Which of its 256 request bits.
    pub vector: u8,
    /// Notify even if notifications are suppressed.
    pub urgent: bool,
}

/// What an entry wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Deliver an interrupt.
    Deliver(Interrupt),
    /// Set a bit in a descriptor, and perhaps notify.
    Post(Posting),
}

/// An entry that is present and without mistakes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    sources: Sources,
    /// What is to be done.
    pub action: Action,
    /// Faults that are qualified leave no record (FPD).
    pub silent: bool,
}

/// Whether an entry, present or not, asks for silence.
#[must_use]
pub fn is_silent(words: [u64; 2]) -> bool {
    RemappedLow::new_with_raw_value(words[0]).fpd()
}

/// Reads an entry for a request of `source`.
///
/// # Errors
/// In this order: it is not present, it is not for this source, its bits are wrong.
pub fn decode(
    words: [u64; 2],
    source: SourceId,
    extended: bool,
    rules: &InterruptRules,
) -> Result<Entry, InterruptReason> {
    let low = RemappedLow::new_with_raw_value(words[0]);
    if !low.present() {
        return Err(InterruptReason::NotPresent);
    }
    let sources = Sources::of(EntryHigh::new_with_raw_value(words[1])).ok_or(InterruptReason::Reserved)?;
    if !sources.allow(source) {
        return Err(InterruptReason::Source);
    }
    let action = if low.posted() && rules.posting {
        posted(words, rules).map(Action::Post)
    } else {
        remapped(words, extended).map(Action::Deliver)
    };
    Ok(Entry { sources, action: action.ok_or(InterruptReason::Reserved)?, silent: low.fpd() })
}

impl Entry {
    /// Checks another request against the entry.
    ///
    /// # Errors
    /// It is not for this source.
    pub fn admit(&self, source: SourceId) -> Result<(), InterruptReason> {
        if self.sources.allow(source) { Ok(()) } else { Err(InterruptReason::Source) }
    }
}

fn clean(words: [u64; 2], reserved: [u64; 2]) -> Option<()> {
    (words[0] & reserved[0] == 0 && words[1] & reserved[1] == 0).then_some(())
}

fn remapped(words: [u64; 2], extended: bool) -> Option<Interrupt> {
    clean(words, remapped_reserved(extended))?;
    let low = RemappedLow::new_with_raw_value(words[0]);
    Some(Interrupt {
        destination: if extended { low.dst() } else { low.dst() >> 8 },
        logical: low.dm(),
        hint: low.rh(),
        delivery: low.dlm().ok()?,
        vector: low.vector(),
        level: low.tm(),
    })
}

fn posted(words: [u64; 2], rules: &InterruptRules) -> Option<Posting> {
    clean(words, POSTED_RESERVED)?;
    let low = PostedLow::new_with_raw_value(words[0]);
    let high = EntryHigh::new_with_raw_value(words[1]);
    let descriptor = u64::from(high.pda_high()) << 32 | u64::from(low.pda_low().value()) << 6;
    (descriptor >> rules.host_bits == 0).then_some(Posting {
        descriptor: Gpa(descriptor),
        vector: low.vector(),
        urgent: low.urgent(),
    })
}
