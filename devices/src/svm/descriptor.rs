//! From a descriptor to an operation (section 3.1). Pure and total: any 64 bytes are one or the other.

use iommu_core::{Access, Iova};

use super::spec::{BATCH_LOG2, Descriptor, DescriptorFlags, MAX_TRANSFER_BYTES, Opcode, Record};

/// A run of bytes: `start + length` does not exceed 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u64,
    length: u64,
}

impl Span {
    /// `None` if the run is longer than a transfer may be, or wraps.
    #[must_use]
    pub fn new(start: u64, length: u64) -> Option<Self> {
        let fits = match length.checked_sub(1) {
            Some(last) => length <= MAX_TRANSFER_BYTES && start.checked_add(last).is_some(),
            None => true,
        };
        fits.then_some(Self { start, length })
    }

    /// The last address of the run, if `address` lies in it.
    #[must_use]
    pub fn last_after(&self, address: u64) -> Option<u64> {
        let last = self.at(self.length.checked_sub(1)?);
        (self.start..=last).contains(&address).then_some(last)
    }

    /// The address `offset` bytes on; `offset` is less than the length.
    #[must_use]
    pub fn at(&self, offset: u64) -> u64 {
        self.start.wrapping_add(offset)
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// What a descriptor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// An operation on memory.
    Operate(Operation),
    /// The descriptors of an array.
    Batch(Batch),
    /// To tell how the ones before ended.
    Drain,
    /// To see that pages are there.
    Prefetch {
        /// These pages.
        span: Span,
        /// For this.
        access: Access,
    },
}

/// An array of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    first: u64,
    /// How many.
    pub count: u64,
}

impl Batch {
    fn new(first: u64, count: u64) -> Option<Self> {
        const BYTES: u64 = size_of::<Descriptor>() as u64;
        let fits = count <= 1 << BATCH_LOG2
            && first.is_multiple_of(BYTES)
            && first.checked_add((count * BYTES).saturating_sub(1)).is_some();
        fits.then_some(Self { first, count })
    }

    /// Where a descriptor stands; `index` is less than the count.
    #[must_use]
    pub fn at(&self, index: u64) -> Iova {
        Iova(self.first.wrapping_add(index * size_of::<Descriptor>() as u64))
    }

    /// The last address of the array.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.at(self.count).0.wrapping_sub(1)
    }
}

/// What is to be done with memory. The spans of one operation have the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing.
    Nop,
    /// Copies, ascending.
    Copy {
        /// From.
        source: Span,
        /// To.
        destination: Span,
    },
    /// Fills.
    Fill {
        /// To.
        destination: Span,
        /// Byte `i` gets `pattern[i % 8]`.
        pattern: [u8; 8],
    },
    /// Looks for the first difference.
    Compare {
        /// One side.
        source: Span,
        /// The other.
        destination: Span,
    },
    /// CRC-32C.
    Crc32c {
        /// Over these bytes.
        source: Span,
        /// CRC of what came before.
        seed: u32,
    },
    /// Follows pointers.
    Chase {
        /// First node.
        first: u64,
        /// Most hops.
        hops: u64,
    },
}

/// What is done about a descriptor however it ends. Known even of one that is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tag.
    pub tag: u32,
    /// Where the completion record is wanted, of any alignment.
    pub record: Option<Iova>,
    /// An interrupt is wanted.
    pub interrupt: bool,
    /// Missing pages are to be asked for.
    pub block: bool,
    /// So many more may be asked for with one.
    pub ahead: u8,
    /// It depends on the ones before.
    pub fence: bool,
}

/// Not a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

impl Descriptor {
    /// What is done however it ends.
    #[must_use]
    pub fn header(&self) -> Header {
        let flags = DescriptorFlags::new_with_raw_value(self.flags);
        Header {
            tag: self.tag.get(),
            record: flags.record().then(|| Iova(self.record.get())),
            interrupt: flags.interrupt(),
            block: flags.block(),
            ahead: self.ahead,
            fence: flags.fence(),
        }
    }

    /// What is to be done.
    ///
    /// # Errors
    /// The descriptor is invalid; no memory may be touched.
    pub fn work(&self) -> Result<Work, Invalid> {
        self.check_common()?;
        let length = self.length.get();
        let source = self.source.get();
        match Opcode::from_raw(self.opcode).ok_or(Invalid)? {
            Opcode::Batch => Batch::new(source, length).map(Work::Batch).ok_or(Invalid),
            Opcode::Drain => Ok(Work::Drain),
            Opcode::Prefetch => {
                let access = match self.operand.get() {
                    0 => Access::Read,
                    1 => Access::Write,
                    _ => return Err(Invalid),
                };
                Ok(Work::Prefetch { span: Span::new(source, length).ok_or(Invalid)?, access })
            }
            opcode => self.operation_of(opcode).map(Work::Operate),
        }
    }

    /// The operation on memory that it is.
    ///
    /// # Errors
    /// It is invalid, or none.
    pub fn operation(&self) -> Result<Operation, Invalid> {
        match self.work()? {
            Work::Operate(operation) => Ok(operation),
            _ => Err(Invalid),
        }
    }

