//! PASID directory and PASID table (revision 5.10, §9.5, §9.6).
//!
//! The directory has entries of 64 bits, index: PASID bits 19:6. A PASID table is 4 KiB: 64 entries of 512
//! bits, index: PASID bits 5:0.

use arbitrary_int::{u2, u3, u52};
use bitbybit::{bitenum, bitfield};
use iommu_core::{Gpa, Pasid};

use super::registers::{Cap, Ecap};

/// PASID directory entry.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct DirectoryEntry {
    /// SMPTBLPTR: address of the PASID table in units of 4 KiB.
    #[bits(12..=63, rw)]
    table: u52,
    /// Fault processing disable; honoured even if not present.
    #[bit(1, rw)]
    fpd: bool,
    /// Present.
    #[bit(0, rw)]
    present: bool,
}

impl DirectoryEntry {
    /// Where the entry for `pasid` lies in the directory at `directory`.
    #[inline]
    #[must_use]
    pub const fn locate(directory: Gpa, pasid: Pasid) -> Gpa {
        Gpa(directory.0.wrapping_add((pasid.get() as u64 >> 6) * 8))
    }

    /// Bits that must be 0.
    #[must_use]
    pub const fn reserved(host_bits: u32) -> u64 {
        let fields = [(Self::present_mask(), true), (Self::fpd_mask(), true), (Self::table_mask(), true)];
        super::reserved_word(&fields, host_bits)
    }
}

/// PGTT: which translation a PASID entry asks for. Other values are reserved.
#[bitenum(u3, exhaustive = false)]
#[derive(Debug, PartialEq, Eq)]
pub enum TranslationType {
    /// First stage.
    First = 0b001,
    /// Second stage.
    Second = 0b010,
    /// First over second.
    Nested = 0b011,
    /// Output equals input.
    PassThrough = 0b100,
}

/// FSPM: levels of first-stage tables. Other values are reserved.
#[bitenum(u2, exhaustive = false)]
#[derive(Debug, PartialEq, Eq)]
pub enum FirstStageMode {
    /// Four levels, 48-bit input.
    FourLevel = 0b00,
    /// Five levels, 57-bit input.
    FiveLevel = 0b01,
}

/// PASID table entry, bits 63:0.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PasidWord0 {
    /// SSPTPTR: root of the second-stage table in units of 4 KiB.
    #[bits(12..=63, rw)]
    second_stage: u52,
    /// Second-stage accessed and dirty bits enable.
    #[bit(9, rw)]
    ssade: bool,
    /// Translation type.
    #[bits(6..=8, rw)]
    pgtt: Option<TranslationType>,
    /// Second-stage address width.
    #[bits(2..=4, rw)]
    aw: u3,
    /// Fault processing disable; honoured even if not present.
    #[bit(1, rw)]
    fpd: bool,
    /// Present.
    #[bit(0, rw)]
    present: bool,
}

/// PASID table entry, bits 127:64.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PasidWord1 {
    /// Bits 127:96, page attribute table.
    #[bits(32..=63, rw)]
    pat: u32,
    /// Bit 90, extended memory type enable.
    #[bit(26, rw)]
    emte: bool,
    /// Bit 89, cache disable.
    #[bit(25, rw)]
    cd: bool,
    /// Bit 88, page snoop.
    #[bit(24, rw)]
    pgsnp: bool,
    /// Bit 87, page walk snoop.
    #[bit(23, rw)]
    pwsnp: bool,
    /// Bits 79:64, domain-id.
    #[bits(0..=15, rw)]
    did: u16,
}

/// PASID table entry, bits 191:128.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PasidWord2 {
    /// FSPTPTR, bits 191:140: root of the first-stage table in units of 4 KiB.
    #[bits(12..=63, rw)]
    first_stage: u52,
    /// Bit 135, extended accessed flag enable.
    #[bit(7, rw)]
    eafe: bool,
    /// Bits 134:133, ignored (once NXE and SMEP).
    #[bits(5..=6, rw)]
    ignored: u2,
    /// Bit 132, write protect enable: supervisor writes need R/W.
    #[bit(4, rw)]
    wpe: bool,
    /// Bits 131:130, first-stage paging mode.
    #[bits(2..=3, rw)]
    fspm: Option<FirstStageMode>,
    /// Bit 128, supervisor requests are served.
    #[bit(0, rw)]
    sre: bool,
}

/// Number of 64-bit words of a PASID table entry.
pub const PASID_ENTRY_WORDS: usize = 8;

/// Where the entry for `pasid` lies in its PASID table.
#[inline]
#[must_use]
pub const fn locate(table: Gpa, pasid: Pasid) -> Gpa {
    Gpa(table.0.wrapping_add((pasid.get() as u64 & 63) * 64))
}

/// Bits of a PASID table entry that must be 0, word by word.
///
/// AW is not among them though it is reserved without a second stage: Linux writes it into first-stage and
/// pass-through entries whatever the unit offers, and in those it is ignored. Memory types (MTS) and the host
/// permission table (HPTS) are never offered.
#[must_use]
pub fn reserved(host_bits: u32, cap: Cap, ecap: Ecap) -> [u64; PASID_ENTRY_WORDS] {
    let (first, second) = (ecap.fsts(), ecap.ssts());
    let word0 = [
        (PasidWord0::present_mask(), true),
        (PasidWord0::fpd_mask(), true),
        (PasidWord0::aw_mask(), true),
        (PasidWord0::pgtt_mask(), true),
        (PasidWord0::ssade_mask(), second && ecap.ssads()),
        (PasidWord0::second_stage_mask(), second),
    ];
    let word1 = [
        (PasidWord1::did_mask() & u64::from(super::domain_mask(cap)), true),
        (PasidWord1::pwsnp_mask(), ecap.smpwcs()),
        (PasidWord1::pgsnp_mask(), ecap.sc()),
    ];
    let word2 = [
        (PasidWord2::sre_mask(), ecap.srs()),
        (PasidWord2::fspm_mask(), first),
        (PasidWord2::wpe_mask(), first),
        (PasidWord2::ignored_mask(), true),
        (PasidWord2::eafe_mask(), ecap.eafs()),
        (PasidWord2::first_stage_mask(), first),
    ];
    let mut words = [u64::MAX; PASID_ENTRY_WORDS];
    words[0] = super::reserved_word(&word0, host_bits);
    words[1] = super::reserved_word(&word1, 64);
    words[2] = super::reserved_word(&word2, host_bits);
    words
}
