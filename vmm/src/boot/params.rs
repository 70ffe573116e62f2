//! What the kernel is told: memory map, command line, initramfs, where the ACPI tables are.

use std::ops::Range;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams, Error};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::linux::{LoadedInitrd, LoadedKernel, Protocol};
use crate::layout::{ECAM, VTD, low};
use crate::memory::{GuestRam, ranges};

/// E820 types.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Guest RAM as the guest may use it.
pub(crate) struct Memory {
    /// All of it, in bytes.
    pub(crate) bytes: u64,
    /// The end of low RAM, kept for devices; empty if there is none.
    pub(crate) reserved: Range<u64>,
}

/// What a kernel is told besides its own header.
pub(crate) struct Told<'a> {
    /// Guest RAM.
    pub(crate) memory: Memory,
    /// Command line.
    pub(crate) cmdline: &'a str,
    /// Initramfs.
    pub(crate) initrd: Option<LoadedInitrd>,
    /// Guest-physical address of the RSDP.
    pub(crate) rsdp: u64,
}

/// The memory map: (start, length in bytes, E820 type), ascending. **Pure.**
fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let kept = memory.reserved.end - memory.reserved.start;
    let mut map = vec![(0, low::RAM_END, RAM), (low::ACPI.start, low::ACPI.len, RESERVED)];
    for (start, len) in ranges(memory.bytes) {
        if start == 0 {
            map.push((low::END, len.saturating_sub(low::END + kept), RAM));
            if kept > 0 {
                map.push((memory.reserved.start, kept, RESERVED));
            }
            map.push((ECAM.start, ECAM.len, RESERVED));
            map.push((VTD.start, VTD.len, RESERVED));
        } else {
            map.push((start, len, RAM));
        }
    }
    map
}

/// Writes everything the kernel's protocol wants.
///
/// # Errors
/// Guest memory ends below its place.
pub(crate) fn write(ram: &GuestRam, kernel: &LoadedKernel, told: &Told<'_>) -> Result<(), Error> {
    let mut cmdline = told.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    ram.write_slice(&cmdline, GuestAddress(low::CMDLINE.start)).map_err(|_| Error::MissingStartAddress)?;
    match kernel.entry.protocol {
        Protocol::Linux64 => write_zero_page(ram, kernel.header, told),
        Protocol::Pvh => write_start_info(ram, told),
    }
}

fn write_zero_page(ram: &GuestRam, header: Option<setup_header>, told: &Told<'_>) -> Result<(), Error> {
    let mut params = boot_params { hdr: header.unwrap_or_else(bare_header), ..Default::default() };
    // No loader has this number: "undefined".
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = narrow(low::CMDLINE.start);
    if let Some(initrd) = told.initrd {
        params.hdr.ramdisk_image = narrow(initrd.start);
        params.hdr.ramdisk_size = narrow(initrd.len);
    }
    params.acpi_rsdp_addr = told.rsdp;
    for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(memory_map(&told.memory)) {
        *entry = boot_e820_entry { addr, size, r#type: type_ };
        params.e820_entries += 1;
    }
    let params = BootParams::new(&params, GuestAddress(low::ZERO_PAGE.start));
    LinuxBootConfigurator::write_bootparams(&params, ram)
}

/// The header for an ELF kernel that is entered by the 64-bit protocol and brings none.
fn bare_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        kernel_alignment: 0x0100_0000,
        ..Default::default()
    }
}

fn write_start_info(ram: &GuestRam, told: &Told<'_>) -> Result<(), Error> {
    let map: Vec<_> = memory_map(&told.memory)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 })
        .collect();
    let modules: Vec<_> = told
        .initrd
        .iter()
        .map(|initrd| hvm_modlist_entry { paddr: initrd.start, size: initrd.len, ..Default::default() })
        .collect();
    let info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        nr_modules: u32::from(told.initrd.is_some()),
        modlist_paddr: if modules.is_empty() { 0 } else { low::PVH_MODULES.start },
        cmdline_paddr: low::CMDLINE.start,
        rsdp_paddr: told.rsdp,
        memmap_paddr: low::PVH_MEMORY_MAP.start,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(low::PVH_START_INFO.start));
    params.set_sections(&map, GuestAddress(low::PVH_MEMORY_MAP.start));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(low::PVH_MODULES.start));
    }
    PvhBootConfigurator::write_bootparams(&params, ram)
}

/// An address or length below 4 GiB; what lies in low RAM always is.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{HIGH_RAM_START, LOW_RAM_LIMIT};

    #[test]
    fn the_map_is_ascending_and_holds_all_ram_but_the_legacy_hole() {
        for (bytes, kept) in [
            (64 << 20, 0),
            (64 << 20, 32 << 20),
            (LOW_RAM_LIMIT, 0),
            (LOW_RAM_LIMIT + (2 << 20), 1 << 20),
            (6 << 30, 0),
        ] {
            let low_end = bytes.min(LOW_RAM_LIMIT);
            let map = memory_map(&Memory { bytes, reserved: low_end - kept..low_end });
            assert_eq!(map.contains(&(low_end - kept, kept, RESERVED)), kept > 0, "{map:x?}");
            let mut end = 0;
            for (start, len, _) in &map {
                assert!(*start >= end && *len > 0, "{map:x?}");
                end = start + len;
            }
            let ram: u64 = map.iter().filter(|row| row.2 == RAM).map(|row| row.1).sum();
            assert_eq!(ram, bytes - kept - (low::END - low::RAM_END), "{map:x?}");
            assert_eq!(map.iter().any(|row| row.0 == HIGH_RAM_START), bytes > LOW_RAM_LIMIT);
        }
    }
}
