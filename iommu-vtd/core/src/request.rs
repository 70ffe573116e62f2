//! One DMA request as an IOMMU judges it, and the translation that answers it.

use crate::types::{DomainId, Gpa, Iova, IovaRange, Pasid, SourceId};

/// What the request wants to do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A read of at least one byte.
    Read,
    /// A write.
    Write,
    /// A read-modify-write: needs both permissions.
    Atomic,
    /// A read with all byte enables off: a flush that moves no data.
    ZeroLengthRead,
}

impl Access {
    /// Whether the access changes memory.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Atomic)
    }
}

/// The address type (AT) of a request, as PCI Express ATS defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressType {
    /// To be translated on its way.
    Untranslated,
    /// A translation request: asks for an address, moves no data.
    Translation {
        /// The NW flag: the device will not write.
        no_write: bool,
    },
    /// Carries an address that a translation request returned.
    Translated,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub source: SourceId,
    /// The PASID prefix; `None` is not the same as PASID 0.
    pub pasid: Option<Pasid>,
    /// Where.
    pub address: Iova,
    /// What for. Ignored for translation requests, which ask for all permissions but those they waive.
    pub access: Access,
    /// How the address is to be understood.
    pub address_type: AddressType,
    /// Privileged mode requested (PASID prefix).
    pub privileged: bool,
    /// Execute requested (PASID prefix).
    pub execute: bool,
}

impl Request {
    /// An untranslated request of the ordinary kind: not privileged, not execute.
    #[must_use]
    pub const fn untranslated(source: SourceId, pasid: Option<Pasid>, address: Iova, access: Access) -> Self {
        Self {
            source,
            pasid,
            address,
            access,
            address_type: AddressType::Untranslated,
            privileged: false,
            execute: false,
        }
    }

    /// A translation request. With `no_write` only read permission is asked for.
    #[must_use]
    pub const fn translation(source: SourceId, pasid: Option<Pasid>, address: Iova, no_write: bool) -> Self {
        let access = if no_write { Access::Read } else { Access::Write };
        let mut request = Self::untranslated(source, pasid, address, access);
        request.address_type = AddressType::Translation { no_write };
        request
    }
}

/// What a translation allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Reads may use it.
    pub read: bool,
    /// Writes may use it.
    pub write: bool,
}

impl Permissions {
    /// Neither.
    pub const NONE: Self = Self { read: false, write: false };
    /// Both.
    pub const READ_WRITE: Self = Self { read: true, write: true };

    /// Whether `access` may go ahead. A zero-length read needs no permission beyond a valid translation.
    #[must_use]
    pub const fn allow(self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
            Access::Atomic => self.read && self.write,
            Access::ZeroLengthRead => self.read || self.write,
        }
    }
}

/// Through which stages a translation went; decides what an invalidation hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageTag {
    /// First stage only.
    First,
    /// Second stage only, or a mapping that the device model itself owns.
    Second,
    /// First over second.
    Nested,
    /// Output equals input.
    PassThrough,
}

impl StageTag {
    /// Whether a first stage was one of them.
    #[must_use]
    pub const fn through_first(self) -> bool {
        matches!(self, Self::First | Self::Nested)
    }
}

/// The names under which a translation can be invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Domain.
    pub domain: DomainId,
    /// The PASID that the tables were indexed with: the request's own, and for a request without PASID the one that
    /// stands for it. Caches look for what an invalidation of a PASID hits under that PASID and under none.
    pub pasid: Pasid,
    /// Stages used.
    pub stage: StageTag,
}

/// The answer to a request: a naturally aligned block of `2^page_bits` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Any address of the block, as asked.
    pub iova: Iova,
    /// The output for `iova`, or any other address of the output block: its low `page_bits` bits are ignored.
    pub base: Gpa,
    /// Logarithm of the block's size in bytes, 12 to 63.
    pub page_bits: u32,
    /// What is allowed. [`Permissions::NONE`] is the successful but empty answer to a translation request.
    pub permissions: Permissions,
    /// The device must use the untranslated address (ATS "U"); `base` then means nothing.
    pub untranslated_only: bool,
    /// Invalidation names.
    pub tag: Tag,
}

impl Translation {
    /// The block of input addresses.
    #[must_use]
    pub const fn range(&self) -> IovaRange {
        IovaRange::aligned(self.iova.0, self.page_bits)
    }

    /// The output for `iova`, which must lie in [`Self::range`].
    #[must_use]
    pub const fn gpa(&self, iova: Iova) -> Gpa {
        let low = if self.page_bits >= 64 { u64::MAX } else { (1 << self.page_bits) - 1 };
        Gpa((self.base.0 & !low) | (iova.0 & low))
    }
}
