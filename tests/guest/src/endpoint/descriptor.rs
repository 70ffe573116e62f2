//! Descriptors and completion records.

/// 64-bit words of a descriptor.
pub const DESCRIPTOR_WORDS: usize = 8;
/// Size and alignment of a completion record.
pub const RECORD_BYTES: usize = 32;
/// COMPARE's result when nothing differs.
pub const NO_DIFFERENCE: u64 = u64::MAX;

const FLAG_RECORD: u8 = 1;
const FLAG_INTERRUPT: u8 = 1 << 1;
const FLAG_BLOCK: u8 = 1 << 2;
const FLAG_FENCE: u8 = 1 << 3;

/// What a descriptor asks for. Operations block on faults unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Opcode, valid or not.
    pub opcode: u8,
    /// Flag bits besides the one for the record.
    pub flags: u8,
    /// Source address.
    pub source: u64,
    /// Destination address.
    pub destination: u64,
    /// Bytes, or hops.
    pub length: u64,
    /// Pattern, or CRC to continue.
    pub operand: u64,
    /// Pages that may be asked for together with a missing one.
    pub ahead: u8,
    /// Reserved byte 3.
    pub reserved: u8,
}

impl Operation {
    fn new(opcode: u8, source: u64, destination: u64, length: usize, operand: u64) -> Self {
        let length = length as u64;
        Self { opcode, flags: FLAG_BLOCK, source, destination, length, operand, ahead: 0, reserved: 0 }
    }

    /// Nothing.
    pub fn nop() -> Self {
        Self::new(0, 0, 0, 0, 0)
    }

    /// Copies bytes.
    pub fn copy(source: u64, destination: u64, length: usize) -> Self {
        Self::new(1, source, destination, length, 0)
    }

    /// Fills with a pattern of 8 bytes.
    pub fn fill(destination: u64, length: usize, pattern: u64) -> Self {
        Self::new(2, 0, destination, length, pattern)
    }

    /// Compares bytes.
    pub fn compare(source: u64, destination: u64, length: usize) -> Self {
        Self::new(3, source, destination, length, 0)
    }

    /// CRC-32C.
    pub fn crc(source: u64, length: usize, before: u32) -> Self {
        Self::new(4, source, 0, length, u64::from(before))
    }

    /// Follows a list.
    pub fn chase(first: u64, hops: usize) -> Self {
        Self::new(5, first, 0, hops, 0)
    }

    /// Does the descriptors of an array.
    pub fn batch(array: u64, count: usize) -> Self {
        Self::new(6, array, 0, count, 0)
    }

    /// Waits for the ones before and tells how many of them did not succeed.
    pub fn drain() -> Self {
        Self::new(7, 0, 0, 0, 0)
    }

    /// Sees that pages are there.
    pub fn prefetch(address: u64, length: usize, write: bool) -> Self {
        Self::new(8, address, 0, length, u64::from(write))
    }

    /// Asks for up to this many more pages together with one that is missing.
    #[must_use]
    pub fn with_ahead(mut self, pages: u8) -> Self {
        self.ahead = pages;
        self
    }

    /// Starts only if the ones before succeeded.
    #[must_use]
    pub fn with_fence(mut self) -> Self {
        self.flags |= FLAG_FENCE;
        self
    }

    /// Reports a missing page instead of asking for it.
    pub fn without_block(mut self) -> Self {
        self.flags &= !FLAG_BLOCK;
        self
    }

    /// Sends the queue's interrupt at the end.
    pub fn with_interrupt(mut self) -> Self {
        self.flags |= FLAG_INTERRUPT;
        self
    }

    /// The descriptor, with a completion record wanted at `record`.
    pub fn encode(&self, tag: u32, record: u64) -> [u64; DESCRIPTOR_WORDS] {
        let mut head = [0; 8];
        head[0] = self.opcode;
        head[1] = self.flags | FLAG_RECORD;
        (head[2], head[3]) = (self.ahead, self.reserved);
        head[4..8].copy_from_slice(&tag.to_le_bytes());
        let head = u64::from_le_bytes(head);
        [head, record, self.source, self.destination, self.length, self.operand, 0, 0]
    }

