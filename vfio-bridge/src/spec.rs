//! Registers of hosts and devices, as far as they are looked at here.

use arbitrary_int::{u5, u12};
use bitbybit::bitfield;

/// VT-d's capability register, §11.4.2 (revision 5.10): what is asked here.
#[bitfield(u64)]
pub struct Cap {
    /// 57-bit first stage.
    #[bit(60, r)]
    fs5lp: bool,
    /// 1 GiB first-stage pages.
    #[bit(56, r)]
    fs1gp: bool,
}

/// VT-d's extended capability register, §11.4.3.
#[bitfield(u64)]
pub struct Ecap {
    /// Walks of scalable-mode tables snoop caches.
    #[bit(48, r)]
    smpwcs: bool,
    /// Second stage.
    #[bit(46, r)]
    ssts: bool,
    /// Scalable mode.
    #[bit(43, r)]
    smts: bool,
    /// Page requests drain.
    #[bit(42, r)]
    pds: bool,
    /// PASIDs.
    #[bit(40, r)]
    pasid: bool,
    /// Width of PASIDs, less one.
    #[bits(35..=39, r)]
    pss: u5,
    /// Extended accessed flag.
    #[bit(34, r)]
    eafs: bool,
    /// No-write flag.
    #[bit(33, r)]
    nwfs: bool,
    /// Supervisor requests.
    #[bit(31, r)]
    srs: bool,
    /// Page requests.
    #[bit(29, r)]
    prs: bool,
    /// Nested translation.
    #[bit(26, r)]
    nest: bool,
    /// Device-TLBs.
    #[bit(2, r)]
    dt: bool,
}

/// PCI Express, extended capability header.
#[bitfield(u32)]
pub struct ExtendedHeader {
    /// Offset of the next capability; 0: none.
    #[bits(20..=31, r)]
    next: u12,
    /// Capability.
    #[bits(0..=15, r)]
    id: u16,
}
