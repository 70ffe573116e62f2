//! Chapter 11, register descriptions: the layouts of the memory-mapped registers.
//!
//! Names of fields are the manual's, positions are inclusive as it prints them. What is not listed is reserved.

use arbitrary_int::{u2, u3, u4, u5, u6, u10, u14, u15, u20, u52};
use bitbybit::{bitenum, bitfield};

/// Capability register (CAP, offset 008h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Setting the root table pointer invalidates all DMA-remapping caches.
    #[bit(63, rw)]
    esrtps: bool,
    /// Setting the interrupt-remapping table pointer invalidates the interrupt entry cache.
    #[bit(62, rw)]
    esirtps: bool,
    /// Enhanced commands.
    #[bit(61, rw)]
    ecmds: bool,
    /// Five-level first stage.
    #[bit(60, rw)]
    fs5lp: bool,
    /// Posted interrupts.
    #[bit(59, rw)]
    pi: bool,
    /// 1 GiB pages in the first stage.
    #[bit(56, rw)]
    fs1gp: bool,
    /// Read draining.
    #[bit(55, rw)]
    drd: bool,
    /// Write draining.
    #[bit(54, rw)]
    dwd: bool,
    /// Largest address mask of a second-stage IOTLB invalidation.
    #[bits(48..=53, rw)]
    mamv: u6,
    /// Number of fault recording registers, minus one.
    #[bits(40..=47, rw)]
    nfr: u8,
    /// Page-selective invalidation.
    #[bit(39, rw)]
    psi: bool,
    /// Second-stage large pages: bit 0 2 MiB, bit 1 1 GiB.
    #[bits(34..=37, rw)]
    sslps: u4,
    /// Offset of the fault recording registers in units of 16 bytes.
    #[bits(24..=33, rw)]
    fro: u10,
    /// Zero-length reads of write-only pages are served.
    #[bit(22, rw)]
    zlr: bool,
    /// Maximum guest address width in bits, minus one.
    #[bits(16..=21, rw)]
    mgaw: u6,
    /// Supported adjusted guest address widths: bit 1 39, bit 2 48, bit 3 57.
    #[bits(8..=12, rw)]
    sagaw: u5,
    /// Caching mode.
    #[bit(7, rw)]
    cm: bool,
    /// Protected high-memory region.
    #[bit(6, rw)]
    phmr: bool,
    /// Protected low-memory region.
    #[bit(5, rw)]
    plmr: bool,
    /// Required write-buffer flushing.
    #[bit(4, rw)]
    rwbf: bool,
    /// Domain-id width: 4 + 2 * ND bits.
    #[bits(0..=2, rw)]
    nd: u3,
}

/// Extended capability register (ECAP, offset 010h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct Ecap {
    /// Stop markers behave as defined.
    #[bit(58, rw)]
    sms: bool,
    /// Translated requests may have a PASID.
    #[bit(56, rw)]
    ptrs: bool,
    /// The RID_PRIV field is honoured.
    #[bit(53, rw)]
    rprivs: bool,
    /// Abort-DMA mode.
    #[bit(52, rw)]
    adms: bool,
    /// The RID_PASID field is honoured.
    #[bit(49, rw)]
    rps: bool,
    /// Scalable-mode page walks may be coherent.
    #[bit(48, rw)]
    smpwcs: bool,
    /// First-stage translation.
    #[bit(47, rw)]
    fsts: bool,
    /// Second-stage translation in scalable mode.
    #[bit(46, rw)]
    ssts: bool,
    /// Accessed and dirty bits in the second stage.
    #[bit(45, rw)]
    ssads: bool,
    /// Scalable mode.
    #[bit(43, rw)]
    smts: bool,
    /// Page-request drain in the wait descriptor.
    #[bit(42, rw)]
    pds: bool,
    /// Device-TLB invalidation throttling: the PFSID fields are valid.
    #[bit(41, rw)]
    dit: bool,
    /// Requests with PASID.
    #[bit(40, rw)]
    pasid: bool,
    /// PASID width in bits, minus one.
    #[bits(35..=39, rw)]
    pss: u5,
    /// Extended accessed flag.
    #[bit(34, rw)]
    eafs: bool,
    /// The no-write flag of translation requests is honoured.
    #[bit(33, rw)]
    nwfs: bool,
    /// Supervisor requests.
    #[bit(31, rw)]
    srs: bool,
    /// Page requests.
    #[bit(29, rw)]
    prs: bool,
    /// Nested translation.
    #[bit(26, rw)]
    nest: bool,
    /// Largest index mask of an interrupt entry cache invalidation.
    #[bits(20..=23, rw)]
    mhmv: u4,
    /// Offset of the IOTLB registers in units of 16 bytes.
    #[bits(8..=17, rw)]
    iro: u10,
    /// Snoop control.
    #[bit(7, rw)]
    sc: bool,
    /// Pass-through.
    #[bit(6, rw)]
    pt: bool,
    /// Extended interrupt mode (x2APIC destinations).
    #[bit(4, rw)]
    eim: bool,
    /// Interrupt remapping.
    #[bit(3, rw)]
    ir: bool,
    /// Device-TLBs.
    #[bit(2, rw)]
    dt: bool,
    /// Queued invalidation.
    #[bit(1, rw)]
    qi: bool,
    /// Accesses to tables are coherent.
    #[bit(0, rw)]
    c: bool,
}