    /// What [`Operation::encode`] encoded: operation, tag, record.
    pub fn decode(words: &[u64; DESCRIPTOR_WORDS]) -> (Self, u32, u64) {
        let [head, record, source, destination, length, operand, ..] = *words;
        let bytes = head.to_le_bytes();
        let [opcode, flags, ahead, reserved, tag @ ..] = bytes;
        let operation = Self { opcode, flags, source, destination, length, operand, ahead, reserved };
        (operation, u32::from_le_bytes(tag), record)
    }

    /// Whether a missing page is to be asked for.
    pub fn blocks(&self) -> bool {
        self.flags & FLAG_BLOCK != 0
    }

    /// Whether it depends on the ones before.
    pub fn is_fenced(&self) -> bool {
        self.flags & FLAG_FENCE != 0
    }

    /// Whether an interrupt is to be sent.
    pub fn interrupts(&self) -> bool {
        self.flags & FLAG_INTERRUPT != 0
    }
}

/// How a descriptor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Success,
    /// Ended at the fault address.
    Fault,
    /// Not a descriptor.
    Invalid,
    /// The queue was disabled, or a command said so.
    Aborted,
    /// A batch of which not all succeeded.
    Incomplete,
    /// Not started, because one before it did not succeed.
    Fenced,
    /// None that the programming model knows.
    Unknown(u8),
}

/// Why a descriptor faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The page is not accessible.
    NotAccessible,
    /// Page requests are unavailable or failed.
    NoPageRequests,
    /// The IOMMU refused.
    Refused,
    /// The translation leads to no memory.
    NoMemory,
    /// Bus mastering is off.
    NoBusMaster,
    /// None that the programming model knows.
    Unknown(u8),
}

/// A completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// How it ended.
    pub status: Status,
    /// Whether the access that faulted was a write.
    pub write: bool,
    /// Why it faulted; meaningless otherwise.
    pub reason: Reason,
    /// Page requests of this descriptor.
    pub page_requests: u16,
    /// The descriptor's tag.
    pub tag: u32,
    /// Bytes, or hops.
    pub completed: u64,
    /// Where it faulted.
    pub fault_address: u64,
    /// As the opcode says.
    pub result: u64,
}

impl Completion {
    /// Reads a record's four words; `None` while it is not complete.
    pub fn decode(words: [u64; 4]) -> Option<Self> {
        let [status, information, low, high, tag @ ..] = words[0].to_le_bytes();
        let status = match status {
            0 => return None,
            1 => Status::Success,
            2 => Status::Fault,
            3 => Status::Invalid,
            4 => Status::Aborted,
            5 => Status::Incomplete,
            6 => Status::Fenced,
            other => Status::Unknown(other),
        };
        let reason = match (information >> 1) & 0b111 {
            0 => Reason::NotAccessible,
            1 => Reason::NoPageRequests,
            2 => Reason::Refused,
            3 => Reason::NoMemory,
            4 => Reason::NoBusMaster,
            other => Reason::Unknown(other),
        };
        Some(Self {
            status,
            write: information & 1 != 0,
            reason,
            page_requests: u16::from_le_bytes([low, high]),
            tag: u32::from_le_bytes(tag),
            completed: words[1],
            fault_address: words[2],
            result: words[3],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_stands_where_the_model_says() {
        let copy = Operation::copy(0x1122, 0x3344, 0x55).with_interrupt();
        let words = copy.encode(0xaabb_ccdd, 0x40);
        assert_eq!(words, [0xaabb_ccdd_0000_0701, 0x40, 0x1122, 0x3344, 0x55, 0, 0, 0]);
        let (back, tag, record) = Operation::decode(&words);
        assert_eq!((back.opcode, back.flags, tag, record), (1, 0b111, 0xaabb_ccdd, 0x40));
        assert!(back.blocks() && back.interrupts());
        assert!(!copy.without_block().blocks());
    }

    #[test]
    fn a_record_is_read_where_the_model_says() {
        assert_eq!(Completion::decode([0xffff_ffff_ffff_ff00, 1, 2, 3]), None);
        let fault = Completion::decode([0x0000_0009_0007_0302, 0x1000, 0x5000, 6]).unwrap();
        assert_eq!((fault.status, fault.write, fault.reason), (Status::Fault, true, Reason::NoPageRequests));
        assert_eq!((fault.page_requests, fault.tag, fault.completed), (7, 9, 0x1000));
        assert_eq!((fault.fault_address, fault.result), (0x5000, 6));
    }
}
