//! Chapter 6, invalidation descriptors: quadwords 0 and 1. What is not listed is reserved, unless said.
//!
//! All but the wait descriptor's have the type in bits 11:9 and 3:0; of the types defined so far 11:9 are 0.

use arbitrary_int::{u2, u4, u5, u6, u9, u12, u20, u52, u62};
use bitbybit::{bitenum, bitfield};

/// The type: bits 3:0, with 11:9 being 0.
#[bitenum(u4, exhaustive = false)]
#[derive(Debug, PartialEq, Eq)]
pub enum DescriptorType {
    /// Context-cache invalidate.
    ContextCache = 0x1,
    /// IOTLB invalidate.
    Iotlb = 0x2,
    /// Device-TLB invalidate.
    DeviceTlb = 0x3,
    /// Interrupt entry cache invalidate.
    InterruptEntryCache = 0x4,
    /// Invalidation wait.
    Wait = 0x5,
    /// PASID-based IOTLB invalidate.
    PasidIotlb = 0x6,
    /// PASID-cache invalidate.
    PasidCache = 0x7,
    /// PASID-based device-TLB invalidate.
    PasidDeviceTlb = 0x8,
    /// Page group response.
    PageGroupResponse = 0x9,
    /// Host permission table cache invalidate.
    HptCache = 0xa,
}

/// What all descriptors share.
#[bitfield(u64, default = 0, debug)]
pub struct Header {
    /// Upper part of the type.
    #[bits(9..=11, rw)]
    type_high: arbitrary_int::u3,
    /// Lower part of the type.
    #[bits(0..=3, rw)]
    kind: Option<DescriptorType>,
}

/// Context-cache invalidate, quadword 0. Quadword 1 is reserved.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct ContextCache {
    /// Function mask.
    #[bits(48..=49, rw)]
    fm: u2,
    /// Source-id.
    #[bits(32..=47, rw)]
    sid: u16,
    /// Domain-id.
    #[bits(16..=31, rw)]
    did: u16,
    /// Granularity: 1 global, 2 domain, 3 device.
    #[bits(4..=5, rw)]
    g: u2,
}

/// IOTLB invalidate, quadword 0.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct Iotlb {
    /// Domain-id.
    #[bits(16..=31, rw)]
    did: u16,
    /// Drain reads.
    #[bit(7, rw)]
    dr: bool,
    /// Drain writes.
    #[bit(6, rw)]
    dw: bool,
    /// Granularity: 1 global, 2 domain, 3 page.
    #[bits(4..=5, rw)]
    g: u2,
}

/// Quadword 1 of [`Iotlb`] and [`PasidIotlb`].
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct IotlbAddress {
    /// Page number.
    #[bits(12..=63, rw)]
    addr: u52,
    /// Invalidation hint: only leaf entries changed.
    #[bit(6, rw)]
    ih: bool,
    /// Address mask: `2^am` pages.
    #[bits(0..=5, rw)]
    am: u6,
}

/// Device-TLB invalidate, quadword 0.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct DeviceTlb {
    /// Physical function's source-id, bits 15:4.
    #[bits(52..=63, rw)]
    pfsid_high: u12,
    /// Source-id.
    #[bits(32..=47, rw)]
    sid: u16,
    /// Maximum invalidations pending.
    #[bits(16..=20, rw)]
    mip: u5,
    /// Physical function's source-id, bits 3:0.
    #[bits(12..=15, rw)]
    pfsid_low: u4,
}

/// Device-TLB invalidate, quadword 1.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct DeviceTlbAddress {
    /// Page number, with the size encoded in its low bits if `s`.
    #[bits(12..=63, rw)]
    addr: u52,
    /// More than one page.
    #[bit(0, rw)]
    s: bool,
}

/// Invalidation wait, quadword 0.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct Wait {
    /// Status data.
    #[bits(32..=63, rw)]
    data: u32,
    /// Page-request drain.
    #[bit(7, rw)]
    pd: bool,
    /// Fence.
    #[bit(6, rw)]
    fn_: bool,
    /// Status write.
    #[bit(5, rw)]
    sw: bool,
    /// Interrupt.
    #[bit(4, rw)]
    if_: bool,
}

/// Invalidation wait, quadword 1.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct WaitAddress {
    /// Status address in units of 4 bytes.
    #[bits(2..=63, rw)]
    addr: u62,
}

/// PASID-based IOTLB invalidate, quadword 0. Quadword 1 is [`IotlbAddress`].
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PasidIotlb {
    /// PASID.
    #[bits(32..=51, rw)]
    pasid: u20,
    /// Domain-id.
    #[bits(16..=31, rw)]
    did: u16,
    /// Granularity: 2 PASID, 3 page in PASID.
    #[bits(4..=5, rw)]
    g: u2,
}

/// PASID-cache invalidate, quadword 0. Quadword 1 is reserved.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PasidCache {
    /// PASID.
    #[bits(32..=51, rw)]
    pasid: u20,
    /// Domain-id.
    #[bits(16..=31, rw)]
    did: u16,
    /// Granularity: 0 domain, 1 PASID in domain, 3 global.
    #[bits(4..=5, rw)]
    g: u2,
}

/// PASID-based device-TLB invalidate, quadword 0.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PasidDeviceTlb {
    /// Physical function's source-id, bits 15:4.
    #[bits(52..=63, rw)]
    pfsid_high: u12,
    /// PASID.
    #[bits(32..=51, rw)]
    pasid: u20,
    /// Source-id.
    #[bits(16..=31, rw)]
    sid: u16,
    /// Physical function's source-id, bits 3:0.
    #[bits(12..=15, rw)]
    pfsid_low: u4,
    /// Maximum invalidations pending.
    #[bits(4..=8, rw)]
    mip: u5,
}

/// PASID-based device-TLB invalidate, quadword 1.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PasidDeviceTlbAddress {
    /// Page number, with the size encoded in its low bits if `s`.
    #[bits(12..=63, rw)]
    addr: u52,
    /// More than one page.
    #[bit(11, rw)]
    s: bool,
    /// All PASIDs.
    #[bit(0, rw)]
    gi: bool,
}

/// Page group response, quadword 0.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PageGroupResponse {
    /// PASID; ignored without `pp`.
    #[bits(32..=51, rw)]
    pasid: u20,
    /// Source-id.
    #[bits(16..=31, rw)]
    rid: u16,
    /// Response code: 0 success, 1 invalid request, 15 failure.
    #[bits(12..=15, rw)]
    rc: u4,
    /// A PASID is present.
    #[bit(4, rw)]
    pp: bool,
}

/// Page group response, quadword 1.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PageGroupResponseIndex {
    /// Group.
    #[bits(3..=11, rw)]
    prgi: u9,
    /// Ignored; once "last page in group".
    #[bit(2, rw)]
    lpig: bool,
}
