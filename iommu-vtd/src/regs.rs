//! Chapter 11: the register file as one table.
//!
//! A row says where a register lies, what it resets to and which of its bits software may change. Everything that
//! happens on a read or write of any width at any offset follows from the rows; what a write *sets off* is
//! decided by [`crate::unit`], which asks the returned [`Span`] what was touched.

mod saved;

pub use saved::BadRegister;

use std::marker::PhantomData;

use crate::capability::{Capability, FAULT_RECORD_OFFSET, FAULT_RECORDS, IOTLB_OFFSET};
use crate::spec::bits;
use crate::spec::interrupt::TableAddress;
use crate::spec::registers::{
    Cap, CompletionStatus, ContextCommand, Ecap, EventControl, FaultRecordHigh, FaultRecordLow, FaultStatus,
    GlobalCommand, IotlbInvalidate, PageQueueAddress, PageQueueOffset, PageRequestStatus, QueueAddress,
    QueueErrorRecord, QueueOffset, RootTableAddress,
};

/// Size of the register page in bytes. All registers lie in it.
pub const PAGE_BYTES: u64 = 4096;
const WORDS: usize = 512;

/// A register layout: 4 or 8 bytes.
pub trait Layout: Copy {
    /// The register with these bits. Bits above the register's width are dropped.
    fn from_bits(bits: u64) -> Self;
    /// Its bits, zero-extended.
    fn to_bits(self) -> u64;
}

macro_rules! layouts {
    ($($raw:ty: $($layout:ty),+;)+) => {$($(
        impl Layout for $layout {
            #[allow(clippy::cast_possible_truncation, reason = "the register's width, by contract")]
            fn from_bits(bits: u64) -> Self {
                Self::new_with_raw_value(bits as $raw)
            }
            fn to_bits(self) -> u64 {
                u64::from(self.raw_value())
            }
        }
    )+)+};
}

layouts! {
    u32: GlobalCommand, FaultStatus, EventControl, CompletionStatus, PageRequestStatus;
    u64: Cap, Ecap, RootTableAddress, ContextCommand, IotlbInvalidate, QueueOffset, QueueAddress,
        QueueErrorRecord, PageQueueOffset, PageQueueAddress, FaultRecordLow, FaultRecordHigh, TableAddress;
}

impl Layout for u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the register's width, by contract")]
    fn from_bits(bits: u64) -> Self {
        bits as Self
    }
    fn to_bits(self) -> u64 {
        self.into()
    }
}

impl Layout for u64 {
    fn from_bits(bits: u64) -> Self {
        bits
    }
    fn to_bits(self) -> u64 {
        self
    }
}

/// The name of a register with layout `L`.
#[derive(Clone, Copy)]
pub struct Register<L> {
    offset: u16,
    layout: PhantomData<L>,
}

impl<L> Register<L> {
    const fn at(offset: u16) -> Self {
        Self { offset, layout: PhantomData }
    }

    /// Offset in the register page, in bytes.
    #[must_use]
    pub const fn offset(self) -> u16 {
        self.offset
    }
}

/// When a register is there. Otherwise its bytes read 0 and ignore writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Present {
    Always,
    /// With ECAP.QI.
    Queue,
    /// With ECAP.IR.
    Remapping,
    /// With ECAP.PRS.
    PageRequests,
}

/// One row of the table. Masks are of the register, bit 0 its lowest.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    offset: u16,
    bytes: usize,
    reset: u64,
    /// Software reads back what it wrote.
    rw: u64,
    /// Writing 1 clears.
    w1c: u64,
    /// Kept, but reads 0.
    wo: u64,
    present: Present,
}

