//! What a (source, PASID) pair is bound to.
//!
//! A vendor's model decodes its own tables into a [`Domain`]; a host backend turns the domain into
//! host objects. Binding and unbinding a PASID's table is [`HostIommu::set_domain`] with another value.
//!
//! [`HostIommu::set_domain`]: crate::HostIommu::set_domain

use crate::types::{DomainId, Gpa};

/// The format of a page table that a guest owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TableFormat {
    /// x86-64 paging as VT-d's first stage reads it.
    X86FirstStage {
        /// Supervisor requests are served.
        supervisor: bool,
        /// Supervisor writes honour the write permission.
        write_protect: bool,
        /// The extended-accessed bit is maintained.
        extended_accessed: bool,
    },
    /// VT-d second-stage paging.
    VtdSecondStage {
        /// Accessed and dirty bits are maintained.
        accessed_dirty: bool,
    },
}

/// A first-stage table: virtual address to (guest-)physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FirstStage {
    /// Address of the root table. Input of the second stage when nested.
    pub root: Gpa,
    /// Input width in bits: 48 or 57 on x86.
    pub input_bits: u32,
    /// Format and flags.
    pub format: TableFormat,
}

/// A second-stage table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondStage {
    /// Address of the root table.
    pub root: Gpa,
    /// Input width in bits.
    pub input_bits: u32,
    /// Format and flags.
    pub format: TableFormat,
}

/// The decoded binding of one (source, PASID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// Every access is refused. The state of anything absent, malformed or refused by the host.
    Blocked,
    /// Output equals input.
    PassThrough {
        /// Invalidation name.
        id: DomainId,
    },
    /// A guest-owned first-stage table over guest-physical memory.
    FirstStage {
        /// Invalidation name.
        id: DomainId,
        /// The table.
        table: FirstStage,
    },
    /// A guest-owned second-stage table.
    SecondStage {
        /// Invalidation name.
        id: DomainId,
        /// The table.
        table: SecondStage,
    },
    /// First over second, both owned by the guest.
    Nested {
        /// Invalidation name.
        id: DomainId,
        /// The inner table; its addresses are inputs of `second`.
        first: FirstStage,
        /// The outer table.
        second: SecondStage,
    },
    /// An interval map that the device model owns and changes by requests (virtio-iommu).
    Mapped {
        /// Invalidation name.
        id: DomainId,
    },
}