/// Global command (GCMD, 018h, write-only) and global status (GSTS, 01Ch, read-only): the same positions.
/// The comments name the command first, the status second.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct GlobalCommand {
    /// Translation enable; level.
    #[bit(31, rw)]
    te: bool,
    /// Set root table pointer, one-shot; done.
    #[bit(30, rw)]
    srtp: bool,
    /// Write-buffer flush, one-shot; busy.
    #[bit(27, rw)]
    wbf: bool,
    /// Queued invalidation enable; level.
    #[bit(26, rw)]
    qie: bool,
    /// Interrupt remapping enable; level.
    #[bit(25, rw)]
    ire: bool,
    /// Set interrupt-remapping table pointer, one-shot; done.
    #[bit(24, rw)]
    sirtp: bool,
    /// Compatibility-format interrupts pass; level.
    #[bit(23, rw)]
    cfi: bool,
}

/// Which tables the root table address register points at (RTADDR.TTM).
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq)]
pub enum TranslationTableMode {
    /// Root and context tables of 128-bit entries.
    Legacy = 0b00,
    /// Scalable-mode tables.
    Scalable = 0b01,
    /// Reserved.
    Reserved = 0b10,
    /// Every request is refused.
    AbortDma = 0b11,
}

/// Root table address register (RTADDR, 020h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct RootTableAddress {
    /// Address of the root table in units of 4 KiB.
    #[bits(12..=63, rw)]
    rta: u52,
    /// Translation table mode.
    #[bits(10..=11, rw)]
    ttm: TranslationTableMode,
}

/// Context command register (CCMD, 028h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct ContextCommand {
    /// Invalidate: hardware clears it when done.
    #[bit(63, rw)]
    icc: bool,
    /// Requested granularity.
    #[bits(61..=62, rw)]
    cirg: u2,
    /// Actual granularity; 0: refused.
    #[bits(59..=60, rw)]
    caig: u2,
    /// Function mask: which bits of `sid` are not compared.
    #[bits(32..=33, rw)]
    fm: u2,
    /// Source-id.
    #[bits(16..=31, rw)]
    sid: u16,
    /// Domain-id.
    #[bits(0..=15, rw)]
    did: u16,
}

/// IOTLB invalidate register (IOTLB, IRO * 16 + 8).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct IotlbInvalidate {
    /// Invalidate: hardware clears it when done.
    #[bit(63, rw)]
    ivt: bool,
    /// Requested granularity.
    #[bits(60..=61, rw)]
    iirg: u2,
    /// Actual granularity; 0: refused.
    #[bits(57..=58, rw)]
    iaig: u2,
    /// Drain reads; drains are implied.
    #[bit(49, rw)]
    dr: bool,
    /// Drain writes; drains are implied.
    #[bit(48, rw)]
    dw: bool,
    /// Domain-id.
    #[bits(32..=47, rw)]
    did: u16,
}