macro_rules! table {
    ($($name:ident: $layout:ty, $offset:expr, $reset:expr, $rw:expr, $w1c:expr, $wo:expr, $present:ident;)+) => {
        $(
            #[doc = concat!("The ", stringify!($name), " register.")]
            pub const $name: Register<$layout> = Register::at($offset);
        )+
        const TABLE: &[Row] = &[$(Row {
            name: stringify!($name),
            offset: $offset,
            bytes: size_of::<$layout>(),
            reset: $reset,
            rw: $rw,
            w1c: $w1c,
            wo: $wo,
            present: Present::$present,
        }),+];
    };
}

const PAGES: u64 = bits(63, 12);
const IM: u64 = bits(31, 31);
const EIME: u64 = bits(11, 11);
const COMMANDS: u64 = bits(31, 30) | bits(27, 23);

// Reset values of VER, CAP and ECAP are filled in from the profile.
table! {
    // name: layout,                offset, reset, RW, RW1C, WO, present
    VER: u32,                       0x000, 0, 0, 0, 0, Always;
    CAP: Cap,                       0x008, 0, 0, 0, 0, Always;
    ECAP: Ecap,                     0x010, 0, 0, 0, 0, Always;
    GCMD: GlobalCommand,            0x018, 0, COMMANDS, 0, COMMANDS, Always;
    GSTS: GlobalCommand,            0x01c, 0, 0, 0, 0, Always;
    RTADDR: RootTableAddress,       0x020, 0, PAGES | bits(11, 10), 0, 0, Always;
    CCMD: ContextCommand,           0x028, 0, bits(63, 61) | bits(33, 0), 0, bits(33, 16), Always;
    FSTS: FaultStatus,              0x034, 0, 0, bits(6, 4) | bits(0, 0), 0, Always;
    FECTL: EventControl,            0x038, IM, IM, 0, 0, Always;
    FEDATA: u32,                    0x03c, 0, bits(15, 0), 0, 0, Always;
    FEADDR: u32,                    0x040, 0, bits(31, 2), 0, 0, Always;
    FEUADDR: u32,                   0x044, 0, bits(31, 0), 0, 0, Always;
    IQH: QueueOffset,               0x080, 0, 0, 0, 0, Queue;
    IQT: QueueOffset,               0x088, 0, bits(18, 4), 0, 0, Queue;
    IQA: QueueAddress,              0x090, 0, PAGES | bits(11, 11) | bits(2, 0), 0, 0, Queue;
    ICS: CompletionStatus,          0x09c, 0, 0, bits(0, 0), 0, Queue;
    IECTL: EventControl,            0x0a0, IM, IM, 0, 0, Queue;
    IEDATA: u32,                    0x0a4, 0, bits(15, 0), 0, 0, Queue;
    IEADDR: u32,                    0x0a8, 0, bits(31, 2), 0, 0, Queue;
    IEUADDR: u32,                   0x0ac, 0, bits(31, 0), 0, 0, Queue;
    IQERCD: QueueErrorRecord,       0x0b0, 0, 0, 0, 0, Queue;
    // EIME is reserved without ECAP.EIM; so it has no row of its own.
    IRTA: TableAddress,             0x0b8, 0, PAGES | EIME | bits(3, 0), 0, 0, Remapping;
    PQH: PageQueueOffset,           0x0c0, 0, bits(18, 5), 0, 0, PageRequests;
    PQT: PageQueueOffset,           0x0c8, 0, bits(18, 5), 0, 0, PageRequests;
    PQA: PageQueueAddress,          0x0d0, 0, PAGES | bits(2, 0), 0, 0, PageRequests;
    PRS: PageRequestStatus,         0x0dc, 0, 0, bits(1, 0), 0, PageRequests;
    PECTL: EventControl,            0x0e0, IM, IM, 0, 0, PageRequests;
    PEDATA: u32,                    0x0e4, 0, bits(15, 0), 0, 0, PageRequests;
    PEADDR: u32,                    0x0e8, 0, bits(31, 2), 0, 0, PageRequests;
    PEUADDR: u32,                   0x0ec, 0, bits(31, 0), 0, 0, PageRequests;
    IVA: u64,                       IOTLB_OFFSET, 0, PAGES | bits(6, 0), 0, u64::MAX, Always;
    IOTLB: IotlbInvalidate,         IOTLB_OFFSET + 8, 0, bits(63, 63) | bits(61, 60) | bits(49, 32), 0, 0, Always;
}

