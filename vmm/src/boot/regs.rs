//! The state of a CPU at the kernel's first instruction.
//!
//! PVH enters in 32-bit protected mode without paging, the Linux 64-bit boot protocol with the first 4 GiB mapped
//! one to one. Other CPUs wait for their start-up interrupt and need none of this.

use kvm_bindings::{kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::linux::{Entry, Protocol};
use crate::layout::low;
use crate::memory::GuestRam;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 1 << 1;

const PRESENT_WRITABLE: u64 = 0b11;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const TABLE_BYTES: u64 = 0x1000;
const ENTRIES: u64 = 512;
const LARGE_PAGE: u64 = 2 << 20;
/// Level-2 tables: 4 GiB.
const LARGE_TABLES: u64 = 4;

/// Selectors as the Linux boot protocol wants them.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on (bit 11), everything write-back (6).
const MTRR_ALL_WRITE_BACK: u64 = 1 << 11 | 6;

/// General registers at `entry`.
pub(crate) fn general(entry: &Entry) -> kvm_regs {
    let stack = low::STACK.start + low::STACK.len;
    let mut regs =
        kvm_regs { rip: entry.address, rflags: RFLAGS, rsp: stack, rbp: stack, ..Default::default() };
    match entry.protocol {
        Protocol::Pvh => regs.rbx = low::PVH_START_INFO.start,
        Protocol::Linux64 => regs.rsi = low::ZERO_PAGE.start,
    }
    regs
}

/// Puts segments, control registers and tables for `protocol` into `sregs`, whose rest stays as KVM made it.
pub(crate) fn special(protocol: Protocol, sregs: &mut kvm_sregs) {
    let long = protocol == Protocol::Linux64;
    let code = segment(CODE_SELECTOR, 0xb, long);
    let data = segment(DATA_SELECTOR, 0x3, false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr =
        kvm_segment { selector: TASK_SELECTOR, limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    sregs.gdt.base = low::GDT.start;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.cr0 = CR0_PE | CR0_ET;
    if long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = low::PAGE_TABLES.start;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}

/// A flat segment of 4 GiB; `long` makes it 64-bit code.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Model-specific registers that firmware would have set, for every CPU.
pub(crate) fn model_specific() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEF_TYPE, MTRR_ALL_WRITE_BACK)]
}

/// Writes the descriptor table, and the identity map if `protocol` wants paging.
///
/// # Errors
/// Guest memory ends below its place.
pub(crate) fn write_tables(ram: &GuestRam, protocol: Protocol) -> Result<(), vm_memory::guest_memory::Error> {
    let code = if protocol == Protocol::Linux64 { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    let descriptors: [u64; 5] = [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
    for (place, descriptor) in (low::GDT.start..).step_by(8).zip(descriptors) {
        ram.write_obj(descriptor, GuestAddress(place))?;
    }
    if protocol == Protocol::Linux64 { write_identity_map(ram) } else { Ok(()) }
}

fn write_identity_map(ram: &GuestRam) -> Result<(), vm_memory::guest_memory::Error> {
    let level4 = low::PAGE_TABLES.start;
    let level3 = level4 + TABLE_BYTES;
    let level2 = level3 + TABLE_BYTES;
    ram.write_obj(level3 | PRESENT_WRITABLE, GuestAddress(level4))?;
    for table in 0..LARGE_TABLES {
        ram.write_obj((level2 + table * TABLE_BYTES) | PRESENT_WRITABLE, GuestAddress(level3 + table * 8))?;
    }
    let mut tables = Vec::new();
    for page in 0..LARGE_TABLES * ENTRIES {
        tables.extend(((page * LARGE_PAGE) | PRESENT_WRITABLE | PAGE_SIZE_BIT).to_le_bytes());
    }
    ram.write_slice(&tables, GuestAddress(level2))
}

const _: () = assert!(low::PAGE_TABLES.len == (2 + LARGE_TABLES) * TABLE_BYTES);