    fn operation_of(&self, opcode: Opcode) -> Result<Operation, Invalid> {
        let length = self.length.get();
        let source = || Span::new(self.source.get(), length).ok_or(Invalid);
        let destination = || Span::new(self.destination.get(), length).ok_or(Invalid);
        Ok(match opcode {
            Opcode::Nop => Operation::Nop,
            Opcode::Copy => Operation::Copy { source: source()?, destination: destination()? },
            Opcode::Fill => {
                Operation::Fill { destination: destination()?, pattern: self.operand.get().to_le_bytes() }
            }
            Opcode::Compare => Operation::Compare { source: source()?, destination: destination()? },
            Opcode::Crc32c => {
                // Bits 63:32 are not looked at.
                let [a, b, c, d, ..] = self.operand.get().to_le_bytes();
                Operation::Crc32c { source: source()?, seed: u32::from_le_bytes([a, b, c, d]) }
            }
            Opcode::Chase if length > MAX_TRANSFER_BYTES => return Err(Invalid),
            Opcode::Chase => Operation::Chase { first: self.source.get(), hops: length },
            Opcode::Batch | Opcode::Drain | Opcode::Prefetch => return Err(Invalid),
        })
    }

    fn check_common(&self) -> Result<(), Invalid> {
        let flags = DescriptorFlags::new_with_raw_value(self.flags);
        let reserved = u64::from(flags.reserved().value())
            | u64::from(self.reserved_03)
            | self.reserved_30.get()
            | self.reserved_38.get();
        let record_misaligned =
            flags.record() && !self.record.get().is_multiple_of(size_of::<Record>() as u64);
        if reserved != 0 || record_misaligned { Err(Invalid) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(length: u64) -> Descriptor {
        Descriptor { opcode: Opcode::Copy as u8, length: length.into(), ..Descriptor::default() }
    }

    #[test]
    fn validity_table() {
        let top = u64::MAX;
        let valid = copy(8);
        let rows: [(&str, Descriptor, bool); 19] = [
            ("nop", Descriptor::default(), true),
            ("copy", valid, true),
            ("copy of nothing", copy(0), true),
            ("copy of nothing at the top", Descriptor { source: top.into(), ..copy(0) }, true),
            ("longest", copy(MAX_TRANSFER_BYTES), true),
            ("too long", copy(MAX_TRANSFER_BYTES + 1), false),
            ("longest there is", copy(u64::MAX), false),
            ("ends at the top", Descriptor { source: (top - 7).into(), ..valid }, true),
            ("source wraps", Descriptor { source: (top - 6).into(), ..valid }, false),
            ("destination wraps", Descriptor { destination: (top - 6).into(), ..valid }, false),
            ("unknown opcode", Descriptor { opcode: 9, ..valid }, false),
            ("reserved flag", Descriptor { flags: 16, ..valid }, false),
            ("reserved 03", Descriptor { reserved_03: 1, ..valid }, false),
            ("reserved 30", Descriptor { reserved_30: 1.into(), ..valid }, false),
            ("reserved 38", Descriptor { reserved_38: (1 << 63).into(), ..valid }, false),
            ("record misaligned", Descriptor { flags: 1, record: 16.into(), ..valid }, false),
            ("record misaligned, not wanted", Descriptor { record: 16.into(), ..valid }, true),
            ("too many hops", Descriptor { opcode: 5, ..copy(MAX_TRANSFER_BYTES + 1) }, false),
            ("fill looks at no source", Descriptor { opcode: 2, source: top.into(), ..valid }, true),
        ];
        for (name, descriptor, expected) in rows {
            assert_eq!(descriptor.operation().is_ok(), expected, "{name}");
        }
    }

    #[test]
    fn validity_of_what_is_no_operation() {
        let top = u64::MAX;
        let batch = Descriptor { opcode: 6, source: 0x1000.into(), ..copy(8) };
        let prefetch = Descriptor { opcode: 8, ..copy(0x5000) };
        let rows = [
            ("batch", batch, true),
            ("batch of none", Descriptor { length: 0.into(), ..batch }, true),
            ("largest batch", Descriptor { length: 1024.into(), ..batch }, true),
            ("too large a batch", Descriptor { length: 1025.into(), ..batch }, false),
            ("endless batch", Descriptor { length: top.into(), ..batch }, false),
            ("batch out of line", Descriptor { source: 0x1020.into(), ..batch }, false),
            ("batch at the top", Descriptor { source: (top - 511).into(), ..batch }, true),
            ("batch that wraps", Descriptor { source: (top - 447).into(), ..batch }, false),
            ("drain", Descriptor { opcode: 7, ..copy(top) }, true),
            ("prefetch", prefetch, true),
            ("prefetch for writing", Descriptor { operand: 1.into(), ..prefetch }, true),
            ("prefetch for more", Descriptor { operand: 2.into(), ..prefetch }, false),
            ("prefetch that wraps", Descriptor { source: (top - 5).into(), ..prefetch }, false),
        ];
        for (name, descriptor, expected) in rows {
            assert_eq!(descriptor.work().is_ok(), expected, "{name}");
            assert!(descriptor.operation().is_err(), "{name}");
        }
    }

    #[test]
    fn header_of_an_invalid_descriptor_is_known() {
        let descriptor = Descriptor {
            opcode: 99,
            flags: 0xff,
            tag: 7.into(),
            record: 3.into(),
            ahead: 9,
            ..Default::default()
        };
        assert_eq!(descriptor.operation(), Err(Invalid));
        let header =
            Header { tag: 7, record: Some(Iova(3)), interrupt: true, block: true, ahead: 9, fence: true };
        assert_eq!(descriptor.header(), header);
    }
}