/// FRCD: the two halves of fault recording register `index`, taken modulo their number.
#[must_use]
pub const fn fault_record(index: u16) -> (Register<FaultRecordLow>, Register<FaultRecordHigh>) {
    let offset = FAULT_RECORD_OFFSET + 16 * (index % FAULT_RECORDS);
    (Register::at(offset), Register::at(offset + 8))
}

const RECORD_ROWS: [Row; 2] = [
    Row { name: "FRCD", offset: 0, bytes: 8, reset: 0, rw: 0, w1c: 0, wo: 0, present: Present::Always },
    Row {
        name: "FRCD",
        offset: 8,
        bytes: 8,
        reset: 0,
        rw: 0,
        w1c: bits(63, 63),
        wo: 0,
        present: Present::Always,
    },
];

/// Row `index` of all, those of the fault records after the others.
const fn row(index: usize) -> Row {
    if index < TABLE.len() {
        return TABLE[index];
    }
    let record = index - TABLE.len();
    let mut row = RECORD_ROWS[record % 2];
    #[expect(clippy::cast_possible_truncation, reason = "fewer than 256 records")]
    let number = (record / 2) as u16;
    row.offset += FAULT_RECORD_OFFSET + 16 * number;
    row
}

const ROWS: usize = TABLE.len() + 2 * FAULT_RECORDS as usize;

/// No two rows share a byte, all are naturally aligned and inside the page, masks fit and do not contradict.
const _: () = {
    let mut used = [false; WORDS * 8];
    let mut index = 0;
    while index < ROWS {
        let row = row(index);
        assert!((row.offset as usize).is_multiple_of(row.bytes), "register not aligned");
        let width = if row.bytes == 4 { bits(31, 0) } else { u64::MAX };
        assert!((row.reset | row.rw | row.w1c) & !width == 0, "mask wider than its register");
        assert!(row.rw & row.w1c == 0, "bit both RW and RW1C");
        let mut byte = row.offset as usize;
        while byte < row.offset as usize + row.bytes {
            assert!(!used[byte], "registers overlap");
            used[byte] = true;
            byte += 1;
        }
        index += 1;
    }
};

/// What a write touched: bytes of the register page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u64,
    /// Exclusive.
    end: u64,
}

impl Span {
    /// Whether some byte of the register was touched.
    #[must_use]
    pub fn touches<L>(&self, register: Register<L>) -> bool {
        let start = u64::from(register.offset);
        self.start < start + size_of::<L>() as u64 && start < self.end
    }

    /// Whether the register's last byte was touched: where a 64-bit register has its trigger bit.
    #[must_use]
    pub fn touches_last_byte<L>(&self, register: Register<L>) -> bool {
        let last = u64::from(register.offset) + size_of::<L>() as u64 - 1;
        (self.start..self.end).contains(&last)
    }
}

/// Eight bytes of the page: values and masks.
#[derive(Clone, Copy, Default)]
struct Word {
    value: u64,
    rw: u64,
    w1c: u64,
    wo: u64,
}

/// The registers of one unit.
pub struct RegisterFile {
    capability: Capability,
    words: Box<[Word; WORDS]>,
}

impl RegisterFile {
    /// All registers at their reset values.
    #[must_use]
    pub fn new(capability: &Capability) -> Self {
        let mut file = Self { capability: *capability, words: Box::new([Word::default(); WORDS]) };
        file.reset();
        file
    }