/// Fault status register (FSTS, 034h).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// Index of the first pending fault record.
    #[bits(8..=15, rw)]
    fri: u8,
    /// Invalidation time-out.
    #[bit(6, rw)]
    ite: bool,
    /// Invalidation completion error.
    #[bit(5, rw)]
    ice: bool,
    /// Invalidation queue error.
    #[bit(4, rw)]
    iqe: bool,
    /// Some fault record is pending.
    #[bit(1, rw)]
    ppf: bool,
    /// A fault could not be recorded.
    #[bit(0, rw)]
    pfo: bool,
}

/// The control register of an event (FECTL 038h, IECTL 0A0h, PECTL 0E0h).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    /// Interrupt mask.
    #[bit(31, rw)]
    im: bool,
    /// Interrupt pending.
    #[bit(30, rw)]
    ip: bool,
}

/// Invalidation queue head and tail (IQH 080h, IQT 088h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct QueueOffset {
    /// Offset in units of 16 bytes.
    #[bits(4..=18, rw)]
    index: u15,
}

/// Invalidation queue address register (IQA, 090h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct QueueAddress {
    /// Address of the queue in units of 4 KiB.
    #[bits(12..=63, rw)]
    iqa: u52,
    /// Descriptor width: 256 bits.
    #[bit(11, rw)]
    dw: bool,
    /// Size: `2^qs` pages.
    #[bits(0..=2, rw)]
    qs: u3,
}

/// Invalidation completion status register (ICS, 09Ch).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct CompletionStatus {
    /// A wait descriptor with the interrupt flag completed.
    #[bit(0, rw)]
    iwc: bool,
}

/// Invalidation queue error record (IQERCD, 0B0h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct QueueErrorRecord {
    /// Source-id of an invalid completion.
    #[bits(48..=63, rw)]
    icesid: u16,
    /// Source-id of a time-out.
    #[bits(32..=47, rw)]
    itesid: u16,
    /// Why FSTS.IQE is set.
    #[bits(0..=3, rw)]
    iqei: u4,
}

/// Page request queue head and tail (PQH 0C0h, PQT 0C8h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PageQueueOffset {
    /// Offset in units of 32 bytes.
    #[bits(5..=18, rw)]
    index: u14,
}

/// Page request queue address register (PQA, 0D0h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PageQueueAddress {
    /// Address of the queue in units of 4 KiB.
    #[bits(12..=63, rw)]
    pqa: u52,
    /// Size: `2^pqs` pages.
    #[bits(0..=2, rw)]
    pqs: u3,
}

/// Page request status register (PRS, 0DCh).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PageRequestStatus {
    /// A request could not be queued.
    #[bit(1, rw)]
    pro: bool,
    /// A request was queued.
    #[bit(0, rw)]
    ppr: bool,
}

/// Fault recording register, bits 63:0 (FRCD, FRO * 16 + 16n).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordLow {
    /// Page address of a DMA fault; of an interrupt's, the index in bits 63:48.
    #[bits(12..=63, rw)]
    fi: u52,
}

/// Fault recording register, bits 127:64. Positions are those of the upper half: the manual's minus 64.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordHigh {
    /// The record is valid.
    #[bit(63, rw)]
    f: bool,
    /// First type bit: with T2, 00 write, 01 page request, 10 read, 11 atomic.
    #[bit(62, rw)]
    t1: bool,
    /// Address type of the request.
    #[bits(60..=61, rw)]
    at: u2,
    /// PASID.
    #[bits(40..=59, rw)]
    pv: u20,
    /// Fault reason.
    #[bits(32..=39, rw)]
    fr: u8,
    /// A PASID is present.
    #[bit(31, rw)]
    pp: bool,
    /// Execute was requested.
    #[bit(30, rw)]
    exe: bool,
    /// Privileged mode was requested.
    #[bit(29, rw)]
    priv_: bool,
    /// Second type bit.
    #[bit(28, rw)]
    t2: bool,
    /// Source-id.
    #[bits(0..=15, rw)]
    sid: u16,
}
