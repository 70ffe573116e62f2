//! Chapter 7: the page request descriptor, 32 bytes. Quadwords 2 and 3 are 0.

use arbitrary_int::{u9, u20, u52};
use bitbybit::bitfield;

/// Quadword 0.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PageRequestLow {
    /// Privileged mode requested.
    #[bit(53, rw)]
    pmr: bool,
    /// Execute requested; only with `pp` and a read.
    #[bit(52, rw)]
    exr: bool,
    /// PASID; undefined without `pp`.
    #[bits(32..=51, rw)]
    pasid: u20,
    /// Source-id.
    #[bits(16..=31, rw)]
    rid: u16,
    /// A PASID is present.
    #[bit(8, rw)]
    pp: bool,
    /// Type: [`PAGE_REQUEST`].
    #[bits(0..=7, rw)]
    kind: u8,
}

/// Quadword 1.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct PageRequestHigh {
    /// Page number.
    #[bits(12..=63, rw)]
    addr: u52,
    /// Group.
    #[bits(3..=11, rw)]
    prgi: u9,
    /// Last page in group.
    #[bit(2, rw)]
    lpig: bool,
    /// Write requested.
    #[bit(1, rw)]
    wrr: bool,
    /// Read requested.
    #[bit(0, rw)]
    rdr: bool,
}

/// The type of a page request descriptor.
pub const PAGE_REQUEST: u8 = 1;

/// Size of a page request descriptor in bytes.
pub const PAGE_REQUEST_BYTES: u64 = 32;