    /// Back to the reset values.
    pub fn reset(&mut self) {
        self.words.fill(Word::default());
        for row in (0..ROWS).map(row) {
            if self.has(&row) {
                let row = if row.offset == IRTA.offset && !self.capability.ecap().eim() {
                    Row { rw: row.rw & !EIME, ..row }
                } else {
                    row
                };
                let shift = 8 * (row.offset % 8);
                let word = &mut self.words[usize::from(row.offset / 8)];
                word.value |= row.reset << shift;
                word.rw |= row.rw << shift;
                word.w1c |= row.w1c << shift;
                word.wo |= row.wo << shift;
            }
        }
        self.set(VER, u32::from(self.capability.version()));
        self.set(CAP, self.capability.cap());
        self.set(ECAP, self.capability.ecap());
    }

    fn has(&self, row: &Row) -> bool {
        match row.present {
            Present::Always => true,
            Present::Queue => self.capability.ecap().qi(),
            Present::Remapping => self.capability.ecap().ir(),
            Present::PageRequests => self.capability.prs(),
        }
    }

    /// The register as hardware sees it, write-only bits included.
    #[must_use]
    pub fn get<L: Layout>(&self, register: Register<L>) -> L {
        L::from_bits(self.words[usize::from(register.offset / 8)].value >> (8 * (register.offset % 8)))
    }

    /// Sets the register, masks notwithstanding.
    pub fn set<L: Layout>(&mut self, register: Register<L>, value: L) {
        let shift = 8 * (register.offset % 8);
        let mask = (u64::MAX >> (64 - 8 * size_of::<L>())) << shift;
        let word = &mut self.words[usize::from(register.offset / 8)].value;
        *word = *word & !mask | value.to_bits() << shift & mask;
    }

    /// Software reads `data.len()` bytes at `offset`. Bytes without a register, or outside the page, are 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (address, byte) in (offset..=u64::MAX).zip(data.iter_mut()) {
            *byte = match self.words.get(index_of(address)) {
                Some(word) => (word.value & !word.wo).to_le_bytes()[byte_of(address)],
                None => 0,
            };
        }
    }

    /// Software writes `data` at `offset`. Bytes without a register, or outside the page, are ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Span {
        for (address, byte) in (offset..=u64::MAX).zip(data) {
            let Some(word) = self.words.get_mut(index_of(address)) else { break };
            let position = 8 * byte_of(address);
            let written = u64::from(*byte) << position;
            let lane = 0xff << position;
            word.value = (word.value & !(word.rw & lane)) | (written & word.rw);
            word.value &= !(written & word.w1c);
        }
        Span { start: offset, end: offset.saturating_add(data.len() as u64) }
    }
}

/// Number of the word that holds the byte at `address`; of no word if it is outside the page.
fn index_of(address: u64) -> usize {
    usize::try_from(address / 8).unwrap_or(usize::MAX)
}

