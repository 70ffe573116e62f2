//! Inputs that are more often nearly right than random bytes are.

use arbitrary::Arbitrary;
use iommu_core::{Access, AddressType, GroupIndex, Iova, PageRequest, Pasid, Request, SourceId, VendorData};

use crate::LAYOUT;

/// A register offset: mostly in the page or just behind it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Offset {
    /// In the first 8 KiB.
    Near(u16),
    /// A register that sets something off.
    Known(u8),
    /// Anywhere.
    Far(u64),
}

const KNOWN: [u16; 25] = [
    0x18, 0x20, 0x28, 0x34, 0x38, 0x3c, 0x40, 0x80, 0x88, 0x90, 0x9c, 0xa0, 0xa4, 0xa8, 0xb0, 0xb8, 0xc0,
    0xc8, 0xd0, 0xdc, 0xe0, 0xe4, 0xf0, 0xf8, 0x22c,
];

impl Offset {
    /// The offset.
    pub fn get(self) -> u64 {
        match self {
            Self::Near(offset) => u64::from(offset & 0x1fff),
            Self::Known(index) => u64::from(KNOWN[usize::from(index) % KNOWN.len()]),
            Self::Far(offset) => offset,
        }
    }
}

/// Who asks.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Source {
    Known,
    Any(u16),
}

/// In which address space.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Space {
    None,
    Small(u8),
    Any(u32),
}

/// Where.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Mapped(u16),
    Low(u32),
    Any(u64),
}

impl Source {
    fn get(self) -> SourceId {
        match self {
            Self::Known => LAYOUT.source,
            Self::Any(id) => SourceId(id),
        }
    }
}

impl Space {
    fn get(self) -> Option<Pasid> {
        match self {
            Self::None => None,
            Self::Small(n) => Pasid::new(u32::from(n % 8)),
            Self::Any(n) => Some(Pasid::truncate(n)),
        }
    }
}

impl Address {
    fn get(self) -> Iova {
        Iova(match self {
            Self::Mapped(low) => LAYOUT.mapped + u64::from(low & 0x3fff),
            Self::Low(low) => low.into(),
            Self::Any(any) => any,
        })
    }
}

/// A request.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct RequestInput {
    source: Source,
    space: Space,
    address: Address,
    access: u8,
    kind: u8,
    privileged: bool,
    execute: bool,
}

impl RequestInput {
    /// As a model sees it.
    pub fn get(self) -> Request {
        let access = [Access::Read, Access::Write, Access::Atomic, Access::ZeroLengthRead];
        let kinds = [
            AddressType::Untranslated,
            AddressType::Translated,
            AddressType::Translation { no_write: false },
            AddressType::Translation { no_write: true },
        ];
        Request {
            source: self.source.get(),
            pasid: self.space.get(),
            address: self.address.get(),
            access: access[usize::from(self.access % 4)],
            address_type: kinds[usize::from(self.kind % 4)],
            privileged: self.privileged,
            execute: self.execute,
        }
    }
}

/// A page request.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct PageRequestInput {
    source: Source,
    space: Space,
    address: Address,
    read: bool,
    write: bool,
    execute: bool,
    privileged: bool,
    last: bool,
    group: u16,
}

impl PageRequestInput {
    /// As a model sees it.
    pub fn get(self) -> PageRequest {
        PageRequest {
            source: self.source.get(),
            pasid: self.space.get(),
            address: self.address.get(),
            read: self.read,
            write: self.write,
            execute: self.execute,
            privileged: self.privileged,
            last: self.last,
            group: GroupIndex::truncate(self.group),
            vendor: VendorData::NONE,
        }
    }
}