/// Which of the word's bytes it is.
fn byte_of(address: u64) -> usize {
    address.to_le_bytes()[0] as usize % 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Profile;

    fn file() -> RegisterFile {
        RegisterFile::new(
            &Capability::new(&Profile { interrupt_remapping: false, ..Profile::svm(46) }.settled()).unwrap(),
        )
    }

    fn read(file: &RegisterFile, offset: u64, bytes: usize) -> u64 {
        let mut data = [0; 8];
        file.read(offset, &mut data[..bytes]);
        u64::from_le_bytes(data)
    }

    /// (name, offset, bytes, value after reset)
    #[test]
    fn reset_values() {
        let rows = [
            ("version", 0x000, 4, 0x50),
            ("command", 0x018, 4, 0),
            ("fault event masked", 0x038, 4, 0x8000_0000),
            ("completion event masked", 0x0a0, 4, 0x8000_0000),
            ("page request event masked", 0x0e0, 4, 0x8000_0000),
            ("unaligned, across registers", 0x03a, 4, 0x8000),
            ("not implemented", 0x300, 8, 0),
        ];
        for (name, offset, bytes, expected) in rows {
            assert_eq!(read(&file(), offset, bytes), expected, "{name}");
        }
        assert_eq!(read(&file(), 8, 8), file().capability.cap().raw_value());
        assert_eq!(read(&file(), 0x14, 4), file().capability.ecap().raw_value() >> 32);
    }

    /// (name, offset, bytes, written, read back)
    #[test]
    fn masks_decide_what_sticks() {
        let rows = [
            ("read-only", 0x008, 8, u64::MAX, file().capability.cap().raw_value()),
            ("write-only reads zero", 0x018, 4, u64::MAX, 0),
            ("root", 0x020, 8, u64::MAX, 0xffff_ffff_ffff_fc00),
            ("tail", 0x088, 8, u64::MAX, 0x7_fff0),
            ("upper address", 0x044, 4, u64::MAX, 0xffff_ffff),
            ("page queue tail is writable", 0x0c8, 8, u64::MAX, 0x7_ffe0),
            ("status is write-one-to-clear", 0x034, 4, u64::MAX, 0),
            ("remapping absent", 0x0b8, 8, u64::MAX, 0),
            ("hole", 0x064, 4, u64::MAX, 0),
            ("beyond the page", 0x1000, 8, u64::MAX, 0),
            ("top of the space", u64::MAX - 2, 8, u64::MAX, 0),
        ];
        for (name, offset, bytes, value, expected) in rows {
            let mut file = file();
            file.write(offset, &value.to_le_bytes()[..bytes]);
            assert_eq!(read(&file, offset, bytes), expected, "{name}");
        }
    }

    #[test]
    fn halves_are_kept_apart() {
        let mut file = file();
        file.write(0x020, &0x1234_5400_u32.to_le_bytes());
        file.write(0x024, &0x9u32.to_le_bytes());
        assert_eq!(read(&file, 0x20, 8), 0x9_1234_5400);
        file.write(0x023, &[0xff]);
        assert_eq!(read(&file, 0x20, 8), 0x9_ff34_5400);
    }

    #[test]
    fn write_one_clears_only_where_written() {
        let mut file = file();
        file.set(FSTS, FaultStatus::new_with_raw_value(0x73 | 2 << 8));
        file.write(0x034, &[0x83]);
        assert_eq!(file.get(FSTS).raw_value(), 0x72 | 2 << 8, "PPF and FRI are not software's");
        file.write(0x034, &0x10u32.to_le_bytes());
        assert_eq!(file.get(FSTS).raw_value(), 0x62 | 2 << 8);
    }

    #[test]
    fn without_page_requests_their_registers_are_gone() {
        let profile = Profile { page_requests: false, ..Profile::svm(46) }.settled();
        let mut file = RegisterFile::new(&Capability::new(&profile).unwrap());
        file.write(0x0c0, &[0xff; 0x30]);
        let mut data = [0; 0x30];
        file.read(0x0c0, &mut data);
        assert_eq!(data, [0; 0x30]);
    }

    #[test]
    fn extended_mode_is_reserved_unless_it_is_offered() {
        for (eim, expected) in [(false, 0xffff_ffff_ffff_f00f), (true, 0xffff_ffff_ffff_f80f)] {
            let profile = Profile { interrupt_remapping: true, extended_interrupts: eim, ..Profile::svm(46) };
            let mut file = RegisterFile::new(&Capability::new(&profile).unwrap());
            file.write(0x0b8, &[0xff; 8]);
            assert_eq!(read(&file, 0x0b8, 8), expected, "EIM={eim}");
        }
    }

    #[test]
    fn spans_know_the_registers_they_touch() {
        let mut file = file();
        assert!(file.write(0x018, &[0]).touches(GCMD));
        assert!(!file.write(0x01c, &[0; 4]).touches(GCMD));
        assert!(file.write(0x084, &[0; 8]).touches(IQT));
        assert!(!file.write(0x028, &[0; 4]).touches_last_byte(CCMD));
        assert!(file.write(0x02c, &[0; 4]).touches_last_byte(CCMD));
        assert!(!file.write(u64::MAX, &[0; 4]).touches(GCMD));
    }
}
